//! The thread that packs and writes the log, so that neither zstd nor a slow disk holds the vCPU up.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender, bounded};
use lockstep_logcodec::{PagePacker, Violation, WriterOptions};
use lockstep_node::copying::Sources;
use lockstep_node::host::disk::Disks;
use lockstep_node::recording::part::{Begun, Preparing};
use lockstep_node::recording::ring::Ring;
use lockstep_node::sandbox::{self, Kind};
use lockstep_node::status::Status;
use lockstep_node::status::pulse::{BEAT, Pulse};
use lockstep_proto::quantity::{GuestTime, PageNumber, Term};
use lockstep_proto::{Batch, End, Identity, PageChunk};
use lockstep_vmm::machine::{Machine, MachineError};
use lockstep_vmm::memory::PAGE_SIZE;

use super::tape::{LOOK, LogSummary, Tape};

/// Items that may wait for the disk; then the vCPU waits. Deltas are the largest, so this bounds memory too.
const QUEUE: usize = 64;
/// Pages in one chunk.
const CHUNK_PAGES: usize = 256;
/// How long the vCPU waits for a disk that takes nothing more: the recording ends before the machine stands still for good.
const PATIENCE: Duration = Duration::from_secs(10);

/// How the log is written.
pub type LogOptions = WriterOptions;

enum Item {
    Batch(Batch),
    Pages(Vec<PageNumber>, Vec<u8>),
    Packed(Vec<PageChunk>),
    Part(Begun),
    End(Box<End>),
    Close,
}

/// The log's writer in a thread of its own.
pub struct LogThread {
    queue: Option<Sender<Item>>,
    thread: Option<JoinHandle<()>>,
    done: Receiver<Result<LogSummary, String>>,
    failure: Arc<Mutex<Option<String>>>,
    parts: Option<Parts>,
    /// Of the thread that hands over what is written.
    vcpu: Pulse,
}

/// The parts of a ring, as the thread that steps the machine sees them.
struct Parts {
    ring: Arc<Ring>,
    /// Who is recorded.
    subject: Identity,
    host_class: String,
    wanted: Arc<AtomicBool>,
    preparing: Option<Preparing>,
}

impl LogThread {
    /// Creates the log in `directory`, and tells its size.
    pub fn start(directory: &Path, identity: &Identity, options: LogOptions, status: Status) -> Result<Self, String> {
        let tape = Tape::single(directory, identity, options, status.clone())?;
        Self::of(tape, None, status)
    }

    /// Records the machine that `subject` tells of into a ring. `first`: a part whose start state is there, and guest time
    /// at its start; without one the recording begins with the first part that [`LogThread::errand`] makes.
    pub fn ring(
        ring: Arc<Ring>,
        subject: Identity,
        first: Option<(&Path, GuestTime)>,
        options: LogOptions,
        status: Status,
    ) -> Result<Self, String> {
        let wanted = Arc::new(AtomicBool::new(false));
        let first = first.map(|(directory, begun)| (directory, &subject, begun));
        let tape = Tape::ring(ring.clone(), wanted.clone(), first, options, status.clone())?;
        let parts = Parts {
            ring,
            host_class: subject.host_class.clone(),
            subject,
            wanted,
            preparing: None,
        };
        Self::of(tape, Some(parts), status)
    }

    fn of(tape: Tape, parts: Option<Parts>, status: Status) -> Result<Self, String> {
        let (queue, items) = bounded(QUEUE);
        let failure = Arc::new(Mutex::new(None));
        let told = failure.clone();
        let (tell, done) = bounded(1);
        let vcpu = status.pulses().vcpu.clone();
        let thread = sandbox::spawn(Kind::Files, "log", move || {
            status.record();
            let result = write_all(tape, &items);
            if let (Err(error), Ok(mut slot)) = (&result, told.lock()) {
                *slot = Some(error.clone());
            }
            // Nobody waits for a log that was left to itself.
            let _ = tell.send(result);
        })
        .map_err(|error| error.to_string())?;
        Ok(Self {
            queue: Some(queue),
            thread: Some(thread),
            done,
            failure,
            parts,
            vcpu,
        })
    }

    /// Hands a batch over.
    pub fn batch(&self, batch: Batch) -> Result<(), String> {
        self.send(Item::Batch(batch))
    }

    /// Hands the pages of the next batch's forced stop over.
    pub fn pages(&self, frames: Vec<PageNumber>, pages: Vec<u8>) -> Result<(), String> {
        self.send(Item::Pages(frames, pages))
    }

    /// The same, packed already.
    pub fn packed(&self, chunks: Vec<PageChunk>) -> Result<(), String> {
        self.send(Item::Packed(chunks))
    }

    fn send(&self, mut item: Item) -> Result<(), String> {
        let Some(queue) = &self.queue else {
            return Err(self.reason());
        };
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            item = match queue.send_timeout(item, BEAT) {
                Ok(()) => return Ok(()),
                Err(SendTimeoutError::Disconnected(_)) => return Err(self.reason()),
                Err(SendTimeoutError::Timeout(item)) => item,
            };
            self.vcpu.beat();
        }
        Err(format!("its disk has taken nothing for {} s", PATIENCE.as_secs()))
    }

    fn reason(&self) -> String {
        let failure = self.failure.lock().ok().and_then(|slot| slot.clone());
        failure.unwrap_or_else(|| "the log thread has ended".into())
    }

    /// Whether a part of the ring wants something of the thread that steps the machine.
    pub fn has_errand(&self) -> bool {
        self.parts.as_ref().is_some_and(|parts| match &parts.preparing {
            Some(preparing) => preparing.is_ready(),
            None => parts.wanted.load(Ordering::Acquire),
        })
    }

    /// Whether that is the start of a part: then the machine has to stand between two batches.
    pub fn is_part_ready(&self) -> bool {
        let preparing = self.parts.as_ref().and_then(|parts| parts.preparing.as_ref());
        preparing.is_some_and(Preparing::is_ready)
    }

    /// Does it, between two steps. `bell` is rung when there is the next thing to do. The inner error is the recording's.
    pub fn errand(
        &mut self,
        machine: &mut Machine,
        disks: &mut Disks,
        images: &Arc<Vec<File>>,
        term: Term,
        bell: impl FnOnce() + Send + 'static,
    ) -> Result<Result<(), String>, MachineError> {
        let Some(parts) = &mut self.parts else {
            return Ok(Ok(()));
        };
        if let Some(preparing) = parts.preparing.take_if(|preparing| preparing.is_ready()) {
            let begun = preparing.start(machine, &parts.host_class, term, &self.vcpu)?;
            return Ok(begun.and_then(|begun| self.send(Item::Part(begun))));
        }
        if parts.wanted.swap(false, Ordering::AcqRel) {
            let sources = Sources::of(machine, disks, images);
            let begun =
                sources.and_then(|sources| Preparing::begin(parts.ring.clone(), parts.subject.clone(), sources, bell));
            match begun {
                Ok(preparing) => parts.preparing = Some(preparing),
                Err(error) => return Ok(Err(format!("a part cannot be prepared: {error}"))),
            }
        }
        Ok(Ok(()))
    }

    /// What is being prepared is of a machine whose disks are no longer watched: it is given up, and begun again.
    pub fn begin_again(&mut self) {
        if let Some(parts) = &mut self.parts
            && parts.preparing.take().is_some()
        {
            parts.wanted.store(true, Ordering::Release);
        }
    }

    /// Writes the end and waits until all is on the disk.
    pub fn finish(self, end: End) -> Result<LogSummary, String> {
        self.finish_with(Item::End(Box::new(end)), None)
    }

    /// The same, where nobody knows more of the end than what was handed over, and nobody has time for a disk that hangs.
    pub fn close(self) -> Result<LogSummary, String> {
        self.finish_with(Item::Close, Some(PATIENCE))
    }

    fn finish_with(mut self, item: Item, limit: Option<Duration>) -> Result<LogSummary, String> {
        let sent = self.send(item);
        self.queue = None;
        // One that takes no end may not come to one.
        let limit = if sent.is_err() { Some(PATIENCE) } else { limit };
        let result = match limit {
            None => self.done.recv().map_err(RecvTimeoutError::from),
            Some(limit) => self.done.recv_timeout(limit),
        };
        match result {
            Ok(result) => result.and_then(|summary| sent.map(|()| summary)),
            Err(RecvTimeoutError::Disconnected) => Err("the log thread panicked".into()),
            Err(RecvTimeoutError::Timeout) => {
                self.thread = None;
                Err("its disk does not take its end".into())
            }
        }
    }

    /// Leaves it to itself: nobody waits for a disk that has failed.
    pub fn give_up(mut self) {
        self.thread = None;
    }
}

impl Drop for LogThread {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The pages of a delta as chunks.
fn pack_delta(frames: &[PageNumber], pages: &[u8]) -> Result<Vec<PageChunk>, Violation> {
    let mut packer = PagePacker::new()?;
    frames
        .chunks(CHUNK_PAGES)
        .zip(pages.chunks(CHUNK_PAGES * PAGE_SIZE))
        .map(|(frames, pages)| packer.pack(frames.iter().copied().zip(pages.chunks(PAGE_SIZE))))
        .collect()
}

fn write_all(mut tape: Tape, items: &Receiver<Item>) -> Result<LogSummary, String> {
    loop {
        let item = if tape.is_ring() {
            items.recv_timeout(LOOK)
        } else {
            items.recv().map_err(RecvTimeoutError::from)
        };
        match item {
            Ok(Item::Batch(batch)) => tape.batch(&batch)?,
            Ok(Item::Pages(frames, pages)) => {
                tape.pages(&pack_delta(&frames, &pages).map_err(|error| error.to_string())?)?;
            }
            Ok(Item::Packed(chunks)) => tape.pages(&chunks)?,
            Ok(Item::Part(begun)) => tape.part(begun)?,
            Ok(Item::End(end)) => return tape.end(*end),
            Ok(Item::Close) => return tape.close(),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                tape.leave()?;
                return Ok(LogSummary::default());
            }
        }
        tape.turn()?;
    }
}
