//! QUIC endpoints of a pair and their settings (RFC 9000).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use prost::Message;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    AckFrequencyConfig, ClientConfig, Connection, Endpoint, EndpointConfig, IdleTimeout, RecvStream, SendStream,
    ServerConfig, TokioRuntime, TransportConfig, VarInt,
};
use tokio::sync::mpsc;

use super::wire::{self, Frames};

/// Most bytes of one stream that may be on their way or wait here: bounds memory, and slows the sender down.
const STREAM_WINDOW: u32 = 8 << 20;
/// The same for a connection.
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Bytes of a reason that fit into the frame that closes a connection.
const MAX_CLOSE_REASON: usize = 200;
/// Bytes read from a stream at a time.
const READ_BYTES: usize = 64 << 10;

/// Which stream goes first where the network takes less than there is to send: one of a greater number before all others.
/// Messages of the control stream are few.
pub const CONTROL_PRIORITY: i32 = 2;
/// A join's memory and disks, before the log, which is of no use without them: a guest that makes more log than the network
/// takes would keep its own join from ending. They have ended when the log begins to hold effects back.
pub const BULK_PRIORITY: i32 = 1;
/// The log.
pub const LOG_PRIORITY: i32 = 0;

/// Settings for a LAN: acknowledgements at once, no fairness between streams, as their priorities say what goes first.
fn transport(idle: Duration) -> Result<Arc<TransportConfig>> {
    let mut config = TransportConfig::default();
    let mut frequency = AckFrequencyConfig::default();
    frequency.max_ack_delay(Some(Duration::from_millis(1)));
    config
        .ack_frequency_config(Some(frequency))
        .initial_rtt(Duration::from_micros(500))
        .send_fairness(false)
        .max_idle_timeout(Some(IdleTimeout::try_from(idle).context("idle timeout")?))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(u64::from(CONNECTION_WINDOW))
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(2));
    Ok(Arc::new(config))
}

fn endpoint(address: SocketAddr, server: Option<ServerConfig>) -> Result<Endpoint> {
    let socket = std::net::UdpSocket::bind(address).with_context(|| format!("cannot bind UDP {address}"))?;
    Endpoint::new(EndpointConfig::default(), server, socket, Arc::new(TokioRuntime)).context("QUIC endpoint")
}

/// An endpoint that accepts connections at `address`. Call it inside a tokio runtime.
pub fn listen(address: SocketAddr, tls: rustls::ServerConfig, idle: Duration) -> Result<Endpoint> {
    endpoint(address, Some(server_config(tls, idle)?))
}

/// What [`listen`]'s endpoint accepts connections with.
pub fn server_config(tls: rustls::ServerConfig, idle: Duration) -> Result<ServerConfig> {
    let crypto = QuicServerConfig::try_from(tls).context("TLS configuration")?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(transport(idle)?);
    Ok(config)
}

/// An endpoint that makes connections. Call it inside a tokio runtime.
pub fn dialer(to: SocketAddr) -> Result<Endpoint> {
    let any: SocketAddr = if to.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0u16; 8], 0).into()
    };
    endpoint(any, None)
}

/// What [`dialer`]'s endpoint connects with.
pub fn client_config(tls: rustls::ClientConfig, idle: Duration) -> Result<ClientConfig> {
    let crypto = QuicClientConfig::try_from(tls).context("TLS configuration")?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport(idle)?);
    Ok(config)
}

/// Messages about connections that fail again and again, each problem once.
#[derive(Default)]
pub struct Problems(String);

impl Problems {
    /// The problem to tell, if it is another one than before.
    pub fn tell(&mut self, error: &anyhow::Error) -> Option<&str> {
        let text = format!("{error:#}");
        // rustls tells what time it is.
        let problem = text.split(": verification time").next().unwrap_or(&text);
        if problem == self.0 {
            return None;
        }
        problem.clone_into(&mut self.0);
        Some(&self.0)
    }
}

/// A stream that brings frames.
pub struct FrameStream {
    stream: RecvStream,
    frames: Frames,
}

impl FrameStream {
    /// Of `stream`, with payloads of at most `limit` bytes.
    pub fn new(stream: RecvStream, limit: usize) -> Self {
        Self {
            stream,
            frames: Frames::new(limit),
        }
    }

    /// The next frame's kind and payload; `None` at the stream's end.
    pub async fn next_frame(&mut self) -> Result<Option<(u8, Bytes)>> {
        loop {
            if let Some(frame) = self.frames.take()? {
                return Ok(Some(frame));
            }
            match self.stream.read_chunk(READ_BYTES, true).await? {
                Some(chunk) => self.frames.push(&chunk.bytes),
                None => return Ok(None),
            }
        }
    }

    /// The next message; `None` at the stream's end.
    pub async fn message<M: Message + Default>(&mut self) -> Result<Option<M>> {
        match self.next_frame().await? {
            Some((_, payload)) => Ok(Some(wire::decode(payload)?)),
            None => Ok(None),
        }
    }
}

/// Writes what comes, until the stream or the channel ends; then the peer has taken all of it.
pub async fn write_all(mut stream: SendStream, mut messages: mpsc::Receiver<Bytes>) {
    while let Some(bytes) = messages.recv().await {
        if stream.write_chunk(bytes).await.is_err() {
            return;
        }
    }
    if stream.finish().is_ok() {
        let _ = stream.stopped().await;
    }
}

/// Closes a connection with a reason, as much of it as fits.
pub fn close(connection: &Connection, reason: &str) {
    let cut = reason.len().min(MAX_CLOSE_REASON);
    connection.close(VarInt::from_u32(1), &reason.as_bytes()[..cut]);
}
