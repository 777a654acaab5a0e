//! A replica that went another way, and loops for ever where the log has a stop.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lockstep_integration::gate::require_kvm;
use lockstep_logcodec::{Ending, LogError, Record};
use lockstep_node::host::disk::Disks;
use lockstep_proto::model::NEWEST_REVISION;
use lockstep_proto::{Batch, MachineConfig};
use lockstep_replay::feed::Source;
use lockstep_replay::patience::Patience;
use lockstep_replay::{Mismatch, ReplayError, Replayer};
use lockstep_vmm::cpu::profile::Profile;
use lockstep_vmm::machine::Machine;
use lockstep_vmm::micro::{MEMORY_BYTES, MicroGuest, Ring};

/// A log whose first batch has a stop that does not come.
struct OneStop {
    batch: Option<Batch>,
    /// Looks until nobody wants the machine any more.
    looks: Rc<Cell<u32>>,
}

impl Source for OneStop {
    fn next_record(&mut self) -> Result<Option<Record>, LogError> {
        Ok(self.batch.take().map(Record::Batch))
    }

    fn ending(&self) -> Ending {
        Ending::Unfinished
    }

    fn is_given_up(&mut self) -> bool {
        let left = self.looks.get().saturating_sub(1);
        self.looks.set(left);
        left == 0
    }
}

/// What becomes of the replay of a guest that jumps to itself.
fn replay(ring: Ring, longest: Duration, looks: u32) -> Result<u32> {
    let mut machine = Machine::create(MachineConfig {
        memory_bytes: MEMORY_BYTES,
        cpu_profile: Profile::for_this_host()
            .context("no profile for this host")?
            .name()
            .into(),
        model_revision: NEWEST_REVISION,
        ..MachineConfig::default()
    })?;
    let guest = MicroGuest::new(ring, |a| a.db(&[0xeb, 0xfe]));
    guest.load(machine.memory().ram(), &[])?;
    let state = guest.state(&machine.vcpu_state()?)?;
    machine.set_vcpu_state(&state)?;
    let timer = machine.attach_to_this_thread()?.timer()?;
    let looks = Rc::new(Cell::new(looks));
    let batch = Batch {
        first_stop: machine.stop().get(),
        last_stop: machine.stop().get() + 1,
        ..Batch::default()
    };
    let source = OneStop {
        batch: Some(batch),
        looks: looks.clone(),
    };
    let disks = Disks::start(Vec::new(), None)?;
    let mut replayer = Replayer::new(Box::new(source), &machine, disks, Patience::new(timer).of(longest));
    let error = machine.step(&mut replayer).err().context("it has come to a stop")?;
    let ReplayError::Diverged(divergence) = error else {
        return Err(error.into());
    };
    ensure!(matches!(divergence.mismatch, Mismatch::Silent), "{divergence}");
    Ok(looks.get())
}

#[test]
fn a_slice_that_does_not_end_is_a_divergence() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    for ring in Ring::ALL {
        let left = replay(ring, Duration::from_millis(20), u32::MAX)?;
        ensure!(left > 0, "{ring}: it was given up for another reason");
    }
    Ok(())
}

#[test]
fn a_slice_that_does_not_end_is_over_when_nobody_wants_the_machine() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    let left = replay(Ring::User, Duration::from_secs(3600), 2)?;
    ensure!(left == 0, "it was given up for another reason");
    Ok(())
}
