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
//! - kernel modules: they come later, and are looked through when the kernel finishes them ([`super::finalize`]);
//! - code that the kernel makes at run time (BPF's compiler makes none of these instructions).

use std::fmt;

use super::elf::{CodeSource, ElfError, Vmlinux};
use super::sweep::{Found, Sweep};
use super::trap::Trapped;

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
