//! What of a kernel's code is replaced by traps.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;

use super::*;
use rewrite::Site;
use trap::Trapped;

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
    let error = load(&ram(&[(0, 32 * MIB)]), &kernel, None, "", &[0; 32], true, None).unwrap_err();
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
        let _ = load(&ram(&[(0, 20 * MIB)]), &kernel, Some(&[1; 100]), "", &[0; 32], true, None);
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
        let loaded = load(&ram, &unpacked, None, "quiet", &[3; 32], true, None).unwrap();
        for site in &sites {
            assert_eq!(read(&ram, site.paddr, site.replacement.len()), site.replacement);
        }
        eprintln!(
            "  entry {:#x}, kernel {:#x}-{:#x}",
            loaded.entry, loaded.kernel_start, loaded.kernel_end
        );
    }
}
