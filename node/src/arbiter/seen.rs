//! What a process has seen of its machine's record. Terms only grow, and within one a peer is only added: a record that goes
//! back was restored from an older copy, or removed. Nobody can take over then, since a claim names the record that was.

use super::{ArbiterError, Kept, Record, in_words};

/// The newest record that was seen, and what is wrong at the arbiter.
#[derive(Debug)]
pub struct Seen {
    newest: Option<Record>,
    trouble: Option<String>,
    /// For the next process.
    kept: Kept,
}

impl Seen {
    /// What the process before has kept counts, too. Where that cannot be read, this one begins anew: starting it was refused
    /// where that counts.
    pub fn new(kept: Kept) -> Self {
        Self {
            newest: kept.newest().ok().flatten(),
            trouble: None,
            kept,
        }
    }

    /// A record that this process has set.
    pub fn set(&mut self, record: Record) {
        self.kept.keep(&record);
        self.newest = Some(record);
    }

    /// What a look found. Whether somebody could take over; tells when that changes, and why.
    pub fn look(&mut self, said: Result<Option<Record>, ArbiterError>) -> bool {
        let trouble = match said {
            Err(error) => Some(error.to_string()),
            Ok(now) if !follows(self.newest.as_ref(), now.as_ref()) => Some(format!(
                "the record at the arbiter went back from {} to {}: its data were restored from an older copy, or the \
                 record was removed. Nobody can take over, and whoever is started now may boot a machine that runs: start no \
                 node. Put the newer record back, or shut the machine down while it runs",
                in_words(self.newest.as_ref()),
                in_words(now.as_ref())
            )),
            Ok(now) => {
                if let Some(now) = now.filter(|now| self.newest.as_ref() != Some(now)) {
                    self.set(now);
                }
                None
            }
        };
        if trouble != self.trouble {
            if let Some(trouble) = &trouble {
                tracing::error!("{trouble}");
            } else {
                tracing::info!("the arbiter answers as it should again");
            }
        }
        self.trouble = trouble;
        self.trouble.is_none()
    }
}

/// Whether a record can have come after another one.
pub(super) fn follows(before: Option<&Record>, now: Option<&Record>) -> bool {
    match (before, now) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(before), Some(now)) if now.term == before.term => {
            now.owner == before.owner && (now.peer == before.peer || before.peer.is_none())
        }
        (Some(before), Some(now)) => now.term > before.term,
    }
}

#[cfg(test)]
mod tests {
    use lockstep_proto::quantity::Term;

    use super::*;

    fn record(term: u64, owner: &str, peer: Option<&str>) -> Record {
        Record {
            term: Term::new(term),
            owner: owner.into(),
            peer: peer.map(Into::into),
        }
    }

    #[test]
    fn a_record_that_goes_back_blocks_until_it_is_as_it_was() {
        let home = tempfile::tempdir().unwrap();
        let kept = Kept::new(home.path(), "m", "n");
        let mut seen = Seen::new(kept.clone());
        let newest = Some(record(4, "b", Some("a")));
        for now in [
            None,
            Some(record(2, "a", None)),
            Some(record(2, "a", Some("b"))),
            Some(record(4, "b", None)),
            newest.clone(),
        ] {
            assert!(seen.look(Ok(now.clone())), "{now:?}");
        }
        for now in [
            None,
            Some(record(3, "b", None)),
            Some(record(4, "b", None)),
            Some(record(4, "b", Some("c"))),
            Some(record(4, "a", Some("b"))),
        ] {
            assert!(!seen.look(Ok(now.clone())), "{now:?}");
        }
        assert!(!seen.look(Err(ArbiterError::Unreachable {
            arbiter: "x".into(),
            reason: "y".into()
        })));
        assert!(seen.look(Ok(newest)));
        seen.set(record(6, "a", None));
        assert!(!seen.look(Ok(Some(record(5, "b", None)))));
        assert!(seen.look(Ok(Some(record(7, "b", None)))));
        // The next process knows it, too.
        let mut seen = Seen::new(kept);
        assert!(!seen.look(Ok(Some(record(6, "a", None)))));
        assert!(seen.look(Ok(Some(record(7, "b", None)))));
    }
}
