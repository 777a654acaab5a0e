//! What the primary's end does when an operator, or this host's own trouble, asks for it.

use std::time::{Duration, Instant};

use lockstep_proto::session::{Freeze, PrimaryInput, PrimaryState, Unprotected};

use lockstep_vmm::devices::CTRL_ALT_DEL;

use super::control::{Asked, Request};
use super::live::{Event, Loop};
use super::port::Command;
use super::status::describe;
use crate::host::clock::boottime;

/// When a machine that is being handed over is looked at again, to end it if it stayed.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// A backup that lags further behind is handed nothing: the machine would stand still for so long.
const MOST_LAG: Duration = Duration::from_secs(2);

/// Whether the machine does, so that it hears nothing.
fn stands_still(state: &PrimaryState) -> bool {
    matches!(state, PrimaryState::HandingOver | PrimaryState::Frozen(_))
}

impl Loop {
    /// Answers an operator.
    pub(super) fn asked(&mut self, asked: Asked) {
        let answer = match asked.request {
            Request::Switchover => self.switch_over("an operator asks for it"),
            Request::TestFailover => self.must_be_protected(),
            Request::Suspend => self.suspend(),
            Request::Resume => self.resume(),
            Request::Shutdown(_) if self.stalls.now().is_some() => Err(
                "the guest does not move and hears nothing: try again when it does, or end the node's process by SIGKILL, as a \
                 power failure would"
                    .into(),
            ),
            Request::Shutdown(Duration::ZERO) => {
                tracing::warn!("an operator ends the machine");
                self.shut_down = true;
                self.command(Command::End);
                Ok(())
            }
            Request::Shutdown(patience) => self.shut_down(patience),
        };
        // One that does not wait for the answer does not need it.
        let _ = asked.answer.send(answer);
    }

    fn must_be_protected(&self) -> Result<(), String> {
        match self.session.state() {
            PrimaryState::Protected => Ok(()),
            other => Err(format!(
                "the machine is {}: without a backup in sync there is nobody to go on with it",
                describe(other)
            )),
        }
    }

    /// Has the machine stand still and the backup go on with it.
    pub(super) fn switch_over(&mut self, why: &str) -> Result<(), String> {
        self.must_be_protected()?;
        if !self.session.peer_has_uplink() && self.watch.cut_off().is_none() {
            return Err(
                "the other node's network is cut off (its own status says how): the machine would not be reached there"
                    .into(),
            );
        }
        let lag = Duration::from_nanos(self.session.ack().lag_ns);
        if lag > MOST_LAG {
            return Err(format!(
                "the backup is {lag:.1?} behind: try again when it has caught up"
            ));
        }
        if self.stalls.now().is_some() {
            // It would not hear the command.
            self.give_away(why);
            return Ok(());
        }
        tracing::info!("handing the machine over: {why}");
        let events = self.events.clone();
        self.command(Command::HandOver(Box::new(move |position| {
            let _ = events.send(Event::StandsStill(position));
        })));
        Ok(())
    }

    /// A disk of this host has failed: the guest gets the error only where no backup can go on without it.
    pub(super) fn disk_failed(&mut self) {
        if let Err(why) = self.switch_over("a disk of this host has failed") {
            tracing::error!("a disk of this host has failed, and the guest gets the error: {why}");
            self.command(Command::KeepErrors);
        }
    }

    /// Asks the guest to shut down, and sets when it is ended by force. Asked once more, it presses the keys again.
    fn shut_down(&mut self, patience: Duration) -> Result<(), String> {
        if !self.keyboard {
            return Err(
                "the machine has no keyboard by which the guest could be asked (it was booted with device model \
                        revision 1): shut it down inside; --timeout 0 ends it as a power failure would"
                    .into(),
            );
        }
        let state = self.session.state();
        if stands_still(state) {
            return Err(format!(
                "the machine is {} and stands still: try again when that is over; --timeout 0 ends it as a power failure would",
                describe(state)
            ));
        }
        tracing::warn!(?patience, "an operator asks the guest to shut down");
        self.command(Command::Press(&CTRL_ALT_DEL));
        self.ends_at = Some(Instant::now() + patience);
        self.shut_down = true;
        Ok(())
    }

    /// Ends a guest by force that was asked to shut down and has not in time. While it is handed over it may be the other
    /// node's already, and then its end is not for this one to say.
    pub(super) fn end_if_late(&mut self) {
        let now = Instant::now();
        if self.ends_at.is_none_or(|at| now < at) {
            return;
        }
        let is_leaving = match self.session.state() {
            PrimaryState::Frozen(why) => *why != Freeze::NoArbiter,
            state => *state == PrimaryState::HandingOver,
        };
        if is_leaving {
            self.ends_at = Some(now + LOOK_AGAIN);
        } else {
            tracing::warn!("the guest has not shut down in time: it is ended by force");
            self.ends_at = None;
            self.command(Command::End);
        }
    }

    fn suspend(&mut self) -> Result<(), String> {
        match self.session.state() {
            PrimaryState::Alone(Unprotected::Suspended) => return Err("protection is suspended already".into()),
            PrimaryState::Alone(_)
            | PrimaryState::Greeting
            | PrimaryState::Syncing
            | PrimaryState::Naming
            | PrimaryState::Protected => {}
            other => {
                return Err(format!(
                    "the machine is {}: try again when that is over",
                    describe(other)
                ));
            }
        }
        self.session.handle(boottime(), PrimaryInput::Suspend);
        Ok(())
    }

    fn resume(&mut self) -> Result<(), String> {
        match self.session.state() {
            PrimaryState::Alone(Unprotected::Suspended) | PrimaryState::Fencing(Unprotected::Suspended) => {}
            other => return Err(format!("the machine is {}, not suspended", describe(other))),
        }
        self.session.handle(boottime(), PrimaryInput::Resume);
        Ok(())
    }
}
