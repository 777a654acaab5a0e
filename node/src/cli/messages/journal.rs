//! Messages as entries of the journal, with their fields ("Native Journal Protocol").

use std::fmt;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::out::queue;

/// Makes entries.
pub struct Journal {
    /// Who tells it.
    identifier: String,
}

impl Journal {
    /// Of this program.
    pub fn of_this_program() -> Self {
        let program = std::env::current_exe().ok();
        let name = program.as_deref().and_then(|program| program.file_name());
        Self {
            identifier: name.unwrap_or_default().to_string_lossy().into_owned(),
        }
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let mut entry = Entry::default();
        // As syslog(3) counts.
        let priority = match *metadata.level() {
            Level::ERROR => "3",
            Level::WARN => "4",
            Level::INFO => "5",
            Level::DEBUG => "6",
            Level::TRACE => "7",
        };
        entry.put("PRIORITY", priority);
        entry.put("SYSLOG_IDENTIFIER", &self.identifier);
        entry.put("TARGET", metadata.target());
        if let Some(file) = metadata.file() {
            entry.put("CODE_FILE", file);
        }
        if let Some(line) = metadata.line() {
            entry.put("CODE_LINE", &line.to_string());
        }
        event.record(&mut entry);
        queue::entry(entry.0);
    }
}

/// An entry: fields with their lengths, so that a value may have lines.
#[derive(Default)]
struct Entry(Vec<u8>);

impl Entry {
    fn put(&mut self, name: &str, value: &str) {
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(b'\n');
        self.0.extend((value.len() as u64).to_le_bytes());
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(b'\n');
    }

    fn field(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.put("MESSAGE", value),
            // Of what comes by the `log` crate.
            name if name.starts_with("log.") => {}
            name => {
                let upper = |letter: char| match letter.to_ascii_uppercase() {
                    letter if letter.is_ascii_alphanumeric() => letter,
                    _ => '_',
                };
                self.put(&format!("F_{}", name.chars().map(upper).collect::<String>()), value);
            }
        }
    }
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.field(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.field(field, &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_with_lines_begins_no_other_field() {
        let mut entry = Entry::default();
        entry.put("MESSAGE", "one\nPRIORITY=0");
        assert_eq!(entry.0, b"MESSAGE\n\x0e\0\0\0\0\0\0\0one\nPRIORITY=0\n");
    }
}
