//! Calls as strace's `-f -ttt` writes them, and as JSON.

use lockstep_node::say;
use serde_json::{Value, json};

use super::decode::{Call, is_error};
use super::flags::error_name;
use super::summary::Summary;
use crate::asked::{Carried, Here, task_json};
use crate::show::tasks::Task;

/// A call that was made.
#[derive(Debug)]
pub struct Made {
    pub at: Here,
    pub task: Task,
    pub call: Call,
    /// Its arguments, as far as they are known.
    pub shown: Vec<String>,
    /// Where its program stands: RIP and RSP.
    pub place: (u64, u64),
    /// Stretches that had been carried by then.
    pub carried: u64,
}

/// Why a call's end was not seen, though its task has made another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unseen {
    /// It lies where a delta carried the machine.
    Carried,
    /// Nobody knows.
    Lost,
}

/// Where calls go.
pub enum Output {
    Text(Lines),
    Json,
    Summary(Summary),
}

impl Output {
    pub fn begins(&mut self, made: &Made) {
        match self {
            Self::Text(lines) => lines.begins(made).iter().for_each(|line| say!("{line}")),
            Self::Json if made.call.is_exit() => say!("{}", object(made)),
            Self::Summary(summary) if made.call.is_exit() => summary.add(&made.call.name(), 0, false),
            Self::Json | Self::Summary(_) => {}
        }
    }

    /// It returned `result`; its arguments from `from` on are new.
    pub fn ends(&mut self, made: &Made, from: usize, at: Here, result: i64, text: &str) {
        match self {
            Self::Text(lines) => lines.ends(made, from, at, text).iter().for_each(|line| say!("{line}")),
            Self::Json => {
                let mut value = object(made);
                value["end"] = at.json();
                value["result"] = result.into();
                value["result_text"] = text.into();
                if is_error(result) {
                    value["error"] = error_name(-result).into();
                }
                say!("{value}");
            }
            Self::Summary(summary) => {
                let took = at.guest_ns.saturating_sub(made.at.guest_ns);
                summary.add(&made.call.name(), took, is_error(result));
            }
        }
    }

    /// Its task has made another call by now.
    pub fn unseen(&mut self, made: &Made, at: Here, why: Unseen) {
        let why = match why {
            Unseen::Carried => "it returned where a delta carried the machine",
            Unseen::Lost => "its return was not seen",
        };
        match self {
            Self::Text(lines) => lines
                .ends(made, made.shown.len(), at, &format!("? ({why})"))
                .iter()
                .for_each(|line| say!("{line}")),
            Self::Json => {
                let mut value = object(made);
                value["unseen"] = why.into();
                say!("{value}");
            }
            Self::Summary(summary) => summary.add(&made.call.name(), 0, false),
        }
    }

    /// It has not returned by the end.
    pub fn unfinished(&mut self, made: &Made) {
        match self {
            // The line says so.
            Self::Text(_) => {}
            Self::Json => {
                let mut value = object(made);
                value["unfinished"] = true.into();
                say!("{value}");
            }
            Self::Summary(summary) => summary.add(&made.call.name(), 0, false),
        }
    }

    pub fn carried(&mut self, carried: &Carried) {
        match self {
            Self::Text(lines) => lines.carried(carried).iter().for_each(|line| say!("{line}")),
            Self::Json => say!("{}", carried.json()),
            Self::Summary(summary) => summary.carried(carried),
        }
    }

    pub fn end(self) {
        match self {
            Self::Text(mut lines) => lines.interrupt().iter().for_each(|line| say!("{line}")),
            Self::Json => {}
            Self::Summary(summary) => summary.say(),
        }
    }
}

fn object(made: &Made) -> Value {
    let mut value = made.at.json();
    value["task"] = task_json(Some(&made.task));
    value["call"] = made.call.name().into();
    value["number"] = made.call.number.into();
    value["arguments"] = made.shown.clone().into();
    value["raw"] = json!(made.call.arguments.map(|argument| format!("{argument:#x}")));
    value
}

/// Lines of text. The last one may be a call that has not returned.
#[derive(Default)]
pub struct Lines {
    open: Option<(u64, String)>,
}

impl Lines {
    /// Ends the line of a call that has not returned, before something else is told.
    fn interrupt(&mut self) -> Vec<String> {
        let open = self.open.take();
        open.into_iter().map(|(_, line)| line + " <unfinished ...>").collect()
    }

    fn begins(&mut self, made: &Made) -> Vec<String> {
        let mut lines = self.interrupt();
        let more = if made.call.has_more() && !made.shown.is_empty() {
            ", "
        } else {
            ""
        };
        let line = format!(
            "{}{}({}{more}",
            head(&made.task, made.at),
            made.call.name(),
            made.shown.join(", ")
        );
        if !made.call.is_exit() {
            self.open = Some((made.task.address, line));
            return lines;
        }
        lines.push(format!("{line}) = ?"));
        if made.call.name() == "exit_group" {
            let status = made.call.arguments[0] & 0xff;
            lines.push(format!("{}+++ exited with {status} +++", head(&made.task, made.at)));
        }
        lines
    }

    fn ends(&mut self, made: &Made, from: usize, at: Here, result: &str) -> Vec<String> {
        let rest = made.shown[from..].join(", ");
        match self.open.take() {
            Some((task, line)) if task == made.task.address => vec![ended(&format!("{line}{rest})"), result)],
            other => {
                self.open = other;
                let mut lines = self.interrupt();
                let begin = format!("{}<... {} resumed>{rest})", head(&made.task, at), made.call.name());
                lines.push(ended(&begin, result));
                lines
            }
        }
    }

    fn carried(&mut self, carried: &Carried) -> Vec<String> {
        let mut lines = self.interrupt();
        lines.push(format!(
            "{} --- carried by a delta up to {}: no instruction was executed here, no call is known ---",
            micros(carried.from),
            micros(carried.to)
        ));
        lines
    }
}

/// A call and what it gave.
fn ended(call: &str, result: &str) -> String {
    format!("{call} = {result}")
}

/// `12.345678`: guest time.
fn micros(at: Here) -> String {
    format!(
        "{}.{:06}",
        at.guest_ns / 1_000_000_000,
        at.guest_ns % 1_000_000_000 / 1000
    )
}

fn head(task: &Task, at: Here) -> String {
    format!("[pid {:>5}] {} ", task.pid, micros(at))
}

#[cfg(test)]
mod tests {
    use lockstep_proto::quantity::StopNumber;

    use super::*;
    use crate::timeline::Point;

    fn here(guest_us: u64) -> Here {
        Here {
            point: Point::at(StopNumber::new(12)),
            guest_ns: guest_us * 1000,
        }
    }

    fn made(pid: u32, number: u64, shown: &[&str]) -> Made {
        Made {
            at: here(1_000_001),
            task: Task {
                address: u64::from(pid),
                pid,
                tgid: pid,
                parent: None,
                comm: "sh".into(),
                state: "running",
                is_kernel_thread: false,
            },
            call: Call {
                number,
                arguments: [3, 0, 0, 0, 0, 0],
            },
            shown: shown.iter().map(|&one| one.to_owned()).collect(),
            place: (0, 0),
            carried: 0,
        }
    }

    #[test]
    fn a_call_that_is_interrupted_is_resumed() {
        let mut lines = Lines::default();
        let mut read = made(7, 0, &["3"]);
        assert!(lines.begins(&read).is_empty());
        let write = made(123, 1, &["1", "\"x\"", "1"]);
        assert_eq!(lines.begins(&write), ["[pid     7] 1.000001 read(3,  <unfinished ...>"]);
        assert_eq!(
            lines.ends(&write, 3, here(1_000_002), "1"),
            ["[pid   123] 1.000001 write(1, \"x\", 1) = 1"]
        );
        read.shown.extend(["\"y\"".to_owned(), "1".to_owned()]);
        assert_eq!(
            lines.ends(&read, 1, here(2_000_000), "1"),
            ["[pid     7] 2.000000 <... read resumed>\"y\", 1) = 1"]
        );
        assert!(lines.interrupt().is_empty());
    }

    #[test]
    fn what_does_not_come_back_and_what_was_carried() {
        let mut lines = Lines::default();
        assert_eq!(
            lines.begins(&made(7, 231, &["3"])),
            [
                "[pid     7] 1.000001 exit_group(3) = ?",
                "[pid     7] 1.000001 +++ exited with 3 +++"
            ]
        );
        lines.begins(&made(7, 39, &[]));
        let carried = Carried {
            from: here(1_000_002),
            to: here(3_500_000),
        };
        let told = lines.carried(&carried);
        assert_eq!(told[0], "[pid     7] 1.000001 getpid( <unfinished ...>");
        assert!(
            told[1].starts_with("1.000002 --- carried by a delta up to 3.500000"),
            "{told:?}"
        );
    }
}
