//! Finding the instructions in the kernel's code that read the time stamp counter or the hardware's random numbers, or
//! access CR4, and replacing them by traps (the [table](super::trap)).
//!
//! Every executable section is decoded from its beginning; where the kernel has symbols, decoding begins anew at each
//! function, so that data between functions cannot put it out of step for longer than that. Whatever has the bytes of
//! such an instruction but was not decoded as one is reported: as embedded in other instructions where the decoding was
//! in step, as suspicious (data, or hidden code) where it may not have been.
//! `.altinstr_replacement` is code too: Linux copies it over other code when it patches itself for the CPU.
//!
//! What is *not* rewritten:
//!
//! - the vDSO. Its images lie in data sections and its RDTSC runs in ring 3, where a port read is a fault. The command
//!   line says `vdso=0` ([`super::cmdline`]), and user code that reads the counter itself is the CPU profile's matter;
//! - kernel modules, and code that the kernel makes at run time (BPF's compiler makes none of these instructions).
//!   A guest kernel for this machine is built without modules.

use std::collections::BTreeMap;
use std::fmt;

use iced_x86::{Decoder, DecoderOptions, Formatter, GasFormatter, Instruction, Mnemonic, Register};

use super::elf::{CodeSource, ElfError, Vmlinux};
use super::trap::{IN_AL_IMM8, IN_EAX_IMM8, OUT_IMM8_EAX, Trapped};

/// Most addresses that each list of a report holds; beyond that only the count goes on.
const LIST_LIMIT: usize = 4096;

/// One replacement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// The instruction's virtual address.
    pub vaddr: u64,
    /// Where it lies in guest memory.
    pub paddr: u64,
    /// What it was.
    pub trapped: Trapped,
    /// Its bytes.
    pub original: Vec<u8>,
    /// What stands there now.
    pub replacement: Vec<u8>,
}

/// A place that is worth a look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its virtual address.
    pub vaddr: u64,
    /// The section it lies in.
    pub section: String,
    /// What is there, for a person.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} in {}: {}", self.vaddr, self.section, self.what)
    }
}

/// What the rewriting did and what it saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RewriteReport {
    /// How many RDTSC were replaced.
    pub rdtsc: usize,
    /// How many RDTSCP.
    pub rdtscp: usize,
    /// How many RDRAND.
    pub rdrand: usize,
    /// How many RDSEED.
    pub rdseed: usize,
    /// How many accesses to CR4.
    pub cr4: usize,
    /// Bytes of such an instruction that were not decoded as one, where the decoding may have been out of step: data or
    /// hidden code. A warning.
    pub suspicious: Vec<Finding>,
    /// The same bytes inside or across other instructions, where the decoding was in step (`jne +0xf; xor eax, eax` has
    /// them: `75 0F 31 C0`). A kernel has one in every few hundred KiB of code; nothing to warn of.
    pub embedded: Vec<Finding>,
    /// Such instructions that have no trap. [`super::load`] refuses a kernel that has any.
    pub unsupported: Vec<Finding>,
    /// The kernel's own port reads whose bytes are those of a trap: they will be taken for it. A warning.
    pub collisions: Vec<Finding>,
    /// Whether sections were scanned, or whole segments for want of section headers (data in them may then have been
    /// taken for code: a warning).
    pub source: CodeSource,
    /// Whether function symbols kept the decoding in step.
    pub has_symbols: bool,
    /// How many sections (or segments) were scanned.
    pub sections: usize,
    /// How many bytes were scanned.
    pub bytes: u64,
    /// How many times the bytes were no instruction.
    pub undecodable: u64,
}

impl RewriteReport {
    /// How many instructions were replaced.
    pub fn total(&self) -> usize {
        self.rdtsc + self.rdtscp + self.rdrand + self.rdseed + self.cr4
    }
}

impl fmt::Display for RewriteReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} rdtsc, {} rdtscp, {} rdrand, {} rdseed, {} of cr4 replaced in {} {} ({} bytes, {} symbols); {} embedded, {} suspicious, {} unsupported, {} collisions",
            self.rdtsc,
            self.rdtscp,
            self.rdrand,
            self.rdseed,
            self.cr4,
            self.sections,
            if self.source == CodeSource::Sections {
                "sections"
            } else {
                "segments, for want of section headers"
            },
            self.bytes,
            if self.has_symbols { "with" } else { "without" },
            self.embedded.len(),
            self.suspicious.len(),
            self.unsupported.len(),
            self.collisions.len(),
        )
    }
}

/// Finds what has to be replaced in a kernel; accesses to CR4 where `guarded`. Changes nothing.
pub fn scan(kernel: &Vmlinux<'_>, guarded: bool) -> Result<(Vec<Site>, RewriteReport), ElfError> {
    let mut report = RewriteReport {
        rdtsc: 0,
        rdtscp: 0,
        rdrand: 0,
        rdseed: 0,
        cr4: 0,
        suspicious: Vec::new(),
        embedded: Vec::new(),
        unsupported: Vec::new(),
        collisions: Vec::new(),
        source: kernel.code_source,
        has_symbols: kernel.has_symbols,
        sections: kernel.code.len(),
        bytes: kernel.code.iter().map(|c| c.size).sum(),
        undecodable: 0,
    };
    let mut sites = Vec::new();
    for code in &kernel.code {
        let bytes = kernel.code_bytes(code)?;
        let mut sweep = Sweep::new(bytes, code.vaddr);
        let mut at = 0;
        for function in &code.functions {
            let next = usize::try_from(function.wrapping_sub(code.vaddr))
                .unwrap_or(usize::MAX)
                .min(bytes.len());
            sweep.decode(at, next);
            at = next;
        }
        sweep.decode(at, bytes.len());
        report.undecodable += sweep.undecodable;
        for (offset, found) in std::mem::take(&mut sweep.found) {
            let vaddr = code.vaddr.wrapping_add(offset as u64);
            let finding = |what| Finding {
                vaddr,
                section: code.name.clone(),
                what,
            };
            match found {
                Found::Site(trapped, _) if trapped.guards() && !guarded => {}
                Found::Site(trapped, original) => {
                    let Some(replacement) = trapped.encode(original.len()) else {
                        push(
                            &mut report.unsupported,
                            finding(format!("{} of {} bytes", trapped.mnemonic(), original.len())),
                        );
                        continue;
                    };
                    sites.push(Site {
                        vaddr,
                        paddr: code.paddr + offset as u64,
                        trapped,
                        original,
                        replacement,
                    });
                }
                Found::Unsupported(what) => push(&mut report.unsupported, finding(what)),
                Found::Collision(what) => push(&mut report.collisions, finding(what)),
            }
        }
        for (offset, what, in_step) in sweep.rest() {
            let vaddr = code.vaddr.wrapping_add(offset as u64);
            let list = if in_step {
                &mut report.embedded
            } else {
                &mut report.suspicious
            };
            push(
                list,
                Finding {
                    vaddr,
                    section: code.name.clone(),
                    what,
                },
            );
        }
    }
    // Two replacements in each other's way: one of the two is not an instruction. Which, nobody knows.
    sites.sort_by_key(|s| s.paddr);
    let mut clear: Vec<Site> = Vec::with_capacity(sites.len());
    for site in sites {
        match clear.last() {
            Some(last) if last.paddr + last.original.len() as u64 > site.paddr => {
                let what = format!(
                    "{} overlaps {} at {:#x}",
                    site.trapped.mnemonic(),
                    last.trapped.mnemonic(),
                    last.vaddr
                );
                push(
                    &mut report.unsupported,
                    Finding {
                        vaddr: site.vaddr,
                        section: String::new(),
                        what,
                    },
                );
            }
            _ => clear.push(site),
        }
    }
    for site in &clear {
        *match site.trapped {
            Trapped::Rdtsc => &mut report.rdtsc,
            Trapped::Rdtscp => &mut report.rdtscp,
            Trapped::Rdrand { .. } => &mut report.rdrand,
            Trapped::Rdseed { .. } => &mut report.rdseed,
            Trapped::WriteCr4 { .. } | Trapped::ReadCr4 { .. } | Trapped::GpHandler => &mut report.cr4,
        } += 1;
    }
    Ok((clear, report))
}

fn push(list: &mut Vec<Finding>, finding: Finding) {
    if list.len() < LIST_LIMIT {
        list.push(finding);
    }
}

/// How many bytes after something that is no instruction the decoding counts as out of step. x86 code falls into step
/// again within a few instructions, nearly always.
const OUT_OF_STEP: usize = 256;

/// What the decoder saw.
enum Found {
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
struct Sweep<'a> {
    bytes: &'a [u8],
    vaddr: u64,
    /// Where the bytes of a sensitive instruction stand, in ascending order.
    patterns: Vec<Pattern>,
    found: BTreeMap<usize, Found>,
    undecodable: u64,
    formatter: GasFormatter,
}

impl<'a> Sweep<'a> {
    fn new(bytes: &'a [u8], vaddr: u64) -> Self {
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

    /// Decodes from `from` to `to`. The last instruction may reach beyond `to`.
    fn decode(&mut self, from: usize, to: usize) {
        let mut decoder = Decoder::with_ip(64, self.bytes, self.vaddr, DecoderOptions::NONE);
        if from >= to || decoder.set_position(from).is_err() {
            return;
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
                    return;
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
    fn rest(self) -> impl Iterator<Item = (usize, String, bool)> {
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
