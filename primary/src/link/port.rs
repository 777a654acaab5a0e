//! The vCPU thread's end of the link: effects and log go in, commands come out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, unbounded};
use lockstep_node::copying::Sources;
use lockstep_node::host::inbox::Bell;
use lockstep_node::status::pulse::Pulse;
use lockstep_proto::quantity::{LogPosition, Term};
use lockstep_proto::session::Freeze;
use lockstep_vmm::devices::Effect;
use tokio::sync::mpsc;

use super::channels::{JoinChannels, LogItem};
use super::join::{Final, Joining};

/// What one turn gave the outside world, on its way through the gate.
pub struct Held {
    /// When the guest made it.
    pub since: Instant,
    /// What it is.
    pub effects: Vec<Effect>,
}

/// Turns whose effects may wait for the link's thread; then the vCPU waits.
const EFFECT_QUEUE: usize = 4096;

/// What the link asks of the vCPU thread.
pub enum Command {
    /// Memory is wanted by a new backup, and the log after it.
    BeginJoin(JoinChannels),
    /// The backup is gone.
    EndLog,
    /// Stand still.
    Freeze(Freeze),
    /// Go on.
    Thaw,
    /// Stand still, and tell the position of the log.
    HandOver(Box<dyn FnOnce(LogPosition) + Send>),
    /// Ask the guest to shut down: by its power button if it listens to it, else by its keyboard.
    AskToShutDown,
    /// End the machine; nobody goes on with it.
    End,
    /// Nobody takes the machine over: the guest gets its disk's errors.
    KeepErrors,
    /// A further term has begun, for this reason: the recording tells it.
    Term(Term, String),
}

/// What the vCPU thread reads of the link's state at any time.
#[derive(Default)]
pub struct LinkState {
    /// A backup could go on with the machine.
    pub protected: AtomicBool,
    /// How far the backup's execution lags, in nanoseconds.
    pub lag_ns: AtomicU64,
}

impl LinkState {
    /// Whether a backup could go on with the machine.
    pub fn is_protected(&self) -> bool {
        self.protected.load(Ordering::Acquire)
    }
}

/// What the link's thread holds of the port.
pub struct PortEnds {
    /// Effects with the positions that make them safe.
    pub effects: mpsc::Receiver<(LogPosition, Held)>,
    /// To the vCPU thread; ring the bell after sending.
    pub commands: Sender<Command>,
    /// A disk of this host has failed, and its error waits.
    pub disk_errors: mpsc::UnboundedReceiver<()>,
    /// Told what the vCPU thread reads.
    pub state: Arc<LinkState>,
}

/// The vCPU thread's end of the link.
pub struct LinkPort {
    effects: mpsc::Sender<(LogPosition, Held)>,
    commands: Receiver<Command>,
    disk_errors: mpsc::UnboundedSender<()>,
    state: Arc<LinkState>,
    /// The backup's log, from its join's state on.
    log: Option<mpsc::Sender<LogItem>>,
    joining: Option<Joining>,
    frozen: Option<Freeze>,
}

impl LinkPort {
    /// A port and the link's ends of it.
    pub fn new() -> (Self, PortEnds) {
        let (effects, effects_out) = mpsc::channel(EFFECT_QUEUE);
        let (commands_in, commands) = unbounded();
        let (disk_errors, disk_errors_out) = mpsc::unbounded_channel();
        let state = Arc::new(LinkState::default());
        let port = Self {
            effects,
            commands,
            disk_errors,
            state: state.clone(),
            log: None,
            joining: None,
            frozen: None,
        };
        let ends = PortEnds {
            effects: effects_out,
            commands: commands_in,
            disk_errors: disk_errors_out,
            state,
        };
        (port, ends)
    }

    /// Whether a backup gets the log.
    pub fn is_logging(&self) -> bool {
        self.log.is_some()
    }

    /// Whether a backup could go on with the machine.
    pub fn is_protected(&self) -> bool {
        self.state.is_protected()
    }

    /// How far the backup's execution lags, in nanoseconds; 0 without one.
    pub fn lag_ns(&self) -> u64 {
        self.state.lag_ns.load(Ordering::Relaxed)
    }

    /// A disk of this host has failed; [`Command::HandOver`] or [`Command::KeepErrors`] is the answer.
    pub fn disk_failed(&self) {
        // A link that is gone lets nothing out any more: the guest's errors do not matter.
        let _ = self.disk_errors.send(());
    }

    /// Hands effects over; `vcpu` beats while there is no room for them. False when the link is gone: nothing may leave any more.
    pub fn effects(&self, vcpu: &Pulse, position: LogPosition, effects: Vec<Effect>) -> bool {
        let since = Instant::now();
        vcpu.wait(self.effects.send((position, Held { since, effects })))
            .is_ok()
    }

    /// Hands a part of the log over; `vcpu` beats while there is no room for it. When the backup is gone, the log ends.
    pub fn log(&mut self, vcpu: &Pulse, item: LogItem) {
        if self.log.as_ref().is_some_and(|log| vcpu.wait(log.send(item)).is_err()) {
            self.log = None;
        }
    }

    /// Whether the vCPU thread has something to do between two steps.
    pub fn has_errand(&self) -> bool {
        !self.commands.is_empty() || self.frozen.is_some() || self.joining.as_ref().is_some_and(Joining::is_ready)
    }

    /// The next command, if there is one.
    pub fn command(&self) -> Option<Command> {
        self.commands.try_recv().ok()
    }

    /// Stands still, or goes on.
    pub fn set_frozen(&mut self, frozen: Option<Freeze>) {
        self.frozen = frozen;
    }

    /// Why the machine stands still, if it does.
    pub fn frozen(&self) -> Option<Freeze> {
        self.frozen
    }

    /// Begins to copy memory and disks to a new backup.
    pub fn begin_join(&mut self, sources: Sources, channels: JoinChannels, bell: Bell) -> std::io::Result<()> {
        self.log = None;
        self.joining = Some(Joining::start(sources, channels, bell)?);
        Ok(())
    }

    /// The join that waits for the machine's state, if one does; from here on the log goes to its backup.
    pub fn take_ready_join(&mut self) -> Option<Joining> {
        let ready = self.joining.as_ref().is_some_and(Joining::is_ready);
        if ready { self.joining.take() } else { None }
    }

    /// Ends a join: its state goes out, and the log goes on from there.
    pub fn finish_join(&mut self, mut joining: Joining, state: Result<Final, String>) {
        let log = joining.finish(state);
        self.begin_log(log);
    }

    /// From here on the log goes to this backup, which has the machine's state; `None`: it has come to nothing.
    pub fn begin_log(&mut self, log: Option<mpsc::Sender<LogItem>>) {
        self.log = log;
    }

    /// The backup is gone.
    pub fn end_log(&mut self) {
        self.log = None;
        self.joining = None;
    }
}
