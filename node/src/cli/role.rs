//! What the arbiter's record makes of a node that is started: the one that boots the machine, or one that stands by.
//!
//! Invariant: a node boots only in a term that it has just won, and only after a peer that may have the machine had the
//! time to claim it.

use std::time::{Duration, Instant};

use anyhow::Result;
use lockstep_proto::session::Record;

use crate::arbiter::{Arbiter, ArbiterError, Kept, Outcome, in_words};
use crate::status::{Status, StatusInner};

/// How often a record is looked at while waiting for a peer that may take over.
const LOOK: Duration = Duration::from_millis(100);
/// From one try to reach the arbiter to the next.
const AGAIN: Duration = Duration::from_secs(1);

/// What a node is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Boot: this is the record that it won.
    Primary(Record),
    /// Stand by: this is another's record.
    Backup(Record),
}

/// Looks at the record and takes the term for `node` if it may. Before that `may_boot` says whether the machine can be
/// booted here at all: its error ends this, and the record stays as it was.
///
/// A peer that is named in `node`'s own record has the machine as it was and is about to go on with it, if it lives. It
/// is waited for as long as `patience`. A record that is older than what `kept` has is not believed.
pub fn look(
    arbiter: &mut dyn Arbiter,
    kept: &Kept,
    node: &str,
    patience: Duration,
    may_boot: &mut dyn FnMut() -> Result<()>,
) -> Result<Part> {
    loop {
        let mut found = arbiter.read()?;
        if let Some(peer) = found
            .as_ref()
            .filter(|record| record.owner == node)
            .and_then(|record| record.peer.clone())
        {
            tracing::info!("node `{peer}` was in sync and may take over; waiting {patience:?} for it");
            let until = Instant::now() + patience;
            let before = found.clone();
            while found == before && Instant::now() < until {
                std::thread::sleep(LOOK);
                found = arbiter.read()?;
            }
        }
        kept.check(found.as_ref())?;
        let new = match &found {
            None => Record::default().alone(node),
            Some(record) if record.owner == node => record.alone(node),
            Some(record) => return Ok(Part::Backup(record.clone())),
        };
        may_boot()?;
        match arbiter.compare_and_set(found.as_ref(), &new)? {
            Outcome::Done => {
                kept.keep(&new);
                return Ok(Part::Primary(new));
            }
            // Another node was faster. The next look says what that makes of this one.
            Outcome::Changed(now) => {
                let now = in_words(now.as_ref());
                tracing::info!("the term was taken meanwhile (now: {now}); looking again");
            }
        }
    }
}

/// As [`look`], and tries again for as long as the arbiter does not answer: nobody boots without its word.
pub fn decide(
    arbiter: &mut dyn Arbiter,
    kept: &Kept,
    node: &str,
    patience: Duration,
    status: &Status,
    may_boot: &mut dyn FnMut() -> Result<()>,
) -> Result<Part> {
    let mut told = false;
    loop {
        match look(arbiter, kept, node, patience, may_boot) {
            Err(error)
                if error
                    .downcast_ref::<ArbiterError>()
                    .is_some_and(ArbiterError::is_unreachable) =>
            {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!("{error:#}; nothing starts before the arbiter has answered");
                }
                status.set(StatusInner {
                    state: "starting (no-arbiter)".into(),
                    ..StatusInner::default()
                });
                std::thread::sleep(AGAIN);
            }
            decided => {
                // Whoever takes over from here says what it is.
                status.set(StatusInner::default());
                return decided;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use lockstep_proto::quantity::Term;

    use super::*;
    use std::collections::VecDeque;

    /// An arbiter whose record changes as a script says, just before each call; `Err`: it is out of reach.
    #[derive(Default)]
    struct Scripted {
        record: Option<Record>,
        script: VecDeque<Result<Option<Record>, ()>>,
    }

    impl Scripted {
        fn step(&mut self) -> Result<(), ArbiterError> {
            match self.script.pop_front() {
                None => Ok(()),
                Some(Ok(record)) => {
                    self.record = record;
                    Ok(())
                }
                Some(Err(())) => Err(ArbiterError::Unreachable {
                    arbiter: "script".into(),
                    reason: "as the test wants it".into(),
                }),
            }
        }
    }

    impl Arbiter for Scripted {
        fn read(&mut self) -> Result<Option<Record>, ArbiterError> {
            self.step()?;
            Ok(self.record.clone())
        }

        fn compare_and_set(&mut self, expected: Option<&Record>, new: &Record) -> Result<Outcome, ArbiterError> {
            self.step()?;
            if self.record.as_ref() != expected {
                return Ok(Outcome::Changed(self.record.clone()));
            }
            self.record = Some(new.clone());
            Ok(Outcome::Done)
        }

        fn describe(&self) -> String {
            "script".into()
        }
    }

    fn record(term: u64, owner: &str, peer: Option<&str>) -> Record {
        Record {
            term: Term::new(term),
            owner: owner.into(),
            peer: peer.map(Into::into),
        }
    }

    fn decide_with(arbiter: &mut Scripted, patience: Duration, may_boot: bool) -> Result<Part> {
        let may_boot = &mut || {
            anyhow::ensure!(may_boot, "not from this disk");
            Ok(())
        };
        let home = tempfile::tempdir()?;
        let kept = Kept::new(home.path(), "m", "a");
        decide(arbiter, &kept, "a", patience, &Status::default(), may_boot)
    }

    #[test]
    fn the_record_decides() {
        for (found, part) in [
            (None, Part::Primary(record(1, "a", None))),
            (Some(record(4, "a", None)), Part::Primary(record(5, "a", None))),
            (Some(record(4, "a", Some("b"))), Part::Primary(record(5, "a", None))),
            (Some(record(4, "b", None)), Part::Backup(record(4, "b", None))),
            (Some(record(4, "b", Some("a"))), Part::Backup(record(4, "b", Some("a")))),
        ] {
            let mut arbiter = Scripted {
                record: found,
                ..Scripted::default()
            };
            assert_eq!(decide_with(&mut arbiter, Duration::ZERO, true).unwrap(), part);
        }
    }

    #[test]
    fn a_peer_that_claims_while_it_is_waited_for_has_the_machine() {
        let (mine, theirs) = (record(4, "a", Some("b")), record(5, "b", None));
        let mut arbiter = Scripted {
            record: Some(mine.clone()),
            script: [Ok(Some(mine.clone())), Ok(Some(mine)), Ok(Some(theirs.clone()))].into(),
        };
        let part = decide_with(&mut arbiter, Duration::from_secs(60), true).unwrap();
        assert_eq!(part, Part::Backup(theirs));
    }

    #[test]
    fn who_loses_the_race_for_the_first_term_stands_by() {
        let theirs = record(1, "b", None);
        let mut arbiter = Scripted {
            record: None,
            script: [Ok(None), Ok(Some(theirs.clone()))].into(),
        };
        let part = decide_with(&mut arbiter, Duration::ZERO, true).unwrap();
        assert_eq!(part, Part::Backup(theirs.clone()));
        assert_eq!(arbiter.record, Some(theirs));
    }

    #[test]
    fn nobody_boots_without_the_arbiters_word() {
        let theirs = record(4, "b", None);
        let mut arbiter = Scripted {
            record: Some(record(4, "a", None)),
            script: [Err(()), Ok(Some(theirs.clone()))].into(),
        };
        let part = decide_with(&mut arbiter, Duration::ZERO, true).unwrap();
        assert_eq!(part, Part::Backup(theirs));
    }

    #[test]
    fn a_node_that_cannot_boot_takes_no_term() {
        for found in [None, Some(record(4, "a", None))] {
            let mut arbiter = Scripted {
                record: found.clone(),
                ..Scripted::default()
            };
            decide_with(&mut arbiter, Duration::ZERO, false).unwrap_err();
            assert_eq!(arbiter.record, found);
        }
        // Standing by needs no disk to boot from.
        let mut arbiter = Scripted {
            record: Some(record(4, "b", None)),
            ..Scripted::default()
        };
        assert!(decide_with(&mut arbiter, Duration::ZERO, false).is_ok());
    }
    #[test]
    fn a_node_that_has_seen_a_newer_record_neither_boots_nor_stands_by() {
        let home = tempfile::tempdir().unwrap();
        let kept = Kept::new(home.path(), "m", "a");
        let (mine, status) = (record(4, "a", None), Status::default());
        let decide = |record: Option<Record>| {
            let mut arbiter = Scripted {
                record,
                ..Scripted::default()
            };
            let part = decide(&mut arbiter, &kept, "a", Duration::ZERO, &status, &mut || Ok(()));
            (part, arbiter.record)
        };
        assert!(matches!(decide(Some(mine)).0, Ok(Part::Primary(new)) if new.term == Term::new(5)));
        for old in [None, Some(record(4, "a", None)), Some(record(3, "b", Some("a")))] {
            let (part, left) = decide(old.clone());
            let why = part.unwrap_err().to_string();
            assert!(why.contains("went back"), "{why}");
            assert_eq!(left, old);
        }
        assert!(decide(Some(record(5, "a", None))).0.is_ok());
    }
}
