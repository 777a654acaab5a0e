//! Chrome's JSON ("Trace Event Format"), written event by event. Times are in microseconds there, with a fraction.

use std::io::{self, Write};

use serde_json::{Map, Value as Json, json};

use super::sink::{Event, Sink, Track, Value};

/// The machine, as a process.
const MACHINE: u32 = 1;

/// A trace that is being written.
pub struct Chrome<W> {
    out: W,
    /// An event has been written: the next one needs a comma before it.
    going: bool,
}

impl<W: Write> Chrome<W> {
    pub fn new(out: W) -> Self {
        Self { out, going: false }
    }

    /// Writes an event, whose times are no numbers of JSON's library: it has no exact decimals.
    fn event(&mut self, event: &Json, times: &[(&str, u64)]) -> io::Result<()> {
        let begin = if self.going { ",\n" } else { "{\"traceEvents\":[\n" };
        self.going = true;
        let text = event.to_string();
        let open = text.strip_suffix('}').unwrap_or(&text);
        write!(self.out, "{begin}{open}")?;
        for (name, ns) in times {
            write!(self.out, ",\"{name}\":{}.{:03}", ns / 1000, ns % 1000)?;
        }
        self.out.write_all(b"}")
    }

    fn happened(&mut self, track: Track, phase: &str, times: &[(&str, u64)], event: &Event) -> io::Result<()> {
        let values = event.values.iter().map(|(name, value)| {
            let value = match value {
                Value::Number(number) => Json::from(*number),
                Value::Text(text) => Json::from(text.as_str()),
            };
            ((*name).to_owned(), value)
        });
        let values: Map<String, Json> = values.collect();
        let mut json = json!({
            "ph": phase,
            "pid": MACHINE,
            "tid": track.number(),
            "name": event.name,
            "cat": track.category(),
        });
        if !values.is_empty() {
            json["args"] = values.into();
        }
        self.event(&json, times)
    }

    /// The end of an arrow, at an event.
    fn arrow(&mut self, track: Track, phase: &str, at_ns: u64, number: u64) -> io::Result<()> {
        let json = json!({
            "ph": phase,
            "bp": "e",
            "id": number,
            "pid": MACHINE,
            "tid": track.number(),
            "name": "answer",
            "cat": "answer",
        });
        self.event(&json, &[("ts", at_ns)])
    }

    fn named(&mut self, what: &str, thread: u64, name: &str) -> io::Result<()> {
        let json = json!({ "ph": "M", "pid": MACHINE, "tid": thread, "name": what, "args": { "name": name } });
        self.event(&json, &[])
    }
}

impl<W: Write> Sink for Chrome<W> {
    fn machine(&mut self, name: &str, guest_ns: u64, unix_ns: Option<u64>) -> io::Result<()> {
        self.named("process_name", 0, name)?;
        if let Some(unix_ns) = unix_ns {
            let json = json!({
                "ph": "M", "pid": MACHINE, "tid": 0, "name": "calendar",
                "args": { "guest_ns": guest_ns, "unix_ns": unix_ns },
            });
            self.event(&json, &[])?;
        }
        Ok(())
    }

    fn track(&mut self, track: Track) -> io::Result<()> {
        self.named("thread_name", track.number(), &track.name())
    }

    fn slice(&mut self, track: Track, from_ns: u64, to_ns: u64, event: &Event) -> io::Result<()> {
        let took = to_ns.saturating_sub(from_ns);
        self.happened(track, "X", &[("ts", from_ns), ("dur", took)], event)
    }

    fn instant(&mut self, track: Track, at_ns: u64, event: &Event) -> io::Result<()> {
        if event.asks.is_none() && event.answers.is_empty() {
            return self.happened(track, "i", &[("ts", at_ns)], event);
        }
        // Arrows begin and end at slices only.
        self.slice(track, at_ns, at_ns, event)?;
        if let Some(number) = event.asks {
            self.arrow(track, "s", at_ns, number)?;
        }
        for number in &event.answers {
            self.arrow(track, "f", at_ns, *number)?;
        }
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        let begin = if self.going { "" } else { "{\"traceEvents\":[" };
        writeln!(self.out, "{begin}\n],\"displayTimeUnit\":\"ns\"}}")?;
        self.out.flush()
    }
}
