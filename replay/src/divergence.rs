//! What a replay found to differ from its log.

use std::fmt;

use kvm_regs_display::Registers;
use lockstep_proto::quantity::{GuestTime, PageNumber, StopNumber};
use lockstep_vmm::machine::{Part, StopKind};

use crate::feed::Mark;

/// Pages that a report names one by one.
const NAMED: usize = 16;

/// What differed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// The digest chain at the end of the batch.
    Chain,
    /// An epoch's digest, with the pages that differ if the log has their hashes.
    Epoch {
        /// Pages that the log has other hashes of.
        different: Vec<DifferentPage>,
        /// Frame numbers of which the log has no hash: they were dirty here alone.
        only_here: Vec<PageNumber>,
        /// The log has the pages' hashes.
        detail: bool,
        /// The parts of the machine that differ, if the log has their hashes.
        parts: Vec<Part>,
        /// Number of dirty pages in the log and here.
        counts: (u32, u32),
    },
    /// The log has a turn of another kind of stop here.
    Stop {
        /// What the log has.
        logged: &'static str,
        /// Where the replay stands.
        here: StopKind,
    },
    /// The guest made no stop where the log says that it did.
    Silent,
    /// The machine refused the turn.
    Refused(String),
    /// Guest memory at the end.
    Memory,
    /// The guest ended here and the log goes on, or the other way round.
    Ending,
}

/// A page with another content than the log's hash says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DifferentPage {
    /// Its frame number.
    pub frame: PageNumber,
    /// The low 32 bits of its hash in the log.
    pub logged: u32,
    /// The same here.
    pub here: u32,
    /// The byte that makes the difference, where one bit does.
    pub byte: Option<DifferentByte>,
}

/// A byte that differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DifferentByte {
    /// Its guest physical address.
    pub address: u64,
    /// What it should be.
    pub expected: u8,
    /// What it is here.
    pub actual: u8,
}

/// The first divergence of a replay.
#[derive(Clone, Debug)]
pub struct Divergence {
    /// What differed.
    pub mismatch: Mismatch,
    /// The batch in work.
    pub batch: Mark,
    /// The stop where it was noticed.
    pub stop: StopNumber,
    /// What stopped the vCPU there.
    pub kind: Option<StopKind>,
    /// General registers there.
    pub registers: Registers,
    /// Guest time there.
    pub guest_time: GuestTime,
    /// The turns before it, oldest first: stop and description.
    pub around: Vec<(StopNumber, String)>,
}

impl fmt::Display for DifferentPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (address, logged, here) = (self.frame.address(), self.logged, self.here);
        write!(
            f,
            "page {address:#x} differs: hash {logged:08x} expected, hash {here:08x} actual"
        )
    }
}

impl fmt::Display for DifferentByte {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (address, expected, actual) = (self.address, self.expected, self.actual);
        write!(f, "byte {address:#x}: {expected:02x} expected, {actual:02x} actual")
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chain => write!(f, "registers, inputs or effects differ (digest chain)"),
            Self::Epoch {
                different,
                only_here,
                detail,
                parts,
                counts,
            } => {
                write!(f, "an epoch differs")?;
                let (first, rest) = (parts.first(), parts.iter().skip(1));
                if let Some(first) = first {
                    write!(f, " in {first}")?;
                }
                for part in rest {
                    write!(f, ", {part}")?;
                }
                if first.is_some_and(|part| *part != Part::Memory) {
                    // The pages are as recorded, whichever were dirty.
                    return Ok(());
                }
                write!(f, ": {} dirty pages in the log, {} here", counts.0, counts.1)?;
                if *detail {
                    write!(
                        f,
                        "; pages that differ: {}, dirty only here: {}",
                        different.len(),
                        only_here.len()
                    )?;
                } else {
                    write!(f, "; record with --epoch-detail to have the pages named")?;
                }
                Ok(())
            }
            Self::Stop { logged, here } => write!(f, "the log has {logged} where the replay stands at {here}"),
            Self::Silent => write!(f, "the guest makes no stop where the log has one"),
            Self::Refused(why) => write!(f, "the machine refuses the log's turn: {why}"),
            Self::Memory => write!(f, "guest memory differs at the end"),
            Self::Ending => write!(f, "the guest ends at different stops"),
        }
    }
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = &self.batch;
        writeln!(f, "first divergence: {}", self.mismatch)?;
        writeln!(
            f,
            "  batch {} (stops {} to {})",
            mark.batch,
            mark.first_stop.plus(1),
            mark.last_stop
        )?;
        write!(f, "  noticed at stop {}", self.stop)?;
        if let Some(kind) = self.kind {
            write!(f, " ({kind})")?;
        }
        writeln!(f, ", guest time {:.6} s", self.guest_time.ns() as f64 / 1e9)?;
        if let Mismatch::Epoch { different, .. } = &self.mismatch {
            for page in different.iter().take(NAMED) {
                writeln!(f, "  {page}")?;
                if let Some(byte) = &page.byte {
                    writeln!(f, "    {byte}: one bit, and nothing else of this page")?;
                }
            }
            if different.len() > NAMED {
                writeln!(f, "  and {} pages more", different.len() - NAMED)?;
            }
        }
        write!(f, "{}", self.registers)?;
        writeln!(f, "  the log before it:")?;
        for (stop, turn) in &self.around {
            writeln!(f, "    {stop:>10}  {turn}")?;
        }
        Ok(())
    }
}

/// General registers as people read them.
pub mod kvm_regs_display {
    use std::fmt;

    /// Name and value of each.
    #[derive(Clone, Debug, Default)]
    pub struct Registers(pub Vec<(&'static str, u64)>);

    impl Registers {
        /// Of a machine.
        pub fn of(machine: &dyn lockstep_vmm::machine::Seen) -> Self {
            let r = machine.regs();
            Self(vec![
                ("rip", r.rip),
                ("rflags", r.rflags),
                ("rax", r.rax),
                ("rbx", r.rbx),
                ("rcx", r.rcx),
                ("rdx", r.rdx),
                ("rsi", r.rsi),
                ("rdi", r.rdi),
                ("rsp", r.rsp),
                ("rbp", r.rbp),
                ("r8", r.r8),
                ("r9", r.r9),
                ("r10", r.r10),
                ("r11", r.r11),
                ("r12", r.r12),
                ("r13", r.r13),
                ("r14", r.r14),
                ("r15", r.r15),
            ])
        }

        /// The instruction pointer.
        pub fn rip(&self) -> u64 {
            self.0.first().map_or(0, |&(_, value)| value)
        }
    }

    impl fmt::Display for Registers {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            for row in self.0.chunks(3) {
                write!(f, "   ")?;
                for (name, value) in row {
                    write!(f, " {name:>6} {value:016x}")?;
                }
                writeln!(f)?;
            }
            Ok(())
        }
    }
}
