//! A guest without KVM, and its recording: a script that prints, and asks for time and chance.

use std::path::Path;

use anyhow::Result;
use lockstep_logcodec::batch::BatchBuilder;
use lockstep_logcodec::{LogWriter, WriterOptions};
use lockstep_proto::end::Reason;
use lockstep_proto::{End, Identity, MachineConfig, Turn};
use lockstep_vmm::machine::{Flow, Oracle, Seen, Slice, Stop, Taken};
use lockstep_vmm::scripted::{Op, Script, ScriptedMachine, config};

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
}

impl Default for Recorded {
    fn default() -> Self {
        Self {
            batch_stops: 16,
            other_random: None,
            start: 7,
        }
    }
}

impl Recorded {
    /// Runs the guest to its end, and leaves its recording in `directory`.
    pub fn write(&self, directory: &Path) -> Result<()> {
        let machine = MachineConfig {
            disks: Vec::new(),
            nics: Vec::new(),
            ..config()
        };
        let mut guest = ScriptedMachine::new(machine.clone(), script(), Box::new(|| false))?;
        let identity = Identity {
            program: "a test".into(),
            machine: Some(machine),
            host_class: "scripted".into(),
            start_digest: vec![self.start; 16].into(),
            start_stop: guest.stop().get(),
            start_chain: guest.chain().to_message(),
            from_start: true,
            ..Identity::default()
        };
        let mut scribe = Scribe {
            recorded: self,
            batch: BatchBuilder::new(guest.stop()),
            writer: LogWriter::create(directory, &identity, WriterOptions::default())?,
            randoms: 0,
        };
        while guest.step(&mut scribe)? == Flow::Continue {}
        scribe.close(&guest)?;
        scribe.writer.finish(End {
            reason: Reason::Reset.into(),
            last_stop: guest.stop().get(),
            digest: guest.chain().to_message(),
            guest_ns: guest.now().ns(),
            ..End::default()
        })?;
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
    batch: BatchBuilder,
    writer: LogWriter,
    randoms: u64,
}

impl Scribe<'_> {
    fn close(&mut self, machine: &dyn Seen) -> Result<()> {
        if machine.stop() > self.batch.first_stop() {
            let batch = self.batch.close(machine.stop(), machine.chain().to_bytes())?;
            self.writer.append_batch(&batch)?;
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
            clock: stop.wants_time.then_some(1_000_000),
            random,
            ..Turn::default()
        })
    }

    fn disk_data(&mut self, _: u32, _: u64) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }

    fn taken(&mut self, machine: &dyn Seen, _: &Stop, turn: Turn, _: Taken) -> Result<Flow> {
        if turn != Turn::default() {
            self.batch.push(machine.stop(), turn)?;
        }
        if machine.stop() >= self.batch.first_stop().plus(self.recorded.batch_stops) {
            self.close(machine)?;
        }
        Ok(Flow::Continue)
    }
}
