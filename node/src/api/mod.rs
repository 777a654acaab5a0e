//! The operations API: what a node tells operators and what they ask of it, as HTTP and JSON on a unix socket.
//!
//! - [`socket`]: the socket's file: who may connect, and that a live one is never replaced.
//! - [`report`]: the status as operators read it.
//! - `metrics`, `health`: the same for Prometheus and for what looks after processes; `view` answers for them.
//! - [`server`]: a thread that answers; the vCPU and the link never wait for it. [`exporter`]: another one that answers on
//!   TCP, where nothing can be asked for. `http`: what both speak.
//! - [`client`]: the asking side, for the command line.
//!
//! Invariants: whatever comes in by the socket is bounded in size, time and number; nothing of it reaches the machine but
//! as a [`Request`](crate::control::Request) that the link may refuse.

pub mod client;
pub mod exporter;
mod health;
mod http;
mod identity;
mod metrics;
pub mod report;
pub mod server;
pub mod socket;
mod view;

pub use client::ClientError;
pub use exporter::{Exporter, ExporterError};
pub use identity::Identity;
pub use report::{Report, STATES, is_a_state};
pub use server::ApiServer;
pub use socket::{SocketError, make_directory};

/// Requests that change something, as `POST /v1/...`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// The backup goes on with the machine.
    Switchover,
    /// The process ends as in a crash.
    TestFailover,
    /// Protection is given up for now.
    Suspend,
    /// Protection is taken up again.
    Resume,
    /// The guest is shut down. The body is a [`ShutdownBody`].
    Shutdown,
    /// Always refused, with the reason: a node is promoted by force only while its process does not run.
    Promote,
}

impl Route {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Switchover,
        Self::TestFailover,
        Self::Suspend,
        Self::Resume,
        Self::Shutdown,
        Self::Promote,
    ];

    /// Its path.
    pub fn path(self) -> &'static str {
        match self {
            Self::Switchover => "/v1/switchover",
            Self::TestFailover => "/v1/test-failover",
            Self::Suspend => "/v1/suspend",
            Self::Resume => "/v1/resume",
            Self::Shutdown => "/v1/shutdown",
            Self::Promote => "/v1/promote",
        }
    }
}

/// Path of the metrics, with GET.
pub const METRICS: &str = "/metrics";
/// Path of the process' health, with GET.
pub const HEALTH: &str = "/healthz";
/// Path of the status, with GET.
pub const STATUS: &str = "/v1/status";

/// Body of a shutdown's request. An empty body is one with the default.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShutdownBody {
    /// Seconds until the machine is ended by force, 0 to [`MAX_SHUTDOWN_SECONDS`].
    #[serde(default = "default_shutdown_seconds")]
    pub timeout_seconds: f64,
}

/// Longest wait for a guest that shuts down: a day.
pub const MAX_SHUTDOWN_SECONDS: f64 = 86_400.0;
/// How long a guest is waited for where nobody says.
pub const DEFAULT_SHUTDOWN_SECONDS: f64 = 60.0;

fn default_shutdown_seconds() -> f64 {
    DEFAULT_SHUTDOWN_SECONDS
}

/// A refusal, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Refusal {
    /// Why.
    pub error: String,
}
