//! The demo's result, as a table and as JSON.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use lockstep_integration::pair::Tally;
use serde_json::json;

/// One death of a host.
pub struct Death {
    /// Longest silence that the client saw.
    pub silence: Duration,
    /// From the last of the log to going live.
    pub to_live: Duration,
}

/// What the demo came to.
pub struct Results {
    /// What the client saw.
    pub tally: Tally,
    /// The counter's value at the end.
    pub value: u64,
    /// The hosts' deaths.
    pub deaths: Vec<Death>,
    /// Pauses of the machine for a join.
    pub pauses: Vec<Duration>,
    /// On what kind of host it ran.
    pub host: String,
}

impl Results {
    /// Increments that were answered and are not in the end's value.
    fn lost(&self) -> u64 {
        self.tally.acknowledged.saturating_sub(self.value)
    }

    /// Increments in the end's value that were not asked for. One that is on its way at the end may be among the value.
    fn duplicated(&self) -> u64 {
        self.value.saturating_sub(self.tally.acknowledged)
    }

    /// Whether it went as promised.
    pub fn is_good(&self) -> bool {
        self.lost() == 0 && self.duplicated() == 0 && self.tally.broken == 0 && self.tally.jumps == 0
    }

    /// Prints the table, and writes `result.json` into `dir`.
    pub fn tell(&self, dir: &Path) -> Result<()> {
        let list = |durations: &mut dyn Iterator<Item = Duration>, unit: &str, divisor: u128| {
            let numbers: Vec<_> = durations
                .map(|duration| format!("{:.1}", duration.as_nanos() as f64 / divisor as f64))
                .collect();
            format!("{} {unit}", numbers.join(", "))
        };
        let milliseconds = 1_000_000;
        println!();
        for (name, value) in [
            ("host", self.host.clone()),
            ("acknowledged increments", self.tally.acknowledged.to_string()),
            ("final value", self.value.to_string()),
            ("lost", self.lost().to_string()),
            ("duplicated", self.duplicated().to_string()),
            ("connections broken", self.tally.broken.to_string()),
            (
                "longest silence",
                list(&mut self.deaths.iter().map(|death| death.silence), "ms", milliseconds),
            ),
            (
                "from last log to live",
                list(&mut self.deaths.iter().map(|death| death.to_live), "ms", milliseconds),
            ),
            (
                "pause on joining",
                list(&mut self.pauses.iter().copied(), "ms", milliseconds),
            ),
        ] {
            println!("  {name:<24} {value}");
        }
        println!();
        let ms = |duration: &Duration| duration.as_secs_f64() * 1000.0;
        let result = json!({
            "good": self.is_good(),
            "host": self.host,
            "acknowledged": self.tally.acknowledged,
            "final_value": self.value,
            "lost": self.lost(),
            "duplicated": self.duplicated(),
            "connections_broken": self.tally.broken,
            "longest_silence_ms": self.deaths.iter().map(|death| ms(&death.silence)).collect::<Vec<_>>(),
            "to_live_ms": self.deaths.iter().map(|death| ms(&death.to_live)).collect::<Vec<_>>(),
            "join_pause_ms": self.pauses.iter().map(ms).collect::<Vec<_>>(),
        });
        let file = dir.join("result.json");
        fs::write(&file, format!("{result:#}\n")).with_context(|| format!("cannot write {}", file.display()))
    }
}
