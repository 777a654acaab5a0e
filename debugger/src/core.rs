//! `lockstep-debug export-memory`: guest memory and registers at a position, as an ELF core that gdb opens with `vmlinux`, and that readers
//! of kernels' dumps take for one.
//!
//! Memory is in the file once; pages of zeroes are holes. The program headers tell of it by physical address, and of every range that the
//! guest's page tables map there, so that virtual addresses read as the guest would read them (`segments`).

mod segments;
mod vmcoreinfo;

use std::fs::File;
use std::io::{Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Args;
use kvm_bindings::{kvm_regs, kvm_sregs};
use lockstep_node::{out, tell};
use lockstep_vmm::cpu::walk::mappings;
use lockstep_vmm::memory::{Memory, PAGE_SIZE, Page};

use crate::Recording;
use crate::place::{Place, help};
use crate::show::go;
use crate::show::view::View;
use crate::timeline::{Timeline, TimelineOptions};
use crate::whole::{Readers, Whole};
use segments::Segments;

#[derive(Args)]
pub struct ExportOptions {
    #[command(flatten)]
    recording: Recording,
    /// The file to write. It must not exist. `-` is standard output.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[arg(long, value_name = "POSITION", allow_hyphen_values = true, help = help("Where"))]
    at: Place,
    #[command(flatten)]
    timeline: TimelineOptions,
}

const HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const NT_PRSTATUS: u32 = 1;
/// As Linux writes it into /proc/vmcore.
const NT_VMCOREINFO: u32 = 0;
/// `struct elf_prstatus` of x86-64, and where its registers begin.
const PRSTATUS: usize = 336;
const PRSTATUS_REGISTERS: usize = 112;
/// Program headers that an ELF header can count.
const MAX_RANGES: usize = 0xfff0;

pub fn run(options: &ExportOptions) -> Result<ExitCode> {
    let is_out = out::is_stdout(&options.file);
    ensure!(
        is_out || !options.file.exists(),
        "{} exists already",
        options.file.display()
    );
    let (directory, at) = options.recording.up_to(Some(options.at))?;
    let mut timeline = Timeline::open(&directory, &options.timeline)?;
    go(&mut timeline, at, false)?;
    let (regs, sregs) = timeline.machine_mut().present_registers()?;
    let memory = timeline.machine().memory();
    let ranges = mappings(memory, &sregs, MAX_RANGES);
    let count = ranges.len();
    let core = Core {
        memory,
        notes: notes(
            &regs,
            &sregs,
            vmcoreinfo::find(memory, &View::of(timeline.machine(), (regs, sregs))).as_deref(),
        ),
        segments: Segments::of(memory, &ranges),
    };
    core.write(&options.file)
        .with_context(|| format!("cannot write {}", options.file.display()))?;
    tell!(
        "{}: {} MiB of memory at stop {}, {count} mapped ranges; open it with: gdb VMLINUX {0}",
        options.file.display(),
        memory.bytes() >> 20,
        timeline.point().stop
    );
    if !core.segments.is_physical {
        tell!(
            "the page tables in force here do not map all of memory: what they do not map cannot be read in the core"
        );
    }
    if count == MAX_RANGES {
        tell!("the guest maps more ranges than a core file can tell of: the rest is left out");
    }
    Ok(ExitCode::SUCCESS)
}

/// A core.
struct Core<'a> {
    memory: &'a Memory,
    notes: Vec<u8>,
    segments: Segments,
}

impl Core<'_> {
    fn write(&self, path: &Path) -> Result<()> {
        if out::is_stdout(path) {
            let mut file = tempfile::tempfile()?;
            self.write_to(&file)?;
            file.rewind()?;
            std::io::copy(&mut file, &mut out::Out)?;
            return Ok(out::Out.flush()?);
        }
        let mut whole = Whole::begin(path, Readers::User)?;
        self.write_to(whole.file())?;
        Ok(whole.end_new()?)
    }

    fn write_to(&self, mut file: &File) -> Result<()> {
        let (notes, segments) = (&self.notes, &self.segments.list);
        let notes_at = HEADER + PROGRAM_HEADER * (segments.len() as u64 + 1);
        let memory_at = (notes_at + notes.len() as u64).next_multiple_of(PAGE_SIZE as u64);
        let mut head = header(segments.len() as u16 + 1);
        program_header(&mut head, PT_NOTE, 0, notes_at, 0, 0, notes.len() as u64);
        for segment in segments {
            // Readable, writable, executable.
            program_header(
                &mut head,
                PT_LOAD,
                7,
                memory_at + segment.page.offset(),
                segment.address,
                segment.physical,
                segment.length,
            );
        }
        head.extend(notes);
        file.write_all(&head)?;
        file.set_len(memory_at + self.memory.bytes())?;
        write_memory(file, self.memory, memory_at)
    }
}

fn write_memory(file: &File, memory: &Memory, at: u64) -> Result<()> {
    let mut page: Page = [0; PAGE_SIZE];
    for index in memory.indices() {
        memory.read_page(memory.frame(index), &mut page);
        if page.iter().any(|&byte| byte != 0) {
            file.write_all_at(&page, at + index.offset())?;
        }
    }
    Ok(())
}

fn header(count: u16) -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // ET_CORE, EM_X86_64.
    bytes.extend([4, 0, 62, 0, 1, 0, 0, 0]);
    for word in [0, HEADER, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(0u32.to_le_bytes());
    for half in [HEADER as u16, PROGRAM_HEADER as u16, count, 0, 0, 0] {
        bytes.extend(half.to_le_bytes());
    }
    bytes
}

fn program_header(out: &mut Vec<u8>, kind: u32, flags: u32, offset: u64, address: u64, physical: u64, length: u64) {
    out.extend(kind.to_le_bytes());
    out.extend(flags.to_le_bytes());
    let align = if kind == PT_LOAD { PAGE_SIZE as u64 } else { 4 };
    for word in [offset, address, physical, length, length, align] {
        out.extend(word.to_le_bytes());
    }
}

/// The notes: the registers, and what the kernel has written down.
fn notes(regs: &kvm_regs, sregs: &kvm_sregs, vmcoreinfo: Option<&str>) -> Vec<u8> {
    let mut notes = Vec::new();
    note(&mut notes, b"CORE\0", NT_PRSTATUS, &status(regs, sregs));
    if let Some(text) = vmcoreinfo {
        note(&mut notes, b"VMCOREINFO\0", NT_VMCOREINFO, text.as_bytes());
    }
    notes
}

/// Adds a note; name and value are padded to four bytes.
fn note(out: &mut Vec<u8>, name: &[u8], kind: u32, value: &[u8]) {
    for word in [name.len() as u32, value.len() as u32, kind] {
        out.extend(word.to_le_bytes());
    }
    for part in [name, value] {
        out.extend(part);
        out.resize(out.len().next_multiple_of(4), 0);
    }
}

/// The registers, as the kernel writes them into a core (`struct elf_prstatus`).
fn status(regs: &kvm_regs, sregs: &kvm_sregs) -> Vec<u8> {
    let mut status = vec![0; PRSTATUS];
    // A process number: gdb wants one.
    status[32] = 1;
    let registers = [
        regs.r15,
        regs.r14,
        regs.r13,
        regs.r12,
        regs.rbp,
        regs.rbx,
        regs.r11,
        regs.r10,
        regs.r9,
        regs.r8,
        regs.rax,
        regs.rcx,
        regs.rdx,
        regs.rsi,
        regs.rdi,
        u64::MAX,
        regs.rip,
        sregs.cs.selector.into(),
        regs.rflags,
        regs.rsp,
        sregs.ss.selector.into(),
        sregs.fs.base,
        sregs.gs.base,
        sregs.ds.selector.into(),
        sregs.es.selector.into(),
        sregs.fs.selector.into(),
        sregs.gs.selector.into(),
    ];
    for (index, value) in registers.iter().enumerate() {
        let at = PRSTATUS_REGISTERS + 8 * index;
        status[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    status
}
