//! The backup's end of the link: a thread that runs the session over QUIC.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use crossbeam_channel::Sender;
use lockstep_node::control::{Asked, Control};
use lockstep_node::host::clock::boottime;
use lockstep_node::pki::Credentials;
use lockstep_node::sandbox::{self, Kind};
use lockstep_node::status::{Role, STATE_MESSAGES, Status, StatusInner, count};
use lockstep_node::watch::{self, ArbiterPort, Uplink, Watch};
use lockstep_primary::link::BUSY;
use lockstep_primary::link::have::write_have;
use lockstep_primary::link::net;
use lockstep_primary::link::peer::{Heard, Peer};
use lockstep_proto::ToPrimary;
use lockstep_proto::quantity::LogPosition;
use lockstep_proto::session::{Backup, BackupAction, BackupIdentity, BackupInput, BackupState};
use quinn::{Connection, Endpoint, Incoming, RecvStream, SendStream, VarInt};
use tokio::sync::mpsc;

use super::replica::ReplicaOptions;
use super::room::Rooms;
use super::streams::read_streams;
use super::{Event, Inlet, LinkEnds, Order, Released, Replica, Report, Takeover, ends};

/// QUIC's own limit on silence; the session's is what counts.
const IDLE: Duration = Duration::from_secs(10);
/// Frames of digests that may wait for the network.
const HAVE_QUEUE: usize = 4;

/// What the backup's end needs.
pub struct StandbyOptions {
    /// Who it is.
    pub identity: BackupIdentity,
    /// Where it listens.
    pub listen: SocketAddr,
    /// The primary's name, as in its certificate.
    pub peer_name: String,
    /// Who this side is to the other; renewed certificates are read while it runs.
    pub credentials: Credentials,
    /// The arbiter.
    pub arbiter: ArbiterPort,
    /// The interface by which the service would be reached.
    pub uplink: Option<Uplink>,
    /// Told what happens.
    pub status: Status,
    /// What operators ask.
    pub control: Control,
}

/// The link's thread. It ends when a machine goes live, or when it is dropped.
pub struct Standby {
    orders: Sender<Order>,
    stop: mpsc::Sender<()>,
    thread: Option<JoinHandle<()>>,
}

/// Makes a process that stands by end.
#[derive(Clone)]
pub struct Quit(Sender<Order>);

impl Quit {
    /// Asks for the end.
    pub fn quit(&self) {
        // A replica that is gone has ended already.
        let _ = self.0.send(Order::Quit);
    }
}

impl Standby {
    /// Starts the link's thread, and makes the replica for this one.
    pub fn start(options: StandbyOptions, replica: ReplicaOptions) -> Result<(Self, Replica)> {
        let (replica_ends, link_ends) = ends();
        let orders = link_ends.orders.clone();
        let (stop, stopped) = mpsc::channel(1);
        let (ready, is_ready) = crossbeam_channel::bounded(1);
        let thread = sandbox::spawn(Kind::Network, "link", move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let quit = link_ends.orders.clone();
            let result = runtime
                .context("tokio runtime")
                .and_then(|runtime| runtime.block_on(run(options, link_ends, stopped, &ready)));
            if let Err(error) = result {
                let _ = ready.send(Err(error));
                let _ = quit.send(Order::Quit);
            }
        })?;
        is_ready.recv().context("the link's thread has ended")??;
        let standby = Self {
            orders,
            stop,
            thread: Some(thread),
        };
        Ok((standby, Replica::new(replica_ends, replica)))
    }

    /// Something that makes the replica end.
    pub fn quit(&self) -> Quit {
        Quit(self.orders.clone())
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        // A full channel has the request already.
        let _ = self.stop.try_send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Loop {
    session: Backup,
    orders: Sender<Order>,
    released: Released,
    arbiter: ArbiterPort,
    watch: Watch,
    status: Status,
    events: mpsc::UnboundedSender<Event>,
    peer: Option<Peer>,
    connections: u64,
    peer_name: String,
    /// What the connection brings, until the replica prepares.
    inlet: Option<Inlet>,
    /// Position of the join's state, once it is there, and batches that came after it.
    base: Option<LogPosition>,
    batches: u64,
    problems: net::Problems,
    /// When the arbiter was first asked for the term.
    asked: Option<Instant>,
    live: bool,
}

async fn run(
    options: StandbyOptions,
    mut ends: LinkEnds,
    mut stopped: mpsc::Receiver<()>,
    ready: &Sender<Result<()>>,
) -> Result<()> {
    let (events, mut incoming) = mpsc::unbounded_channel();
    let mut credentials = options.credentials;
    let endpoint = net::listen(options.listen, credentials.server()?, IDLE)?;
    let mut requests = options.control.connect();
    let mut look = tokio::time::interval(watch::LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut state = Loop {
        session: Backup::new(options.identity),
        orders: ends.orders,
        released: ends.released,
        arbiter: options.arbiter,
        watch: Watch::new(options.uplink, options.status.taps())?,
        status: options.status,
        events: events.clone(),
        peer: None,
        connections: 0,
        peer_name: options.peer_name,
        inlet: None,
        base: None,
        batches: 0,
        problems: net::Problems::default(),
        asked: None,
        live: false,
    };
    let _ = ready.send(Ok(()));
    let acceptor = endpoint.clone();
    let accepting = tokio::spawn(async move {
        while let Some(connection) = acceptor.accept().await {
            let _ = events.send(Event::Incoming(connection));
        }
    });
    let status = state.status.clone();
    let _alive = status.pulses().link.begin(|| {});
    while !state.live {
        state.pump();
        status.pulses().link.beat();
        if state.live {
            break;
        }
        let now = boottime();
        let wake = state.session.wake();
        let wake = wake.map_or(Duration::from_secs(1), |at| Duration::from_nanos(at.ns_since(now)));
        tokio::select! {
            biased;
            _ = stopped.recv() => break,
            Some(event) = incoming.recv() => state.event(event),
            Some(report) = ends.reports.recv() => state.report(report),
            Some(asked) = requests.recv() => refuse(asked),
            _ = look.tick() => {
                state.look();
                renew(&endpoint, &mut credentials);
            }
            () = tokio::time::sleep(wake) => {}
        }
        state.session.handle(boottime(), BackupInput::Tick);
    }
    accepting.abort();
    state.peer = None;
    endpoint.close(VarInt::from_u32(0), b"the backup has ended");
    // Lets the close go out; a peer that does not answer is not waited for.
    let _ = tokio::time::timeout(Duration::from_millis(20), endpoint.wait_idle()).await;
    Ok(())
}

/// Takes renewed certificates for the connections to come.
fn renew(endpoint: &Endpoint, credentials: &mut Credentials) {
    let Some(renewed) = credentials.renewed_server() else {
        return;
    };
    let config = renewed
        .map_err(anyhow::Error::from)
        .and_then(|tls| net::server_config(tls, IDLE));
    match config {
        Ok(config) => {
            endpoint.set_server_config(Some(config));
            tracing::info!("the renewed certificate is in use");
        }
        // The next change is looked at again.
        Err(error) => tracing::warn!("the certificate's files have changed and cannot be used: {error:#}"),
    }
}

/// Operators ask the primary.
fn refuse(asked: Asked) {
    let answer = Err("this node stands by: ask the node that runs the machine".into());
    // One that does not wait for the answer does not need it.
    let _ = asked.answer.send(answer);
}

impl Loop {
    /// Looks at the ways to a machine here, and now and then at the arbiter.
    fn look(&mut self) {
        if self.watch.look() {
            let events = self.events.clone();
            (self.arbiter.look)(Box::new(move |answers| {
                let _ = events.send(Event::Arbiter(answers));
            }));
        }
        self.session.set_uplink_down(self.watch.cut_off().is_some());
    }

    fn is_current(&self, number: u64) -> bool {
        self.peer.as_ref().is_some_and(|peer| peer.number == number)
    }

    fn report(&mut self, report: Report) {
        let input = match report {
            Report::Built => BackupInput::Built,
            Report::Unfit(reason) => {
                tracing::error!("this node is not fit to be the backup: {reason}");
                BackupInput::Unfit(reason)
            }
            Report::Verified(position, stop) => {
                self.status.gauges().stop.store(stop.get(), Ordering::Relaxed);
                BackupInput::Verified(position, stop)
            }
            Report::Diverged(diverged) => {
                count(&self.status.gauges().divergences, 1);
                BackupInput::Diverged(diverged)
            }
        };
        self.session.handle(boottime(), input);
    }

    fn event(&mut self, event: Event) {
        let input = match event {
            Event::Incoming(incoming) => return self.accept(incoming),
            Event::Connected(number, connection, control, messages) => {
                if self.peer.is_some() {
                    net::close(&connection, BUSY);
                    return;
                }
                self.peer = Some(self.connected(number, connection, control, messages));
                BackupInput::Connected(self.peer_name.clone())
            }
            Event::Heard(number, heard) if self.is_current(number) => match heard {
                Heard::Message(message) => BackupInput::Message(message),
                Heard::Datagram(heartbeat) => BackupInput::Heartbeat(heartbeat),
                Heard::Closed(reason) => {
                    tracing::info!("the connection to the primary is gone: {reason}");
                    // The other end is told why, and what still reads from it ends.
                    if let Some(peer) = self.peer.take() {
                        net::close(&peer.connection, &reason);
                    }
                    BackupInput::Disconnected
                }
            },
            Event::Bulk(number, order) if self.is_current(number) => return self.order(order),
            Event::Log(number, batches) if self.is_current(number) => {
                self.batches = batches;
                let Some(base) = self.base else { return };
                BackupInput::Received(base.plus(batches))
            }
            Event::Refused(from, error) => {
                if let Some(problem) = self.problems.tell(&error) {
                    tracing::warn!(%from, "a connection was refused: {problem}");
                }
                return;
            }
            Event::Verdict(verdict) => BackupInput::Arbiter(verdict),
            Event::Arbiter(answers) => return self.watch.arbiter(answers),
            _ => return,
        };
        self.session.handle(boottime(), input);
        self.released.store(self.session.released().get(), Ordering::Release);
    }

    fn accept(&mut self, incoming: Incoming) {
        self.connections += 1;
        let (number, events) = (self.connections, self.events.clone());
        let from = incoming.remote_address();
        tokio::spawn(async move {
            let result = async {
                let connection = incoming.await?;
                let (control, messages) = connection.accept_bi().await?;
                anyhow::Ok((connection, control, messages))
            };
            match result.await {
                Ok((connection, control, messages)) => {
                    let _ = events.send(Event::Connected(number, connection, control, messages));
                }
                Err(error) => {
                    let _ = events.send(Event::Refused(from, error));
                }
            }
        });
    }

    fn connected(&mut self, number: u64, connection: Connection, control: SendStream, messages: RecvStream) -> Peer {
        let (log, queue) = crossbeam_channel::unbounded();
        let rooms = Rooms::default();
        let (have, had) = mpsc::channel(HAVE_QUEUE);
        self.inlet = Some(Inlet {
            log: queue,
            rooms: rooms.clone(),
            have: Some(have),
        });
        self.base = None;
        self.batches = 0;
        let events = self.events.clone();
        let mut peer = Peer::start(number, connection.clone(), control, messages, move |heard| {
            let _ = events.send(Event::Heard(number, heard));
        });
        peer.add(write_have(connection.clone(), had));
        peer.add(read_streams(number, connection, log, rooms, self.events.clone()));
        peer
    }

    fn pump(&mut self) {
        while let Some(action) = self.session.poll() {
            self.act(action);
        }
        self.tell();
    }

    fn act(&mut self, action: BackupAction) {
        match action {
            BackupAction::Send(message) => self.send(&message),
            BackupAction::Reply(reply) => {
                if let Some(peer) = &self.peer {
                    peer.send_datagram(&reply);
                }
            }
            BackupAction::Prepare(hello) => {
                if let Some(inlet) = self.inlet.take() {
                    self.order(Order::Prepare(hello, inlet));
                }
            }
            BackupAction::Build(state) => {
                self.base = Some(LogPosition::new(state.position));
                self.order(Order::Build(state));
                if self.batches > 0 {
                    let received = LogPosition::new(self.session.ack().received).plus(self.batches);
                    self.session.handle(boottime(), BackupInput::Received(received));
                }
            }
            BackupAction::Discard => {
                self.asked = None;
                self.order(Order::Discard);
            }
            BackupAction::Disconnect(reason) => {
                if let Some(peer) = self.peer.take() {
                    tracing::info!("closing the connection to the primary: {reason}");
                    peer.close(&reason);
                }
            }
            BackupAction::End => {
                tracing::info!("an operator has shut the machine down: this process ends");
                self.order(Order::Quit);
            }
            BackupAction::Arbitrate { expected, new } => {
                self.asked.get_or_insert_with(Instant::now);
                let events = self.events.clone();
                (self.arbiter.ask)(
                    expected,
                    new,
                    Box::new(move |verdict| {
                        let _ = events.send(Event::Verdict(verdict));
                    }),
                );
            }
            BackupAction::Promote(record) => {
                let won = Instant::now();
                let asked = self.asked.unwrap_or(won);
                let stalled = self.session.is_stalled();
                self.order(Order::Promote(Takeover {
                    record,
                    asked,
                    won,
                    stalled,
                }));
                self.live = true;
            }
        }
    }

    fn order(&self, order: Order) {
        // The replica ends only with the process.
        let _ = self.orders.send(order);
    }

    fn send(&self, message: &ToPrimary) {
        if let Some(peer) = &self.peer {
            peer.send(message);
        }
    }

    fn tell(&mut self) {
        let gauges = self.status.gauges();
        count(&gauges.heartbeats_missed, self.session.take_missed_heartbeats());
        let session = &self.session;
        let cut_off;
        let state = match session.state() {
            BackupState::Waiting | BackupState::Connected => "starting",
            BackupState::Syncing | BackupState::Joined => "syncing",
            BackupState::Protected if session.is_stalled() => "stalled (on-the-other-node)",
            BackupState::Protected if self.watch.is_blocked() => "protected, failover blocked (no-arbiter)",
            BackupState::Protected => {
                cut_off = self
                    .watch
                    .cut_off()
                    .map(|why| format!("protected, failover blocked ({why})"));
                cut_off.as_deref().unwrap_or("protected")
            }
            BackupState::Claiming => "failing-over",
            BackupState::Frozen => "frozen (no-arbiter)",
            BackupState::Live => "live",
        };
        let changed = self.status.set(StatusInner {
            role: Role::Backup,
            state: state.into(),
            term: session.term(),
            held: 0,
            lag_ns: session.lag_ns(boottime()),
            peer: session.primary().into(),
            received: session.ack().received,
            verified: session.ack().verified,
            released: session.released().get(),
            ends_at: None,
            cut_off: self.watch.cut_off().map(str::to_owned),
            stalled: false,
        });
        if changed {
            tracing::info!(target: STATE_MESSAGES, "standby: {state}");
        }
    }
}
