//! A log in a directory.

#[path = "../common/mod.rs"]
mod common;
mod seeking;
mod segments;
mod tails;
mod writing;

/// A segment size, in bytes, of which 200 sample batches fill many.
const SMALL: u64 = 4096;
