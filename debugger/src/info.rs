//! `lockstep-debug info`.

use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;

use crate::Recording;
use crate::beginning::Beginning;
use crate::calendar::{Calendar, Moment};
use crate::entries::start_time;
use crate::ring;
use crate::totals::{Totals, describe_ending};
use anyhow::Result;
use clap::Args;
use jiff::Timestamp;
use lockstep_logcodec::{Ending, LogReader};
use lockstep_node::out::one_line;
use lockstep_node::say;
use lockstep_proto::end::Reason;
use lockstep_proto::quantity::{StopNumber, Term};
use lockstep_proto::{Identity, MachineConfig};
use lockstep_replay::open::obstacle;
use lockstep_vmm::probe::host_class;
use serde_json::{Value, json};

#[derive(Args)]
pub struct InfoOptions {
    #[command(flatten)]
    recording: Recording,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

pub fn run(options: &InfoOptions) -> Result<ExitCode> {
    let directory = &options.recording.directory;
    if let Some(code) = ring::info(directory, options.json)? {
        return Ok(code);
    }
    let reader = LogReader::open(directory)?;
    let identity = reader.identity().clone();
    let (totals, damage) = Totals::up_to_damage(reader, directory)?;
    let start_ns = start_time(directory);
    let info = Info {
        start_ns,
        calendar: Calendar::of(&identity, start_ns, None),
        why_not: why_not(directory, &identity),
        machine: identity.machine.clone().unwrap_or_default(),
        ends: match (&damage, &totals.ending) {
            (Some(damage), _) => format!("in damage: {damage}"),
            (None, ending) => ending.as_ref().map_or_else(String::new, describe_ending),
        } + lost(&identity, &totals),
        identity,
        totals,
    };
    if options.json {
        say!("{:#}", info.json());
    } else {
        info.print();
    }
    // What is good was told; the damage is the error.
    damage.map_or(Ok(ExitCode::SUCCESS), |damage| Err(damage.into()))
}

/// Why this host cannot replay the recording; `None` where nothing speaks against it.
fn why_not(directory: &Path, identity: &Identity) -> Option<String> {
    match host_class() {
        Ok(class) => obstacle(directory, identity, &class),
        Err(error) => Some(error.to_string()),
    }
}

/// What to look at where a pair's recording has no end: the log cannot know who went on.
fn lost(identity: &Identity, totals: &Totals) -> &'static str {
    match totals.ending {
        Some(Ending::Torn { .. } | Ending::Unfinished) if identity.tenure.is_some() => {
            "; if the arbiter has a later term than this recording, the other node went on from here"
        }
        _ => "",
    }
}

/// A term of the arbiter in which the machine was recorded.
struct Held {
    term: Term,
    /// The stop and the guest time, in nanoseconds, after which it began; `None`: the log does not tell.
    began: Option<(StopNumber, u64)>,
    why: String,
}

/// What is told of a recording.
struct Info {
    identity: Identity,
    machine: MachineConfig,
    totals: Totals,
    start_ns: u64,
    calendar: Calendar,
    why_not: Option<String>,
    ends: String,
}

impl Info {
    fn digests(&self) -> Vec<(String, &[u8])> {
        let identity = &self.identity;
        let mut digests = vec![
            ("kernel".to_owned(), &identity.kernel_digest[..]),
            ("initrd".to_owned(), &identity.initrd_digest[..]),
            ("start state".to_owned(), &identity.start_digest[..]),
        ];
        let disks = identity.disk_digests.iter().enumerate();
        digests.extend(disks.map(|(index, digest)| (format!("disk {index}"), &digest[..])));
        digests
    }

    /// The last term that the recorder held, where the log tells.
    fn last_term(&self) -> Option<Term> {
        match &self.totals.ending {
            Some(Ending::Clean(end)) if end.term > 0 => Some(Term::new(end.term)),
            _ => None,
        }
    }

    /// Every term in which the machine was recorded, with where and why it began.
    fn terms(&self) -> Vec<Held> {
        let Some(tenure) = &self.identity.tenure else {
            return Vec::new();
        };
        let mut terms = vec![Held {
            term: Term::new(tenure.term),
            began: Some((StopNumber::new(self.identity.start_stop), self.start_ns)),
            why: Beginning::of(&self.identity).words(),
        }];
        terms.extend(self.totals.terms.iter().map(|term| Held {
            term: Term::new(term.term),
            began: Some((StopNumber::new(term.stop), term.guest_ns)),
            why: term.why.clone(),
        }));
        let last = terms.last().map_or(Term::NONE, |held| held.term);
        terms.extend(self.last_term().filter(|term| *term > last).map(|term| Held {
            term,
            began: None,
            why: "the log does not tell where or why it began".into(),
        }));
        terms
    }

    /// The times of the calendar where it begins and ends.
    fn extent(&self) -> [Moment; 2] {
        [0, self.totals.guest_ns].map(|ns| self.calendar.at(self.start_ns.saturating_add(ns)))
    }

    fn seconds(&self) -> f64 {
        self.totals.guest_ns as f64 / 1e9
    }

    fn print(&self) {
        let (identity, machine, totals) = (&self.identity, &self.machine, &self.totals);
        say!(
            "recorded by   {} at {}",
            one_line(&identity.program),
            date(identity.created)
        );
        if identity.part > 0 {
            say!("part          {} of a ring", identity.part);
        }
        say!("host class    {}", one_line(&identity.host_class));
        if let Some(tenure) = &identity.tenure {
            say!(
                "pair          machine `{}`, recorded by node `{}` from term {} on{}",
                one_line(&tenure.machine),
                one_line(&tenure.node),
                tenure.term,
                self.last_term()
                    .map_or_else(String::new, |term| format!(" to term {term}"))
            );
        }
        for (index, held) in self.terms().iter().enumerate() {
            let name = if index == 0 { "terms" } else { "" };
            let began = held.began.map_or_else(String::new, |(stop, ns)| {
                format!(" after stop {stop}, guest time {:.3} s", ns as f64 / 1e9)
            });
            say!("{name:<13} {}{began}: {}", held.term, one_line(&held.why));
        }
        match &self.why_not {
            None => say!("replay here   possible"),
            Some(why) => say!("replay here   not possible: {}", one_line(why)),
        }
        say!(
            "machine       {} MiB, CPU profile {}, model revision {}",
            machine.memory_bytes >> 20,
            one_line(&machine.cpu_profile),
            machine.model_revision
        );
        for (index, disk) in machine.disks.iter().enumerate() {
            let read_only = if disk.read_only { ", read-only" } else { "" };
            say!("disk {index}        {} bytes{read_only}", disk.bytes);
        }
        for (index, nic) in machine.nics.iter().enumerate() {
            let mtu = if nic.mtu == 0 {
                String::new()
            } else {
                format!(", MTU {}", nic.mtu)
            };
            say!("network {index}     {}{mtu}", mac(&nic.mac));
        }
        if !identity.kernel_path.is_empty() {
            say!("kernel        {}", one_line(&identity.kernel_path));
        }
        if !identity.kernel_build_id.is_empty() {
            say!("build id      {}", hex(&identity.kernel_build_id));
        }
        if !machine.cmdline.is_empty() {
            say!("cmdline       {}", one_line(&machine.cmdline));
        }
        for (name, digest) in self.digests() {
            if !digest.is_empty() {
                say!("{name:<13} xxh3-128 {}", hex(digest));
            }
        }
        say!("stops         {} to {}", identity.start_stop + 1, totals.last_stop);
        let start = self.start_ns as f64 / 1e9;
        say!(
            "guest time    {:.3} s, from {start:.3} s to {:.3} s",
            self.seconds(),
            start + self.seconds()
        );
        let [from, to] = self.extent();
        say!("calendar      from {from} to {to}");
        if let Some(behind) = self.calendar.guest_behind_ns() {
            let (way, apart) = if behind < 0 {
                ("ahead of", -behind)
            } else {
                ("behind", behind)
            };
            say!(
                "              the guest's clock was {} s {way} it",
                apart / 1_000_000_000
            );
        }
        say!("turns         {} in {} batches", totals.turns, totals.batches);
        say!("  clock       {}", totals.clock);
        say!("  random      {}", totals.random);
        say!("  frames      {} ({} bytes)", totals.frames, totals.frame_bytes);
        say!("  console     {} bytes", totals.console);
        say!("  keyboard    {} bytes", totals.keyboard);
        say!("  power       {}", totals.power_button);
        say!("  disk        {}", totals.disk);
        say!("  entropy     {}", totals.entropy);
        say!("  forced      {} ({} pages)", totals.forced, totals.delta_pages);
        say!("  epochs      {}", totals.epochs);
        say!(
            "size          {} bytes: turns {}, delta pages {}, other {}",
            totals.file_bytes,
            totals.batch_bytes,
            totals.page_bytes,
            totals.other_bytes()
        );
        say!("ends          {}", one_line(&self.ends));
    }

    fn json(&self) -> Value {
        let (identity, machine, totals) = (&self.identity, &self.machine, &self.totals);
        let [from, to] = self.extent().map(Moment::utc);
        let mut value = json!({
            "program": identity.program,
            "created": identity.created,
            "part": identity.part,
            "host_class": identity.host_class,
            "pair": identity.tenure.as_ref().map(|tenure| json!({
                "machine": tenure.machine,
                "node": tenure.node,
                "first_term": tenure.term,
                "restarts": tenure.restarts,
                "last_term": self.last_term().map(Term::get),
                "terms": self.terms().iter().map(|held| json!({
                    "term": held.term.get(),
                    "stop": held.began.map(|began| began.0.get()),
                    "guest_ns": held.began.map(|began| began.1),
                    "why": held.why,
                })).collect::<Vec<_>>(),
            })),
            "replayable": self.why_not.is_none(),
            "why_not": self.why_not,
            "memory_bytes": machine.memory_bytes,
            "cpu_profile": machine.cpu_profile,
            "model_revision": machine.model_revision,
            "cmdline": machine.cmdline,
            "disks": machine.disks.iter().map(|disk| json!({ "bytes": disk.bytes, "read_only": disk.read_only })).collect::<Vec<_>>(),
            "nics": machine.nics.iter().map(|nic| json!({ "mac": mac(&nic.mac), "mtu": nic.mtu })).collect::<Vec<_>>(),
            "kernel": identity.kernel_path,
            "kernel_digest": hex(&identity.kernel_digest),
            "initrd_digest": hex(&identity.initrd_digest),
            "disk_digests": identity.disk_digests.iter().map(|digest| hex(digest)).collect::<Vec<_>>(),
            "start_digest": hex(&identity.start_digest),
            "first_stop": identity.start_stop + 1,
            "last_stop": totals.last_stop.get(),
            "start_ns": self.start_ns,
            "guest_seconds": self.seconds(),
            "batches": totals.batches,
            "turns": totals.turns,
            "clock": totals.clock,
            "random": totals.random,
            "frames": totals.frames,
            "frame_bytes": totals.frame_bytes,
            "console_bytes": totals.console,
            "keyboard_bytes": totals.keyboard,
            "power_button": totals.power_button,
            "disk": totals.disk,
            "entropy": totals.entropy,
            "forced": totals.forced,
            "delta_pages": totals.delta_pages,
            "epochs": totals.epochs,
            "bytes": totals.file_bytes,
            "batch_bytes": totals.batch_bytes,
            "delta_bytes": totals.page_bytes,
            "ending": match &totals.ending {
                None => "damaged",
                Some(Ending::Clean(end)) if end.reason() == Reason::Failed => "failed",
                Some(Ending::Clean(_)) => "clean",
                Some(Ending::Torn { .. }) => "torn",
                Some(Ending::Unfinished) => "unfinished",
            },
            "ends": self.ends,
        });
        value["kernel_build_id"] = hex(&identity.kernel_build_id).into();
        value["from"] = from.into();
        value["to"] = to.into();
        let behind = self.calendar.guest_behind_ns().unwrap_or(0);
        value["guest_clock_behind_seconds"] = (behind as f64 / 1e9).into();
        value
    }
}

fn date(unix: i64) -> String {
    Timestamp::from_second(unix).map_or_else(|_| format!("unix time {unix}"), |date| date.to_string())
}

fn mac(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<Vec<_>>()
        .join(":")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
