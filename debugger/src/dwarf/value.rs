//! Values of parameters and results, as they are when a function is entered or left.

use gimli::{EndianSlice, EvaluationResult, Expression, LittleEndian, Location, Value};
use kvm_bindings::kvm_regs;

use super::{Code, Kind, Typed};
use crate::quote::quoted;
use crate::show::kernel::Kernel;
use crate::show::view::View;

/// Bytes of a text that are shown.
const MOST_TEXT: usize = 64;
/// Operations of an expression, which can jump back.
const MOST_OPERATIONS: u32 = 100;
/// Expressions in one another: an entry value has one that has none.
const MOST_DEPTH: usize = 2;

/// The machine where a function is entered: its return address is on top of the stack.
pub struct Entry<'a> {
    pub view: &'a View<'a>,
    pub kernel: &'a Kernel,
}

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// As it is written.
    pub text: String,
    /// Its bits; none where it is not known.
    pub bits: Option<u64>,
}

impl Shown {
    fn left_out() -> Self {
        Self {
            text: "<optimized out>".into(),
            bits: None,
        }
    }
}

/// What a place is.
enum Found {
    Bits(u64),
    Memory(u64),
}

impl Entry<'_> {
    /// The value at a place.
    pub fn value(&self, typed: &Typed, place: Option<&Code>) -> Shown {
        let found = place.and_then(|code| self.find(code, EndianSlice::new(&code.bytes, LittleEndian), 0));
        match found {
            None => Shown::left_out(),
            Some(Found::Bits(bits)) => self.shown(typed, bits),
            Some(Found::Memory(address)) => match (&typed.kind, self.view.word(address)) {
                (Kind::Other(_), _) => Shown {
                    text: format!("{{...}} at {address:#x}"),
                    bits: None,
                },
                (_, Ok(bits)) => self.shown(typed, bits),
                (_, Err(_)) => Shown::left_out(),
            },
        }
    }

    /// A value of so many bits.
    pub fn shown(&self, typed: &Typed, bits: u64) -> Shown {
        Shown {
            text: self.text(&typed.kind, bits),
            bits: Some(bits),
        }
    }

    fn text(&self, kind: &Kind, bits: u64) -> String {
        let kept = 64 - 8 * kind.size().clamp(1, 8) as u32;
        let unsigned = bits << kept >> kept;
        let signed = bits.cast_signed() << kept >> kept;
        match kind {
            Kind::Void => String::new(),
            Kind::Bool => (unsigned != 0).to_string(),
            Kind::Signed(_) => signed.to_string(),
            // What is longer is an address or a set of bits.
            Kind::Unsigned(_) if unsigned < 1 << 32 => unsigned.to_string(),
            Kind::Enum(_, names) => match names
                .iter()
                .find(|(value, _)| *value == signed || *value as u64 == unsigned)
            {
                Some((_, name)) => name.clone(),
                None => signed.to_string(),
            },
            Kind::Text => self.followed(bits),
            Kind::Code | Kind::Pointer => match self.kernel.named(bits) {
                Some(name) if bits != 0 => format!("{bits:#x} <{name}>"),
                _ => format!("{bits:#x}"),
            },
            Kind::Unsigned(_) | Kind::Other(_) => format!("{unsigned:#x}"),
        }
    }

    /// An address, and the text there.
    fn followed(&self, address: u64) -> String {
        let mut bytes = [0; MOST_TEXT];
        let length = crate::timeline::read_virtual(self.view.ram, &self.view.sregs, address, &mut bytes);
        let end = bytes[..length].iter().position(|&byte| byte == 0);
        match end {
            Some(end) => format!("{address:#x} {}", quoted(&bytes[..end], false)),
            None if length > 0 => format!("{address:#x} {}", quoted(&bytes[..length], true)),
            None => format!("{address:#x}"),
        }
    }

    fn find(&self, code: &Code, bytes: EndianSlice<'_, LittleEndian>, depth: usize) -> Option<Found> {
        if depth == MOST_DEPTH {
            return None;
        }
        let cfa = self.view.regs.rsp.wrapping_add(8);
        let mut evaluation = Expression(bytes).evaluation(code.encoding);
        evaluation.set_max_iterations(MOST_OPERATIONS);
        let mut state = evaluation.evaluate().ok()?;
        loop {
            state = match state {
                EvaluationResult::Complete => break,
                EvaluationResult::RequiresRegister { register, .. } => {
                    let value = register_of(&self.view.regs, register.0)?;
                    evaluation.resume_with_register(Value::Generic(value))
                }
                // GCC's and clang's frame base is the CFA.
                EvaluationResult::RequiresFrameBase => evaluation.resume_with_frame_base(cfa),
                EvaluationResult::RequiresCallFrameCfa => evaluation.resume_with_call_frame_cfa(cfa),
                EvaluationResult::RequiresMemory {
                    address,
                    size,
                    space: None,
                    ..
                } => {
                    let kept = 64 - 8 * u32::from(size.clamp(1, 8));
                    let word = self.view.word(address).ok()? << kept >> kept;
                    evaluation.resume_with_memory(Value::Generic(word))
                }
                EvaluationResult::RequiresEntryValue(inner) => {
                    let Found::Bits(bits) = self.find(code, inner.0, depth + 1)? else {
                        return None;
                    };
                    evaluation.resume_with_entry_value(Value::Generic(bits))
                }
                EvaluationResult::RequiresRelocatedAddress(address) => {
                    evaluation.resume_with_relocated_address(address)
                }
                _ => return None,
            }
            .ok()?;
        }
        let pieces = evaluation.result();
        let [piece] = &pieces[..] else { return None };
        match piece.location {
            Location::Register { register } => register_of(&self.view.regs, register.0).map(Found::Bits),
            Location::Address { address } => Some(Found::Memory(address)),
            Location::Value { value } => value.to_u64(u64::MAX).ok().map(Found::Bits),
            _ => None,
        }
    }
}

/// A register by DWARF's number (System V ABI for AMD64, figure 3.36).
fn register_of(regs: &kvm_regs, number: u16) -> Option<u64> {
    let all = [
        regs.rax, regs.rdx, regs.rcx, regs.rbx, regs.rsi, regs.rdi, regs.rbp, regs.rsp, regs.r8, regs.r9, regs.r10,
        regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
    ];
    all.get(usize::from(number)).copied()
}
