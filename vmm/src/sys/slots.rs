//! KVM memory slots.

use std::io;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;

/// Sets slots one after the other.
pub fn set(vm: &VmFd, slots: impl Iterator<Item = kvm_userspace_memory_region>) -> io::Result<()> {
    for slot in slots {
        // SAFETY: the only callers are `Memory`'s: the address and size are those of a mapping that `Memory` owns, and
        // a machine drops its VM before its memory.
        unsafe { vm.set_user_memory_region(slot) }?;
    }
    Ok(())
}
