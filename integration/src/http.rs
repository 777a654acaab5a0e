//! HTTP as simple as it can be: one question, the whole answer.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

/// An answer takes no longer than this.
const LIMIT: Duration = Duration::from_secs(5);
/// Answers are shorter than this.
const MOST_BYTES: u64 = 1 << 20;

/// Sends a request as it is. Returns the whole answer.
pub fn ask(address: SocketAddr, request: &str) -> Result<String> {
    let stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    talk(stream, request)
}

/// The answer to GET.
pub fn get(address: SocketAddr, path: &str) -> Result<String> {
    ask(address, &format!("GET {path} HTTP/1.0\r\nhost: x\r\n\r\n"))
}

/// The same on a unix socket.
pub fn get_unix(socket: &Path, path: &str) -> Result<String> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(LIMIT))?;
    talk(stream, &format!("GET {path} HTTP/1.0\r\nhost: x\r\n\r\n"))
}

/// What stands behind an answer's head.
pub fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

fn talk(mut stream: impl Read + Write, request: &str) -> Result<String> {
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.take(MOST_BYTES).read_to_string(&mut answer)?;
    Ok(answer)
}
