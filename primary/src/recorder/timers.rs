//! When a forced stop is justified, and the timer that kicks the vCPU then.

use lockstep_proto::quantity::HostTime;
use lockstep_vmm::sys::kick::Alarm;

/// Interrupts that may enter by a stop of their own right after one that was justified. An interrupt controller has few
/// inputs; the bound is for a guest whose handlers take longer than its timer's period.
const FOLLOWING: u32 = 4;

/// Knows since when something has been due.
///
/// One interrupt enters at a forced stop. Others that wait then would wait for the next one, which may be long in coming
/// because deltas cost; and there the timer, whose priority is highest, would be due again: they would starve. So they
/// *follow*: as soon as the handler has returned the guest is stopped again. Little is dirty by then.
pub struct DueTimer {
    timer: Box<dyn Alarm>,
    grace: u64,
    /// Since when an interrupt has waited for IF=1.
    waiting_since: Option<HostTime>,
    /// When the first thing is or was due.
    due_at: Option<HostTime>,
    /// What the timer is set to; it may fire early and is then set again.
    armed: Option<HostTime>,
    /// No forced stop before this.
    not_before: HostTime,
    /// A test's beat: something counts as due each time this many nanoseconds have passed, whatever it costs.
    beat: Option<u64>,
    next_beat: HostTime,
    /// How many more may follow the last stop that was justified.
    following: u32,
}

impl DueTimer {
    /// `grace` and `beat` in nanoseconds.
    pub fn new(timer: impl Alarm + 'static, grace: u64, beat: Option<u64>, now: HostTime) -> Self {
        Self {
            timer: Box::new(timer),
            grace,
            waiting_since: None,
            due_at: None,
            armed: None,
            not_before: HostTime::ZERO,
            beat,
            next_beat: beat.map_or(HostTime::ZERO, |beat| now.plus_ns(beat)),
            following: 0,
        }
    }

    /// After every turn: whether an interrupt waits, whether one is requested at all, and when the next device timer
    /// is due.
    pub fn update(&mut self, now: HostTime, interrupt_waits: bool, requested: bool, deadline: Option<HostTime>) {
        if !requested {
            self.following = 0;
        }
        if interrupt_waits {
            self.waiting_since.get_or_insert(now);
        } else {
            self.waiting_since = None;
        }
        self.due_at = match (self.waiting_since, deadline) {
            (Some(waiting), Some(deadline)) => Some(waiting.min(deadline)),
            (waiting, deadline) => waiting.or(deadline),
        };
        if let Some(at) = self.kick_at(self.grace)
            && self.armed.is_none_or(|armed| at < armed || armed <= now)
        {
            self.arm(at);
        }
    }

    /// Whether an interrupt may follow, as soon as it can enter.
    pub fn follows(&self) -> bool {
        self.following > 0
    }

    /// When a forced stop becomes justified with this grace.
    fn kick_at(&self, grace: u64) -> Option<HostTime> {
        if let Some(waiting) = self.waiting_since.filter(|_| self.follows()) {
            return Some(waiting.plus_ns(grace));
        }
        let at = self.due_at.map(|at| at.plus_ns(grace).max(self.not_before));
        if self.beat.is_some() {
            Some(at.map_or(self.next_beat, |at| at.min(self.next_beat)))
        } else {
            at
        }
    }

    /// Whether something has been due for `grace`.
    pub fn is_due(&self, now: HostTime, grace: u64) -> bool {
        (self.follows() && self.waiting_since.is_some()) || self.kick_at(grace).is_some_and(|at| at <= now)
    }

    /// Nothing justifies a forced stop yet: looks again after the grace, or when it will be justified. `also`: something
    /// else waits too.
    pub fn rearm(&mut self, now: HostTime, also: bool) {
        let again = now.plus_ns(self.grace);
        match self.kick_at(self.grace) {
            Some(at) => self.arm(at.max(again)),
            None if also => self.arm(again),
            None => self.armed = None,
        }
    }

    fn arm(&mut self, at: HostTime) {
        self.timer.arm(at);
        self.armed = Some(at);
    }

    /// A delta was made; the next one waits for so many nanoseconds.
    pub fn paid(&mut self, now: HostTime, wait: u64) {
        // One that follows adds to what the first one costs.
        let from = if self.follows() { now.max(self.not_before) } else { now };
        self.not_before = from.plus_ns(wait);
        self.following = self.following.checked_sub(1).unwrap_or(FOLLOWING);
        if let Some(beat) = self.beat {
            // Beats that were missed are left out.
            self.next_beat = now.max(self.next_beat.plus_ns(beat));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: u64 = 1_000_000;
    const SECOND: u64 = 1_000_000_000;

    /// An alarm that nobody hears.
    struct Silent;

    impl Alarm for Silent {
        fn arm(&self, _: HostTime) {}
        fn arm_in(&self, _: u64) {}
    }

    const NOW: HostTime = HostTime::from_ns(7 * SECOND);

    /// A forced stop was justified and cost so much that the next one waits for a thousand seconds.
    fn paid() -> DueTimer {
        let mut due = DueTimer::new(Silent, GRACE, None, NOW);
        due.paid(NOW, 1000 * SECOND);
        due
    }

    #[test]
    fn what_is_due_waits_until_the_last_delta_is_paid_for() {
        let (mut due, now) = (paid(), NOW);
        due.update(now, true, false, Some(now));
        assert!(!due.follows() && !due.is_due(now.plus_ns(900 * SECOND), GRACE));
        assert!(due.is_due(now.plus_ns(1100 * SECOND), GRACE));
    }

    #[test]
    fn an_interrupt_that_was_requested_at_a_forced_stop_follows_as_soon_as_it_can_enter() {
        let (mut due, now) = (paid(), NOW);
        // The one that has entered is in service; the timer is due again.
        due.update(now, false, true, Some(now));
        assert!(due.follows() && !due.is_due(now.plus_ns(SECOND), GRACE));
        // Its handler has said that it is over.
        due.update(now, true, true, Some(now));
        assert!(due.follows() && due.is_due(now, GRACE));
        // The second one has entered, and nothing else is requested.
        due.paid(now, 0);
        due.update(now, false, false, Some(now));
        assert!(!due.follows() && !due.is_due(now.plus_ns(SECOND), GRACE));
    }

    #[test]
    fn only_so_many_follow_and_they_are_paid_for_too() {
        let (mut due, now) = (paid(), NOW);
        for _ in 0..FOLLOWING {
            due.update(now, true, true, None);
            assert!(due.is_due(now, GRACE));
            due.paid(now, 100 * SECOND);
        }
        due.update(now, true, true, None);
        assert!(!due.follows() && !due.is_due(now.plus_ns(1300 * SECOND), GRACE));
        assert!(due.is_due(now.plus_ns(1500 * SECOND), GRACE));
        // One that was due by itself pays for itself alone.
        due.paid(now, SECOND);
        due.update(now, true, false, None);
        assert!(due.is_due(now.plus_ns(2 * SECOND), GRACE));
    }
}
