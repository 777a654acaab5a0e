//! The replay log on disk: turns as records, records as frames, frames in segment files.
//!
//! From the bottom up:
//!
//! - [`frame`]: the one framing of everything that is persisted. Magic, version, bounded length and CRC32C; tells a clean
//!   end from a torn tail and a torn tail from damage in the middle.
//! - [`record`], [`pages`]: the log's records as frames, and pages of guest memory as chunks.
//! - [`batch`]: turns gathered into a batch by the recorder, and their positions for whoever reads it.
//! - [`describe`]: a turn in a line, for people.
//! - [`check`], [`limits`]: what a record may hold. The writer checks before it appends and the reader after it decodes,
//!   with the same code.
//! - [`segment`], [`compress`], [`index`]: the files of a log.
//! - [`writer`], [`reader`], [`repair`]: a log as its users see it. [`stream`]: one that comes over a connection.
//!
//! `docs/log-format.md` tells the format byte by byte.
//!
//! What holds everywhere:
//!
//! - No input makes this crate panic, and nothing is allocated for a length that was read before it was checked.
//! - A torn tail (the writer was stopped while it wrote) is found, reported and, on request, cut. It is never guessed at,
//!   and everything before it is delivered. Damage anywhere else is an error that names the file and the offset.
#![forbid(unsafe_code)]

pub mod batch;
mod bookmark;
pub mod check;
pub mod compress;
mod continuity;
pub mod describe;
pub mod error;
pub mod frame;
pub mod index;
pub mod limits;
pub mod packed;
pub mod pages;
pub mod reader;
pub mod record;
pub mod repair;
mod seek;
pub mod segment;
mod source;
pub mod stream;
mod tail;
pub mod writer;

pub use batch::{BatchBuilder, positions};
pub use bookmark::Bookmark;
pub use error::{LogError, Result, Violation};
pub use pages::{PagePacker, Pages, pack_pages, unpack_pages};
pub use reader::{Ending, LogReader};
pub use record::Record;
pub use repair::{Cut, cut_torn_tail};
pub use segment::SegmentReader;
pub use stream::StreamChecker;
pub use writer::{Counts, LogWriter, Summary, WriterOptions};
