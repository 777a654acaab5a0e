//! `lockstep-debug`: reads, verifies and explains recordings.

#![forbid(unsafe_code)]
// They panic where a reader has gone: `out` has what does not.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod asked;
mod beginning;
mod calendar;
mod calls;
mod console;
mod core;
mod diff;
mod dwarf;
mod entries;
mod events;
mod files;
mod follow;
mod fork;
mod gdb;
mod hits;
mod info;
mod kinds;
mod mcp;
mod parts;
mod pcap;
mod place;
mod position;
mod profile;
mod quote;
mod replay;
mod returns;
mod ring;
mod show;
mod strace;
mod symbols;
mod terminal;
mod timeline;
mod totals;
mod trace;
mod tui;
mod verify;
mod vmlinux;
mod watched;
mod whole;
mod writes;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use lockstep_node::cli::packaging;
use lockstep_node::out;
use lockstep_node::sys::signals;
use lockstep_proto::program::version;
use lockstep_proto::quantity::StopNumber;
use lockstep_proto::this_program;

use parts::{Parts, Range};
use place::Place;
use position::Position;

const EXIT_STATUS: &str = "Exit status: 0, done; `verify`: identical; `diff`: no difference.\n\
    1, failed: the recording is damaged, cannot be replayed here, or its replay diverged; `diff`: there is a difference.\n\
    2, the command line is wrong; `diff`: failed.\n\
    A log that ends without an end is no failure: all that is whole in it is used.";

/// Reads, verifies and explains recordings of Lockstep machines.
#[derive(Parser)]
#[command(name = "lockstep-debug", version = version(), about, after_long_help = EXIT_STATUS)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Replay a recording and compare every stop, epoch and the end with it.
    Verify(verify::VerifyOptions),
    /// Tell what a recording holds, and whether this host can replay it.
    Info(info::InfoOptions),
    /// Replay a recording up to a position and tell how fast.
    Replay(replay::ReplayOptions),
    /// Show the machine as it was at a position.
    Show(show::ShowOptions),
    /// Make a machine of its own of the one at a position: a snapshot and disks, from which `lockstep-primary run` goes on.
    Fork(fork::ForkOptions),
    /// Write memory and registers at a position into an ELF core for gdb.
    ExportMemory(core::ExportOptions),
    /// Debug a recording with gdb, forwards and backwards.
    Gdb(gdb::GdbOptions),
    /// List what entered the machine, stop by stop.
    Events(events::EventsOptions),
    /// Print what the guest printed on its console.
    Console(console::ConsoleOptions),
    /// Write every frame that the machine received and sent into a pcapng file, for Wireshark and tcpdump.
    ExportPcap(pcap::PcapOptions),
    /// Write what happened as a trace, for Perfetto's viewer or Chrome's.
    ExportTrace(trace::TraceOptions),
    /// Sample the guest: which tasks and functions took its time, as a table, a flame graph, folded stacks, for pprof or Firefox.
    Profile(profile::ProfileOptions),
    /// Tell the first difference: of two logs of one machine, of a log and its replay, or in a pair's divergence report.
    Diff(diff::DiffOptions),
    /// List who changed a range of the guest's memory, and when.
    Writes(writes::WritesOptions),
    /// List the calls of a function of the guest's kernel, with arguments and results.
    Calls(calls::CallsOptions),
    /// List the guest's system calls, as strace does.
    Strace(strace::StraceOptions),
    /// Walk through a recording on a screen.
    Tui(tui::TuiOptions),
    /// Serve what the commands tell to a client of the Model Context Protocol, over standard input and output.
    Mcp(mcp::McpOptions),
    #[command(flatten)]
    Packaging(packaging::PackagingCommand),
}

/// Where a recording lies.
#[derive(clap::Args)]
struct Recording {
    /// The directory that was given to --record; of a ring, one of its parts, or the ring where a position is given.
    #[arg(value_name = "LOGDIR")]
    directory: PathBuf,
}

impl Recording {
    /// The directory of one recording: no ring's.
    fn one(&self) -> anyhow::Result<&Path> {
        ring::refuse(&self.directory)?;
        Ok(&self.directory)
    }

    /// The directory of the recording that all these lie in, of a ring's one of its parts, and what positions they are there.
    fn at(&self, places: &[Place]) -> anyhow::Result<(PathBuf, Vec<Position>)> {
        if places.is_empty() {
            return Ok((self.one()?.to_owned(), Vec::new()));
        }
        if let (Some(positions), false) = (plain(places), ring::is_ring(&self.directory)) {
            return Ok((self.directory.clone(), positions));
        }
        Parts::of(&self.directory)?.one(places)
    }

    /// As [`Recording::at`], for a command that goes up to one place: without it, to the recording's end.
    fn up_to(&self, place: Option<Place>) -> anyhow::Result<(PathBuf, Position)> {
        let (directory, positions) = self.at(place.as_slice())?;
        Ok((directory, positions.first().copied().unwrap_or(Position::End)))
    }

    /// What lies between two places, of a ring's in several of its parts.
    fn range(&self, from: Option<Place>, to: Option<Place>) -> anyhow::Result<Range> {
        let places: Vec<_> = from.into_iter().chain(to).collect();
        if places.is_empty() {
            ring::refuse(&self.directory)?;
        }
        if let (Some(positions), false) = (plain(&places), ring::is_ring(&self.directory)) {
            let mut positions = positions.into_iter();
            return Ok(Range {
                directories: vec![self.directory.clone()],
                from: from
                    .and_then(|_| positions.next())
                    .unwrap_or(Position::Stop(StopNumber::START)),
                to: positions.next().unwrap_or(Position::End),
            });
        }
        Parts::of(&self.directory)?.range(from, to)
    }
}

/// These places as positions, where none of them needs a calendar.
fn plain(places: &[Place]) -> Option<Vec<Position>> {
    let position = |place: &Place| match place {
        Place::Position(position) => Some(*position),
        _ => None,
    };
    places.iter().map(position).collect()
}

fn main() -> ExitCode {
    this_program!();
    signals::outlive_limits();
    // gdbstub tells of each packet that it leaves unanswered, as the protocol has it; rmcp of each session that begins.
    lockstep_node::cli::messages::start_at("info,gdbstub=error,rmcp=warn");
    if let Err(error) = mcp::end_with_server() {
        return out::end("lockstep-debug", Err(error), 1);
    }
    let command = Cli::parse().command;
    // As diff(1): 1 is a difference, so a failure is 2.
    let failure = if matches!(command, Command::Diff(_)) { 2 } else { 1 };
    let result = match command {
        Command::Verify(options) => verify::run(&options),
        Command::Info(options) => info::run(&options),
        Command::Replay(options) => replay::run(&options),
        Command::Show(options) => show::run(&options),
        Command::Fork(options) => fork::run(&options),
        Command::ExportMemory(options) => core::run(&options),
        Command::Gdb(options) => gdb::run(&options),
        Command::Events(options) => events::run(&options),
        Command::Console(options) => console::run(&options),
        Command::ExportPcap(options) => pcap::run(&options),
        Command::ExportTrace(options) => trace::run(&options),
        Command::Profile(options) => profile::run(&options),
        Command::Diff(options) => diff::run(&options),
        Command::Writes(options) => writes::run(&options),
        Command::Calls(options) => calls::run(&options),
        Command::Strace(options) => strace::run(&options),
        Command::Tui(options) => tui::run(&options),
        Command::Mcp(options) => mcp::run(&options, Cli::command()),
        Command::Packaging(command) => packaging::run(&command, Cli::command()).map(|()| ExitCode::SUCCESS),
    };
    out::end("lockstep-debug", result, failure)
}
