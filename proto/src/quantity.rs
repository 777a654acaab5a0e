//! Quantities that are numbers and must not be taken for one another.
//!
//! Host time, guest time and session time are all nanoseconds, of three clocks. A machine's clock alone knows how host time
//! becomes guest time, and nobody how either becomes session time: there is no conversion here, and no arithmetic between
//! them. They are moments: two of them have no sum. Lengths of time are plain nanoseconds, and named `_ns`.
//!
//! ```compile_fail
//! use lockstep_proto::quantity::{GuestTime, HostTime};
//! HostTime::from_ns(5).ns_since(GuestTime::from_ns(3));
//! ```
//!
//! ```
//! use lockstep_proto::quantity::SessionTime;
//! assert_eq!(SessionTime::from_ns(5).plus_ns(3).ns_since(SessionTime::from_ns(6)), 2);
//! ```
//!
//! ```compile_fail
//! use lockstep_proto::quantity::{HostTime, SessionTime};
//! SessionTime::from_ns(5).ns_since(HostTime::from_ns(3));
//! ```
//!
//! ```compile_fail
//! use lockstep_proto::quantity::{HostTime, SessionTime};
//! let _ = SessionTime::from_ns(5) > HostTime::from_ns(3);
//! ```
//!
//! ```compile_fail
//! use lockstep_proto::quantity::SessionTime;
//! SessionTime::from_ns(5).plus_ns(SessionTime::from_ns(3));
//! ```
//!
//! ```compile_fail
//! use lockstep_proto::quantity::SessionTime;
//! let _ = SessionTime::from_ns(5) + SessionTime::from_ns(3);
//! ```
//!
//! Numbers of different things are compared with their own kind only, and are plain numbers nowhere but where a message, a
//! file or a gauge has them:
//!
//! ```
//! use lockstep_proto::quantity::{BatchNumber, PageNumber, StopNumber, Term};
//! assert_eq!(StopNumber::new(5).since(StopNumber::new(3)), 2);
//! assert!(Term::new(5) > Term::new(3) && BatchNumber::new(5) > BatchNumber::new(3));
//! assert_eq!(PageNumber::new(5).since(PageNumber::new(3)), 2);
//! ```
//!
//! ```compile_fail
//! use lockstep_proto::quantity::{LogPosition, StopNumber};
//! StopNumber::new(5).since(LogPosition::new(3));
//! ```
//!
//! ```compile_fail
//! use lockstep_proto::quantity::{StopNumber, Term};
//! let _ = Term::new(5) > StopNumber::new(3);
//! ```
//!
//! ```compile_fail
//! use lockstep_proto::quantity::{BatchNumber, LogPosition};
//! let _ = LogPosition::new(5) > BatchNumber::new(3);
//! ```
//!
//! ```compile_fail
//! use lockstep_proto::quantity::{PageIndex, PageNumber};
//! PageNumber::new(5).since(PageIndex::new(3));
//! ```
//!
//! None can do more than its kind needs:
//!
//! ```compile_fail
//! use lockstep_proto::quantity::Term;
//! let _ = Term::new(5).plus(3);
//! ```

use std::fmt;

macro_rules! time {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u64);

        impl $name {
            /// Where this time begins.
            pub const ZERO: Self = Self(0);

            /// So many nanoseconds after it began.
            pub const fn from_ns(ns: u64) -> Self {
                Self(ns)
            }

            /// Nanoseconds since it began: for messages, gauges, and what the guest is told.
            pub const fn ns(self) -> u64 {
                self.0
            }

            /// So many nanoseconds later; the last moment that can be said where that is beyond it.
            #[must_use]
            pub const fn plus_ns(self, ns: u64) -> Self {
                Self(self.0.saturating_add(ns))
            }

            /// Nanoseconds since `earlier`; 0 where that is later.
            pub const fn ns_since(self, earlier: Self) -> u64 {
                self.0.saturating_sub(earlier.0)
            }
        }
    };
}

time! {
    /// Guest time: nanoseconds since the machine was made, as the guest's TSC shows them. It moves only when a turn says so.
    GuestTime
}

time! {
    /// Host time: nanoseconds of this host's `CLOCK_MONOTONIC`. It means nothing on another host, and after a reboot.
    HostTime
}

time! {
    /// Session time: nanoseconds of this host's `CLOCK_BOOTTIME`. Unlike host time it goes on while the host is suspended: a
    /// node's lease runs out and its deadlines pass, whether or not anybody is awake to see it. It means nothing on another
    /// host, and after a reboot.
    SessionTime
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident
        $({ $($(#[$const_doc:meta])* $const:ident = $value:expr),+ $(,)? })?
        $(with { $($(#[$operation_doc:meta])* $operation:ident),+ $(,)? })?
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u64);

        impl $name {
            $($($(#[$const_doc])* pub const $const: Self = Self($value);)+)?

            /// As a message or a file has it.
            pub const fn new(number: u64) -> Self {
                Self(number)
            }

            /// For messages, files and gauges.
            pub const fn get(self) -> u64 {
                self.0
            }

            $($(operation! { $(#[$operation_doc])* $operation })+)?
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

/// What more than one kind of number can do. A number has those alone that it names.
macro_rules! operation {
    ($(#[$doc:meta])* plus) => {
        $(#[$doc])*
        #[must_use]
        pub const fn plus(self, count: u64) -> Self {
            Self(self.0.saturating_add(count))
        }
    };
    ($(#[$doc:meta])* next) => {
        $(#[$doc])*
        #[must_use]
        pub const fn next(self) -> Self {
            Self(self.0.saturating_add(1))
        }
    };
    ($(#[$doc:meta])* since) => {
        $(#[$doc])*
        pub const fn since(self, earlier: Self) -> u64 {
            self.0.saturating_sub(earlier.0)
        }
    };
}

number! {
    /// How far a log of a pair goes: a number that grows by one with every batch, and with what leaves a machine that nobody
    /// keeps the log of.
    LogPosition {
        /// Before all of it.
        START = 0,
        /// After all that there will ever be: no limit.
        NO_LIMIT = u64::MAX,
    } with {
        /// The position so many batches further; no limit where that is beyond all.
        plus,
    }
}

number! {
    /// The number of a natural stop: the first one that a machine makes is 1. A forced stop, and a turn at it, stand at the
    /// number of the natural stop before them.
    StopNumber {
        /// Where a machine is that has made no stop yet.
        START = 0,
        /// Beyond every stop: no limit.
        NO_LIMIT = u64::MAX,
    } with {
        /// The stop so many natural stops later; the last one that can be said where that is beyond it.
        plus,
        /// Natural stops since `earlier`; 0 where that is later.
        since,
    }
}

impl StopNumber {
    /// The stop before it; the start has none, and is its own.
    #[must_use]
    pub const fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// Natural stops between the two, whichever is later.
    pub const fn distance(self, other: Self) -> u64 {
        self.0.abs_diff(other.0)
    }
}

number! {
    /// The arbiter's fencing number. It grows by one whenever a node boots the machine, takes it over or goes on alone: who held
    /// the one before has lost it, and lets no output go.
    Term {
        /// Of a node that holds none. The first one is 1.
        NONE = 0,
        /// No term can come after this one: nobody holds it.
        LAST = u64::MAX,
    } with {
        /// The term after this one; [`Term::LAST`] is its own.
        next,
    }
}

number! {
    /// The number of a batch in its log, from 0 on.
    BatchNumber {
        /// The log's first batch.
        FIRST = 0,
    } with {
        /// The batch after this one.
        next,
    }
}

impl BatchNumber {
    /// How many batches the log has up to its end.
    pub const fn count(self) -> u64 {
        self.0.saturating_add(1)
    }
}

/// Pages of guest memory have 4096 bytes.
const PAGE_SHIFT: u32 = 12;

number! {
    /// A page of guest memory by its guest physical address: its page frame number, the address / 4096. Logs and messages have
    /// pages by it.
    PageNumber {
        /// The page at guest physical address 0.
        FIRST = 0,
    } with {
        /// The page so many further; the last one that can be said where that is beyond it.
        plus,
        /// Pages from `earlier` to this one; 0 where that is later.
        since,
    }
}

impl PageNumber {
    /// The page that this guest physical address lies in.
    pub const fn of(address: u64) -> Self {
        Self(address >> PAGE_SHIFT)
    }

    /// Guest physical address of its first byte. Of no number from 2^52 on: that has none.
    pub const fn address(self) -> u64 {
        self.0 << PAGE_SHIFT
    }
}

number! {
    /// A page of guest memory by its place among those that there are, from 0 on: the hole below 4 GiB has no pages, so that this
    /// is another number than its [`PageNumber`] above it.
    PageIndex with {
        /// The page so many further; the last one that can be said where that is beyond it.
        plus,
        /// Pages from `earlier` to this one; 0 where that is later.
        since,
    }
}

impl PageIndex {
    /// Bytes of guest memory in the pages before it.
    pub const fn offset(self) -> u64 {
        self.0 << PAGE_SHIFT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_stops_at_its_ends() {
        let time = GuestTime::from_ns(5);
        assert_eq!(time.plus_ns(7).ns_since(time), 7);
        assert_eq!(time.ns_since(time.plus_ns(7)), 0);
        assert_eq!(HostTime::from_ns(5).plus_ns(u64::MAX).ns(), u64::MAX);
        assert_eq!(SessionTime::from_ns(5).plus_ns(u64::MAX).ns(), u64::MAX);
        assert_eq!(SessionTime::ZERO.ns_since(SessionTime::from_ns(5)), 0);
    }

    #[test]
    fn stops_end_where_their_numbers_do() {
        let stop = StopNumber::new(5);
        assert_eq!((stop.plus(7).since(stop), stop.since(stop.plus(7))), (7, 0));
        assert_eq!((stop.distance(stop.before()), stop.before().distance(stop)), (1, 1));
        assert_eq!(StopNumber::START.before(), StopNumber::START);
        assert_eq!(stop.plus(u64::MAX), StopNumber::NO_LIMIT);
        assert_eq!(format!("{stop:>3}"), "  5");
    }

    #[test]
    fn terms_grow_up_to_the_last() {
        assert_eq!(Term::NONE.next(), Term::new(1));
        assert_eq!(
            (Term::new(u64::MAX - 1).next(), Term::LAST.next()),
            (Term::LAST, Term::LAST)
        );
    }

    #[test]
    fn batches_are_counted_from_the_first() {
        let third = BatchNumber::FIRST.next().next();
        assert_eq!((third.get(), third.count(), BatchNumber::FIRST.count()), (2, 3, 1));
    }

    #[test]
    fn pages_have_addresses() {
        assert_eq!(PageNumber::of(0x5fff), PageNumber::new(5));
        assert_eq!(
            (PageNumber::new(5).address(), PageIndex::new(5).offset()),
            (0x5000, 0x5000)
        );
        assert_eq!(PageNumber::FIRST.plus(7).since(PageNumber::new(5)), 2);
        assert_eq!(PageNumber::new(5).since(PageNumber::new(7)), 0);
        assert_eq!(PageIndex::new(5).plus(u64::MAX).since(PageIndex::new(5)), u64::MAX - 5);
    }
}
