//! What the primary's end does when an operator, or this host's own trouble, asks for it.

use std::time::Duration;

use lockstep_proto::session::{PrimaryInput, PrimaryState, Unprotected};

use super::control::{Asked, Request};
use super::live::{Event, Loop};
use super::port::Command;
use super::status::describe;
use crate::host::clock::boottime;

/// A backup that lags further behind is handed nothing: the machine would stand still for so long.
const MOST_LAG: Duration = Duration::from_secs(2);

impl Loop {
    /// Answers an operator.
    pub(super) fn asked(&mut self, asked: Asked) {
        let answer = match asked.request {
            Request::Switchover => self.switch_over("an operator asks for it"),
            Request::TestFailover => self.must_be_protected(),
            Request::Suspend => self.suspend(),
            Request::Resume => self.resume(),
            Request::Shutdown(patience) if patience.is_zero() => {
                tracing::warn!("an operator ends the machine");
                self.command(Command::End);
                Ok(())
            }
            Request::Shutdown(_) => Err(
                "this program cannot ask the guest to shut down: do that inside; --timeout 0 ends it as a power failure would"
                    .into(),
            ),
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
        let lag = Duration::from_nanos(self.session.ack().lag_ns);
        if lag > MOST_LAG {
            return Err(format!(
                "the backup is {lag:.1?} behind: try again when it has caught up"
            ));
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
