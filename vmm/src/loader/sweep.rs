//! Decoding a stretch of code from its beginning to its end, and what of it a trap has to replace: of the kernel's, where it is loaded
//! ([`super::rewrite`]), and of a module's, while the guest runs.

use std::collections::BTreeMap;

use iced_x86::{Decoder, DecoderOptions, Formatter, GasFormatter, Instruction, Mnemonic, Register};

use super::trap::{IN_AL_IMM8, IN_EAX_IMM8, OUT_IMM8_EAX, Trapped};

/// How many bytes after something that is no instruction the decoding counts as out of step. x86 code falls into step
/// again within a few instructions, nearly always.
const OUT_OF_STEP: usize = 256;

/// What the decoder saw.
pub(super) enum Found {
    Site(Trapped, Vec<u8>),
    Unsupported(String),
    Collision(String),
}

/// The bytes of a sensitive instruction.
#[derive(Default)]
struct Pattern {
    at: usize,
    /// They were decoded as one.
    is_site: bool,
    /// The instruction that they begin in, otherwise.
    inside: String,
    /// Whether the decoding was in step there.
    in_step: bool,
}

/// The decoding of one section.
pub(super) struct Sweep<'a> {
    bytes: &'a [u8],
    vaddr: u64,
    /// Where the bytes of a sensitive instruction stand, in ascending order.
    patterns: Vec<Pattern>,
    pub(super) found: BTreeMap<usize, Found>,
    pub(super) undecodable: u64,
    formatter: GasFormatter,
}

impl<'a> Sweep<'a> {
    pub(super) fn new(bytes: &'a [u8], vaddr: u64) -> Self {
        let patterns = patterns(bytes)
            .map(|at| Pattern {
                at,
                ..Pattern::default()
            })
            .collect();
        Self {
            bytes,
            vaddr,
            patterns,
            found: BTreeMap::new(),
            undecodable: 0,
            formatter: GasFormatter::new(),
        }
    }

    /// Decodes from `from` to `to`. The last instruction may reach beyond `to`: where it ends.
    pub(super) fn decode(&mut self, from: usize, to: usize) -> usize {
        let mut decoder = Decoder::with_ip(64, self.bytes, self.vaddr, DecoderOptions::NONE);
        if from >= to || decoder.set_position(from).is_err() {
            return from;
        }
        decoder.set_ip(self.vaddr.wrapping_add(from as u64));
        let mut pattern = self.patterns.partition_point(|p| p.at < from);
        let mut instruction = Instruction::default();
        let mut last_bad: Option<usize> = None;
        let mut at = from;
        while at < to {
            decoder.decode_out(&mut instruction);
            let end = if instruction.is_invalid() {
                self.undecodable += 1;
                last_bad = Some(at);
                at += 1;
                if decoder.set_position(at).is_err() {
                    return at;
                }
                decoder.set_ip(self.vaddr.wrapping_add(at as u64));
                continue;
            } else {
                decoder.position()
            };
            while self.patterns.get(pattern).is_some_and(|p| p.at < at) {
                pattern += 1;
            }
            let is_sensitive = self.look(at, end, &instruction);
            while let Some(p) = self.patterns.get_mut(pattern).filter(|p| p.at < end) {
                p.is_site |= is_sensitive;
                if !is_sensitive && p.inside.is_empty() {
                    let mut text = String::new();
                    self.formatter.format(&instruction, &mut text);
                    p.inside = format!("in `{text}` at {:#x}", instruction.ip());
                    p.in_step = last_bad.is_none_or(|bad| at - bad > OUT_OF_STEP);
                }
                pattern += 1;
            }
            at = end;
        }
        at
    }

    /// Looks at one instruction. Returns whether it is one of the sensitive ones.
    fn look(&mut self, at: usize, end: usize, instruction: &Instruction) -> bool {
        let register = instruction.op0_register();
        let trapped = match instruction.mnemonic() {
            Mnemonic::Rdtsc => Some(Trapped::Rdtsc),
            Mnemonic::Rdtscp => Some(Trapped::Rdtscp),
            Mnemonic::Rdrand => general(register).map(|(reg, wide)| Trapped::Rdrand { reg, wide }),
            Mnemonic::Rdseed => general(register).map(|(reg, wide)| Trapped::Rdseed { reg, wide }),
            Mnemonic::Mov if register == Register::CR4 => {
                general(instruction.op1_register()).map(|(reg, _)| Trapped::WriteCr4 { reg })
            }
            Mnemonic::Mov if instruction.op1_register() == Register::CR4 => {
                general(register).map(|(reg, _)| Trapped::ReadCr4 { reg })
            }
            Mnemonic::In | Mnemonic::Out
                if matches!(self.bytes.get(at), Some(&(IN_AL_IMM8 | IN_EAX_IMM8 | OUT_IMM8_EAX))) =>
            {
                let port = u16::from(instruction.immediate8());
                if let Some(trapped) = self.bytes.get(at).and_then(|opcode| Trapped::decode(port, *opcode)) {
                    let what = format!(
                        "an access to port {port:#x} by an immediate will be taken for {}",
                        trapped.mnemonic()
                    );
                    self.found.insert(at, Found::Collision(what));
                }
                return false;
            }
            _ => return false,
        };
        let found = if let Some(trapped) = trapped {
            Found::Site(trapped, self.bytes[at..end].to_vec())
        } else {
            let mut text = String::new();
            self.formatter.format(instruction, &mut text);
            Found::Unsupported(format!("`{text}` has no trap"))
        };
        self.found.insert(at, found);
        true
    }

    /// The patterns that are not instructions of their kind, and whether the decoding was in step there.
    pub(super) fn rest(self) -> impl Iterator<Item = (usize, String, bool)> {
        let bytes = self.bytes;
        self.patterns.into_iter().filter(|p| !p.is_site).map(move |p| {
            let end = bytes.len().min(p.at + 3);
            let inside = if p.inside.is_empty() {
                "in no instruction"
            } else {
                &p.inside
            };
            (p.at, format!("{:02x?} {inside}", &bytes[p.at..end]), p.in_step)
        })
    }
}

/// What is to be done about a stretch of a module's code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Looked {
    /// What is to stand where, by its place in the stretch.
    pub replacements: Vec<(usize, Vec<u8>)>,
    /// How many instructions have no trap, or may be hidden where the decoding was out of step.
    pub left: u64,
    /// Where the last instruction ends: what is behind it was not looked at.
    pub end: usize,
}

/// Looks for what reads the clock or random numbers (not for accesses to CR4) in `code`, which stands at `vaddr`, up to the instruction that reaches `to`.
pub fn look_through(code: &[u8], vaddr: u64, to: usize) -> Looked {
    let mut sweep = Sweep::new(code, vaddr);
    let mut looked = Looked {
        end: sweep.decode(0, to.min(code.len())),
        ..Looked::default()
    };
    for (at, found) in std::mem::take(&mut sweep.found) {
        match found {
            Found::Site(trapped, _) if trapped.guards() => {}
            Found::Site(trapped, original) => match trapped.encode(original.len()) {
                Some(replacement) => looked.replacements.push((at, replacement)),
                None => looked.left += 1,
            },
            Found::Unsupported(_) => looked.left += 1,
            Found::Collision(_) => {}
        }
    }
    let end = looked.end;
    let hidden = sweep.rest().filter(|(at, _, in_step)| *at < end && !in_step);
    looked.left += hidden.count() as u64;
    looked
}

/// The number and width of a 32- or 64-bit general register.
fn general(register: Register) -> Option<(u8, bool)> {
    let number = u8::try_from(register.number()).ok()?;
    if register.is_gpr64() {
        Some((number, true))
    } else if register.is_gpr32() {
        Some((number, false))
    } else {
        None
    }
}

/// Where the bytes of RDTSC, RDTSCP, RDRAND or RDSEED stand (without prefixes), in ascending order.
fn patterns(bytes: &[u8]) -> impl Iterator<Item = usize> {
    bytes.windows(2).enumerate().filter_map(|(at, two)| {
        let third = bytes.get(at + 2).copied();
        match (two, third) {
            ([0x0f, 0x31], _) | ([0x0f, 0x01], Some(0xf9)) | ([0x0f, 0xc7], Some(0xf0..=0xff)) => Some(at),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::trap::NOP;

    const AT: u64 = 0xffff_ffff_c000_0000;

    fn replaced(code: &[u8]) -> Vec<u8> {
        let looked = look_through(code, AT, code.len());
        assert_eq!((looked.left, looked.end), (0, code.len()));
        let mut code = code.to_vec();
        for (at, replacement) in looked.replacements {
            code[at..at + replacement.len()].copy_from_slice(&replacement);
        }
        code
    }

    #[test]
    fn a_modules_clocks_and_random_numbers_are_replaced() {
        assert_eq!(replaced(&[0x55, 0x0f, 0x31, 0xc3]), [0x55, 0xe5, 0xa8, 0xc3]);
        assert_eq!(replaced(&[0x0f, 0x01, 0xf9, 0xc3]), [0xe5, 0xa9, NOP, 0xc3]);
        assert_eq!(replaced(&[0x48, 0x0f, 0xc7, 0xf3]), [0xe5, 0xb3, NOP, NOP]);
        assert_eq!(replaced(&[0x0f, 0xc7, 0xf8]), [0xe4, 0xe0, NOP]);
    }

    #[test]
    fn what_only_looks_so_stays_and_what_has_no_trap_is_counted() {
        // `jne +0xf; xor eax, eax`; MOV to and from CR4; its own `out 0xb0, eax`.
        for code in [
            &[0x75, 0x0f, 0x31, 0xc0][..],
            &[0x0f, 0x22, 0xe0, 0x0f, 0x20, 0xe0],
            &[0xe7, 0xb0],
        ] {
            assert_eq!(replaced(code), code);
        }
        // RDRAND of 16 bits; the bytes of RDTSC behind what is no instruction (06 in 64-bit mode), which a jump may go to.
        for code in [&[0x66, 0x0f, 0xc7, 0xf0][..], &[0x06, 0xb8, 0x0f, 0x31, 0, 0]] {
            let looked = look_through(code, AT, code.len());
            assert_eq!((looked.replacements.len(), looked.left), (0, 1), "{code:02x?}");
        }
    }

    /// Pieces that follow each other see each instruction once, also where one lies across their border.
    #[test]
    fn pieces_agree_with_the_whole() {
        let mut code = Vec::new();
        for number in 0..400u32 {
            code.extend([0x0f, 0x31, 0xb8]);
            code.extend(number.to_le_bytes());
            code.extend([0x4d, 0x0f, 0xc7, 0xf7, 0x90]);
        }
        let whole = look_through(&code, AT, code.len());
        assert_eq!((whole.replacements.len(), whole.left), (800, 0));
        for piece in [1, 2, 3, 7, 64, 1000] {
            let (mut at, mut found) = (0, Vec::new());
            while at < code.len() {
                let rest = &code[at..code.len().min(at + piece + 16)];
                let looked = look_through(rest, AT + at as u64, piece);
                assert!(looked.left == 0 && looked.end >= piece.min(rest.len()));
                found.extend(
                    looked
                        .replacements
                        .into_iter()
                        .map(|(offset, bytes)| (at + offset, bytes)),
                );
                at += looked.end;
            }
            assert_eq!(found, whole.replacements, "{piece}");
        }
    }
}
