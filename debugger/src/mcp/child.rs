//! A command of this program in a process of its own, for so long, and so much of what it prints.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lockstep_node::out::printable;
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::time::timeout;

/// Bytes of what it says on standard error, which are told where it failed.
const SAID: usize = 4096;
/// Bytes of one read.
const PIECE: usize = 16 << 10;

/// The variable by which a call knows the server that it is of.
const SERVER: &str = "LOCKSTEP_DEBUG_SERVER";

/// Where this process is a call, it ends with its server, however that ends.
pub fn end_with_server() -> Result<()> {
    let Ok(server) = std::env::var(SERVER) else {
        return Ok(());
    };
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before.
    let parent = getppid().map_or(0, |parent| parent.as_raw_nonzero().get());
    ensure!(server == parent.to_string(), "the server of this call has ended");
    Ok(())
}

/// What a call may take.
pub struct Limits {
    pub time: Duration,
    pub bytes: usize,
}

/// Which part of a longer answer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    Beginning,
    End,
}

/// Runs this program with these words. Returns what it printed and, if that is a part, a note on it.
pub async fn run(words: &[String], keep: Keep, limits: &Limits) -> Result<Vec<String>> {
    let mut command = Command::new("/proc/self/exe");
    command.args(words).stdin(Stdio::null());
    command.env(SERVER, std::process::id().to_string());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn().context("cannot start a process")?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (stdout, stderr) = stdout.zip(stderr).context("the process has no pipes")?;
    let work = async {
        let said = read(stderr, Keep::End, SAID);
        let printed = async {
            let printed = read(stdout, keep, limits.bytes).await?;
            let status = if printed.stopped {
                // It has told more than is wanted.
                child.kill().await?;
                None
            } else {
                Some(child.wait().await?)
            };
            Ok((printed, status))
        };
        tokio::try_join!(printed, said)
    };
    let Ok(result) = timeout(limits.time, work).await else {
        bail!(
            "it was given up after {} s: ask for an earlier place",
            limits.time.as_secs()
        );
    };
    let ((printed, status), said) = result.context("cannot read what the process prints")?;
    answer(&printed, status, &said.text(), keep, limits)
}

/// What is told. A status of 1 with something on standard output is an answer too: of `verify` and `diff` it means a difference.
fn answer(
    printed: &Printed,
    status: Option<ExitStatus>,
    said: &str,
    keep: Keep,
    limits: &Limits,
) -> Result<Vec<String>> {
    let text = printed.text();
    if let Some(status) = status.filter(|status| !status.success())
        && (text.trim().is_empty() || status.code() != Some(1))
    {
        bail!("{status}: {}", said.trim());
    }
    let mut texts = cut(&text, keep, limits);
    if printed.cut && texts.len() == 1 {
        texts.push(part(keep));
    }
    if status.is_some_and(|status| !status.success()) {
        texts.push(format!("exit status 1: {}", said.trim()));
    } else if !said.trim().is_empty() {
        // Why it is no more: a limit, the log's end.
        texts.push(said.trim().to_owned());
    }
    Ok(texts)
}

/// As much of an answer as is told, and a note where that is not all. What is escaped has grown by now.
pub fn cut(text: &str, keep: Keep, limits: &Limits) -> Vec<String> {
    let surplus = text.len().saturating_sub(limits.bytes);
    if surplus == 0 {
        return vec![text.to_owned()];
    }
    let fits = |at: &usize| match keep {
        Keep::Beginning => *at <= limits.bytes,
        Keep::End => *at >= surplus,
    };
    // A character is told whole or not at all.
    let mut places = text.char_indices().map(|(at, _)| at).filter(fits);
    let told = match keep {
        Keep::Beginning => &text[..places.next_back().unwrap_or(0)],
        Keep::End => &text[places.next().unwrap_or(text.len())..],
    };
    vec![told.to_owned(), part(keep)]
}

fn part(keep: Keep) -> String {
    match keep {
        Keep::Beginning => "this is the beginning alone; ask for less at once to see the rest".into(),
        Keep::End => "this is the end alone; ask for an earlier end to see the rest".into(),
    }
}

/// What was read of a pipe.
struct Printed {
    bytes: Vec<u8>,
    /// There was more.
    cut: bool,
    /// There may be more, and it was not read.
    stopped: bool,
}

impl Printed {
    fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.bytes);
        printable(&text).into_owned()
    }
}

/// Reads up to the end, or up to `most` bytes where the beginning is wanted. It holds no more than twice as much and a piece.
async fn read(mut from: impl AsyncRead + Unpin, keep: Keep, most: usize) -> std::io::Result<Printed> {
    let mut printed = Printed {
        bytes: Vec::new(),
        cut: false,
        stopped: false,
    };
    let mut piece = vec![0; PIECE];
    loop {
        let length = from.read(&mut piece).await?;
        if length == 0 {
            break;
        }
        printed.bytes.extend_from_slice(&piece[..length]);
        if printed.bytes.len() <= most {
            continue;
        }
        printed.cut = true;
        if keep == Keep::Beginning {
            printed.bytes.truncate(most);
            printed.stopped = true;
            return Ok(printed);
        }
        if printed.bytes.len() >= 2 * most {
            keep_end(&mut printed.bytes, most);
        }
    }
    keep_end(&mut printed.bytes, most);
    Ok(printed)
}

fn keep_end(bytes: &mut Vec<u8>, most: usize) {
    let surplus = bytes.len().saturating_sub(most);
    bytes.drain(..surplus);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_long_answer_is_cut_at_the_end_that_is_not_wanted() {
        let long: Vec<u8> = (0..=u8::MAX).cycle().take(100_000).collect();
        let read = async |keep, most| read(&long[..], keep, most).await.unwrap();
        let whole = read(Keep::Beginning, long.len()).await;
        assert!(whole.bytes == long && !whole.cut && !whole.stopped);
        let begin = read(Keep::Beginning, 1000).await;
        assert!(begin.bytes == long[..1000] && begin.cut && begin.stopped);
        for most in [1000, 30_000, 99_999] {
            let end = read(Keep::End, most).await;
            assert!(
                end.bytes == long[long.len() - most..] && end.cut && !end.stopped,
                "{most}"
            );
        }
        let whole = read(Keep::End, long.len()).await;
        assert!(whole.bytes == long && !whole.cut);
    }

    #[test]
    fn an_answer_is_cut_between_characters_after_it_is_escaped() {
        let limits = |bytes| Limits {
            time: Duration::ZERO,
            bytes,
        };
        assert_eq!(cut("äöü", Keep::End, &limits(6)), ["äöü"]);
        for (keep, bytes, told) in [
            (Keep::Beginning, 5, "äö"),
            (Keep::Beginning, 4, "äö"),
            (Keep::Beginning, 1, ""),
            (Keep::End, 5, "öü"),
            (Keep::End, 4, "öü"),
            (Keep::End, 1, ""),
        ] {
            assert_eq!(
                cut("äöü", keep, &limits(bytes)),
                [told.to_owned(), part(keep)],
                "{bytes}"
            );
        }
        let printed = Printed {
            bytes: vec![0x1b; 1000],
            cut: false,
            stopped: false,
        };
        let texts = answer(&printed, None, "", Keep::Beginning, &limits(1000)).unwrap();
        assert!(texts.len() == 2 && texts[0].len() <= 1000, "{texts:?}");
    }

    #[test]
    fn what_a_guest_prints_has_no_control_characters_in_an_answer() {
        let printed = Printed {
            bytes: b"one\n\x1b]0;two\x07\xff".to_vec(),
            cut: false,
            stopped: false,
        };
        let text = printed.text();
        assert!(
            text.starts_with("one\n") && text.chars().all(|one| one == '\n' || !one.is_control()),
            "{text:?}"
        );
    }
}
