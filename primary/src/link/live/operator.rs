//! What the primary's end does when an operator, or this host's own trouble, asks for it.

use std::time::Duration;

use lockstep_node::control::{Asked, Request};
use lockstep_node::host::clock::boottime;
use lockstep_node::status::describe;
use lockstep_proto::session::{PrimaryInput, PrimaryState, Unprotected};

use super::super::port::Command;
use super::{Event, Loop};

/// A backup that lags further behind is handed nothing: the machine would stand still for so long.
const MOST_LAG: Duration = Duration::from_secs(2);

/// Whether the machine does, so that it hears nothing.
fn stands_still(state: &PrimaryState) -> bool {
    state.is_being_handed_over() || matches!(state, PrimaryState::Frozen(_))
}

/// Whether an operator may end the machine at once: while it is handed over that would end this process, and not the machine.
fn check_end(state: &PrimaryState) -> Result<(), String> {
    if state.is_being_handed_over() {
        return Err(format!(
            "the machine is {} and may be the other node's by now: ask again when that is over, or ask that node",
            describe(state)
        ));
    }
    Ok(())
}

/// Whether the guest can be asked to shut down.
fn check_shutdown(state: &PrimaryState) -> Result<(), String> {
    check_end(state)?;
    if stands_still(state) {
        return Err(format!(
            "the machine is {} and stands still: try again when that is over; --timeout 0 ends it as a power failure would",
            describe(state)
        ));
    }
    Ok(())
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
            Request::Shutdown(Duration::ZERO) => self.end(),
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
                describe(&other)
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

    /// Asks the guest to shut down, and sets when it is ended by force. Asked once more, it presses button or keys again.
    fn shut_down(&mut self, patience: Duration) -> Result<(), String> {
        if !self.keyboard {
            return Err(
                "the machine has no keyboard by which the guest could be asked (it was booted with device model \
                        revision 1): shut it down inside; --timeout 0 ends it as a power failure would"
                    .into(),
            );
        }
        check_shutdown(&self.session.state())?;
        tracing::warn!(?patience, "an operator asks the guest to shut down");
        self.command(Command::AskToShutDown);
        let patience_ns = patience.as_nanos().min(u64::MAX.into()) as u64;
        self.ending.ask(boottime(), patience_ns);
        Ok(())
    }

    /// Ends the machine at once.
    fn end(&mut self) -> Result<(), String> {
        check_end(&self.session.state())?;
        tracing::warn!("an operator ends the machine");
        self.ending.force();
        self.command(Command::End);
        Ok(())
    }

    /// Ends a guest by force that was asked to shut down and has not in time.
    pub(super) fn end_if_late(&mut self) {
        if self.ending.forces(boottime(), &self.session.state()) {
            tracing::warn!("the guest has not shut down in time: it is ended by force");
            self.command(Command::End);
        }
    }

    fn suspend(&mut self) -> Result<(), String> {
        match self.session.state() {
            PrimaryState::Alone(Unprotected::Suspended) => return Err("protection is suspended already".into()),
            PrimaryState::Alone(_)
            | PrimaryState::Greeting
            | PrimaryState::Syncing { .. }
            | PrimaryState::Naming { .. }
            | PrimaryState::Protected => {}
            other => {
                return Err(format!(
                    "the machine is {}: try again when that is over",
                    describe(&other)
                ));
            }
        }
        self.session.handle(boottime(), PrimaryInput::Suspend);
        Ok(())
    }

    fn resume(&mut self) -> Result<(), String> {
        match self.session.state() {
            PrimaryState::Alone(Unprotected::Suspended)
            | PrimaryState::Fencing {
                why: Unprotected::Suspended,
                ..
            } => {}
            other => return Err(format!("the machine is {}, not suspended", describe(&other))),
        }
        self.session.handle(boottime(), PrimaryInput::Resume);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use lockstep_proto::quantity::LogPosition;
    use lockstep_proto::session::Freeze;

    use super::*;

    #[test]
    fn what_the_other_node_may_have_is_ended_and_asked_by_nobody_here() {
        let handing_over = |told| PrimaryState::HandingOver {
            at: LogPosition::START,
            stalled: false,
            told,
        };
        let fencing = |still| PrimaryState::Fencing {
            why: Unprotected::LostConnection,
            still,
        };
        for (state, end, shutdown) in [
            (PrimaryState::Protected, true, true),
            (fencing(false), true, true),
            (handing_over(false), false, false),
            (handing_over(true), false, false),
            (fencing(true), false, false),
            // Its process may end: the machine is the other node's for certain, or nobody's but this one's.
            (PrimaryState::Frozen(Freeze::LostTerm), true, false),
            (PrimaryState::Frozen(Freeze::NoArbiter), true, false),
        ] {
            assert_eq!(check_end(&state).is_ok(), end, "{state:?}");
            assert_eq!(check_shutdown(&state).is_ok(), shutdown, "{state:?}");
        }
    }
}
