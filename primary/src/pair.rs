//! What makes a machine one of a pair: who this node is, where the other one is, and who decides between them.

use std::net::SocketAddr;

use lockstep_proto::session::{Commit, Record, Timing, Unprotected};
use lockstep_proto::{Hello, Tenure};
use lockstep_vmm::machine::Machine;

use crate::host::inbox::Bell;
use crate::host::outputs::Outputs;
use crate::link::live::LiveOptions;
use crate::link::watch::{ArbiterPort, Uplink};
use crate::link::{Control, Status};
use crate::pki::Credentials;
use crate::reports::Reports;

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
    pub(crate) fn tenure(&self) -> Tenure {
        Tenure {
            machine: self.machine_name.clone(),
            node: self.node.clone(),
            term: self.record.term,
        }
    }

    /// What the link needs, for `machine`.
    pub(crate) fn into_live(
        self,
        machine: &Machine,
        host_class: &str,
        outputs: Outputs,
        bell: Bell,
        announce: Vec<[u8; 6]>,
    ) -> LiveOptions {
        LiveOptions {
            hello: Hello {
                node: self.node,
                machine_name: self.machine_name,
                machine: Some(machine.config().clone()),
                host_class: host_class.into(),
                ..Hello::default()
            },
            record: self.record,
            timing: self.timing,
            why: self.why,
            peer: self.peer,
            peer_name: self.peer_name,
            credentials: self.credentials,
            arbiter: self.arbiter,
            commit: self.commit,
            uplink: self.uplink,
            control: self.control,
            announce,
            outputs,
            bell,
            reports: self.reports,
            status: self.status,
        }
    }
}
