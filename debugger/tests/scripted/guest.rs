//! A guest without KVM, and its recording: a script that prints, and asks for time and chance.

use std::ops::RangeInclusive;
use std::path::Path;

use anyhow::{Context, Result};
use lockstep_logcodec::batch::BatchBuilder;
use lockstep_logcodec::{LogWriter, WriterOptions};
use lockstep_node::recording::start_snapshot;
use lockstep_proto::end::Reason;
use lockstep_proto::quantity::StopNumber;
use lockstep_proto::{End, Identity, MachineConfig, SnapshotHeader, Turn};
use lockstep_vmm::machine::{Flow, Oracle, Seen, Slice, Stop, Taken};
use lockstep_vmm::scripted::{Op, Script, ScriptedMachine, config};
use lockstep_vmm::snapshot::Growing;

const UART: u16 = 0x3f8;
/// Lines that it prints, each followed by a look at the clock and a random number.
pub const LINES: u64 = 40;
/// Stops of a line: its bytes, the clock and the number.
pub const LINE_STOPS: u64 = 5;

/// How a run is recorded.
pub struct Recorded {
    /// A batch ends after so many stops.
    pub batch_stops: u64,
    /// Of this line, counted from 0, the random number is another.
    pub other_random: Option<u64>,
    /// The state that the machine begins with, by its digest.
    pub start: u8,
    /// Guest time from one look at the clock to the next, in nanoseconds.
    pub tick: u64,
    /// What the host's calendar shows where the recording begins, and the machine's at guest time zero, in seconds since 1970.
    pub created: i64,
    pub rtc_base: i64,
    /// As the number of a ring's part; 0: of none.
    pub part: u32,
    /// Only these stops are recorded.
    pub stops: RangeInclusive<u64>,
}

impl Default for Recorded {
    fn default() -> Self {
        Self {
            batch_stops: 16,
            other_random: None,
            start: 7,
            tick: 1_000_000,
            created: 0,
            rtc_base: 0,
            part: 0,
            stops: 0..=u64::MAX,
        }
    }
}

impl Recorded {
    /// Runs the guest to its end, and leaves its recording in `directory`.
    pub fn write(&self, directory: &Path) -> Result<()> {
        let machine = MachineConfig {
            disks: Vec::new(),
            nics: Vec::new(),
            rtc_base: self.rtc_base,
            ..config()
        };
        let mut guest = ScriptedMachine::new(machine, script(), Box::new(|| false))?;
        let mut scribe = Scribe {
            recorded: self,
            directory,
            batch: BatchBuilder::new(StopNumber::new(*self.stops.start())),
            writer: None,
            randoms: 0,
        };
        scribe.begin(&guest)?;
        while guest.stop().get() < *self.stops.end() && guest.step(&mut scribe)? == Flow::Continue {}
        scribe.close(&guest)?;
        let end = End {
            reason: Reason::Reset.into(),
            last_stop: guest.stop().get(),
            digest: guest.chain().to_message(),
            guest_ns: guest.now().ns(),
            continued: *self.stops.end() != u64::MAX,
            ..End::default()
        };
        scribe.writer.context("nothing was recorded")?.finish(end)?;
        Ok(())
    }
}

fn script() -> Script {
    let line = [
        Op::Out(UART, Some(b'h')),
        Op::Out(UART, Some(b'i')),
        Op::Out(UART, Some(b'\n')),
        Op::ReadTsc,
        Op::ReadRandom,
    ];
    let mut ops = line.repeat(LINES as usize);
    ops.push(Op::Shutdown);
    Script {
        ops,
        ..Script::default()
    }
}

/// Answers the guest, and writes down what it answered.
struct Scribe<'a> {
    recorded: &'a Recorded,
    directory: &'a Path,
    batch: BatchBuilder,
    writer: Option<LogWriter>,
    randoms: u64,
}

impl Scribe<'_> {
    /// Begins the recording, where it is to.
    fn begin(&mut self, machine: &dyn Seen) -> Result<()> {
        let recorded = self.recorded;
        if self.writer.is_some() || machine.stop().get() < *recorded.stops.start() {
            return Ok(());
        }
        let from_start = machine.stop().get() == 0;
        let identity = Identity {
            program: "a test".into(),
            created: recorded.created,
            machine: Some(machine.config().clone()),
            host_class: "scripted".into(),
            kernel_digest: vec![1; 16].into(),
            start_digest: vec![recorded.start; 16].into(),
            start_stop: machine.stop().get(),
            start_chain: machine.chain().to_message(),
            from_start,
            disk_digest_chunk: 65536,
            part: recorded.part,
            ..Identity::default()
        };
        self.writer = Some(LogWriter::create(self.directory, &identity, WriterOptions::default())?);
        let header = SnapshotHeader {
            machine: identity.machine,
            guest_ns: machine.now().ns(),
            ..SnapshotHeader::default()
        };
        let snapshot = Growing::begin(&start_snapshot(self.directory))?;
        snapshot.seal(header, &[0; 16]).1.write()?;
        Ok(())
    }

    fn close(&mut self, machine: &dyn Seen) -> Result<()> {
        if let Some(writer) = &mut self.writer
            && machine.stop() > self.batch.first_stop()
        {
            let batch = self.batch.close(machine.stop(), machine.chain().to_bytes())?;
            writer.append_batch(&batch)?;
        }
        Ok(())
    }
}

impl Oracle for Scribe<'_> {
    type Error = anyhow::Error;

    fn slice(&mut self, _: &dyn Seen) -> Result<Slice> {
        Ok(Slice::Run)
    }

    fn is_due(&mut self, _: &dyn Seen) -> Result<bool> {
        Ok(false)
    }

    fn forced(&mut self, _: &mut dyn Seen) -> Result<()> {
        Ok(())
    }

    fn turn(&mut self, _: &dyn Seen, stop: &Stop) -> Result<Turn> {
        let random = stop.wants_random.then(|| {
            let number = self.randoms;
            self.randoms += 1;
            number * 3 + u64::from(self.recorded.other_random == Some(number))
        });
        Ok(Turn {
            clock: stop.wants_time.then_some(self.recorded.tick),
            random,
            ..Turn::default()
        })
    }

    fn disk_data(&mut self, _: u32, _: u64) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }

    fn taken(&mut self, machine: &dyn Seen, _: &Stop, turn: Turn, _: Taken) -> Result<Flow> {
        if self.writer.is_some() && turn != Turn::default() {
            self.batch.push(machine.stop(), turn)?;
        }
        self.begin(machine)?;
        if machine.stop() >= self.batch.first_stop().plus(self.recorded.batch_stops) {
            self.close(machine)?;
        }
        Ok(Flow::Continue)
    }
}
