use super::*;

mod rewriting;

const MIB: u64 = 1 << 20;
pub(super) const TEXT: u64 = 0xffff_ffff_8100_0000;

pub(super) fn ram(ranges: &[(u64, u64)]) -> GuestRam {
    let ranges: Vec<_> = ranges
        .iter()
        .map(|(start, len)| (GuestAddress(*start), *len as usize))
        .collect();
    GuestRam::from_ranges(&ranges).expect("guest memory")
}

pub(super) fn read(ram: &GuestRam, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xaa; len];
    ram.read_slice(&mut bytes, GuestAddress(at)).expect("in guest memory");
    bytes
}

fn read_u64(ram: &GuestRam, at: u64) -> u64 {
    ram.read_obj(GuestAddress(at)).expect("in guest memory")
}

pub(super) struct TestSection<'a> {
    pub name: &'a str,
    pub flags: u64,
    pub content: &'a [u8],
}

/// A vmlinux with one RX segment at 16 MiB holding the sections one after the other, 8 KiB of zeroed data behind them,
/// and function symbols at these offsets of the first section, all of its name.
pub(super) fn vmlinux(sections: &[TestSection<'_>], functions: &[u64], with_headers: bool) -> Vec<u8> {
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
        let names = headers.len() as u64 + 1;
        headers.push([n, 2, 0, 0, symbols_at, functions.len() as u64 * 24, names, 24]);
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
        body.extend_from_slice(&h[6].to_le_bytes());
        body.extend_from_slice(&[0; 8]);
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

pub(super) const AX: u64 = 6;
pub(super) const WA: u64 = 3;

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
fn acpi_tables_are_where_the_kernel_is_told() {
    let ram = ram(&[(0, 64 * MIB)]);
    let config = lockstep_proto::MachineConfig {
        model_revision: lockstep_proto::model::NEWEST_REVISION,
        ..Default::default()
    };
    let tables = Tables::of(&config);
    let loaded = load(&ram, &text(&[0xc3]), None, "", &[0; 32], true, Some(&tables)).unwrap();
    let params = read(&ram, loaded.boot_params, 4096);
    let u64_at = |at: usize| u64::from_le_bytes(params[at..at + 8].try_into().unwrap());
    assert_eq!(u64_at(0x70), 0xe_1000, "the root pointer");
    assert_eq!(read(&ram, 0xe_1000, 8), b"RSD PTR ");
    assert_eq!(read(&ram, 0xe_1000, tables.tables.len()), tables.tables);
    assert_eq!(read(&ram, 0xe_0000, 64), tables.state);
    let map = (0..usize::from(params[0x1e8])).map(|index| {
        let at = 0x2d0 + index * 20;
        (u64_at(at), u64_at(at + 8), params[at + 16])
    });
    let map: Vec<_> = map.collect();
    assert_eq!(
        map,
        [
            (0, 0x9_fc00, 1),
            (0xe_0000, 0x1000, 4),
            (0xe_1000, 0x1000, 3),
            (MIB, 63 * MIB, 1)
        ]
    );
    // Without them the kernel is told of none.
    let loaded = load(&ram, &text(&[0xc3]), None, "", &[0; 32], true, None).unwrap();
    assert_eq!(read(&ram, loaded.boot_params + 0x70, 8), [0; 8]);
}

#[test]
fn everything_is_where_the_layout_says() {
    let ram = ram(&[(0, 64 * MIB)]);
    // The zeroed data must be zeroed, whatever was there.
    ram.write_slice(&[0xff; 16384], GuestAddress(0x0100_0000)).unwrap();
    let kernel = text(&[0x90, 0x0f, 0x31, 0xc3]);
    let initrd = vec![0x5a; 5000];
    let seed = [7; 32];
    let loaded = load(&ram, &kernel, Some(&initrd), "console=ttyS0 quiet", &seed, true, None).unwrap();

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
    let loaded = load(&ram, &text(&[0xc3]), None, "", &[0; 32], true, None).unwrap();
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
    let loaded = load(&ram, &text(&[0xc3]), Some(&[1; 4097]), "", &[0; 32], true, None).unwrap();
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
        let error = load(&ram(regions), &kernel, None, "", &[0; 32], true, None).unwrap_err();
        assert!(matches!(error, LoadError::Ram { .. }), "{error}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let kernel = text(&[0xc3]);
    let small = ram(&[(0, 8 * MIB)]);
    let error = load(&small, &kernel, None, "", &[0; 32], true, None).unwrap_err();
    assert!(
        matches!(error, LoadError::KernelOutside { .. }) && error.to_string().contains("more memory"),
        "{error}"
    );

    let ram = ram(&[(0, 32 * MIB)]);
    let error = load(&ram, &kernel, Some(&vec![0; 16 << 20]), "", &[0; 32], true, None).unwrap_err();
    assert!(matches!(error, LoadError::InitrdTooLarge { .. }), "{error}");
    let room = (32 * MIB - 0x0100_3000) as usize;
    assert!(load(&ram, &kernel, Some(&vec![0; room]), "", &[0; 32], true, None).is_ok());
    assert!(load(&ram, &kernel, Some(&vec![0; room + 1]), "", &[0; 32], true, None).is_err());

    assert!(load(&ram, &kernel, None, &"x".repeat(2047), &[0; 32], true, None).is_ok());
    let error = load(&ram, &kernel, None, &"x".repeat(2048), &[0; 32], true, None).unwrap_err();
    assert!(
        matches!(error, LoadError::CommandLineTooLong { length: 2048 }),
        "{error}"
    );
    let error = load(&ram, &kernel, None, "a\0b", &[0; 32], true, None).unwrap_err();
    assert!(matches!(error, LoadError::CommandLineZero(1)), "{error}");
    let error = load(&ram, b"#!/bin/sh\n", None, "", &[0; 32], true, None).unwrap_err();
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
    let from_image = load(&a, &image, None, "x", &[1; 32], true, None).unwrap();
    let from_elf = load(&b, &kernel, None, "x", &[1; 32], true, None).unwrap();
    assert_eq!(from_image, from_elf);
    assert!(read(&a, 0, 32 << 20) == read(&b, 0, 32 << 20));
    assert_eq!(from_image.rewrites.rdtscp, 1);
}
