//! The tools, made of this program's commands: their names, what they take, and the words that a call becomes.
//!
//! What a tool takes is listed here, so that a new flag of a command is no client's before somebody has said so. What it means, and what
//! it may be, is the command line's own.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use clap::{Arg, Command};
use lockstep_node::out::one_line;
use rmcp::model::{JsonObject, Tool, ToolAnnotations};
use serde_json::json;

use super::arguments::{flag, is_recording, name, property, text};
use super::child::Keep;
use super::recordings::Recordings;
use crate::show::memory::length;

/// The tool that tells which recordings there are.
pub const RECORDINGS: &str = "recordings";

/// Bytes of guest memory in an answer.
const MOST_MEMORY: usize = 1 << 20;

/// A tool: a command with some words that it always has and others that a client may give.
struct Made {
    tool: &'static str,
    of: &'static str,
    always: &'static [&'static str],
    /// By the names of the command line's arguments.
    takes: &'static [&'static str],
    /// Of these a call has to have.
    needs: &'static [&'static str],
    keep: Keep,
    /// What it is, where that is not what the command is.
    about: Option<&'static str>,
}

const PLAIN: Made = Made {
    tool: "",
    of: "",
    always: &["--json"],
    takes: &[],
    needs: &[],
    keep: Keep::Beginning,
    about: None,
};

const TOOLS: &[Made] = &[
    Made {
        tool: "info",
        of: "info",
        takes: &["directory"],
        ..PLAIN
    },
    Made {
        tool: "events",
        of: "events",
        takes: &["directory", "from", "to", "kind", "text"],
        ..PLAIN
    },
    Made {
        tool: "console",
        of: "console",
        always: &[],
        takes: &["directory", "to", "timestamps"],
        keep: Keep::End,
        ..PLAIN
    },
    Made {
        tool: "profile",
        of: "profile",
        always: &[],
        takes: &["directory", "from", "to", "rate", "kernel", "task"],
        about: Some("Sample the guest: which tasks and functions took its time, as a table."),
        ..PLAIN
    },
    Made {
        tool: "strace",
        of: "strace",
        always: &[],
        takes: &["directory", "from", "to", "pid", "task", "summary"],
        ..PLAIN
    },
    Made {
        tool: "calls",
        of: "calls",
        takes: &["directory", "function", "from", "to", "limit"],
        ..PLAIN
    },
    Made {
        tool: "writes",
        of: "writes",
        takes: &["directory", "address", "length", "from", "to", "limit"],
        ..PLAIN
    },
    Made {
        tool: "show",
        of: "show",
        takes: &["directory", "at", "mem", "tasks", "devices", "digest"],
        ..PLAIN
    },
    Made {
        tool: "files",
        of: "show",
        takes: &["directory", "at", "files", "disk", "partition"],
        needs: &["files"],
        about: Some("List a directory of the guest's disk as it was at a position."),
        ..PLAIN
    },
    Made {
        tool: "file",
        of: "show",
        always: &["--to=-"],
        takes: &["directory", "at", "files", "disk", "partition"],
        needs: &["files"],
        about: Some("Tell what a file of the guest's disk had in it at a position."),
        ..PLAIN
    },
    Made {
        tool: "verify",
        of: "verify",
        takes: &["directory"],
        ..PLAIN
    },
    Made {
        tool: "diff",
        of: "diff",
        takes: &["log", "other"],
        needs: &["log"],
        about: Some("Tell the first difference: of two logs of one machine, or of a log and its replay."),
        ..PLAIN
    },
];

/// All tools.
pub struct Toolbox {
    program: Command,
    vmlinux: Option<String>,
    tools: Vec<Tool>,
}

impl Toolbox {
    /// Of the program with this command line. Kernels have their symbols from `vmlinux`.
    pub fn of(mut program: Command, vmlinux: Option<&Path>) -> Result<Self> {
        // So that arguments know what they are.
        program.build();
        let nothing = schema(JsonObject::new(), &[]);
        let about = "List the recordings that the other tools can be asked about.";
        let mut tools = vec![read_only(Tool::new(RECORDINGS, about, nothing))];
        for made in TOOLS {
            tools.push(made.tool(&program)?);
        }
        let vmlinux = vmlinux.map(|path| {
            let path = path
                .canonicalize()
                .with_context(|| format!("cannot look at {}", path.display()))?;
            let path = path.to_str().context("the vmlinux's name is no text")?;
            Ok::<_, anyhow::Error>(path.to_owned())
        });
        Ok(Self {
            program,
            vmlinux: vmlinux.transpose()?,
            tools,
        })
    }

    /// What they are.
    pub fn list(&self) -> &[Tool] {
        &self.tools
    }

    /// The words of the command line that a call is, and which part of a long answer is wanted.
    pub fn words(&self, tool: &str, arguments: &JsonObject, recordings: &Recordings) -> Result<(Vec<String>, Keep)> {
        let made = TOOLS.iter().find(|made| made.tool == tool).context("no such tool")?;
        let command = made.command(&self.program)?;
        let mut words: Vec<String> = vec![made.of.into()];
        words.extend(made.always.iter().map(|word| (*word).to_owned()));
        if let Some(vmlinux) = self
            .vmlinux
            .as_deref()
            .filter(|_| made.argument(command, "vmlinux").is_ok())
        {
            words.push(format!("--vmlinux={vmlinux}"));
        }
        let mut known: Vec<&str> = Vec::new();
        let mut positional = Vec::new();
        for id in made.takes {
            let argument = made.argument(command, id)?;
            let name = name(argument);
            known.push(name);
            let Some(value) = arguments.get(name) else { continue };
            let place = || format!("`{name}`");
            if argument.is_positional() {
                let given = text(value).with_context(place)?;
                let word = if is_recording(argument) {
                    recordings.find(&given)?
                } else {
                    given
                };
                positional.push((argument.get_index(), word));
            } else {
                let flags = flag(argument, name, value).with_context(place)?;
                if *id == "mem" {
                    check_memory(&flags).with_context(place)?;
                }
                words.extend(flags);
            }
        }
        if let Some(other) = arguments.keys().find(|key| !known.contains(&key.as_str())) {
            bail!(
                "`{}` is nothing that {tool} takes: {}",
                one_line(other),
                known.join(", ")
            );
        }
        for id in made.needs {
            let name = name(made.argument(command, id)?);
            ensure!(arguments.contains_key(name), "`{name}` is missing");
        }
        positional.sort();
        words.push("--".into());
        words.extend(positional.into_iter().map(|(_, value)| value));
        self.check(&words)?;
        Ok((words, made.keep))
    }

    /// Whether the command line takes these words.
    fn check(&self, words: &[String]) -> Result<()> {
        let name = self.program.get_name().to_owned();
        let all = std::iter::once(&name).chain(words);
        match self.program.clone().try_get_matches_from(all) {
            Ok(_) => Ok(()),
            Err(error) => {
                let message = error.to_string();
                // How a command line is typed is of no use to the client.
                bail!("{}", message.split("\n\nUsage:").next().unwrap_or(&message).trim())
            }
        }
    }
}

impl Made {
    fn command<'a>(&self, program: &'a Command) -> Result<&'a Command> {
        let found = program.find_subcommand(self.of);
        found.with_context(|| format!("there is no command {}", self.of))
    }

    fn argument<'a>(&self, command: &'a Command, id: &str) -> Result<&'a Arg> {
        let found = command.get_arguments().find(|argument| argument.get_id() == id);
        found.with_context(|| format!("{} has no argument {id}", self.of))
    }

    fn tool(&self, program: &Command) -> Result<Tool> {
        let command = self.command(program)?;
        let (mut properties, mut required) = (JsonObject::new(), Vec::new());
        for id in self.takes {
            let argument = self.argument(command, id)?;
            properties.insert(name(argument).into(), property(argument));
            if argument.is_required_set() || self.needs.contains(id) {
                required.push(name(argument));
            }
        }
        let about = self
            .about
            .map(str::to_owned)
            .or_else(|| command.get_about().map(ToString::to_string));
        let about = about.with_context(|| format!("nothing says what {} is", self.of))?;
        Ok(read_only(Tool::new(self.tool, about, schema(properties, &required))))
    }
}

/// Memory is shown as text of twice its bytes: what is asked for at once is bounded by far more than an answer has.
fn check_memory(flags: &[String]) -> Result<()> {
    let lengths = flags.chunks(3).filter_map(|words| words.get(2));
    let total = lengths.map(|word| length(word)).sum::<Result<usize>>()?;
    ensure!(
        total <= MOST_MEMORY,
        "is {total} bytes in all, and at most {MOST_MEMORY} are shown at once"
    );
    Ok(())
}

fn read_only(tool: Tool) -> Tool {
    tool.with_annotations(ToolAnnotations::new().read_only(true).open_world(false))
}

fn schema(properties: JsonObject, required: &[&str]) -> Arc<JsonObject> {
    let mut schema = JsonObject::new();
    schema.insert("type".into(), "object".into());
    schema.insert("properties".into(), properties.into());
    schema.insert("required".into(), json!(required));
    schema.insert("additionalProperties".into(), false.into());
    Arc::new(schema)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use serde_json::Value;

    use super::*;

    fn toolbox() -> Toolbox {
        Toolbox::of(crate::Cli::command(), None).unwrap()
    }

    fn words(tool: &str, arguments: &Value) -> Result<Vec<String>, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("log")).unwrap();
        let recordings = Recordings::within(&[dir.path().into()]).unwrap();
        let arguments = arguments.as_object().unwrap().clone();
        let (words, _) = toolbox()
            .words(tool, &arguments, &recordings)
            .map_err(|error| format!("{error:#}"))?;
        let log = dir.path().canonicalize().unwrap().join("log");
        let log = log.to_str().unwrap();
        Ok(words
            .into_iter()
            .map(|word| if word == log { "LOG".into() } else { word })
            .collect())
    }

    #[test]
    fn a_call_is_a_command_line() {
        for (tool, arguments, expected) in [
            ("info", json!({"recording": "log"}), "info --json -- LOG"),
            (
                "events",
                json!({"recording": "log", "from": "-30s", "kind": ["frame", "disk"], "text": "--follow"}),
                "events --json --from=-30s --kind=frame --kind=disk --text=--follow -- LOG",
            ),
            (
                "console",
                json!({"recording": "log", "timestamps": true, "to": 12}),
                "console --to=12 --timestamps -- LOG",
            ),
            (
                "profile",
                json!({"recording": "log", "kernel": false, "task": "sh"}),
                "profile --task=sh -- LOG",
            ),
            (
                "writes",
                json!({"length": 8, "address": "jiffies_64", "recording": "log"}),
                "writes --json -- LOG jiffies_64 8",
            ),
            (
                "show",
                json!({"recording": "log", "at": ["1", "end"], "mem": [["phys:0", 16], ["0x10", "8"]]}),
                "show --json --at=1 --at=end --mem phys:0 16 --mem 0x10 8 -- LOG",
            ),
            (
                "file",
                json!({"recording": "log", "at": "end", "path": "/etc/motd"}),
                "show --to=- --at=end --files=/etc/motd -- LOG",
            ),
            (
                "diff",
                json!({"recording": "log", "other": "log"}),
                "diff --json -- LOG LOG",
            ),
        ] {
            assert_eq!(words(tool, &arguments).unwrap().join(" "), expected);
        }
    }

    #[test]
    fn what_is_no_call_is_refused() {
        for (tool, arguments, why) in [
            ("info", json!({}), "LOGDIR"),
            ("info", json!({"recording": "/etc"}), "no recording /etc"),
            (
                "info",
                json!({"recording": "log", "json": true}),
                "`json` is nothing that info takes",
            ),
            (
                "profile",
                json!({"recording": "log", "output": "/tmp/x"}),
                "`output` is nothing",
            ),
            (
                "file",
                json!({"recording": "log", "at": "end", "path": "/x", "to": "/tmp/x"}),
                "`to` is nothing",
            ),
            ("file", json!({"recording": "log", "at": "end"}), "`path` is missing"),
            ("diff", json!({"report": "/etc/passwd"}), "`report` is nothing"),
            ("events", json!({"recording": "log", "from": "soon"}), "soon"),
            (
                "events",
                json!({"recording": "log", "from": {"a": 1}}),
                "`from`: is a text or a number",
            ),
            (
                "events",
                json!({"recording": "log", "kind": vec!["disk"; 65]}),
                "at most 64 values",
            ),
            (
                "events",
                json!({"recording": "log", "text": "x".repeat(5000)}),
                "more than 4096 bytes",
            ),
            ("events", json!({"recording": "log", "text": "a\0b"}), "a zero byte"),
            (
                "show",
                json!({"recording": "log", "at": "1", "mem": ["phys:0"]}),
                "a list of 2 each",
            ),
            (
                "console",
                json!({"recording": "log", "timestamps": "yes"}),
                "true or false",
            ),
            (
                "show",
                json!({"recording": "log", "at": "1", "mem": vec![["phys:0", "0x80000"]; 3]}),
                "`mem`: is 1572864 bytes in all",
            ),
            ("gdb", json!({"recording": "log"}), "no such tool"),
        ] {
            let refused = words(tool, &arguments).unwrap_err();
            assert!(refused.contains(why), "{tool} {arguments}: {refused}");
        }
    }

    #[test]
    fn every_tool_says_what_it_is_and_what_it_takes() {
        let toolbox = toolbox();
        assert_eq!(toolbox.list().len(), TOOLS.len() + 1);
        for tool in toolbox.list() {
            assert!(
                tool.description.as_ref().is_some_and(|about| about.len() > 10),
                "{tool:?}"
            );
            for (name, property) in tool.input_schema["properties"].as_object().unwrap() {
                assert!(
                    property["description"].as_str().is_some_and(|help| !help.is_empty()),
                    "{tool:?} {name}"
                );
            }
        }
        let writes = toolbox.list().iter().find(|tool| tool.name == "writes").unwrap();
        assert_eq!(
            writes.input_schema["required"],
            json!(["recording", "address", "length"])
        );
    }
}
