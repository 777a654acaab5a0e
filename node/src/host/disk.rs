//! Disk threads: one for each disk, requests in the order of their submission.
//!
//! One thread and one queue for each disk serialize overlapping requests, so that an image's content is a function of
//! the requests alone. Recorder and replayer use the same threads; they differ in who says when a request completes.

use std::collections::{HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use lockstep_vmm::devices::{DiskOp, DiskRequest};

use super::chunks::{CHUNK, ChunkWatch};
use super::image::{Image, ReadAt, SECTOR};
use super::inbox::Bell;
use crate::sandbox::{self, Kind};

/// Status bytes of virtio 1.2, section 5.2.6.
const OK: u8 = 0;
/// See above.
pub const IO_ERROR: u8 = 1;
/// Requests in flight on one disk: the queue's size is the device's, which is smaller.
const QUEUE: usize = 1024;

/// A finished request.
#[derive(Clone, Debug)]
pub struct Done {
    /// The disk.
    pub disk: u32,
    /// The request's number.
    pub request: u64,
    /// Its status.
    pub status: u8,
    /// What a read brought.
    pub data: Option<Vec<u8>>,
}

impl Done {
    /// Whether this host's image did not do what was asked.
    pub fn failed(&self) -> bool {
        self.status != OK
    }
}

/// All disks of a machine.
pub struct Disks {
    queues: Vec<Sender<DiskRequest>>,
    images: Vec<Arc<Mutex<Image>>>,
    finished: Receiver<Done>,
    /// Submitted, and not yet taken by a turn.
    submitted: HashSet<(u32, u64)>,
    /// Finished, and not yet taken by a turn.
    waiting: HashMap<(u32, u64), Done>,
    /// Chunks that each outstanding request writes, while somebody copies the disks.
    watches: Vec<Watching>,
    threads: Vec<JoinHandle<()>>,
}

impl Disks {
    /// Disks that somebody else serves: who has the other ends of these. They have no images.
    pub fn served(queues: Vec<Sender<DiskRequest>>, finished: Receiver<Done>) -> Self {
        Self {
            queues,
            images: Vec::new(),
            finished,
            submitted: HashSet::new(),
            waiting: HashMap::new(),
            watches: Vec::new(),
            threads: Vec::new(),
        }
    }

    /// Starts a thread for each image; `bell` is rung when a request finishes.
    pub fn start(images: Vec<Image>, bell: Option<&Bell>) -> io::Result<Self> {
        let (done, finished) = unbounded();
        let mut queues = Vec::new();
        let mut threads = Vec::new();
        let images: Vec<_> = images.into_iter().map(|image| Arc::new(Mutex::new(image))).collect();
        for (disk, image) in images.iter().cloned().enumerate() {
            let (queue, requests) = bounded(QUEUE);
            queues.push(queue);
            let (done, bell) = (done.clone(), bell.cloned());
            let thread = sandbox::spawn(Kind::Disk, &format!("disk-{disk}"), move || {
                serve(disk as u32, &image, &requests, &done, bell.as_ref());
            })?;
            threads.push(thread);
        }
        let mut disks = Self::served(queues, finished);
        (disks.images, disks.threads) = (images, threads);
        Ok(disks)
    }

    /// From now on, tells `watch` which chunks finished requests wrote, until it is dropped. What is outstanding now may
    /// have been made before: it counts as a write to any place.
    pub fn start_watch(&mut self, watch: &Arc<ChunkWatch>) {
        let earlier = self.submitted.iter().copied().collect();
        self.watches.push(Watching {
            watch: Arc::downgrade(watch),
            writes: HashMap::new(),
            earlier,
        });
    }

    /// Queues a request.
    pub fn submit(&mut self, request: DiskRequest) -> io::Result<()> {
        self.watches.retain(|watching| watching.watch.strong_count() > 0);
        for watching in &mut self.watches {
            watching.submitted(&request);
        }
        let queue = self.queues.get(request.disk as usize);
        let queue = queue.ok_or_else(|| io::Error::other(format!("disk {} does not exist", request.disk)))?;
        self.submitted.insert((request.disk, request.request));
        queue
            .send(request)
            .map_err(|_| io::Error::other("the disk thread has ended"))
    }

    /// The next request that has finished, if any: for the recorder, which logs it.
    pub fn poll(&mut self) -> Option<(u32, u64, u8)> {
        let done = self.finished.try_recv().ok()?;
        let key = (done.disk, done.request);
        let status = done.status;
        self.waiting.insert(key, done);
        Some((key.0, key.1, status))
    }

    /// Takes a finished request's data and status; waits for this replica's own I/O.
    pub fn take(&mut self, disk: u32, request: u64) -> io::Result<Done> {
        if !self.submitted.remove(&(disk, request)) {
            return Err(io::Error::other(format!(
                "request {request} of disk {disk} was not made on this side"
            )));
        }
        for watching in &mut self.watches {
            watching.finished(disk, request);
        }
        loop {
            if let Some(done) = self.waiting.remove(&(disk, request)) {
                return Ok(done);
            }
            let done = self
                .finished
                .recv()
                .map_err(|_| io::Error::other("the disk threads have ended"))?;
            self.waiting.insert((done.disk, done.request), done);
        }
    }
}

/// The requests that were outstanding at some moment, all of them done.
#[derive(Clone, Debug, Default)]
pub struct Outstanding(Vec<Done>);

impl Outstanding {
    /// Bytes that are kept.
    pub fn bytes(&self) -> usize {
        let data = |done: &Done| done.data.as_ref().map_or(0, Vec::len);
        self.0.iter().map(|done| size_of::<Done>() + data(done)).sum()
    }
}

/// For time travel: a replay's disks stand still between two requests, and go back to what they were.
impl Disks {
    /// Waits until everything that was submitted is done, though not taken.
    pub fn settle(&mut self) -> io::Result<Outstanding> {
        while self.waiting.len() < self.submitted.len() {
            let done = self.finished.recv();
            let done = done.map_err(|_| io::Error::other("the disk threads have ended"))?;
            self.waiting.insert((done.disk, done.request), done);
        }
        Ok(Outstanding(self.waiting.values().cloned().collect()))
    }

    /// Replaces what is outstanding. The disks must be settled.
    pub fn set_outstanding(&mut self, outstanding: &Outstanding) {
        let entries = outstanding
            .0
            .iter()
            .map(|done| ((done.disk, done.request), done.clone()));
        self.waiting = entries.collect();
        self.submitted = self.waiting.keys().copied().collect();
    }

    /// How many disks there are.
    pub fn count(&self) -> usize {
        self.images.len()
    }

    /// A disk to read, from any thread. The disks must be settled, and nothing is submitted while it is read.
    pub fn shared(&self, disk: usize) -> Option<SharedImage> {
        self.images.get(disk).cloned().map(SharedImage)
    }

    /// A disk's image. The disks must be settled, and nothing is submitted while it is held.
    pub fn image(&self, disk: usize) -> Option<MutexGuard<'_, Image>> {
        self.images.get(disk).map(|image| lock(image))
    }
}

/// A disk's image that others have, too.
pub struct SharedImage(Arc<Mutex<Image>>);

impl ReadAt for SharedImage {
    fn size(&self) -> io::Result<u64> {
        lock(&self.0).bytes()
    }

    fn fill_at(&self, at: u64, data: &mut [u8]) -> io::Result<()> {
        lock(&self.0).read_at(at, data)
    }
}

/// The bytes of a disk that a request writes.
pub fn written_by(op: &DiskOp) -> Option<Range<u64>> {
    let (sector, bytes) = match op {
        DiskOp::Write { sector, data } => (*sector, data.len() as u64),
        DiskOp::Discard { sector, sectors } | DiskOp::WriteZeroes { sector, sectors, .. } => {
            (*sector, u64::from(*sectors) * SECTOR)
        }
        DiskOp::Read { .. } | DiskOp::Flush => return None,
    };
    let start = sector * SECTOR;
    (bytes > 0).then_some(start..start + bytes)
}

/// A watch and the writes that it will be told of.
struct Watching {
    watch: Weak<ChunkWatch>,
    writes: HashMap<(u32, u64), Range<u64>>,
    earlier: HashSet<(u32, u64)>,
}

impl Watching {
    fn submitted(&mut self, request: &DiskRequest) {
        if let Some(bytes) = written_by(&request.op) {
            let chunks = bytes.start / CHUNK..bytes.end.div_ceil(CHUNK);
            self.writes.insert((request.disk, request.request), chunks);
        }
    }

    /// A write is told of when it has been done: a copy that was made meanwhile may hold a part of it.
    fn finished(&mut self, disk: u32, request: u64) {
        let Some(watch) = self.watch.upgrade() else { return };
        if let Some(chunks) = self.writes.remove(&(disk, request)) {
            watch.mark(disk, chunks);
        }
        if self.earlier.remove(&(disk, request)) {
            watch.mark_all(disk);
        }
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        self.queues.clear();
        for thread in self.threads.drain(..) {
            // A panic there has been printed by its own thread.
            let _ = thread.join();
        }
    }
}

/// An image; a thread that panicked in the middle of a request has been told of by its own message.
fn lock(image: &Mutex<Image>) -> MutexGuard<'_, Image> {
    image.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(disk: u32, image: &Mutex<Image>, requests: &Receiver<DiskRequest>, done: &Sender<Done>, bell: Option<&Bell>) {
    for request in requests {
        let (status, data) = match lock(image).execute(&request.op) {
            Ok(data) => (OK, data),
            Err(error) => {
                tracing::error!(disk, request = request.request, %error, "disk request failed");
                (IO_ERROR, None)
            }
        };
        if done
            .send(Done {
                disk,
                request: request.request,
                status,
                data,
            })
            .is_err()
        {
            return;
        }
        if let Some(bell) = bell {
            bell.ring();
        }
    }
}
