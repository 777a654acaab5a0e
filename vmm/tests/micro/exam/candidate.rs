//! Who sits the exam: each is given the same program in its own language.

use iced_x86::code_asm::*;
use lockstep_vmm::loader::trap::Trapped;
use lockstep_vmm::machine::{Flow, Machine, Seen};
use lockstep_vmm::scripted::{Op, Script, ScriptedMachine};

use super::super::guest::{self, DATA, MicroGuest, Ring, end_of_interrupt, finish, outb, trap};
use super::super::harness::{Fault, config, gives_cut_msrs, seed};
use super::super::kicks::Kicker;
use super::examiner::Examiner;

/// A piece of a guest's program.
#[derive(Clone, Copy, Debug)]
pub enum Do {
    /// OUT of a byte.
    Out(u16, u8),
    /// IN of a byte.
    In(u16),
    /// RDRAND.
    Random,
    Sti,
    Halt,
    /// No stop, for a while; memory is written.
    Work,
    /// The same until a tick of the timer has been served.
    Wait,
    /// CLI and HLT.
    End,
}

pub trait Candidate {
    /// A machine with this program, and a handler of the timer's interrupt (vector 0x20) that ends it. Kicks come all the
    /// time.
    fn with(program: &[Do]) -> Self;

    fn step(&mut self, examiner: &mut Examiner) -> Result<Flow, Fault>;

    fn seen(&self) -> &dyn Seen;
}

/// The machine that KVM runs.
pub struct Real {
    machine: Machine,
    kicker: Option<Kicker>,
}

impl Candidate for Real {
    fn with(program: &[Do]) -> Self {
        let guest = MicroGuest::new(Ring::Kernel, |a| {
            for piece in program {
                match *piece {
                    Do::Out(port, value) => outb(a, port, value)?,
                    Do::In(port) => {
                        a.mov(edx, u32::from(port))?;
                        a.in_(al, dx)?;
                    }
                    Do::Random => trap(a, Trapped::Rdrand { reg: 0, wide: true }, 4)?,
                    Do::Sti => a.sti()?,
                    Do::Halt => a.hlt()?,
                    Do::Work => {
                        let mut again = a.create_label();
                        a.mov(ecx, 50_000)?;
                        a.mov(qword_ptr(DATA + 8), rcx)?;
                        a.set_label(&mut again)?;
                        a.dec(ecx)?;
                        a.jnz(again)?;
                    }
                    Do::Wait => {
                        let mut again = a.create_label();
                        a.mov(qword_ptr(DATA + 8), rsp)?;
                        a.set_label(&mut again)?;
                        a.cmp(qword_ptr(DATA), 1)?;
                        a.jb(again)?;
                    }
                    Do::End => finish(a)?,
                }
            }
            Ok(())
        })
        .handler(0x20, |a| {
            a.inc(qword_ptr(DATA))?;
            end_of_interrupt(a)
        });
        let mut machine = Machine::create(config()).expect("a machine");
        guest::load(&guest, &mut machine);
        machine.give_cut_msrs(gives_cut_msrs()).expect("a filter");
        machine.start_epochs().expect("a digest");
        let kicker = Some(Kicker::start(&mut machine, seed(), 200));
        Self { machine, kicker }
    }

    fn step(&mut self, examiner: &mut Examiner) -> Result<Flow, Fault> {
        self.machine.step(examiner)
    }

    fn seen(&self) -> &dyn Seen {
        &self.machine
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        if let Some(kicker) = self.kicker.take() {
            kicker.stop();
        }
    }
}

/// The scripted one.
pub struct Scripted(ScriptedMachine);

impl Candidate for Scripted {
    fn with(program: &[Do]) -> Self {
        let mut script = Script::default();
        for piece in program {
            script.ops.extend(match *piece {
                Do::Out(port, value) => vec![Op::Out(port, Some(value))],
                Do::In(port) => vec![Op::In(port)],
                Do::Random => vec![Op::ReadRandom],
                Do::Sti => vec![Op::Sti],
                Do::Halt => vec![Op::Halt],
                Do::Work | Do::Wait => vec![Op::Compute(1_000)],
                Do::End => vec![Op::Cli, Op::Halt],
            });
        }
        script.handler(0x20, &[Op::Out(0x20, Some(0x20)), Op::Return]);
        let mut executed = 0;
        let kicks = Box::new(move || {
            executed += 1;
            executed % 3 == 0
        });
        let config = lockstep_vmm::scripted::config();
        Self(ScriptedMachine::new(config, script, kicks).expect("a machine"))
    }

    fn step(&mut self, examiner: &mut Examiner) -> Result<Flow, Fault> {
        self.0.step(examiner)
    }

    fn seen(&self) -> &dyn Seen {
        &self.0
    }
}
