//! When a forced stop is justified, and the timer that kicks the vCPU then.

use lockstep_vmm::sys::kick::KickTimer;

/// Knows since when something has been due.
pub struct DueTimer {
    timer: KickTimer,
    grace: u64,
    /// Since when an interrupt has waited for IF=1, host time.
    waiting_since: Option<u64>,
    /// When the first thing is or was due, host time.
    due_at: Option<u64>,
    /// What the timer is set to; it may fire early and is then set again.
    armed: Option<u64>,
    /// No forced stop before this, host time.
    not_before: u64,
    /// A test's beat: something counts as due each time this many nanoseconds have passed, whatever it costs.
    beat: Option<u64>,
    next_beat: u64,
}

impl DueTimer {
    pub fn new(timer: KickTimer, grace: u64, beat: Option<u64>) -> Self {
        Self {
            timer,
            grace,
            waiting_since: None,
            due_at: None,
            armed: None,
            not_before: 0,
            beat,
            next_beat: beat.map_or(0, |beat| crate::host::clock::monotonic() + beat),
        }
    }

    /// After every turn: whether an interrupt waits, and when (host time) the next device timer is due.
    pub fn update(&mut self, now: u64, interrupt_waits: bool, deadline: Option<u64>) {
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

    /// When a forced stop becomes justified with this grace.
    fn kick_at(&self, grace: u64) -> Option<u64> {
        let at = self.due_at.map(|at| at.saturating_add(grace).max(self.not_before));
        if self.beat.is_some() {
            Some(at.map_or(self.next_beat, |at| at.min(self.next_beat)))
        } else {
            at
        }
    }

    /// Whether something has been due for `grace`.
    pub fn is_due(&self, now: u64, grace: u64) -> bool {
        self.kick_at(grace).is_some_and(|at| at <= now)
    }

    /// Nothing justifies a forced stop yet: looks again after the grace, or when it will be justified. `also`: something
    /// else waits too.
    pub fn rearm(&mut self, now: u64, also: bool) {
        let again = now + self.grace;
        match self.kick_at(self.grace) {
            Some(at) => self.arm(at.max(again)),
            None if also => self.arm(again),
            None => self.armed = None,
        }
    }

    fn arm(&mut self, at: u64) {
        self.timer.arm(at);
        self.armed = Some(at);
    }

    /// A delta was made; the next one waits for so many nanoseconds.
    pub fn paid(&mut self, wait: u64) {
        let now = crate::host::clock::monotonic();
        self.not_before = now + wait;
        if let Some(beat) = self.beat {
            // Beats that were missed are left out.
            self.next_beat = now.max(self.next_beat + beat);
        }
    }
}
