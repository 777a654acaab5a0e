//! The answering side: one thread with a runtime of its own.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, oneshot};

use super::http::{self, READ, RECEIVING, is_read, json, only, refuse};
use super::identity::Identity;
use super::report::{Rates, Report, SAMPLING, Sample};
use super::socket::{self, Place, SocketError};
use super::view;
use super::{MAX_SHUTDOWN_SECONDS, Route, STATUS, ShutdownBody};
use crate::control::{Control, Request as Asked};
use crate::sandbox::{self, Kind};
use crate::status::Status;

/// Most bytes of a request's body.
const MAX_BODY_BYTES: usize = 4 << 10;
/// Connections at a time; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 32;
/// Requests that wait for the link at a time; further ones queue, at most as many as there are connections.
const MAX_ASKING: usize = 4;
/// How long the link is waited for until it has begun or refused what is asked.
pub(super) const ASKING: Duration = Duration::from_secs(60);
/// How long a connection may last in all.
const CONNECTION: Duration = Duration::from_secs(90);
/// From a failed accept (no file descriptors left, say) to the next.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

struct Shared {
    identity: Identity,
    status: Status,
    control: Control,
    rates: Mutex<Rates>,
    crash: fn(),
    /// A drill was begun: the process vanishes when that was told.
    crashes: AtomicBool,
}

/// The API of one node. Dropping it ends the thread and removes the socket.
pub struct ApiServer {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ApiServer {
    /// Serves `path` from a thread of its own. `crash` makes the process vanish, for a drill.
    pub fn start(
        path: &Path,
        identity: Identity,
        status: Status,
        control: Control,
        crash: fn(),
    ) -> Result<Self, SocketError> {
        let failed = |what, cause| SocketError::Io {
            path: path.into(),
            what,
            cause,
        };
        let (place, listener) = socket::listen(path)?;
        let rates = Mutex::new(Rates::since(Sample::of(status.gauges(), Instant::now())));
        let shared = Arc::new(Shared {
            identity,
            status,
            control,
            rates,
            crash,
            crashes: AtomicBool::new(false),
        });
        let (stop, stopped) = oneshot::channel();
        let path = path.to_owned();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(MAX_ASKING)
            .build()
            .map_err(|cause| failed("cannot make its runtime", cause))?;
        let thread = sandbox::spawn(Kind::Network, "api", move || {
            let mut door = Door {
                path,
                place: Some(place),
                listener,
                told: false,
            };
            if let Err(error) = runtime.block_on(serve(&mut door, shared, stopped)) {
                tracing::error!("the operations API has failed: {error}; the machine goes on without it");
            }
            // A request that still waits for the link does not keep the process.
            runtime.shutdown_background();
            drop(door);
        });
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread.map_err(|cause| failed("cannot start its thread", cause))?),
        })
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Where requests come in.
struct Door {
    path: PathBuf,
    /// `None`: what was removed could not be made again.
    place: Option<Place>,
    listener: std::os::unix::net::UnixListener,
    told: bool,
}

impl Door {
    /// Makes the socket again if it was removed: nobody could ask how the machine is. True: it is another one now.
    fn mend(&mut self) -> bool {
        if self.place.as_ref().is_some_and(|place| !place.is_gone()) {
            return false;
        }
        // First, as it removes what has its name.
        self.place = None;
        match socket::listen(&self.path) {
            Ok((place, listener)) => {
                tracing::warn!("{} was removed, and is made again", self.path.display());
                (self.place, self.listener, self.told) = (Some(place), listener, false);
                true
            }
            Err(error) => {
                if !std::mem::replace(&mut self.told, true) {
                    tracing::error!(
                        "{error}: it was removed, and nobody can ask how the machine is, which goes on. Start this process \
                         anew, while it stands by"
                    );
                }
                false
            }
        }
    }

    fn listener(&self) -> io::Result<UnixListener> {
        UnixListener::from_std(self.listener.try_clone()?)
    }
}

async fn serve(door: &mut Door, shared: Arc<Shared>, mut stopped: oneshot::Receiver<()>) -> io::Result<()> {
    let mut listener = door.listener()?;
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut sampling = tokio::time::interval(SAMPLING);
    sampling.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let next = async {
            let permit = room.clone().acquire_owned().await;
            (listener.accept().await, permit)
        };
        tokio::select! {
            biased;
            _ = &mut stopped => return Ok(()),
            _ = sampling.tick() => {
                let sample = Sample::of(shared.status.gauges(), Instant::now());
                shared.rates.lock().unwrap_or_else(PoisonError::into_inner).sample(sample);
                if door.mend() {
                    listener = door.listener()?;
                }
            }
            (accepted, permit) = next => match accepted {
                Ok((stream, _)) => {
                    let shared = shared.clone();
                    tokio::spawn(async move {
                        let asked = shared.clone();
                        http::talk(stream, CONNECTION, move |request| answer(request, asked.clone())).await;
                        if shared.crashes.load(Ordering::Relaxed) {
                            (shared.crash)();
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!("the operations API cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            },
        }
    }
}

async fn answer(request: Request<Incoming>, shared: Arc<Shared>) -> Response<Full<Bytes>> {
    if let Some(answer) = view::answer(&request, &shared.identity, &shared.status) {
        return answer;
    }
    let path = request.uri().path();
    if path == STATUS {
        if !is_read(request.method()) {
            return only(READ);
        }
        let rates = *shared.rates.lock().unwrap_or_else(PoisonError::into_inner);
        let report = Report::of(&shared.identity, &shared.status, &rates, Instant::now());
        return json(StatusCode::OK, &report);
    }
    let Some(route) = Route::ALL.into_iter().find(|route| route.path() == path) else {
        return refuse(
            StatusCode::NOT_FOUND,
            "there is no such request; docs/operations.md has those that there are",
        );
    };
    if request.method() != Method::POST {
        return only("POST");
    }
    let body = Limited::new(request.into_body(), MAX_BODY_BYTES).collect();
    let body = match tokio::time::timeout(RECEIVING, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            let reason = format!("the body has more than {MAX_BODY_BYTES} bytes");
            return refuse(StatusCode::PAYLOAD_TOO_LARGE, &reason);
        }
        Ok(Err(error)) => return refuse(StatusCode::BAD_REQUEST, &format!("the body cannot be read: {error}")),
        Err(_) => return refuse(StatusCode::REQUEST_TIMEOUT, "the body did not come"),
    };
    let asked = match route {
        Route::Switchover => Asked::Switchover,
        Route::TestFailover => Asked::TestFailover,
        Route::Suspend => Asked::Suspend,
        Route::Resume => Asked::Resume,
        Route::Shutdown => match shutdown(&body) {
            Ok(asked) => asked,
            Err(reason) => return refuse(StatusCode::BAD_REQUEST, &reason),
        },
        Route::Promote => {
            return refuse(
                StatusCode::CONFLICT,
                "a node is promoted by force while its process does not run: end this one, then `promote --force \
                 --peer-is-powered-off` with the arbiter's options",
            );
        }
    };
    tracing::warn!(request = ?asked, "an operator asks");
    let control = shared.control.clone();
    let answered = tokio::task::spawn_blocking(move || control.ask(asked));
    match tokio::time::timeout(ASKING, answered).await {
        Ok(Ok(Ok(()))) => {
            if asked == Asked::TestFailover {
                shared.crashes.store(true, Ordering::Relaxed);
            }
            json(StatusCode::ACCEPTED, &serde_json::json!({}))
        }
        Ok(Ok(Err(reason))) => refuse(StatusCode::CONFLICT, &reason),
        Ok(Err(_)) => refuse(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the request could not be carried out",
        ),
        Err(_) => refuse(
            StatusCode::GATEWAY_TIMEOUT,
            "the machine's link did not answer in a minute; whether the request was begun is not known: look at the status",
        ),
    }
}

fn shutdown(body: &[u8]) -> Result<Asked, String> {
    let body = if body.is_empty() { b"{}" } else { body };
    // Through a map: a structure alone could be an array too.
    let ShutdownBody { timeout_seconds } = serde_json::from_slice::<serde_json::Map<_, _>>(body)
        .and_then(|map| serde_json::from_value(map.into()))
        .map_err(|error| format!("the body is no shutdown: {error}"))?;
    if !(0.0..=MAX_SHUTDOWN_SECONDS).contains(&timeout_seconds) {
        return Err(format!("timeout_seconds is not 0 to {MAX_SHUTDOWN_SECONDS}"));
    }
    Ok(Asked::Shutdown(Duration::from_secs_f64(timeout_seconds)))
}
