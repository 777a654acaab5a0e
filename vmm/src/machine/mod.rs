//! The machine: vCPU, memory and devices, and the one door through which the outside world enters.
//!
//! Invariants:
//! - Everything from outside enters in a [`Turn`](lockstep_proto::Turn) at a stop. What the machine does between two
//!   stops, and what it does with a turn, is a function of its state alone.
//! - The order within a turn is fixed: clock, device access, completion of the exit, inputs, digest, epoch, injection.
//! - An interrupt is injected only at a completed stop, when KVM says it is ready and IF=1.
//! - Recording and replaying differ only behind [`Oracle`].

mod access;
mod assist;
mod body;
mod boot;
mod chain;
mod debug;
mod delta;
mod epoch;
mod error;
mod guard;
mod modules;
mod panic;
mod parts;
mod run;
mod saved;
mod seen;
mod stop;
mod transfer;
mod turn;

pub(crate) use body::{Body, Came, Cause, State};
pub use chain::Chain;
pub use debug::{BREAKPOINTS, Trace};
pub use delta::Delta;
pub use epoch::EpochReport;
pub use error::MachineError;
pub use parts::{Part, Parts};
pub(crate) use run::step;
pub use run::{Flow, Oracle, Slice};
pub use saved::SavedMachine;
pub use seen::Seen;
pub use stop::{Stop, StopKind};
pub use transfer::Transfer;
pub use turn::Taken;

pub(crate) use panic::LastWords;

use kvm_bindings::kvm_regs;
use lockstep_proto::quantity::{GuestTime, StopNumber};
use lockstep_proto::{MachineConfig, VcpuState};

use crate::cpu::profile::Profile;
use crate::cpu::{Vm, state};
use crate::devices::Devices;
use crate::memory::{Memory, MemoryDigest};
use crate::sys::kick::{KickHandle, Kicks};

/// Pages with trapped instructions whose places are remembered.
const TRAP_PAGES: usize = 64;

/// Counts of what happened, for status and reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Interrupts injected.
    pub interrupts: u64,
    /// Forced stops: slices carried by a delta.
    pub forced: u64,
    /// Pages that deltas carried.
    pub carried_pages: u64,
    /// Epochs ended.
    pub epochs: u64,
    /// Dirty pages compared in epochs.
    pub epoch_pages: u64,
    /// RDTSC and RDTSCP of the guest's programs that we answered.
    pub program_tsc: u64,
    /// Instructions that we executed because KVM's emulator declined them.
    pub assists: u64,
    /// Accesses to MSRs that the guest does not have.
    pub msr_faults: u64,
    /// Kernel modules of the guest that were looked through.
    pub modules: u64,
    /// Instructions in them that were rewritten.
    pub module_instructions: u64,
    /// What in modules could not be: instructions without a trap, code that may hide one, stretches and modules that could not be read.
    pub modules_left: u64,
}

/// One guest.
pub struct Machine {
    // The VM goes before the memory that it runs on.
    vm: Vm,
    memory: Memory,
    devices: Devices,
    config: MachineConfig,
    now: GuestTime,
    /// Natural stops so far.
    stop: StopNumber,
    halted: bool,
    chain: Chain,
    memory_digest: Option<MemoryDigest>,
    counters: Counters,
    /// General registers after the last stop was completed.
    regs: kvm_regs,
    /// Virtual page numbers of trapped instructions and the physical addresses of these pages.
    trap_pages: [(u64, u64); TRAP_PAGES],
    window_requested: bool,
    reset_slots: bool,
    /// RDTSC in programs is answered by us: see [`guard`].
    guarded: bool,
    /// The guest itself has set CR4.TSD.
    guest_tsd: bool,
    /// Where a debugger wants stops inside slices, and what KVM has been told of it.
    trace: Trace,
    armed: Trace,
    in_slice: bool,
    last_words: LastWords,
    kicks: Option<Kicks>,
    /// Machines of pairs that this one was forked from.
    forked_from: Vec<String>,
}

impl Machine {
    /// A machine with empty memory. Load something and set the vCPU's state before it runs.
    pub fn create(config: MachineConfig) -> Result<Self, MachineError> {
        let memory = Memory::new(config.memory_bytes)?;
        let devices = Devices::new(&config)?;
        Self::assemble(config, memory, devices)
    }

    /// A machine around memory and devices that exist already, for a snapshot.
    pub(crate) fn assemble(config: MachineConfig, memory: Memory, devices: Devices) -> Result<Self, MachineError> {
        let profile =
            Profile::by_name(&config.cpu_profile).ok_or_else(|| MachineError::Profile(config.cpu_profile.clone()))?;
        if Profile::for_this_host() != Some(profile) {
            return Err(MachineError::ForeignProfile(config.cpu_profile.clone()));
        }
        let vm = Vm::create(&memory, profile)?;
        Ok(Self {
            vm,
            memory,
            devices,
            config,
            now: GuestTime::ZERO,
            stop: StopNumber::START,
            halted: false,
            chain: Chain::default(),
            memory_digest: None,
            counters: Counters::default(),
            regs: kvm_regs::default(),
            trap_pages: [(u64::MAX, 0); TRAP_PAGES],
            window_requested: false,
            reset_slots: true,
            guarded: false,
            guest_tsd: false,
            trace: Trace::default(),
            armed: Trace::default(),
            in_slice: false,
            last_words: LastWords::default(),
            kicks: None,
            forked_from: Vec::new(),
        })
    }

    /// What the machine is built from.
    pub fn config(&self) -> &MachineConfig {
        &self.config
    }

    /// Guest memory.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Guest memory, to watch it.
    pub fn memory_mut(&mut self) -> &mut Memory {
        &mut self.memory
    }

    /// The devices.
    pub fn devices(&self) -> &Devices {
        &self.devices
    }

    /// Guest time.
    pub fn now(&self) -> GuestTime {
        self.now
    }

    /// Number of the last natural stop.
    pub fn stop(&self) -> StopNumber {
        self.stop
    }

    /// Whether the guest waits in HLT.
    pub fn is_halted(&self) -> bool {
        self.halted
    }

    /// Whether the guest's kernel said shortly before now that it panicked. Any program can say that: it is good for no more than what is
    /// done about a guest's end.
    pub fn has_panicked(&self) -> bool {
        self.last_words.panicked()
    }

    /// The digest chain after the last turn.
    pub fn chain(&self) -> Chain {
        self.chain
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// General registers after the last completed stop.
    pub fn regs(&self) -> &kvm_regs {
        &self.regs
    }

    /// Whether an interrupt waits for IF=1.
    pub fn interrupt_waits(&self) -> bool {
        self.devices.interrupt_pending()
    }

    /// The vCPU's whole state. Only between steps, where every stop is completed.
    pub fn vcpu_state(&self) -> Result<VcpuState, MachineError> {
        Ok(self.with_tsd(state::save(&self.vm.vcpu)?))
    }

    /// What KVM does not know of the vCPU's state.
    fn with_tsd(&self, state: VcpuState) -> VcpuState {
        VcpuState {
            guest_tsd: self.guest_tsd,
            ..state
        }
    }

    /// Sets the vCPU's whole state. Only between steps.
    pub fn set_vcpu_state(&mut self, vcpu: &VcpuState) -> Result<(), MachineError> {
        state::restore(&self.vm.vcpu, vcpu)?;
        self.guest_tsd = vcpu.guest_tsd;
        // KVM takes the state in, and says whether an interrupt could be injected: a restored machine that is halted
        // asks that before it runs, a carried one gets an interrupt on top of its state.
        self.complete_quietly()?;
        self.regs = state::regs(vcpu)?;
        Ok(())
    }

    /// Digest of all memory, computed afresh: it does not rest on dirty tracking.
    pub fn full_memory_digest(&self) -> [u8; 16] {
        MemoryDigest::of(&self.memory).total()
    }

    /// Whether this host needs its memory slots re-created after a delta (see `probe::Strategies`); by default it does.
    pub fn reset_slots_after_delta(&mut self, needed: bool) {
        self.reset_slots = needed;
    }

    /// Gives KVM what the guest writes into the MSRs of which it keeps less when it is given them ([`crate::cpu::msr::CUT`]).
    /// Such writes are stops then: say so before the machine's first step, on every replica.
    pub fn give_cut_msrs(&mut self, gives: bool) -> Result<(), MachineError> {
        crate::cpu::msr::install_filter(&self.vm.fd, gives).map_err(|cause| MachineError::Io {
            what: "KVM_X86_SET_MSR_FILTER",
            cause,
        })
    }

    /// Makes this thread the one that runs the machine and returns its kicks' handle and timers' maker.
    pub fn attach_to_this_thread(&mut self) -> Result<&Kicks, MachineError> {
        // Kicks stay on their thread, and so does a machine that has some: once is enough.
        if let Some(kicks) = self.kicks.take() {
            return Ok(self.kicks.insert(kicks));
        }
        let kicks = Kicks::for_this_thread().map_err(|cause| MachineError::Io {
            what: "prepare kicks",
            cause,
        })?;
        self.vm.vcpu.attach(&kicks);
        Ok(self.kicks.insert(kicks))
    }

    /// Kicks this machine's vCPU from any thread, once a thread is attached.
    pub fn kick_handle(&self) -> Option<KickHandle> {
        self.kicks.as_ref().map(Kicks::handle)
    }

    /// The vCPU as the debugger uses it.
    pub fn vm(&mut self) -> &mut Vm {
        &mut self.vm
    }

    /// The names of pairs' machines that this one was forked from: it is none of them.
    pub fn forked_from(&self) -> &[String] {
        &self.forked_from
    }

    /// From now on, and in all that is saved of it, the machine is a fork of the machine of a pair with this name.
    pub fn mark_fork_of(&mut self, name: &str) {
        if !self.forked_from.iter().any(|known| known == name) {
            self.forked_from.push(name.into());
        }
    }

    /// Sets the CMOS clock as if somebody had opened the machine: at guest time zero it showed `rtc_base`, in seconds since 1970.
    /// Not while it is recorded, and before its first step.
    pub fn set_rtc(&mut self, rtc_base: i64) -> Result<(), MachineError> {
        self.devices.set_rtc(rtc_base)?;
        self.config.rtc_base = rtc_base;
        Ok(())
    }

    pub(crate) fn set_forked_from(&mut self, names: &[String]) {
        self.forked_from = names.to_vec();
    }

    pub(crate) fn set_position(&mut self, now: GuestTime, stop: StopNumber, chain: Chain) {
        self.now = now;
        self.stop = stop;
        self.chain = chain;
    }

    pub(crate) fn set_halted(&mut self, halted: bool) {
        self.halted = halted;
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(kicks) = &self.kicks {
            crate::sys::vcpu::RawVcpu::detach(kicks);
        }
    }
}
