//! What a profile says in a table, and the same as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use lockstep_node::out::one_line;
use serde_json::{Value, json};

use super::facts::Facts;
use super::files::Files;
use super::stacks::{Frame, Side, Stacks, Task, Weight};

/// Functions in the table.
const SHOWN: usize = 30;
/// Functions in JSON.
const MOST: usize = 10_000;
/// Files without symbols in the table.
const SHOWN_FILES: usize = 10;

/// What was compared while it was made: that all of it was equal, for else there is no profile.
#[derive(Clone, Copy, Debug, Default)]
pub struct Held {
    /// Batches, with the chain at their ends.
    pub batches: u64,
    /// Epochs.
    pub epochs: u64,
}

/// A function, and how often it was on a stack.
#[derive(Clone, Copy, Default)]
struct Share {
    own: u64,
    total: u64,
}

/// All that is told.
pub struct Report<'a> {
    /// See there.
    pub facts: &'a Facts,
    /// See there.
    pub stacks: &'a Stacks,
    /// See there.
    pub held: Held,
    /// Those that were looked for.
    pub files: Option<&'a Files>,
    /// Why user code could not be looked up.
    pub trouble: Option<&'a str>,
}

impl Report<'_> {
    fn tasks(&self) -> Vec<(Task, Weight)> {
        let mut tasks: BTreeMap<Task, Weight> = BTreeMap::new();
        for (stack, weight) in self.stacks.iter() {
            tasks.entry(stack.task.clone()).or_default().add(weight);
        }
        let mut tasks: Vec<_> = tasks.into_iter().collect();
        tasks.sort_by_key(|task| std::cmp::Reverse(task.1.samples));
        tasks
    }

    fn functions(&self) -> Vec<(&Frame, Share)> {
        let mut functions: BTreeMap<u32, Share> = BTreeMap::new();
        for (stack, weight) in self.stacks.iter() {
            for frame in stack.frames.iter().collect::<BTreeSet<_>>() {
                functions.entry(*frame).or_default().total += weight.samples;
            }
            if let Some(frame) = stack.frames.last() {
                functions.entry(*frame).or_default().own += weight.samples;
            }
        }
        let frame = |(number, share)| (self.stacks.frame(number), share);
        let mut functions: Vec<_> = functions.into_iter().map(frame).collect();
        functions.sort_by(|one, two| (two.1.own, two.1.total, one.0).cmp(&(one.1.own, one.1.total, two.0)));
        functions
    }

    /// Samples in user code, and those of them whose function has a name.
    fn user(&self) -> (u64, u64) {
        let user = self.stacks.total_of(|frame| frame.side == Side::User);
        let named = self.stacks.total_of(|frame| frame.side == Side::User && frame.is_named);
        (user.samples, named.samples)
    }

    /// It in a line.
    pub fn line(&self) -> String {
        let facts = self.facts;
        let total = self.stacks.total();
        let seconds = |ns: u64| ns as f64 / 1e9;
        format!(
            "guest time {:.3} s to {:.3} s at {} a second: {} samples. Replayed {:.1} %, carried by deltas {:.1} %, idle {:.1} % (not drawn)",
            seconds(facts.from_ns),
            seconds(facts.to_ns),
            facts.rate,
            total.samples,
            facts.percent(facts.replayed_ns),
            facts.percent(facts.carried_ns),
            facts.percent(facts.idle_ns),
        )
    }

    /// For people.
    pub fn text(&self) -> String {
        let facts = self.facts;
        let total = self.stacks.total();
        let seconds = |ns: u64| ns as f64 / 1e9;
        let mut out = String::new();
        // A string takes all that is written.
        let _ = writeln!(
            out,
            "guest time    {:.3} s to {:.3} s",
            seconds(facts.from_ns),
            seconds(facts.to_ns)
        );
        let row = |out: &mut String, name: &str, ns: u64, more: &str| {
            let _ = writeln!(
                out,
                "{name:<14}{:>9.3} s {:>5.1} %{more}",
                seconds(ns),
                facts.percent(ns)
            );
        };
        row(&mut out, "  replayed", facts.replayed_ns, "");
        let switched = match facts.switched_ns {
            0 => String::new(),
            ns => format!("; {:.3} s of it began in another task", seconds(ns)),
        };
        let more = format!("  by deltas, charged to the task at their end{switched}");
        row(&mut out, "  carried", facts.carried_ns, &more);
        row(&mut out, "  idle", facts.idle_ns, "  in HLT, not among the samples");
        let _ = writeln!(
            out,
            "samples       {} at {} a second, {} of them carried{}",
            total.samples,
            facts.rate,
            total.carried,
            match facts.others.samples {
                0 => String::new(),
                others => format!("; {others} of other tasks left out"),
            }
        );
        let (user, named) = self.user();
        if user > 0 {
            let share = 100.0 * named as f64 / user as f64;
            let _ = writeln!(out, "in programs   {user} samples, {share:.1} % of them with a symbol");
        }
        let _ = writeln!(
            out,
            "compared      {} batches, {} epochs: all equal, sampling changed nothing",
            self.held.batches, self.held.epochs
        );
        let percent = |samples: u64| 100.0 * samples as f64 / total.samples.max(1) as f64;
        let _ = writeln!(out, "\n samples  share  carried  task");
        for (task, weight) in self.tasks().iter().take(SHOWN) {
            let _ = writeln!(
                out,
                "{:>8} {:>5.1}% {:>8}  {}",
                weight.samples,
                percent(weight.samples),
                weight.carried,
                one_line(&task.to_string())
            );
        }
        let _ = writeln!(out, "\n    self  share    total  share  function");
        for (frame, share) in self.functions().into_iter().take(SHOWN) {
            let _ = writeln!(
                out,
                "{:>8} {:>5.1}% {:>8} {:>5.1}%  {}  {}",
                share.own,
                percent(share.own),
                share.total,
                percent(share.total),
                one_line(&frame.name),
                one_line(&frame.file)
            );
        }
        self.without_symbols(&mut out);
        out
    }

    fn without_symbols(&self, out: &mut String) {
        let without: Vec<_> = self.without().collect();
        if !without.is_empty() {
            let _ = writeln!(out, "\nwithout symbols:");
        }
        for (path, why) in without.iter().take(SHOWN_FILES) {
            let _ = writeln!(out, "  {}: {}", one_line(path), one_line(why));
        }
        if without.len() > SHOWN_FILES {
            let _ = writeln!(out, "  and {} more", without.len() - SHOWN_FILES);
        }
        if let Some(trouble) = self.trouble {
            let _ = writeln!(
                out,
                "\nsome of the programs' code was not looked up: {}",
                one_line(trouble)
            );
        }
    }

    /// Files of which no functions are known, and why.
    fn without(&self) -> impl Iterator<Item = (&str, &str)> {
        let looked = self.files.into_iter().flat_map(Files::looked);
        looked.filter_map(|(path, looked)| match &looked.program {
            Err(why) => Some((&**path, &**why)),
            Ok(program) if !program.has_functions() => Some((
                &**path,
                "it is stripped: give a directory with one that is not, with --sysroot",
            )),
            Ok(_) => None,
        })
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let facts = self.facts;
        let total = self.stacks.total();
        let (user, named) = self.user();
        let tasks: Vec<_> = self
            .tasks()
            .into_iter()
            .take(MOST)
            .map(|(task, weight)| {
                json!({
                    "comm": task.comm,
                    "pid": task.pid,
                    "samples": weight.samples,
                    "carried": weight.carried,
                })
            })
            .collect();
        let functions: Vec<_> = self
            .functions()
            .into_iter()
            .take(MOST)
            .map(|(frame, share)| {
                json!({
                    "function": frame.name,
                    "file": frame.file,
                    "ring": if frame.side == Side::User { 3 } else { 0 },
                    "self": share.own,
                    "total": share.total,
                })
            })
            .collect();
        json!({
            "from_ns": facts.from_ns,
            "to_ns": facts.to_ns,
            "rate": facts.rate,
            "replayed_ns": facts.replayed_ns,
            "carried_ns": facts.carried_ns,
            "switched_ns": facts.switched_ns,
            "idle_ns": facts.idle_ns,
            "samples": total.samples,
            "carried_samples": total.carried,
            "idle_samples": facts.idle,
            "other_samples": facts.others.samples,
            "user_samples": user,
            "user_samples_with_symbol": named,
            "batches_compared": self.held.batches,
            "epochs_compared": self.held.epochs,
            "tasks": tasks,
            "functions": functions,
            "without_symbols": self.without().map(|(path, why)| json!({ "path": path, "why": why })).collect::<Vec<_>>(),
            "not_looked_up": self.trouble,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::stacks::testing::stacks;
    use super::*;

    #[test]
    fn functions_are_by_what_they_took_themselves_and_count_once_in_a_stack() {
        let stacks = stacks(&[
            ("spin", &["main", "f", "f", "f"], 6),
            ("spin", &["main", "g"], 10),
            ("sh\u{1b}[2J", &["main"], 1),
        ]);
        let facts = Facts {
            to_ns: 17_000_000,
            rate: 1000,
            replayed_ns: 17_000_000,
            ..Facts::default()
        };
        let report = Report {
            facts: &facts,
            stacks: &stacks,
            held: Held { batches: 3, epochs: 2 },
            files: None,
            trouble: None,
        };
        let json = report.json();
        let rows: Vec<_> = json["functions"].as_array().unwrap().iter().collect();
        let row = |index: usize| {
            (
                rows[index]["function"].as_str().unwrap(),
                rows[index]["self"].as_u64().unwrap(),
                rows[index]["total"].as_u64().unwrap(),
            )
        };
        assert_eq!([row(0), row(1), row(2)], [("g", 10, 10), ("f", 6, 6), ("main", 1, 17)]);
        assert_eq!(json["tasks"][0]["comm"], "spin");
        assert_eq!(
            (&json["user_samples"], &json["user_samples_with_symbol"]),
            (&json!(17), &json!(17))
        );
        let text = report.text();
        assert!(!text.contains('\u{1b}') && text.contains("sh\\u001b[2J (7)"), "{text}");
        assert!(text.contains("3 batches, 2 epochs: all equal"), "{text}");
    }
}
