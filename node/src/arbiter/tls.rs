//! TLS 1.3 under ureq.
//!
//! It is ours and not ureq's for one reason: a server looks at the client's certificate after the client has begun to
//! send. One that refuses it says so and hangs up, and the client, still writing, would see a broken pipe and no reason.
//! Here what the server has said is read then.

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use ureq::unversioned::transport::time::{Duration, Instant};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport, TransportAdapter,
};

/// Most reads for what a server said before it hung up: an alert comes in one, after two session tickets.
const MAX_LAST_READS: usize = 8;

/// Puts TLS on every connection.
pub(super) struct TlsConnector(pub(super) Arc<ClientConfig>);

impl fmt::Debug for TlsConnector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("TlsConnector")
    }
}

impl<In: Transport> Connector<In> for TlsConnector {
    type Out = TlsTransport;

    fn connect(&self, details: &ConnectionDetails, below: Option<In>) -> Result<Option<TlsTransport>, ureq::Error> {
        let Some(below) = below else {
            return Err(ureq::Error::ConnectionFailed);
        };
        let host = details.uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name =
            ServerName::try_from(host).map_err(|_| ureq::Error::Tls("the URL's host is no name and no address"))?;
        let mut conn = ClientConnection::new(self.0.clone(), name).map_err(io::Error::other)?;
        let mut sock = TransportAdapter::new(below.boxed(), details.current_time.clone());
        sock.set_timeout(left(details));
        match conn.complete_io(&mut sock) {
            Ok(_) => {}
            Err(error) => return Err(last_words(&mut conn, &mut sock, error)),
        }
        Ok(Some(TlsTransport {
            buffers: LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size()),
            stream: StreamOwned { conn, sock },
        }))
    }
}

/// What the connection itself has left of the time for both.
fn left(details: &ConnectionDetails) -> NextTimeout {
    let mut timeout = details.timeout;
    let now = (details.current_time)();
    if let (Duration::Exact(limit), Instant::Exact(now), Instant::Exact(begin)) = (timeout.after, now, details.now) {
        timeout.after = Duration::Exact(limit.saturating_sub(now.saturating_duration_since(begin)));
    }
    timeout
}

pub(super) struct TlsTransport {
    buffers: LazyBuffers,
    stream: StreamOwned<ClientConnection, TransportAdapter>,
}

impl fmt::Debug for TlsTransport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("TlsTransport")
    }
}

impl TlsTransport {
    fn ended(&mut self, error: io::Error) -> ureq::Error {
        last_words(&mut self.stream.conn, &mut self.stream.sock, error)
    }
}

impl Transport for TlsTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.stream.sock.set_timeout(timeout);
        let output = &self.buffers.output()[..amount];
        let sent = self.stream.write_all(output).and_then(|()| self.stream.flush());
        sent.map_err(|error| self.ended(error))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.stream.sock.set_timeout(timeout);
        let input = self.buffers.input_append_buf();
        let amount = io::Read::read(&mut self.stream, input).map_err(|error| self.ended(error))?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.sock.get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}

/// Why a connection ended: what the server has said, if it has, or else `error`.
fn last_words(conn: &mut ClientConnection, sock: &mut TransportAdapter, error: io::Error) -> ureq::Error {
    let hung_up = [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset];
    if hung_up.contains(&error.kind()) {
        for _ in 0..MAX_LAST_READS {
            match conn.read_tls(sock) {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
            if let Err(said) = conn.process_new_packets() {
                return io::Error::new(io::ErrorKind::InvalidData, said).into();
            }
        }
    }
    error.into()
}
