//! The recording of a replica: what the primary's log brings is written as it is taken, and parts of the ring begin where
//! the replica stands between two batches.
//!
//! Invariant: a chunk of pages is handed over with its batch, so what goes on from here, live, begins at a boundary.

use std::cell::RefCell;
use std::fs::File;
use std::rc::Rc;
use std::sync::Arc;

use lockstep_logcodec::{Ending, LogError, Record};
use lockstep_node::recording::ring::Ring;
use lockstep_node::recording::subject;
use lockstep_node::start::DiskOption;
use lockstep_node::status::Status;
use lockstep_primary::recorder::{LogOptions, LogThread};
use lockstep_proto::{PageChunk, Tenure};
use lockstep_replay::feed::Source;
use lockstep_replay::replayer::Pause;
use lockstep_replay::{ReplayError, Replayer};
use lockstep_vmm::machine::{Flow, Machine};

use super::source::LiveSource;

/// Where replicas are recorded.
pub struct Recordings {
    /// The ring.
    pub ring: Arc<Ring>,
    /// How its logs are written.
    pub log: LogOptions,
    /// The machine's name and this node's.
    pub tenure: Tenure,
    /// Told how it is.
    pub status: Status,
}

impl Recordings {
    /// Records `machine` from the first part on, which is wanted at once.
    pub fn start(&self, machine: &Machine, host_class: &str, disks: &[DiskOption]) -> Recording {
        let begin = || {
            let images = disks.iter().map(|disk| File::open(&disk.path));
            let images: std::io::Result<Vec<_>> = images.collect();
            let images = images.map_err(|error| format!("a disk image cannot be read: {error}"))?;
            let subject = subject(machine, host_class, Some(self.tenure.clone()));
            let log = LogThread::ring(self.ring.clone(), subject, None, self.log, self.status.clone())?;
            Ok((log, images))
        };
        let (log, images) = match begin() {
            Ok((log, images)) => (Some(log), images),
            Err(reason) => {
                let reason: String = reason;
                self.status.stop_recording(&reason);
                (None, Vec::new())
            }
        };
        Recording {
            log,
            images: Arc::new(images),
            status: self.status.clone(),
        }
    }
}

/// The recording of one replica.
#[derive(Default)]
pub struct Recording {
    log: Option<LogThread>,
    images: Arc<Vec<File>>,
    status: Status,
}

/// Shared by the replica and its log's source, on one thread.
pub type Shared = Rc<RefCell<Recording>>;

impl Recording {
    /// Goes on without a recording that cannot be kept.
    fn recorded(&mut self, kept: Result<(), String>) {
        let Err(reason) = kept else { return };
        self.status.stop_recording(&reason);
        if let Some(log) = self.log.take() {
            log.give_up();
        }
    }

    fn has_errand(&self) -> bool {
        self.log.as_ref().is_some_and(LogThread::has_errand)
    }

    fn errand(&mut self, machine: &mut Machine, replayer: &mut Replayer) -> Result<(), ReplayError> {
        let term = self.status.get().term;
        let Some(log) = &mut self.log else { return Ok(()) };
        let done = log.errand(machine, replayer.disks(), &self.images, term, || ())?;
        self.recorded(done);
        Ok(())
    }

    /// The recording, to go on with the machine where it runs.
    pub fn take(&mut self) -> Option<LogThread> {
        let mut log = self.log.take()?;
        log.begin_again();
        Some(log)
    }

    /// Ends it with what came last.
    pub fn close(&mut self) {
        let closed = self.log.take().map_or(Ok(()), |log| log.close().map(drop));
        self.recorded(closed);
    }
}

/// Replays `machine` to the end of its log.
pub fn replay(machine: &mut Machine, replayer: &mut Replayer, recording: &Shared) -> Result<(), ReplayError> {
    loop {
        let wanted = recording.borrow().has_errand();
        replayer.pause(if wanted { Pause::BatchEnd } else { Pause::Never });
        let flow = machine.step(replayer)?;
        let stands =
            wanted && replayer.guest_ended().is_none() && !replayer.is_at_end() && replayer.is_between_batches(machine);
        if stands {
            recording.borrow_mut().errand(machine, replayer)?;
        }
        if flow == Flow::End && (!stands || !replayer.goes_on(machine)?) {
            return Ok(());
        }
    }
}

/// A log that comes over the link, and is recorded.
pub struct Recorded {
    source: LiveSource,
    recording: Shared,
    /// Those of the batch that comes.
    chunks: Vec<PageChunk>,
}

impl Recorded {
    /// `source`, recorded.
    pub fn new(source: LiveSource, recording: Shared) -> Self {
        Self {
            source,
            recording,
            chunks: Vec::new(),
        }
    }
}

impl Source for Recorded {
    fn next_record(&mut self) -> Result<Option<Record>, LogError> {
        let record = self.source.next_record()?;
        let mut recording = self.recording.borrow_mut();
        if let (Some(record), Some(log)) = (&record, &recording.log) {
            match record {
                Record::Pages(chunk) => self.chunks.push(chunk.clone()),
                Record::Batch(batch) => {
                    let chunks = std::mem::take(&mut self.chunks);
                    let pages = if chunks.is_empty() { Ok(()) } else { log.packed(chunks) };
                    let kept = pages.and_then(|()| log.batch(batch.clone()));
                    recording.recorded(kept);
                }
                Record::End(_) => {}
            }
        }
        Ok(record)
    }

    fn ending(&self) -> Ending {
        self.source.ending()
    }

    fn is_given_up(&mut self) -> bool {
        self.source.is_given_up()
    }
}
