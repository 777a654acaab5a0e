//! All machines of one etcd: what each node tells there beside the records, and what comes of both.
//!
//! Invariants:
//! - What is told decides nothing: nobody but people reads it. Who may run a machine is in its record alone.
//! - A state is shown as told only where the record bears it out, and as unknown otherwise.
//! - What a node tells goes away with it, by a lease: at most [`TTL`] after its last word.

mod listing;
mod presence;
mod told;
mod view;

use std::time::Duration;

pub use listing::{Entry, read};
pub use presence::Presence;
pub use told::Told;
pub use view::{Row, UNKNOWN, row};

/// How long what a node tells is there after it has said so last. etcd begins leases anew when it starts or elects a leader.
pub const TTL: Duration = Duration::from_secs(15);
