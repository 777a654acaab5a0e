//! Metrics and health over TCP, in a thread of their own: who scrapes takes nothing from operators, and can ask for nothing.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::StatusCode;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};

use super::identity::Identity;
use super::view;
use super::{HEALTH, METRICS, http};
use crate::sandbox::{self, Kind};
use crate::status::Status;

/// Connections at a time; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 8;
/// How long a connection may last in all.
const CONNECTION: Duration = Duration::from_secs(10);
/// From a failed accept (no file descriptors left, say) to the next.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Why metrics cannot be served.
#[derive(Debug, Error)]
#[error("cannot serve metrics at {address}: {cause}. Give --metrics an address of this host and a port that is free")]
pub struct ExporterError {
    address: SocketAddr,
    cause: io::Error,
}

/// The thread. Dropping it ends it.
pub struct Exporter {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Exporter {
    /// Serves at `address`.
    pub fn start(address: SocketAddr, identity: Identity, status: Status) -> Result<Self, ExporterError> {
        let failed = |cause| ExporterError { address, cause };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        let listener = runtime.block_on(TcpListener::bind(address)).map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        let (stop, stopped) = oneshot::channel();
        let thread = sandbox::spawn(Kind::Network, "metrics", move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    () = serve(listener, Arc::new((identity, status))) => {}
                }
            });
        });
        let thread = thread.map_err(failed)?;
        tracing::info!(address = %bound, "metrics are served");
        Ok(Self {
            address: bound,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Where it serves.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(listener: TcpListener, node: Arc<(Identity, Status)>) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let permit = room.clone().acquire_owned().await;
        match listener.accept().await {
            Ok((stream, _)) => {
                let node = node.clone();
                tokio::spawn(async move {
                    http::talk(stream, CONNECTION, |request| {
                        let (identity, status) = &*node;
                        let answer = view::answer(&request, identity, status);
                        let answer = answer.unwrap_or_else(|| {
                            let reason = format!("there are {METRICS} and {HEALTH}, and nothing else");
                            http::refuse(StatusCode::NOT_FOUND, &reason)
                        });
                        std::future::ready(answer)
                    })
                    .await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!("a connection for metrics cannot be accepted: {error}");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;

    fn exporter() -> Exporter {
        let identity = Identity {
            machine: "m".into(),
            node: "a".into(),
            pki: "/nowhere".into(),
        };
        Exporter::start(([127, 0, 0, 1], 0).into(), identity, Status::default()).unwrap()
    }

    fn ask(exporter: &Exporter, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(exporter.address()).unwrap();
        // The other side may close before all has gone.
        let _ = stream.write_all(request);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[test]
    fn only_what_can_be_looked_at_is_there() {
        let exporter = exporter();
        for (request, wanted) in [
            ("GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n", "200"),
            ("HEAD /metrics HTTP/1.1\r\nhost: x\r\n\r\n", "200"),
            ("GET /healthz HTTP/1.0\r\n\r\n", "200"),
            ("GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n", "404"),
            (
                "POST /v1/test-failover HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n",
                "404",
            ),
            ("DELETE /metrics HTTP/1.1\r\nhost: x\r\n\r\n", "405"),
            ("\0\u{1}\u{2} what\r\n\r\n", "400"),
        ] {
            let answer = ask(&exporter, request.as_bytes());
            assert!(answer.split(' ').nth(1) == Some(wanted), "{request:?}: {answer}");
        }
        let head = ask(&exporter, b"HEAD /healthz HTTP/1.1\r\nhost: x\r\n\r\n");
        assert!(
            head.ends_with("\r\n\r\n") && head.contains("content-length: "),
            "{head}"
        );
        let large = [b"GET /metrics HTTP/1.1\r\nx: ", &vec![b'x'; 1 << 20][..]].concat();
        let answer = ask(&exporter, &large);
        assert!(!answer.contains("lockstep_"), "{answer}");
    }

    #[test]
    fn more_than_may_talk_wait_and_an_address_has_one_server() {
        let exporter = exporter();
        let mut silent: Vec<_> = (0..MAX_CONNECTIONS)
            .map(|_| TcpStream::connect(exporter.address()).unwrap())
            .collect();
        let mut further = TcpStream::connect(exporter.address()).unwrap();
        further.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        further.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let waits = further.read(&mut [0]).unwrap_err();
        assert!(
            matches!(waits.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
            "{waits}"
        );
        // One place is free again.
        drop(silent.pop());
        further.set_read_timeout(None).unwrap();
        let mut answer = String::new();
        further.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("lockstep_build_info"), "{answer}");
        let identity = Identity {
            machine: "m".into(),
            node: "b".into(),
            pki: "/nowhere".into(),
        };
        let second = Exporter::start(exporter.address(), identity, Status::default());
        assert!(second.is_err_and(|error| error.to_string().contains("--metrics")));
    }
}
