//! A machine without KVM: its vCPU executes a script. Memory, devices, digests and the run loop are the real ones.
//!
//! It is for tests, which it gives thousands of runs a second, forced stops between any two instructions, and hosts without
//! KVM. It is no test module, because the crates above test their oracles with it; no program makes one.
//!
//! What keeps it honest: it goes through the same run loop as the machine that KVM runs (`machine::run`), and both sit the same
//! exam (`vmm/tests/micro/exam`). What it has not is what KVM adds: completions that take an entry of their own, shadow page
//! tables, an interrupt shadow, states that a host changes.

mod busy;
mod script;
mod vcpu;

use kvm_bindings::kvm_regs;
use lockstep_proto::quantity::{GuestTime, PageNumber, StopNumber};
use lockstep_proto::{MachineConfig, VcpuState};

pub use self::busy::{DISK_BYTES, busy, config};
pub use self::script::{Op, Queue, Script};
use crate::devices::Devices;
use crate::machine::{self, Chain, Counters, Delta, EpochReport, Flow, LastWords, MachineError, Oracle, Seen};
use crate::memory::{Memory, MemoryDigest, PAGE_SIZE};

/// Asked before each instruction: is the vCPU kicked?
pub type Kicks = Box<dyn FnMut() -> bool>;

/// A number that depends on all bits of `value`.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A guest that follows a script.
///
/// Its whole vCPU is its general registers: RIP counts instructions of the script, RBX is the sum of all that it has seen, RCX
/// counts what is left of a computation, RSP is where interrupts push to, R15 tells user code. What it reads goes into RBX,
/// what it computes is written to memory by RBX, and branches depend on it: what enters wrongly spreads.
pub struct ScriptedMachine {
    memory: Memory,
    devices: Devices,
    config: MachineConfig,
    now: GuestTime,
    stop: StopNumber,
    halted: bool,
    chain: Chain,
    digest: MemoryDigest,
    counters: Counters,
    last_words: LastWords,
    /// After the last completed stop.
    regs: kvm_regs,
    /// As the guest goes on.
    running: kvm_regs,
    script: Script,
    kicks: Kicks,
    window: bool,
    /// Instructions since the slice began.
    ran: u32,
}

impl ScriptedMachine {
    /// A machine that stands at the script's beginning.
    pub fn new(config: MachineConfig, script: Script, kicks: Kicks) -> Result<Self, MachineError> {
        let memory = Memory::map(config.memory_bytes)?;
        let devices = Devices::new(&config)?;
        script.lay_out(&memory)?;
        memory.collect_own();
        let regs = Script::start();
        Ok(Self {
            digest: MemoryDigest::of(&memory),
            memory,
            devices,
            config,
            now: GuestTime::ZERO,
            stop: StopNumber::START,
            halted: false,
            chain: Chain::default(),
            counters: Counters::default(),
            last_words: LastWords::default(),
            regs,
            running: regs,
            script,
            kicks,
            window: false,
            ran: 0,
        })
    }

    /// One slice and all turns at the stop that ends it.
    pub fn step<O: Oracle>(&mut self, oracle: &mut O) -> Result<Flow, O::Error> {
        machine::step(self, oracle)
    }

    /// The vCPU's whole state, as large as a real one's.
    fn vcpu_state(&self) -> VcpuState {
        VcpuState {
            regs: vcpu::to_bytes(&self.running),
            ..vcpu::blank()
        }
    }

    fn note(&mut self, frames: &[PageNumber]) {
        for frame in frames {
            self.digest.update(&self.memory, *frame);
        }
    }

    fn report(&mut self) -> Result<EpochReport, MachineError> {
        let frames = self.memory.collect_own();
        let mut pages = Vec::with_capacity(frames.len());
        for frame in frames {
            pages.push((frame, self.digest.update(&self.memory, frame)));
        }
        self.counters.epochs += 1;
        self.counters.epoch_pages += pages.len() as u64;
        let vcpu = self.vcpu_state();
        EpochReport::of(self.digest.total(), &vcpu, None, &self.devices, pages)
    }

    fn carry_in(&mut self, delta: &Delta) -> Result<(), MachineError> {
        for (frame, page) in delta.frames.iter().zip(delta.pages.chunks(PAGE_SIZE)) {
            self.memory.write_page(*frame, page)?;
        }
        // What was dirtied since the last collection is among the delta's pages: the same was dirtied there.
        let dirtied = self.memory.collect_own();
        self.note(&dirtied);
        self.running = crate::cpu::state::regs(&delta.vcpu)?;
        self.regs = self.running;
        self.counters.carried_pages += delta.frames.len() as u64;
        Ok(())
    }
}

impl Seen for ScriptedMachine {
    fn config(&self) -> &MachineConfig {
        &self.config
    }

    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn devices(&self) -> &Devices {
        &self.devices
    }

    fn now(&self) -> GuestTime {
        self.now
    }

    fn stop(&self) -> StopNumber {
        self.stop
    }

    fn chain(&self) -> Chain {
        self.chain
    }

    fn regs(&self) -> &kvm_regs {
        &self.regs
    }

    fn counters(&self) -> Counters {
        self.counters
    }

    fn is_halted(&self) -> bool {
        self.halted
    }

    fn is_in_user_mode(&self) -> Result<bool, MachineError> {
        Ok(self.running.r15 != 0)
    }

    fn take_delta(&mut self) -> Result<Delta, MachineError> {
        let frames = self.memory.collect_own();
        let mut pages = vec![0; frames.len() * PAGE_SIZE];
        let (chunks, _) = pages.as_chunks_mut::<PAGE_SIZE>();
        for (frame, page) in frames.iter().zip(chunks) {
            self.memory.read_page(*frame, page);
        }
        self.note(&frames);
        self.counters.carried_pages += frames.len() as u64;
        Ok(Delta {
            vcpu: self.vcpu_state(),
            frames,
            pages,
        })
    }
}
