//! The rows of the report.

use std::fmt::Display;

use serde::{Deserialize, Serialize};

use super::findings::Tested;
use super::msrs::Outcome;

/// One row of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// A name for programs: the same on every host and in every version.
    pub name: String,
    /// What was looked at.
    pub fact: String,
    /// What was found.
    pub result: String,
    /// What it means.
    pub consequence: String,
}

/// The rows so far.
pub(super) struct Rows(pub(super) Vec<Fact>);

impl Rows {
    pub(super) fn add(
        &mut self,
        name: &str,
        fact: impl Into<String>,
        result: impl Display,
        consequence: impl Into<String>,
    ) {
        self.0.push(Fact {
            name: name.into(),
            fact: fact.into(),
            result: result.to_string(),
            consequence: consequence.into(),
        });
    }

    /// A row for an experiment that could not be made, or those that `rows` makes of its findings.
    pub(super) fn tested<T>(&mut self, name: &str, fact: &str, tested: &Tested<T>, rows: impl FnOnce(&mut Self, &T)) {
        match tested {
            Ok(found) => rows(self, found),
            Err(error) => self.add(name, fact, format!("not tested: {error}"), "taken as not working"),
        }
    }
}

/// What follows from an experiment that must work.
pub(super) fn needed(outcome: &Outcome, good: &str) -> String {
    if *outcome == Outcome::Works {
        good.into()
    } else {
        "this host cannot be used".into()
    }
}
