//! `monitor` commands.

use anyhow::{Result, bail};

use super::target::Debuggee;
use crate::parts::position_in;
use crate::position::Position;
use crate::replay::hex;
use crate::show::go;

const HELP: &str = "\
monitor when             where the machine stands: stop, turn, steps, guest time
monitor seek POSITION    go to a stop (1234), a guest time (12.5s), a time of the calendar (14:03:20), a time before the end
                         (-30s), or `end`; then `maintenance flush register-cache`
monitor checkpoint       keep a checkpoint here (between slices), and tell what checkpoints take
monitor digest           a digest of registers, devices, memory and disks: equal states have equal digests
monitor why              why the last thing was refused, or what to know of the last stop";

impl Debuggee {
    /// The answer to a command.
    pub fn monitor(&mut self, command: &str) -> Result<String> {
        let mut words = command.split_whitespace();
        let answer = match (words.next(), words.next()) {
            (Some("when"), None) => self.when(),
            (Some("seek"), Some(position)) => {
                let position = position_in(&self.recording, position)?;
                go(self.walker.timeline_mut(), position, true)?;
                self.walker.arrived();
                self.when()
            }
            (Some("checkpoint"), None) => self.checkpoint()?,
            (Some("digest"), None) if self.walker.spot().steps > 0 => {
                bail!("digests are of states between slices: this is inside one")
            }
            (Some("digest"), None) => hex(&self.walker.timeline_mut().digest()?),
            (Some("why"), None) => self.note.clone().unwrap_or_else(|| "nothing to tell".into()),
            (None | Some("help"), None) => HELP.into(),
            _ => bail!("there is no such command\n{HELP}"),
        };
        if words.next().is_some() {
            bail!("there is no such command\n{HELP}");
        }
        Ok(answer)
    }

    fn when(&self) -> String {
        let spot = self.walker.spot();
        let timeline = self.walker.timeline();
        let mut text = format!(
            "stop {} turn {} steps {}, {} of guest time",
            spot.point.stop,
            spot.point.turn,
            spot.steps,
            Position::Time(timeline.machine().now().ns())
        );
        if timeline.machine().is_halted() && spot.steps == 0 {
            text += ", halted";
        }
        text
    }

    fn checkpoint(&mut self) -> Result<String> {
        let taken = if self.walker.timeline().is_disturbed() {
            "no checkpoint is taken inside a slice; "
        } else {
            self.walker.timeline_mut().checkpoint()?;
            ""
        };
        let (count, memory, file) = self.walker.timeline().checkpoints();
        Ok(format!(
            "{taken}{count} checkpoints: {} KiB in memory, {} KiB in a file",
            memory >> 10,
            file >> 10
        ))
    }
}
