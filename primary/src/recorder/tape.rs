//! What the log's thread writes: one log, or the parts of a ring.
//!
//! While the start state of a part is on its way to the disk, what comes is written to it and to the part before.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, TryRecvError};
use lockstep_logcodec::{LogError, LogWriter, Summary, WriterOptions};
use lockstep_node::recording::part::Begun;
use lockstep_node::recording::ring::{Ring, SLACK};
use lockstep_node::start::realtime_seconds;
use lockstep_node::status::Status;
use lockstep_proto::end::Reason;
use lockstep_proto::quantity::{GuestTime, Term};
use lockstep_proto::{Batch, End, Identity, PageChunk};
use prost::Message;

/// From one look at the ring's files to the next.
pub const LOOK: Duration = Duration::from_millis(250);

/// How long a start state may take to be on the disk when all ends.
const LAST_WAIT: Duration = Duration::from_secs(5);

/// What a log came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogSummary {
    /// Batches.
    pub batches: u64,
    /// Turns in them.
    pub turns: u64,
    /// Bytes of batches, less the vCPU states of deltas.
    pub batch_bytes: u64,
    /// Bytes of deltas: pages and vCPU states.
    pub page_bytes: u64,
    /// All bytes.
    pub total_bytes: u64,
}

impl std::ops::AddAssign for LogSummary {
    fn add_assign(&mut self, other: Self) {
        self.batches += other.batches;
        self.turns += other.turns;
        self.batch_bytes += other.batch_bytes;
        self.page_bytes += other.page_bytes;
        self.total_bytes += other.total_bytes;
    }
}

/// A log that is written.
struct Track {
    writer: LogWriter,
    /// Number of the part; 0: it is none.
    number: u32,
    /// The digest chain at the end of the last batch.
    digest: Bytes,
    /// Guest time there.
    guest_time: GuestTime,
    /// Bytes of vCPU states in the batches.
    state_bytes: u64,
    since: Instant,
}

impl Track {
    fn begin(
        directory: &Path,
        identity: &Identity,
        options: WriterOptions,
        guest_time: GuestTime,
    ) -> Result<Self, String> {
        Ok(Self {
            writer: LogWriter::create(directory, identity, options).map_err(|error: LogError| error.to_string())?,
            number: identity.part,
            digest: identity.start_chain.clone(),
            guest_time,
            state_bytes: 0,
            since: Instant::now(),
        })
    }

    fn batch(&mut self, batch: &Batch) -> Result<(), String> {
        let states = batch.turns.iter().filter_map(|turn| turn.forced.as_ref());
        self.state_bytes += states.map(|forced| forced.encoded_len() as u64).sum::<u64>();
        self.digest = batch.digest.clone();
        let clocks = batch.turns.iter().filter_map(|turn| turn.clock);
        self.guest_time = clocks.fold(self.guest_time, GuestTime::plus_ns);
        let written = self.writer.append_batch(batch).and_then(|()| self.writer.flush());
        written.map_err(|error: LogError| error.to_string())
    }

    fn pages(&mut self, chunks: &[PageChunk]) -> Result<(), String> {
        let mut chunks = chunks.iter();
        chunks.try_for_each(|chunk| {
            self.writer
                .append_pages(chunk)
                .map_err(|error: LogError| error.to_string())
        })
    }

    fn end(self, end: End) -> Result<LogSummary, String> {
        let summary: Summary = self.writer.finish(end).map_err(|error: LogError| error.to_string())?;
        let counts = summary.counts;
        Ok(LogSummary {
            batches: counts.batches.records,
            turns: counts.turns,
            batch_bytes: counts.batches.bytes.saturating_sub(self.state_bytes),
            page_bytes: counts.pages.bytes + self.state_bytes,
            total_bytes: counts.bytes(),
        })
    }

    /// Ends it with the last batch. `continued`: the next part has all that follows.
    fn close(self, term: Term, continued: bool) -> Result<LogSummary, String> {
        let end = End {
            reason: Reason::Quit.into(),
            detail: String::new(),
            last_stop: self.writer.stop().get(),
            digest: self.digest.clone(),
            memory_digest: Bytes::new(),
            guest_ns: self.guest_time.ns(),
            term: term.get(),
            continued,
        };
        self.end(end)
    }
}

/// A ring, as the log's thread has it.
struct Reel {
    ring: Arc<Ring>,
    /// Set when a new part is wanted.
    wanted: Arc<AtomicBool>,
    /// Whether the one that comes next was asked for.
    asked: bool,
    looked: Instant,
    /// Bytes of log that were written when the files were looked at last.
    log_bytes: u64,
}

/// Everything that is written.
pub struct Tape {
    track: Option<Track>,
    next: Option<(Track, Receiver<Result<(), String>>)>,
    reel: Option<Reel>,
    /// Pages have come, and their batch has not.
    is_open: bool,
    options: WriterOptions,
    status: Status,
    sum: LogSummary,
}

impl Tape {
    /// One log in `directory`.
    pub fn single(
        directory: &Path,
        identity: &Identity,
        options: WriterOptions,
        status: Status,
    ) -> Result<Self, String> {
        let track = Track::begin(directory, identity, options, GuestTime::ZERO)?;
        Ok(Self {
            track: Some(track),
            next: None,
            reel: None,
            is_open: false,
            options,
            status,
            sum: LogSummary::default(),
        })
    }

    /// A ring. `first`: a part whose start state is there, and guest time at its start; without one the first part is asked
    /// for at once.
    pub fn ring(
        ring: Arc<Ring>,
        wanted: Arc<AtomicBool>,
        first: Option<(&Path, &Identity, GuestTime)>,
        options: WriterOptions,
        status: Status,
    ) -> Result<Self, String> {
        let first = first.map(|(directory, identity, begun)| Track::begin(directory, identity, options, begun));
        let mut tape = Self {
            track: first.transpose()?,
            next: None,
            reel: Some(Reel {
                ring,
                wanted,
                asked: false,
                looked: Instant::now(),
                log_bytes: 0,
            }),
            is_open: false,
            options,
            status,
            sum: LogSummary::default(),
        };
        tape.look()?;
        Ok(tape)
    }

    /// Whether [`Tape::turn`] wants to be called now and then.
    pub fn is_ring(&self) -> bool {
        self.reel.is_some()
    }

    fn tracks(&mut self) -> impl Iterator<Item = &mut Track> {
        self.track
            .iter_mut()
            .chain(self.next.iter_mut().map(|(track, _)| track))
    }

    pub fn batch(&mut self, batch: &Batch) -> Result<(), String> {
        self.is_open = false;
        self.tracks().try_for_each(|track| track.batch(batch))
    }

    pub fn pages(&mut self, chunks: &[PageChunk]) -> Result<(), String> {
        self.is_open = true;
        self.tracks().try_for_each(|track| track.pages(chunks))
    }

    /// A part begins here: between two batches.
    pub fn part(&mut self, begun: Begun) -> Result<(), String> {
        let gone = "the thread that prepares a part has ended";
        let (directory, identity): (PathBuf, _) = begun.identity.recv().map_err(|_| gone)??;
        let track = Track::begin(&directory, &identity, self.options, begun.guest_time)?;
        self.next = Some((track, begun.whole));
        Ok(())
    }

    /// Goes on with the part that is whole by now, removes what is too much, and asks for the next part when it is due.
    pub fn turn(&mut self) -> Result<(), String> {
        if let Some((_, whole)) = &self.next
            && !self.is_open
        {
            match whole.try_recv() {
                Err(TryRecvError::Empty) => {}
                Ok(Ok(())) => self.switch()?,
                Ok(Err(reason)) => return Err(reason),
                Err(TryRecvError::Disconnected) => return Err("the thread that prepares a part has ended".into()),
            }
        }
        let written = self.log_bytes();
        let Some(reel) = &self.reel else {
            self.tell(written, 0);
            return Ok(());
        };
        let slack = reel.ring.limits().max_bytes.map_or(u64::MAX, |max| max / SLACK);
        if reel.looked.elapsed() >= LOOK || written.saturating_sub(reel.log_bytes) >= slack {
            self.look()?;
        }
        Ok(())
    }

    /// Bytes of the logs that are being written.
    fn log_bytes(&self) -> u64 {
        let next = self.next.iter().map(|(track, _)| track);
        let tracks = self.track.iter().chain(next);
        tracks.map(|track| track.writer.counts().bytes()).sum()
    }

    fn tell(&self, bytes: u64, parts: u64) {
        let gauges = self.status.gauges();
        gauges.recording_bytes.store(bytes, Ordering::Relaxed);
        gauges.recording_parts.store(parts, Ordering::Relaxed);
    }

    fn switch(&mut self) -> Result<(), String> {
        let Some((next, _)) = self.next.take() else {
            return Ok(());
        };
        if let Some(old) = self.track.replace(next) {
            self.sum += old.close(self.status.get().term, true)?;
        }
        if let Some(reel) = &mut self.reel {
            reel.asked = false;
        }
        self.look()
    }

    /// Looks at the ring's files.
    fn look(&mut self) -> Result<(), String> {
        let log_bytes = self.log_bytes();
        let Some(reel) = &mut self.reel else { return Ok(()) };
        (reel.looked, reel.log_bytes) = (Instant::now(), log_bytes);
        let limits = *reel.ring.limits();
        let mut parts = reel.ring.parts().map_err(|error| format!("{error:#}"))?;
        let current = self.track.as_ref().map(|track| track.number);
        let newest = parts.iter().rfind(|part| part.begun.is_some());
        let start_bytes = newest.map_or(0, |part| part.start_bytes);
        let is_due = self.track.as_ref().is_none_or(|track| {
            let share = limits.log_share(start_bytes);
            share.is_some_and(|share| track.writer.counts().bytes() >= share)
                || limits.part_age().is_some_and(|age| track.since.elapsed() >= age)
        });
        // The next start state has its pages on the disk twice for a moment.
        let coming = parts
            .last()
            .filter(|part| part.begun.is_none())
            .map_or(0, |part| part.bytes);
        let is_coming = reel.asked || is_due;
        let start = if is_coming {
            (2 * start_bytes).saturating_sub(coming)
        } else {
            0
        };
        let slack = limits.max_bytes.map_or(0, |max| max / SLACK);
        let needed = current.unwrap_or_else(|| {
            parts
                .iter()
                .find(|part| part.begun.is_none())
                .map_or(u32::MAX, |part| part.number)
        });
        let surplus = limits.surplus(&parts, needed, start + slack, realtime_seconds());
        for part in parts.drain(..surplus) {
            reel.ring.remove(&part).map_err(|error| format!("{error:#}"))?;
        }
        let bytes: u64 = parts.iter().map(|part| part.bytes).sum();
        if limits.max_bytes.is_some_and(|max| bytes > max) {
            return Err(format!(
                "a part's start state takes {start_bytes} bytes, and the ring has no room for two of them with their logs: give \
                 it more than {bytes} bytes"
            ));
        }
        if is_due && !reel.asked {
            reel.asked = true;
            reel.wanted.store(true, Ordering::Release);
        }
        let whole = parts.iter().filter(|part| part.begun.is_some()).count();
        self.tell(bytes, whole as u64);
        Ok(())
    }

    /// Goes on with a part whose start state is on its way to the disk: were it left to itself, it could become whole after
    /// the part before was closed as the last. Where that takes too long it is given up: the part before has everything.
    fn settle(&mut self) -> Result<(), String> {
        self.turn()?;
        if let Some((_, whole)) = &self.next
            && !self.is_open
            && let Ok(Ok(())) = whole.recv_timeout(LAST_WAIT)
        {
            self.switch()?;
        }
        self.next = None;
        Ok(())
    }

    /// Ends it in order.
    pub fn end(&mut self, end: End) -> Result<LogSummary, String> {
        self.settle()?;
        if let Some(track) = self.track.take() {
            self.sum += track.end(end)?;
        }
        Ok(self.sum)
    }

    /// The same with what was handed over last.
    pub fn close(&mut self) -> Result<LogSummary, String> {
        self.settle()?;
        if let Some(track) = self.track.take() {
            self.sum += track.close(self.status.get().term, false)?;
        }
        Ok(self.sum)
    }

    /// Leaves it without an end.
    pub fn leave(&mut self) -> Result<(), String> {
        self.tracks()
            .try_for_each(|track| track.writer.sync().map_err(|error: LogError| error.to_string()))
    }
}
