//! What a node tells over its socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// From one look to the next.
const LOOK: Duration = Duration::from_millis(10);

/// The status of the node whose socket this is.
pub fn status(socket: &Path) -> Result<Value> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(b"GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    Ok(serde_json::from_str(body)?)
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
