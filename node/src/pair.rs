//! What makes a machine one of a pair: who this node is, where the other one is, and who decides between them.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use lockstep_proto::Tenure;
use lockstep_proto::session::{Commit, Record, Timing, Unprotected};

use crate::control::Control;
use crate::pki::Credentials;
use crate::reports::Reports;
use crate::status::Status;
use crate::watch::{ArbiterPort, Uplink};

/// One end of a pair, as the node that holds the term.
pub struct Pair {
    /// This node's name, as in its certificate.
    pub node: String,
    /// The machine's name.
    pub machine_name: String,
    /// Where the other node listens.
    pub peer: SocketAddr,
    /// Its name, as in its certificate.
    pub peer_name: String,
    /// Who this side is to the other.
    pub credentials: Credentials,
    /// The arbiter.
    pub arbiter: ArbiterPort,
    /// The arbiter's record, which this node holds.
    pub record: Record,
    /// Why the machine is not protected yet.
    pub why: Unprotected,
    /// How fast the other's death is noticed.
    pub timing: Timing,
    /// Which acknowledgement lets effects go.
    pub commit: Commit,
    /// The interface by which the service is reached.
    pub uplink: Option<Uplink>,
    /// Where divergence reports are kept.
    pub reports: Reports,
    /// Told what happens.
    pub status: Status,
    /// What operators ask.
    pub control: Control,
}

impl Pair {
    /// Who records the machine.
    pub fn tenure(&self) -> Tenure {
        Tenure {
            machine: self.machine_name.clone(),
            node: self.node.clone(),
            term: self.record.term.get(),
            restarts: self.status.gauges().restarts.load(Ordering::Relaxed),
        }
    }
}
