//! Hosts whose clocks are far apart, and a client that reads the guest's.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::client::{LONGEST, REDIS};
use crate::net::{Namespace, enter};

/// Debian's libfaketime, for programs with threads.
pub const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
/// A guest's clock may go by this much more than ours from one answer to the next: neither is read at the very moment.
const SLACK: Duration = Duration::from_secs(1);
/// From one question to the next: whoever counts beside this one wants answers, too.
const EVERY: Duration = Duration::from_millis(20);

/// The script, for [`super::Pair::prepare`], that sets a host's calendar clock by so many seconds, and what it counts from its
/// start on ahead by so many.
pub fn set_clocks(calendar: i64, since_start: u64) -> String {
    format!(
        "set -- unshare --time --monotonic {since_start} --boottime {since_start} \
         env LD_PRELOAD={FAKETIME} FAKETIME={calendar:+} FAKETIME_DONT_FAKE_MONOTONIC=1 LOCKSTEP_SANDBOX=off \"$@\""
    )
}

/// A host's calendar that can be set while its programs run.
pub struct HostCalendar(PathBuf);

impl HostCalendar {
    /// With its file in `dir`, and off by so many seconds.
    pub fn new(dir: &Path, seconds: i64) -> Result<Self> {
        let calendar = Self(dir.join("calendar"));
        calendar.set(seconds)?;
        Ok(calendar)
    }

    /// The script, for [`super::Pair::prepare`].
    pub fn script(&self) -> String {
        format!(
            "set -- env LD_PRELOAD={FAKETIME} FAKETIME_TIMESTAMP_FILE={} FAKETIME_NO_CACHE=1 \
             FAKETIME_DONT_FAKE_MONOTONIC=1 LOCKSTEP_SANDBOX=off \"$@\"",
            self.0.display()
        )
    }

    /// From now on it is off by so many seconds.
    pub fn set(&self, seconds: i64) -> Result<()> {
        let new = self.0.with_extension("new");
        std::fs::write(&new, format!("{seconds:+}\n"))?;
        Ok(std::fs::rename(&new, &self.0)?)
    }
}

/// Asks a guest's Redis for the time again and again, on one connection, in a thread.
pub struct TimeWatch {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    thread: JoinHandle<Result<Vec<Duration>>>,
}

impl TimeWatch {
    /// Begins.
    pub fn start(namespace: &Namespace) -> Result<Self> {
        let place = namespace.name().to_owned();
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (told, count) = (stop.clone(), answers.clone());
        let thread = std::thread::Builder::new().name("time".into()).spawn(move || {
            enter(&place)?;
            // Whoever waits for it ends before it is asked.
            watch(&told, &count).inspect_err(|error| eprintln!("{error:#}"))
        })?;
        Ok(Self { stop, answers, thread })
    }

    /// Waits for `more` further answers.
    pub fn wait_for(&self, more: u64, limit: Duration) -> Result<()> {
        let (from, begin) = (self.answers.load(Ordering::Relaxed), Instant::now());
        while self.answers.load(Ordering::Relaxed) < from + more {
            ensure!(!self.thread.is_finished(), "the guest's clock is not read any more");
            ensure!(begin.elapsed() < limit, "the guest does not tell the time");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Ends. Returns what the guest said, none of it before what it said before, or later than the time that went by allows.
    pub fn finish(self) -> Result<Vec<Duration>> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(times) => times,
            Err(_) => bail!("the thread that reads the time panicked"),
        }
    }
}

fn watch(stop: &AtomicBool, answers: &AtomicU64) -> Result<Vec<Duration>> {
    let stream = TcpStream::connect_timeout(&REDIS.into(), LONGEST).context("cannot connect to the guest's Redis")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LONGEST))?;
    let mut requests = stream.try_clone()?;
    let mut replies = BufReader::new(stream);
    let mut times: Vec<Duration> = Vec::new();
    let mut asked_last = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let asked = Instant::now();
        requests.write_all(b"TIME\r\n")?;
        let time = read_time(&mut replies)?;
        if let Some(&last) = times.last() {
            let since = asked_last.elapsed();
            ensure!(time >= last, "the guest's clock went back from {last:?} to {time:?}");
            ensure!(
                time.saturating_sub(last) <= since + SLACK,
                "the guest's clock went from {last:?} to {time:?} in {since:?}"
            );
        }
        asked_last = asked;
        times.push(time);
        answers.store(times.len() as u64, Ordering::Relaxed);
        std::thread::sleep(EVERY);
    }
    Ok(times)
}

/// An array of two strings, seconds and microseconds: `*2`, and `$` and a length before each.
fn read_time(replies: &mut impl BufRead) -> Result<Duration> {
    let mut text = String::new();
    for _ in 0..5 {
        ensure!(replies.read_line(&mut text)? > 0, "the connection broke");
    }
    let lines: Vec<&str> = text.lines().collect();
    let number = |line: usize| lines.get(line).and_then(|line| line.parse::<u64>().ok());
    let (seconds, micros) = number(2)
        .zip(number(4))
        .with_context(|| format!("the guest's Redis answers {text:?}"))?;
    Ok(Duration::from_secs(seconds) + Duration::from_micros(micros))
}
