//! Calls counted, as strace's `-c` writes them.

use std::collections::BTreeMap;

use lockstep_node::say;
use serde_json::json;

use crate::asked::Carried;

#[derive(Clone, Copy, Debug, Default)]
struct Row {
    calls: u64,
    errors: u64,
    ns: u64,
}

/// Sums by the name of the call.
pub struct Summary {
    rows: BTreeMap<String, Row>,
    carried: (u64, u64),
    is_json: bool,
}

impl Summary {
    pub fn new(is_json: bool) -> Self {
        Self {
            rows: BTreeMap::new(),
            carried: (0, 0),
            is_json,
        }
    }

    /// A call that took so many nanoseconds of guest time.
    pub fn add(&mut self, name: &str, ns: u64, is_error: bool) {
        let row = self.rows.entry(name.to_owned()).or_default();
        row.calls += 1;
        row.errors += u64::from(is_error);
        row.ns = row.ns.saturating_add(ns);
    }

    /// A stretch whose calls are not known.
    pub fn carried(&mut self, carried: &Carried) {
        self.carried.0 += 1;
        self.carried.1 += carried.to.guest_ns.saturating_sub(carried.from.guest_ns);
    }

    pub fn say(&self) {
        for line in self.lines() {
            say!("{line}");
        }
    }

    fn lines(&self) -> Vec<String> {
        let mut rows: Vec<_> = self.rows.iter().collect();
        rows.sort_by_key(|(_, row)| (u64::MAX - row.ns, u64::MAX - row.calls));
        if self.is_json {
            let row = |(name, row): (&String, &Row)| {
                json!({ "call": name, "calls": row.calls, "errors": row.errors, "guest_ns": row.ns }).to_string()
            };
            let carried = json!({ "carried": self.carried.0, "guest_ns": self.carried.1 }).to_string();
            return rows.into_iter().map(row).chain([carried]).collect();
        }
        let all: Row = self.rows.values().fold(Row::default(), |all, row| Row {
            calls: all.calls + row.calls,
            errors: all.errors + row.errors,
            ns: all.ns.saturating_add(row.ns),
        });
        let line = |name: &str, row: &Row| {
            let share = 100.0 * row.ns as f64 / all.ns.max(1) as f64;
            let errors = if row.errors == 0 {
                String::new()
            } else {
                row.errors.to_string()
            };
            format!(
                "{share:6.2} {:>11.6} {:>11} {:>9} {errors:>9} {name}",
                row.ns as f64 / 1e9,
                row.ns / 1000 / row.calls.max(1),
                row.calls
            )
        };
        let rule = "------ ----------- ----------- --------- --------- ----------------";
        let mut lines = vec![
            "% time     seconds  usecs/call     calls    errors syscall".to_owned(),
            rule.to_owned(),
        ];
        lines.extend(rows.into_iter().map(|(name, row)| line(name, row)));
        lines.push(rule.to_owned());
        lines.push(line("total", &all));
        if self.carried.0 > 0 {
            lines.push(format!(
                "not counted: what was called in {} stretches, {:.6} s in all, that deltas carried",
                self.carried.0,
                self.carried.1 as f64 / 1e9
            ));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_stand_by_their_time() {
        let mut summary = Summary::new(false);
        for _ in 0..3 {
            summary.add("read", 1_000_000, false);
        }
        summary.add("openat", 9_000_000, true);
        assert_eq!(
            summary.lines()[2..],
            [
                " 75.00    0.009000        9000         1         1 openat",
                " 25.00    0.003000        1000         3           read",
                "------ ----------- ----------- --------- --------- ----------------",
                "100.00    0.012000        3000         4         1 total"
            ]
        );
        summary.is_json = true;
        let first: serde_json::Value = serde_json::from_str(&summary.lines()[0]).unwrap();
        assert_eq!(
            first,
            json!({ "call": "openat", "calls": 1, "errors": 1, "guest_ns": 9_000_000 })
        );
    }
}
