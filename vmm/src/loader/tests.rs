use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;

use super::*;
use rewrite::Site;
use trap::Trapped;

const MIB: u64 = 1 << 20;
const TEXT: u64 = 0xffff_ffff_8100_0000;

fn ram(ranges: &[(u64, u64)]) -> GuestRam {
    let ranges: Vec<_> = ranges
        .iter()
        .map(|(start, len)| (GuestAddress(*start), *len as usize))
        .collect();
    GuestRam::from_ranges(&ranges).expect("guest memory")
}

fn read(ram: &GuestRam, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xaa; len];
    ram.read_slice(&mut bytes, GuestAddress(at)).expect("in guest memory");
    bytes
}

fn read_u64(ram: &GuestRam, at: u64) -> u64 {
    ram.read_obj(GuestAddress(at)).expect("in guest memory")
}

struct TestSection<'a> {
    name: &'a str,
    flags: u64,
    content: &'a [u8],
}

/// A vmlinux with one RX segment at 16 MiB holding the sections one after the other, 8 KiB of zeroed data behind them,
/// and function symbols at these offsets of the first section.
fn vmlinux(sections: &[TestSection<'_>], functions: &[u64], with_headers: bool) -> Vec<u8> {
    let base = 0x1000u64;
    let mut body = Vec::new();
    let mut headers = vec![[0u64; 8]];
    let mut names = vec![0u8];
    let name = |names: &mut Vec<u8>, n: &str| {
        let at = names.len() as u64;
        names.extend_from_slice(n.as_bytes());
        names.push(0);
        at
    };
    for s in sections {
        while body.len() % 16 != 0 {
            body.push(0xcc);
        }
        let at = body.len() as u64;
        headers.push([
            name(&mut names, s.name),
            1,
            s.flags,
            TEXT + at,
            base + at,
            s.content.len() as u64,
            0,
            0,
        ]);
        body.extend_from_slice(s.content);
    }
    let text_len = body.len() as u64;
    let symbols_at = base + body.len() as u64;
    for f in functions {
        body.extend_from_slice(&1u32.to_le_bytes());
        body.extend_from_slice(&[0x12, 0, 1, 0]);
        body.extend_from_slice(&(TEXT + f).to_le_bytes());
        body.extend_from_slice(&0u64.to_le_bytes());
    }
    if !functions.is_empty() {
        let n = name(&mut names, ".symtab");
        headers.push([n, 2, 0, 0, symbols_at, functions.len() as u64 * 24, 0, 24]);
    }
    let n = name(&mut names, ".shstrtab");
    headers.push([n, 3, 0, 0, base + body.len() as u64, names.len() as u64, 0, 0]);
    body.extend_from_slice(&names);
    let headers_at = base + body.len() as u64;
    for h in &headers {
        body.extend_from_slice(&(h[0] as u32).to_le_bytes());
        body.extend_from_slice(&(h[1] as u32).to_le_bytes());
        for v in &h[2..6] {
            body.extend_from_slice(&v.to_le_bytes());
        }
        body.extend_from_slice(&[0; 16]);
        body.extend_from_slice(&h[7].to_le_bytes());
    }
    let mut file = vec![0; base as usize];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &2u16.to_le_bytes());
    put(18, &62u16.to_le_bytes());
    put(24, &0x0100_0000u64.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(54, &56u16.to_le_bytes());
    put(56, &1u16.to_le_bytes());
    put(58, &64u16.to_le_bytes());
    if with_headers {
        put(40, &headers_at.to_le_bytes());
        put(60, &(headers.len() as u16).to_le_bytes());
        put(62, &(headers.len() as u16 - 1).to_le_bytes());
    }
    put(64, &1u32.to_le_bytes());
    put(68, &5u32.to_le_bytes());
    for (i, v) in [base, TEXT, 0x0100_0000, text_len, text_len + 8192, 0x20_0000]
        .iter()
        .enumerate()
    {
        put(72 + i * 8, &v.to_le_bytes());
    }
    file.extend_from_slice(&body);
    file
}

const AX: u64 = 6;
const WA: u64 = 3;

fn text(content: &[u8]) -> Vec<u8> {
    vmlinux(
        &[TestSection {
            name: ".text",
            flags: AX,
            content,
        }],
        &[],
        true,
    )
}

#[test]
fn everything_is_where_the_layout_says() {
    let ram = ram(&[(0, 64 * MIB)]);
    // The zeroed data must be zeroed, whatever was there.
    ram.write_slice(&[0xff; 16384], GuestAddress(0x0100_0000)).unwrap();
    let kernel = text(&[0x90, 0x0f, 0x31, 0xc3]);
    let initrd = vec![0x5a; 5000];
    let seed = [7; 32];
    let loaded = load(&ram, &kernel, Some(&initrd), "console=ttyS0 quiet", &seed, true).unwrap();

    assert_eq!(loaded.entry, 0x0100_0000);
    assert_eq!(
        (loaded.kernel_start, loaded.kernel_end),
        (0x0100_0000, 0x0100_0000 + 4 + 8192)
    );
    assert_eq!(read(&ram, 0x0100_0000, 4), [0x90, 0xe5, 0xa8, 0xc3]);
    assert_eq!(read(&ram, 0x0100_0004, 8192), vec![0; 8192]);
    assert_eq!(read(&ram, 0x0100_2004, 1), [0xff]);

    assert_eq!(loaded.initrd, Some(0x03ff_e000..0x03ff_e000 + 5000));
    assert_eq!(read(&ram, 0x03ff_e000, 5000), initrd);
    assert_eq!(read(&ram, loaded.command_line.start, 20), b"console=ttyS0 quiet\0");

    let params = read(&ram, loaded.boot_params, 4096);
    let u32_at = |at: usize| u32::from_le_bytes(params[at..at + 4].try_into().unwrap());
    let u64_at = |at: usize| u64::from_le_bytes(params[at..at + 8].try_into().unwrap());
    assert_eq!(&params[0x1fe..0x206], b"\x55\xaa\0\0HdrS");
    assert_eq!(params[0x210], 0xff);
    assert_eq!((u32_at(0x218), u32_at(0x21c)), (0x03ff_e000, 5000));
    assert_eq!((u32_at(0x228), u32_at(0x238)), (0x20000, 19));
    assert_eq!(u64_at(0x250), layout::SETUP_DATA);
    assert_eq!(params[0x1e8], 2);
    assert_eq!((u64_at(0x2d0), u64_at(0x2d8), u32_at(0x2e0)), (0, 0x9fc00, 1));
    assert_eq!((u64_at(0x2e4), u64_at(0x2ec), u32_at(0x2f4)), (MIB, 63 * MIB, 1));

    let node = read(&ram, layout::SETUP_DATA, 48);
    assert_eq!(&node[..16], &[0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 32, 0, 0, 0]);
    assert_eq!(&node[16..], &seed);
    assert_eq!(read_u64(&ram, loaded.gdt_base + 0x10), 0x00af_9b00_0000_ffff);
    assert_eq!(read_u64(&ram, loaded.gdt_base + 0x18), 0x00cf_9300_0000_ffff);
}

#[test]
fn four_gib_are_mapped_one_to_one() {
    let ram = ram(&[(0, 32 * MIB)]);
    let loaded = load(&ram, &text(&[0xc3]), None, "", &[0; 32], true).unwrap();
    let walk = |va: u64| -> u64 {
        let mut table = loaded.page_table;
        for shift in [39, 30] {
            let entry = read_u64(&ram, table + (va >> shift & 511) * 8);
            assert_eq!(entry & 0xfff, 3, "{va:#x}");
            table = entry & !0xfff;
        }
        let entry = read_u64(&ram, table + (va >> 21 & 511) * 8);
        assert_eq!(entry & 0x1f_ffff, 0x83, "{va:#x}");
        (entry & !0x1f_ffff) | (va & 0x1f_ffff)
    };
    for va in (0..4u64 << 30).step_by(1 << 20).chain([0xffff_ffff]) {
        assert_eq!(walk(va), va);
    }
    assert_eq!(read_u64(&ram, loaded.page_table + 8), 0);
    assert_eq!(loaded.initrd, None);
}

#[test]
fn memory_goes_on_behind_the_hole() {
    let regions = [(0, layout::HOLE_START), (layout::HOLE_END, 512 * MIB)];
    let ram = ram(&regions);
    let loaded = load(&ram, &text(&[0xc3]), Some(&[1; 4097]), "", &[0; 32], true).unwrap();
    assert_eq!(loaded.initrd.unwrap().start, layout::INITRD_LIMIT - 8192);
    let params = read(&ram, loaded.boot_params, 4096);
    assert_eq!(params[0x1e8], 3);
    let entry = &params[0x2d0 + 40..0x2d0 + 60];
    assert_eq!(entry[..8], layout::HOLE_END.to_le_bytes());
    assert_eq!(entry[8..16], (512 * MIB).to_le_bytes());
}

#[test]
fn memory_that_no_machine_has_is_refused() {
    let kernel = text(&[0xc3]);
    for regions in [
        &[(MIB, 64 * MIB)][..],
        &[(0, MIB)],
        &[(0, 64 * MIB), (layout::HOLE_START, MIB)],
    ] {
        let error = load(&ram(regions), &kernel, None, "", &[0; 32], true).unwrap_err();
        assert!(matches!(error, LoadError::Ram { .. }), "{error}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let kernel = text(&[0xc3]);
    let small = ram(&[(0, 8 * MIB)]);
    let error = load(&small, &kernel, None, "", &[0; 32], true).unwrap_err();
    assert!(
        matches!(error, LoadError::KernelOutside { .. }) && error.to_string().contains("more memory"),
        "{error}"
    );

    let ram = ram(&[(0, 32 * MIB)]);
    let error = load(&ram, &kernel, Some(&vec![0; 16 << 20]), "", &[0; 32], true).unwrap_err();
    assert!(matches!(error, LoadError::InitrdTooLarge { .. }), "{error}");
    let room = (32 * MIB - 0x0100_3000) as usize;
    assert!(load(&ram, &kernel, Some(&vec![0; room]), "", &[0; 32], true).is_ok());
    assert!(load(&ram, &kernel, Some(&vec![0; room + 1]), "", &[0; 32], true).is_err());

    assert!(load(&ram, &kernel, None, &"x".repeat(2047), &[0; 32], true).is_ok());
    let error = load(&ram, &kernel, None, &"x".repeat(2048), &[0; 32], true).unwrap_err();
    assert!(
        matches!(error, LoadError::CommandLineTooLong { length: 2048 }),
        "{error}"
    );
    let error = load(&ram, &kernel, None, "a\0b", &[0; 32], true).unwrap_err();
    assert!(matches!(error, LoadError::CommandLineZero(1)), "{error}");
    let error = load(&ram, b"#!/bin/sh\n", None, "", &[0; 32], true).unwrap_err();
    assert!(error.to_string().contains("neither"), "{error}");
}

#[test]
fn a_bzimage_loads_as_its_vmlinux_does() {
    use std::io::Write;
    let kernel = text(&[0x0f, 0x01, 0xf9, 0xc3]);
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&kernel).unwrap();
    let image = bzimage::tests::wrap(&packed.finish().unwrap());
    let (a, b) = (ram(&[(0, 32 * MIB)]), ram(&[(0, 32 * MIB)]));
    let from_image = load(&a, &image, None, "x", &[1; 32], true).unwrap();
    let from_elf = load(&b, &kernel, None, "x", &[1; 32], true).unwrap();
    assert_eq!(from_image, from_elf);
    assert!(read(&a, 0, 32 << 20) == read(&b, 0, 32 << 20));
    assert_eq!(from_image.rewrites.rdtscp, 1);
}

fn scan(kernel: &[u8]) -> (Vec<Site>, RewriteReport) {
    rewrite::scan(&Vmlinux::parse(kernel).unwrap(), true).unwrap()
}

#[test]
fn each_form_of_each_instruction_is_replaced() {
    let mut code = vec![0x0f, 0x31, 0x0f, 0x01, 0xf9];
    let mut expected = vec![(Trapped::Rdtsc, 2), (Trapped::Rdtscp, 3)];
    for reg in 0..16u8 {
        for wide in [false, true] {
            for (base, seed) in [(0xf0, false), (0xf8, true)] {
                let rex = 0x40 | u8::from(wide) << 3 | reg >> 3;
                if rex != 0x40 {
                    code.push(rex);
                }
                code.extend_from_slice(&[0x0f, 0xc7, base | reg & 7]);
                let trapped = if seed {
                    Trapped::Rdseed { reg, wide }
                } else {
                    Trapped::Rdrand { reg, wide }
                };
                expected.push((trapped, if rex == 0x40 { 3 } else { 4 }));
            }
        }
    }
    let (sites, report) = scan(&text(&code));
    let found: Vec<_> = sites.iter().map(|s| (s.trapped, s.original.len())).collect();
    assert_eq!(found, expected);
    assert_eq!(
        (report.rdtsc, report.rdtscp, report.rdrand, report.rdseed),
        (1, 1, 32, 32)
    );
    assert_eq!(
        (report.suspicious, report.unsupported, report.collisions),
        (vec![], vec![], vec![])
    );
    for site in &sites {
        assert_eq!(site.original.len(), site.replacement.len());
        assert_eq!(
            Trapped::decode(site.replacement[1].into(), site.replacement[0]),
            Some(site.trapped)
        );
    }
}

#[test]
fn only_code_is_touched() {
    let rdtsc = [0x0f, 0x31];
    let kernel = vmlinux(
        &[
            TestSection {
                name: ".text",
                flags: AX,
                content: &rdtsc,
            },
            TestSection {
                name: ".rodata",
                flags: WA,
                content: &rdtsc,
            },
            TestSection {
                name: ".altinstr_replacement",
                flags: AX,
                content: &rdtsc,
            },
            TestSection {
                name: ".init.data",
                flags: WA,
                content: &rdtsc,
            },
        ],
        &[],
        true,
    );
    let (sites, report) = scan(&kernel);
    assert_eq!(sites.iter().map(|s| s.vaddr).collect::<Vec<_>>(), [TEXT, TEXT + 0x20]);
    assert_eq!(
        sites.iter().map(|s| s.paddr).collect::<Vec<_>>(),
        [0x0100_0000, 0x0100_0020]
    );
    assert_eq!((report.sections, report.source), (2, elf::CodeSource::Sections));
}

#[test]
fn bytes_inside_another_instruction_are_reported_and_left() {
    // mov eax, 0x310f; rdpid rax; ret
    let (sites, report) = scan(&text(&[0xb8, 0x0f, 0x31, 0, 0, 0xf3, 0x0f, 0xc7, 0xf8, 0xc3]));
    assert!(sites.is_empty());
    let at: Vec<_> = report.embedded.iter().map(|f| f.vaddr).collect();
    assert_eq!(at, [TEXT + 1, TEXT + 6]);
    assert!(report.embedded[0].what.contains("mov"), "{}", report.embedded[0]);
    assert!(report.embedded[1].what.contains("rdpid"), "{}", report.embedded[1]);
    assert!(report.suspicious.is_empty());
}

#[test]
fn bytes_behind_what_is_no_instruction_are_suspicious() {
    // 06 is no 64-bit instruction: it may be data, and then what follows is out of step. The second pattern has nothing
    // decodable around it at all.
    let mut code = vec![0x06, 0xb8, 0x0f, 0x31, 0, 0];
    code.extend_from_slice(&[0x90; 300]);
    code.extend_from_slice(&[0xb8, 0x0f, 0x31, 0, 0, 0xb8, 0x0f, 0x31]);
    let (sites, report) = scan(&text(&code));
    assert_eq!(sites.iter().map(|s| s.vaddr).collect::<Vec<_>>(), [TEXT + 312]);
    assert_eq!(
        report.suspicious.iter().map(|f| f.vaddr).collect::<Vec<_>>(),
        [TEXT + 2]
    );
    assert_eq!(
        report.embedded.iter().map(|f| f.vaddr).collect::<Vec<_>>(),
        [TEXT + 307]
    );
    assert_eq!(report.undecodable, 2);
}

#[test]
fn symbols_bring_the_decoder_back_into_step() {
    // One byte of data that swallows what follows: b8 0f 31 c3 90 is one instruction.
    let code = [0xb8, 0x0f, 0x31, 0xc3, 0x90, 0xc3];
    let sections = [TestSection {
        name: ".text",
        flags: AX,
        content: &code,
    }];
    let (sites, report) = scan(&vmlinux(&sections, &[], true));
    assert_eq!((sites.len(), report.embedded.len(), report.has_symbols), (0, 1, false));
    let (sites, report) = scan(&vmlinux(&sections, &[1], true));
    assert_eq!((sites.len(), report.embedded.len(), report.has_symbols), (1, 0, true));
    assert_eq!(sites[0].vaddr, TEXT + 1);
}

#[test]
fn without_section_headers_segments_are_scanned_and_that_is_said() {
    let (sites, report) = scan(&vmlinux(
        &[TestSection {
            name: ".text",
            flags: AX,
            content: &[0x0f, 0x31, 0xc3],
        }],
        &[],
        false,
    ));
    assert_eq!((sites.len(), report.source), (1, elf::CodeSource::Segments));
    assert!(report.to_string().contains("for want of section headers"), "{report}");
}

#[test]
fn a_form_without_a_trap_stops_the_load() {
    let kernel = text(&[0x66, 0x0f, 0xc7, 0xf1, 0xc3]);
    let error = load(&ram(&[(0, 32 * MIB)]), &kernel, None, "", &[0; 32], true).unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(error, LoadError::Unrewritable { .. })
            && text.contains("rdrand")
            && text.contains("0xffffffff81000000"),
        "{text}"
    );
}

#[test]
fn a_port_read_that_looks_like_a_trap_is_reported() {
    let (sites, report) = scan(&text(&[0xe5, 0xa8, 0xe4, 0xa8, 0xe4, 0x60, 0xec, 0xc3]));
    assert!(sites.is_empty());
    assert_eq!(report.collisions.iter().map(|f| f.vaddr).collect::<Vec<_>>(), [TEXT]);
}

proptest! {
    #[test]
    fn a_damaged_kernel_is_an_error_and_never_a_panic(
        changes in prop::collection::vec((0usize..0x1400, any::<u8>()), 1..8),
        cut in prop::option::of(0usize..0x1400),
    ) {
        let code = [0x90, 0x0f, 0x31, 0x48, 0x0f, 0xc7, 0xf0, 0xc3];
        let mut kernel = vmlinux(&[TestSection { name: ".text", flags: AX, content: &code }], &[0, 3], true);
        for (at, value) in changes {
            // Most of the file is padding: fold the rest of the address range into the headers.
            let at = if at >= 0x1000 { at } else { at % 128 };
            if let Some(byte) = kernel.get_mut(at) {
                *byte = value;
            }
        }
        if let Some(cut) = cut {
            kernel.truncate(cut);
        }
        let _ = load(&ram(&[(0, 20 * MIB)]), &kernel, Some(&[1; 100]), "", &[0; 32], true);
    }

    #[test]
    fn any_code_is_scanned_without_a_panic(code in prop::collection::vec(any::<u8>(), 1..600), f in prop::collection::vec(0u64..600, 0..6)) {
        let (sites, report) = scan(&vmlinux(&[TestSection { name: ".text", flags: AX, content: &code }], &f, true));
        prop_assert_eq!(sites.len(), report.total());
        for pair in sites.windows(2) {
            prop_assert!(pair[0].paddr + pair[0].original.len() as u64 <= pair[1].paddr);
        }
    }
}

/// A kernel built for the guest, where there is one: `LOCKSTEP_TEST_KERNEL` (vmlinux or bzImage), or what `make guest`
/// leaves.
fn built_kernels() -> Vec<PathBuf> {
    let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest/vmlinux");
    let named = std::env::var_os("LOCKSTEP_TEST_KERNEL").map(PathBuf::from);
    named.into_iter().chain([guest]).filter(|path| path.exists()).collect()
}

/// What `objdump -d` says is such an instruction.
fn objdump(vmlinux: &Path) -> Option<BTreeSet<(u64, String)>> {
    let out = Command::new("objdump")
        .args(["-d", "-w", "--no-show-raw-insn"])
        .arg(vmlinux)
        .output()
        .ok()?;
    let mut found = BTreeSet::new();
    for line in String::from_utf8_lossy(&out.stdout).lines() {
        let Some((address, rest)) = line.split_once(":\t") else {
            continue;
        };
        let mnemonic = match rest.split_whitespace().collect::<Vec<_>>()[..] {
            ["mov", operands, ..] if operands.ends_with(",%cr4") => Some("mov to cr4"),
            ["mov", operands, ..] if operands.starts_with("%cr4,") => Some("mov from cr4"),
            ref words => ["rdtsc", "rdtscp", "rdrand", "rdseed"]
                .into_iter()
                .find(|mnemonic| words.contains(mnemonic)),
        };
        if let (Ok(address), Some(mnemonic)) = (u64::from_str_radix(address.trim(), 16), mnemonic) {
            found.insert((address, mnemonic.to_owned()));
        }
    }
    out.status.success().then_some(found)
}

#[test]
fn the_real_kernel_agrees_with_objdump() {
    let kernels = built_kernels();
    if kernels.is_empty() {
        println!("SKIPPED: no target/guest/vmlinux (`make guest`) and no LOCKSTEP_TEST_KERNEL");
    }
    for path in kernels {
        let file = std::fs::read(&path).unwrap();
        let unpacked = if elf::is_elf(&file) {
            file
        } else {
            bzimage::unpack(&file).unwrap()
        };
        let plain = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(plain.path(), &unpacked).unwrap();
        let (sites, report) = scan(&unpacked);
        eprintln!("{}: {report}", path.display());
        for finding in report
            .suspicious
            .iter()
            .chain(&report.collisions)
            .chain(&report.unsupported)
        {
            eprintln!("  {finding}");
        }
        let Some(expected) = objdump(plain.path()) else {
            println!("SKIPPED: no objdump");
            continue;
        };
        let found: BTreeSet<_> = sites
            .iter()
            .map(|s| (s.vaddr, s.trapped.mnemonic().to_owned()))
            .collect();
        assert_eq!(found, expected);
        assert!(!found.is_empty() && report.unsupported.is_empty());

        let ram = ram(&[(0, 128 * MIB)]);
        let loaded = load(&ram, &unpacked, None, "quiet", &[3; 32], true).unwrap();
        for site in &sites {
            assert_eq!(read(&ram, site.paddr, site.replacement.len()), site.replacement);
        }
        eprintln!(
            "  entry {:#x}, kernel {:#x}-{:#x}",
            loaded.entry, loaded.kernel_start, loaded.kernel_end
        );
    }
}
