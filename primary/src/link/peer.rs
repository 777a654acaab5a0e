//! One connection of a session, the same at both ends: a control stream, datagrams, and its end.

use std::time::Duration;

use bytes::Bytes;
use lockstep_proto::session::MAX_CONTROL_BYTES;
use prost::Message;
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::JoinHandle;

use super::net::{self, FrameStream};
use super::wire;

/// How long a peer may take to take in what was said last.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Messages that may wait for a peer that does not take them, some 40 bytes each: acknowledgements of half a minute under
/// full load. A connection with more of them is over.
const UNSENT: usize = 65_536;

/// What a connection brings: messages `M`, datagrams `D`, and why it is over.
pub enum Heard<M, D> {
    /// A message on the control stream.
    Message(M),
    /// A datagram.
    Datagram(D),
    /// The connection is over, for this reason. It may be told more than once.
    Closed(String),
}

/// A connection with the tasks that serve it. Dropping it ends them.
pub struct Peer {
    /// Tells it from earlier ones.
    pub number: u64,
    /// The connection itself.
    pub connection: Connection,
    /// Messages for the control stream; `None`: it is being closed.
    control: Option<mpsc::Sender<Bytes>>,
    /// Writes them.
    writer: Option<JoinHandle<()>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Peer {
    /// Serves a connection whose control stream is open; `tell` is called with what it brings.
    pub fn start<M, D, T>(
        number: u64,
        connection: Connection,
        control: SendStream,
        incoming: RecvStream,
        tell: T,
    ) -> Self
    where
        M: Message + Default + 'static,
        D: Message + Default + 'static,
        T: Fn(Heard<M, D>) + Clone + Send + Sync + 'static,
    {
        let (sender, messages) = mpsc::channel(UNSENT);
        // A stream that is closed already says so to its writer.
        let _ = control.set_priority(net::CONTROL_PRIORITY);
        let mut peer = Self {
            number,
            connection: connection.clone(),
            control: Some(sender),
            writer: Some(tokio::spawn(net::write_all(control, messages))),
            tasks: Vec::new(),
        };
        peer.add(read_control(incoming, tell.clone()));
        peer.add(read_datagrams(connection.clone(), tell.clone()));
        peer.add(async move {
            let reason = connection.closed().await;
            tell(Heard::Closed(reason.to_string()));
        });
        peer
    }

    /// Runs a further task for as long as the connection is served.
    pub fn add(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.push(tokio::spawn(task));
    }

    /// Sends on the control stream.
    pub fn send(&self, message: &impl Message) {
        // A closed writer belongs to a connection whose end is being told.
        if let Some(control) = &self.control
            && let Err(TrySendError::Full(_)) = control.try_send(wire::frame(0, message))
        {
            net::close(&self.connection, "the peer takes no messages");
        }
    }

    /// Ends the connection with a reason. The last message, which says more, comes over before; a peer that does not take
    /// it is not waited for.
    pub fn close(mut self, reason: &str) {
        // Without a sender the writer ends.
        self.control = None;
        let (connection, reason, writer) = (self.connection.clone(), reason.to_owned(), self.writer.take());
        tokio::spawn(async move {
            if let Some(writer) = writer {
                let _ = tokio::time::timeout(LAST_WORDS, writer).await;
            }
            net::close(&connection, &reason);
        });
    }

    /// Sends as a datagram; it may be lost, here too.
    pub fn send_datagram(&self, message: &impl Message) {
        let _ = self.connection.send_datagram(message.encode_to_vec().into());
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        for task in self.tasks.iter().chain(&self.writer) {
            task.abort();
        }
    }
}

async fn read_control<M: Message + Default, D>(incoming: RecvStream, tell: impl Fn(Heard<M, D>)) {
    let mut messages = FrameStream::new(incoming, MAX_CONTROL_BYTES);
    let reason = loop {
        match messages.message().await {
            Ok(Some(message)) => tell(Heard::Message(message)),
            Ok(None) => break "the peer has closed the control stream".to_owned(),
            Err(error) => break error.to_string(),
        }
    };
    tell(Heard::Closed(reason));
}

async fn read_datagrams<M, D: Message + Default>(connection: Connection, tell: impl Fn(Heard<M, D>)) {
    while let Ok(bytes) = connection.read_datagram().await {
        // One that does not decode is as good as lost.
        if let Ok(datagram) = wire::decode(bytes) {
            tell(Heard::Datagram(datagram));
        }
    }
}
