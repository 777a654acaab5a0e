//! Runs micro-guests on a bare VM, each under a time limit.
//!
//! A guest that neither stops nor exits is kicked when its time is over and reported as hung: no experiment can hold
//! up the program, whatever the host's KVM does.

use std::time::Duration;

use kvm_bindings::{kvm_guest_debug, kvm_regs};
use lockstep_proto::VcpuState;
use lockstep_proto::quantity::HostTime;
use rustix::time::{ClockId, clock_gettime};
use vm_memory::{Bytes, GuestAddress};

use super::ProbeError;
use super::signals::{DONE, FRAME_PORT, Frame, MARK, reports};
use crate::cpu::profile::Profile;
use crate::cpu::{Vm, state};
use crate::memory::Memory;
use crate::micro::{GuestError, Handler, MEMORY_BYTES, MicroGuest, NOBODY_PHYSICAL};
use crate::sys::kick::{KickTimer, Kicks};
use crate::sys::vcpu::{Exit, RawVcpu};

/// Time for all experiments of a [`Lab`] together. They need a hundredth of it where nothing hangs, and on a host that is
/// busy beyond measure the last of them still have theirs: what is not found out is part of the host's class.
const ALL_TIME_NS: u64 = 60_000_000_000;
/// Time that every experiment has at least.
const LEAST_TIME_NS: u64 = 2_000_000;

const DONE_ADDRESS: u64 = NOBODY_PHYSICAL + DONE;
const MARK_ADDRESS: u64 = NOBODY_PHYSICAL + MARK;

/// Nanoseconds of `CLOCK_MONOTONIC`.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// What the experiments of one thread share.
pub struct Lab {
    kicks: Kicks,
    timer: KickTimer,
    /// The CPU that the guests see.
    pub profile: Profile,
    /// What a guest does at an exception or interrupt for which it has no handler of its own.
    reports: Vec<Handler>,
    /// When all experiments together should be over: what comes later has [`LEAST_TIME_NS`] each.
    ends: u64,
}

impl Lab {
    /// Prepares this thread. It must not run a machine: a thread has one receiver of kicks.
    pub fn for_this_thread() -> Result<Self, ProbeError> {
        let kicks = Kicks::for_this_thread().map_err(ProbeError::Kicks)?;
        let timer = kicks.timer().map_err(ProbeError::Kicks)?;
        Ok(Self {
            kicks,
            timer,
            profile: Profile::for_this_host().unwrap_or(Profile::Intel1),
            reports: reports().map_err(GuestError::from)?,
            ends: now() + ALL_TIME_NS,
        })
    }

    /// A VM for experiments.
    pub fn bench(&self) -> Result<Bench<'_>, ProbeError> {
        let memory = Memory::new(MEMORY_BYTES).map_err(crate::cpu::VmError::from)?;
        let vm = Vm::create(&memory, self.profile)?;
        let base = state::save(&vm.vcpu)?;
        Ok(Bench {
            vm,
            memory,
            base,
            lab: self,
            deadline: 0,
        })
    }
}

/// What a guest did.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// It reported that it is finished.
    Done,
    /// It reported that it was at a place.
    Mark,
    /// It reported an exception or interrupt.
    Frame(Frame),
    /// It exited otherwise.
    Exit(Exit),
    /// Its time was over.
    Hung,
    /// `KVM_RUN` failed.
    Failed(String),
}

impl Event {
    /// In words, for findings.
    pub fn describe(&self) -> String {
        match self {
            Self::Done => "ran to its end".into(),
            Self::Mark => "ran to a mark".into(),
            Self::Frame(frame) => format!("got {} in its own IDT", vector_name(frame.vector)),
            Self::Exit(Exit::EmulationFailed) => "was declined by KVM's emulator".into(),
            Self::Exit(Exit::Shutdown) => "ended in a triple fault".into(),
            Self::Exit(exit) => format!("exited: {exit:?}"),
            Self::Hung => "did not come back in its time".into(),
            Self::Failed(error) => format!("KVM_RUN failed: {error}"),
        }
    }
}

/// An exception's name.
pub fn vector_name(vector: u8) -> String {
    match vector {
        1 => "#DB".into(),
        3 => "#BP".into(),
        6 => "#UD".into(),
        7 => "#NM".into(),
        8 => "#DF".into(),
        10 => "#TS".into(),
        11 => "#NP".into(),
        12 => "#SS".into(),
        13 => "#GP".into(),
        14 => "#PF".into(),
        16 => "#MF".into(),
        17 => "#AC".into(),
        19 => "#XM".into(),
        other => format!("vector {other}"),
    }
}

/// A VM that runs one micro-guest after the other.
pub struct Bench<'lab> {
    /// Goes before the memory.
    vm: Vm,
    memory: Memory,
    /// State of a vCPU that has not run.
    base: VcpuState,
    lab: &'lab Lab,
    deadline: u64,
}

impl Drop for Bench<'_> {
    fn drop(&mut self) {
        RawVcpu::detach(&self.lab.kicks);
    }
}

impl Bench<'_> {
    /// Puts a guest in place of whatever was there and starts its time.
    pub fn start(&mut self, guest: &MicroGuest, limit: Duration) -> Result<(), ProbeError> {
        // A guest that was abandoned at an exit must not have it completed on the next one's registers. If what is
        // pending cannot be completed, restoring the state fails or the guest's result says so.
        self.vm.vcpu.request_window(false);
        let _ = self.vm.vcpu.complete();
        let _ = self.vm.vcpu.fd().set_guest_debug(&kvm_guest_debug::default());
        guest.load(self.memory.ram(), &self.lab.reports)?;
        // The page tables were written behind KVM's back.
        self.memory
            .reset_slots(&self.vm.fd)
            .map_err(crate::cpu::VmError::from)?;
        state::restore(&self.vm.vcpu, &guest.state(&self.base)?)?;
        self.allow(limit);
        Ok(())
    }

    /// Starts the guest's time anew.
    pub fn allow(&mut self, limit: Duration) {
        self.vm.vcpu.attach(&self.lab.kicks);
        let now = now();
        self.deadline = (now + limit.as_nanos() as u64).min(self.lab.ends.max(now + LEAST_TIME_NS));
        self.lab.timer.arm(HostTime::from_ns(self.deadline));
    }

    /// Runs the guest to its next event.
    pub fn next_event(&mut self) -> Event {
        loop {
            match self.vm.vcpu.enter(Some(&self.lab.kicks)) {
                Ok(Exit::Interrupted) if now() < self.deadline => {}
                Ok(Exit::Interrupted) => return Event::Hung,
                Ok(_) if now() >= self.deadline => return Event::Hung,
                Ok(Exit::MmioWrite { addr: DONE_ADDRESS, .. }) => return Event::Done,
                Ok(Exit::MmioWrite { addr: MARK_ADDRESS, .. }) => return Event::Mark,
                Ok(Exit::Out {
                    port: FRAME_PORT, data, ..
                }) => {
                    let mut address = [0; 8];
                    let len = data.len().min(4);
                    address[..len].copy_from_slice(&data[..len]);
                    return match Frame::read(self.memory.ram(), u64::from_le_bytes(address)) {
                        Some(frame) => Event::Frame(frame),
                        None => Event::Failed("a frame lies outside memory".into()),
                    };
                }
                Ok(exit) => return Event::Exit(exit),
                Err(error) => return Event::Failed(error.to_string()),
            }
        }
    }

    /// Runs a guest from its start to its first event.
    pub fn first(&mut self, guest: &MicroGuest, limit: Duration) -> Result<Event, ProbeError> {
        self.start(guest, limit)?;
        Ok(self.next_event())
    }

    /// Completes the last exit. `Some`: the completion is another exit.
    pub fn complete(&mut self) -> Result<Option<Exit>, ProbeError> {
        self.vm.vcpu.complete().map_err(ProbeError::Run)
    }

    /// When the guest's time is over, in nanoseconds of `CLOCK_MONOTONIC`.
    pub fn deadline(&self) -> u64 {
        self.deadline
    }

    /// General registers as of the last event.
    pub fn regs(&mut self) -> Result<kvm_regs, ProbeError> {
        self.vm.vcpu.regs_at_exit().map_err(ProbeError::Run)
    }

    /// The vCPU.
    pub fn vcpu(&mut self) -> &mut RawVcpu {
        &mut self.vm.vcpu
    }

    /// The VM.
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    /// Guest memory.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Re-creates the memory slots.
    pub fn reset_slots(&self) -> Result<(), ProbeError> {
        Ok(self
            .memory
            .reset_slots(&self.vm.fd)
            .map_err(crate::cpu::VmError::from)?)
    }

    /// Writes eight bytes of guest memory from userspace.
    pub fn poke(&self, at: u64, value: u64) -> Result<(), ProbeError> {
        self.memory
            .ram()
            .write_obj(value, GuestAddress(at))
            .map_err(|error| ProbeError::Guest(error.into()))
    }
}
