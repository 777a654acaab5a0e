//! The one table of trapped instructions: what RDTSC, RDTSCP, RDRAND, RDSEED and accesses to CR4 are turned into, and how
//! the machine reads that back.
//!
//! Stock KVM never exits to userspace for these instructions, so the loader replaces them by a port access of the same
//! length. A port access exits on every KVM, it is a natural stop, and its port number and width name the instruction
//! and the register:
//!
//! | instruction | bytes | port access |
//! | --- | --- | --- |
//! | `rdtsc` | `E5 A8` | `in eax, 0xA8` |
//! | `rdtscp` | `E5 A9`, NOPs | `in eax, 0xA9` |
//! | `rdrand` 64-bit register n | `E5 B0+n`, NOPs | `in eax, 0xB0+n` |
//! | `rdrand` 32-bit register n | `E4 B0+n`, NOPs | `in al, 0xB0+n` |
//! | `rdseed` 64-bit register n | `E5 E0+n`, NOPs | `in eax, 0xE0+n` |
//! | `rdseed` 32-bit register n | `E4 E0+n`, NOPs | `in al, 0xE0+n` |
//! | `mov cr4, ` register n | `E7 B0+n`, NOPs | `out 0xB0+n, eax` |
//! | `mov ` register n`, cr4` | `E7 E0+n`, NOPs | `out 0xE0+n, eax` |
//! | the NOP that a handler of #GP begins with | `E7 A8`, NOPs | `out 0xA8, eax` |
//!
//! CR4 and the handler are trapped only where that brings RDTSC in programs under control
//! ([`crate::machine::Machine::guard_programs`]). An OUT changes no register, so what was there is there afterwards.
//!
//! Register numbers are the architecture's (0 = RAX, 1 = RCX, 2 = RDX, 3 = RBX, 4 = RSP ... 15 = R15). The NOPs are
//! real instructions: they run after the trap. Linux's alternatives copy rewritten bytes to other addresses and merge
//! NOPs into longer ones, so only the first two bytes identify a trap, wherever they stand.
//!
//! One more trap, in place of a PUSH, stands at one address alone: [`super::finalize`].
//!
//! An access by `in eax, dx` (`ED`), `in al, dx` (`EC`) or `out dx, eax` (`EF`) is never a trap: the machine looks at the
//! opcode byte at RIP. A guest that uses one of these ports so uses what is not its own, and the machine stops with an error.

/// The opcode byte of `in al, imm8`.
pub const IN_AL_IMM8: u8 = 0xe4;
/// The opcode byte of `in eax, imm8`.
pub const IN_EAX_IMM8: u8 = 0xe5;
/// The opcode byte of `out imm8, eax`.
pub const OUT_IMM8_EAX: u8 = 0xe7;
/// The one-byte NOP that fills up what a trap leaves of the instruction it replaces.
pub const NOP: u8 = 0x90;

const PORT_RDTSC: u8 = 0xa8;
const PORT_RDTSCP: u8 = 0xa9;
const PORT_RDRAND: u8 = 0xb0;
const PORT_RDSEED: u8 = 0xe0;
const PORT_GP_HANDLER: u8 = 0xa8;
const PORT_WRITE_CR4: u8 = 0xb0;
const PORT_READ_CR4: u8 = 0xe0;
const REGISTERS: u8 = 16;

/// An instruction that we execute: its result comes from outside the machine and must come in through the log, or it would
/// take away what keeps programs under control.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Trapped {
    /// RDTSC: EDX:EAX is the time stamp counter.
    Rdtsc,
    /// RDTSCP: as RDTSC, and ECX is `IA32_TSC_AUX`.
    Rdtscp,
    /// RDRAND: a random number into `reg`, CF = 1, the other arithmetic flags 0.
    Rdrand {
        /// The register's number, 0 to 15.
        reg: u8,
        /// 64-bit register (else 32-bit, which clears the upper half).
        wide: bool,
    },
    /// RDSEED: as RDRAND.
    Rdseed {
        /// The register's number, 0 to 15.
        reg: u8,
        /// 64-bit register (else 32-bit, which clears the upper half).
        wide: bool,
    },
    /// MOV to CR4 from `reg`.
    WriteCr4 {
        /// The register's number, 0 to 15.
        reg: u8,
    },
    /// MOV from CR4 to `reg`.
    ReadCr4 {
        /// The register's number, 0 to 15.
        reg: u8,
    },
    /// The first instruction of the guest's handler of #GP.
    GpHandler,
}

impl Trapped {
    /// The instruction's mnemonic.
    pub fn mnemonic(self) -> &'static str {
        match self {
            Self::Rdtsc => "rdtsc",
            Self::Rdtscp => "rdtscp",
            Self::Rdrand { .. } => "rdrand",
            Self::Rdseed { .. } => "rdseed",
            Self::WriteCr4 { .. } => "mov to cr4",
            Self::ReadCr4 { .. } => "mov from cr4",
            Self::GpHandler => "handler of #GP",
        }
    }

    /// Whether it is trapped only to keep programs under control.
    pub fn guards(self) -> bool {
        matches!(self, Self::WriteCr4 { .. } | Self::ReadCr4 { .. } | Self::GpHandler)
    }

    /// The port that names this instruction.
    pub fn port(self) -> u8 {
        match self {
            Self::Rdtsc => PORT_RDTSC,
            Self::Rdtscp => PORT_RDTSCP,
            Self::Rdrand { reg, .. } => PORT_RDRAND + (reg % REGISTERS),
            Self::Rdseed { reg, .. } => PORT_RDSEED + (reg % REGISTERS),
            Self::WriteCr4 { reg } => PORT_WRITE_CR4 + (reg % REGISTERS),
            Self::ReadCr4 { reg } => PORT_READ_CR4 + (reg % REGISTERS),
            Self::GpHandler => PORT_GP_HANDLER,
        }
    }

    /// The trap, filled up with NOPs to `len` bytes, or `None` where `len` is not the length of an instruction that
    /// a trap fits into (2 to 15 bytes).
    pub fn encode(self, len: usize) -> Option<Vec<u8>> {
        if !(2..=15).contains(&len) {
            return None;
        }
        let opcode = match self {
            Self::WriteCr4 { .. } | Self::ReadCr4 { .. } | Self::GpHandler => OUT_IMM8_EAX,
            Self::Rdtsc | Self::Rdtscp => IN_EAX_IMM8,
            Self::Rdrand { wide, .. } | Self::Rdseed { wide, .. } => {
                if wide {
                    IN_EAX_IMM8
                } else {
                    IN_AL_IMM8
                }
            }
        };
        let mut bytes = vec![NOP; len];
        bytes[0] = opcode;
        bytes[1] = self.port();
        Some(bytes)
    }

    /// Which instruction a port access stands for: `port` as the exit reports it and the opcode byte at the guest's RIP.
    /// `None` where it is an ordinary one.
    pub fn decode(port: u16, opcode_byte: u8) -> Option<Self> {
        let port = u8::try_from(port).ok()?;
        let wide = match opcode_byte {
            IN_EAX_IMM8 => true,
            IN_AL_IMM8 => false,
            OUT_IMM8_EAX => {
                return match port {
                    PORT_GP_HANDLER => Some(Self::GpHandler),
                    PORT_WRITE_CR4..=0xbf => Some(Self::WriteCr4 {
                        reg: port - PORT_WRITE_CR4,
                    }),
                    PORT_READ_CR4..=0xef => Some(Self::ReadCr4 {
                        reg: port - PORT_READ_CR4,
                    }),
                    _ => None,
                };
            }
            _ => return None,
        };
        match (port, wide) {
            (PORT_RDTSC, true) => Some(Self::Rdtsc),
            (PORT_RDTSCP, true) => Some(Self::Rdtscp),
            (PORT_RDRAND..=0xbf, _) => Some(Self::Rdrand {
                reg: port - PORT_RDRAND,
                wide,
            }),
            (PORT_RDSEED..=0xef, _) => Some(Self::Rdseed {
                reg: port - PORT_RDSEED,
                wide,
            }),
            _ => None,
        }
    }
}

/// Whether an access to this port may be a trap ([`Trapped::decode`] tells, with the opcode byte). No device may have a
/// register here.
pub fn is_trap_port(port: u16) -> bool {
    matches!(port, 0xa8 | 0xa9 | 0xb0..=0xbf | 0xe0..=0xef)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Trapped> {
        let mut all = vec![Trapped::Rdtsc, Trapped::Rdtscp, Trapped::GpHandler];
        for reg in 0..16 {
            all.push(Trapped::WriteCr4 { reg });
            all.push(Trapped::ReadCr4 { reg });
            for wide in [false, true] {
                all.push(Trapped::Rdrand { reg, wide });
                all.push(Trapped::Rdseed { reg, wide });
            }
        }
        all
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        for trap in all() {
            for len in 2..=15 {
                let bytes = trap.encode(len).expect("a valid length");
                assert_eq!(bytes.len(), len);
                assert!(bytes[2..].iter().all(|b| *b == NOP));
                assert!(is_trap_port(u16::from(bytes[1])));
                assert_eq!(Trapped::decode(u16::from(bytes[1]), bytes[0]), Some(trap));
            }
        }
    }

    #[test]
    fn every_trap_has_bytes_of_its_own() {
        let mut seen: Vec<Vec<u8>> = all().iter().filter_map(|t| t.encode(2)).collect();
        let count = seen.len();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), count);
        assert_eq!(count, 3 + 6 * 16);
    }

    #[test]
    fn a_length_that_no_trap_fits_into_is_refused() {
        for len in [0, 1, 16, usize::MAX] {
            assert_eq!(Trapped::Rdtsc.encode(len), None);
        }
    }

    #[test]
    fn an_ordinary_port_read_is_no_trap() {
        for port in 0..=u16::MAX {
            for opcode in [0xec, 0xed, 0xe6, 0xee, 0xef, 0x6c, 0x6d, 0x90] {
                assert_eq!(Trapped::decode(port, opcode), None);
            }
            for opcode in [IN_AL_IMM8, IN_EAX_IMM8, OUT_IMM8_EAX] {
                let trapped = Trapped::decode(port, opcode);
                assert!(trapped.is_none() || is_trap_port(port));
            }
        }
        // `in al, 0xA8` is nothing that we ever write.
        assert_eq!(Trapped::decode(0xa8, IN_AL_IMM8), None);
        assert_eq!(Trapped::decode(0x1a8, IN_EAX_IMM8), None);
    }
}
