//! What a process writes, as it comes in: a thread reads it, and whoever waits for a text is woken.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    /// Where the next wait looks from.
    cursor: usize,
    closed: bool,
}

/// A stream's content so far.
#[derive(Clone, Default)]
pub struct Transcript(Arc<(Mutex<State>, Condvar)>);

impl Transcript {
    /// Reads `source` to its end, in a thread.
    pub fn of(mut source: impl Read + Send + 'static) -> std::io::Result<Self> {
        let transcript = Self::default();
        let writer = transcript.clone();
        std::thread::Builder::new().name("transcript".into()).spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let length = match source.read(&mut buffer) {
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                    Ok(length) => length,
                    Err(_) => 0,
                };
                let mut state = writer.lock();
                state.bytes.extend_from_slice(&buffer[..length]);
                state.closed = length == 0;
                writer.0.1.notify_all();
                if length == 0 {
                    return;
                }
            }
        })?;
        Ok(transcript)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole after every statement, also where a thread panicked.
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `done` says so. False when `limit` has passed.
    fn wait(&self, limit: Duration, mut done: impl FnMut(&mut State) -> bool) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        loop {
            if done(&mut state) {
                return true;
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return false;
            };
            state = self
                .0
                .1
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits for `text` after what the last wait found.
    pub fn wait_for(&self, text: &str, limit: Duration) -> Result<()> {
        let mut found = false;
        let ended = self.wait(limit, |state| {
            let rest = &state.bytes[state.cursor..];
            if let Some(at) = rest
                .windows(text.len().max(1))
                .position(|window| window == text.as_bytes())
            {
                state.cursor += at + text.len();
                found = true;
            }
            found || state.closed
        });
        if found {
            return Ok(());
        }
        let why = if ended {
            "the process closed it".into()
        } else {
            format!("{} s went by", limit.as_secs_f32())
        };
        bail!("`{text}` did not come: {why}; there was:\n{}", self.text())
    }

    /// Waits for the stream's end. False when `limit` has passed.
    pub fn wait_for_end(&self, limit: Duration) -> bool {
        self.wait(limit, |state| state.closed)
    }

    /// All so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.lock().bytes).replace("\r\n", "\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wait_goes_on_where_the_last_one_ended() {
        let transcript = Transcript::of(&b"one two one"[..]).unwrap();
        let limit = Duration::from_secs(5);
        transcript.wait_for("one", limit).unwrap();
        transcript.wait_for("one", limit).unwrap();
        let error = transcript.wait_for("one", limit).unwrap_err().to_string();
        assert!(error.contains("closed"), "{error}");
        assert!(transcript.wait_for_end(limit));
        assert_eq!(transcript.text(), "one two one");
    }

    #[test]
    fn a_wait_ends_at_its_limit() {
        let (reader, _writer) = std::io::pipe().unwrap();
        let transcript = Transcript::of(reader).unwrap();
        let error = transcript
            .wait_for("x", Duration::from_millis(10))
            .unwrap_err()
            .to_string();
        assert!(error.contains("went by"), "{error}");
    }
}
