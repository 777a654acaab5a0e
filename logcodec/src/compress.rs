//! Compresses closed segments, so that a crash at any point leaves the segment there: whole in one file, or in both.
//!
//! The compressed file is written under a temporary name, synced, renamed, its directory synced; only then is the plain
//! one removed.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use zstd::stream::write::Encoder;

use crate::error::{LogError, Result};
use crate::segment::{compressed_name, plain_name, sync_dir};

/// zstd's level for segments: its default. It runs beside the recorder, not in its way.
const LEVEL: i32 = 3;

/// Compresses the closed segment `number` of a log. Returns the size of the compressed file, in bytes. Where it fails, the
/// plain segment is still there.
pub fn compress_segment(dir: &Path, number: u32) -> Result<u64> {
    let plain = dir.join(plain_name(number));
    let compressed = dir.join(compressed_name(number));
    let temporary = temporary(&compressed);
    let result = write_compressed(&plain, &temporary);
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    let bytes = result?;
    fs::rename(&temporary, &compressed).map_err(LogError::io("rename to", &compressed))?;
    sync_dir(dir)?;
    fs::remove_file(&plain).map_err(LogError::io("remove", &plain))?;
    Ok(bytes)
}

fn write_compressed(plain: &Path, temporary: &Path) -> Result<u64> {
    let mut input = File::open(plain).map_err(LogError::io("open", plain))?;
    let output = File::create(temporary).map_err(LogError::io("create", temporary))?;
    let copy = || -> io::Result<u64> {
        let mut encoder = Encoder::new(BufWriter::with_capacity(1 << 20, output), LEVEL)?;
        encoder.include_checksum(true)?;
        io::copy(&mut input, &mut encoder)?;
        let mut output = encoder.finish()?;
        output.flush()?;
        let file = output.get_ref();
        file.sync_all()?;
        Ok(file.metadata()?.len())
    };
    copy().map_err(LogError::io("compress into", temporary))
}

/// The name under which a file is written before it is whole.
pub(crate) fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    name.into()
}
