//! Reads of a part of a disk, within its bounds and within what all reads together may take.

use std::cell::Cell;
use std::io;
use std::rc::Rc;

use crate::host::image::ReadAt;

/// A stretch of a disk.
#[derive(Clone)]
pub struct Window {
    disk: Rc<dyn ReadAt>,
    start: u64,
    bytes: u64,
    /// Bytes that may still be read, by all windows of the disk: what a made-up file system leads to has an end.
    left: Rc<Cell<u64>>,
}

impl Window {
    /// All of a disk; `budget`: bytes that may be read of it.
    pub fn whole(disk: impl ReadAt + 'static, budget: u64) -> io::Result<Self> {
        let bytes = disk.size()?;
        Ok(Self {
            disk: Rc::new(disk),
            start: 0,
            bytes,
            left: Rc::new(Cell::new(budget)),
        })
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A part of it; `None` where it would end beyond this one.
    pub fn part(&self, start: u64, bytes: u64) -> Option<Self> {
        let end = start.checked_add(bytes)?;
        (end <= self.bytes).then(|| Self {
            start: self.start + start,
            bytes,
            ..self.clone()
        })
    }

    /// Fills `data` from the byte `at` on.
    pub fn read(&self, at: u64, data: &mut [u8]) -> io::Result<()> {
        let length = data.len() as u64;
        if at.checked_add(length).is_none_or(|end| end > self.bytes) {
            let why = format!("{length} bytes at {at} lie beyond its end at {}", self.bytes);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
        }
        let Some(left) = self.left.get().checked_sub(length) else {
            return Err(io::Error::other(
                "more is to be read than what is looked for can take: its file system is damaged, or made up",
            ));
        };
        self.left.set(left);
        self.disk.fill_at(self.start + at, data)
    }

    /// `N` bytes from the byte `at` on.
    pub fn bytes_at<const N: usize>(&self, at: u64) -> io::Result<[u8; N]> {
        let mut data = [0; N];
        self.read(at, &mut data)?;
        Ok(data)
    }
}

impl ext4_view::Ext4Read for Window {
    fn read(
        &mut self,
        start_byte: u64,
        dst: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        Self::read(self, start_byte, dst).map_err(Into::into)
    }
}
