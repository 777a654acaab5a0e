//! The vCPU: executes a script between two stops, and completes stops.

use bytes::Bytes;
use kvm_bindings::{kvm_debugregs, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs};
use lockstep_proto::{Turn, VcpuState};
use vm_memory::{Bytes as _, GuestAddress};
use zerocopy::IntoBytes;

use super::script::{Driver, Op};
use super::{ScriptedMachine, mix};
use crate::devices::Effect;
use crate::loader::trap::Trapped;
use crate::machine::{Body, Came, Cause, Delta, EpochReport, MachineError, State, Stop};
use crate::sys::vcpu::Exit;

/// RFLAGS.IF.
const INTERRUPT_FLAG: u64 = 1 << 9;
/// More instructions than any slice has.
const LONGEST: u32 = 1 << 20;
/// Where computing reads from and writes to, up to the end of memory.
const READ_FROM: u64 = 0x5000;
const WRITE_FROM: u64 = 0x8000;

pub(super) fn to_bytes(regs: &kvm_regs) -> Bytes {
    Bytes::copy_from_slice(regs.as_bytes())
}

/// The parts of a vCPU's state that a script does not have.
pub(super) fn blank() -> VcpuState {
    VcpuState {
        sregs: Bytes::copy_from_slice(kvm_sregs::default().as_bytes()),
        xcrs: Bytes::copy_from_slice(kvm_xcrs::default().as_bytes()),
        debugregs: Bytes::copy_from_slice(kvm_debugregs::default().as_bytes()),
        events: Bytes::copy_from_slice(kvm_vcpu_events::default().as_bytes()),
        ..VcpuState::default()
    }
}

impl ScriptedMachine {
    fn word(&self, address: u64) -> u64 {
        self.memory.ram().read_obj(GuestAddress(address)).unwrap_or(0)
    }

    fn set_word(&self, address: u64, value: u64) {
        // A script that writes beside its memory changes nothing, on every replica.
        let _ = self.memory.ram().write_obj(value, GuestAddress(address));
    }

    /// The guest has seen `value`.
    fn see(&mut self, value: u64) {
        self.running.rbx = mix(self.running.rbx ^ value);
    }

    fn compute(&mut self) {
        let place = |from: u64, number: u64| from + number % (self.memory.bytes() - from) / 8 * 8;
        let (from, to) = (
            place(READ_FROM, self.running.rbx),
            place(WRITE_FROM, self.running.rbx >> 32),
        );
        let value = self.word(from);
        self.see(value.wrapping_add(1));
        self.set_word(to, self.running.rbx);
    }

    /// Executes one instruction. The cause, if it is a natural stop: it is executed by completing it.
    fn execute(&mut self) -> Option<Cause> {
        let op = self.script.op(self.running.rip);
        let exit = match op {
            Op::In(port) => Exit::In {
                port,
                size: 1,
                count: 1,
            },
            Op::Out(port, value) => Exit::Out {
                port,
                size: 1,
                data: vec![value.unwrap_or(self.running.rbx as u8)],
            },
            Op::Load(addr) => Exit::MmioRead { addr, len: 4 },
            Op::Store(addr, value) => Exit::MmioWrite {
                addr,
                len: 4,
                data: u64::from(value).to_le_bytes(),
            },
            Op::ReadTsc => return Some(Cause::Declined(Trapped::Rdtsc, 0)),
            Op::ReadRandom => return Some(Cause::Declined(Trapped::Rdrand { reg: 0, wide: true }, 0)),
            Op::Halt => Exit::Halt,
            Op::Shutdown => Exit::Shutdown,
            Op::Compute(count) => {
                // Left to do, and one more: 0 is a computation that has not begun.
                let left = if self.running.rcx == 0 {
                    u64::from(count) + 1
                } else {
                    self.running.rcx
                };
                if left > 1 {
                    self.compute();
                    self.running.rcx = left - 1;
                } else {
                    self.running.rcx = 0;
                    self.running.rip += 1;
                }
                return None;
            }
            Op::Jump(to) => {
                self.running.rip = to as u64;
                return None;
            }
            Op::SkipIfOdd(count) => {
                self.running.rip += 1 + (self.running.rbx & 1) * count as u64;
                return None;
            }
            Op::Return => {
                self.pop();
                return None;
            }
            Op::Sti => {
                self.running.rflags |= INTERRUPT_FLAG;
                self.running.rip += 1;
                return None;
            }
            Op::Cli => {
                self.running.rflags &= !INTERRUPT_FLAG;
                self.running.rip += 1;
                return None;
            }
            Op::User(user) => {
                self.running.r15 = user.into();
                self.running.rip += 1;
                return None;
            }
            Op::Submit(queue, head) => {
                let memory = &self.memory;
                Driver { memory, queue }.submit(head);
                self.running.rip += 1;
                return None;
            }
            Op::Harvest(queue, again) => {
                let memory = &self.memory;
                let used = Driver { memory, queue }.harvest(again);
                for entry in used {
                    self.see(entry);
                }
                self.running.rip += 1;
                return None;
            }
        };
        Some(Cause::Exit(exit))
    }

    fn push(&mut self) {
        let kept = [
            self.running.rip,
            self.running.rflags,
            self.running.rcx,
            self.running.r15,
        ];
        self.running.rsp = self.running.rsp.wrapping_sub(32);
        for (at, value) in (0..).zip(kept) {
            self.set_word(self.running.rsp.wrapping_add(8 * at), value);
        }
    }

    fn pop(&mut self) {
        let [rip, rflags, rcx, r15] = [0, 8, 16, 24].map(|at| self.word(self.running.rsp.wrapping_add(at)));
        (self.running.rip, self.running.rflags) = (rip, rflags);
        (self.running.rcx, self.running.r15) = (rcx, r15);
        self.running.rsp = self.running.rsp.wrapping_add(32);
    }

    fn answer(&mut self, cause: Cause, turn: &Turn, effects: &mut Vec<Effect>) -> Result<(), MachineError> {
        match cause {
            Cause::Exit(Exit::In { port, .. }) => {
                let mut byte = [0];
                self.devices.pio_read(port, &mut byte, self.now.ns());
                self.running.rax = byte[0].into();
                self.see(self.running.rax);
            }
            Cause::Exit(Exit::Out { port, data, .. }) => self.devices.pio_write(port, &data, self.now.ns(), effects),
            Cause::Exit(Exit::MmioRead { addr, len }) => {
                let mut data = [0; 8];
                self.devices.mmio_read(addr, &mut data[..usize::from(len)]);
                self.running.rax = u64::from_le_bytes(data);
                self.see(self.running.rax);
            }
            Cause::Exit(Exit::MmioWrite { addr, len, data }) => {
                let ram = self.memory.ram();
                self.devices.mmio_write(addr, &data[..usize::from(len)], ram, effects);
            }
            Cause::Exit(_) => {}
            Cause::Declined(Trapped::Rdtsc, _) => {
                let now = self.now.ns();
                (self.running.rax, self.running.rdx) = (now & 0xffff_ffff, now >> 32);
                self.see(now);
            }
            Cause::Declined(..) => {
                let what = "a random value is wanted and it has none";
                let stop = self.stop;
                let value = turn.random.ok_or(MachineError::Turn { stop, what })?;
                self.running.rax = value;
                self.see(value);
            }
        }
        self.running.rip += 1;
        Ok(())
    }
}

impl Body for ScriptedMachine {
    fn state(&mut self) -> State<'_> {
        State {
            memory: &self.memory,
            devices: &mut self.devices,
            now: &mut self.now,
            stop: &mut self.stop,
            halted: &mut self.halted,
            chain: &mut self.chain,
            counters: &mut self.counters,
            last_words: &mut self.last_words,
        }
    }

    fn begin_slice(&mut self) -> Result<(), MachineError> {
        self.ran = 0;
        Ok(())
    }

    fn enter(&mut self) -> Result<Came, MachineError> {
        loop {
            // As KVM: a kick that came before the entry is seen, and so is a window that is open.
            if (self.kicks)() || (self.window && self.is_ready()) {
                self.ran += 1;
                // The loop may ask for the window again where nothing comes of it: a guest that goes on all the same.
                if self.ran > LONGEST {
                    return Err(endless());
                }
                self.window = false;
                return Ok(Came::Kicked);
            }
            self.ran += 1;
            if self.ran > LONGEST {
                return Err(endless());
            }
            if let Some(cause) = self.execute() {
                return Ok(Came::Natural(cause));
            }
        }
    }

    fn want_window(&mut self, wanted: bool) {
        self.window = wanted;
    }

    fn is_ready(&mut self) -> bool {
        self.running.rflags & INTERRUPT_FLAG != 0
    }

    fn can_wake(&mut self) -> bool {
        self.is_ready()
    }

    fn settle(&mut self) -> Result<(), MachineError> {
        Ok(())
    }

    fn hold(&mut self) -> Result<(), MachineError> {
        self.regs = self.running;
        Ok(())
    }

    fn left_inside(&mut self) {}

    fn complete(&mut self, _: &Stop, cause: Cause, turn: &Turn, effects: &mut Vec<Effect>) -> Result<(), MachineError> {
        self.answer(cause, turn, effects)?;
        self.regs = self.running;
        Ok(())
    }

    fn end_epoch(&mut self) -> Result<EpochReport, MachineError> {
        self.report()
    }

    fn apply_delta(&mut self, delta: &Delta) -> Result<(), MachineError> {
        self.carry_in(delta)
    }

    fn interrupt(&mut self, vector: u8) -> Result<(), MachineError> {
        self.push();
        self.running.rip = self.script.handler_of(vector);
        self.running.rflags &= !INTERRUPT_FLAG;
        (self.running.rcx, self.running.r15) = (0, 0);
        Ok(())
    }
}

fn endless() -> MachineError {
    MachineError::Io {
        what: "the scripted guest",
        cause: std::io::Error::other("it makes no stop"),
    }
}
