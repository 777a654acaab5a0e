//! What a node tells of its machine: a small JSON text under `lockstep/MACHINE/told/NODE`.

use serde::{Deserialize, Serialize};

use crate::api::{Report, is_a_state};
use crate::arbiter::PREFIX;

/// What stands between the machine's name and the node's in a key.
const TOLD: &str = "told";
/// The form that this program writes, and the only one that it reads.
const VERSION: u32 = 1;
/// Most bytes of a text that is read.
pub(super) const MAX_BYTES: usize = 2048;
/// Most characters of a reason that are told: it may be another node's words.
const MAX_REASON: usize = 200;

/// What a node tells. What it does not know of a newer one is passed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Of this form: 1.
    pub(super) form: u32,
    /// The machine.
    pub machine: String,
    /// The node.
    pub node: String,
    /// `primary` or `backup`, as in a report.
    pub role: String,
    /// The state, without its reason.
    pub state: String,
    /// What stands in parentheses behind it.
    pub reason: Option<String>,
    /// The term held; of a backup, its primary's; 0: none yet.
    pub term: u64,
    /// The other node, if it is connected.
    pub peer: Option<String>,
    /// The lag in milliseconds is at most this: 1, 2 or 5 times a power of ten.
    pub lag_at_most_ms: u64,
    /// Since when term, role, state and reason are these, by this host's calendar (RFC 3339).
    pub since: String,
    /// Of the program.
    pub version: String,
}

impl Told {
    /// Of a report.
    pub(super) fn of(report: &Report, since: String) -> Self {
        let cut = |reason: &String| reason.chars().take(MAX_REASON).collect();
        Self {
            form: VERSION,
            machine: report.machine.clone(),
            node: report.node.clone(),
            role: report.role.clone(),
            state: report.state.clone(),
            reason: report.reason.as_ref().map(cut),
            term: report.term,
            peer: report.peer.clone(),
            lag_at_most_ms: step(report.lag_ms),
            since,
            version: report.version.clone(),
        }
    }

    /// Whether term, role, state and reason are the other's. Protection that was lost and won again between two looks shows in the
    /// term alone.
    pub(super) fn is_in_the_state_of(&self, other: &Self) -> bool {
        let of = |told: &Self| (told.term, told.role.clone(), told.state.clone(), told.reason.clone());
        of(self) == of(other)
    }

    /// Whether it is the other but for the lag.
    pub(super) fn differs_by_lag_alone(&self, other: &Self) -> bool {
        let lag_at_most_ms = self.lag_at_most_ms;
        *self
            == Self {
                lag_at_most_ms,
                ..other.clone()
            }
    }

    /// The text of a node under its key; an error says what is wrong with it.
    pub(super) fn read(machine: &str, node: &str, text: &[u8]) -> Result<Self, String> {
        if text.len() > MAX_BYTES {
            return Err(format!("it has {} bytes, more than {MAX_BYTES}", text.len()));
        }
        // The form first: of another one nothing else is known.
        let value: serde_json::Value = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if value["form"] != VERSION {
            return Err(format!(
                "it has form {}, and this program reads form {VERSION}",
                value["form"]
            ));
        }
        let told: Self = serde_json::from_value(value).map_err(|error| error.to_string())?;
        if (told.machine.as_str(), told.node.as_str()) != (machine, node) {
            return Err("it is of another machine or node than its key".into());
        }
        if !is_a_state(&told.state) {
            return Err("it has a state that this program does not know".into());
        }
        Ok(told)
    }
}

/// Where a node tells of a machine.
pub(super) fn key(machine: &str, node: &str) -> String {
    format!("{PREFIX}{machine}/{TOLD}/{node}")
}

/// The node whose words stand under a key, from what follows the machine's name in it.
pub(super) fn node_of(rest: &str) -> Option<&str> {
    rest.strip_prefix(TOLD)?
        .strip_prefix('/')
        .filter(|node| !node.is_empty())
}

/// The next step above, so that a lag that is hardly another is not told anew.
fn step(ms: f64) -> u64 {
    let steps = (0..18).flat_map(|power| [1, 2, 5].map(|digit| digit * 10_u64.pow(power)));
    steps.into_iter().find(|step| ms <= *step as f64).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What node `node` tells of machine `m`.
    pub(crate) fn told(node: &str, role: &str, state: &str, term: u64, peer: Option<&str>) -> Told {
        Told {
            form: VERSION,
            machine: "m".into(),
            node: node.into(),
            role: role.into(),
            state: state.into(),
            reason: None,
            term,
            peer: peer.map(Into::into),
            lag_at_most_ms: 2,
            since: "2026-12-01T00:00:00Z".into(),
            version: "1".into(),
        }
    }

    #[test]
    fn what_is_told_comes_back_and_nothing_else_is_taken_for_it() {
        let told = told("a", "primary", "protected", 3, Some("b"));
        let text = serde_json::to_string(&told).unwrap();
        assert!(text.len() < MAX_BYTES / 2);
        assert_eq!(Told::read("m", "a", text.as_bytes()), Ok(told));
        let newer = text.replacen('{', "{\"grade\":\"active\",", 1);
        assert!(Told::read("m", "a", newer.as_bytes()).is_ok());
        for (bad, words) in [
            (text.replace("\"form\":1", "\"form\":2"), "form 2"),
            (text.replace("\"form\":1,", ""), "form null"),
            (text.replace("protected", "fine"), "does not know"),
            (text.replace("\"m\"", "\"n\""), "another machine"),
            (text.replace("\"term\":3", "\"term\":-3"), "-3"),
            (text[..text.len() - 1].into(), "EOF"),
            (" ".repeat(MAX_BYTES + 1), "more than"),
        ] {
            let error = Told::read("m", "a", bad.as_bytes()).unwrap_err();
            assert!(error.contains(words), "{bad}: {error}");
        }
        assert!(Told::read("m", "b", text.as_bytes()).unwrap_err().contains("another"));
    }

    #[test]
    fn protection_that_was_lost_and_won_again_is_another() {
        let (before, after) = (
            told("a", "primary", "protected", 3, Some("b")),
            told("a", "primary", "protected", 4, Some("b")),
        );
        assert!(before.is_in_the_state_of(&before) && !before.is_in_the_state_of(&after));
    }

    #[test]
    fn a_lag_is_told_in_steps() {
        for (ms, told) in [
            (0.0, 1),
            (1.0, 1),
            (1.1, 2),
            (137.0, 200),
            (501.0, 1000),
            (1e30, u64::MAX),
        ] {
            assert_eq!(step(ms), told, "{ms}");
        }
    }

    #[test]
    fn keys_name_machine_and_node() {
        assert_eq!(key("vm", "a"), "lockstep/vm/told/a");
        assert_eq!(node_of("told/a"), Some("a"));
        assert_eq!(node_of("told/rack/a"), Some("rack/a"));
        for other in ["record", "told", "told/", "toldest/a"] {
            assert_eq!(node_of(other), None, "{other}");
        }
    }
}
