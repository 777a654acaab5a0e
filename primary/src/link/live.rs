//! The primary's end of the link: a thread that runs the session over QUIC and lets effects go.

mod look;
mod operator;
mod reach;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lockstep_node::control::Control;
use lockstep_node::host::chunks::CHUNK;
use lockstep_node::host::clock::boottime;
use lockstep_node::host::inbox::Bell;
use lockstep_node::host::outputs::Outputs;
use lockstep_node::pki::Credentials;
use lockstep_node::reports::{BEGIN, Reports};
use lockstep_node::sandbox::{self, Kind};
use lockstep_node::status::{Status, count};
use lockstep_node::watch::{self, ArbiterPort, Uplink, Watch};
use lockstep_proto::quantity::{LogPosition, Term};
use lockstep_proto::session::{
    Commit, Ending, Gate, Primary, PrimaryAction, PrimaryInput, PrimaryState, Record, Timing, Unprotected, Verdict,
};
use lockstep_proto::{HeartbeatReply, Hello, JoinState, ToBackup, ToPrimary, to_backup};
use lockstep_vmm::memory::PAGE_SIZE;
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use tokio::sync::mpsc;

use super::announce::{Announcements, macs};
use super::net;
use super::peer::{Heard, Peer};
use super::port::{Command, Held, LinkState, PortEnds};
use super::stall::Stalls;

/// From one attempt to reach the peer to the next.
const REDIAL: Duration = Duration::from_millis(200);
/// Longest sleep of a link for which nothing is due.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// What the primary's end needs.
pub struct LiveOptions {
    /// Who it is and what it runs.
    pub hello: Hello,
    /// The arbiter's record that it holds.
    pub record: Record,
    /// How fast it notices that the backup is gone.
    pub timing: Timing,
    /// Why the machine is not protected yet.
    pub why: Unprotected,
    /// Where the backup listens.
    pub peer: SocketAddr,
    /// The backup's name, as in its certificate.
    pub peer_name: String,
    /// Who this side is to the other, read anew for each connection.
    pub credentials: Credentials,
    /// The arbiter.
    pub arbiter: ArbiterPort,
    /// Which acknowledgement lets effects go.
    pub commit: Commit,
    /// The interface by which the service is reached.
    pub uplink: Option<Uplink>,
    /// What operators ask.
    pub control: Control,
    /// Addresses to announce on this host's network, repeatedly: the machine has come from another.
    pub announce: Vec<[u8; 6]>,
    /// Where effects go.
    pub outputs: Outputs,
    /// Wakes the vCPU thread for a command.
    pub bell: Bell,
    /// Where divergence reports are kept.
    pub reports: Reports,
    /// Told when the state changes.
    pub status: Status,
}

/// How a link ends.
enum Stop {
    /// The process ends: the backup goes on with the machine.
    Handover,
    /// The guest has ended, in this way: nobody goes on. Or the machine is booted anew.
    Guest { how: &'static str, restarts: bool },
}

/// The link's thread. Dropping it ends the session; the backup then goes on with the machine.
pub struct Live {
    stop: mpsc::Sender<Stop>,
    /// It says whether an operator has wanted the guest's end.
    thread: Option<JoinHandle<bool>>,
}

impl Live {
    /// Starts it.
    pub fn start(options: LiveOptions, ends: PortEnds) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel(1);
        let thread = sandbox::spawn(Kind::Network, "link", move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let result = runtime
                .context("tokio runtime")
                .and_then(|runtime| runtime.block_on(run(options, ends, stopped)));
            result.unwrap_or_else(|error| {
                tracing::error!("the link has failed: {error:#}; nothing leaves the machine any more");
                false
            })
        })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Live {
    /// Ends the session of a guest that has ended, when its last output has left. With `restarts` nobody is told, and the next
    /// term is taken. True: an operator has wanted the end, so that the machine is not booted anew.
    pub fn end(mut self, how: &'static str, restarts: bool) -> bool {
        // The channel has room for one, and nothing was sent before.
        let _ = self.stop.try_send(Stop::Guest { how, restarts });
        self.thread
            .take()
            .is_some_and(|thread| thread.join().unwrap_or_default())
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // A full channel has a request already.
        let _ = self.stop.try_send(Stop::Handover);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What comes to the link's thread from its own tasks. The number tells the connection, for those of an old one.
pub(super) enum Event {
    Connected(u64, Connection, SendStream, RecvStream),
    DialFailed(anyhow::Error),
    Heard(u64, Heard<ToPrimary, HeartbeatReply>),
    State(u64, Result<Box<JoinState>, String>),
    /// The log goes up to this position, and is about to be written.
    Logged(LogPosition),
    Verdict(Verdict),
    /// Whether the arbiter answers.
    Arbiter(bool),
    /// The machine stands still, at this position of the log.
    StandsStill(LogPosition),
}

pub(super) struct Loop {
    pub(super) session: Primary,
    /// How many pages the machine's memory has, and chunks each disk.
    pages: u64,
    chunks: Vec<u64>,
    gate: Gate<Held>,
    pub(super) outputs: Outputs,
    commands: crossbeam_channel::Sender<Command>,
    link_state: Arc<LinkState>,
    bell: Bell,
    arbiter: ArbiterPort,
    pub(super) watch: Watch,
    pub(super) stalls: Stalls,
    reports: Reports,
    pub(super) status: Status,
    pub(super) events: mpsc::UnboundedSender<Event>,
    peer: Option<Peer>,
    dials: u64,
    dialing: bool,
    /// Connections since the machine was protected last, and when the newest was made.
    joins: u32,
    joined_at: Instant,
    problems: net::Problems,
    peer_name: String,
    /// The machine has a keyboard, by which the guest can be asked to shut down.
    pub(super) keyboard: bool,
    pub(super) ending: Ending,
    /// The last term that the vCPU thread has heard of.
    told_term: Term,
    /// The machine was being handed over when it was last looked at.
    handing_over: bool,
}

async fn run(options: LiveOptions, mut ends: PortEnds, mut stopped: mpsc::Receiver<Stop>) -> Result<bool> {
    let (events, mut incoming) = mpsc::unbounded_channel();
    let endpoint = net::dialer(options.peer)?;
    // A silent connection is the session's business; QUIC's own limit only cleans up.
    let idle = Duration::from_nanos(options.timing.deadline_ns) * 4;
    let credentials = options.credentials;
    let stalls = Stalls::of(&options.status, &options.timing, &options.why);
    let machine = options.hello.machine.clone().unwrap_or_default();
    let mut session = Primary::new(options.hello, options.record, options.timing, options.why);
    session.set_commit(options.commit);
    let told_term = session.record().term;
    let mut requests = options.control.connect();
    let mut announcements = Announcements::new(options.announce);
    let macs = macs(&machine);
    let mut state = Loop {
        session,
        pages: machine.memory_bytes / PAGE_SIZE as u64,
        chunks: machine.disks.iter().map(|disk| disk.bytes.div_ceil(CHUNK)).collect(),
        gate: Gate::default(),
        outputs: options.outputs,
        commands: ends.commands,
        link_state: ends.state,
        bell: options.bell,
        arbiter: options.arbiter,
        watch: Watch::new(options.uplink, options.status.taps())?,
        stalls,
        reports: options.reports,
        status: options.status,
        events,
        peer: None,
        dials: 0,
        dialing: false,
        joins: 0,
        joined_at: Instant::now(),
        problems: net::Problems::default(),
        peer_name: options.peer_name,
        keyboard: machine.has_keyboard(),
        ending: Ending::default(),
        told_term,
        handing_over: false,
    };
    let mut redial = tokio::time::interval(REDIAL);
    redial.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut look = tokio::time::interval(watch::LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let status = state.status.clone();
    let _alive = status.pulses().link.begin(|| {});
    loop {
        state.pump();
        status.pulses().link.beat();
        let now = boottime();
        let wake = [state.session.wake(), state.ending.wake()].into_iter().flatten().min();
        let wake = wake.map_or(LONGEST_SLEEP, |at| Duration::from_nanos(at.ns_since(now)));
        tokio::select! {
            biased;
            stop = stopped.recv(), if !state.ending.has_ended() => match stop {
                Some(Stop::Guest { how, restarts }) => {
                    while let Ok((position, held)) = ends.effects.try_recv() {
                        state.offer(position, held);
                    }
                    state.ending.guest_ended(boottime(), how, restarts);
                }
                _ => break,
            },
            Some(event) = incoming.recv() => {
                if matches!(event, Event::State(..)) {
                    // What was made before the state leaves now: the backup will not have it to let go.
                    while let Ok((position, held)) = ends.effects.try_recv() {
                        state.offer(position, held);
                    }
                    state.release();
                }
                state.event(event);
            }
            // Where the machine has ended, what becomes of the session comes by the other channel.
            Some((position, held)) = ends.effects.recv() => state.offer(position, held),
            Some(asked) = requests.recv() => state.asked(asked),
            Some(()) = ends.disk_errors.recv() => state.disk_failed(),
            _ = look.tick() => if state.look() {
                announcements = Announcements::new(macs.clone());
                state.announce(&mut announcements);
            },
            () = announcements.due() => state.announce(&mut announcements),
            _ = redial.tick() => state.dial(&endpoint, &credentials, idle, options.peer),
            () = tokio::time::sleep(wake) => {}
        }
        state.end_if_late();
        state.session.handle(boottime(), PrimaryInput::Tick);
        if state.is_over() {
            break;
        }
    }
    state.finish(&endpoint).await;
    Ok(state.ending.is_shut_down())
}

impl Loop {
    /// Whether a guest that has ended has nothing left to wait for.
    fn is_over(&self) -> bool {
        let all_has_left = self.gate.is_empty();
        self.ending
            .is_over(boottime(), all_has_left, self.peer.is_some(), &self.session.state())
    }

    /// Ends the session in order: what is committed has left.
    async fn finish(&mut self, endpoint: &Endpoint) {
        self.pump();
        if let Some(peer) = self.peer.take() {
            peer.close("the primary has ended");
        }
        // Lets the close go out; a peer that does not answer is not waited for.
        let _ = tokio::time::timeout(Duration::from_millis(300), endpoint.wait_idle()).await;
    }

    fn event(&mut self, event: Event) {
        let now = boottime();
        let input = match event {
            Event::Connected(number, connection, control, replies) => {
                self.dialing = false;
                self.joins += 1;
                self.joined_at = Instant::now();
                let events = self.events.clone();
                self.peer = Some(Peer::start(number, connection, control, replies, move |heard| {
                    let _ = events.send(Event::Heard(number, heard));
                }));
                // The name that its certificate was checked for.
                PrimaryInput::Connected(self.peer_name.clone())
            }
            Event::DialFailed(problem) => {
                self.dialing = false;
                if let Some(problem) = self.problems.tell(&problem) {
                    tracing::info!("the backup is not reached: {problem}");
                }
                return;
            }
            Event::Heard(number, heard) if self.is_current(number) => match heard {
                Heard::Message(message) => PrimaryInput::Message(message),
                Heard::Datagram(reply) => PrimaryInput::Reply(reply),
                Heard::Closed(reason) => {
                    tracing::info!("the connection to the backup is gone: {reason}");
                    self.hang_up(&reason);
                    PrimaryInput::Disconnected
                }
            },
            Event::State(number, Err(why)) if self.is_current(number) => {
                tracing::error!("a join has failed: {why}");
                if let Some(peer) = self.peer.take() {
                    peer.close(&why);
                }
                PrimaryInput::Disconnected
            }
            Event::State(number, Ok(state)) if self.is_current(number) => {
                self.session.note_logged(LogPosition::new(state.position));
                self.send(&ToBackup {
                    kind: Some(to_backup::Kind::State(*state)),
                });
                PrimaryInput::StateSent
            }
            Event::Verdict(verdict) => PrimaryInput::Arbiter(verdict),
            Event::Logged(position) => return self.session.note_logged(position),
            Event::Arbiter(answers) => return self.watch.arbiter(answers),
            Event::StandsStill(position) => PrimaryInput::HandOver(position),
            _ => return,
        };
        self.session.handle(now, input);
    }

    pub(super) fn command(&self, command: Command) {
        // The vCPU thread ends before this one only when the process does.
        let _ = self.commands.send(command);
        self.bell.ring();
    }

    /// Does what the session wants, and lets go what may go.
    fn pump(&mut self) {
        while let Some(action) = self.session.poll() {
            self.act(action);
        }
        self.release();
        if let Some(end) = self.ending.take_goodbye(self.gate.is_empty()) {
            if end.restarts {
                // The backup keeps what it has until this node has the next term.
                self.hang_up("the guest has reset, and is booted anew");
                self.session.handle(boottime(), PrimaryInput::Disconnected);
            } else {
                self.session.finish(end.how, end.shut_down);
            }
            return self.pump();
        }
        self.tell();
    }

    fn offer(&mut self, position: LogPosition, held: Held) {
        // The vCPU thread has handed the log up to here over before.
        self.session.note_logged(position);
        self.gate.push(position, held);
    }

    fn release(&mut self) {
        // The limit is asked for anew before each turn's effects: the lease may have run out meanwhile.
        let is_protected = self.session.state() == PrimaryState::Protected;
        while let Some(held) = self.gate.pop(self.session.release_limit(boottime())) {
            if is_protected {
                self.status.gauges().holds.add(held.since.elapsed());
            }
            for effect in &held.effects {
                let bytes = self.outputs.emit(effect);
                count(&self.status.gauges().output_bytes, bytes as u64);
            }
        }
        self.session.note_released(self.gate.released());
    }

    fn act(&mut self, action: PrimaryAction) {
        match action {
            PrimaryAction::Send(message) => self.send(&message),
            PrimaryAction::Heartbeat(heartbeat) => {
                if let Some(peer) = &self.peer {
                    peer.send_datagram(&heartbeat);
                }
            }
            PrimaryAction::BeginJoin => self.begin_join(),
            PrimaryAction::EndLog => self.command(Command::EndLog),
            PrimaryAction::Disconnect(reason) => {
                if let Some(peer) = self.peer.take() {
                    tracing::info!("closing the connection to the backup: {reason}");
                    peer.close(&reason);
                }
            }
            PrimaryAction::Arbitrate { expected, new } => {
                let events = self.events.clone();
                (self.arbiter.ask)(
                    expected,
                    new,
                    Box::new(move |verdict| {
                        let _ = events.send(Event::Verdict(verdict));
                    }),
                );
            }
            PrimaryAction::Freeze(why) => self.command(Command::Freeze(why)),
            PrimaryAction::Thaw => self.command(Command::Thaw),
            PrimaryAction::Report(diverged) => {
                count(&self.status.gauges().divergences, 1);
                let registers = self.status.history().compare(&diverged.registers);
                let report = format!("{}\n{registers}", diverged.report);
                tracing::error!("{BEGIN}\n{report}");
                // What comes to the backup in the next join is told there.
                drop(self.reports.keep(&report));
            }
        }
    }

    /// Makes an announcement, if the machine may be heard.
    fn announce(&mut self, announcements: &mut Announcements) {
        let may_be_heard = self.session.release_limit(boottime()) > LogPosition::START;
        announcements.make(may_be_heard.then_some(&mut self.outputs));
    }
}
