//! The asking side, for the command line.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::HOST;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::UnixStream;

use super::server::ASKING;
use super::{Refusal, Report, Route, STATUS, ShutdownBody};

/// Most bytes of an answer: a status has some hundreds.
const MAX_ANSWER_BYTES: usize = 64 << 10;
/// How long a status may take. A process that is stopped accepts connections, and answers none.
const TELLING: Duration = Duration::from_secs(5);

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nothing is there.
    #[error("there is no {0}: no process serves it on this host")]
    Missing(PathBuf),
    /// A process died and left it.
    #[error("{0} is there, but the process that served it is gone")]
    Dead(PathBuf),
    /// Not for this user.
    #[error("{0} may not be used by this user: be its owner or of its group, as root is")]
    Permission(PathBuf),
    /// It ended or failed before it had answered.
    #[error("the process behind {path} went away before it had answered: {reason}")]
    Gone {
        /// The socket.
        path: PathBuf,
        /// What was seen.
        reason: String,
    },
    /// It lives, and says nothing.
    #[error("the process behind {path} did not answer in {seconds} s; is it stopped?")]
    Silent {
        /// The socket.
        path: PathBuf,
        /// How long it was waited for.
        seconds: u64,
    },
    /// It says no.
    #[error("{0}")]
    Refused(String),
    /// Its answer is not one.
    #[error("what answers on {path} is no node of this version: {reason}")]
    Foreign {
        /// The socket.
        path: PathBuf,
        /// What it said.
        reason: String,
    },
    /// This process lacks something.
    #[error("cannot ask: {0}")]
    Local(#[from] io::Error),
}

impl ClientError {
    /// Whether nobody serves the socket just now.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Missing(_) | Self::Dead(_) | Self::Gone { .. })
    }
}

/// The status of the node behind a socket.
pub fn status(path: &Path) -> Result<Report, ClientError> {
    let (status, body) = ask(path, Method::GET, STATUS, Bytes::new(), TELLING)?;
    if status != StatusCode::OK {
        return Err(refusal(path, status, &body));
    }
    parse(path, &body)
}

/// Asks the node behind a socket for something; returns once it was begun. `body` is a shutdown's.
pub fn post(path: &Path, route: Route, body: Option<ShutdownBody>) -> Result<(), ClientError> {
    let body = body.map_or_else(Vec::new, |body| serde_json::to_vec(&body).unwrap_or_default());
    // The server's own limit comes first: it knows more.
    let limit = ASKING + TELLING;
    let (status, body) = ask(path, Method::POST, route.path(), body.into(), limit)?;
    if status == StatusCode::ACCEPTED {
        return Ok(());
    }
    Err(refusal(path, status, &body))
}

fn refusal(path: &Path, status: StatusCode, body: &[u8]) -> ClientError {
    match parse::<Refusal>(path, body) {
        Ok(refusal) => ClientError::Refused(refusal.error),
        Err(_) => ClientError::Foreign {
            path: path.into(),
            reason: format!("it answers {status}"),
        },
    }
}

fn parse<T: DeserializeOwned>(path: &Path, body: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(body).map_err(|error| ClientError::Foreign {
        path: path.into(),
        reason: error.to_string(),
    })
}

fn ask(
    path: &Path,
    method: Method,
    route: &str,
    body: Bytes,
    limit: Duration,
) -> Result<(StatusCode, Bytes), ClientError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let talk = tokio::time::timeout(limit, talk(path, method, route, body)).await;
        talk.map_err(|_| ClientError::Silent {
            path: path.into(),
            seconds: limit.as_secs(),
        })?
    })
}

async fn talk(path: &Path, method: Method, route: &str, body: Bytes) -> Result<(StatusCode, Bytes), ClientError> {
    let stream = UnixStream::connect(path).await.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => ClientError::Missing(path.into()),
        io::ErrorKind::ConnectionRefused => ClientError::Dead(path.into()),
        io::ErrorKind::PermissionDenied => ClientError::Permission(path.into()),
        _ => ClientError::Local(error),
    })?;
    let gone = |error: &dyn std::error::Error| ClientError::Gone {
        path: path.into(),
        reason: error.to_string(),
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| gone(&error))?;
    tokio::spawn(async move {
        // What fails here fails the request too.
        let _ = connection.await;
    });
    let request = Request::builder()
        .method(method)
        .uri(route)
        .header(HOST, "lockstep")
        .body(Full::new(body))
        .map_err(|error| gone(&error))?;
    let response = sender.send_request(request).await.map_err(|error| gone(&error))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
    let body = body.map_err(|error| gone(&*error))?.to_bytes();
    Ok((status, body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{ApiServer, Identity};
    use crate::control::{Control, Request};
    use crate::status::Status;
    use std::io::{Read, Write};

    fn server(control: &Control) -> (tempfile::TempDir, PathBuf, ApiServer) {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("m.sock");
        let identity = Identity {
            machine: "m".into(),
            node: "a".into(),
            pki: home.path().into(),
        };
        let server = ApiServer::start(&path, identity, Status::default(), control.clone(), || {}).unwrap();
        (home, path, server)
    }

    #[test]
    fn requests_reach_the_link_and_its_refusals_come_back() {
        let control = Control::default();
        let (_home, path, server) = server(&control);
        assert_eq!(status(&path).unwrap().machine, "m");
        let refused = post(&path, Route::Suspend, None).unwrap_err();
        assert!(refused.to_string().contains("runs no machine"), "{refused}");
        let mut link = control.connect();
        let answering = std::thread::spawn(move || {
            let mut seen = Vec::new();
            while let Some(asked) = link.blocking_recv() {
                seen.push(asked.request);
                let verdict = if seen.len() == 1 { Ok(()) } else { Err("not now".into()) };
                asked.answer.send(verdict).unwrap();
                if seen.len() == 2 {
                    break;
                }
            }
            seen
        });
        let body = ShutdownBody { timeout_seconds: 1.5 };
        post(&path, Route::Shutdown, Some(body)).unwrap();
        let refused = post(&path, Route::Switchover, None).unwrap_err();
        assert!(
            matches!(&refused, ClientError::Refused(reason) if reason == "not now"),
            "{refused}"
        );
        assert_eq!(
            answering.join().unwrap(),
            [Request::Shutdown(Duration::from_millis(1500)), Request::Switchover]
        );
        assert!(matches!(
            post(&path, Route::Promote, None),
            Err(ClientError::Refused(_))
        ));
        drop(server);
        assert!(matches!(status(&path), Err(ClientError::Missing(_))));
    }

    #[test]
    fn a_request_that_nobody_answers_does_not_keep_the_server() {
        let control = Control::default();
        let mut link = control.connect();
        let (_home, path, server) = server(&control);
        let asking = std::thread::spawn(move || post(&path, Route::Resume, None));
        let asked = link.blocking_recv().unwrap();
        drop(server);
        assert!(asking.join().unwrap().unwrap_err().is_absent());
        drop(asked);
    }

    #[test]
    fn damaged_requests_are_refused() {
        let (_home, path, _server) = server(&Control::default());
        for (request, wanted) in [
            ("GET /v1/nothing HTTP/1.1\r\nhost: x\r\n\r\n", "404"),
            ("PUT /v1/status HTTP/1.1\r\nhost: x\r\n\r\n", "405"),
            ("GET /v1/suspend HTTP/1.1\r\nhost: x\r\n\r\n", "405"),
            (
                "POST /v1/shutdown HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n[]",
                "400",
            ),
            (
                "POST /v1/shutdown HTTP/1.1\r\nhost: x\r\ncontent-length: 22\r\n\r\n{\"timeout_seconds\":-1}",
                "400",
            ),
            (
                "POST /v1/suspend HTTP/1.1\r\nhost: x\r\ncontent-length: 4097\r\n\r\n",
                "413",
            ),
            ("\0\u{1}\u{2} what\r\n\r\n", "400"),
        ] {
            let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
            let long = "x".repeat(if wanted == "413" { 4097 } else { 0 });
            stream.write_all((request.to_owned() + &long).as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {wanted}")),
                "{request:?}: {answer}"
            );
        }
        assert!(status(&path).is_ok());
    }
}
