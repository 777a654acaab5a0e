//! When a machine is stopped by force, and how often its memory is compared.

/// How a machine is recorded.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Nanoseconds from something being due to the forced stop that serves it, while the guest runs user code.
    pub grace: u64,
    /// The same while it runs kernel code, where a natural stop or the return to user code is near.
    pub patience: u64,
    /// Nanoseconds of host time after which an epoch ends at the next natural stop; `None`: no epochs.
    pub epoch: Option<u64>,
    /// Log each dirty page's hash with every epoch.
    pub epoch_detail: bool,
    /// For tests: stop the guest by force at this interval too, in nanoseconds, though nothing is due.
    pub beat: Option<u64>,
}
