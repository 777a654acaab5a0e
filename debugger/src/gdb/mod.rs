//! `lockstep-debug gdb`: a recording as the target of gdb, forwards and backwards.

mod arch;
mod monitor;
mod target;

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use gdbstub::common::Signal;
use gdbstub::conn::ConnectionExt;
use gdbstub::stub::run_blocking::{BlockingEventLoop, Event, WaitForStopReasonError};
use gdbstub::stub::{DisconnectReason, GdbStub, SingleThreadStopReason};
use gdbstub::target::ext::base::reverse_exec::ReplayLogPosition;
use gdbstub::target::ext::breakpoints::WatchKind;
use lockstep_node::sys::signals::heeded;
use lockstep_node::tell;
use target::{Debuggee, Stopped};

use crate::Recording;
use crate::place::{Place, help};
use crate::show::go;
use crate::show::kernel::Kernel;
use crate::show::view::View;
use crate::timeline::{Timeline, TimelineOptions, Walker};
use crate::vmlinux::Vmlinux;

#[derive(Args)]
pub struct GdbOptions {
    #[command(flatten)]
    recording: Recording,
    /// Wait for one gdb on this address (`127.0.0.1:1234`): whoever can connect to it can read the guest's memory.
    #[arg(long, value_name = "ADDR", required_unless_present = "exec")]
    listen: Option<SocketAddr>,
    /// Start gdb, connected.
    #[arg(long, conflicts_with = "listen")]
    exec: bool,
    /// The recorded kernel's vmlinux, for the gdb that is started. Without it, the one that is found by its name or its build id.
    #[arg(long, value_name = "FILE", requires = "exec")]
    vmlinux: Option<PathBuf>,
    #[arg(long, value_name = "POSITION", allow_hyphen_values = true, help = help("Where to begin (the recording's start)"))]
    at: Option<Place>,
    /// Arguments for the gdb that is started.
    #[arg(last = true, requires = "exec", value_name = "GDB-ARGUMENT")]
    gdb_arguments: Vec<String>,
    #[command(flatten)]
    timeline: TimelineOptions,
}

/// Commands of ours in gdb.
const SCRIPT: &str = "\
set pagination off
set confirm off
set tcp connect-timeout unlimited
set remotetimeout 60
define seek
  monitor seek $arg0
  maintenance flush register-cache
  frame
end
document seek
Go to a position of the recording: a stop (1234), a guest time (12.5s), a time of the calendar (14:03:20), a time before
the end (-30s), or end.
end
define when
  monitor when
end
document when
Tell where in the recording the machine stands.
end
";

pub fn run(options: &GdbOptions) -> Result<ExitCode> {
    let (directory, positions) = options.recording.at(options.at.as_slice())?;
    let mut timeline = Timeline::open(&directory, &options.timeline)?;
    if let Some(&position) = positions.first() {
        go(&mut timeline, position, false)?;
    }
    if options.exec {
        return exec(options, timeline, directory);
    }
    let address = options.listen.context("--listen or --exec is needed")?;
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    tell!(
        "lockstep-debug: waiting for gdb: target remote {}",
        listener.local_addr()?
    );
    let (stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    serve(timeline, directory, Box::new(stream))?;
    Ok(ExitCode::SUCCESS)
}

/// The recorded kernel's vmlinux for gdb: the one that was given, which must be it, else the one that is found.
fn vmlinux(given: Option<&Path>, timeline: &mut Timeline) -> Result<Option<PathBuf>> {
    let Some(vmlinux) = Vmlinux::find(given, timeline.identity())? else {
        return Ok(None);
    };
    if given.is_some() {
        let kernel = Kernel::of(&vmlinux, timeline.identity())?;
        let present = timeline.machine_mut().present_registers()?;
        kernel.check(&View::of(timeline.machine(), present))?;
    }
    Ok(Some(vmlinux.path))
}

fn exec(options: &GdbOptions, mut timeline: Timeline, recording: PathBuf) -> Result<ExitCode> {
    let vmlinux = vmlinux(options.vmlinux.as_deref(), &mut timeline)?;
    if vmlinux.is_none() {
        tell!("lockstep-debug: gdb has no symbols: give the recorded kernel with --vmlinux");
    }
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("gdb");
    let listener = UnixListener::bind(&socket)?;
    // Ctrl-C on the terminal is gdb's.
    for signal in heeded(&[signal_hook::consts::SIGINT]) {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    let mut child = start_gdb(directory.path(), &socket, vmlinux.as_deref(), &options.gdb_arguments)?;
    listener.set_nonblocking(true)?;
    let stream = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        if let Some(status) = child.try_wait()? {
            return Err(anyhow!("gdb ended with {status} before it connected"));
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    stream.set_nonblocking(false)?;
    let served = serve(timeline, recording, Box::new(stream));
    let status = child.wait()?;
    served?;
    Ok(ExitCode::from(status.code().map_or(1, |code| code as u8)))
}

fn start_gdb(directory: &Path, socket: &Path, vmlinux: Option<&Path>, arguments: &[String]) -> Result<Child> {
    let script = directory.join("commands");
    let mut file = std::fs::File::create(&script)?;
    writeln!(file, "{SCRIPT}target remote {}", socket.display())?;
    let mut command = Command::new("gdb");
    command.arg("-q").arg("-x").arg(&script).args(arguments);
    if let Some(vmlinux) = vmlinux {
        command.arg(vmlinux);
    }
    command
        .spawn()
        .context("cannot start `gdb` (Debian package gdb); or use --listen and connect yours")
}

type Stream = Box<dyn ConnectionExt<Error = std::io::Error>>;

/// Serves one gdb until it is gone.
fn serve(timeline: Timeline, recording: PathBuf, stream: Stream) -> Result<()> {
    let mut debuggee = Debuggee::new(Walker::new(timeline), recording);
    let result = GdbStub::new(stream).run_blocking::<Events>(&mut debuggee);
    if let Some(failure) = debuggee.failure.take() {
        return Err(failure);
    }
    match result {
        Ok(DisconnectReason::Disconnect | DisconnectReason::Kill) => Ok(()),
        Ok(other) => Err(anyhow!("gdb's session ended: {other:?}")),
        // gdb is gone without a word.
        Err(error) if error.is_connection_error() => Ok(()),
        Err(error) => Err(anyhow!("gdb's session failed: {error}")),
    }
}

enum Events {}

impl BlockingEventLoop for Events {
    type Target = Debuggee;
    type Connection = Stream;
    type StopReason = SingleThreadStopReason<u64>;

    fn wait_for_stop_reason(
        target: &mut Debuggee,
        connection: &mut Stream,
    ) -> Result<Event<Self::StopReason>, WaitForStopReasonError<anyhow::Error, std::io::Error>> {
        let mut ask = || matches!(connection.peek(), Ok(None));
        let stopped = match target.run(&mut ask) {
            Ok(stopped) => stopped,
            Err(error) => {
                // gdb can still look at what there is; the reason has no other way out.
                target.say(format_args!("{error:#}"));
                Stopped::Interrupted
            }
        };
        if stopped == Stopped::Interrupted && matches!(connection.peek(), Ok(Some(_)) | Err(_)) {
            let byte = connection.read().map_err(WaitForStopReasonError::Connection)?;
            return Ok(Event::IncomingData(byte));
        }
        Ok(Event::TargetStopped(reason(stopped)))
    }

    fn on_interrupt(_: &mut Debuggee) -> Result<Option<Self::StopReason>> {
        Ok(Some(SingleThreadStopReason::Signal(Signal::SIGINT)))
    }
}

fn reason(stopped: Stopped) -> SingleThreadStopReason<u64> {
    let log = |pos| SingleThreadStopReason::ReplayLog { tid: None, pos };
    match stopped {
        Stopped::Step => SingleThreadStopReason::DoneStep,
        Stopped::SoftwareBreakpoint => SingleThreadStopReason::SwBreak(()),
        Stopped::Breakpoint => SingleThreadStopReason::HwBreak(()),
        Stopped::Watch(addr) => SingleThreadStopReason::Watch {
            tid: (),
            kind: WatchKind::Write,
            addr,
        },
        Stopped::Begin => log(ReplayLogPosition::Begin),
        Stopped::End => log(ReplayLogPosition::End),
        Stopped::Interrupted => SingleThreadStopReason::Signal(Signal::SIGINT),
    }
}
