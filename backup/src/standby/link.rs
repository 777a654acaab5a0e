//! The backup's end of the link: a thread that runs the session over QUIC.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use crossbeam_channel::Sender;
use lockstep_logcodec::Record as LogRecord;
use lockstep_logcodec::limits::MAX_PAYLOAD;
use lockstep_primary::host::clock::boottime;
use lockstep_primary::link::live::{Ask, STATE_MESSAGES, Status, StatusInner};
use lockstep_primary::link::net::{self, FrameStream};
use lockstep_primary::link::wire::{self, BULK_CHUNK, BULK_PAGES, BULK_STREAM, LOG_STREAM};
use lockstep_proto::session::{
    Backup, BackupAction, BackupIdentity, BackupInput, BackupState, MAX_CONTROL_BYTES, Verdict,
};
use lockstep_proto::{Heartbeat, ToBackup, ToPrimary};
use prost::Message;
use quinn::{Connection, Incoming, RecvStream, SendStream, VarInt};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle as Task;

use super::replica::ReplicaOptions;
use super::{Inlet, LOG_QUEUE_KIB, LinkEnds, Order, Queued, Released, Replica, Report, ends};

/// QUIC's own limit on silence; the session's is what counts.
const IDLE: Duration = Duration::from_secs(10);

/// What the backup's end needs.
pub struct StandbyOptions {
    /// Who it is.
    pub identity: BackupIdentity,
    /// Where it listens.
    pub listen: SocketAddr,
    /// The primary's name, as in its certificate.
    pub peer_name: String,
    /// TLS of this side.
    pub tls: rustls::ServerConfig,
    /// The arbiter.
    pub ask: Ask,
    /// Told what happens.
    pub status: Status,
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
        let thread = std::thread::Builder::new().name("link".into()).spawn(move || {
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

/// What comes to the link's thread from its own tasks, with the number of its connection.
enum Event {
    Incoming(Incoming),
    Connected(u64, Connection, SendStream, RecvStream),
    Message(u64, ToBackup),
    Heartbeat(u64, Heartbeat),
    Bulk(u64, Order),
    /// So many batches have come since the join's state.
    Log(u64, u64),
    Closed(u64, String),
    Verdict(Verdict),
}

struct Peer {
    number: u64,
    connection: Connection,
    control: mpsc::UnboundedSender<Bytes>,
    tasks: Vec<Task<()>>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

struct Loop {
    session: Backup,
    orders: Sender<Order>,
    released: Released,
    ask: Ask,
    status: Status,
    events: mpsc::UnboundedSender<Event>,
    peer: Option<Peer>,
    connections: u64,
    peer_name: String,
    /// What the connection brings, until the replica prepares.
    inlet: Option<Inlet>,
    /// Position of the join's state, once it is there, and batches that came after it.
    base: Option<u64>,
    batches: u64,
    live: bool,
}

async fn run(
    options: StandbyOptions,
    mut ends: LinkEnds,
    mut stopped: mpsc::Receiver<()>,
    ready: &Sender<Result<()>>,
) -> Result<()> {
    let (events, mut incoming) = mpsc::unbounded_channel();
    let endpoint = net::listen(options.listen, options.tls, IDLE)?;
    let _ = ready.send(Ok(()));
    let mut state = Loop {
        session: Backup::new(options.identity),
        orders: ends.orders,
        released: ends.released,
        ask: options.ask,
        status: options.status,
        events: events.clone(),
        peer: None,
        connections: 0,
        peer_name: options.peer_name,
        inlet: None,
        base: None,
        batches: 0,
        live: false,
    };
    let acceptor = endpoint.clone();
    let accepting = tokio::spawn(async move {
        while let Some(connection) = acceptor.accept().await {
            let _ = events.send(Event::Incoming(connection));
        }
    });
    while !state.live {
        state.pump();
        if state.live {
            break;
        }
        let now = boottime();
        let wake = state.session.wake();
        let wake = wake.map_or(Duration::from_secs(1), |at| {
            Duration::from_nanos(at.saturating_sub(now))
        });
        tokio::select! {
            biased;
            _ = stopped.recv() => break,
            Some(event) = incoming.recv() => state.event(event),
            Some(report) = ends.reports.recv() => state.report(report),
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

impl Loop {
    fn is_current(&self, number: u64) -> bool {
        self.peer.as_ref().is_some_and(|peer| peer.number == number)
    }

    fn report(&mut self, report: Report) {
        let input = match report {
            Report::Built => BackupInput::Built,
            Report::Unfit(reason) => {
                tracing::error!("the machine cannot be built here: {reason}");
                BackupInput::Unfit(reason)
            }
            Report::Verified(position, stop) => BackupInput::Verified(position, stop),
            Report::Diverged(stop, report) => BackupInput::Diverged(stop, report),
        };
        self.session.handle(boottime(), input);
    }

    fn event(&mut self, event: Event) {
        let input = match event {
            Event::Incoming(incoming) => return self.accept(incoming),
            Event::Connected(number, connection, control, messages) => {
                if self.peer.is_some() {
                    net::close(&connection, "another connection is in use");
                    return;
                }
                self.peer = Some(self.connected(number, connection, control, messages));
                BackupInput::Connected(self.peer_name.clone())
            }
            Event::Message(number, message) if self.is_current(number) => BackupInput::Message(message),
            Event::Heartbeat(number, heartbeat) if self.is_current(number) => BackupInput::Heartbeat(heartbeat),
            Event::Bulk(number, order) if self.is_current(number) => return self.order(order),
            Event::Log(number, batches) if self.is_current(number) => {
                self.batches = batches;
                let Some(base) = self.base else { return };
                BackupInput::Received(base + batches)
            }
            Event::Closed(number, reason) if self.is_current(number) => {
                tracing::info!("the connection to the primary is gone: {reason}");
                self.peer = None;
                BackupInput::Disconnected
            }
            Event::Verdict(verdict) => BackupInput::Arbiter(verdict),
            _ => return,
        };
        self.session.handle(boottime(), input);
        self.released.store(self.session.released(), Ordering::Release);
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
                Err(error) => tracing::warn!(%from, "a connection was refused: {error:#}"),
            }
        });
    }

    fn connected(&mut self, number: u64, connection: Connection, control: SendStream, messages: RecvStream) -> Peer {
        let (sender, replies) = mpsc::unbounded_channel();
        let (log, queue) = crossbeam_channel::unbounded();
        let room = Arc::new(Semaphore::new(LOG_QUEUE_KIB));
        self.inlet = Some(Inlet {
            log: queue,
            room: room.clone(),
        });
        self.base = None;
        self.batches = 0;
        let tasks = vec![
            tokio::spawn(net::write_all(control, replies)),
            tokio::spawn(read_control(number, messages, self.events.clone())),
            tokio::spawn(read_datagrams(number, connection.clone(), self.events.clone())),
            tokio::spawn(wait_closed(number, connection.clone(), self.events.clone())),
            tokio::spawn(read_streams(number, connection.clone(), log, room, self.events.clone())),
        ];
        Peer {
            number,
            connection,
            control: sender,
            tasks,
        }
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
                    // A datagram may be lost anyway.
                    let _ = peer.connection.send_datagram(reply.encode_to_vec().into());
                }
            }
            BackupAction::Prepare(hello) => {
                if let Some(inlet) = self.inlet.take() {
                    self.order(Order::Prepare(hello, inlet));
                }
            }
            BackupAction::Build(state) => {
                self.base = Some(state.position);
                self.order(Order::Build(state));
                if self.batches > 0 {
                    let received = self.session.ack().received + self.batches;
                    self.session.handle(boottime(), BackupInput::Received(received));
                }
            }
            BackupAction::Discard => self.order(Order::Discard),
            BackupAction::Disconnect(reason) => {
                if let Some(peer) = self.peer.take() {
                    tracing::info!("closing the connection to the primary: {reason}");
                    net::close(&peer.connection, &reason);
                }
            }
            BackupAction::Arbitrate { expected, new } => {
                let events = self.events.clone();
                (self.ask)(
                    expected,
                    new,
                    Box::new(move |verdict| {
                        let _ = events.send(Event::Verdict(verdict));
                    }),
                );
            }
            BackupAction::Promote(record) => {
                self.order(Order::Promote(record));
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
            // A closed writer belongs to a connection whose end is on its way here.
            let _ = peer.control.send(wire::frame(0, message));
        }
    }

    fn tell(&self) {
        let session = &self.session;
        let state = match session.state() {
            BackupState::Waiting | BackupState::Connected => "starting",
            BackupState::Syncing | BackupState::Joined => "syncing",
            BackupState::Protected => "protected",
            BackupState::Claiming => "failing-over",
            BackupState::Frozen => "frozen (no-arbiter)",
            BackupState::Live => "live",
        };
        let changed = self.status.set(StatusInner {
            state: state.into(),
            term: 0,
            peer: session.primary().into(),
            received: session.ack().received,
            verified: session.ack().verified,
            released: session.released(),
        });
        if changed {
            tracing::info!(target: STATE_MESSAGES, "standby: {state}");
        }
    }
}

async fn read_control(number: u64, stream: RecvStream, events: mpsc::UnboundedSender<Event>) {
    let mut messages = FrameStream::new(stream, MAX_CONTROL_BYTES);
    let reason = loop {
        match messages.message().await {
            Ok(Some(message)) => {
                let _ = events.send(Event::Message(number, message));
            }
            Ok(None) => break "the primary has closed the control stream".to_owned(),
            Err(error) => break error.to_string(),
        }
    };
    let _ = events.send(Event::Closed(number, reason));
}

async fn read_datagrams(number: u64, connection: Connection, events: mpsc::UnboundedSender<Event>) {
    while let Ok(bytes) = connection.read_datagram().await {
        // One that does not decode is as good as lost.
        if let Ok(heartbeat) = wire::decode(bytes) {
            let _ = events.send(Event::Heartbeat(number, heartbeat));
        }
    }
}

async fn wait_closed(number: u64, connection: Connection, events: mpsc::UnboundedSender<Event>) {
    let reason = connection.closed().await;
    let _ = events.send(Event::Closed(number, reason.to_string()));
}

/// Takes the primary's one-way streams.
async fn read_streams(
    number: u64,
    connection: Connection,
    log: Sender<Queued>,
    room: Arc<Semaphore>,
    events: mpsc::UnboundedSender<Event>,
) {
    while let Ok(mut stream) = connection.accept_uni().await {
        let (log, room, events) = (log.clone(), room.clone(), events.clone());
        tokio::spawn(async move {
            let mut first = [0];
            let result = match stream.read_exact(&mut first).await {
                Err(error) => Err(error.into()),
                Ok(()) => match first[0] {
                    BULK_STREAM => read_bulk(number, stream, &room, &events).await,
                    LOG_STREAM => read_log(number, stream, &log, &room, &events).await,
                    other => Err(anyhow!("a stream of kind {other}, which is not known")),
                },
            };
            if let Err(error) = result {
                let _ = events.send(Event::Closed(number, error.to_string()));
            }
        });
    }
}

/// Waits for room for a payload, which the replica gives back when it has taken it. Returns its weight.
async fn wait_for_room(room: &Semaphore, payload: &Bytes) -> Result<u32> {
    let weight = (payload.len() / 1024 + 1) as u32;
    room.acquire_many(weight).await?.forget();
    Ok(weight)
}

async fn read_bulk(
    number: u64,
    stream: RecvStream,
    room: &Semaphore,
    events: &mpsc::UnboundedSender<Event>,
) -> Result<()> {
    let mut frames = FrameStream::new(stream, MAX_PAYLOAD as usize);
    while let Some((frame_kind, payload)) = frames.next_frame().await? {
        let weight = wait_for_room(room, &payload).await?;
        let order = match frame_kind {
            BULK_PAGES => Order::Pages(wire::decode(payload)?, weight),
            BULK_CHUNK => Order::Chunk(wire::decode(payload)?, weight),
            other => bail!("a record of kind {other} among a join's pages and chunks"),
        };
        let _ = events.send(Event::Bulk(number, order));
    }
    Ok(())
}

async fn read_log(
    number: u64,
    stream: RecvStream,
    log: &Sender<Queued>,
    room: &Semaphore,
    events: &mpsc::UnboundedSender<Event>,
) -> Result<()> {
    let mut frames = FrameStream::new(stream, MAX_PAYLOAD as usize);
    let mut batches = 0;
    while let Some((frame_kind, payload)) = frames.next_frame().await? {
        let weight = wait_for_room(room, &payload).await?;
        let record = LogRecord::decode(frame_kind.into(), &payload)?;
        let is_batch = matches!(record, LogRecord::Batch(_));
        let _ = log.send(Queued { record, weight });
        if is_batch {
            batches += 1;
            let _ = events.send(Event::Log(number, batches));
        }
    }
    Ok(())
}
