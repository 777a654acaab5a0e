//! One connection of a session, the same at both ends: a control stream, datagrams, and its end.

use std::time::Duration;

use bytes::Bytes;
use lockstep_proto::session::MAX_CONTROL_BYTES;
use prost::Message;
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::net::{self, FrameStream};
use super::wire;

/// What a connection brings: messages `M`, datagrams `D`, and why it is over.
pub enum Heard<M, D> {
    /// A message on the control stream.
    Message(M),
    /// A datagram.
    Datagram(D),
    /// The connection is over, for this reason. It may be told more than once.
    Closed(String),
}

/// How long the other side may take to receive the last messages before the connection is closed.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// A connection with the tasks that serve it. Dropping it ends them.
pub struct Peer {
    /// Tells it from earlier ones.
    pub number: u64,
    /// The connection itself.
    pub connection: Connection,
    control: mpsc::UnboundedSender<Bytes>,
    writer: JoinHandle<()>,
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
        let (sender, messages) = mpsc::unbounded_channel();
        let mut peer = Self {
            number,
            connection: connection.clone(),
            control: sender,
            writer: tokio::spawn(net::write_all(control, messages)),
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
        let _ = self.control.send(wire::frame(0, message));
    }

    /// Closes the connection with a reason, once the other side has what was sent on the control stream.
    pub fn close(mut self, reason: &str) {
        let (connection, reason) = (self.connection.clone(), reason.to_owned());
        // With its last sender gone, the writer ends after what waits.
        self.control = mpsc::unbounded_channel().0;
        let writer = std::mem::replace(&mut self.writer, tokio::spawn(async {}));
        tokio::spawn(async move {
            // A peer that does not take it is not waited for.
            let _ = tokio::time::timeout(LAST_WORDS, writer).await;
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
        self.writer.abort();
        for task in &self.tasks {
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
