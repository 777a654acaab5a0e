//! What an end of the link looks at now and then: the arbiter, and the ways to the machine: the service uplink and the tap
//! devices.

use std::io;
use std::time::{Duration, Instant};

use lockstep_proto::session::{Record, Verdict};

use crate::host::tap::Taps;
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

/// How long a tap device may be gone, or in no bridge: what sets a network up anew takes it away for a moment.
const TAP_GRACE: Duration = Duration::from_secs(2);

/// Keeps an eye on the arbiter, the uplink and the tap devices.
pub struct Watch {
    uplink: Option<Uplink>,
    taps: Taps,
    /// What is wrong with the uplink, since when, and the same of the tap devices.
    uplink_down: Option<Down>,
    taps_down: Option<Down>,
    looks: u32,
    is_looking: bool,
    blocked: bool,
}

/// A way to the machine that is cut.
struct Down {
    why: String,
    since: Instant,
}

impl Down {
    /// What follows from what was seen before and from what is wrong now.
    fn after(was: Option<Self>, why: Option<String>) -> Option<Self> {
        let since = was.map_or_else(Instant::now, |was| was.since);
        why.map(|why| Self { why, since })
    }
}

impl Watch {
    /// Fails if the uplink cannot be looked at.
    pub fn new(uplink: Option<Uplink>, taps: Taps) -> io::Result<Self> {
        if let Some(uplink) = &uplink {
            has_carrier(&uplink.interface)?;
        }
        Ok(Self {
            uplink,
            taps,
            uplink_down: None,
            taps_down: None,
            looks: 0,
            is_looking: false,
            blocked: false,
        })
    }

    /// Looks at the uplink and the tap devices. True when it is time to look at the arbiter; [`Watch::arbiter`] takes the
    /// answer.
    pub fn look(&mut self) -> bool {
        // An interface that has vanished carries nothing.
        let has_none = |uplink: &&Uplink| !has_carrier(&uplink.interface).unwrap_or(false);
        let uplink = self.uplink.as_ref().filter(has_none);
        let why = uplink.map(|uplink| format!("uplink {} has no carrier", uplink.interface));
        self.uplink_down = Down::after(self.uplink_down.take(), why);
        self.taps_down = Down::after(self.taps_down.take(), self.taps.trouble());
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

    /// Why clients do not reach a machine on this host, if that is so.
    pub fn cut_off(&self) -> Option<&str> {
        let down = self.taps_down.as_ref().or(self.uplink_down.as_ref());
        down.map(|down| down.why.as_str())
    }

    /// The same where it has been so for longer than it may.
    pub fn cut_off_for_long(&self) -> Option<&str> {
        let grace = self.uplink.as_ref().map_or(Duration::MAX, |uplink| uplink.grace);
        let ways = [(&self.taps_down, TAP_GRACE), (&self.uplink_down, grace)];
        let late = ways
            .into_iter()
            .filter_map(|(down, grace)| down.as_ref().filter(|down| down.since.elapsed() >= grace));
        late.map(|down| down.why.as_str()).next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_the_arbiter_every_few_looks_one_question_at_a_time() {
        let mut watch = Watch::new(None, Taps::default()).unwrap();
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
        assert!(Watch::new(Some(uplink), Taps::default()).is_err());
    }

    #[test]
    fn a_carrier_is_seen() {
        // The loopback interface of a network namespace may be down; it exists in each.
        let uplink = Uplink {
            interface: "lo".into(),
            grace: Duration::ZERO,
        };
        let mut watch = Watch::new(Some(uplink), Taps::default()).unwrap();
        watch.look();
        assert_eq!(watch.cut_off_for_long(), watch.cut_off());
    }
}
