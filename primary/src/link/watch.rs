//! What an end of the link looks at now and then: the arbiter, and the service uplink.

use std::io;
use std::time::{Duration, Instant};

use lockstep_proto::session::{Record, Verdict};

use crate::sys::uplink::has_carrier;

/// From one look to the next.
pub const LOOK: Duration = Duration::from_secs(1);
/// Looks at the uplink from one question to the arbiter to the next.
const ARBITER_EVERY: u32 = 5;

/// Asks the arbiter to replace a record, and calls back with what it said.
pub type Ask = Box<dyn FnMut(Record, Record, Box<dyn FnOnce(Verdict) + Send>) + Send>;

/// Looks whether the arbiter answers, and calls back with that.
pub type Look = Box<dyn FnMut(Box<dyn FnOnce(bool) + Send>) + Send>;

/// A connection to the arbiter.
pub struct ArbiterPort {
    /// To change the record.
    pub ask: Ask,
    /// To know that it could be changed.
    pub look: Look,
}

/// The interface by which the service is reached.
#[derive(Clone, Debug)]
pub struct Uplink {
    /// Its name.
    pub interface: String,
    /// How long it may be without a carrier.
    pub grace: Duration,
}

/// Keeps an eye on the arbiter and the uplink.
pub struct Watch {
    uplink: Option<Uplink>,
    down_since: Option<Instant>,
    looks: u32,
    is_looking: bool,
    blocked: bool,
}

impl Watch {
    /// Fails if the uplink cannot be looked at.
    pub fn new(uplink: Option<Uplink>) -> io::Result<Self> {
        if let Some(uplink) = &uplink {
            has_carrier(&uplink.interface)?;
        }
        Ok(Self {
            uplink,
            down_since: None,
            looks: 0,
            is_looking: false,
            blocked: false,
        })
    }

    /// Looks at the uplink. True when it is time to look at the arbiter; [`Watch::arbiter`] takes the answer.
    pub fn look(&mut self) -> bool {
        if let Some(uplink) = &self.uplink {
            // An interface that has vanished carries nothing.
            if has_carrier(&uplink.interface).unwrap_or(false) {
                self.down_since = None;
            } else {
                self.down_since.get_or_insert_with(Instant::now);
            }
        }
        let due = !self.is_looking && self.looks.is_multiple_of(ARBITER_EVERY);
        self.looks = self.looks.wrapping_add(1);
        self.is_looking |= due;
        due
    }

    /// The arbiter has answered, or not.
    pub fn arbiter(&mut self, answers: bool) {
        self.is_looking = false;
        self.blocked = !answers;
    }

    /// The arbiter does not answer: nobody could take over.
    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Whether the uplink is without a carrier.
    pub fn is_down(&self) -> bool {
        self.down_since.is_some()
    }

    /// Whether it has been for longer than the grace.
    pub fn is_cut_off(&self) -> bool {
        let grace = self.uplink.as_ref().map_or(Duration::MAX, |uplink| uplink.grace);
        self.down_since.is_some_and(|since| since.elapsed() >= grace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_the_arbiter_every_few_looks_one_question_at_a_time() {
        let mut watch = Watch::new(None).unwrap();
        assert!(watch.look());
        assert!((0..2 * ARBITER_EVERY).all(|_| !watch.look()), "no answer has come");
        watch.arbiter(false);
        assert!(watch.is_blocked());
        assert_eq!((0..ARBITER_EVERY).filter(|_| watch.look()).count(), 1);
        watch.arbiter(true);
        assert!(!watch.is_blocked());
    }

    #[test]
    fn an_uplink_that_does_not_exist_is_refused() {
        let uplink = Uplink {
            interface: "no-such-nic".into(),
            grace: Duration::ZERO,
        };
        assert!(Watch::new(Some(uplink)).is_err());
    }

    #[test]
    fn a_carrier_is_seen() {
        // The loopback interface of a network namespace may be down; it exists in each.
        let uplink = Uplink {
            interface: "lo".into(),
            grace: Duration::ZERO,
        };
        let mut watch = Watch::new(Some(uplink)).unwrap();
        watch.look();
        assert_eq!(watch.is_cut_off(), watch.is_down());
    }
}
