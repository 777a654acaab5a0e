//! The host of the recorder: time goes on as the guest executes and as the recorder looks at it, and inputs come at times that
//! the seed gives.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lockstep_node::host::inbox::{Bell, Inbox, Outside, inbox};
use lockstep_primary::link::LinkState;
use lockstep_primary::recorder::{HostKernel, RecordError};
use lockstep_proto::quantity::HostTime;
use lockstep_vmm::sys::kick::Alarm;

use super::disk::Disk;
use super::plan::Plan;
use super::rng::Rng;

const NEVER: u64 = u64::MAX;
/// Where the host's clock stands at the start.
const START: u64 = 1_000_000_000;
/// More of either than a run has would fill the inbox.
const MOST_INPUTS: u32 = 60;

/// A timer of the simulated host.
#[derive(Clone, Default)]
pub struct SimAlarm {
    now: Arc<AtomicU64>,
    at: Arc<AtomicU64>,
}

impl Alarm for SimAlarm {
    fn arm(&self, at: HostTime) {
        self.at.store(at.ns(), Ordering::Relaxed);
    }

    fn arm_in(&self, ns: u64) {
        self.arm(HostTime::from_ns(self.now.load(Ordering::Relaxed) + ns));
    }
}

impl SimAlarm {
    /// Whether it fires.
    fn fires(&self) -> bool {
        let fires = self.at.load(Ordering::Relaxed) <= self.now.load(Ordering::Relaxed);
        if fires {
            self.at.store(NEVER, Ordering::Relaxed);
        }
        fires
    }
}

struct Inner {
    rng: Rng,
    plan: Rc<Plan>,
    now: Arc<AtomicU64>,
    alarms: [SimAlarm; 2],
    outside: Outside,
    disk: Disk,
    link: Arc<LinkState>,
    next_frame: u64,
    next_typed: u64,
    next_lag: u64,
    /// When each request that waits is done.
    disk_done: Vec<u64>,
    quit: u64,
    inputs: [u32; 2],
    /// When the next thing comes.
    next: u64,
}

/// The host, as all that is in it see it.
#[derive(Clone)]
pub struct Host(Rc<RefCell<Inner>>);

/// What a host has for the vCPU thread.
pub struct Parts {
    pub host: Host,
    pub inbox: Inbox,
    pub alarm: SimAlarm,
}

impl Host {
    pub fn start(mut rng: Rng, plan: Rc<Plan>, disk: Disk, link: Arc<LinkState>) -> Parts {
        let now = Arc::new(AtomicU64::new(START));
        let alarms = [(), ()].map(|()| SimAlarm {
            now: now.clone(),
            at: Arc::new(AtomicU64::new(NEVER)),
        });
        let [alarm, inputs] = alarms.clone();
        let (inbox, outside) = inbox(Bell::for_this_thread(inputs, plan.policy.grace));
        let host = Self(Rc::new(RefCell::new(Inner {
            next_frame: START + rng.between(plan.frames),
            next_typed: START + rng.between(plan.typed),
            next_lag: START + rng.between(plan.lags),
            quit: START + plan.length,
            rng,
            plan,
            now,
            alarms,
            outside,
            disk,
            link,
            disk_done: Vec::new(),
            inputs: [0; 2],
            next: START,
        })));
        Parts { host, inbox, alarm }
    }

    /// The vCPU is about to execute an instruction: whether it is kicked.
    pub fn kicks(&self) -> bool {
        let mut inner = self.0.borrow_mut();
        let now = inner.time() + inner.plan.instruction;
        inner.now.store(now, Ordering::Relaxed);
        // The guest asks the disk for nothing while it executes.
        if inner.next <= now {
            inner.come();
        }
        let [due, input] = [0, 1].map(|alarm: usize| inner.alarms[alarm].fires());
        let kicks = inner.plan.kicks;
        due || input || (kicks > 0 && inner.rng.below(1_000_000) < kicks)
    }
}

impl Inner {
    fn time(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    fn pass(&mut self, ns: u64) {
        self.now.store(self.time() + ns, Ordering::Relaxed);
        self.come();
    }

    fn soonest(&self) -> u64 {
        let fixed = self.next_frame.min(self.next_typed).min(self.next_lag).min(self.quit);
        self.disk_done.first().map_or(fixed, |&done| fixed.min(done))
    }

    /// What is due comes.
    fn come(&mut self) {
        let now = self.time();
        for _ in 0..self.disk.listen() {
            let last = self.disk_done.last().map_or(now, |&last| last.max(now));
            let takes = self.rng.between(self.plan.disk);
            self.disk_done.push(last + takes);
        }
        while self.soonest() <= now {
            if self.next_frame <= now {
                self.next_frame = self.again(0, self.plan.frames);
                let length = 60 + self.rng.below(120);
                let byte = self.rng.next() as u8;
                self.outside.frame(0, vec![byte; length as usize]);
            }
            if self.next_typed <= now {
                self.next_typed = self.again(1, self.plan.typed);
                let bytes = (0..=self.rng.below(20)).map(|_| self.rng.next() as u8).collect();
                self.outside.console(bytes);
            }
            if self.next_lag <= now {
                self.next_lag = now + self.rng.between(self.plan.lags);
                let lag = self.rng.pick(&[0, 0, 60_000_000, 500_000_000]);
                self.link.lag_ns.store(lag, Ordering::Relaxed);
            }
            if self.disk_done.first().is_some_and(|&done| done <= now) {
                self.disk_done.remove(0);
                let fails = self.rng.chance(self.plan.failures);
                self.disk.serve(fails);
                self.outside.bell().ring();
            }
            if self.quit <= now {
                self.quit = NEVER;
                self.outside.bell().quit();
            }
        }
        self.next = self.soonest();
    }

    /// When the next input of this kind comes; sometimes many come at once.
    fn again(&mut self, kind: usize, often: (u64, u64)) -> u64 {
        self.inputs[kind] += 1;
        if self.inputs[kind] == MOST_INPUTS {
            return NEVER;
        }
        let wait = if self.rng.chance(300) {
            0
        } else {
            self.rng.between(often)
        };
        self.time() + wait
    }
}

impl HostKernel for Host {
    fn monotonic(&self) -> HostTime {
        let mut inner = self.0.borrow_mut();
        let look = inner.plan.look;
        let takes = inner.rng.below(look) + 1;
        inner.pass(takes);
        HostTime::from_ns(inner.time())
    }

    fn realtime(&self) -> Duration {
        Duration::from_nanos(self.0.borrow().time())
    }

    fn wait(&self, longest: Duration) {
        let mut inner = self.0.borrow_mut();
        if inner.outside.bell().is_rung() {
            return;
        }
        let now = inner.time();
        let until = (now + longest.as_nanos() as u64).min(inner.soonest()).max(now);
        // It may wake for nothing, as threads do.
        let until = if inner.rng.chance(100) {
            inner.rng.between((now, until))
        } else {
            until
        };
        inner.pass(until - now);
    }

    fn pause(&self, time: Duration) {
        self.0.borrow_mut().pass(time.as_nanos() as u64);
    }

    fn fill_random(&self, buffer: &mut [u8]) -> Result<(), RecordError> {
        let mut inner = self.0.borrow_mut();
        buffer.fill_with(|| inner.rng.next() as u8);
        Ok(())
    }
}
