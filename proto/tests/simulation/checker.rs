//! What must hold after every event.

use lockstep_proto::quantity::Term;
use lockstep_proto::session::Record;

#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub releases: u64,
    pub promotions: u64,
    pub boots: u64,
    pub protected: u64,
    pub fenced: u64,
    pub handed_over: u64,
    /// Of these, because the guest made no stop.
    pub given_away: u64,
    pub lost_terms: u64,
    pub no_arbiter: u64,
    pub emitted_again: u64,
    /// Terms given back by a node that had won and died before it went live.
    pub handed_back: u64,
    /// Machines that were booted anew after a reset, by the node that ran them.
    pub resets: u64,
    /// Machines that an operator has shut down, and whose backup has heard of it.
    pub shut_down: u64,
    /// Of these and others, ended by force because the guest was too late.
    pub forced: u64,
    /// Machines of which their backup found that they had ended.
    pub ended_at_backup: u64,
}

impl Counts {
    pub fn add(&mut self, other: &Self) {
        self.releases += other.releases;
        self.promotions += other.promotions;
        self.boots += other.boots;
        self.protected += other.protected;
        self.fenced += other.fenced;
        self.handed_over += other.handed_over;
        self.given_away += other.given_away;
        self.lost_terms += other.lost_terms;
        self.no_arbiter += other.no_arbiter;
        self.emitted_again += other.emitted_again;
        self.handed_back += other.handed_back;
        self.resets += other.resets;
        self.shut_down += other.shut_down;
        self.forced += other.forced;
        self.ended_at_backup += other.ended_at_backup;
    }
}

#[derive(Default)]
pub struct Checker {
    /// By position less one: what left.
    released: Vec<Option<u64>>,
    /// Effects up to here may never leave: the machine that made them was rebooted.
    pub excused: u64,
    /// The connection by which a backup has last heard of a machine's end.
    pub heard_by: Option<usize>,
    /// Where the log ends of the last machine of which a backup was told that it has ended.
    pub ended_at: u64,
    pub last_release: u64,
    pub violation: Option<String>,
    pub counts: Counts,
}

impl Checker {
    pub fn fail(&mut self, text: String) {
        self.violation.get_or_insert(text);
    }

    /// `node` lets the effect at `position` go, in `term`.
    pub fn releases(&mut self, now: u64, node: &str, term: Term, position: u64, effect: u64, record: &Record) {
        self.counts.releases += 1;
        self.last_release = now;
        if record.term != term || record.owner != node {
            self.fail(format!(
                "two live: {node} lets position {position} go in term {term}, and the arbiter has {record:?}"
            ));
        }
        let at = position as usize - 1;
        if self.released.len() <= at {
            self.released.resize(at + 1, None);
        }
        match self.released[at] {
            Some(before) if before != effect => {
                self.fail(format!(
                    "two outputs: position {position} left as {before:x} and, from {node}, as {effect:x}"
                ));
            }
            Some(_) => self.counts.emitted_again += 1,
            None => self.released[at] = Some(effect),
        }
        if at > 0 && self.released[at - 1].is_none() && position - 1 > self.excused {
            self.fail(format!(
                "lost output: {node} lets position {position} go, and the one before never left"
            ));
        }
    }

    /// `node` goes live in `term` with this history.
    pub fn goes_live(&mut self, node: &str, term: Term, history: &[u64], record: &Record) {
        if record.term != term || record.owner != node {
            self.fail(format!(
                "{node} goes live in term {term}, and the arbiter has {record:?}"
            ));
        }
        let lost = self.released.iter().enumerate().find(|(at, released)| {
            released.is_some_and(|released| history.get(*at).is_none_or(|effect| *effect != released))
        });
        if let Some((at, _)) = lost {
            self.fail(format!(
                "lost output: {node} goes live in term {term} with a history of {} that lacks what left at position {}",
                history.len(),
                at + 1
            ));
        }
    }

    /// `node` boots from its disk; what its machine made and did not emit is gone.
    pub fn boots(&mut self, node: &str, term: Term, history: &[u64], record: &Record) {
        self.counts.boots += 1;
        self.goes_live(node, term, history, record);
        self.excused = self.excused.max(history.len() as u64);
    }

    /// The first position up to `end` of which the output never left, and should have.
    fn missing(&self, end: u64) -> Option<u64> {
        (self.excused + 1..=end).find(|position| self.released.get(*position as usize - 1).is_none_or(Option::is_none))
    }

    /// `node` tells its backup that the machine has ended, with a log up to `end`: the backup throws away what it has.
    pub fn ends(&mut self, node: &str, end: u64) {
        if let Some(missing) = self.missing(end) {
            self.fail(format!(
                "lost output: {node} says that its machine has ended at {end}, and position {missing} has not left"
            ));
        }
    }

    /// `node` gives up a machine that has reset, of which the backup has acknowledged `acked` and has it no more.
    pub fn starts_over(&mut self, node: &str, acked: u64) {
        if let Some(missing) = self.missing(acked) {
            self.fail(format!(
                "lost output: {node} starts over, and nobody has position {missing}, which was acknowledged and has not left"
            ));
        }
    }

    /// `node` has won the term with the log of a machine up to `end`.
    pub fn takes_over(&mut self, node: &str, end: u64) {
        if end <= self.ended_at {
            let ended = self.ended_at;
            self.fail(format!(
                "not over: {node} goes on at {end} with a machine that has ended at {ended}"
            ));
        }
    }
}
