//! The arbiter's record: who holds the term, and who may take it over.

use std::fmt;

use crate::quantity::Term;

/// What the arbiter keeps for one machine. It is changed only by compare-and-set against the value that the writer last
/// held; a writer whose value is not there any more has lost, and does not read again to retry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Fencing number. Only its owner may release output.
    pub term: Term,
    /// Name of the node that holds the term.
    pub owner: String,
    /// Name of the node that is in sync and may take over; nobody else may.
    pub peer: Option<String>,
}

impl Record {
    /// The record of `node` going on alone in the term after this one.
    #[must_use]
    pub fn alone(&self, node: &str) -> Self {
        Self {
            term: self.term.next(),
            owner: node.into(),
            peer: None,
        }
    }

    /// The record of the same term with `peer` in sync.
    #[must_use]
    pub fn with_peer(&self, peer: &str) -> Self {
        Self {
            peer: Some(peer.into()),
            ..self.clone()
        }
    }
}

/// For people. Names are the arbiter's word: what is no plain character of one is escaped.
impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "term {} of `{}`", self.term, self.owner.escape_debug())?;
        match &self.peer {
            Some(peer) => write!(f, " with `{}` in sync", peer.escape_debug()),
            None => f.write_str(" alone"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_whose_term_it_is() {
        let alone = Record::default().alone("a");
        assert_eq!(alone.to_string(), "term 1 of `a` alone");
        assert_eq!(alone.with_peer("b").to_string(), "term 1 of `a` with `b` in sync");
        // A name that would turn the line around.
        let strange = alone.with_peer("b\u{202e}").to_string();
        assert_eq!(strange, "term 1 of `a` with `b\\u{202e}` in sync");
    }
}
