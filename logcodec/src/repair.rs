//! Cuts a torn tail off.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use lockstep_proto::quantity::StopNumber;

use crate::error::{LogError, Result};
use crate::reader::{Ending, LogReader};
use crate::segment::{index_name, plain_name, sync_dir};

/// What was cut off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// The segment file that was cut.
    pub path: PathBuf,
    /// Its length now, in bytes. 0: there was not even a whole header in it, and the file was removed.
    pub length: u64,
    /// Bytes that were cut off.
    pub bytes_cut: u64,
    /// The last natural stop that the log covers.
    pub stop: StopNumber,
}

/// Cuts the torn tail off a log that nobody writes. None where it has no torn tail. Reads the whole log first and refuses
/// if there is any damage but a torn tail. What is left ends after a whole record.
pub fn cut_torn_tail(dir: &Path) -> Result<Option<Cut>> {
    let mut log = LogReader::open(dir)?;
    while log.next_record()?.is_some() {}
    let Ending::Torn {
        segment,
        offset: length,
        bytes_lost: bytes_cut,
    } = log.ending()
    else {
        return Ok(None);
    };
    let path = dir.join(plain_name(segment));
    let file = File::options()
        .write(true)
        .open(&path)
        .map_err(LogError::io("open", &path))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => return Err(LogError::InUse { path }),
        // Not every file system has locks.
        Ok(()) | Err(TryLockError::Error(_)) => {}
    }
    if length == 0 {
        fs::remove_file(&path).map_err(LogError::io("remove", &path))?;
    } else {
        file.set_len(length)
            .and_then(|()| file.sync_all())
            .map_err(LogError::io("cut", &path))?;
    }
    // It may point into what was cut off; it is a cache.
    let _ = fs::remove_file(dir.join(index_name(segment)));
    sync_dir(dir)?;
    Ok(Some(Cut {
        path,
        length,
        bytes_cut,
        stop: log.stop(),
    }))
}
