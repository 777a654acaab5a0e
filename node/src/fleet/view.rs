//! What is shown of a machine: what the node tells that its record names, where the two fit.

use serde::Serialize;

use super::{Entry, Told};
use crate::arbiter::Record;

/// The state of a machine of which nobody can say how it is.
pub const UNKNOWN: &str = "unknown";

/// A machine, for people and scripts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Its name.
    pub machine: String,
    /// As in a report, or [`UNKNOWN`].
    pub state: String,
    /// What stands in parentheses behind it. Of one that its backup could not take over: `backup-silent`, `backup-unreadable`,
    /// `backup-behind`, `backup-` and the backup's state. Of an unknown one: `owner-silent`, `owner-behind`, `owner-unreadable`, `no-record`,
    /// `damaged-record`.
    pub reason: Option<String>,
    /// The node that the record names as the owner.
    pub runs_on: Option<String>,
    /// The node that may take over, by the record.
    pub backup: Option<String>,
    /// What that one tells, or that it is silent.
    pub backup_state: Option<String>,
    /// The record's term.
    pub term: u64,
    /// The lag in milliseconds is at most this, while there is a backup.
    pub lag_at_most_ms: Option<u64>,
    /// Since when the state is this one, by the calendar of the host where it runs.
    pub since: Option<String>,
    /// Of the program that runs it.
    pub version: Option<String>,
}

impl Row {
    /// The state with its reason.
    pub fn words(&self) -> String {
        match &self.reason {
            Some(reason) => format!("{} ({reason})", self.state),
            None => self.state.clone(),
        }
    }

    /// Whether the death of either host would go unnoticed by the machine's clients.
    pub fn is_protected(&self) -> bool {
        self.state == PROTECTED
    }

    fn unknown(machine: &str, reason: &str) -> Self {
        Self {
            machine: machine.into(),
            state: UNKNOWN.into(),
            reason: Some(reason.into()),
            runs_on: None,
            backup: None,
            backup_state: None,
            term: 0,
            lag_at_most_ms: None,
            since: None,
            version: None,
        }
    }
}

const PROTECTED: &str = "protected";
/// Of a machine that nobody could take over now.
const BLOCKED: &str = "protected, failover blocked";

/// What is shown of `machine`, of which the arbiter has `entry`.
pub fn row(machine: &str, entry: &Entry) -> Row {
    let record = match &entry.record {
        Some(Ok(record)) => record,
        Some(Err(_)) => return Row::unknown(machine, "damaged-record"),
        None => return Row::unknown(machine, "no-record"),
    };
    let words = |node: &String| match entry.told.get(node) {
        Some(Ok(told)) => told.state.clone(),
        Some(Err(_)) => "unreadable".into(),
        None => "silent".into(),
    };
    let known = Row {
        runs_on: Some(record.owner.clone()),
        backup: record.peer.clone(),
        backup_state: record.peer.as_ref().map(words),
        term: record.term.get(),
        ..Row::unknown(machine, "owner-silent")
    };
    match entry.told.get(&record.owner) {
        None => known,
        Some(Err(_)) => Row {
            reason: Some("owner-unreadable".into()),
            ..known
        },
        Some(Ok(told)) if fits(record, told) && told.state == PROTECTED => {
            let (state, reason) = protection(record, entry);
            // Since when the backup is as it is, its owner does not say.
            let since = (state == PROTECTED).then(|| told.since.clone());
            Row {
                state,
                reason,
                since,
                ..as_told(told, known)
            }
        }
        Some(Ok(told)) if fits(record, told) => as_told(told, known),
        Some(Ok(told)) => Row {
            reason: Some("owner-behind".into()),
            version: Some(told.version.clone()),
            ..known
        },
    }
}

fn as_told(told: &Told, known: Row) -> Row {
    Row {
        state: told.state.clone(),
        reason: told.reason.clone(),
        lag_at_most_ms: told.peer.as_ref().map(|_| told.lag_at_most_ms),
        since: Some(told.since.clone()),
        version: Some(told.version.clone()),
        ..known
    }
}

/// The state and reason of a machine whose owner says that it is protected: it is if the other node says so too. One that does not
/// reach etcd could not take over, and its owner need not know.
fn protection(record: &Record, entry: &Entry) -> (String, Option<String>) {
    let blocked = |reason: &str| (BLOCKED.to_owned(), Some(reason.to_owned()));
    match record.peer.as_ref().and_then(|peer| entry.told.get(peer)) {
        None => blocked("backup-silent"),
        Some(Err(_)) => blocked("backup-unreadable"),
        Some(Ok(told)) if told.role != "backup" || told.term != record.term.get() => blocked("backup-behind"),
        Some(Ok(told)) if told.state == PROTECTED => (PROTECTED.into(), None),
        Some(Ok(told)) if told.state == BLOCKED => (BLOCKED.into(), told.reason.clone()),
        Some(Ok(told)) => blocked(&format!("backup-{}", told.state)),
    }
}

/// Whether a record bears out what its owner tells. A node that has just started holds no term yet, and says `starting`; a
/// machine is protected by the node that the record names, and by no other.
fn fits(record: &Record, told: &Told) -> bool {
    let is_protected = told.state.starts_with(PROTECTED);
    let term_fits = told.term == record.term.get() || told.term == 0 && told.state == "starting";
    term_fits && (!is_protected || told.role == "primary" && told.peer.is_some() && told.peer == record.peer)
}

#[cfg(test)]
mod tests {
    use lockstep_proto::quantity::Term;

    use super::super::told::tests::told;
    use super::*;

    fn record(term: u64, owner: &str, peer: Option<&str>) -> Record {
        Record {
            term: Term::new(term),
            owner: owner.into(),
            peer: peer.map(Into::into),
        }
    }

    fn shown(record: Option<Record>, told: &[Told]) -> Row {
        let told = told.iter().map(|told| (told.node.clone(), Ok(told.clone()))).collect();
        let record = record.map(Ok);
        row("m", &Entry { record, told })
    }

    #[test]
    fn the_owner_says_how_a_machine_is() {
        let (a, b) = (
            told("a", "primary", "protected", 3, Some("b")),
            told("b", "backup", "protected", 3, Some("a")),
        );
        let row = shown(Some(record(3, "a", Some("b"))), &[a.clone(), b.clone()]);
        assert_eq!(
            (
                row.words().as_str(),
                row.runs_on.as_deref(),
                row.backup.as_deref(),
                row.lag_at_most_ms
            ),
            ("protected", Some("a"), Some("b"), Some(2))
        );
        assert!(row.is_protected() && row.backup_state.as_deref() == Some("protected"));
        for (backup, words) in [
            (None, "protected, failover blocked (backup-silent)"),
            (
                Some(("backup", "protected", 2)),
                "protected, failover blocked (backup-behind)",
            ),
            (
                Some(("primary", "protected", 3)),
                "protected, failover blocked (backup-behind)",
            ),
            (
                Some(("backup", "starting", 3)),
                "protected, failover blocked (backup-starting)",
            ),
            (
                Some(("backup", "protected, failover blocked", 3)),
                "protected, failover blocked",
            ),
            (Some(("backup", "protected", 3)), "protected"),
        ] {
            let backup = backup.map(|(role, state, term)| told("b", role, state, term, Some("a")));
            let row = shown(
                Some(record(3, "a", Some("b"))),
                &[Some(a.clone()), backup].into_iter().flatten().collect::<Vec<_>>(),
            );
            assert_eq!(
                (row.words().as_str(), row.is_protected()),
                (words, words == "protected")
            );
            assert_eq!(row.since.is_some(), row.is_protected());
        }
        // The owner's process has ended; what the other says is not the machine's state.
        let gone = shown(Some(record(3, "a", Some("b"))), &[b]);
        assert_eq!((gone.words().as_str(), gone.since), ("unknown (owner-silent)", None));
        assert_eq!(gone.runs_on.as_deref(), Some("a"));
    }

    #[test]
    fn what_the_record_does_not_bear_out_is_unknown() {
        let a = |state, term, peer| told("a", "primary", state, term, peer);
        let unknown = |record: Record, told: Told| shown(Some(record), &[told]).words() == "unknown (owner-behind)";
        // The other one has taken the machine, and has not said so yet, or this is from before it did.
        assert!(unknown(record(4, "a", None), a("protected", 3, Some("b"))));
        assert!(unknown(record(3, "a", Some("b")), a("not-protected", 4, None)));
        // Protected by nobody, or by another one than the record's.
        assert!(unknown(record(3, "a", None), a("protected", 3, Some("b"))));
        assert!(unknown(record(3, "a", Some("c")), a("protected", 3, Some("b"))));
        assert!(unknown(record(3, "a", None), a("protected", 3, None)));
        assert!(unknown(
            record(3, "a", Some("b")),
            told("a", "backup", "protected", 3, Some("b"))
        ));
        let blocked = a("protected, failover blocked", 3, None);
        assert!(unknown(record(3, "a", None), blocked));
        for (state, term) in [("not-protected", 3), ("frozen", 3), ("starting", 0)] {
            let row = shown(Some(record(3, "a", None)), &[a(state, term, None)]);
            assert_eq!((row.words().as_str(), row.is_protected()), (state, false));
        }
        assert!(unknown(record(3, "a", None), a("not-protected", 0, None)));
        assert_eq!(shown(None, &[a("starting", 0, None)]).words(), "unknown (no-record)");
        let entry = Entry {
            record: Some(Err("no text".into())),
            ..Entry::default()
        };
        assert_eq!(row("m", &entry).words(), "unknown (damaged-record)");
        let entry = Entry {
            record: Some(Ok(record(3, "a", None))),
            told: [("a".to_owned(), Err("no JSON".to_owned()))].into(),
        };
        assert_eq!(row("m", &entry).words(), "unknown (owner-unreadable)");
    }
}
