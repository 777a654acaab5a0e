//! The results.

use serde_json::{Value, json};

#[derive(Clone, Copy, Debug)]
enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

/// One figure.
#[derive(Clone, Debug)]
pub struct Row {
    what: String,
    value: f64,
    unit: String,
    goal: Option<Goal>,
    note: String,
    data: Value,
}

impl Row {
    /// A figure without a goal.
    pub fn new(what: impl Into<String>, value: f64, unit: &str) -> Self {
        Self {
            what: what.into(),
            value,
            unit: unit.into(),
            goal: None,
            note: String::new(),
            data: Value::Null,
        }
    }

    /// It should be no less.
    pub fn at_least(self, goal: f64) -> Self {
        Self {
            goal: Some(Goal::AtLeast(goal)),
            ..self
        }
    }

    /// It should be no more.
    pub fn at_most(self, goal: f64) -> Self {
        Self {
            goal: Some(Goal::AtMost(goal)),
            ..self
        }
    }

    /// What a reader should know beside it.
    pub fn note(self, note: impl Into<String>) -> Self {
        Self {
            note: note.into(),
            ..self
        }
    }

    /// What it was computed from, for the JSON.
    pub fn data(self, data: Value) -> Self {
        Self { data, ..self }
    }

    fn goal_text(&self) -> String {
        match self.goal {
            Some(Goal::AtLeast(goal)) => format!(">= {}", number(goal)),
            Some(Goal::AtMost(goal)) => format!("<= {}", number(goal)),
            None => String::new(),
        }
    }

    fn met(&self) -> Option<bool> {
        self.goal.map(|goal| match goal {
            Goal::AtLeast(goal) => self.value >= goal,
            Goal::AtMost(goal) => self.value <= goal,
        })
    }
}

/// All figures.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Row>,
    pub skipped: Vec<String>,
    pub failed: Vec<String>,
}

impl Table {
    pub fn add(&mut self, row: Row) {
        eprintln!("bench:   {}: {} {} {}", row.what, number(row.value), row.unit, row.note);
        self.rows.push(row);
    }

    pub fn add_all(&mut self, rows: impl IntoIterator<Item = Row>) {
        rows.into_iter().for_each(|row| self.add(row));
    }

    pub fn skip(&mut self, section: &str, reason: &str) {
        self.skipped.push(format!("{section}: {reason}"));
    }

    pub fn fail(&mut self, section: &str, reason: &str) {
        self.failed.push(format!("{section}: {reason}"));
    }

    /// What, value, goal, met.
    pub fn print(&self) {
        let width = self.rows.iter().map(|row| row.what.len()).max().unwrap_or(0);
        println!(
            "{:<width$} {:>11} {:<10} {:>9} {:<5}",
            "what", "value", "", "goal", "met"
        );
        for row in &self.rows {
            let met = row.met().map_or("n.a.", |met| if met { "yes" } else { "no" });
            let (value, goal) = (number(row.value), row.goal_text());
            let line = format!(
                "{:<width$} {value:>11} {:<10} {goal:>9} {met:<5} {}",
                row.what, row.unit, row.note
            );
            println!("{}", line.trim_end());
        }
        for line in &self.skipped {
            println!("SKIPPED {line}");
        }
        for line in &self.failed {
            println!("FAILED {line}");
        }
    }

    pub fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            json!({
                "what": row.what,
                "value": row.value,
                "unit": row.unit,
                "goal": row.goal_text(),
                "met": row.met(),
                "note": row.note,
                "data": row.data,
            })
        });
        rows.collect()
    }
}

/// Four digits or so.
fn number(value: f64) -> String {
    match value.abs() {
        size if size == 0.0 || size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.01 => format!("{value:.3}"),
        _ => format!("{value:.5}"),
    }
}
