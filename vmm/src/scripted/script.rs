//! Scripts: what a scripted guest executes, and what lies in its memory at the start.

use kvm_bindings::kvm_regs;
use lockstep_proto::quantity::PageNumber;
use vm_memory::{Bytes, GuestAddress};

use crate::machine::MachineError;
use crate::memory::{Memory, MemoryError};

/// Where interrupts push to, downwards.
const STACK: u64 = 0xff0;
/// Of a queue's page: descriptors come first, then these.
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;
/// What the driver keeps of a queue: used entries that it has seen, and which heads are the device's.
const SEEN: u64 = 0xff0;
const FLYING: u64 = 0xff8;
/// Entries of a queue.
pub(super) const QUEUE_SIZE: u16 = 16;

/// A virtqueue: a page of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue(pub u64);

impl Queue {
    /// Addresses of the descriptors and of both rings.
    pub fn parts(self) -> [u64; 3] {
        [self.0, self.0 + AVAILABLE, self.0 + USED]
    }
}

/// An instruction. Those that are stops are natural ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// No stop: reads and writes memory so many times; the vCPU can be stopped by force between any two.
    Compute(u32),
    /// OUT of a byte; `None`: of the low byte of RBX.
    Out(u16, Option<u8>),
    /// IN of a byte.
    In(u16),
    /// A load of four bytes where no memory is.
    Load(u64),
    /// A store of four bytes there.
    Store(u64, u32),
    /// RDTSC.
    ReadTsc,
    /// RDRAND.
    ReadRandom,
    /// HLT.
    Halt,
    /// A triple fault.
    Shutdown,
    /// No stop: STI.
    Sti,
    /// No stop: CLI.
    Cli,
    /// No stop: on to user code, or back.
    User(bool),
    /// No stop: goes on there.
    Jump(usize),
    /// No stop: leaves so many out if RBX is odd.
    SkipIfOdd(usize),
    /// No stop: gives the device the chain with this head, unless the device has it.
    Submit(Queue, u16),
    /// No stop: takes what the device has used. True: the device gets it again.
    Harvest(Queue, bool),
    /// No stop: IRET.
    Return,
}

/// What a guest executes.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// From the first on. Beyond the last is a triple fault.
    pub ops: Vec<Op>,
    /// Vectors, and where their handlers begin. An interrupt without one is a triple fault.
    pub handlers: Vec<(u8, usize)>,
    /// What lies in memory at the start: address and bytes.
    pub data: Vec<(u64, Vec<u8>)>,
}

impl Script {
    /// A queue with these descriptors: address, length, flags; each is followed by the next one.
    pub fn queue(&mut self, queue: Queue, descriptors: &[(u64, u32, u16)]) {
        let mut table = Vec::new();
        for (next, (address, length, flags)) in (1u16..).zip(descriptors) {
            table.extend(address.to_le_bytes());
            table.extend(length.to_le_bytes());
            table.extend(flags.to_le_bytes());
            table.extend(next.to_le_bytes());
        }
        self.data.push((queue.0, table));
    }

    /// A handler, after all that is there by now.
    pub fn handler(&mut self, vector: u8, ops: &[Op]) {
        self.handlers.push((vector, self.ops.len()));
        self.ops.extend(ops);
    }

    pub(super) fn op(&self, at: u64) -> Op {
        let op = usize::try_from(at).ok().and_then(|at| self.ops.get(at));
        op.copied().unwrap_or(Op::Shutdown)
    }

    pub(super) fn handler_of(&self, vector: u8) -> u64 {
        let known = self.handlers.iter().find(|(of, _)| *of == vector);
        known.map_or(u64::MAX, |&(_, at)| at as u64)
    }

    pub(super) fn start() -> kvm_regs {
        kvm_regs {
            rsp: STACK,
            rflags: 2,
            ..kvm_regs::default()
        }
    }

    pub(super) fn lay_out(&self, memory: &Memory) -> Result<(), MachineError> {
        for (address, bytes) in &self.data {
            let frame = PageNumber::of(*address);
            let written = memory.ram().write_slice(bytes, GuestAddress(*address));
            written.map_err(|_| MemoryError::Frame { frame })?;
        }
        Ok(())
    }
}

/// The driver's half of a queue, in memory that is all the guest's. What a script puts outside memory is not there.
pub(super) struct Driver<'a> {
    pub memory: &'a Memory,
    pub queue: Queue,
}

impl Driver<'_> {
    fn half(&self, at: u64) -> u16 {
        self.memory.ram().read_obj(GuestAddress(self.queue.0 + at)).unwrap_or(0)
    }

    fn set(&self, at: u64, value: u16) {
        // Nothing is there to be changed otherwise.
        let _ = self.memory.ram().write_obj(value, GuestAddress(self.queue.0 + at));
    }

    pub fn submit(&self, head: u16) {
        let flying = self.half(FLYING);
        let bit = 1 << (head % QUEUE_SIZE);
        if flying & bit == 0 {
            self.set(FLYING, flying | bit);
            let index = self.half(AVAILABLE + 2);
            self.set(AVAILABLE + 4 + 2 * u64::from(index % QUEUE_SIZE), head);
            self.set(AVAILABLE + 2, index.wrapping_add(1));
        }
    }

    /// What was used since the last time: heads and lengths.
    pub fn harvest(&self, again: bool) -> Vec<u64> {
        let mut used = Vec::new();
        let mut seen = self.half(SEEN);
        while seen != self.half(USED + 2) && used.len() < usize::from(QUEUE_SIZE) {
            let entry = GuestAddress(self.queue.0 + USED + 4 + 8 * u64::from(seen % QUEUE_SIZE));
            let entry: u64 = self.memory.ram().read_obj(entry).unwrap_or(0);
            let head = entry as u16;
            self.set(FLYING, self.half(FLYING) & !(1 << (head % QUEUE_SIZE)));
            if again {
                self.submit(head);
            }
            used.push(entry);
            seen = seen.wrapping_add(1);
        }
        self.set(SEEN, seen);
        used
    }
}
