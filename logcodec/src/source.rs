//! Where a segment's bytes come from: its file, or the decompressor over it.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use zstd::stream::read::Decoder;

use crate::error::{LogError, Result};
use crate::segment::{compressed_name, plain_name};

pub(crate) enum Source {
    Plain(File),
    Compressed(Decoder<'static, BufReader<File>>),
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_compressed() { "Compressed" } else { "Plain" })
    }
}

impl Source {
    /// Opens a segment at an offset in bytes of the uncompressed segment. The plain file is preferred: where both are
    /// there, a compressor was stopped before it removed it. None where neither is.
    pub fn open(dir: &Path, number: u32, offset: u64) -> Result<Option<(Self, PathBuf)>> {
        let path = dir.join(plain_name(number));
        match File::open(&path) {
            Ok(mut file) => {
                file.seek(SeekFrom::Start(offset))
                    .map_err(LogError::io("seek in", &path))?;
                return Ok(Some((Self::Plain(file), path)));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(LogError::io("open", &path)(e)),
        }
        let path = dir.join(compressed_name(number));
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(LogError::io("open", &path)(e)),
        };
        let decoder = Decoder::new(file).map_err(LogError::io("decompress", &path))?;
        let mut source = Self::Compressed(decoder);
        io::copy(&mut (&mut source).take(offset), &mut io::sink()).map_err(LogError::io("decompress", &path))?;
        Ok(Some((source, path)))
    }

    /// Whether a segment is there. A compressor replaces the plain file by the other one, hence the order.
    pub fn exists(dir: &Path, number: u32) -> Result<bool> {
        for name in [plain_name(number), compressed_name(number)] {
            let path = dir.join(name);
            if path.try_exists().map_err(LogError::io("look for", &path))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Compressed segments are always whole.
    pub fn is_compressed(&self) -> bool {
        matches!(self, Self::Compressed(_))
    }
}

impl Read for Source {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(file) => file.read(buf),
            Self::Compressed(decoder) => decoder.read(buf),
        }
    }
}
