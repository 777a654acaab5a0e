//! Telling a network, more than once, that a machine is here now.

use std::time::{Duration, Instant};

use lockstep_node::host::outputs::Outputs;
use lockstep_proto::MachineConfig;

/// When the announcements after the first are made, counted from then: a switch may have missed it, or still be learning.
const TIMES: [Duration; 5] = [
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(3),
];

/// Announcements to be made.
pub(super) struct Announcements {
    macs: Vec<[u8; 6]>,
    since: Instant,
    made: usize,
}

impl Announcements {
    /// Of these addresses, the first having been made just now.
    pub(super) fn new(macs: Vec<[u8; 6]>) -> Self {
        Self {
            macs,
            since: Instant::now(),
            made: 0,
        }
    }

    /// Comes back when one is due; never, when all were made.
    pub(super) async fn due(&self) {
        match TIMES.get(self.made) {
            Some(at) if !self.macs.is_empty() => tokio::time::sleep_until((self.since + *at).into()).await,
            _ => std::future::pending().await,
        }
    }

    /// Makes one on `outputs`; `None`: the machine may not be heard just now.
    pub(super) fn make(&mut self, outputs: Option<&mut Outputs>) {
        self.made += 1;
        if let Some(outputs) = outputs {
            outputs.announce(&self.macs);
        }
    }
}

/// The machine's network addresses.
pub fn macs(config: &MachineConfig) -> Vec<[u8; 6]> {
    config
        .nics
        .iter()
        .map(|nic| <[u8; 6]>::try_from(&nic.mac[..]).unwrap_or_default())
        .collect()
}
