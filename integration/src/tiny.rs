//! A kernel of a few instructions, for what Linux is kept from doing.

use anyhow::Result;
use iced_x86::code_asm::CodeAssembler;
use lockstep_vmm::micro::{Body, assemble};

/// Where it is linked and loaded: the lowest address that a kernel may have.
const AT: u64 = 0x10_0000;
const ELF_HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;

/// An ELF file for the 64-bit boot protocol that is nothing but `body`, in one segment.
pub fn kernel(body: impl FnOnce(&mut CodeAssembler) -> Body) -> Result<Vec<u8>> {
    let code = assemble(AT, body)?.bytes;
    let offset = ELF_HEADER + PROGRAM_HEADER;
    let size = code.len() as u64;
    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    Ok([
        // 64-bit, little-endian; an executable for x86-64.
        b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec(),
        // Entry, program headers, no section headers.
        words(&[AT, ELF_HEADER, 0]),
        // Flags; sizes and numbers of headers.
        b"\0\0\0\0\x40\0\x38\0\x01\0\x40\0\0\0\0\0".to_vec(),
        // PT_LOAD, readable and executable.
        b"\x01\0\0\0\x05\0\0\0".to_vec(),
        words(&[offset, AT, AT, size, size, 0x1000]),
        code,
    ]
    .concat())
}

#[cfg(test)]
mod tests {
    use lockstep_vmm::loader::elf::Vmlinux;

    use super::*;

    #[test]
    fn the_loader_reads_it() -> Result<()> {
        let file = kernel(CodeAssembler::hlt)?;
        let read = Vmlinux::parse(&file)?;
        assert_eq!((read.entry, read.segments.len()), (AT, 1));
        assert_eq!(read.segment_bytes(&read.segments[0])?, [0xf4]);
        Ok(())
    }
}
