//! perf_event_open(2), as far as the probe asks for it.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

const PERF_TYPE_HARDWARE: u32 = 0;
const PERF_COUNT_HW_INSTRUCTIONS: u64 = 1;
/// PERF_ATTR_SIZE_VER0.
const ATTR_BYTES: u32 = 64;
/// The bit `disabled` of the flags.
const DISABLED: u64 = 1;
/// The bits `exclude_kernel` and `exclude_hv`: what an ordinary user may count.
const USER_ONLY: u64 = 1 << 5 | 1 << 6;

/// Close on exec.
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;

/// The first version of `struct perf_event_attr` (linux/perf_event.h); the kernel takes what is missing as zero.
#[repr(C)]
struct Attr {
    kind: u32,
    size: u32,
    config: u64,
    sample: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup: u32,
    breakpoint_type: u32,
    config1: u64,
}

const _: () = assert!(size_of::<Attr>() == ATTR_BYTES as usize);

/// Opens a counter of retired instructions for this thread and closes it again.
pub fn try_instruction_counter() -> io::Result<()> {
    let attr = Attr {
        kind: PERF_TYPE_HARDWARE,
        size: ATTR_BYTES,
        config: PERF_COUNT_HW_INSTRUCTIONS,
        sample: 0,
        sample_type: 0,
        read_format: 0,
        flags: DISABLED | USER_ONLY,
        wakeup: 0,
        breakpoint_type: 0,
        config1: 0,
    };
    // SAFETY: the kernel reads `size` bytes from the attribute, which is that large; the other arguments are numbers
    // (this thread, any CPU, no group, close on exec).
    let rc = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attr,
            0 as libc::pid_t,
            -1 as libc::c_int,
            -1 as libc::c_int,
            PERF_FLAG_FD_CLOEXEC,
        )
    };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just returned this descriptor and nothing else owns it.
    drop(unsafe { OwnedFd::from_raw_fd(rc as libc::c_int) });
    Ok(())
}
