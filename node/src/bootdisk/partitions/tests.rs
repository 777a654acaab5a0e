use std::fs::File;
use std::os::unix::fs::FileExt;

use super::super::made::{Gpt, MIB};
use super::*;

fn disk(bytes: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(bytes).unwrap();
    file
}

fn found(file: &File) -> Result<Vec<Partition>, Refusal> {
    of(&Window::whole(file.try_clone().unwrap(), 1 << 30).unwrap())
}

fn refusal(file: &File) -> String {
    match found(file) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("it is taken"),
    }
}

fn places(partitions: &[Partition]) -> Vec<(u32, u64)> {
    partitions.iter().map(|one| (one.number, one.window.bytes())).collect()
}

/// An MBR's entries, in the sector at `at`.
fn table(file: &File, at: u64, entries: &[(u8, u32, u32)]) {
    let mut sector = [0; 512];
    sector[440..444].copy_from_slice(&0xdead_beef_u32.to_le_bytes());
    for (index, (kind, first, sectors)) in entries.iter().enumerate() {
        let entry = &mut sector[446 + index * 16..][..16];
        entry[4] = *kind;
        entry[8..12].copy_from_slice(&first.to_le_bytes());
        entry[12..].copy_from_slice(&sectors.to_le_bytes());
    }
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    file.write_all_at(&sector, at * 512).unwrap();
}

#[test]
fn gpts_partitions_are_found_with_their_names() {
    let file = disk(8 * MIB);
    let gpt = Gpt::new(&[(1, 2048, 4095), (14, 4096, 6143)]);
    gpt.write(&file);
    file.write_all_at(b"XFSB", 4096 * 512).unwrap();
    let partitions = found(&file).unwrap();
    assert_eq!(places(&partitions), [(1, MIB), (14, MIB)]);
    assert_eq!(partitions[1].contents, Contents::Foreign("xfs"));
    assert_eq!(
        partitions[0].root_word(),
        "root=PARTUUID=03020101-0504-0706-0809-0a0b0c0d0e0f"
    );
    assert!(!partitions[0].is_root);
    let marked = Gpt::new(&[(1, 2048, 4095)]).root(1);
    marked.write(&file);
    assert!(found(&file).unwrap()[0].is_root);
}

#[test]
fn a_gpt_that_is_damaged_or_made_up_is_refused() {
    let file = disk(8 * MIB);
    let gpt = Gpt::new(&[(1, 2048, 4095)]);
    let check = |what: &str, change: &dyn Fn(&mut Gpt)| {
        let mut changed = gpt.clone();
        change(&mut changed);
        changed.write(&file);
        let error = refusal(&file);
        assert!(error.contains(what), "{error}");
    };
    check("overlap", &|gpt| gpt.entries.push((2, 4095, 5000)));
    check("beyond the disk", &|gpt| gpt.entries[0].2 = 16 * 2048);
    check("beyond the disk", &|gpt| gpt.entries[0].2 = u64::MAX - 1);
    check("ends before it begins", &|gpt| gpt.entries[0].2 = 0);
    check("entries of", &|gpt| gpt.count = u32::MAX);
    check("entries of", &|gpt| gpt.entry_bytes = 64);
    check("cannot be read", &|gpt| gpt.table = u64::MAX);
    check("cannot be read", &|gpt| gpt.table = 16 * 2048);
    check("checksum of its header", &|gpt| gpt.spoil_header = true);
    check("checksum of its entries", &|gpt| gpt.spoil_entries = true);
    check("header says", &|gpt| gpt.header_bytes = 91);
    check("header says", &|gpt| gpt.header_bytes = u32::MAX);
}

#[test]
fn mbrs_partitions_are_found_with_the_logical_ones() {
    let file = disk(8 * MIB);
    table(&file, 0, &[(0x83, 2048, 2048), (0x05, 4096, 8192), (0, 0, 0)]);
    table(&file, 4096, &[(0x83, 2048, 1024), (0x05, 4096, 4096)]);
    table(&file, 8192, &[(0x83, 1024, 2048), (0, 0, 0)]);
    let partitions = found(&file).unwrap();
    assert_eq!(places(&partitions), [(1, MIB), (5, MIB / 2), (6, MIB)]);
    assert_eq!(partitions[1].root_word(), "root=PARTUUID=deadbeef-05");
}

#[test]
fn an_mbr_that_is_damaged_or_made_up_is_refused() {
    let file = disk(8 * MIB);
    let check = |what: &str, entries: &[(u8, u32, u32)], second: &[(u8, u32, u32)]| {
        table(&file, 4096, second);
        table(&file, 0, entries);
        let error = refusal(&file);
        assert!(error.contains(what), "{error}");
    };
    check("overlap", &[(0x83, 2048, 2049), (0x83, 4096, 1)], &[]);
    check("beyond the disk", &[(0x83, 2048, u32::MAX)], &[]);
    check("second sector of 512", &[(0xee, 1, u32::MAX)], &[]);
    check("cannot be read", &[(0x0f, u32::MAX, 1)], &[]);
    check("at sector 6000", &[(0x0f, 6000, 1)], &[]);
}

#[test]
fn a_chain_of_logical_partitions_without_end_is_refused() {
    let file = disk(8 * MIB);
    table(&file, 0, &[(0x05, 4096, 4096)]);
    table(&file, 4096, &[(0, 0, 0), (0x05, 0, 1)]);
    let error = refusal(&file);
    assert!(error.contains("more than 60"), "{error}");
}

#[test]
fn a_disk_without_a_table_is_one_file_system_or_nothing() {
    let file = disk(MIB);
    file.write_all_at(b"\x53\xef", 0x438).unwrap();
    // Somebody's boot sector before it.
    file.write_all_at(b"\x55\xaa", 510).unwrap();
    let partitions = found(&file).unwrap();
    assert_eq!((partitions.len(), partitions[0].number), (1, 0));
    assert_eq!(partitions[0].contents, Contents::Ext);
    assert_eq!(partitions[0].root_word(), "root=/dev/vda");
    assert!(refusal(&disk(512)).contains("too small"));
    let blank = found(&disk(MIB)).unwrap();
    assert_eq!(blank[0].contents, Contents::Unknown { blank: true });
}
