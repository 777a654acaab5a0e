//! Calls as text and as JSON.

use lockstep_node::out::one_line;
use lockstep_node::say;
use serde_json::{Value, json};

use crate::asked::{Carried, Here, name, task_json};
use crate::dwarf::Shown;
use crate::show::tasks::Task;

/// A call.
#[derive(Debug)]
pub struct Call {
    pub at: Here,
    pub task: Option<Task>,
    /// Names, types and values.
    pub arguments: Vec<(String, String, Shown)>,
    /// Where it returns to, and what that is called.
    pub caller: (u64, Option<String>),
    /// Stretches that had been carried by then.
    pub carried: u64,
}

/// What became of a call.
pub enum Outcome {
    /// It returned here; a function of `void` gives nothing.
    Returned {
        at: Here,
        value: Option<Shown>,
        /// Nothing was carried since: else it may be the return of another call, made from the same place in the meantime.
        is_sure: bool,
    },
    /// Its return was not seen, for this reason.
    Unseen(&'static str),
}

/// What is written.
pub struct Lines {
    function: String,
    is_json: bool,
    count: u64,
}

impl Lines {
    pub fn begin(function: &str, is_json: bool) -> Self {
        if !is_json {
            say!("{:>10}  {:>16}  {:<20}  call", "stop", "guest time", "task");
        }
        Self {
            function: function.into(),
            is_json,
            count: 0,
        }
    }

    /// Calls that were written.
    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn call(&mut self, call: &Call, outcome: &Outcome) {
        self.count += 1;
        if self.is_json {
            say!("{}", json(&self.function, call, outcome));
        } else {
            say!("{}", text(&self.function, call, outcome));
        }
    }

    pub fn carried(&self, carried: &Carried) {
        if self.is_json {
            say!("{}", carried.json());
        } else {
            say!("{}", carried.text());
        }
    }
}

fn text(function: &str, call: &Call, outcome: &Outcome) -> String {
    let arguments = call.arguments.iter();
    let arguments: Vec<_> = arguments
        .map(|(name, _, shown)| format!("{name}={}", shown.text))
        .collect();
    let (address, symbol) = &call.caller;
    let caller = symbol.clone().unwrap_or_else(|| format!("{address:#x}"));
    let end = match outcome {
        Outcome::Returned { at, value, is_sure } => {
            let value = value
                .as_ref()
                .map_or_else(String::new, |value| format!(" = {}", value.text));
            let until = if at.guest_ns == call.at.guest_ns {
                String::new()
            } else {
                format!(", until {} s", at.seconds())
            };
            let doubt = if *is_sure {
                ""
            } else {
                " (or another call's from there: a delta carried the machine since)"
            };
            format!("{value}{doubt}{until}")
        }
        Outcome::Unseen(reason) => format!(" = ? ({reason})"),
    };
    let line = format!(
        "{:>10}  {:>16}  {:<20}  {function}({}){end}, from {caller}",
        call.at.point.stop,
        call.at.seconds(),
        name(call.task.as_ref()),
        arguments.join(", "),
    );
    one_line(&line).into_owned()
}

fn json(function: &str, call: &Call, outcome: &Outcome) -> Value {
    let shown = |shown: &Shown| {
        json!({
            "value": shown.text,
            "bits": shown.bits.map(|bits| format!("{bits:#x}")),
        })
    };
    let argument = |(name, typed, value): &(String, String, Shown)| {
        let mut argument = shown(value);
        argument["name"] = name.as_str().into();
        argument["type"] = typed.as_str().into();
        argument
    };
    let mut value = call.at.json();
    value["function"] = function.into();
    value["task"] = task_json(call.task.as_ref());
    value["arguments"] = call.arguments.iter().map(argument).collect();
    value["caller"] = json!({ "address": format!("{:#x}", call.caller.0), "symbol": call.caller.1 });
    match outcome {
        Outcome::Returned {
            at,
            value: result,
            is_sure,
        } => {
            value["returned"] = at.json();
            value["sure"] = (*is_sure).into();
            value["result"] = result.as_ref().map_or(Value::Null, shown);
        }
        Outcome::Unseen(reason) => value["unseen"] = (*reason).into(),
    }
    value
}

#[cfg(test)]
mod tests {
    use lockstep_proto::quantity::StopNumber;

    use super::*;
    use crate::timeline::Point;

    fn here(guest_ns: u64) -> Here {
        Here {
            point: Point::at(StopNumber::new(12)),
            guest_ns,
        }
    }

    #[test]
    fn a_call_is_one_line_whatever_it_is_given() {
        let shown = |text: &str| Shown {
            text: text.into(),
            bits: Some(1),
        };
        let call = Call {
            at: here(1_000_000_000),
            task: None,
            arguments: vec![
                ("fd".into(), "int".into(), shown("3")),
                ("name\n".into(), "const char *".into(), shown("0x1 \"x\"")),
            ],
            caller: (0x10, None),
            carried: 0,
        };
        let returned = |guest_ns| Outcome::Returned {
            at: here(guest_ns),
            value: Some(shown("-2")),
            is_sure: guest_ns != 3,
        };
        let line = text("f", &call, &returned(1_000_000_000));
        assert!(
            line.ends_with("f(fd=3, name\\u000a=0x1 \"x\") = -2, from 0x10"),
            "{line}"
        );
        let line = text("f", &call, &returned(2_500_000_000));
        assert!(line.ends_with(" = -2, until 2.500000000 s, from 0x10"), "{line}");
        let line = text("f", &call, &returned(3));
        assert!(line.contains(" = -2 (or another call's from there: a delta"), "{line}");
        let line = text("f", &call, &Outcome::Unseen("for a reason"));
        assert!(line.ends_with(" = ? (for a reason), from 0x10"), "{line}");
        let json = json("f", &call, &returned(2_500_000_000));
        assert_eq!(
            (&json["result"]["value"], &json["returned"]["guest_ns"]),
            (&"-2".into(), &2_500_000_000u64.into())
        );
    }
}
