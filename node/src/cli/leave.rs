//! What SIGTERM does to a node of a pair.
//!
//! | the node | `switchover` | `shutdown` |
//! | --- | --- | --- |
//! | stands by | it says goodbye and ends | the same |
//! | runs a protected machine | hands it over and ends | the guest shuts down |
//! | runs a machine that is not protected | the guest shuts down | the same |
//!
//! A second signal, or another one than SIGTERM, ends the process at once: a backup in sync goes on with the machine, else
//! that is a power failure to it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};
use signal_hook::consts::SIGTERM;

use super::signals::on_signal;
use crate::api::DEFAULT_SHUTDOWN_SECONDS;
use crate::control::{Control, Request};
use crate::host::inbox::Bell;
use crate::sandbox::{self, Kind};
use crate::status::{Status, StatusInner};

/// The state from which a machine is handed over. Where the arbiter does not answer, nobody could take it.
const PROTECTED: &str = "protected";
/// The state that ends a machine for good: another node has the term.
pub(super) const LOST: &str = "frozen (lost-term)";
/// From one look at a machine that is to end to the next.
const LOOK: Duration = Duration::from_secs(1);
/// From one try to the next, where the machine can neither be handed over nor shut down just now.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a handover that has begun may take to show.
const BEGINNING: Duration = Duration::from_secs(10);

/// What SIGTERM does to a machine that runs here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OnSigterm {
    /// The other node goes on with it; without one in sync the guest shuts down.
    #[default]
    Switchover,
    /// The guest shuts down.
    Shutdown,
}

/// What SIGTERM does.
#[derive(Args, Clone, Debug)]
pub struct LeaveArgs {
    /// What SIGTERM does to a machine that runs here: `switchover` hands it to the other node, or has the guest shut down
    /// where there is none in sync; `shutdown` has the guest shut down [default: switchover].
    #[arg(long, value_name = "WHAT", requires = "peer", value_enum)]
    pub on_sigterm: Option<OnSigterm>,
}

/// Ends this node as signals want it.
#[derive(Clone)]
pub struct Leave {
    policy: OnSigterm,
    status: Status,
    control: Control,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    listens: bool,
    /// What signals have asked for so far.
    asked: Asked,
    /// What runs here now.
    now: Option<Now>,
}

/// How a node is to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Asked {
    /// Not at all.
    #[default]
    Nothing,
    /// By the policy.
    Order,
    /// At once.
    Haste,
}

/// What a signal ends.
enum Now {
    /// Something that ends whenever it is told.
    Simple(Box<dyn Fn() + Send>),
    /// A machine.
    Machine(Bell),
}

impl Leave {
    /// Nothing is listened to yet.
    pub fn new(args: &LeaveArgs, status: &Status, control: &Control) -> Self {
        Self {
            policy: args.on_sigterm.unwrap_or_default(),
            status: status.clone(),
            control: control.clone(),
            state: Arc::default(),
        }
    }

    /// From now on a signal calls `end`.
    pub fn ends(&self, end: impl Fn() + Send + 'static) -> Result<()> {
        self.set(Now::Simple(Box::new(end)))
    }

    /// From now on a signal ends the machine of this bell, by the policy.
    pub fn ends_machine(&self, bell: Bell) -> Result<()> {
        self.set(Now::Machine(bell))
    }

    /// Whether a signal has asked for the end.
    pub fn is_asked(&self) -> bool {
        self.state().asked != Asked::Nothing
    }

    fn set(&self, now: Now) -> Result<()> {
        let mut state = self.state();
        state.now = Some(now);
        // What came while something else ran here, that may not have heard it.
        self.end(&state);
        if !std::mem::replace(&mut state.listens, true) {
            drop(state);
            let leave = self.clone();
            on_signal(move |signal| leave.heard(signal))?;
        }
        Ok(())
    }

    fn heard(&self, signal: i32) {
        let mut state = self.state();
        state.asked = match state.asked {
            Asked::Nothing if signal == SIGTERM => Asked::Order,
            _ => Asked::Haste,
        };
        self.end(&state);
    }

    fn end(&self, state: &State) {
        match (state.asked, &state.now) {
            (Asked::Nothing, _) | (_, None) => {}
            (_, Some(Now::Simple(end))) => end(),
            (Asked::Haste, Some(Now::Machine(bell))) => {
                bell.quit();
                let (leave, bell) = (self.clone(), bell.clone());
                Self::begin(move || leave.quit(&bell));
            }
            (Asked::Order, Some(Now::Machine(bell))) => {
                let (leave, bell) = (self.clone(), bell.clone());
                Self::begin(move || leave.machine(&bell));
            }
        }
    }

    fn begin(work: impl FnOnce() + Send + 'static) {
        if let Err(error) = sandbox::spawn(Kind::Waits, "leave", work) {
            tracing::error!("the thread that ends the machine cannot be started: {error}");
        }
    }

    /// Ends the machine at once; the process too, where the machine is stalled and does not hear of it.
    fn quit(&self, bell: &Bell) {
        bell.quit();
        if !ends(&self.status) {
            tracing::error!("the machine does not stop: its process ends as by a power failure");
            crate::out::queue::settle();
            std::process::exit(1);
        }
    }

    /// Hands the machine over or has its guest shut down, whatever it takes; a second signal ends that.
    fn machine(&self, bell: &Bell) {
        tracing::warn!(policy = ?self.policy, "SIGTERM: this node leaves");
        if self.policy == OnSigterm::Switchover {
            while self.status.get().state == PROTECTED {
                match self.control.ask(Request::Switchover) {
                    Ok(()) => {
                        if self.is_handed_over() {
                            return self.quit(bell);
                        }
                    }
                    Err(why) => {
                        tracing::warn!("the machine is not handed over: {why}");
                        std::thread::sleep(AGAIN);
                    }
                }
            }
        }
        let patience = Duration::from_secs_f64(DEFAULT_SHUTDOWN_SECONDS);
        if let Err(why) = self.control.ask(Request::Shutdown(patience)) {
            tracing::error!("the guest cannot be asked to shut down: {why}. It ends as by a power failure");
            self.quit(bell);
        }
    }

    /// Waits for a handover that was begun. True when the other node has the machine; false when it goes on here.
    fn is_handed_over(&self) -> bool {
        let has_begun = |now: &StatusInner| now.state != PROTECTED;
        self.status.wait_for(has_begun, BEGINNING);
        let is_over = |now: &StatusInner| {
            let under_way = ["switching-over", "frozen (handover)", "fencing"];
            !under_way.iter().any(|state| now.state.starts_with(state))
        };
        while !self.status.wait_for(is_over, Duration::from_secs(3600)) {}
        self.status.get().state == LOST
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // Plain values: whole whenever the lock is free.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for the end of a machine whose bell has been told to quit. False: it is stalled, and never ends.
pub(super) fn ends(status: &Status) -> bool {
    let vcpu = &status.pulses().vcpu;
    while !vcpu.wait_for_end(LOOK) {
        if status.get().stalled {
            // It may have ended just now.
            return vcpu.wait_for_end(LOOK);
        }
    }
    true
}
