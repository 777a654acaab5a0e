//! A turn in a line, for people.

use std::fmt::Write;

use lockstep_proto::{Forced, Turn};

/// What came in at a turn, for instance `clock +1000 ns, 1 frame (60 bytes), console "ls\n"`. Sizes in bytes, at most some
/// hundred characters.
pub fn turn(turn: &Turn) -> String {
    let mut line = String::new();
    let mut part = |text: std::fmt::Arguments<'_>| {
        if !line.is_empty() {
            line.push_str(", ");
        }
        // Writing to a string does not fail.
        let _ = line.write_fmt(text);
    };
    if let Some(Forced { pages, .. }) = turn.forced {
        part(format_args!("forced, delta of {}", count(pages as usize, "page")));
    }
    if let Some(ns) = turn.clock {
        part(format_args!("clock +{ns} ns"));
    }
    if let Some(value) = turn.random {
        part(format_args!("random {value:#018x}"));
    }
    if !turn.frames.is_empty() {
        let bytes: usize = turn.frames.iter().map(|frame| frame.data.len()).sum();
        part(format_args!("{} ({bytes} bytes)", count(turn.frames.len(), "frame")));
    }
    if !turn.console.is_empty() {
        let shown = &turn.console[..turn.console.len().min(40)];
        let more = if shown.len() < turn.console.len() { "..." } else { "" };
        part(format_args!("console \"{}\"{more}", shown.escape_ascii()));
    }
    if !turn.keyboard.is_empty() {
        part(format_args!("keyboard {:02x?}", &turn.keyboard[..]));
    }
    if turn.power_button {
        part(format_args!("power button"));
    }
    if !turn.disks.is_empty() {
        let failed = turn.disks.iter().filter(|disk| disk.status != 0).count();
        let failed = if failed == 0 {
            String::new()
        } else {
            format!(" ({failed} failed)")
        };
        part(format_args!("{}{failed}", count(turn.disks.len(), "disk completion")));
    }
    if !turn.entropy.is_empty() {
        let bytes: usize = turn.entropy.iter().map(bytes::Bytes::len).sum();
        part(format_args!(
            "{} of entropy ({bytes} bytes)",
            count(turn.entropy.len(), "answer")
        ));
    }
    if let Some(epoch) = &turn.epoch {
        part(format_args!(
            "end of an epoch of {}",
            count(epoch.pages as usize, "page")
        ));
    }
    if line.is_empty() {
        line.push_str("nothing");
    }
    line
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use lockstep_proto::{DiskCompletion, Epoch, Frame};

    use super::*;

    #[test]
    fn turns_in_a_line() {
        assert_eq!(turn(&Turn::default()), "nothing");
        let all = Turn {
            gap: 3,
            clock: Some(7),
            random: Some(255),
            frames: vec![Frame {
                nic: 0,
                data: vec![1; 60].into(),
            }],
            console: b"ls\n"[..].into(),
            keyboard: b"\x14\xf0"[..].into(),
            power_button: true,
            disks: vec![
                DiskCompletion {
                    status: 1,
                    ..DiskCompletion::default()
                };
                2
            ],
            entropy: vec![vec![1; 64].into()],
            forced: Some(Forced {
                pages: 12,
                ..Forced::default()
            }),
            epoch: Some(Epoch {
                pages: 3,
                ..Epoch::default()
            }),
        };
        assert_eq!(
            turn(&all),
            "forced, delta of 12 pages, clock +7 ns, random 0x00000000000000ff, 1 frame (60 bytes), console \"ls\\n\", \
             keyboard [14, f0], power button, 2 disk completions (2 failed), 1 answer of entropy (64 bytes), end of an epoch of 3 pages"
        );
        let long = Turn {
            console: vec![0; 1000].into(),
            ..Turn::default()
        };
        assert!(turn(&long).len() < 200);
    }
}
