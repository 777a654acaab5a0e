//! `lockstep-debug info`, and what a log sums up to.

use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use lockstep_logcodec::{Ending, LogReader, Record, packed, positions};
use lockstep_proto::end::Reason;
use lockstep_proto::{Batch, Identity, Turn};
use lockstep_vmm::probe::host_class;
use prost::Message;

use crate::Recording;

#[derive(Args)]
pub struct InfoOptions {
    #[command(flatten)]
    recording: Recording,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

/// Sums over a whole log.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    pub last_stop: u64,
    pub batches: u64,
    pub turns: u64,
    pub clock: u64,
    pub random: u64,
    pub frames: u64,
    pub frame_bytes: u64,
    pub console: u64,
    pub disk: u64,
    pub entropy: u64,
    pub forced: u64,
    pub delta_pages: u64,
    pub epochs: u64,
    pub guest_ns: u64,
    pub batch_bytes: u64,
    pub page_bytes: u64,
    pub file_bytes: u64,
    pub ending: Option<Ending>,
}

impl Totals {
    /// Reads the log in `directory` from its beginning to its end.
    pub fn of(directory: &Path) -> Result<Self> {
        let mut reader = LogReader::open(directory)?;
        let mut totals = Self {
            last_stop: reader.identity().start_stop,
            ..Self::default()
        };
        while let Some(record) = reader.next_record()? {
            match record {
                Record::Pages(chunk) => totals.page_bytes += chunk.encoded_len() as u64,
                Record::End(_) => {}
                Record::Batch(batch) => {
                    totals.batches += 1;
                    let bytes = packed::pack(&batch).encoded_len() as u64;
                    let states: u64 = forced_bytes(&batch);
                    totals.batch_bytes += bytes.saturating_sub(states);
                    totals.page_bytes += states;
                    totals.last_stop = batch.last_stop;
                    for (_, turn) in positions(&batch) {
                        totals.add(turn);
                    }
                }
            }
        }
        totals.ending = Some(reader.ending());
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("segment-") {
                totals.file_bytes += entry.metadata()?.len();
            }
        }
        Ok(totals)
    }

    fn add(&mut self, turn: &Turn) {
        self.turns += 1;
        self.clock += u64::from(turn.clock.is_some());
        self.guest_ns += turn.clock.unwrap_or(0);
        self.random += u64::from(turn.random.is_some());
        self.frames += turn.frames.len() as u64;
        self.frame_bytes += turn.frames.iter().map(|frame| frame.data.len() as u64).sum::<u64>();
        self.console += turn.console.len() as u64;
        self.disk += turn.disks.len() as u64;
        self.entropy += turn.entropy.len() as u64;
        self.epochs += u64::from(turn.epoch.is_some());
        if let Some(forced) = &turn.forced {
            self.forced += 1;
            self.delta_pages += u64::from(forced.pages);
        }
    }

    /// All bytes of the log's files.
    pub fn all_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Bytes that are neither turns nor delta pages.
    pub fn other_bytes(&self) -> u64 {
        self.file_bytes.saturating_sub(self.batch_bytes + self.page_bytes)
    }
}

/// Bytes of the vCPU states in a batch: part of its deltas.
fn forced_bytes(batch: &Batch) -> u64 {
    batch
        .turns
        .iter()
        .filter_map(|turn| turn.forced.as_ref())
        .map(|forced| forced.encoded_len() as u64)
        .sum()
}

/// How a log ends, in words.
pub fn describe_ending(ending: &Ending) -> String {
    match ending {
        Ending::Clean(end) => match end.reason() {
            Reason::Quit => "in order (ended from outside)".into(),
            Reason::Reset => "in order (the guest reset)".into(),
            Reason::Halted => "in order (the guest halted with interrupts off)".into(),
            Reason::Failed => format!("because the recorder failed: {}", end.detail),
            Reason::Unspecified => "in order".into(),
        },
        Ending::Torn {
            segment,
            offset,
            bytes_lost,
        } => {
            format!("torn: segment {segment} at offset {offset}, {bytes_lost} bytes of an unfinished record left out")
        }
        Ending::Unfinished => "without an end: the recorder was killed, or still writes".into(),
    }
}

pub fn run(options: &InfoOptions) -> Result<ExitCode> {
    let directory = &options.recording.directory;
    let identity = LogReader::open(directory)?.identity().clone();
    let totals = Totals::of(directory)?;
    let here = host_class();
    let replayable = match &here {
        Ok(class) if *class == identity.host_class => Ok(()),
        Ok(class) => Err(format!("this host is `{class}`")),
        Err(error) => Err(error.to_string()),
    };
    if options.json {
        print_json(&identity, &totals, &replayable);
    } else {
        print_text(&identity, &totals, &replayable);
    }
    Ok(ExitCode::SUCCESS)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn print_text(identity: &Identity, totals: &Totals, replayable: &Result<(), String>) {
    println!("recorded by   {} at unix time {}", identity.program, identity.created);
    println!("host class    {}", identity.host_class);
    match replayable {
        Ok(()) => println!("replay here   possible"),
        Err(why) => println!("replay here   not possible: {why}"),
    }
    if let Some(machine) = &identity.machine {
        println!(
            "machine       {} MiB, CPU profile {}, model revision {}, {} disks, {} NICs",
            machine.memory_bytes >> 20,
            machine.cpu_profile,
            machine.model_revision,
            machine.disks.len(),
            machine.nics.len()
        );
        println!("command line  {}", machine.cmdline);
    }
    for (name, digest) in [
        ("kernel", &identity.kernel_digest),
        ("initrd", &identity.initrd_digest),
        ("start state", &identity.start_digest),
    ] {
        if !digest.is_empty() {
            println!("{name:<13} xxh3-128 {}", hex(digest));
        }
    }
    for (index, digest) in identity.disk_digests.iter().enumerate() {
        println!("disk {index}        xxh3-128 {}", hex(digest));
    }
    println!("stops         {} to {}", identity.start_stop + 1, totals.last_stop);
    println!("guest time    {:.3} s", totals.guest_ns as f64 / 1e9);
    println!("turns         {} in {} batches", totals.turns, totals.batches);
    println!("  clock       {}", totals.clock);
    println!("  random      {}", totals.random);
    println!("  frames      {} ({} bytes)", totals.frames, totals.frame_bytes);
    println!("  console     {} bytes", totals.console);
    println!("  disk        {}", totals.disk);
    println!("  entropy     {}", totals.entropy);
    println!("  forced      {} ({} pages)", totals.forced, totals.delta_pages);
    println!("  epochs      {}", totals.epochs);
    println!(
        "size          {} bytes: turns {}, delta pages {}, other {}",
        totals.file_bytes,
        totals.batch_bytes,
        totals.page_bytes,
        totals.other_bytes()
    );
    if let Some(ending) = &totals.ending {
        println!("ends          {}", describe_ending(ending));
    }
}

fn print_json(identity: &Identity, totals: &Totals, replayable: &Result<(), String>) {
    let machine = identity.machine.clone().unwrap_or_default();
    let value = serde_json::json!({
        "program": identity.program,
        "created": identity.created,
        "host_class": identity.host_class,
        "replayable": replayable.is_ok(),
        "why_not": replayable.as_ref().err(),
        "memory_bytes": machine.memory_bytes,
        "cpu_profile": machine.cpu_profile,
        "model_revision": machine.model_revision,
        "cmdline": machine.cmdline,
        "kernel_digest": hex(&identity.kernel_digest),
        "initrd_digest": hex(&identity.initrd_digest),
        "disk_digests": identity.disk_digests.iter().map(|digest| hex(digest)).collect::<Vec<_>>(),
        "start_digest": hex(&identity.start_digest),
        "first_stop": identity.start_stop + 1,
        "last_stop": totals.last_stop,
        "guest_seconds": totals.guest_ns as f64 / 1e9,
        "batches": totals.batches,
        "turns": totals.turns,
        "clock": totals.clock,
        "random": totals.random,
        "frames": totals.frames,
        "frame_bytes": totals.frame_bytes,
        "console_bytes": totals.console,
        "disk": totals.disk,
        "entropy": totals.entropy,
        "forced": totals.forced,
        "delta_pages": totals.delta_pages,
        "epochs": totals.epochs,
        "bytes": totals.file_bytes,
        "batch_bytes": totals.batch_bytes,
        "delta_bytes": totals.page_bytes,
        "ends": totals.ending.as_ref().map(describe_ending),
    });
    println!("{value:#}");
}
