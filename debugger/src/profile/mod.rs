//! `lockstep-debug profile`: where the guest's time went.
//!
//! [`ticks`] says what time a turn stands for, [`course`] which turns are looked at, [`mod@sampler`] looks; [`mappings`], [`files`], [`program`]
//! and [`unwind`] are for user code. [`stacks`] adds up, and [`table`], [`flame`], [`folded`], [`pprof`] and [`firefox`] write, the last of them
//! by [`moments`] too.
//!
//! Invariant: nothing here depends on this host's time or chance. Samples are taken between steps of the replay, where it can be
//! looked at: what it compares does not change, and two profiles of the same are equal to the byte.

mod course;
mod facts;
mod files;
mod firefox;
mod flame;
mod folded;
mod mappings;
mod moments;
mod pprof;
mod program;
mod sampler;
mod stacks;
mod table;
mod ticks;
mod unwind;

use std::cell::RefCell;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use lockstep_node::recording::start_disk;
use lockstep_node::sys::signals::heeded;
use lockstep_node::{out, say, say_on, tell};
use lockstep_proto::quantity::StopNumber;
use lockstep_replay::extent::Extent;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::Recording;
use crate::calendar::Calendar;
use crate::entries::Entries;
use crate::place::{Place, help};
use crate::position::Position;
use crate::replay::bar;
use crate::show;
use crate::watched::Replay;
use crate::whole::{Readers, Whole};
use course::{Course, Event, Wanted};
use facts::Facts;
use files::Files;
use moments::Moments;
use sampler::{Sampler, User, read_vmlinux};
use stacks::Stacks;
use table::{Held, Report};
use ticks::Stretch;

#[derive(Args)]
pub struct ProfileOptions {
    #[command(flatten)]
    recording: Recording,
    #[arg(long, value_name = "POSITION", allow_hyphen_values = true, help = help("Where the profile begins"))]
    from: Option<Place>,
    #[arg(long, value_name = "POSITION", allow_hyphen_values = true, help = help("Where the profile ends, included"))]
    to: Option<Place>,
    /// Samples in a second of guest time.
    #[arg(long, default_value_t = 999, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// Only the kernel's part of stacks: without it, a sample in a program is the task alone.
    #[arg(long)]
    kernel: bool,
    /// Only the tasks of this name, or the one with this number. Can be given several times.
    #[arg(long, value_name = "NAME")]
    task: Vec<String>,
    /// The recorded kernel's vmlinux, with DWARF. Without it, the one that is found by its name or its build id.
    #[arg(long, value_name = "FILE")]
    vmlinux: Option<PathBuf>,
    /// A directory with the guest's files, for symbols of its programs: DIR/bin/x is the guest's /bin/x. Without it, or where it
    /// lacks a file, they are read from the guest's first disk, as it was when the recording began.
    #[arg(long, value_name = "DIR")]
    sysroot: Option<PathBuf>,
    /// Write the profile into this file; what is there is replaced. `-` is standard output. Without it, a table is printed.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// How FILE is written. Without it: as its name ends (`.svg`, `.folded` or `.txt`, `.pb.gz`, `.json.gz`).
    #[arg(long, value_name = "FORMAT", requires = "output")]
    format: Option<Format>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// The form of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A flame graph, for a browser.
    Svg,
    /// A line for each stack.
    Folded,
    /// What `go tool pprof` reads.
    Pprof,
    /// What the Firefox Profiler reads.
    Firefox,
}

impl Format {
    fn of(file: &Path) -> Result<Self> {
        let name = file.to_string_lossy();
        let ends = |end: &str| name.ends_with(end);
        if ends(".svg") {
            Ok(Self::Svg)
        } else if ends(".folded") || ends(".txt") {
            Ok(Self::Folded)
        } else if ends(".pb.gz") {
            Ok(Self::Pprof)
        } else if ends(".json.gz") {
            Ok(Self::Firefox)
        } else {
            bail!(
                "{name} does not say how it is to be written: end it with .svg, .folded, .txt, .pb.gz or .json.gz, or give --format"
            )
        }
    }
}

pub fn run(options: &ProfileOptions) -> Result<ExitCode> {
    let file = match &options.output {
        Some(file) => Some((file, options.format.map_or_else(|| Format::of(file), Ok)?)),
        None => None,
    };
    let is_out = options.output.as_deref().is_some_and(out::is_stdout);
    ensure!(
        !(is_out && options.json),
        "the profile and --json cannot both go to standard output"
    );
    let has_time = file.is_some_and(|(_, format)| format == Format::Firefox);
    let (facts, stacks, moments, held, sampler) = profile(options, has_time)?;
    let user = sampler.user();
    let report = Report {
        facts: &facts,
        stacks: &stacks,
        held,
        files: user.map(User::files),
        trouble: user.and_then(User::trouble),
    };
    if let Some((file, format)) = file {
        write(file, format, &report, &moments).with_context(|| format!("cannot write {}", file.display()))?;
        tell!("{}: {}", file.display(), report.line());
    }
    if options.json {
        say!("{}", report.json());
    } else if file.is_none() {
        say_on!("{}", report.text());
    }
    Ok(ExitCode::SUCCESS)
}

/// Replays, and samples what was asked for.
fn profile(options: &ProfileOptions, moments: bool) -> Result<(Facts, Stacks, Moments, Held, Sampler)> {
    let places: Vec<_> = options.from.into_iter().chain(options.to).collect();
    let (directory, positions) = options.recording.at(&places)?;
    let from = options.from.and_then(|_| positions.first().copied());
    let to = options.to.and_then(|_| positions.last().copied());
    let wanted = Wanted {
        from: from.unwrap_or(Position::Stop(StopNumber::START)),
        to: to.unwrap_or(Position::End),
        rate: options.rate,
        tasks: options.task.clone(),
        moments,
    };
    let (from, to) = (wanted.from, wanted.to);
    let stopped = interrupts()?;
    let replay = Replay::open(&directory)?;
    let mut sampler = sampler(options, &directory, &replay)?;
    let (start_stop, start_ns) = replay.start();
    ensure!(
        !from.order_of(start_stop, start_ns).is_gt() || from == Position::Stop(StopNumber::START),
        "{from} is not in this recording: it begins at stop {start_stop} and {} of guest time",
        Position::Time(start_ns)
    );
    let calendar = Calendar::of(replay.identity(), start_ns, None);
    let stretches = Stretches::of(&directory, start_stop, start_ns)?;
    let mut course = Course::new(wanted, start_ns, stretches)?;
    let last = match to {
        Position::Stop(stop) => stop,
        _ => Extent::of(&directory)?.last_stop,
    };
    let bar = bar(last.since(start_stop), options.json);
    let mut shown = Instant::now();
    let events = RefCell::new(Vec::new());
    let mut over: Option<u64> = None;
    let compared = replay.watch(
        |exchange| {
            events.borrow_mut().push(Event {
                stop: exchange.stop,
                guest_ns: exchange.guest_ns,
                has_clock: exchange.turn.clock.is_some(),
                is_forced: exchange.turn.forced.is_some(),
                was_halted: exchange.was_halted,
            });
        },
        |machine, progress| {
            if stopped.load(Ordering::Relaxed) {
                bail!("interrupted: nothing was written");
            }
            if shown.elapsed() > Duration::from_millis(100) {
                shown = Instant::now();
                bar.set_position(machine.stop().since(start_stop));
            }
            course.step(&events.take(), &mut sampler.at(machine))?;
            if !course.is_over() {
                return Ok(true);
            }
            // To the end of the batch: what was sampled is compared.
            Ok(progress.batches == *over.get_or_insert(progress.batches))
        },
    );
    bar.finish_and_clear();
    let compared = compared?;
    ensure!(
        course.has_begun(),
        "no time passes in this recording from {from} to {to}: there is nothing to sample"
    );
    if !course.is_over() && to != Position::End {
        tracing::warn!("the log ends before {to}");
    }
    let (mut facts, stacks, moments) = course.end();
    facts.unix_ns = calendar.at(facts.from_ns).unix_ns();
    let held = Held {
        batches: compared.progress.batches,
        epochs: compared.progress.epochs,
    };
    Ok((facts, stacks, moments, held, sampler))
}

fn sampler(options: &ProfileOptions, directory: &Path, replay: &Replay) -> Result<Sampler> {
    let identity = replay.identity();
    let Some(kernel) = show::kernel(options.vmlinux.as_deref(), identity)? else {
        bail!("a profile needs the DWARF of the guest's kernel: give its vmlinux with --vmlinux");
    };
    let user = if options.kernel {
        None
    } else {
        let path = kernel.path();
        let disk = (!identity.disk_digests.is_empty()).then(|| start_disk(directory, 0));
        let files = Files::new(options.sysroot.as_deref(), disk)?;
        let user = User::new(&read_vmlinux(path)?, files);
        let hint = || format!("{}: give --kernel for the kernel alone", path.display());
        Some(user.with_context(hint)?)
    };
    Sampler::new(kernel, user)
}

/// Set by SIGINT and SIGTERM: a file is written whole or not at all.
fn interrupts() -> Result<Arc<AtomicBool>> {
    let stopped = Arc::new(AtomicBool::new(false));
    for signal in heeded(&[SIGINT, SIGTERM]) {
        signal_hook::flag::register(signal, Arc::clone(&stopped))?;
    }
    Ok(stopped)
}

/// What lies between the clock's samples in a log.
struct Stretches {
    entries: Entries,
    stop: StopNumber,
    guest_ns: u64,
}

impl Stretches {
    fn of(directory: &Path, stop: StopNumber, guest_ns: u64) -> Result<Self> {
        Ok(Self {
            entries: Entries::open(directory)?,
            stop,
            guest_ns,
        })
    }
}

impl Iterator for Stretches {
    type Item = Result<Stretch>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            // Where the log cannot be read any further, the replay ends too, and says why.
            let entry = self.entries.next().ok().flatten()?;
            if entry.turn.clock.is_some() {
                let stretch = Stretch {
                    from_stop: self.stop,
                    from_ns: self.guest_ns,
                    to_stop: entry.stop,
                    to_ns: entry.guest_ns,
                    carried: entry.turn.forced.map(|forced| forced.slice_ns),
                };
                (self.stop, self.guest_ns) = (entry.stop, entry.guest_ns);
                return Some(Ok(stretch));
            }
        }
    }
}

/// Appears whole, or not at all.
fn write(path: &Path, format: Format, report: &Report<'_>, moments: &Moments) -> Result<()> {
    if out::is_stdout(path) {
        write_as(format, report, moments, &mut out::Out)?;
        return Ok(out::Out.flush()?);
    }
    let mut whole = Whole::begin(path, Readers::All)?;
    write_as(format, report, moments, &mut io::BufWriter::new(whole.file()))?;
    Ok(whole.end()?)
}

fn write_as(format: Format, report: &Report<'_>, moments: &Moments, out: &mut dyn Write) -> io::Result<()> {
    match format {
        Format::Svg => flame::write(report.stacks, "Where the guest's time went", &report.line(), out)?,
        Format::Folded => folded::write(report.stacks, out)?,
        Format::Pprof => pprof::write(report.stacks, report.facts, out)?,
        Format::Firefox => firefox::write(report.stacks, moments, report.facts, out)?,
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_that_of_the_name_or_it_is_asked_for() {
        let of = |name: &str| Format::of(Path::new(name)).ok();
        assert_eq!(of("a.svg"), Some(Format::Svg));
        assert_eq!(of("a.folded"), Some(Format::Folded));
        assert_eq!(of("a.txt"), Some(Format::Folded));
        assert_eq!(of("a.pb.gz"), Some(Format::Pprof));
        assert_eq!(of("a.json.gz"), Some(Format::Firefox));
        assert_eq!((of("a.gz"), of("-"), of("svg"), of("a.json")), (None, None, None, None));
    }
}
