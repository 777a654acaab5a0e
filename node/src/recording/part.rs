//! How a part begins: memory and disks are copied while the machine runs, and it starts where the machine stands when
//! little is missing.
//!
//! The part's log begins there too. Until the start state is on the disk the part before goes on being written: whenever
//! the process is killed, one of the two has everything.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use crossbeam_channel::{Receiver, Sender, bounded};
use lockstep_proto::Identity;
use lockstep_proto::quantity::{GuestTime, PageIndex, Term};
use lockstep_vmm::machine::{Machine, MachineError};
use lockstep_vmm::memory::PAGE_SIZE;
use lockstep_vmm::snapshot::{Growing, Sealed};

use super::ring::{Ring, remove};
use super::{start_disk, start_snapshot};
use crate::copying::{Copier, Rest, Sources, copy};
use crate::host::chunks::{CHUNK, Piece, read_chunks};
use crate::host::digests::{Digests, chunk_digest};
use crate::host::holes::punch;
use crate::host::size::{allocated, bytes_of};
use crate::sandbox::{self, Kind};
use crate::start::realtime_seconds;
use crate::status::pulse::Pulse;

/// Pages that are written at once.
const CHUNK_PAGES: usize = 256;

/// Where a part starts, and in which term.
struct Start {
    rest: Rest,
    term: Term,
}

/// A part that is being prepared, as the thread that steps the machine sees it. Dropped, it is given up.
pub struct Preparing {
    sources: Arc<Sources>,
    ready: Receiver<Result<(), String>>,
    start: Sender<Start>,
    begun: Begun,
}

/// A part that has begun, as the log's thread sees it. Dropped before it is whole, it is given up.
pub struct Begun {
    /// Its directory, and who is recorded.
    pub identity: Receiver<Result<(PathBuf, Identity), String>>,
    /// Told when its start state is on the disk.
    pub whole: Receiver<Result<(), String>>,
    /// Guest time where it starts, in nanoseconds.
    pub guest_time: GuestTime,
}

impl Preparing {
    /// Begins to copy. `subject` says who is recorded; `bell` is rung when the machine's state is wanted.
    pub fn begin(
        ring: Arc<Ring>,
        subject: Identity,
        sources: Sources,
        bell: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let sources = Arc::new(sources);
        let (tell_ready, ready) = bounded(1);
        let (start, starts) = bounded(1);
        let (tell_identity, identity) = bounded(1);
        let (tell_whole, whole) = bounded(1);
        let copied = sources.clone();
        let work = move || {
            let prepared = Prepared::begin(&ring, &copied).and_then(|mut prepared| {
                copy(&copied, &mut prepared)?;
                Ok(prepared)
            });
            drop(copied);
            let told = tell_ready.send(prepared.as_ref().map(drop).map_err(in_words));
            bell();
            let (Ok(()), Ok(prepared), Ok(start)) = (told, prepared, starts.recv()) else {
                return;
            };
            match prepared.seal(subject, start) {
                Err(error) => drop(tell_identity.send(Err(in_words(&error)))),
                Ok((identity, sealed)) => {
                    let directory = sealed.directory.0.clone();
                    if tell_identity.send(Ok((directory.clone(), identity))).is_err() {
                        return;
                    }
                    let written = sealed.write().map_err(|error| in_words(&error));
                    if tell_whole.send(written).is_err() {
                        drop(Unfinished(directory));
                    }
                }
            }
        };
        sandbox::spawn(Kind::Files, "part", work)?;
        let begun = Begun {
            identity,
            whole,
            guest_time: GuestTime::ZERO,
        };
        Ok(Self {
            sources,
            ready,
            start,
            begun,
        })
    }

    /// Whether only the pause is missing, or the preparation has failed.
    pub fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Lets the part start where `machine` stands: between two steps, and between two batches; its thread's pulse beats
    /// meanwhile. The inner error is the recording's.
    pub fn start(
        self,
        machine: &mut Machine,
        host_class: &str,
        term: Term,
        vcpu: &Pulse,
    ) -> Result<Result<Begun, String>, MachineError> {
        match self.ready.recv() {
            Ok(Ok(())) => {}
            Ok(Err(reason)) => return Ok(Err(reason)),
            Err(_) => return Ok(Err("the thread that prepares a part has ended".into())),
        }
        let rest = match Rest::of(machine, host_class, &self.sources, vcpu)? {
            Ok(rest) => rest,
            Err(error) => return Ok(Err(format!("a disk image cannot be read: {error}"))),
        };
        tracing::debug!(
            pages = rest.transfer.frames.len(),
            chunks = rest.chunks.len(),
            "a part begins"
        );
        // A thread that is gone is told of by its channels.
        let _ = self.start.send(Start { rest, term });
        Ok(Ok(Begun {
            guest_time: machine.now(),
            ..self.begun
        }))
    }
}

fn in_words(error: &anyhow::Error) -> String {
    format!("{error:#}")
}

/// A part's directory, removed when it is dropped.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.0) {
            tracing::warn!("{error:#}; the next start removes it");
        }
    }
}

/// A disk's copy, and the digests of its chunks.
struct DiskCopy {
    file: Arc<File>,
    digests: Digests,
    /// It shares the image's blocks as they were when the copying began.
    is_clone: bool,
}

impl DiskCopy {
    fn of(image: &File, to: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(to)?;
        let bytes = bytes_of(image)?;
        let is_clone = rustix::fs::ioctl_ficlone(&file, image).is_ok();
        file.set_len(bytes)?;
        Ok(Self {
            file: Arc::new(file),
            digests: Digests::new(bytes.div_ceil(CHUNK)),
            is_clone,
        })
    }

    /// `is_whole`: it has what the image had when the copying began. `is_blank`: it has nothing here yet.
    fn take(&mut self, piece: &Piece, is_whole: bool, is_blank: bool) -> io::Result<()> {
        match piece {
            Piece::Holes(chunks) => {
                self.digests.set_zeroes(chunks.clone());
                if is_whole || is_blank {
                    return Ok(());
                }
                zero(&self.file, chunks)
            }
            Piece::Data(chunk, data) => {
                self.digests.set(*chunk, chunk_digest(data));
                if is_whole || (is_blank && data.iter().all(|&byte| byte == 0)) {
                    return Ok(());
                }
                self.file.write_all_at(data, chunk * CHUNK)
            }
        }
    }
}

/// Makes these chunks read as zeroes: holes, where the file system can.
fn zero(file: &File, chunks: &Range<u64>) -> io::Result<()> {
    if punch(file, chunks.start * CHUNK, (chunks.end - chunks.start) * CHUNK).is_ok() {
        return Ok(());
    }
    let zeroes = vec![0; CHUNK as usize];
    let mut chunks = chunks.clone();
    chunks.try_for_each(|chunk| file.write_all_at(&zeroes, chunk * CHUNK))
}

/// A start state, as far as it has been copied.
struct Prepared {
    growing: Growing,
    disks: Vec<DiskCopy>,
    number: u32,
    // Goes last: files are closed before their directory goes.
    directory: Unfinished,
}

impl Prepared {
    fn begin(ring: &Ring, sources: &Sources) -> Result<Self> {
        let on_disk = sources.images.iter().map(|image| allocated(image).unwrap_or(0));
        ring.make_room(on_disk.sum(), None)?;
        let (number, directory) = ring.make_next()?;
        let directory = Unfinished(directory);
        let growing = Growing::begin(&start_snapshot(&directory.0))?;
        let disks = sources.images.iter().enumerate().map(|(disk, image)| {
            let path = start_disk(&directory.0, disk);
            DiskCopy::of(image, &path).with_context(|| format!("cannot write {}", path.display()))
        });
        Ok(Self {
            growing,
            disks: disks.collect::<Result<_>>()?,
            number,
            directory,
        })
    }

    fn seal(mut self, subject: Identity, start: Start) -> Result<(Identity, SealedPart)> {
        let Rest {
            transfer,
            pages,
            chunks,
        } = start.rest;
        self.growing.pages(&transfer.frames, &pages)?;
        for (disk, piece) in chunks {
            self.take_piece(disk, &piece, false)?;
        }
        let (stop, chain) = (transfer.header.stop, transfer.header.chain.clone());
        let (start_digest, sealed) = self.growing.seal(transfer.header, &transfer.memory_digest);
        let disks = self.disks.iter();
        let identity = Identity {
            created: realtime_seconds(),
            disk_digests: disks.map(|disk| disk.digests.total().to_vec().into()).collect(),
            disk_digest_chunk: CHUNK as u32,
            start_digest: start_digest.to_vec().into(),
            start_stop: stop,
            start_chain: chain,
            part: self.number,
            // The subject is that of the first part, which does.
            from_start: false,
            tenure: subject.tenure.clone().map(|tenure| lockstep_proto::Tenure {
                term: start.term.get(),
                ..tenure
            }),
            ..subject
        };
        let sealed = SealedPart {
            sealed,
            disks: self.disks.into_iter().map(|disk| disk.file).collect(),
            directory: self.directory,
        };
        Ok((identity, sealed))
    }

    fn take_piece(&mut self, disk: u32, piece: &Piece, first: bool) -> Result<()> {
        let copy = self.disks.get_mut(disk as usize).context("there is no such disk")?;
        copy.take(piece, first && copy.is_clone, first).with_context(|| {
            format!(
                "cannot write {}",
                start_disk(&self.directory.0, disk as usize).display()
            )
        })
    }
}

impl Copier for Prepared {
    type Error = anyhow::Error;

    fn pages(&mut self, sources: &Sources, indices: &[PageIndex], first: bool) -> Result<()> {
        let mut page = [0; PAGE_SIZE];
        let mut frames = Vec::with_capacity(CHUNK_PAGES);
        let mut pages = Vec::with_capacity(CHUNK_PAGES * PAGE_SIZE);
        for indices in indices.chunks(CHUNK_PAGES) {
            frames.clear();
            pages.clear();
            for index in indices {
                let frame = sources.memory.frame(*index);
                sources.memory.read_page(frame, &mut page);
                // What never comes is zero.
                if !first || page.iter().any(|&byte| byte != 0) {
                    frames.push(frame);
                    pages.extend_from_slice(&page);
                }
            }
            self.growing.pages(&frames, &pages)?;
        }
        Ok(())
    }

    fn chunks(&mut self, sources: &Sources, runs: &[(u32, Range<u64>)], first: bool) -> Result<()> {
        for (disk, run) in runs {
            let copy = self.disks.get(*disk as usize).context("there is no such disk")?;
            let clone = (first && copy.is_clone).then(|| copy.file.clone());
            let image = clone.as_deref().unwrap_or(&sources.images[*disk as usize]);
            let cannot_be_read = || format!("disk {disk} cannot be read");
            for piece in read_chunks(image, run.clone()).with_context(cannot_be_read)? {
                self.take_piece(*disk, &piece.with_context(cannot_be_read)?, first)?;
            }
        }
        Ok(())
    }
}

/// A start state that is complete, and not yet on the disk.
struct SealedPart {
    sealed: Sealed,
    disks: Vec<Arc<File>>,
    directory: Unfinished,
}

impl SealedPart {
    /// The snapshot gets its name last.
    fn write(self) -> Result<()> {
        for disk in &self.disks {
            disk.sync_all().context("cannot write a disk's start state")?;
        }
        self.sealed.write()?;
        File::open(&self.directory.0).and_then(|directory| directory.sync_all())?;
        // It is finished.
        std::mem::forget(self.directory);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
