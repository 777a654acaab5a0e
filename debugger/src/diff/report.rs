//! A pair's divergence report, as it stands in the messages of a node, or in a file of its own that the node kept.
//!
//! Messages may have passed through a journal or a terminal: what stands before a line's text, and colours, are looked
//! over.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};
use lockstep_node::reports::BEGIN;
use lockstep_proto::quantity::{BatchNumber, StopNumber};
use regex::Regex;

use super::{Difference, Differs, Found, turns};
use crate::symbols::Symbols;

/// Longer lines are no line of a report.
const LONGEST_LINE: u64 = 64 << 10;
/// Lines of a report that are kept.
const MOST_LINES: usize = 200;

/// Explains the last report in `file`.
pub fn explain(file: &Path, vmlinux: Option<&Path>) -> Result<Found> {
    let symbols = vmlinux.map(Symbols::of).transpose()?;
    let opened = File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
    let (reports, lines) =
        last_report(BufReader::new(opened)).with_context(|| format!("cannot read {}", file.display()))?;
    if reports == 0 {
        bail!(
            "{} has no divergence report (`{BEGIN}`): give a file with the messages of a node, or one that it kept (`--reports`)",
            file.display()
        );
    }
    let mut difference = read(&lines, symbols.as_ref())?;
    if reports > 1 {
        difference
            .notes
            .push(format!("This is the last of {reports} reports in the file."));
    }
    Ok(Found::Difference(Box::new(difference)))
}

/// How many reports there are, and the lines from the beginning of the last one on.
fn last_report(mut messages: impl BufRead) -> std::io::Result<(u64, Vec<String>)> {
    let (mut reports, mut lines) = (0, Vec::new());
    let mut line = Vec::new();
    loop {
        line.clear();
        if messages.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok((reports, lines));
        }
        let text = String::from_utf8_lossy(&line);
        if text.contains(BEGIN) {
            reports += 1;
            lines.clear();
        } else if reports > 0 && lines.len() < MOST_LINES {
            lines.push(text.trim_end().to_owned());
        }
    }
}

fn read(lines: &[String], symbols: Option<&Symbols>) -> Result<Difference> {
    let mut difference = Difference {
        what: "the backup went another way".into(),
        ..Difference::default()
    };
    let what = Regex::new(r"first divergence: (.+)$")?;
    let batch = Regex::new(r"batch (\d+) \(stops \d+ to \d+\)")?;
    let noticed = Regex::new(r"noticed at stop (\d+)")?;
    let first = Regex::new(r"registers differ first at stop (\d+):")?;
    let register = Regex::new(r"(\w+) expected ([0-9a-f]{16}) actual ([0-9a-f]{16})")?;
    let equal = Regex::new(r"registers are equal at all of the last \d+ stops.*$")?;
    let page = Regex::new(r"(page 0x[0-9a-f]+) differs: (hash [0-9a-f]{8}) expected, (hash [0-9a-f]{8}) actual")?;
    let byte = Regex::new(r"(healed )?byte (0x[0-9a-f]{1,16}): ([0-9a-f]{2}) expected, ([0-9a-f]{2}) actual(: .+)?$")?;
    let more = Regex::new(r"(and \d+ (?:pages|bytes) more|healed: .+|healed page .+|pages that differed: .+)$")?;
    let same = Regex::new(r"page 0x[0-9a-f]+ was the same by then.*$")?;
    // In the primary's messages, others come after the registers.
    let mut compared = false;
    for (index, line) in lines.iter().enumerate() {
        if let Some(found) = what.captures(line) {
            difference.what = found[1].into();
        } else if let Some(found) = batch.captures(line) {
            difference.batch.1 = found[1].parse().ok().map(BatchNumber::new);
        } else if let Some(found) = noticed.captures(line) {
            // Where the registers differ is before it.
            difference.stop = StopNumber::new(found[1].parse()?);
            difference.notes.push(format!("noticed at stop {}", &found[1]));
        } else if let Some(found) = first.captures(line) {
            difference.stop = StopNumber::new(found[1].parse()?);
        } else if let Some(found) = register.captures(line) {
            let [expected, actual] = [2, 3].map(|group| u64::from_str_radix(&found[group], 16));
            let (expected, actual) = (expected?, actual?);
            compared = true;
            if expected != actual {
                difference
                    .values
                    .push(turns::register(&found[1], expected, actual, symbols));
            }
        } else if let Some(found) = equal.find(line) {
            compared = true;
            difference.notes.push(found.as_str().into());
        } else if let Some(found) = page.captures(line) {
            difference.values.push(Differs::new(&found[1], &found[2], &found[3]));
        } else if let Some(found) = byte.captures(line) {
            let address = u64::from_str_radix(&found[2][2..], 16)?;
            let when = found.get(1).map_or("", |_| " when healed");
            let symbol = symbols.and_then(|symbols| symbols.physical(address));
            let symbol = symbol.map_or_else(String::new, |symbol| format!(" ({symbol})"));
            let name = format!("byte {}{symbol}{when}", &found[2]);
            difference.values.push(Differs::new(name, &found[3], &found[4]));
            if let Some(note) = found.get(5) {
                let note = note.as_str().trim_start_matches(": ");
                difference.notes.push(format!("byte {}: {note}", &found[2]));
            }
        } else if let Some(found) = more.find(line).or_else(|| same.find(line)) {
            difference.notes.push(found.as_str().into());
        } else if index == 0 {
            difference.what.clone_from(line);
        } else if compared {
            break;
        }
    }
    Ok(difference)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGES: &str = "\
INFO protected term=2
Nov 21 10:00:01 a lockstep[7]: ERROR the backup diverged:
Nov 21 10:00:01 a lockstep[7]: first divergence: registers, inputs or effects differ (digest chain)
Nov 21 10:00:01 a lockstep[7]:   batch 12 (stops 30 to 45)
Nov 21 10:00:01 a lockstep[7]:   noticed at stop 45 (port write), guest time 1.000000 s
Nov 21 10:00:01 a lockstep[7]: registers differ first at stop 40:
Nov 21 10:00:01 a lockstep[7]:        rax expected 0000000000000001 actual 0000000000000001
Nov 21 10:00:01 a lockstep[7]:   *    rip expected 0000000000000028 actual 0000000000000007
Nov 21 10:00:02 a lockstep[7]: INFO something else
Nov 21 10:00:02 a lockstep[7]: registers differ first at stop 99:
";

    const KEPT: &str = "\
the backup diverged:
first divergence: an epoch differs: 9 dirty pages in the log, 9 here; pages that differ: 1, dirty only here: 0
  batch 12 (stops 30 to 45)
  noticed at stop 45 (port write), guest time 1.000000 s
  page 0x1a5a000 differs: hash 00000001 expected, hash 0000000a actual
    byte 0x1a5a309: 00 expected, 40 actual: one bit, and nothing else of this page
       rip 0000000000000001 rflags 0000000000000001    rax 0000000000000001
  the log before it:
            45  clock +1 ns
healed: 30 pages differed when the primary's came, those included that it has written since the divergence
  healed page 0x1a5a000, which the primary has written since: 2 bytes differ
    healed byte 0x1a5a300: 07 expected, 01 actual
    healed byte 0x1a5a309: 00 expected, 40 actual
  pages that differed: 0x1000 0x2000
";

    #[test]
    fn pages_and_bytes_are_read() {
        let (reports, lines) = last_report(KEPT.as_bytes()).unwrap();
        assert_eq!(reports, 1);
        let difference = read(&lines, None).unwrap();
        assert_eq!(difference.stop, StopNumber::new(45));
        let values: Vec<_> = difference
            .values
            .iter()
            .map(|value| (&*value.name, &*value.expected, &*value.actual))
            .collect();
        assert_eq!(
            values,
            [
                ("page 0x1a5a000", "hash 00000001", "hash 0000000a"),
                ("byte 0x1a5a309", "00", "40"),
                ("byte 0x1a5a300 when healed", "07", "01"),
                ("byte 0x1a5a309 when healed", "00", "40"),
            ]
        );
        let notes = difference.notes.join("\n");
        for note in [
            "byte 0x1a5a309: one bit, and",
            "healed: 30 pages",
            "healed page 0x1a5a000, which",
            "pages that differed: 0x1000",
        ] {
            assert!(notes.contains(note), "{note}: {notes}");
        }
    }

    #[test]
    fn the_last_report_is_read_behind_a_journals_prefix() {
        let (reports, lines) = last_report(MESSAGES.as_bytes()).unwrap();
        assert_eq!(reports, 1);
        let difference = read(&lines, None).unwrap();
        assert_eq!(difference.what, "registers, inputs or effects differ (digest chain)");
        assert_eq!(
            (difference.stop, difference.batch),
            (StopNumber::new(40), (None, Some(BatchNumber::new(12))))
        );
        assert_eq!(difference.values.len(), 1);
        let rip = &difference.values[0];
        assert_eq!(
            (&*rip.name, &*rip.expected, &*rip.actual),
            ("rip", "0000000000000028", "0000000000000007")
        );
        let twice = [MESSAGES, MESSAGES].concat();
        assert_eq!(last_report(twice.as_bytes()).unwrap().0, 2);
        assert_eq!(last_report(&b"nothing"[..]).unwrap().0, 0);
    }
}
