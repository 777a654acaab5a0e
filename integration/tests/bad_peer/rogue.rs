//! The other end of a link, which says what it likes: on the project's own transport, with the pair's own certificates.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use lockstep_integration::net::inside;
use lockstep_integration::pair::Pair;
use lockstep_node::pki::Credentials;
use lockstep_primary::link::net::{self, FrameStream};
use lockstep_primary::link::wire;
use lockstep_proto::session::MAX_CONTROL_BYTES;
use lockstep_proto::{Heartbeat, HeartbeatReply, ToBackup, ToPrimary};
use prost::Message;
use quinn::{Connection, ConnectionError, Endpoint, SendStream};
use tokio::runtime::Runtime;

/// QUIC's limit on silence here.
const IDLE: Duration = Duration::from_secs(10);
/// A node on a busy host has ended a session after this.
const LIMIT: Duration = Duration::from_secs(30);
/// From one heartbeat to the next.
const HEARTBEAT: Duration = Duration::from_millis(100);
/// Most bytes of a join's frame.
const MAX_FRAME: usize = 8 << 20;

/// Stands where a node of the pair is expected.
pub struct Rogue {
    runtime: Runtime,
    endpoint: Endpoint,
    credentials: Credentials,
}

impl Rogue {
    /// In the backup's place, on `host`.
    pub fn backup(pair: &Pair, host: usize) -> Result<Self> {
        let address = pair.address(host);
        Self::start(pair, host, |credentials| {
            net::listen(address, credentials.server()?, IDLE)
        })
    }

    /// In the primary's place, on `host`.
    pub fn primary(pair: &Pair, host: usize) -> Result<Self> {
        let address = pair.address(1 - host);
        Self::start(pair, host, |_| net::dialer(address))
    }

    fn start(pair: &Pair, host: usize, make: impl FnOnce(&Credentials) -> Result<Endpoint> + Send) -> Result<Self> {
        let [me, other] = [host, 1 - host].map(|host| &pair.network.hosts[host]);
        let credentials = Credentials::new(&pair.dir().join("pki"), me.name, other.name);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // A socket stays in the network where it was made.
        let endpoint = inside(me.namespace.name(), || {
            let _inside = runtime.enter();
            make(&credentials)
        })?;
        Ok(Self {
            runtime,
            endpoint,
            credentials,
        })
    }

    /// Takes the primary's next connection, does `work` on it, and waits for the primary to end it. Returns its reason.
    pub fn accept(&self, work: impl AsyncFnOnce(&mut Line) -> Result<()>) -> Result<String> {
        self.session(work, async {
            let incoming = self.endpoint.accept().await.context("the endpoint is closed")?;
            let connection = incoming.await?;
            let (control, incoming) = connection.accept_bi().await?;
            Ok(Line::new(connection, control, incoming))
        })
    }

    /// The same with a connection to a standby.
    pub fn dial(&self, pair: &Pair, host: usize, work: impl AsyncFnOnce(&mut Line) -> Result<()>) -> Result<String> {
        self.session(work, async {
            let tls = net::client_config(self.credentials.client()?, IDLE)?;
            let name = pair.network.hosts[host].name;
            let connection = self.endpoint.connect_with(tls, pair.address(host), name)?.await?;
            let (control, incoming) = connection.open_bi().await?;
            Ok(Line::new(connection, control, incoming))
        })
    }

    fn session(
        &self,
        work: impl AsyncFnOnce(&mut Line) -> Result<()>,
        connect: impl Future<Output = Result<Line>>,
    ) -> Result<String> {
        self.runtime.block_on(async {
            let session = async {
                let mut line = connect.await?;
                work(&mut line).await?;
                line.end().await
            };
            tokio::time::timeout(LIMIT, session)
                .await
                .context("the session goes on and on")?
        })
    }
}

/// A connection.
pub struct Line {
    pub connection: Connection,
    pub control: SendStream,
    pub messages: FrameStream,
}

impl Line {
    fn new(connection: Connection, control: SendStream, incoming: quinn::RecvStream) -> Self {
        let messages = FrameStream::new(incoming, MAX_CONTROL_BYTES);
        Self {
            connection,
            control,
            messages,
        }
    }

    /// Writes bytes on the control stream as they are.
    pub async fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.control.write_all(bytes).await?)
    }

    /// A message to a primary.
    pub async fn answer(&mut self, kind: lockstep_proto::to_primary::Kind) -> Result<()> {
        self.raw(&wire::frame(0, &ToPrimary { kind: Some(kind) })).await
    }

    /// A message to a backup.
    pub async fn say(&mut self, kind: lockstep_proto::to_backup::Kind) -> Result<()> {
        self.raw(&wire::frame(0, &ToBackup { kind: Some(kind) })).await
    }

    /// The next message on the control stream.
    pub async fn hear<M: Message + Default>(&mut self) -> Result<M> {
        self.messages.message().await?.context("the control stream has ended")
    }

    /// A stream of its own, of which this is the beginning. It has to be kept: dropped, it is finished.
    pub async fn stream(&self, kind: u8, bytes: &[u8]) -> Result<SendStream> {
        let mut stream = self.connection.open_uni().await?;
        stream.write_all(&[kind]).await?;
        stream.write_all(bytes).await?;
        Ok(stream)
    }

    /// Answers heartbeats for as long as the connection lives: it is not for silence that it ends.
    pub fn answer_heartbeats(&self) {
        let connection = self.connection.clone();
        tokio::spawn(async move {
            while let Ok(bytes) = connection.read_datagram().await {
                let Ok(Heartbeat { number, .. }) = wire::decode(bytes) else {
                    return;
                };
                let reply = HeartbeatReply {
                    number,
                    ..Default::default()
                };
                // As lost as any datagram may be.
                let _ = connection.send_datagram(reply.encode_to_vec().into());
            }
        });
    }

    /// Sends heartbeats for as long as the connection lives, as a primary does.
    pub fn send_heartbeats(&self) {
        let connection = self.connection.clone();
        tokio::spawn(async move {
            for number in 1.. {
                let beat = Heartbeat {
                    number,
                    ..Heartbeat::default()
                };
                // The connection is gone, and with it whoever would hear them.
                if connection.send_datagram(beat.encode_to_vec().into()).is_err() {
                    return;
                }
                tokio::time::sleep(HEARTBEAT).await;
            }
        });
    }

    /// Reads the next one-way stream of a join: its kind and its frames.
    pub async fn take_stream(&self) -> Result<(u8, FrameStream)> {
        let mut stream = self.connection.accept_uni().await?;
        let mut kind = [0];
        stream.read_exact(&mut kind).await?;
        Ok((kind[0], FrameStream::new(stream, MAX_FRAME)))
    }

    /// Waits for the other end to end the connection. Returns its reason.
    async fn end(&mut self) -> Result<String> {
        match self.connection.closed().await {
            ConnectionError::ApplicationClosed(close) => Ok(String::from_utf8_lossy(&close.reason).into()),
            other => bail!("the connection has ended otherwise: {other}"),
        }
    }
}

/// What a length and a kind say that nothing follows.
pub fn header(length: u32, kind: u8) -> Bytes {
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.push(kind);
    bytes.into()
}
