//! The configuration file: TOML, whose keys are the long flags of `run`.
//!
//! `record = "DIR"` and `record-max-bytes = 1000000` can also be written as a table: its name and the key are joined by `-`,
//! and the key `directory` stands for the table's own name:
//!
//! ```toml
//! [record]
//! directory = "/var/lib/lockstep/vm/log"
//! max-bytes = 1000000
//! ```

use std::fs::File;
use std::io::Read;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::Problem;

/// Largest file that is read: a hundred times what one with every key has.
const MAX_BYTES: u64 = 1 << 20;
/// The key that stands for its table's own name.
const OWN: &str = "directory";

/// What a key is set to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// One value, as it would be typed.
    One(String),
    /// Several.
    Many(Vec<String>),
    /// On or off.
    Switch(bool),
}

/// A key that is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The flag's name, without dashes before it.
    pub key: String,
    /// Where it stands, from 1.
    pub line: usize,
    /// What it is set to.
    pub value: Value,
}

/// What a file sets, and what is wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// Keys, in the order of their lines.
    pub entries: Vec<Entry>,
    /// Nothing may be made of a file with a problem.
    pub problems: Vec<Problem>,
}

/// Reads a file.
pub fn read(path: &Path) -> Result<Content, Problem> {
    let problem = |what: String, remedy: &str| Problem {
        line: 0,
        key: None,
        what,
        remedy: remedy.into(),
    };
    let cannot = |error| {
        problem(
            format!("it cannot be read: {error}"),
            "name the machine's configuration file, and let this user read it",
        )
    };
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes))
        .map_err(cannot)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(problem(
            format!("it has more than {MAX_BYTES} bytes"),
            "name the machine's configuration file",
        ));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(parse(&text)),
        Err(_) => Err(problem("it is not UTF-8".into(), "save it as UTF-8, which TOML is")),
    }
}

/// Reads a file's text.
pub fn parse(text: &str) -> Content {
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut content = Content::default();
    for error in errors {
        content.problems.push(Problem {
            line: line_of(text, error.span().map_or(0, |span| span.start)),
            key: None,
            what: format!("not TOML: {}", error.message()),
            remedy: "write `key = value`; texts stand in double quotes, lists in brackets".into(),
        });
    }
    collect(text, table.get_ref(), "", &mut content);
    content.entries.sort_by_key(|entry| entry.line);
    content
}

fn line_of(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}

fn collect(text: &str, table: &DeTable<'_>, within: &str, content: &mut Content) {
    for (name, value) in table {
        let line = line_of(text, name.span().start);
        let key = match (within, name.get_ref().as_ref()) {
            ("", name) => name.to_owned(),
            (table, OWN) => table.to_owned(),
            (table, name) => format!("{table}-{name}"),
        };
        if let DeValue::Table(inner) = value.get_ref() {
            if within.is_empty() {
                collect(text, inner, &key, content);
            } else {
                content.problem(line, &key, "a table in a table", "write the key in the outer table");
            }
            continue;
        }
        if let Some(first) = content.entries.iter().find(|entry| entry.key == key) {
            let what = format!("set here and in line {}", first.line);
            content.problem(line, &key, &what, "set it once");
            continue;
        }
        let value = match value.get_ref() {
            DeValue::Boolean(on) => Some(Value::Switch(*on)),
            DeValue::Array(items) => items
                .iter()
                .map(|item| scalar(item.get_ref()))
                .collect::<Option<_>>()
                .map(Value::Many),
            other => scalar(other).map(Value::One),
        };
        match value {
            Some(value) => content.entries.push(Entry { key, line, value }),
            None => content.problem(
                line,
                &key,
                "neither a text, a number, true or false, nor a list of texts",
                "write it as its flag would be typed, in double quotes",
            ),
        }
    }
}

fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => Some(decimal(number.as_str(), number.radix())),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        _ => None,
    }
}

/// The number as flags are typed. One that is too large stays as it is, for the flag to refuse.
fn decimal(digits: &str, radix: u32) -> String {
    i128::from_str_radix(digits, radix).map_or_else(|_| digits.into(), |number| number.to_string())
}

impl Content {
    pub(super) fn problem(&mut self, line: usize, key: &str, what: &str, remedy: &str) {
        self.problems.push(Problem {
            line,
            key: Some(key.into()),
            what: what.into(),
            remedy: remedy.into(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tables_lists_and_numbers_become_flags() {
        let text = "name = \"vm\"\nmemory-mib = 0x100\ncompress = true\n\n[record]\ndirectory = \"/d\"\nmax-bytes = 1_000\n\n[arbiter]\nca = \"c\"\n";
        let content = parse(text);
        assert_eq!(content.problems, []);
        let found: Vec<_> = content
            .entries
            .iter()
            .map(|entry| (entry.key.as_str(), entry.line, entry.value.clone()))
            .collect();
        let one = |text: &str| Value::One(text.into());
        assert_eq!(
            found,
            [
                ("name", 1, one("vm")),
                ("memory-mib", 2, one("256")),
                ("compress", 3, Value::Switch(true)),
                ("record", 6, one("/d")),
                ("record-max-bytes", 7, one("1000")),
                ("arbiter-ca", 10, one("c")),
            ]
        );
        let lists = parse("disk = [\"a\", \"b,ro\"]");
        assert_eq!(lists.entries[0].value, Value::Many(vec!["a".into(), "b,ro".into()]));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let wrong = |text: &str| {
            let problems = parse(text).problems;
            assert_eq!(problems.len(), 1, "{text}: {problems:?}");
            (problems[0].line, problems[0].key.clone(), problems[0].what.clone())
        };
        let key = |name: &str| Some(name.to_owned());
        assert_eq!(wrong("a = 1\nb = vm\n").0, 2);
        assert_eq!(wrong("a = 1\na = 2\n").0, 2);
        assert_eq!(
            wrong("record-ca = 1\n[record]\nca = 2\n"),
            (1, key("record-ca"), "set here and in line 3".into())
        );
        assert_eq!(wrong("[a]\n[a.b]\nc = 1\n").1, key("a-b"));
        assert_eq!(wrong("\nwhen = 1979-05-27\n").0, 2);
        assert_eq!(wrong("disk = [[\"a\"]]\n").1, key("disk"));
    }
}
