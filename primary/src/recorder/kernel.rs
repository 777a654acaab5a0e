//! What the recorder asks the host's kernel for: time, sleep and chance. A simulation answers otherwise, by its seed.

use std::time::Duration;

use super::RecordError;
use super::inputs::fill_random;
use lockstep_node::host::clock;
use lockstep_proto::quantity::HostTime;

/// A host's time and chance, as the vCPU thread sees them.
pub trait HostKernel {
    /// Host time.
    fn monotonic(&self) -> HostTime;

    /// The calendar: time since 1970-01-01.
    fn realtime(&self) -> Duration;

    /// Waits for the bell, and no longer than this.
    fn wait(&self, longest: Duration);

    /// Lets this time pass, whatever comes.
    fn pause(&self, time: Duration);

    /// Random bytes.
    fn fill_random(&self, buffer: &mut [u8]) -> Result<(), RecordError>;
}

/// The host that the program runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct ThisHost;

impl HostKernel for ThisHost {
    fn monotonic(&self) -> HostTime {
        clock::monotonic()
    }

    fn realtime(&self) -> Duration {
        clock::realtime()
    }

    fn wait(&self, longest: Duration) {
        std::thread::park_timeout(longest);
    }

    fn pause(&self, time: Duration) {
        std::thread::sleep(time);
    }

    fn fill_random(&self, buffer: &mut [u8]) -> Result<(), RecordError> {
        fill_random(buffer)
    }
}
