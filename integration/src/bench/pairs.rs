//! Recorded and unrecorded runs of one snapshot in turn, so that what else the machine does meets both.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lockstep_integration::Running;
use lockstep_integration::cpu::cpu_ns;
use serde_json::json;

use crate::table::Row;

/// A bench in a guest takes seconds; other users of the cores may make that minutes.
pub const LIMIT: Duration = Duration::from_secs(180);
/// Names of the two kinds of runs.
pub const KINDS: [&str; 2] = ["recorded", "unrecorded"];
/// The guest's prompt.
pub const PROMPT: &str = "lockstep#";

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Work for each second, in whatever unit; only ratios of it are used.
    pub rate: f64,
    /// The same for each second that the vCPU's thread had a core. Other processes do not change it much.
    pub cpu_rate: f64,
    /// When it ended.
    pub at: Instant,
}

/// Two samples, of an unrecorded and a recorded run say, taken one right after the other.
pub type Pair = (Sample, Sample);

/// Types a `bench` command into the guest; the rate comes from the line that it prints.
pub fn bench(run: &mut Running, arguments: &str) -> Result<Sample> {
    let pid = run.pid();
    let cpu = cpu_ns(pid)?;
    run.type_text(&format!("bench {arguments}\n"))?;
    let name = arguments.split(' ').next().unwrap_or_default();
    run.wait_for(&format!("BENCH {name} work="), LIMIT)?;
    run.wait_for("\n", LIMIT)?;
    let at = Instant::now();
    let cpu = cpu_ns(pid)? - cpu;
    let text = run.console.text();
    let line = text
        .lines()
        .rev()
        .find(|line| line.starts_with("BENCH "))
        .context("no BENCH line")?;
    let ns: f64 = line
        .rsplit("ns=")
        .next()
        .and_then(|ns| ns.trim().parse().ok())
        .context("no ns= in the BENCH line")?;
    run.wait_for(PROMPT, LIMIT)?;
    Ok(Sample {
        rate: 1e9 / ns,
        cpu_rate: 1e9 / cpu,
        at,
    })
}

/// `rounds` pairs, first ABBA and so on: a drift of the machine's speed then favours neither.
pub fn alternate<T>(rounds: usize, mut run: impl FnMut(bool) -> Result<T>) -> Result<Vec<(T, T)>> {
    let mut pairs = Vec::new();
    for round in 0..rounds {
        let first = run(round % 2 == 1)?;
        let second = run(round % 2 == 0)?;
        pairs.push(if round % 2 == 0 {
            (first, second)
        } else {
            (second, first)
        });
    }
    Ok(pairs)
}

/// The median; of an even number, the mean of the two in the middle.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// Least and greatest.
pub fn spread(values: &[f64]) -> (f64, f64) {
    values
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(*value), high.max(*value))
        })
}

/// CPU time of all children that have ended and were waited for, in seconds.
pub fn children_cpu() -> Result<f64> {
    let text = fs::read_to_string("/proc/self/stat")?;
    let fields = text.rsplit(')').next().context("/proc/self/stat")?.split_whitespace();
    let ticks: f64 = fields
        .skip(13)
        .take(2)
        .filter_map(|field| field.parse::<f64>().ok())
        .sum();
    Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
}

/// Median and spread of the pairs' ratios, second to first, by the guest's clock and by the vCPU thread's CPU time. `names` are
/// the second's and the first's.
pub fn ratio(what: &str, names: [&str; 2], pairs: &[Pair], goal: Option<f64>) -> [Row; 2] {
    let [over, under] = names;
    let row = |what: String, rate: fn(&Sample) -> f64| {
        let ratios: Vec<f64> = pairs.iter().map(|(first, second)| rate(second) / rate(first)).collect();
        let (low, high) = spread(&ratios);
        let best = |rates: &mut dyn Iterator<Item = f64>| rates.fold(0.0, f64::max);
        let best =
            best(&mut pairs.iter().map(|pair| rate(&pair.1))) / best(&mut pairs.iter().map(|pair| rate(&pair.0)));
        let row = Row::new(what, median(ratios.iter().copied()), "")
            .note(format!(
                "{low:.3} to {high:.3} in {} pairs; best {over} / best {under} {best:.3}",
                pairs.len()
            ))
            .data(json!(ratios));
        match goal {
            Some(goal) => row.at_least(goal),
            None => row,
        }
    };
    [
        row(format!("{what}: {over} / {under}"), |sample| sample.rate),
        row("  the same by CPU time".into(), |sample| sample.cpu_rate),
    ]
}
