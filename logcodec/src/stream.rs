//! Records that come over a connection instead of out of files: the same checks.

use bytes::Bytes;
use lockstep_proto::MachineConfig;
use lockstep_proto::quantity::StopNumber;

use crate::check::Devices;
use crate::continuity::Continuity;
use crate::error::Violation;
use crate::record::Record;

/// Takes the records of a log in order, and refuses what a log may not hold.
#[derive(Debug)]
pub struct StreamChecker(Continuity);

impl StreamChecker {
    /// For the log of `machine` from natural stop `stop` on, where the digest chain is `chain`.
    pub fn new(machine: &MachineConfig, stop: StopNumber, chain: Bytes) -> Self {
        Self(Continuity::new(Devices::of_machine(machine), stop, Some(chain)))
    }

    /// Checks the next record.
    pub fn take(&mut self, record: &Record) -> Result<(), Violation> {
        self.0.record(record)
    }
}
