//! Dispositions of signals (signal(7)): what was ignored at the start stays ignored, and limits and terminals end nobody.

use std::mem::{MaybeUninit, zeroed};
use std::ptr::null;

use libc::{SIGTTIN, SIGTTOU, SIGXCPU, SIGXFSZ, c_int};

/// For every program, first of all: what a limit on files or time refuses (setrlimit(2)) is an error like another, and no
/// signal that ends the process. SIGPIPE is ignored by Rust's own start.
pub fn outlive_limits() {
    ignore(&[SIGXFSZ, SIGXCPU]);
}

/// For a machine that runs: a terminal that another process group has stops nobody, neither now nor when a backup goes live.
pub fn outlive_terminals() {
    ignore(&[SIGTTIN, SIGTTOU]);
}

/// Those of `signals` that this process was not started to ignore, as `nohup` has it of SIGHUP and a shell's `trap ''` of
/// others.
pub fn heeded(signals: &[c_int]) -> Vec<c_int> {
    signals.iter().copied().filter(|signal| !is_ignored(*signal)).collect()
}

fn ignore(signals: &[c_int]) {
    for signal in signals {
        // SAFETY: all-zero is a valid sigaction; SIG_IGN runs no code of ours.
        let done = unsafe {
            let mut action: libc::sigaction = zeroed();
            action.sa_sigaction = libc::SIG_IGN;
            libc::sigaction(*signal, &raw const action, std::ptr::null_mut())
        };
        // It fails for signals that do not exist or cannot be ignored, and there are none of those here.
        debug_assert_eq!(done, 0);
    }
}

fn is_ignored(signal: c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: with no new action, sigaction writes the present one to where the pointer says, which has room for it.
    let done = unsafe { libc::sigaction(signal, null(), action.as_mut_ptr()) };
    // SAFETY: all-zero is a valid sigaction, so it is initialized whether the call has written it or not.
    let action = unsafe { action.assume_init() };
    done == 0 && action.sa_sigaction == libc::SIG_IGN
}
