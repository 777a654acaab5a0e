//! One sample: the task that runs, and its stack in the kernel and in its program, by names.

use std::collections::HashSet;
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use lockstep_vmm::machine::Machine;

use super::course::Look;
use super::files::Files;
use super::mappings::{Mappings, Region};
use super::program::Program;
use super::stacks::{Frame, Task};
use super::unwind::{Registers, USER_END, Unwinding, Walk};
use crate::show::code;
use crate::show::kernel::Kernel;
use crate::show::tasks;
use crate::show::view::View;
use crate::timeline::read_virtual;

/// Frames of a program's stack.
const MOST_FRAMES: usize = 128;
/// arch/x86/include/asm/page_64_types.h: bytes of a task's stack in the kernel. At its end are the registers that its program
/// had when it entered the kernel (`struct pt_regs`).
const THREAD_SIZE: u64 = 1 << 14;
const PT_REGS_SIZE: u64 = 168;
const PT_REGS_BP: u64 = 32;
const PT_REGS_IP: u64 = 128;
const PT_REGS_CS: u64 = 136;
const PT_REGS_SP: u64 = 152;
/// Bytes of code that are compared with those that ran.
const CODE: usize = 256;
/// Ring 0's half of the addresses. A variable of one CPU of several has an offset instead.
const KERNEL_HALF: u64 = 1 << 63;
/// Checked mappings of files that are remembered.
const MOST_CHECKED: usize = 4096;

/// What user code is called by.
pub struct User {
    mappings: Mappings,
    files: Files,
    unwinding: Unwinding,
    /// Files that are known to be the ones that are mapped, by the memory they are mapped in, and where.
    checked: HashSet<(u64, String, u64)>,
    /// Why user code could not be looked up, the first time.
    trouble: Option<String>,
}

impl User {
    /// With the kernel's structures and the guest's files.
    pub fn new(vmlinux: &[u8], files: Files) -> Result<Self> {
        Ok(Self {
            mappings: Mappings::of(vmlinux)?,
            files,
            unwinding: Unwinding::default(),
            checked: HashSet::new(),
            trouble: None,
        })
    }

    /// The files that were looked for.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// Why user code could not be looked up, the first time.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// The frames of a task's program, the innermost first.
    fn frames(&mut self, view: &View<'_>, task: u64) -> Vec<Frame> {
        let mut frames = Vec::new();
        if let Err(error) = self.walk(view, task, &mut frames) {
            self.trouble.get_or_insert_with(|| format!("{error:#}"));
        }
        frames
    }

    fn walk(&mut self, view: &View<'_>, task: u64, frames: &mut Vec<Frame>) -> Result<()> {
        let Some(mm) = self.mappings.memory(view, task)? else {
            return Ok(());
        };
        let Some(registers) = self.registers(view, task)? else {
            return Ok(());
        };
        let mut walk = Walk::from(registers);
        let mut regions: Vec<Region> = Vec::new();
        while let Some(address) = walk.address() {
            if frames.len() == MOST_FRAMES {
                break;
            }
            let known = regions
                .iter()
                .find(|region| (region.start..region.end).contains(&address));
            let region = match known {
                Some(region) => Some(region.clone()),
                None => self.mappings.find(view, mm, address)?,
            };
            let Some(region) = region.filter(|region| region.is_code) else {
                // The innermost one is what was interrupted; what leads to no code from there is no stack.
                if frames.is_empty() {
                    frames.push(Frame::user(None, "[not mapped]", address));
                }
                break;
            };
            let place = self.place(view, mm, &region, address);
            frames.push(match (&place, &region.path) {
                (Some(place), Some(path)) => Frame::user(place.program.function(place.linked), path, place.linked),
                (None, Some(path)) => Frame::user(None, path, region.offset.wrapping_add(address - region.start)),
                (_, None) => Frame::user(None, "[no file]", address),
            });
            if !regions.contains(&region) {
                regions.push(region);
            }
            let program = place.as_ref().map(|place| (&place.program, place.bias));
            self.unwinding.up(&mut walk, program, |at| view.word(at).ok());
        }
        Ok(())
    }

    /// The registers that a task's program has, or had when it entered the kernel.
    fn registers(&self, view: &View<'_>, task: u64) -> Result<Option<Registers>> {
        if view.is_user() {
            return Ok(Some(Registers {
                rip: view.regs.rip,
                rsp: view.regs.rsp,
                rbp: view.regs.rbp,
            }));
        }
        let end = self.mappings.stack(view, task)?.wrapping_add(THREAD_SIZE);
        let saved = |offset: u64| view.word(end.wrapping_sub(PT_REGS_SIZE).wrapping_add(offset));
        let registers = Registers {
            rip: saved(PT_REGS_IP)?,
            rsp: saved(PT_REGS_SP)?,
            rbp: saved(PT_REGS_BP)?,
        };
        let is_user = saved(PT_REGS_CS)? & 3 == 3 && registers.rip < USER_END;
        Ok(is_user.then_some(registers))
    }

    /// Where in which program an address is.
    fn place(&mut self, view: &View<'_>, mm: u64, region: &Region, address: u64) -> Option<Place> {
        let path = region.path.as_ref()?;
        let program = self.files.program(path)?;
        let linked = program.linked(region.offset.checked_add(address - region.start)?)?;
        let bias = address.wrapping_sub(linked);
        let key = (mm, path.clone(), bias);
        if !self.checked.contains(&key) {
            match verdict(view, &program, linked, bias) {
                Verdict::Same => {}
                Verdict::Unknown => return None,
                Verdict::Other(why) => {
                    self.files.refuse(path, why);
                    return None;
                }
            }
            if self.checked.len() >= MOST_CHECKED {
                self.checked.clear();
            }
            self.checked.insert(key);
        }
        Some(Place { program, linked, bias })
    }
}

/// What a file is to the code that ran.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Same,
    /// Of another build, for this reason.
    Other(&'static str),
    /// The guest has nothing in its memory to compare it with: a program begins before its code is read.
    Unknown,
}

/// Compares a file with what is mapped where it should be. What the guest has not in its memory is not compared.
fn verdict(view: &View<'_>, program: &Program, linked: u64, bias: u64) -> Verdict {
    let is_same = |at: u64, wanted: &[u8]| {
        let mut here = vec![0; wanted.len()];
        let have = read_virtual(view.ram, &view.sregs, bias.wrapping_add(at), &mut here);
        (have > 0).then(|| here[..have] == wanted[..have])
    };
    let by_id = program.id().and_then(|(at, id)| is_same(at, id));
    let by_code = is_same(linked, program.code(linked, CODE));
    judge(by_id, by_code)
}

/// By what is the same, as far as it could be compared.
fn judge(by_id: Option<bool>, by_code: Option<bool>) -> Verdict {
    match (by_id, by_code) {
        (Some(false), _) => Verdict::Other("it is another build than the one that ran, by its build id"),
        (_, Some(false)) => Verdict::Other("it is another build than the one that ran: the code there was another"),
        (Some(true), _) | (_, Some(true)) => Verdict::Same,
        (None, None) => Verdict::Unknown,
    }
}

/// An address of a program.
struct Place {
    program: Rc<Program>,
    linked: u64,
    bias: u64,
}

/// What samples are taken with.
pub struct Sampler {
    kernel: Kernel,
    /// None: the kernel alone.
    user: Option<User>,
    /// The kernel is known to be the guest's.
    is_checked: bool,
}

impl Sampler {
    /// Fails where the kernel keeps the task that runs in a way that is not read here.
    pub fn new(kernel: Kernel, user: Option<User>) -> Result<Self> {
        let place = kernel.symbol("current_task").context(tasks::NO_CURRENT)?;
        ensure!(place >= KERNEL_HALF, tasks::NO_CURRENT);
        Ok(Self {
            kernel,
            user,
            is_checked: false,
        })
    }

    /// What user code is called by.
    pub fn user(&self) -> Option<&User> {
        self.user.as_ref()
    }

    /// To look at a machine where it stands.
    pub fn at<'a>(&'a mut self, machine: &'a mut Machine) -> Looking<'a> {
        Looking { sampler: self, machine }
    }
}

/// A machine that is looked at.
pub struct Looking<'a> {
    sampler: &'a mut Sampler,
    machine: &'a mut Machine,
}

impl Looking<'_> {
    fn view(&mut self) -> Result<(View<'_>, &mut Sampler)> {
        let present = self.machine.present_registers()?;
        let view = View::of(self.machine, present);
        Ok((view, self.sampler))
    }
}

impl Look for Looking<'_> {
    fn task(&mut self) -> Result<Task> {
        let (view, sampler) = self.view()?;
        Ok(sampler.current(&view)?.0)
    }

    fn sample(&mut self) -> Result<(Task, Vec<Frame>)> {
        let (view, sampler) = self.view()?;
        let (task, address) = sampler.current(&view)?;
        let mut frames = Vec::new();
        if !view.is_user() {
            for (index, address) in code::stack(&view, Some(&sampler.kernel)).into_iter().enumerate() {
                // A call may be a function's last instruction: what it returns to is another's.
                let at = if index == 0 { address } else { address.wrapping_sub(1) };
                frames.push(Frame::kernel(sampler.kernel.function(at).map(|found| found.0), address));
            }
        }
        if let (Some(user), Some(address)) = (&mut sampler.user, address) {
            frames.extend(user.frames(&view, address));
        }
        frames.reverse();
        Ok((task, frames))
    }
}

impl Sampler {
    /// The task that runs, and where its structure is.
    fn current(&mut self, view: &View<'_>) -> Result<(Task, Option<u64>)> {
        // Before the kernel has mapped itself there is no task.
        let current = match tasks::current(view, &self.kernel) {
            Ok(current) => current,
            Err(error) if self.is_checked => return Err(error.context("the task that runs cannot be read")),
            Err(_) => {
                let booting = Task {
                    comm: "[booting]".into(),
                    pid: 0,
                };
                return Ok((booting, None));
            }
        };
        if !self.is_checked {
            self.kernel.check(view)?;
            self.is_checked = true;
        }
        let task = Task {
            comm: current.comm,
            pid: current.pid,
        };
        Ok((task, Some(current.address)))
    }
}

/// The recorded kernel's vmlinux.
pub fn read_vmlinux(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_which_nothing_was_compared_is_not_believed() {
        let (same, other) = (Some(true), Some(false));
        assert_eq!(judge(None, None), Verdict::Unknown);
        for (by_id, by_code) in [(same, None), (None, same), (same, same)] {
            assert_eq!(judge(by_id, by_code), Verdict::Same);
        }
        for (by_id, by_code) in [(other, None), (None, other), (same, other), (other, same)] {
            assert!(
                matches!(judge(by_id, by_code), Verdict::Other(_)),
                "{by_id:?} {by_code:?}"
            );
        }
    }
}
