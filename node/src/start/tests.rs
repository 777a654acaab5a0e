use lockstep_proto::model::MODULES_REVISION;
use lockstep_proto::quantity::PageNumber;
use lockstep_vmm::memory::PAGE_SIZE;

use super::*;

#[test]
fn modules_are_looked_through_from_their_revision_on_and_where_they_are_not_it_is_told() {
    let config = |model_revision| MachineConfig {
        model_revision,
        ..MachineConfig::default()
    };
    let mut notes = Vec::new();
    assert_eq!(
        module_place(&config(MODULES_REVISION - 1), b"no kernel", &mut notes),
        None
    );
    assert_eq!(notes, Vec::<String>::new());
    assert_eq!(module_place(&config(MODULES_REVISION), b"no kernel", &mut notes), None);
    assert!(
        notes.len() == 1 && notes[0].contains("not looked through: "),
        "{notes:?}"
    );
}

#[test]
fn cards_without_an_address_differ_and_equal_ones_are_refused() {
    let nic = |tap: &str, mac| NicOption {
        tap: tap.into(),
        mac,
        mtu: None,
    };
    let two = [nic("t0", None), nic("t1", None)];
    let of = |name| macs(&two, name).unwrap();
    let all = [of(None), of(Some("vm")), of(Some("db"))].concat();
    for (index, mac) in all.iter().enumerate() {
        assert!(!all[..index].contains(mac), "{all:02x?}");
        assert_eq!(mac[0] & 3, 2, "locally administered, unicast");
    }
    // On the other host the tap devices have other names.
    assert_eq!(
        macs(&[nic("x", None), nic("y", None)], Some("vm")).unwrap(),
        of(Some("vm"))
    );
    let mac = of(Some("vm"))[1];
    let clash = macs(&[nic("t0", Some(mac)), nic("t1", None)], Some("vm"))
        .unwrap_err()
        .to_string();
    assert!(clash.contains("0 and 1") && clash.contains(&mac_text(mac)), "{clash}");
}

/// Where the code of [`kernel`] is: in the file, in memory, and by its virtual address.
const CODE: (u64, u64, u64) = (0x1000, 0x10_0000, 0xffff_ffff_8000_0000);

/// A vmlinux of one function, which begins by a PUSH of R14.
fn kernel(function: &[u8]) -> Vec<u8> {
    let (offset, physical, address) = CODE;
    let code = [0x41, 0x56, 0x0f, 0x31, 0xc3];
    let names = [&[0], function, &[0]].concat();
    let symbols = [&[1, 0, 0, 0, 0x12, 0, 1, 0][..], &address.to_le_bytes(), &[0; 8]].concat();
    let mut file = vec![0; offset as usize];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    // An executable for x86-64 with one program header and four section headers, none of which has a name.
    for (at, value) in [(16, 2u16), (18, 62), (54, 56), (56, 1), (58, 64), (60, 4)] {
        put(at, &value.to_le_bytes());
    }
    for (at, value) in [(24, physical), (32, 64), (40, 0x200)] {
        put(at, &value.to_le_bytes());
    }
    let size = code.len() as u64;
    put(64, &[1, 0, 0, 0, 5, 0, 0, 0]);
    for (index, value) in [offset, address, physical, size, size, 0x1000].iter().enumerate() {
        put(72 + index * 8, &value.to_le_bytes());
    }
    for (index, kind, flags, address, at, size, link, entry) in [
        (1, 1u32, 6u64, address, offset, size, 0u32, 0u64),
        (2, 2, 0, 0, 0x400, symbols.len() as u64, 3, 24),
        (3, 3, 0, 0, 0x800, names.len() as u64, 0, 0),
    ] {
        let header = 0x200 + index * 64;
        put(header + 4, &kind.to_le_bytes());
        for (field, value) in [flags, address, at, size].iter().enumerate() {
            put(header + 8 + field * 8, &value.to_le_bytes());
        }
        put(header + 40, &link.to_le_bytes());
        put(header + 56, &entry.to_le_bytes());
    }
    put(0x400, &symbols);
    put(0x800, &names);
    file.extend(code);
    file
}

/// The configuration's trap, and the code's first bytes in memory, of a machine that was booted.
fn booted(kernel: &[u8], model_revision: u32) -> (u64, [u8; 5]) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), kernel).unwrap();
    let started = boot(&BootOptions {
        kernel: Kernel::File(file.path().into()),
        initrd: None,
        first_words: String::new(),
        cmdline: String::new(),
        memory_mib: 16,
        disks: Vec::new(),
        nics: Vec::new(),
        name: None,
        model_revision,
        acpi: Acpi::Off,
        guarded: false,
        syscalls_fault: false,
    })
    .unwrap();
    assert_eq!(started.notes, Vec::<String>::new());
    let mut page = [0; PAGE_SIZE];
    started.machine.memory().read_page(PageNumber::of(CODE.1), &mut page);
    (started.machine.config().module_trap, std::array::from_fn(|at| page[at]))
}

#[test]
fn a_kernel_that_takes_modules_has_the_trap_from_its_revision_on() {
    if let Err(error) = lockstep_vmm::cpu::vm::open() {
        let required = std::env::var("LOCKSTEP_REQUIRE_KVM");
        assert_ne!(required.as_deref(), Ok("1"), "{error}");
        crate::tell!("SKIPPED: {error}");
        return;
    }
    let code = [0x41, 0x56, 0xe5, 0xa8, 0xc3];
    let takes = kernel(b"module_finalize");
    assert_eq!(
        booted(&takes, MODULES_REVISION),
        (CODE.2, [0xe7, 0xae, 0xe5, 0xa8, 0xc3])
    );
    assert_eq!(booted(&takes, MODULES_REVISION - 1), (0, code));
    assert_eq!(booted(&kernel(b"module_other"), MODULES_REVISION), (0, code));
}
