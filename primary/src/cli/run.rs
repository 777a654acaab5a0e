//! `lockstep-primary run`.

use std::cell::RefCell;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use lockstep_primary::host::console::{RawTerminal, start_input};
use lockstep_primary::host::inbox::{Bell, Outside};
use lockstep_primary::kicker::Kicker;
use lockstep_primary::recorder::{LogOptions, Policy};
use lockstep_primary::session::{self, Options, Report};
use lockstep_primary::start::{self, BootOptions, DiskOption, NicOption, Started};
use lockstep_proto::end::Reason;
use lockstep_vmm::probe::{self, Start};
use lockstep_vmm::snapshot::Restore;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

#[derive(Args)]
pub struct RunOptions {
    /// Kernel to boot: an ELF vmlinux or a bzImage.
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "snapshot",
        conflicts_with = "snapshot"
    )]
    kernel: Option<PathBuf>,
    /// Initial root file system (cpio).
    #[arg(long, value_name = "FILE", conflicts_with = "snapshot")]
    initrd: Option<PathBuf>,
    /// Words for the kernel's command line, beside those that the machine needs.
    #[arg(long, value_name = "WORDS", default_value = "", conflicts_with = "snapshot")]
    cmdline: String,
    /// Guest memory in MiB.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u64).range(16..=262_144))]
    memory_mib: u64,
    /// Go on from a snapshot instead of booting.
    #[arg(long, value_name = "FILE")]
    snapshot: Option<PathBuf>,
    /// A disk: a raw image; `FILE,ro` for a read-only one. Can be given several times.
    #[arg(long, value_name = "FILE[,ro]", value_parser = parse_disk)]
    disk: Vec<DiskOption>,
    /// A network card on an existing tap device: `tap=NAME[,mac=XX:XX:XX:XX:XX:XX]`. Can be given several times.
    #[arg(long, value_name = "tap=NAME[,mac=MAC]", value_parser = parse_nic)]
    net: Vec<NicOption>,
    /// Record into this new or empty directory.
    #[arg(long, value_name = "DIR")]
    record: Option<PathBuf>,
    /// Save the machine into this file when the run is ended from outside.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Compress finished segments of the log.
    #[arg(long, requires = "record")]
    compress: bool,
    /// Milliseconds of host time in an epoch, after which dirtied memory is hashed for comparison.
    #[arg(long, value_name = "MS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=60_000))]
    epoch_ms: u64,
    /// Log the hash of each dirtied page, so that a divergence names the pages.
    #[arg(long, requires = "record")]
    epoch_detail: bool,
    /// Microseconds that something may be due before the guest is stopped by force to serve it, in user code; kernel
    /// code, where a stop is near, is given time for 30,000 instructions.
    #[arg(long, value_name = "US", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(50..=1_000_000))]
    grace_us: u64,
    /// End the run after this many seconds.
    #[arg(long, value_name = "SECONDS")]
    r#for: Option<f64>,
    /// End the run when the guest has printed this on its console.
    #[arg(long, value_name = "TEXT")]
    until: Option<String>,
    /// Stop the vCPU at random moments, on average this often a second: what it executes must not depend on it.
    #[arg(long, value_name = "PER_SECOND", value_parser = clap::value_parser!(u32).range(1..=100_000), hide = true)]
    kicks: Option<u32>,
    /// Stop the guest by force this often a second, though nothing is due.
    #[arg(long, value_name = "PER_SECOND", value_parser = clap::value_parser!(u32).range(1..=10_000), hide = true)]
    force_hz: Option<u32>,
    /// Print the report as JSON, on standard error.
    #[arg(long)]
    json: bool,
}

fn parse_disk(text: &str) -> Result<DiskOption, String> {
    let (path, read_only) = text.strip_suffix(",ro").map_or((text, false), |path| (path, true));
    if path.is_empty() {
        return Err("the image's path is missing".into());
    }
    Ok(DiskOption {
        path: path.into(),
        read_only,
    })
}

fn parse_nic(text: &str) -> Result<NicOption, String> {
    let mut tap = None;
    // Locally administered, unicast.
    let mut mac = [0x52, 0x4c, 0x53, 0, 0, 1];
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("tap", name)) if !name.is_empty() => tap = Some(name.to_owned()),
            Some(("mac", text)) => mac = parse_mac(text)?,
            _ => return Err(format!("`{part}` is not `tap=NAME` or `mac=XX:XX:XX:XX:XX:XX`")),
        }
    }
    Ok(NicOption {
        tap: tap.ok_or("`tap=NAME` is missing")?,
        mac,
    })
}

fn parse_mac(text: &str) -> Result<[u8; 6], String> {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|part| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2))
        .collect::<Option<_>>()
        .ok_or_else(|| format!("`{text}` is not a MAC address like 52:4c:53:00:00:01"))?;
    let mac: [u8; 6] = bytes.try_into().map_err(|_| format!("`{text}` has not six bytes"))?;
    if mac[0] & 1 == 1 {
        return Err(format!(
            "`{text}` is a multicast address: the first byte of a NIC's is even"
        ));
    }
    Ok(mac)
}

pub fn run(options: &RunOptions) -> Result<()> {
    let Start { class, strategies } = probe::at_start()?;
    let (mut started, nics) = start(options, &class)?;
    started
        .machine
        .reset_slots_after_delta(strategies.reset_slots_after_delta);
    if let Some(report) = &started.rewrites {
        eprintln!("lockstep-primary: kernel: {report}");
    }
    let terminal = RawTerminal::enter().context("cannot put the terminal into raw mode")?;
    if terminal.is_some() {
        eprint!("lockstep-primary: the guest's console; Ctrl-] ends the run\r\n");
    }
    let (until_sender, until) = crossbeam_channel::bounded::<()>(1);
    let console: Box<dyn Write + Send> = match &options.until {
        Some(text) => Box::new(Watch {
            inner: io::stdout(),
            text: text.clone(),
            seen: Vec::new(),
            found: until_sender,
        }),
        None => Box::new(io::stdout()),
    };
    let session = Options {
        disks: options.disk.clone(),
        nics,
        record: options.record.clone(),
        host_class: class,
        policy: Policy {
            grace: options.grace_us * 1000,
            patience: strategies.grace_ns.max(options.grace_us * 1000),
            epoch: options.record.as_ref().map(|_| options.epoch_ms * 1_000_000),
            epoch_detail: options.epoch_detail,
            beat: options.force_hz.map(|rate| 1_000_000_000 / u64::from(rate)),
        },
        log: LogOptions {
            compress: options.compress,
            ..LogOptions::default()
        },
        console,
        save: options.save.clone(),
    };
    let (seconds, kicks) = (options.r#for, options.kicks);
    let kicker = RefCell::new(None);
    let result = session::run(started, session, |outside, handle| {
        watch_signals(outside.bell().clone())?;
        if let Some(seconds) = seconds {
            end_after(
                outside.bell().clone(),
                Duration::try_from_secs_f64(seconds).context("--for")?,
            )?;
        }
        end_when_told(outside.bell().clone(), until)?;
        if let Some(rate) = kicks {
            *kicker.borrow_mut() = Some(Kicker::start(handle, rate)?);
        }
        start_console_input(outside)
    });
    drop(terminal);
    let kicks = kicker.take().map(Kicker::stop);
    print_report(&result?, kicks, options.json);
    Ok(())
}

fn start(options: &RunOptions, class: &str) -> Result<(Started, Vec<NicOption>)> {
    if let Some(path) = &options.snapshot {
        let (machine, digest) = Restore::open(path)?.finish(class)?;
        tracing::debug!(digest = ?digest, "restored");
        let started = Started {
            machine,
            kernel_digest: Vec::new(),
            initrd_digest: Vec::new(),
            kernel_path: String::new(),
            rewrites: None,
        };
        return Ok((started, options.net.clone()));
    }
    let Some(kernel) = options.kernel.clone() else {
        bail!("--kernel or --snapshot is needed")
    };
    let boot = BootOptions {
        kernel,
        initrd: options.initrd.clone(),
        cmdline: options.cmdline.clone(),
        memory_mib: options.memory_mib,
        disks: options.disk.clone(),
        nics: options.net.clone(),
    };
    Ok((start::boot(&boot)?, options.net.clone()))
}

fn start_console_input(outside: Outside) -> Result<()> {
    start_input(outside).context("cannot start the console's input thread")
}

fn watch_signals(bell: Bell) -> Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for _ in signals.forever() {
            bell.quit();
        }
    })?;
    Ok(())
}

fn end_after(bell: Bell, duration: Duration) -> Result<()> {
    std::thread::Builder::new().name("for".into()).spawn(move || {
        std::thread::sleep(duration);
        bell.quit();
    })?;
    Ok(())
}

fn end_when_told(bell: Bell, told: crossbeam_channel::Receiver<()>) -> Result<()> {
    std::thread::Builder::new().name("until".into()).spawn(move || {
        if told.recv().is_ok() {
            bell.quit();
        }
    })?;
    Ok(())
}

/// Passes console output on and tells when a text has gone by.
struct Watch {
    inner: io::Stdout,
    text: String,
    seen: Vec<u8>,
    found: crossbeam_channel::Sender<()>,
}

impl Write for Watch {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.seen.extend_from_slice(bytes);
        if self
            .seen
            .windows(self.text.len().max(1))
            .any(|window| window == self.text.as_bytes())
        {
            // A full channel has been told already.
            let _ = self.found.try_send(());
        }
        let keep = self.seen.len().saturating_sub(self.text.len());
        self.seen.drain(..keep);
        self.inner.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn print_report(report: &Report, kicks: Option<u64>, json: bool) {
    let counters = report.counters;
    let ended = match report.ended {
        None => "ended from outside",
        Some(Reason::Reset) => "the guest reset",
        Some(Reason::Halted) => "the guest halted with interrupts off",
        Some(_) => "ended",
    };
    let log = report.log.unwrap_or_default();
    if json {
        let value = serde_json::json!({
            "ended": ended,
            "stops": report.stops,
            "interrupts": counters.interrupts,
            "forced_stops": counters.forced,
            "delta_pages": counters.carried_pages,
            "kicks": kicks,
            "epochs": counters.epochs,
            "epoch_pages": counters.epoch_pages,
            "assists": counters.assists,
            "msr_faults": counters.msr_faults,
            "guest_seconds": report.guest_ns as f64 / 1e9,
            "wall_seconds": report.wall.as_secs_f64(),
            "log_bytes": log.total_bytes,
            "log_batch_bytes": log.batch_bytes,
            "log_delta_bytes": log.page_bytes,
        });
        eprintln!("{value}");
        return;
    }
    eprintln!(
        "lockstep-primary: {ended} after {} stops, {:.1} s of guest time, {:.1} s here",
        report.stops,
        report.guest_ns as f64 / 1e9,
        report.wall.as_secs_f64()
    );
    eprintln!(
        "lockstep-primary: {} interrupts, {} forced stops, {} instructions assisted, {} MSR faults",
        counters.interrupts, counters.forced, counters.assists, counters.msr_faults
    );
    if let Some(kicks) = kicks {
        eprintln!("lockstep-primary: {kicks} random kicks");
    }
    if report.log.is_some() {
        eprintln!(
            "lockstep-primary: log of {} bytes: turns {}, delta pages {} ({} pages); {} epochs over {} dirty pages",
            log.total_bytes,
            log.batch_bytes,
            log.page_bytes,
            counters.carried_pages,
            counters.epochs,
            counters.epoch_pages
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nics_and_disks_are_parsed() {
        let nic = parse_nic("tap=t0,mac=52:00:00:00:00:0a").unwrap();
        assert_eq!((nic.tap.as_str(), nic.mac), ("t0", [0x52, 0, 0, 0, 0, 0xa]));
        assert!(parse_nic("tap=").is_err());
        assert!(parse_nic("mac=52:00:00:00:00:0a").is_err());
        assert!(parse_nic("tap=t0,mac=01:00:00:00:00:00").is_err(), "multicast");
        assert!(parse_nic("tap=t0,mac=5:0:0:0:0:0").is_err());
        assert!(parse_nic("tap=t0,speed=10").is_err());
        assert!(parse_disk("a.img,ro").unwrap().read_only);
        assert!(parse_disk(",ro").is_err());
    }
}
