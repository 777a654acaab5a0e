//! What `go tool pprof` reads, and what takes its files: a gzipped message of `proto/profile.proto`.

use std::collections::HashMap;
use std::io::{self, Write};

use flate2::{Compression, GzBuilder};
use lockstep_node::out::one_line;
use prost::Message;

use super::facts::Facts;
use super::stacks::{Side, Stacks, Weight};

/// Messages of `proto/profile.proto`.
#[allow(clippy::pedantic)]
mod messages {
    include!(concat!(env!("OUT_DIR"), "/lockstep.pprof.rs"));
}

use messages::{Function, Label, Line, Location, Mapping, Profile, Sample, ValueType};

/// Texts, each once; the first one is empty.
#[derive(Default)]
struct Texts {
    list: Vec<String>,
    numbers: HashMap<String, i64>,
}

impl Texts {
    fn number(&mut self, text: &str) -> i64 {
        if let Some(number) = self.numbers.get(text) {
            return *number;
        }
        let number = self.list.len() as i64;
        self.list.push(text.into());
        self.numbers.insert(text.into(), number);
        number
    }
}

/// Writes it.
pub fn write(stacks: &Stacks, facts: &Facts, out: &mut dyn Write) -> io::Result<()> {
    let message = profile(stacks, facts);
    // Without a time or a name, which would make two files of the same samples differ.
    let mut gzip = GzBuilder::new().write(out, Compression::default());
    gzip.write_all(&message.encode_to_vec())?;
    gzip.finish()?;
    Ok(())
}

fn profile(stacks: &Stacks, facts: &Facts) -> Profile {
    let mut texts = Texts::default();
    texts.number("");
    let mut profile = Profile {
        sample_type: vec![
            kind(&mut texts, "samples", "count"),
            kind(&mut texts, "cpu", "nanoseconds"),
        ],
        time_nanos: facts.unix_ns.and_then(|ns| i64::try_from(ns).ok()).unwrap_or(0),
        duration_nanos: signed(facts.to_ns.saturating_sub(facts.from_ns)),
        period_type: Some(kind(&mut texts, "cpu", "nanoseconds")),
        period: signed(facts.period_ns()),
        ..Profile::default()
    };
    let mut mappings: HashMap<String, u64> = HashMap::new();
    let mut known: HashMap<u32, u64> = HashMap::new();
    for (stack, weight) in stacks.iter() {
        for number in &stack.frames {
            let next = known.len() as u64 + 1;
            let std::collections::hash_map::Entry::Vacant(entry) = known.entry(*number) else {
                continue;
            };
            entry.insert(next);
            let frame = stacks.frame(*number);
            let file = one_line(&frame.file);
            let next_mapping = mappings.len() as u64 + 1;
            let mapping = *mappings.entry(file.to_string()).or_insert_with(|| {
                profile.mapping.push(Mapping {
                    id: next_mapping,
                    filename: texts.number(&file),
                    // Nothing is left for who reads it to look up.
                    has_functions: true,
                });
                next_mapping
            });
            let name = texts.number(&one_line(&frame.name));
            profile.function.push(Function {
                id: next,
                name,
                system_name: name,
                filename: texts.number(&file),
            });
            profile.location.push(Location {
                id: next,
                mapping_id: mapping,
                line: vec![Line { function_id: next }],
            });
        }
        let carried = weight.carried.min(weight.samples);
        let parts = [(weight.samples - carried, "replayed"), (carried, "carried")];
        for (samples, how) in parts.into_iter().filter(|(samples, _)| *samples > 0) {
            let side = stack.frames.last().map(|number| stacks.frame(*number).side);
            let ring = if side == Some(Side::User) { 3 } else { 0 };
            let label = vec![
                text(&mut texts, "task", &one_line(&stack.task.comm)),
                number(&mut texts, "pid", u64::from(stack.task.pid)),
                number(&mut texts, "ring", ring),
                text(&mut texts, "slice", how),
            ];
            profile.sample.push(Sample {
                // The innermost first.
                location_id: stack.frames.iter().rev().map(|number| known[number]).collect(),
                value: vec![signed(samples), signed(facts.time_ns(Weight { samples, carried: 0 }))],
                label,
            });
        }
    }
    let comment = format!(
        "guest time {} to {} ns; idle {} ns, not among the samples; carried by deltas {} ns",
        facts.from_ns, facts.to_ns, facts.idle_ns, facts.carried_ns
    );
    profile.comment = vec![texts.number(&comment)];
    profile.string_table = texts.list;
    profile
}

fn kind(texts: &mut Texts, kind: &str, unit: &str) -> ValueType {
    ValueType {
        r#type: texts.number(kind),
        unit: texts.number(unit),
    }
}

fn text(texts: &mut Texts, key: &str, value: &str) -> Label {
    Label {
        key: texts.number(key),
        str: texts.number(value),
        num: 0,
    }
}

fn number(texts: &mut Texts, key: &str, value: u64) -> Label {
    Label {
        key: texts.number(key),
        str: 0,
        num: signed(value),
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::super::stacks::testing::stacks;
    use super::*;

    #[test]
    fn it_decodes_to_what_was_sampled() -> Result<(), Box<dyn std::error::Error>> {
        let stacks = stacks(&[("spin", &["main", "work", "k:entry"], 4), ("sh", &["main"], 1)]);
        let facts = Facts {
            from_ns: 1_000,
            to_ns: 2_000_001_000,
            rate: 1000,
            unix_ns: Some(1_700_000_000_000_000_000),
            ..Facts::default()
        };
        let mut bytes = Vec::new();
        write(&stacks, &facts, &mut bytes)?;
        let mut again = Vec::new();
        write(&stacks, &facts, &mut again)?;
        assert_eq!(bytes, again);
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&*bytes).read_to_end(&mut plain)?;
        let profile = Profile::decode(&*plain)?;
        let name = |number: i64| profile.string_table[number as usize].as_str();
        assert_eq!(name(0), "");
        let types: Vec<_> = profile
            .sample_type
            .iter()
            .map(|kind| (name(kind.r#type), name(kind.unit)))
            .collect();
        assert_eq!(types, [("samples", "count"), ("cpu", "nanoseconds")]);
        assert_eq!((profile.period, profile.duration_nanos), (1_000_000, 2_000_000_000));
        assert_eq!(profile.time_nanos, 1_700_000_000_000_000_000);
        let rows: Vec<_> = profile
            .sample
            .iter()
            .map(|sample| {
                let functions: Vec<_> = sample
                    .location_id
                    .iter()
                    .map(|id| {
                        let location = profile.location.iter().find(|location| location.id == *id).unwrap();
                        let id = location.line[0].function_id;
                        let function = profile.function.iter().find(|function| function.id == id).unwrap();
                        assert!(profile.mapping.iter().any(|mapping| mapping.id == location.mapping_id));
                        name(function.name)
                    })
                    .collect();
                let label = |key| sample.label.iter().find(|label| name(label.key) == key).unwrap();
                (
                    name(label("task").str),
                    label("pid").num,
                    name(label("slice").str),
                    functions.join(","),
                    sample.value.clone(),
                )
            })
            .collect();
        assert_eq!(
            rows,
            [
                ("sh", 7, "replayed", "main".into(), vec![1, 1_000_000]),
                ("spin", 7, "replayed", "entry,work,main".into(), vec![2, 2_000_000]),
                ("spin", 7, "carried", "entry,work,main".into(), vec![2, 2_000_000]),
            ]
        );
        Ok(())
    }
}
