//! What one run is like: every seed has its own mixture of faults, some of them missing.

use lockstep_proto::session::{Commit, Timing};

use super::rng::Rng;

pub const MICRO: u64 = 1_000;
pub const MILLI: u64 = 1_000_000;
pub const SECOND: u64 = 1_000_000_000;

/// How long the arbiter's clients wait for an answer.
pub const ARBITER_TIMEOUT: u64 = 60 * MILLI;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Crash,
    PowerLoss,
    Pause,
    Partition,
    HalfPartition,
    NodeLosesArbiter,
    ArbiterDown,
    Isolation,
    Cut,
    /// The guest makes no stop for a while, which is noticed at once or later.
    Stall,
    /// No fault: an operator has the backup go on.
    Switchover,
    /// No fault: an operator takes the backup away for a while.
    Suspension,
    /// The guest resets, and is booted anew.
    Reset,
    /// The guest powers off; the machine is started after a while.
    PowerOff,
    /// No fault: an operator shuts the machine down, and starts it after a while.
    Shutdown,
}

const FAULTS: [Fault; 15] = [
    Fault::Crash,
    Fault::PowerLoss,
    Fault::Pause,
    Fault::Partition,
    Fault::HalfPartition,
    Fault::NodeLosesArbiter,
    Fault::ArbiterDown,
    Fault::Isolation,
    Fault::Cut,
    Fault::Stall,
    Fault::Switchover,
    Fault::Suspension,
    Fault::Reset,
    Fault::PowerOff,
    Fault::Shutdown,
];

pub struct Plan {
    pub timing: Timing,
    pub commit: Commit,
    /// Nanoseconds that a clock gains in a second.
    pub drift: [i64; 2],
    pub clock_start: [u64; 2],
    pub delay: (u64, u64),
    pub loss: u64,
    pub duplicates: u64,
    pub arbiter_delay: (u64, u64),
    pub arbiter_loss: u64,
    /// Requests to the arbiter and answers that take up to two seconds.
    pub arbiter_slow: u64,
    pub produce: (u64, u64),
    pub release: (u64, u64),
    pub verify: (u64, u64),
    pub pages: (u64, u64),
    pub build: (u64, u64),
    pub fault_gap: (u64, u64),
    /// Of a thousand moments at which something decides itself, how many have a fault.
    pub at_moments: u64,
    pub fault_length: (u64, u64),
    pub faults: Vec<Fault>,
    pub faults_until: u64,
}

impl Plan {
    pub fn new(rng: &mut Rng) -> Self {
        let slow = rng.pick(&[MILLI / 4, MILLI, 5 * MILLI, 20 * MILLI]);
        let often = |fault: &Fault| match fault {
            Fault::PowerLoss => 200,
            Fault::PowerOff | Fault::Shutdown => 300,
            _ => 600,
        };
        let faults: Vec<Fault> = FAULTS.into_iter().filter(|fault| rng.chance(often(fault))).collect();
        let (heartbeat, deadline) = rng.pick(&[(50, 150), (50, 150), (60, 120), (20, 200)]);
        Self {
            timing: Timing {
                heartbeat_ns: heartbeat * MILLI,
                deadline_ns: deadline * MILLI,
            },
            commit: rng.pick(&[Commit::Received, Commit::Received, Commit::Replayed]),
            drift: [0, 1].map(|_| rng.between((0, 80 * MILLI)) as i64 - 40 * MILLI as i64),
            clock_start: [0, 1].map(|_| rng.below(1_000_000 * SECOND)),
            delay: (MILLI / 10, MILLI / 10 + slow),
            loss: rng.pick(&[0, 0, 10, 50, 150]),
            duplicates: rng.pick(&[0, 0, 20, 200]),
            arbiter_delay: (MILLI / 2, rng.pick(&[MILLI, 10 * MILLI, 40 * MILLI])),
            arbiter_loss: rng.pick(&[0, 0, 50, 300]),
            arbiter_slow: rng.pick(&[0, 50, 300]),
            produce: (MILLI / 2, rng.pick(&[2 * MILLI, 10 * MILLI, 30 * MILLI, 120 * MILLI])),
            release: (MICRO, rng.pick(&[200 * MICRO, 4 * MILLI, 8 * MILLI])),
            verify: (MILLI / 10, rng.pick(&[MILLI, 4 * MILLI, 8 * MILLI])),
            pages: (MILLI, rng.pick(&[20 * MILLI, 150 * MILLI])),
            build: (MILLI, rng.pick(&[5 * MILLI, 20 * MILLI, 100 * MILLI])),
            fault_gap: (MILLI, rng.pick(&[300 * MILLI, 1000 * MILLI, 2000 * MILLI])),
            at_moments: rng.pick(&[0, 50, 200]),
            fault_length: (10 * MILLI, rng.pick(&[100 * MILLI, 400 * MILLI, 1000 * MILLI])),
            faults: if faults.is_empty() { FAULTS.into() } else { faults },
            faults_until: 5 * SECOND,
        }
    }

    /// All faults are over, those of the network and the arbiter too.
    pub fn calm(&mut self) {
        self.loss = 0;
        self.duplicates = 0;
        self.arbiter_loss = 0;
        self.arbiter_slow = 0;
        self.delay.1 = self.delay.1.min(5 * MILLI);
        self.faults.clear();
    }
}
