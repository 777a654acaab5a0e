//! Inside a slice: instruction by instruction, where the host can.
//!
//! A *spot* is a point and the number of steps since it. A step is one instruction of ring 0, or all that ring 3 does up
//! to the next entry into the kernel: there the host can neither step nor break. It is the same walk every time, so the
//! number names the spot. Whatever was walked is thrown away when the timeline goes elsewhere.

use anyhow::{Result, bail, ensure};
use kvm_bindings::kvm_sregs;
use lockstep_vmm::cpu::walk::{Wanted, translate};
use lockstep_vmm::machine::{BREAKPOINTS, Trace};
use vm_memory::{Bytes, GuestAddress};

use super::{Advance, Goal, Point, Timeline};

/// Vectors by which ring 3 most often enters the kernel, apart from interrupts, which come at stops only: #PF (a system
/// call, too, where the host interprets ring 0), #GP, #UD, #DE.
const VECTORS: [u64; BREAKPOINTS] = [14, 13, 6, 0];
/// IRETQ; SYSRETQ.
const RETURNS: [&[u8]; 2] = [&[0x48, 0xcf], &[0x48, 0x0f, 0x07]];
/// Ring 0's half of the addresses.
const KERNEL_HALF: u64 = 1 << 63;
/// A slice of more steps than this is not walked.
pub const MAX_STEPS: u64 = 50_000_000;

/// A place inside a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Spot {
    /// The point before.
    pub point: Point,
    /// Steps since.
    pub steps: u64,
}

impl From<Point> for Spot {
    fn from(point: Point) -> Self {
        Self { point, steps: 0 }
    }
}

/// What a step was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// One instruction.
    Instruction,
    /// User code ran, up to an entry into the kernel.
    User,
    /// The next point: by the instruction that stopped the machine, by user code before it, by a delta, or by a turn of a
    /// halted guest.
    Point,
    /// The log ends here.
    End,
}

/// A timeline, and steps inside its slices.
pub struct Walker {
    timeline: Timeline,
    steps: u64,
    /// The page of kernel code that was looked at last: its virtual address and where it is.
    page: Option<(u64, u64)>,
}

impl Walker {
    /// Stands where `timeline` stands.
    pub fn new(timeline: Timeline) -> Self {
        Self {
            timeline,
            steps: 0,
            page: None,
        }
    }

    /// The timeline.
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// The timeline, to go elsewhere: tell with [`Walker::arrived`].
    pub fn timeline_mut(&mut self) -> &mut Timeline {
        &mut self.timeline
    }

    /// The timeline has gone to a point.
    pub fn arrived(&mut self) {
        self.steps = 0;
        self.page = None;
    }

    /// Where the machine stands.
    pub fn spot(&self) -> Spot {
        Spot {
            point: self.timeline.point(),
            steps: self.steps,
        }
    }

    /// The special registers here.
    pub fn sregs(&mut self) -> Result<kvm_sregs> {
        Ok(self.timeline.machine_mut().present_registers()?.1)
    }

    /// RIP here.
    pub fn rip(&mut self) -> Result<u64> {
        Ok(self.timeline.machine_mut().present_rip()?)
    }

    /// Goes to a point, undisturbed.
    pub fn go_to_point(&mut self, point: Point) -> Result<()> {
        self.timeline.seek(Goal::Point(point), &mut |_| true)?;
        self.arrived();
        ensure!(self.timeline.point() == point, "the recording has no such point");
        Ok(())
    }

    /// Goes to a spot that is known to be.
    pub fn go(&mut self, spot: Spot) -> Result<()> {
        let here = self.spot();
        if here.point != spot.point || here.steps > spot.steps {
            self.go_to_point(spot.point)?;
            // Steps backwards come here again and again.
            self.timeline.checkpoint()?;
        }
        while self.steps < spot.steps {
            match self.step()? {
                Step::Instruction | Step::User => {}
                Step::Point | Step::End => bail!("the slice ended before its step {}", spot.steps),
            }
        }
        Ok(())
    }

    /// One step forwards.
    pub fn step(&mut self) -> Result<Step> {
        ensure!(
            self.steps < MAX_STEPS,
            "this slice has too many instructions to be walked"
        );
        let across = self.leaves_kernel()?;
        let trace = if across {
            Trace {
                step: false,
                breakpoints: self.entries()?,
            }
        } else {
            Trace {
                step: true,
                breakpoints: Vec::new(),
            }
        };
        Ok(match self.timeline.advance(trace)? {
            Advance::Inside => {
                self.steps += 1;
                if across { Step::User } else { Step::Instruction }
            }
            Advance::Turn => {
                self.arrived();
                Step::Point
            }
            Advance::End => Step::End,
        })
    }

    /// Whether ring 3 runs next: the vCPU is there, or the next instruction goes there.
    fn leaves_kernel(&mut self) -> Result<bool> {
        let rip = self.rip()?;
        let mut code = [0; 3];
        if rip >= KERNEL_HALF {
            let page = rip & !0xfff;
            let physical = match self.page {
                Some((known, physical)) if known == page => Some(physical),
                _ => {
                    let sregs = self.sregs()?;
                    let ram = self.timeline.machine().memory().ram();
                    let physical = translate(ram, &sregs, page, READ).ok();
                    self.page = physical.map(|physical| (page, physical));
                    physical
                }
            };
            let Some(physical) = physical else { return Ok(false) };
            let length = code.len().min((0x1000 - (rip & 0xfff)) as usize);
            let ram = self.timeline.machine().memory().ram();
            // What cannot be read is no return.
            let _ = ram.read_slice(&mut code[..length], GuestAddress(physical + (rip & 0xfff)));
        } else {
            let sregs = self.sregs()?;
            if sregs.ss.dpl == 3 {
                return Ok(true);
            }
            self.read_virtual(rip, &mut code)?;
        }
        if !RETURNS.iter().any(|bytes| code.starts_with(bytes)) {
            return Ok(false);
        }
        if code.starts_with(RETURNS[1]) {
            return Ok(true);
        }
        // IRETQ goes where the frame says.
        let rsp = self.timeline.machine_mut().present_registers()?.0.rsp;
        let mut selector = [0; 8];
        self.read_virtual(rsp.wrapping_add(8), &mut selector)?;
        Ok(selector[0] & 3 == 3)
    }

    /// Where the kernel is entered.
    fn entries(&mut self) -> Result<Vec<u64>> {
        let sregs = self.sregs()?;
        let mut entries = Vec::with_capacity(BREAKPOINTS);
        for vector in VECTORS {
            let mut gate = [0; 16];
            if vector * 16 + 15 > u64::from(sregs.idt.limit)
                || !self.read_virtual(sregs.idt.base.wrapping_add(vector * 16), &mut gate)?
            {
                continue;
            }
            let part = |at: usize, length: usize| {
                gate[at..at + length]
                    .iter()
                    .rev()
                    .fold(0u64, |value, &byte| value << 8 | u64::from(byte))
            };
            let address = part(0, 2) | part(6, 2) << 16 | part(8, 4) << 32;
            if gate[5] & 0x80 != 0 && !entries.contains(&address) {
                entries.push(address);
            }
        }
        Ok(entries)
    }

    /// Reads memory as the guest's kernel would; false where something is not mapped.
    pub fn read_virtual(&mut self, address: u64, data: &mut [u8]) -> Result<bool> {
        let sregs = self.sregs()?;
        let ram = self.timeline.machine().memory().ram();
        Ok(read_virtual(ram, &sregs, address, data) == data.len())
    }
}

/// A load of ring 0.
pub const READ: Wanted = Wanted {
    write: false,
    user: false,
};

/// Reads virtual memory page by page; returns how many bytes could be.
pub fn read_virtual(ram: &lockstep_vmm::memory::GuestRam, sregs: &kvm_sregs, address: u64, data: &mut [u8]) -> usize {
    let mut done = 0;
    while done < data.len() {
        let at = address.wrapping_add(done as u64);
        let piece = (data.len() - done).min(0x1000 - (at & 0xfff) as usize);
        let Ok(physical) = translate(ram, sregs, at, READ) else {
            break;
        };
        if ram
            .read_slice(&mut data[done..done + piece], GuestAddress(physical))
            .is_err()
        {
            break;
        }
        done += piece;
    }
    done
}
