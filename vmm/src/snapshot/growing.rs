//! A snapshot of a machine that runs: its pages are written as they are copied, again where they change, and its header
//! when the machine's state is known.
//!
//! The header is the file's first frame, so the pages wait in a file of their own beside it.

use std::fs::File;
use std::io::{BufReader, BufWriter, Seek, Write};
use std::path::{Path, PathBuf};

use lockstep_logcodec::PagePacker;
use lockstep_logcodec::frame::{FrameError, FrameReader, FrameWriter, Next};
use lockstep_proto::quantity::PageNumber;
use lockstep_proto::{SnapshotHeader, SnapshotTrailer};
use tempfile::NamedTempFile;

use super::{CHUNK_PAGES, FORMAT, HEADER, PAGES, SnapshotError, TRAILER, digest};
use crate::memory::PAGE_SIZE;

/// Pages that have been copied so far.
pub struct Growing {
    path: PathBuf,
    directory: PathBuf,
    pages: FrameWriter<BufWriter<NamedTempFile>>,
    packer: PagePacker,
    count: u64,
}

impl Growing {
    /// Begins the snapshot at `path`; nothing is there before [`Sealed::write`].
    pub fn begin(path: &Path) -> Result<Self, SnapshotError> {
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = directory.unwrap_or(Path::new(".")).to_owned();
        let temporary = NamedTempFile::new_in(&directory).map_err(SnapshotError::io(path))?;
        let out = BufWriter::with_capacity(1 << 20, temporary);
        Ok(Self {
            pages: FrameWriter::create(out, FORMAT).map_err(SnapshotError::frame(path))?,
            packer: PagePacker::new().map_err(SnapshotError::violation(path))?,
            path: path.to_owned(),
            directory,
            count: 0,
        })
    }

    /// Takes pages, one after the other in `pages`. Those that came before with other contents are replaced; those that
    /// never come are zero.
    pub fn pages(&mut self, frames: &[PageNumber], pages: &[u8]) -> Result<(), SnapshotError> {
        let chunks = frames.chunks(CHUNK_PAGES).zip(pages.chunks(CHUNK_PAGES * PAGE_SIZE));
        for (frames, pages) in chunks {
            let chunk = self
                .packer
                .pack(frames.iter().copied().zip(pages.chunks(PAGE_SIZE)))
                .map_err(SnapshotError::violation(&self.path))?;
            let written = self.pages.write_message(PAGES, &chunk);
            written.map_err(SnapshotError::frame(&self.path))?;
            self.count += frames.len() as u64;
        }
        Ok(())
    }

    /// The machine's state, when all its pages have come. Returns the digest that names the snapshot.
    pub fn seal(self, header: SnapshotHeader, memory_digest: &[u8]) -> ([u8; 16], Sealed) {
        let header = SnapshotHeader {
            pages: self.count,
            ..header
        };
        let name = digest(&header, memory_digest);
        let trailer = SnapshotTrailer {
            memory_digest: memory_digest.to_vec().into(),
        };
        let growing = self;
        (
            name,
            Sealed {
                growing,
                header,
                trailer,
            },
        )
    }
}

/// A snapshot that is complete, and not yet a file.
pub struct Sealed {
    growing: Growing,
    header: SnapshotHeader,
    trailer: SnapshotTrailer,
}

impl Sealed {
    /// Writes the file; it appears whole or not at all, and is on the disk then.
    pub fn write(self) -> Result<(), SnapshotError> {
        let Growing {
            path, directory, pages, ..
        } = self.growing;
        let (io, frame) = (SnapshotError::io(&path), SnapshotError::frame(&path));
        let pages = pages.into_inner().into_inner();
        let mut pages = pages.map_err(|error| io(error.into_error()))?;
        pages.rewind().map_err(&io)?;
        let mut reader =
            FrameReader::open(BufReader::with_capacity(1 << 20, pages.as_file()), FORMAT).map_err(&frame)?;
        reader.set_whole(true);
        let temporary = NamedTempFile::new_in(&directory).map_err(&io)?;
        let file: File = temporary.as_file().try_clone().map_err(&io)?;
        let mut writer = FrameWriter::create(BufWriter::with_capacity(1 << 20, file), FORMAT).map_err(&frame)?;
        writer.write_message(HEADER, &self.header).map_err(&frame)?;
        loop {
            match reader.next().map_err(&frame)? {
                Next::Frame(page) => writer.write(page.kind, page.payload).map_err(&frame)?,
                Next::End => break,
                Next::Torn { .. } => return Err(frame(FrameError::Io(std::io::ErrorKind::UnexpectedEof.into()))),
            };
        }
        writer.write_message(TRAILER, &self.trailer).map_err(&frame)?;
        writer.into_inner().flush().map_err(&io)?;
        temporary.as_file().sync_all().map_err(&io)?;
        temporary.persist(&path).map_err(|error| io(error.error))?;
        Ok(())
    }
}
