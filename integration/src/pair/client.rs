//! A client that counts: INCR on one TCP connection, every answer kept.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::net::{Namespace, enter};

/// Where the guest's Redis listens: `GUEST_IP`, as an address.
pub(super) const REDIS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 2), 6379);
/// A silence that is longer than this ends the count.
pub(super) const LONGEST: Duration = Duration::from_secs(60);

/// From an answer to the next request of a client that keeps the guest busy.
pub const BUSY: Duration = Duration::ZERO;
/// The same of one that leaves the guest, which both hosts execute, idle for most of the time: what a test waits for, and the tests
/// beside it, get the processors then.
pub const CALM: Duration = Duration::from_millis(250);

/// What the client saw.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Answers that came.
    pub acknowledged: u64,
    /// The counter's value in the last answer.
    pub last: u64,
    /// Answers that were not one more than the one before.
    pub jumps: u64,
    /// Connections that broke.
    pub broken: u64,
    /// Longest time from a request to its answer.
    pub longest_silence: Duration,
}

/// A client in a thread.
pub struct Counter {
    stop: Arc<AtomicBool>,
    /// It is to say nothing for now.
    silent: Arc<AtomicBool>,
    /// It says nothing, and has got all its answers.
    idle: Arc<AtomicBool>,
    /// Somebody waits for answers.
    hurries: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    /// Longest silence since [`Counter::take_silence`], in microseconds.
    silence: Arc<AtomicU64>,
    thread: JoinHandle<Result<Tally>>,
}

impl Counter {
    /// Connects from `namespace` and counts until it is told to stop, with so much time between an answer and the next request;
    /// with none where somebody waits for answers.
    pub fn start(namespace: &Namespace, key: &str, pause: Duration) -> Result<Self> {
        let place = namespace.name().to_owned();
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (silence, silent) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (told, count, quiet, key) = (stop.clone(), answers.clone(), silence.clone(), key.to_owned());
        let (hush, idle) = (silent.clone(), Arc::new(AtomicBool::new(false)));
        let (is_idle, hurries) = (idle.clone(), Arc::new(AtomicBool::new(false)));
        let hurry = hurries.clone();
        let thread = std::thread::Builder::new().name("counter".into()).spawn(move || {
            enter(&place)?;
            let pause = || {
                if !hurry.load(Ordering::Relaxed) {
                    std::thread::park_timeout(pause);
                }
            };
            count_up(&key, pause, &told, [&hush, &is_idle], &count, &quiet)
                .inspect_err(|error| eprintln!("the client ends: {error:#}"))
        })?;
        Ok(Self {
            stop,
            silent,
            idle,
            hurries,
            answers,
            silence,
            thread,
        })
    }

    /// Answers so far.
    pub fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    /// The longest silence since the last call.
    pub fn take_silence(&self) -> Duration {
        Duration::from_micros(self.silence.swap(0, Ordering::Relaxed))
    }

    /// Whether the client has ended by itself.
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for `more` further answers.
    pub fn wait_for(&self, more: u64, limit: Duration) -> Result<()> {
        self.hurries.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        let result = self.wait_in_a_hurry(more, limit);
        self.hurries.store(false, Ordering::Relaxed);
        result
    }

    fn wait_in_a_hurry(&self, more: u64, limit: Duration) -> Result<()> {
        let (from, begin) = (self.answers(), Instant::now());
        while self.answers() < from + more {
            if self.thread.is_finished() {
                bail!("the client has ended after {} answers", self.answers());
            }
            if begin.elapsed() > limit {
                bail!(
                    "{} answers in {limit:?} where {more} were expected",
                    self.answers() - from
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Says nothing until it is told to go on; its connection stays.
    pub fn set_silent(&self, silent: bool) {
        self.silent.store(silent, Ordering::Relaxed);
        self.thread.thread().unpark();
    }

    /// Has it say nothing, and waits until it has got all its answers.
    pub fn hush(&self, limit: Duration) -> Result<()> {
        self.set_silent(true);
        let begin = Instant::now();
        while !self.idle.load(Ordering::Relaxed) {
            if self.thread.is_finished() || begin.elapsed() > limit {
                bail!("the client waits for an answer after {} of them", self.answers());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Ends the count.
    pub fn finish(self) -> Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        match self.thread.join() {
            Ok(tally) => tally,
            Err(_) => bail!("the client panicked"),
        }
    }
}

/// A guest on a slow host answers later than a kernel waits for the answer to its ARP request (3 s).
fn connect() -> Result<TcpStream> {
    let begin = Instant::now();
    loop {
        match TcpStream::connect_timeout(&REDIS.into(), LONGEST) {
            Ok(stream) => return Ok(stream),
            Err(error) if error.kind() == ErrorKind::HostUnreachable && begin.elapsed() < LONGEST => {}
            Err(error) => return Err(error).context("cannot connect to the guest's Redis"),
        }
    }
}

fn count_up(
    key: &str,
    pause: impl Fn(),
    stop: &AtomicBool,
    [silent, idle]: [&AtomicBool; 2],
    answers: &AtomicU64,
    quiet: &AtomicU64,
) -> Result<Tally> {
    let stream = connect()?;
    let connected = Instant::now();
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LONGEST))?;
    let mut requests = stream.try_clone()?;
    let mut replies = BufReader::new(stream);
    let mut tally = Tally::default();
    let mut line = String::new();
    let request = format!("INCR {key}\r\n");
    while !stop.load(Ordering::Relaxed) {
        let is_silent = silent.load(Ordering::Relaxed);
        idle.store(is_silent, Ordering::Relaxed);
        if is_silent {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        }
        let begin = Instant::now();
        line.clear();
        let result = requests
            .write_all(request.as_bytes())
            .and_then(|()| replies.read_line(&mut line));
        if !matches!(result, Ok(length) if length > 0) {
            tally.broken += 1;
            return Ok(tally);
        }
        let silence = begin.elapsed();
        quiet.fetch_max(silence.as_micros() as u64, Ordering::Relaxed);
        tally.longest_silence = tally.longest_silence.max(silence);
        // A guest that has just booted reads what it saved; the answer comes as late as that is done.
        if line.starts_with("-LOADING") && tally.acknowledged == 0 && connected.elapsed() < LONGEST {
            std::thread::sleep(Duration::from_millis(50));
            continue;
        }
        let value: u64 = line
            .trim()
            .strip_prefix(':')
            .and_then(|number| number.parse().ok())
            .with_context(|| format!("the guest's Redis answers {line:?}"))?;
        if tally.acknowledged > 0 && value != tally.last + 1 {
            tally.jumps += 1;
        }
        tally.last = value;
        tally.acknowledged += 1;
        answers.store(tally.acknowledged, Ordering::Relaxed);
        pause();
    }
    Ok(tally)
}
