//! Snapshots: a machine at a completed stop, in a file; restored in another process it goes on bit for bit.
//!
//! The file uses the log's framing (magic, version, bounded lengths, CRC32C; docs/log-format.md): a header, chunks of the
//! pages that are not zero, a trailer with the digest of all memory.

mod growing;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use lockstep_logcodec::frame::{Format, FrameError, FrameReader, FrameWriter, Next};
use lockstep_logcodec::{PagePacker, unpack_pages};
use lockstep_proto::quantity::{GuestTime, PageNumber, StopNumber};
use lockstep_proto::{MachineConfig, PageChunk, SnapshotHeader, SnapshotTrailer};
use prost::Message;
use thiserror::Error;
use xxhash_rust::xxh3::Xxh3;

use crate::devices::Devices;
use crate::machine::{Chain, Machine, MachineError};
use crate::memory::{Memory, PAGE_SIZE, Page};

pub use growing::{Growing, Sealed};

/// Snapshot files. A header with device state is far below the bound; a chunk holds at most 1 MiB of pages.
const FORMAT: Format = Format {
    magic: *b"LOCKSNAP",
    version: 1,
    min_version: 1,
    max_payload: 16 << 20,
};
const HEADER: u32 = 1;
const PAGES: u32 = 2;
const TRAILER: u32 = 3;
const CHUNK_PAGES: usize = 256;

/// What can go wrong with a snapshot.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// The file cannot be read or written.
    #[error("snapshot {path}: {cause}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
    /// The framing is wrong.
    #[error("snapshot {path}: {cause}")]
    Frame {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: FrameError,
    },
    /// The content is wrong.
    #[error("snapshot {path} is damaged: {what}; make a new one, or restore the file from a copy")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Another class of host.
    #[error("snapshot {path} is of a host of class `{wanted}` and this host is `{have}`: use a host of the same class")]
    HostClass {
        /// The file.
        path: PathBuf,
        /// As saved.
        wanted: String,
        /// This host's.
        have: String,
    },
    /// The machine cannot be built.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

impl SnapshotError {
    fn io(path: &Path) -> impl Fn(io::Error) -> Self + use<'_> {
        move |cause| Self::Io {
            path: path.into(),
            cause,
        }
    }

    fn frame(path: &Path) -> impl Fn(FrameError) -> Self + use<'_> {
        move |cause| Self::Frame {
            path: path.into(),
            cause,
        }
    }

    fn violation(path: &Path) -> impl Fn(lockstep_logcodec::Violation) -> Self + use<'_> {
        move |what| Self::Damaged {
            path: path.into(),
            what: what.to_string(),
        }
    }
}

/// What names a snapshot: the digest of its header and of all memory.
fn digest(header: &SnapshotHeader, memory: &[u8]) -> [u8; 16] {
    let mut hasher = Xxh3::new();
    hasher.update(&header.encode_to_vec());
    hasher.update(memory);
    hasher.digest128().to_be_bytes()
}

/// Saves a machine that stands between two steps. The file appears whole or not at all. Returns the digest that names it.
pub fn save(machine: &Machine, host_class: &str, path: &Path) -> Result<[u8; 16], SnapshotError> {
    let (io, frame, damaged) = (
        SnapshotError::io(path),
        SnapshotError::frame(path),
        SnapshotError::violation(path),
    );
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let temporary = tempfile::NamedTempFile::new_in(directory).map_err(&io)?;
    let file = temporary.as_file().try_clone().map_err(&io)?;
    let out = BufWriter::with_capacity(1 << 20, file);
    let mut writer = FrameWriter::create(out, FORMAT).map_err(&frame)?;
    let memory = machine.memory();
    let frames = used_frames(memory);
    let header = SnapshotHeader {
        pages: frames.len() as u64,
        ..machine.header(host_class)?
    };
    writer.write_message(HEADER, &header).map_err(&frame)?;
    let mut packer = PagePacker::new().map_err(&damaged)?;
    let mut buffer = vec![[0; PAGE_SIZE]; CHUNK_PAGES];
    for frames in frames.chunks(CHUNK_PAGES) {
        for (frame, page) in frames.iter().zip(&mut buffer) {
            memory.read_page(*frame, page);
        }
        let pages = frames
            .iter()
            .copied()
            .zip(buffer.iter().map(<[u8; PAGE_SIZE]>::as_slice));
        writer
            .write_message(PAGES, &packer.pack(pages).map_err(&damaged)?)
            .map_err(&frame)?;
    }
    let memory_digest = machine.full_memory_digest();
    let trailer = SnapshotTrailer {
        memory_digest: memory_digest.to_vec().into(),
    };
    writer.write_message(TRAILER, &trailer).map_err(&frame)?;
    writer.into_inner().flush().map_err(&io)?;
    temporary.as_file().sync_all().map_err(&io)?;
    temporary.persist(path).map_err(|error| io(error.error))?;
    Ok(digest(&header, &memory_digest))
}

fn used_frames(memory: &Memory) -> Vec<PageNumber> {
    let mut page: Page = [0; PAGE_SIZE];
    memory
        .indices()
        .map(|index| memory.frame(index))
        .filter(|frame| {
            memory.read_page(*frame, &mut page);
            page.iter().any(|&byte| byte != 0)
        })
        .collect()
}

/// A snapshot file that is being restored: the header is known, the memory is not yet read.
pub struct Restore {
    path: PathBuf,
    reader: FrameReader<File>,
    header: SnapshotHeader,
}

impl Restore {
    /// Opens a snapshot and reads its header.
    pub fn open(path: &Path) -> Result<Self, SnapshotError> {
        let file = File::open(path).map_err(|cause| SnapshotError::Io {
            path: path.into(),
            cause,
        })?;
        let mut reader = FrameReader::open(file, FORMAT).map_err(|cause| SnapshotError::Frame {
            path: path.into(),
            cause,
        })?;
        reader.set_whole(true);
        let header = next(&mut reader, path, HEADER)?;
        Ok(Self {
            path: path.into(),
            reader,
            header,
        })
    }

    /// What the machine is built from.
    pub fn config(&self) -> Option<&MachineConfig> {
        self.header.machine.as_ref()
    }

    /// The class of the host that saved it.
    pub fn host_class(&self) -> &str {
        &self.header.host_class
    }

    /// Guest time when it was saved, in nanoseconds.
    pub fn guest_ns(&self) -> u64 {
        self.header.guest_ns
    }

    /// The names of pairs' machines that it is a fork of, as [`Machine::forked_from`].
    pub fn forked_from(&self) -> &[String] {
        &self.header.forked_from
    }

    /// Builds the machine. Returns it with the digest that names the snapshot.
    pub fn finish(mut self, host_class: &str) -> Result<(Machine, [u8; 16]), SnapshotError> {
        let path = self.path.clone();
        let damaged = |what: &str| SnapshotError::Damaged {
            path: path.clone(),
            what: what.into(),
        };
        if self.header.host_class != host_class {
            return Err(SnapshotError::HostClass {
                path: path.clone(),
                wanted: self.header.host_class.clone(),
                have: host_class.into(),
            });
        }
        let config = self
            .header
            .machine
            .as_ref()
            .ok_or_else(|| damaged("it has no machine configuration"))?;
        let memory = Memory::new(config.memory_bytes).map_err(MachineError::from)?;
        let limit = memory.end();
        let mut rest = self.header.pages;
        while rest > 0 {
            let chunk: PageChunk = next(&mut self.reader, &path, PAGES)?;
            let pages = unpack_pages(&chunk, limit).map_err(|violation| damaged(&violation.to_string()))?;
            rest = rest
                .checked_sub(pages.len() as u64)
                .ok_or_else(|| damaged("it has more pages than it says"))?;
            for (frame, page) in pages.iter() {
                memory.write_page(frame, page).map_err(MachineError::from)?;
            }
        }
        let trailer: SnapshotTrailer = next(&mut self.reader, &path, TRAILER)?;
        match self.reader.next() {
            Ok(Next::End) => {}
            _ => return Err(damaged("something follows its end")),
        }
        let machine =
            build(&self.header, memory, &trailer.memory_digest).map_err(|error| error.into_snapshot_error(&path))?;
        Ok((machine, digest(&self.header, &trailer.memory_digest)))
    }
}

/// Why a header and memory do not make a machine.
#[derive(Debug, Error)]
pub enum BuildError {
    /// Something in it is wrong.
    #[error("the machine's state is damaged: {0}")]
    Damaged(&'static str),
    /// It cannot be built here.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

impl BuildError {
    fn into_snapshot_error(self, path: &Path) -> SnapshotError {
        match self {
            Self::Damaged(what) => SnapshotError::Damaged {
                path: path.into(),
                what: what.into(),
            },
            Self::Machine(error) => error.into(),
        }
    }
}

/// The machine that `header` tells of, around `memory`, which must have the digest `memory_digest`.
pub fn build(header: &SnapshotHeader, memory: Memory, memory_digest: &[u8]) -> Result<Machine, BuildError> {
    let damaged = BuildError::Damaged;
    let config = header.machine.clone();
    let config = config.ok_or(damaged("it has no machine configuration"))?;
    let vcpu = header.vcpu.as_ref().ok_or(damaged("it has no vCPU state"))?;
    let chain = Chain::from_bytes(&header.chain).ok_or(damaged("its chain has the wrong length"))?;
    if memory.bytes() != config.memory_bytes {
        return Err(damaged("it has another size of memory than it says"));
    }
    let devices = Devices::restore(&config, &header.devices).map_err(MachineError::from)?;
    let mut machine = Machine::assemble(config, memory, devices)?;
    machine.set_vcpu_state(vcpu)?;
    machine.set_position(GuestTime::from_ns(header.guest_ns), StopNumber::new(header.stop), chain);
    machine.set_halted(header.halted);
    machine.set_forked_from(&header.forked_from);
    if *memory_digest != machine.full_memory_digest()[..] {
        return Err(damaged("guest memory has another digest than was saved"));
    }
    Ok(machine)
}

fn next<M: Message + Default>(reader: &mut FrameReader<File>, path: &Path, kind: u32) -> Result<M, SnapshotError> {
    let damaged = |what: String| SnapshotError::Damaged {
        path: path.into(),
        what,
    };
    match reader.next().map_err(|cause| SnapshotError::Frame {
        path: path.into(),
        cause,
    })? {
        Next::Frame(frame) if frame.kind == kind => {
            M::decode(frame.payload).map_err(|error| damaged(format!("at offset {}: {error}", frame.offset)))
        }
        Next::Frame(frame) => Err(damaged(format!(
            "kind {} at offset {} where kind {kind} belongs",
            frame.kind, frame.offset
        ))),
        Next::End | Next::Torn { .. } => Err(damaged("it ends too early".into())),
    }
}
