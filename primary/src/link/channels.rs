//! What goes from the vCPU thread to a new backup: a join's parts, and the log behind it.

use crossbeam_channel::Receiver;
use lockstep_proto::quantity::{LogPosition, PageNumber};
use lockstep_proto::{Batch, JoinState};
use tokio::sync::mpsc;

use super::have::Had;

/// Log items that may wait for the network; then the vCPU waits.
const LOG_QUEUE: usize = 256;

/// Takes a join's state, or why it failed.
pub type Tell = Box<dyn FnOnce(Result<JoinState, String>) + Send>;

/// Where a join's parts go.
pub struct JoinChannels {
    /// What the backup has already.
    pub had: Receiver<Had>,
    /// Frames of the bulk stream.
    pub bulk: mpsc::Sender<bytes::Bytes>,
    /// The log.
    pub log: mpsc::Sender<LogItem>,
    /// Takes the state, once all pages are on their way, or why there is none.
    pub state: Tell,
}

/// A part of the log.
pub enum LogItem {
    /// Turns, and the position of the log after them.
    Batch(LogPosition, Batch),
    /// Pages of the next batch's forced stop: frames and contents.
    Pages(Vec<PageNumber>, Vec<u8>),
}

/// A channel for the log of one backup.
pub fn log_channel() -> (mpsc::Sender<LogItem>, mpsc::Receiver<LogItem>) {
    mpsc::channel(LOG_QUEUE)
}
