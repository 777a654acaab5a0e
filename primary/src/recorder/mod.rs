//! The recorder: the oracle that asks the world, and logs what it answered.
//!
//! Invariants:
//! - Guest time is sampled only where somebody can see it: a stop that asks for time, a timer that is due, a halted
//!   guest, a forced stop. Everywhere else guest time stands still and nothing is logged.
//! - Every turn at a halted or forced stop is logged, also an empty one: the replayer could not tell otherwise how many
//!   there were. At other stops an empty turn costs nothing.
//! - A forced stop is made only when something has been due for the grace, and deltas cost at most a tenth of the
//!   machine's time: after an expensive one the next waits longer.

mod batches;
mod calendar;
mod decide;
mod errands;
mod error;
mod inputs;
mod keeper;
mod kernel;
mod log;
mod outlet;
mod pace;
mod tape;
mod timers;
mod world;

use std::sync::atomic::Ordering;
use std::time::Duration;

use lockstep_logcodec::batch::BatchBuilder;
use lockstep_node::host::clock::{GuestClock, INSANE, ONE_MOMENT, calendar_since};
use lockstep_node::policy::Policy;
use lockstep_node::status::{Status, count, describe};
use lockstep_proto::end::Reason;
use lockstep_proto::quantity::{HostTime, LogPosition, StopNumber, Term};
use lockstep_proto::session::PrimaryState;
use lockstep_proto::{DiskCompletion, End, Forced, TermBegun, Turn};
use lockstep_vmm::devices::Effect;
use lockstep_vmm::machine::{Flow, Oracle, Seen, Slice, Stop, StopKind, Taken};
use lockstep_vmm::sys::kick::Alarm;

use self::calendar::Calendar;
use self::decide::{Decision, Situation};
pub use self::error::RecordError;
pub use self::keeper::Keeper;
pub use self::kernel::{HostKernel, ThisHost};
pub use self::log::{LogOptions, LogThread};
pub use self::outlet::Outlet;
use self::pace::Pace;
pub use self::tape::LogSummary;
use self::timers::DueTimer;
pub use self::world::{RecorderOptions, World};
use crate::link::channels::LogItem;

/// A batch is closed at this encoded size, in bytes.
const BATCH_BYTES: usize = 64 << 10;
/// What collecting a dirty page costs, in nanoseconds: KVM write-protects it, and the guest faults when it writes again.
/// An estimate (an exit costs about as much on the hosts tested), not a measurement.
const COLLECTED_PAGE: u64 = 10_000;
/// Collecting dirty pages may cost one part in this many of the machine's time.
const COST_SHARE: u64 = 10;
/// Longest wait of a halted guest without a look around.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Records a machine, or just runs it when there is no log.
pub struct Recorder {
    world: World,
    policy: Policy,
    clock: GuestClock,
    calendar: Calendar,
    due: DueTimer,
    log: Option<Box<dyn Keeper>>,
    host_class: String,
    /// Batches closed so far, counted also where nobody gets them: the position of the log.
    position: LogPosition,
    batch: BatchBuilder,
    /// Terms that have begun since the last batch, for the recording.
    terms: Vec<TermBegun>,
    /// The last that has begun; none since the start: [`Term::NONE`].
    last_term: Term,
    /// When the oldest turn of the batch was taken.
    batch_since: HostTime,
    /// Time that the guest ran since the last epoch, in nanoseconds.
    epoch_run: u64,
    /// How long the guest runs before the next epoch may end: longer where many pages are dirtied.
    epoch_length: u64,
    forced: Option<Forced>,
    slice_since: HostTime,
    /// When the vCPU came out of the slice, and for how many nanoseconds nothing happened since then.
    turn_since: HostTime,
    idle: u64,
    frames: Option<(u32, Vec<u8>)>,
    typed: Vec<u8>,
    /// Scan codes that the keyboard has no room for yet.
    keys: Vec<u8>,
    /// The guest is to be asked to shut down.
    asks: bool,
    entropy_wanted: Vec<u32>,
    quitting: bool,
    /// An operator has ended the machine: nobody goes on with it.
    shut_down: bool,
    /// Completions with an error of this host's disk: the backup may go on without them.
    withheld: Vec<DiskCompletion>,
    /// Such completions that the guest gets after all.
    errors: Vec<DiskCompletion>,
    pace: Pace,
    status: Status,
    /// The last natural stop whose turn was taken: what a batch may cover.
    taken_stop: StopNumber,
    ended: Option<Reason>,
}

impl Recorder {
    /// A recorder for `machine`, on the thread that will run it and that `timer` kicks.
    pub fn new(machine: &dyn Seen, world: World, timer: impl Alarm + 'static, options: RecorderOptions) -> Self {
        let RecorderOptions {
            policy,
            log,
            host_class,
            status,
        } = options;
        let now = world.kernel.monotonic();
        Self {
            world,
            policy,
            clock: GuestClock::starting_at(machine.now(), now),
            calendar: Calendar::default(),
            due: DueTimer::new(timer, policy.grace, policy.beat, now),
            log,
            host_class,
            position: LogPosition::START,
            batch: BatchBuilder::new(machine.stop()),
            terms: Vec::new(),
            last_term: Term::NONE,
            batch_since: now,
            epoch_run: 0,
            epoch_length: policy.epoch.unwrap_or(0),
            forced: None,
            slice_since: now,
            turn_since: now,
            idle: 0,
            frames: None,
            typed: Vec::new(),
            keys: Vec::new(),
            asks: false,
            entropy_wanted: Vec::new(),
            quitting: false,
            shut_down: false,
            withheld: Vec::new(),
            errors: Vec::new(),
            pace: Pace::default(),
            status,
            taken_stop: machine.stop(),
            ended: None,
        }
    }

    /// Lets guest time go on as if this much had passed.
    pub fn catch_up(&mut self, time: Duration) {
        let host = self.world.kernel.monotonic();
        self.clock = GuestClock::starting_at(self.clock.at(host).plus_ns(time.as_nanos() as u64), host);
    }

    /// Lets guest time come back to the host's calendar without a step: the machine was on another host, or stood still, or
    /// the calendar was set.
    pub fn follow_the_calendar(&mut self, machine: &dyn Seen) {
        let kernel = &self.world.kernel;
        let host = kernel.monotonic();
        let goal = calendar_since(kernel.realtime(), machine.config().rtc_base);
        let gap = self.clock.slew_at(host, goal);
        let (behind_ms, slewed) = (gap / 1_000_000, gap.unsigned_abs() <= INSANE.unsigned_abs());
        self.calendar.settle(if slewed { 0 } else { gap });
        self.status.gauges().behind_ns.store(gap, Ordering::Relaxed);
        if slewed {
            tracing::info!(behind_ms, "the guest's clock follows this host's");
        } else {
            tracing::warn!(
                behind_ms,
                "the guest's clock is left as it is: too far from this host's, which is set wrong, or the machine was started from an old snapshot"
            );
        }
    }

    /// Guest time goes on from where it stands, whatever the host's calendar shows.
    pub fn ignore_the_calendar(&mut self) {
        self.calendar = Calendar::ignored();
    }

    /// Looks now and then whether somebody has set the host's calendar.
    fn look_at_the_calendar(&mut self, machine: &dyn Seen) {
        if !self.calendar.is_due(self.turn_since.plus_ns(self.idle)) {
            return;
        }
        let kernel = &self.world.kernel;
        let now = kernel.monotonic();
        let goal = calendar_since(kernel.realtime(), machine.config().rtc_base);
        if kernel.monotonic().ns_since(now) >= ONE_MOMENT {
            // This thread was held up while it looked.
            return;
        }
        let (behind, slewing) = (self.clock.behind_at(now, goal), self.clock.left_at(now));
        self.status.gauges().behind_ns.store(behind, Ordering::Relaxed);
        if self.calendar.look(now, behind, slewing) {
            tracing::warn!("this host's calendar was set while the machine runs");
            self.follow_the_calendar(machine);
        }
    }

    /// Resubmits what was in flight when the machine was saved.
    pub fn resume(&mut self, machine: &dyn Seen) -> Result<(), RecordError> {
        for request in machine.devices().outstanding_disk_requests() {
            self.submit(request)?;
        }
        self.entropy_wanted
            .extend(machine.devices().outstanding_entropy_requests());
        Ok(())
    }

    /// Closes the log with the machine's final state.
    pub fn finish(mut self, machine: &dyn Seen, failure: Option<&str>) -> Result<Option<LogSummary>, RecordError> {
        let term = self.end_terms(machine);
        self.close_batch(machine)?;
        let Some(log) = self.log.take() else { return Ok(None) };
        let reason = match (failure, self.ended) {
            (Some(_), _) => Reason::Failed,
            (None, Some(reason)) => reason,
            (None, None) => Reason::Quit,
        };
        // A machine that another node has by now stood still to its end.
        let frozen = self.world.outlet.port().and_then(|port| port.frozen());
        let stood = frozen.map(|why| describe(&PrimaryState::Frozen(why)));
        let end = End {
            reason: reason.into(),
            detail: failure.map(ToOwned::to_owned).or(stood).unwrap_or_default(),
            last_stop: self.taken_stop.get(),
            digest: machine.chain().to_message(),
            memory_digest: match failure {
                Some(_) => bytes::Bytes::new(),
                None => bytes::Bytes::copy_from_slice(&machine.full_memory_digest()),
            },
            guest_ns: machine.now().ns(),
            term: term.get(),
            continued: false,
        };
        let summary = log.finish(end).map(Some);
        Ok(summary.unwrap_or_else(|reason| {
            self.recorded(Err(reason));
            None
        }))
    }

    /// Why the guest ended, if it did.
    pub fn ended(&self) -> Option<Reason> {
        self.ended
    }

    /// Waits for what comes to a halted guest, and no longer than to its timer, so many nanoseconds.
    fn sleep(&mut self, machine: &dyn Seen, limit: Option<u64>) -> Result<(), RecordError> {
        let mut wait = limit.map_or(LONGEST_WAIT, |ns| Duration::from_nanos(ns).min(LONGEST_WAIT));
        if !self.batch.is_empty() {
            let age = self.world.kernel.monotonic().ns_since(self.batch_since);
            let limit = self.batch_age();
            // A backup gets what there is before the guest sleeps.
            if age >= limit || self.world.outlet.is_logging() {
                self.close_batch(machine)?;
            } else {
                wait = wait.min(Duration::from_nanos(limit - age));
            }
        }
        let begin = self.world.kernel.monotonic();
        self.world.kernel.wait(wait);
        let end = self.world.kernel.monotonic();
        self.idle += end.ns_since(begin);
        Ok(())
    }

    fn submit(&mut self, request: lockstep_vmm::devices::DiskRequest) -> Result<(), RecordError> {
        self.world.disks.submit(request).map_err(|cause| RecordError::Host {
            what: "submit a disk request",
            cause,
        })
    }
}

impl Oracle for Recorder {
    type Error = RecordError;

    fn slice(&mut self, _machine: &dyn Seen) -> Result<Slice, RecordError> {
        Ok(if self.due.follows() {
            Slice::RunToWindow
        } else {
            Slice::Run
        })
    }

    fn is_due(&mut self, machine: &dyn Seen) -> Result<bool, RecordError> {
        self.status.pulses().vcpu.beat();
        let now = self.world.kernel.monotonic();
        let bell = &self.world.inbox.bell;
        let grace = if machine.is_in_user_mode()? {
            self.policy.grace
        } else {
            self.policy.patience
        };
        let due = bell.wants_quit()
            || self.due.is_due(now, grace)
            || (bell.is_rung() && now >= self.slice_since.plus_ns(grace));
        if due {
            // Until a stop serves it. Nobody else writes here.
            let since = &self.status.gauges().due_since;
            let _ = since.compare_exchange(0, now.ns(), Ordering::Release, Ordering::Relaxed);
        } else {
            self.due.rearm(now, bell.is_rung());
        }
        tracing::trace!(stop = machine.stop().get(), due, "kicked");
        Ok(due)
    }

    fn forced(&mut self, machine: &mut dyn Seen) -> Result<(), RecordError> {
        let begin = self.world.kernel.monotonic();
        let mut pages = 0;
        let slice_ns = begin.ns_since(self.slice_since);
        count(&self.status.gauges().carried_ns, slice_ns);
        if self.is_logging() {
            let delta = machine.take_delta()?;
            pages = delta.frames.len() as u64;
            self.forced = Some(Forced {
                vcpu: Some(delta.vcpu),
                pages: delta.frames.len() as u32,
                slice_ns,
            });
            if let Some(port) = self.world.outlet.port().filter(|port| port.is_logging()) {
                let pages = LogItem::Pages(delta.frames.clone(), delta.pages.clone());
                port.log(&self.status.pulses().vcpu, pages);
            }
            if let Some(log) = &self.log {
                let kept = log.pages(delta.frames, delta.pages);
                self.recorded(kept);
            }
        }
        let end = self.world.kernel.monotonic();
        self.due
            .paid(end, (end.ns_since(begin) + pages * COLLECTED_PAGE) * COST_SHARE);
        Ok(())
    }

    fn turn(&mut self, machine: &dyn Seen, stop: &Stop) -> Result<Turn, RecordError> {
        let mut turn = Turn::default();
        self.turn_since = self.world.kernel.monotonic();
        self.status.gauges().due_since.store(0, Ordering::Release);
        self.idle = 0;
        let ran = self.turn_since.ns_since(self.slice_since);
        self.epoch_run += ran;
        self.pace.ran(ran);
        count(&self.status.gauges().run_ns, ran);
        loop {
            self.status.pulses().vcpu.beat();
            self.look_at_the_calendar(machine);
            if self.world.inbox.bell.wants_quit() {
                self.quitting = true;
            }
            let waits = self.frames.is_some() || !self.typed.is_empty() || !self.keys.is_empty() || self.asks;
            if self.world.inbox.bell.is_rung() || waits {
                self.collect(machine, &mut turn);
            }
            self.fill_entropy(&mut turn)?;
            let timer = machine.deadline();
            let looks = stop.wants_time || stop.halted || stop.kind == StopKind::Forced;
            if looks || timer.is_some() {
                let situation = Situation {
                    now: self.clock.at(self.world.kernel.monotonic()),
                    seen: machine.now(),
                    timer,
                    halted: stop.halted,
                    looks,
                    brings: turn != Turn::default(),
                    restless: self.quitting || self.has_errand() || machine.interrupt_waits(),
                };
                match situation.decide() {
                    Decision::Sleep(limit) => {
                        self.sleep(machine, limit)?;
                        continue;
                    }
                    Decision::Enter(step) => turn.clock = step,
                }
            }
            break;
        }
        if stop.wants_random {
            let mut value = [0; 8];
            self.world.kernel.fill_random(&mut value)?;
            turn.random = Some(u64::from_le_bytes(value));
        }
        turn.forced = self.forced.take();
        if self.policy.epoch.is_some() && stop.kind != StopKind::Forced && self.epoch_run >= self.epoch_length {
            self.epoch_run = 0;
            turn.epoch = Some(lockstep_proto::Epoch::default());
        }
        Ok(turn)
    }

    fn disk_data(&mut self, disk: u32, request: u64) -> Result<Option<Vec<u8>>, RecordError> {
        let done = self.world.disks.take(disk, request);
        Ok(done.map_err(|cause| RecordError::Host { what: "disk", cause })?.data)
    }

    fn taken(&mut self, machine: &dyn Seen, stop: &Stop, mut turn: Turn, taken: Taken) -> Result<Flow, RecordError> {
        let mut leaving = Vec::new();
        for effect in taken.effects {
            match effect {
                Effect::Console(_) | Effect::Frame { .. } => leaving.push(effect),
                Effect::Disk(request) => self.submit(request)?,
                Effect::Entropy { bytes } => {
                    self.entropy_wanted.push(bytes);
                    self.world.inbox.bell.ring();
                }
                Effect::Reset | Effect::PowerOff => {}
            }
        }
        if self.world.outlet.is_logging() {
            self.status.history().keep(machine);
        }
        if let Some(report) = taken.epoch {
            let cost = report.pages.len() as u64 * COLLECTED_PAGE * COST_SHARE;
            self.epoch_length = cost.max(self.policy.epoch.unwrap_or(0));
            turn.epoch = Some(report.to_message(self.policy.epoch_detail));
        }
        let always = matches!(stop.kind, StopKind::Halt | StopKind::Forced);
        if self.is_logging() && (always || turn != Turn::default()) {
            if self.batch.is_empty() {
                self.batch_since = self.slice_since;
            }
            self.batch.push(machine.stop(), turn)?;
        }
        self.taken_stop = machine.stop();
        tracing::trace!(stop = machine.stop().get(), kind = %stop.kind, rip = format!("{:x}", machine.regs().rip), rflags = format!("{:x}", machine.regs().rflags), interrupt = ?taken.interrupt, waits = machine.interrupt_waits(), "taken");
        self.slice_since = self.world.kernel.monotonic();
        let took = self.slice_since.ns_since(self.turn_since.plus_ns(self.idle));
        self.status.gauges().exits.add_ns(stop.kind, took);
        let deadline = machine.deadline().map(|at| self.clock.host_at(at));
        let requested = machine.devices().interrupt_requested();
        self.due
            .update(self.slice_since, machine.interrupt_waits(), requested, deadline);
        self.emit(machine, leaving)?;
        let old = self.slice_since.ns_since(self.batch_since) >= self.batch_age();
        if self.batch.encoded_len() >= BATCH_BYTES || (old && !self.batch.is_empty()) {
            self.close_batch(machine)?;
        }
        self.ended = taken.ended;
        // A halted machine comes back to its driver only so.
        let leave = self.quitting || (machine.is_halted() && self.has_errand());
        Ok(if leave { Flow::End } else { Flow::Continue })
    }
}
