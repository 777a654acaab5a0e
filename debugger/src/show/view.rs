//! Guest memory by virtual address, as ring 0 sees it at one place.

use anyhow::{Result, ensure};
use kvm_bindings::{kvm_regs, kvm_sregs};
use lockstep_vmm::machine::Machine;
use lockstep_vmm::memory::GuestRam;

use crate::timeline::read_virtual;

/// Registers and memory.
pub struct View<'a> {
    pub ram: &'a GuestRam,
    pub regs: kvm_regs,
    pub sregs: kvm_sregs,
}

impl<'a> View<'a> {
    /// Of a machine with these registers, which are its present ones.
    pub fn of(machine: &'a Machine, (regs, sregs): (kvm_regs, kvm_sregs)) -> Self {
        Self {
            ram: machine.memory().ram(),
            regs,
            sregs,
        }
    }

    /// Reads all of `data`.
    pub fn read(&self, address: u64, data: &mut [u8]) -> Result<()> {
        let length = read_virtual(self.ram, &self.sregs, address, data);
        ensure!(
            length == data.len(),
            "{:#x} is not mapped here",
            address.wrapping_add(length as u64)
        );
        Ok(())
    }

    /// 64 bits.
    pub fn word(&self, address: u64) -> Result<u64> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// 32 bits.
    pub fn half(&self, address: u64) -> Result<u32> {
        let mut bytes = [0; 4];
        self.read(address, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Whether ring 3 is interrupted here.
    pub fn is_user(&self) -> bool {
        self.sregs.ss.dpl == 3
    }
}
