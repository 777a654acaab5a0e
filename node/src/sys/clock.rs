//! `adjtimex` (Linux, adjtimex(2)): whether the host's clock is kept right.

use std::io;

/// Whether the kernel takes its realtime clock for synchronized.
pub fn is_synchronized() -> io::Result<bool> {
    // SAFETY: timex is plain data, for which all zeroes is a value; no mode bit is set, so nothing is changed.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a whole timex, which the call fills in.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    if state < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(state != libc::TIME_ERROR && timex.status & libc::STA_UNSYNC == 0)
}
