//! The end of a file that is being written, of which only whole frames are ever left.
//!
//! Writes are gathered and each one (a frame) is kept or dropped as a whole: where the system takes only a part (the disk
//! is full), the file is cut back to the last whole frame.

use std::fs::File;
use std::io::{self, Write};

/// What is needed of a file; tests have one that fails.
pub(crate) trait LogFile: Write {
    fn set_len(&mut self, bytes: u64) -> io::Result<()>;
    fn sync(&mut self) -> io::Result<()>;
}

impl LogFile for File {
    fn set_len(&mut self, bytes: u64) -> io::Result<()> {
        File::set_len(self, bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

#[derive(Debug)]
pub(crate) struct Tail<F: LogFile> {
    file: F,
    /// Frames not yet handed to the system.
    pending: Vec<u8>,
    /// Where each of them ends in `pending`.
    ends: Vec<usize>,
    /// Bytes in the file: whole frames.
    written: u64,
    /// `pending` is handed on when it has this many bytes.
    limit: usize,
    failed: bool,
}

impl<F: LogFile> Tail<F> {
    pub fn new(file: F, limit: usize) -> Self {
        Self {
            file,
            pending: Vec::new(),
            ends: Vec::new(),
            written: 0,
            limit,
            failed: false,
        }
    }

    /// Bytes handed to the system.
    pub fn written(&self) -> u64 {
        self.written
    }

    pub fn sync(&mut self) -> io::Result<()> {
        self.flush()?;
        self.file.sync()
    }

    fn drain(&mut self) -> io::Result<()> {
        let mut taken = 0;
        while taken < self.pending.len() {
            match self.file.write(&self.pending[taken..]) {
                Ok(0) => return self.cut(taken, io::ErrorKind::WriteZero.into()),
                Ok(n) => taken += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return self.cut(taken, e),
            }
        }
        self.written += taken as u64;
        self.pending.clear();
        self.ends.clear();
        Ok(())
    }

    /// Only `taken` bytes of `pending` arrived: drops the part of a frame at their end. If that fails too, a reader finds a
    /// torn tail.
    fn cut(&mut self, taken: usize, error: io::Error) -> io::Result<()> {
        self.failed = true;
        self.written += self
            .ends
            .iter()
            .rev()
            .find(|&&end| end <= taken)
            .map_or(0, |&end| end as u64);
        // The first error is the one to report.
        let _ = self.file.set_len(self.written);
        Err(error)
    }

    fn usable(&self) -> io::Result<()> {
        if self.failed {
            Err(io::Error::other("an earlier write failed"))
        } else {
            Ok(())
        }
    }
}

impl<F: LogFile> Write for Tail<F> {
    /// Takes a whole frame.
    fn write(&mut self, frame: &[u8]) -> io::Result<usize> {
        self.usable()?;
        if !self.pending.is_empty() && self.pending.len() + frame.len() > self.limit {
            self.drain()?;
        }
        self.pending.extend_from_slice(frame);
        self.ends.push(self.pending.len());
        Ok(frame.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.usable()?;
        self.drain()
    }
}

impl<F: LogFile> Drop for Tail<F> {
    fn drop(&mut self) {
        if !self.failed {
            // Whoever wants to know calls flush.
            let _ = self.drain();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;
    use crate::frame::{FrameReader, FrameWriter, Next};
    use crate::record::LOG_FORMAT;

    /// A disk with room for `room` bytes.
    #[derive(Clone)]
    struct Small {
        bytes: Rc<RefCell<Vec<u8>>>,
        room: usize,
    }

    impl Write for Small {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            let mut bytes = self.bytes.borrow_mut();
            let n = buf.len().min(self.room - bytes.len());
            if n == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            bytes.extend_from_slice(&buf[..n]);
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl LogFile for Small {
        fn set_len(&mut self, bytes: u64) -> io::Result<()> {
            self.bytes.borrow_mut().truncate(bytes as usize);
            Ok(())
        }

        fn sync(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_leaves_whole_frames_wherever_it_hits() {
        for limit in [1, 100, 1000] {
            for room in 0..400 {
                let small = Small {
                    bytes: Rc::default(),
                    room,
                };
                let mut failed = false;
                if let Ok(mut frames) = FrameWriter::create(Tail::new(small.clone(), limit), LOG_FORMAT) {
                    for i in 0..20u8 {
                        failed |= frames.write(7, &vec![i; i.into()]).is_err();
                    }
                    failed |= frames.get_mut().flush().is_err();
                    assert!(frames.get_mut().flush().is_err(), "stays failed");
                }
                assert!(failed);
                let bytes = small.bytes.borrow().clone();
                if room < 16 {
                    assert!(bytes.is_empty());
                    continue;
                }
                let mut frames = FrameReader::open(&bytes[..], LOG_FORMAT).unwrap();
                let mut i = 0;
                loop {
                    match frames.next().unwrap() {
                        Next::Frame(frame) => assert_eq!(frame.payload, vec![i; i.into()]),
                        Next::End => break,
                        torn @ Next::Torn { .. } => panic!("{torn:?} with room for {room}"),
                    }
                    i += 1;
                }
                // 16 of the file's header, 16 of each frame's, and 0, 1, 2... bytes in the frames.
                let ends = (0..20).map(|n| 16 + 16 * (n + 1) + n * (n + 1) / 2);
                assert_eq!(usize::from(i), ends.filter(|&end| end <= room).count(), "all that fit");
            }
        }
    }
}
