//! What a node tells over its socket.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::http::{body, get_unix};

/// From one look to the next.
const LOOK: Duration = Duration::from_millis(10);

/// The status of the node whose socket this is.
pub fn status(socket: &Path) -> Result<Value> {
    let answer = get_unix(socket, "/v1/status")?;
    serde_json::from_str(body(&answer)).with_context(|| format!("no status: {answer}"))
}

/// A number of a status.
pub fn number(status: &Value, name: &str) -> Result<f64> {
    status[name]
        .as_f64()
        .with_context(|| format!("the status has no {name}: {status}"))
}

/// Waits for a status that is `so`, and returns it.
pub fn wait_for_status(socket: &Path, limit: Duration, so: impl Fn(&Value) -> Result<bool>) -> Result<Value> {
    let begin = Instant::now();
    loop {
        let status = status(socket)?;
        if so(&status)? {
            return Ok(status);
        }
        ensure!(begin.elapsed() < limit, "the status stays {status}");
        std::thread::sleep(LOOK);
    }
}
