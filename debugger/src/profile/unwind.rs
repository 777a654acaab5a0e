//! Stacks of programs: by the tables that compilers leave for exceptions (`.eh_frame`), and by frame pointers where there are none.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use framehop::x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64};
use framehop::{ExplicitModuleSectionInfo, FrameAddress, Module, Unwinder};

use super::program::{Program, Section};

/// Unwinders that are kept: of each program, at each place where it is mapped.
const MOST_UNWINDERS: usize = 256;
/// What lies above is no program's.
pub const USER_END: u64 = 1 << 47;

/// Registers of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// Where it executes.
    pub rip: u64,
    /// The end of its stack.
    pub rsp: u64,
    /// Its frame pointer, if it has one.
    pub rbp: u64,
}

type Table = UnwinderX86_64<Arc<[u8]>>;

/// Goes up stacks.
#[derive(Default)]
pub struct Unwinding {
    /// By the program, and how far it lies from where it was linked to.
    tables: HashMap<(*const Program, u64), (Rc<Program>, Table)>,
    bare: Table,
    cache: CacheX86_64,
}

/// A stack that is gone up.
pub struct Walk {
    at: Option<FrameAddress>,
    registers: UnwindRegsX86_64,
}

impl Walk {
    /// From the innermost frame on.
    pub fn from(registers: Registers) -> Self {
        Self {
            at: (registers.rip < USER_END).then(|| FrameAddress::from_instruction_pointer(registers.rip)),
            registers: UnwindRegsX86_64::new(registers.rip, registers.rsp, registers.rbp),
        }
    }

    /// An address in the instruction that this frame executes, or called the next one from.
    pub fn address(&self) -> Option<u64> {
        self.at.map(FrameAddress::address_for_lookup)
    }
}

impl Unwinding {
    /// Goes to the frame that called this one, whose code is of `program`, mapped `bias` bytes behind where it was linked to.
    pub fn up(
        &mut self,
        walk: &mut Walk,
        program: Option<(&Rc<Program>, u64)>,
        mut read: impl FnMut(u64) -> Option<u64>,
    ) {
        let Some(at) = walk.at else { return };
        let table = match program {
            Some((program, bias)) => {
                if self.tables.len() >= MOST_UNWINDERS {
                    self.tables.clear();
                }
                let entry = self.tables.entry((Rc::as_ptr(program), bias));
                &entry.or_insert_with(|| (Rc::clone(program), table(program, bias))).1
            }
            None => &self.bare,
        };
        let mut read = |address| (address < USER_END).then(|| read(address)).flatten().ok_or(());
        let up = table.unwind_frame(at, &mut walk.registers, &mut self.cache, &mut read);
        walk.at = match up {
            Ok(Some(address)) if address < USER_END => FrameAddress::from_return_address(address),
            _ => None,
        };
    }
}

fn table(program: &Program, bias: u64) -> Table {
    let mut table = Table::new();
    let extent = program.extent();
    let range = extent.start.wrapping_add(bias)..extent.end.wrapping_add(bias);
    if range.is_empty() {
        return table;
    }
    let sections = &program.sections;
    let range_of = |section: &Option<Section>| section.as_ref().map(|section| section.range.clone());
    let data_of = |section: &Option<Section>| section.as_ref().map(|section| Arc::clone(&section.data));
    table.add_module(Module::new(
        String::new(),
        range,
        bias,
        ExplicitModuleSectionInfo {
            text_svma: range_of(&sections.text),
            text: data_of(&sections.text),
            eh_frame_svma: range_of(&sections.eh_frame),
            eh_frame: data_of(&sections.eh_frame),
            eh_frame_hdr_svma: range_of(&sections.eh_frame_hdr),
            eh_frame_hdr: data_of(&sections.eh_frame_hdr),
            got_svma: sections.got.clone(),
            ..ExplicitModuleSectionInfo::default()
        },
    ));
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames of a stack in `memory`, at most so many.
    fn frames(registers: Registers, memory: &HashMap<u64, u64>) -> Vec<u64> {
        let mut unwinding = Unwinding::default();
        let mut walk = Walk::from(registers);
        let mut found = Vec::new();
        while let Some(address) = walk.address() {
            found.push(address);
            if found.len() > 1000 {
                break;
            }
            unwinding.up(&mut walk, None, |at| memory.get(&at).copied());
        }
        found
    }

    #[test]
    fn frame_pointers_lead_up_and_no_further_than_the_stack() {
        let memory = HashMap::from([
            (0x7000, 0x7100),
            (0x7008, 0x40_1005),
            (0x7100, 0x7200),
            (0x7108, 0x40_2005),
        ]);
        let registers = Registers {
            rip: 0x40_0000,
            rsp: 0x6ff0,
            rbp: 0x7000,
        };
        assert_eq!(frames(registers, &memory), [0x40_0000, 0x40_1004, 0x40_2004]);
    }

    #[test]
    fn circles_and_addresses_of_the_kernel_end_the_walk() {
        // Each the other's caller.
        let memory = HashMap::from([
            (0x7000, 0x7100),
            (0x7008, 0x40_1005),
            (0x7100, 0x7000),
            (0x7108, 0x40_2005),
        ]);
        let registers = Registers {
            rip: 0x40_0000,
            rsp: 0x6ff0,
            rbp: 0x7000,
        };
        assert!(frames(registers, &memory).len() < 5);
        let memory = HashMap::from([(0x7000, 0x7100), (0x7008, 0xffff_ffff_8100_0000)]);
        assert_eq!(frames(registers, &memory), [0x40_0000]);
        let kernel = Registers {
            rip: 0xffff_ffff_8100_0000,
            ..registers
        };
        assert!(frames(kernel, &memory).is_empty());
        let kernels_stack = Registers {
            rbp: 0xffff_8880_0000_0000,
            ..registers
        };
        let all = HashMap::from([(0xffff_8880_0000_0008, 0x40_1005)]);
        assert_eq!(frames(kernels_stack, &all), [0x40_0000]);
    }

    #[test]
    fn any_code_with_any_stack_is_no_panic() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        let program = Rc::new(Program::parse(&own).unwrap());
        let text = program.sections.text.clone().unwrap().range;
        let mut unwinding = Unwinding::default();
        for rip in text.step_by(10_007).take(2000) {
            let mut walk = Walk::from(Registers {
                rip,
                rsp: 0x7000,
                rbp: 0x7100,
            });
            unwinding.up(&mut walk, Some((&program, 0)), |at| Some(at ^ 0x1234));
        }
    }
}
