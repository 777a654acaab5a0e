//! `lockstep-debug export-trace`: what happened, as rows over time for Perfetto's viewer.
//!
//! [`story`] makes events of turns and effects, [`answers`] finds which frame answers which, and a [`sink`] writes them:
//! [`perfetto`] or [`chrome`]. Everything is written as it comes.

mod answers;
mod chrome;
mod perfetto;
mod sink;
mod story;

use lockstep_proto::quantity::StopNumber;
use std::cell::RefCell;
use std::io::{self, BufWriter};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use lockstep_logcodec::{Ending, LogReader};
use lockstep_node::out::one_line;
use lockstep_node::{out, tell};
use lockstep_proto::Identity;
use lockstep_vmm::machine::Machine;

use crate::Recording;
use crate::beginning::{Beginning, goes_on};
use crate::calendar::Calendar;
use crate::entries::{Entries, start_time};
use crate::parts::Range;
use crate::place::{Place, help};
use crate::position::Position;
use crate::show::kernel::Kernel;
use crate::show::view::View;
use crate::show::{kernel, tasks};
use crate::totals::describe_ending;
use crate::watched::{Exchange, Replay};
use chrome::Chrome;
use perfetto::Perfetto;
use sink::Sink;
use story::{At, Counts, Story, before};

#[derive(Args)]
pub struct TraceOptions {
    #[command(flatten)]
    recording: Recording,
    /// The file to write; what is there is replaced. `-` is standard output.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// How it is written. Without it: as Chrome's JSON where FILE ends with `.json`, else as Perfetto does.
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
    #[arg(long, value_name = "POSITION", allow_hyphen_values = true, help = help("Where the trace begins"))]
    from: Option<Place>,
    #[arg(long, value_name = "POSITION", allow_hyphen_values = true, help = help("Where the trace ends, included"))]
    to: Option<Place>,
    /// Replay the recording up to the end of the trace, for what the log does not have: interrupts, what the machine sent and
    /// printed, when disk requests were made, when the CPU was halted. Of a ring, one part.
    #[arg(long)]
    replay: bool,
    /// The recorded kernel's vmlinux, for the guest's tasks. Without it, the one that is found by its name or its build id.
    #[arg(long, value_name = "FILE", requires = "replay")]
    vmlinux: Option<PathBuf>,
}

/// The form of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Perfetto's own (protobuf).
    Perfetto,
    /// Chrome's JSON, which other viewers read too.
    Chrome,
}

impl TraceOptions {
    fn format(&self) -> Format {
        let is_json = self.file.extension().is_some_and(|extension| extension == "json");
        self.format
            .unwrap_or(if is_json { Format::Chrome } else { Format::Perfetto })
    }

    fn begin(&self, identity: &Identity, start: At) -> io::Result<Story> {
        let file = BufWriter::new(out::create(&self.file)?);
        let mut sink: Box<dyn Sink> = match self.format() {
            Format::Perfetto => Box::new(Perfetto::new(file)),
            Format::Chrome => Box::new(Chrome::new(file)),
        };
        let machine = identity.tenure.as_ref().map_or("machine", |tenure| &tenure.machine);
        let calendar = Calendar::of(identity, start.guest_ns, None);
        sink.machine(
            &one_line(machine),
            start.guest_ns,
            calendar.at(start.guest_ns).unix_ns(),
        )?;
        Ok(Story::begin(sink, start, self.replay))
    }

    fn cannot(&self) -> String {
        format!("cannot write {}", self.file.display())
    }
}

pub fn run(options: &TraceOptions) -> Result<ExitCode> {
    let counts = if options.replay {
        replayed(options)?
    } else {
        logged(options)?
    };
    let counts: Vec<_> = counts.iter().map(|(what, count)| format!("{what} {count}")).collect();
    tell!("{}: {}", options.file.display(), counts.join(", "));
    Ok(ExitCode::SUCCESS)
}

/// What the log alone has.
fn logged(options: &TraceOptions) -> Result<Counts> {
    let range = options.recording.range(options.from, options.to)?;
    let identity = one_machine(&range.directories)?;
    let mut at = At {
        stop: StopNumber::new(identity.start_stop),
        guest_ns: start_time(&range.directories[0]),
    };
    let mut story = options.begin(&identity, at).with_context(|| options.cannot())?;
    let log = Log {
        options,
        range: &range,
        notes_only: false,
    };
    let result = log.tell(&identity, &mut story, &mut at);
    // Before an error, too: what was told is what is good of the log.
    let counts = story.end(at).with_context(|| options.cannot())?;
    result.map(|()| counts)
}

/// The first recording's identity; the others must go on with its machine, for a trace has one guest time.
fn one_machine(directories: &[PathBuf]) -> Result<Identity> {
    let identity = LogReader::open(&directories[0])?.identity().clone();
    for (before, directory) in directories.iter().zip(&directories[1..]) {
        if !goes_on(LogReader::open(directory)?.identity(), before) {
            bail!(
                "another machine begins in {}, or a hole lies before it: a trace is of one machine; say a --to that lies before, \
                 or a --from in it",
                directory.display()
            );
        }
    }
    Ok(identity)
}

/// A log that is told.
struct Log<'a> {
    options: &'a TraceOptions,
    range: &'a Range,
    /// Only of the recording itself: a replay tells the rest.
    notes_only: bool,
}

impl Log<'_> {
    fn tell(&self, identity: &Identity, story: &mut Story, at: &mut At) -> Result<()> {
        let (options, range) = (self.options, self.range);
        let cannot = || options.cannot();
        let mut entries = Entries::over(&range.directories)?;
        if options.from.is_none() {
            story.note(*at, Beginning::of(identity).words()).with_context(cannot)?;
        }
        let mut part = 0;
        loop {
            let entry = entries.next()?;
            for (part, term) in entries.terms() {
                let (stop, guest_ns) = (StopNumber::new(term.stop), term.guest_ns);
                if !range.is_before(*part, stop, guest_ns) && !range.is_after(*part, stop, guest_ns) {
                    let text = format!("term {}: {}", term.term, one_line(&term.why));
                    story.note(At { stop, guest_ns }, text).with_context(cannot)?;
                }
            }
            let Some(entry) = entry else { break };
            if range.is_after(entry.part, entry.stop, entry.guest_ns) {
                return Ok(());
            }
            if entry.part != part {
                part = entry.part;
                let name = range.directories[part].file_name().unwrap_or_default();
                let text = format!("goes on in {}", one_line(&name.to_string_lossy()));
                story.note(*at, text).with_context(cannot)?;
            }
            *at = At {
                stop: entry.stop,
                guest_ns: entry.guest_ns,
            };
            if !self.notes_only {
                let is_shown = !range.is_before(entry.part, entry.stop, entry.guest_ns);
                story.turn(*at, &entry.turn, is_shown).with_context(cannot)?;
            }
        }
        let ending = entries.ending();
        if !matches!(ending, Ending::Clean(_)) {
            tracing::warn!("the log ends {}", describe_ending(&ending));
        }
        let text = format!("the log ends {}", one_line(&describe_ending(&ending)));
        story.note(*at, text).with_context(cannot)
    }
}

/// What a replay has besides.
fn replayed(options: &TraceOptions) -> Result<Counts> {
    let places: Vec<_> = options.from.into_iter().chain(options.to).collect();
    let (directory, positions) = options.recording.at(&places)?;
    let from = options.from.and_then(|_| positions.first().copied());
    let range = Range {
        from: from.unwrap_or(Position::Stop(StopNumber::START)),
        to: options
            .to
            .and_then(|_| positions.last().copied())
            .unwrap_or(Position::End),
        directories: vec![directory.clone()],
    };
    let replay = Replay::open(&directory)?;
    let identity = replay.identity().clone();
    let kernel = kernel(options.vmlinux.as_deref(), &identity)?;
    let (stop, guest_ns) = replay.start();
    let start = At { stop, guest_ns };
    let mut story = options.begin(&identity, start).with_context(|| options.cannot())?;
    let log = Log {
        options,
        range: &range,
        notes_only: true,
    };
    let mut end = start;
    if let Err(why) = log.tell(&identity, &mut story, &mut end) {
        // The replay gets as far as the log is good, and fails for the same reason.
        tracing::warn!("{why:#}");
    }
    let telling = Telling {
        story,
        from: range.from,
        at: start,
        result: Ok(()),
        kernel,
        is_checked: false,
    };
    let telling = RefCell::new(telling);
    let result = replay.show(
        range.to,
        |exchange| telling.borrow_mut().exchange(exchange),
        |machine| telling.borrow_mut().step(machine, options),
    );
    let Telling { story, at, .. } = telling.into_inner();
    let counts = story.end(at).with_context(|| options.cannot())?;
    result.map(|()| counts)
}

/// A replay that is told.
struct Telling {
    story: Story,
    from: Position,
    at: At,
    result: io::Result<()>,
    kernel: Option<Kernel>,
    /// The kernel is known to be the guest's.
    is_checked: bool,
}

impl Telling {
    fn exchange(&mut self, exchange: &Exchange<'_>) {
        if self.result.is_ok() {
            self.result = self.tell(exchange);
        }
    }

    fn tell(&mut self, exchange: &Exchange<'_>) -> io::Result<()> {
        let at = At {
            stop: exchange.stop,
            guest_ns: exchange.guest_ns,
        };
        self.at = at;
        let is_shown = self.is_shown();
        self.story.effects(at, exchange.effects, is_shown)?;
        self.story.turn(at, exchange.turn, is_shown)?;
        if is_shown {
            if let Some(vector) = exchange.interrupt {
                self.story.interrupt(at, vector)?;
            }
            if exchange.was_halted {
                self.story.halts(before(at, exchange.turn));
            }
            if !exchange.is_halted {
                self.story.wakes(at)?;
            }
        }
        Ok(())
    }

    fn is_shown(&self) -> bool {
        !self.from.order_of(self.at.stop, self.at.guest_ns).is_lt()
    }

    /// Between two steps: the machine can be looked at.
    fn step(&mut self, machine: &mut Machine, options: &TraceOptions) -> Result<()> {
        std::mem::replace(&mut self.result, Ok(())).with_context(|| options.cannot())?;
        let Some(kernel) = self.kernel.as_ref().filter(|_| self.is_shown()) else {
            return Ok(());
        };
        let present = machine.present_registers()?;
        let view = View::of(machine, present);
        // Before the kernel has mapped itself there is no task.
        let current = tasks::current(&view, kernel).ok();
        if current.is_some() && !self.is_checked {
            kernel.check(&view)?;
            self.is_checked = true;
        }
        let name = current.map(|task| format!("{} ({})", task.comm, task.pid));
        let at = At {
            stop: machine.stop(),
            guest_ns: machine.now().ns(),
        };
        self.story.task(at, name.as_deref()).with_context(|| options.cannot())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(file: &str, format: Option<Format>) -> Format {
        let options = TraceOptions {
            recording: Recording {
                directory: PathBuf::new(),
            },
            file: PathBuf::from(file),
            format,
            from: None,
            to: None,
            replay: false,
            vmlinux: None,
        };
        options.format()
    }

    #[test]
    fn the_format_is_the_one_that_was_asked_for_or_that_of_the_name() {
        assert_eq!(format("a.json", None), Format::Chrome);
        assert_eq!(format("a.json", Some(Format::Perfetto)), Format::Perfetto);
        assert_eq!(format("-", None), Format::Perfetto);
        assert_eq!(format("a.pftrace", Some(Format::Chrome)), Format::Chrome);
    }
}
