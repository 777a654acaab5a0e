//! The interrupted code, and how it came there.

use iced_x86::{Decoder, DecoderOptions, Formatter, GasFormatter, SymbolResolver, SymbolResult};

use super::kernel::Kernel;
use super::view::View;

/// Instructions that are shown.
const INSTRUCTIONS: usize = 8;
/// Frames that are shown.
const MAX_FRAMES: usize = 64;
const KERNEL_HALF: u64 = 1 << 63;
const PT_REGS_BP: u64 = 32;
const PT_REGS_IP: u64 = 128;
const PT_REGS_CS: u64 = 136;

/// An instruction.
pub struct Line {
    pub address: u64,
    pub bytes: Vec<u8>,
    pub text: String,
}

/// The instructions from RIP on, as gdb writes them; fewer where memory ends.
pub fn disassemble(view: &View<'_>, kernel: Option<&Kernel>) -> Vec<Line> {
    let mut code = [0; 16 * INSTRUCTIONS];
    let rip = view.regs.rip;
    let length = crate::timeline::read_virtual(view.ram, &view.sregs, rip, &mut code);
    let bits = if view.sregs.cs.l == 1 {
        64
    } else if view.sregs.cs.db == 1 {
        32
    } else {
        16
    };
    let mut decoder = Decoder::with_ip(bits, &code[..length], rip, DecoderOptions::NONE);
    let mut formatter = GasFormatter::with_options(kernel.map(|kernel| Box::new(Names::of(kernel)) as _), None);
    // As gdb writes numbers.
    formatter.options_mut().set_uppercase_hex(false);
    formatter.options_mut().set_small_hex_numbers_in_decimal(false);
    let mut lines = Vec::new();
    while lines.len() < INSTRUCTIONS && decoder.can_decode() {
        let start = decoder.position();
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            break;
        }
        let mut text = String::new();
        formatter.format(&instruction, &mut text);
        lines.push(Line {
            address: instruction.ip(),
            bytes: code[start..decoder.position()].to_vec(),
            text,
        });
    }
    lines
}

/// Functions, for the formatter, which wants to own what it asks.
struct Names(Vec<(u64, String)>);

impl Names {
    fn of(kernel: &Kernel) -> Self {
        Self(kernel.functions().to_vec())
    }
}

impl SymbolResolver for Names {
    fn symbol(
        &mut self,
        _: &iced_x86::Instruction,
        _: u32,
        _: Option<u32>,
        address: u64,
        _: u32,
    ) -> Option<SymbolResult<'_>> {
        let index = self.0.binary_search_by_key(&address, |entry| entry.0).ok()?;
        Some(SymbolResult::with_str(address, &self.0[index].1))
    }
}

/// Return addresses, the innermost first, beginning with RIP: by frame pointers, in ring 0.
pub fn stack(view: &View<'_>, kernel: Option<&Kernel>) -> Vec<u64> {
    let mut frames = vec![view.regs.rip];
    if view.is_user() {
        return frames;
    }
    // Before the frame pointer is set, the caller's address is still at the top.
    let offset = kernel
        .and_then(|kernel| kernel.function(view.regs.rip))
        .map(|found| found.1);
    let early = match offset {
        Some(0) => Some(view.regs.rsp),
        Some(1) => Some(view.regs.rsp.wrapping_add(8)),
        _ => None,
    };
    frames.extend(early.and_then(|at| view.word(at).ok()));
    let mut frame = view.regs.rbp;
    while frames.len() < MAX_FRAMES && frame >= KERNEL_HALF {
        let Some((address, next)) = caller(view, frame) else {
            break;
        };
        frames.push(address);
        if next == frame {
            break;
        }
        frame = next;
    }
    frames
}

/// The address that a frame returns to, in ring 0, and the frame of that code. Where an exception or interrupt came in,
/// Linux leaves the address of the registers that it saved, plus one (ENCODE_FRAME_POINTER, `struct pt_regs`).
fn caller(view: &View<'_>, frame: u64) -> Option<(u64, u64)> {
    let word = |at: u64| view.word(frame.wrapping_add(at)).ok();
    let (address, next) = match frame % 8 {
        0 => (word(8)?, word(0)?),
        1 if word(PT_REGS_CS - 1)? & 3 == 0 => (word(PT_REGS_IP - 1)?, word(PT_REGS_BP - 1)?),
        _ => return None,
    };
    (address >= KERNEL_HALF).then_some((address, next))
}
