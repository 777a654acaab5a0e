use super::*;
use crate::loader::kallsyms::tests::{LAYOUTS, table};
use crate::loader::tests::{AX, TEXT, TestSection, WA, ram, read, vmlinux};

/// As GCC and ftrace have it, from Debian's kernels.
const WITH_FENTRY: &[u8] = &[
    0xe8, 0x1b, 0x02, 0x00, 0x00, // call __fentry__
    0x55, // push rbp
    0x48, 0x89, 0xe5, // mov rbp, rsp
    0x41, 0x57, // push r15
    0x41, 0x56, // push r14
    0xc3,
];

const WITH_ENDBR: &[u8] = &[
    0xf3, 0x0f, 0x1e, 0xfa, // endbr64
    0xe8, 0, 0, 0, 0, // call __fentry__
    0x0f, 0xb7, 0x47, 0x3e, // movzx eax, word ptr [rdi + 0x3e]
    0x49, 0x89, 0xd0, // mov r8, rdx
    0x41, 0x54, // push r12
    0xc3,
];

const FUNCTION_AT: usize = 0x40;

/// A kernel whose function has this beginning.
fn kernel(beginning: &[u8], rodata: &[u8], functions: &[u64], name: &str) -> Vec<u8> {
    let mut content = vec![0x90; FUNCTION_AT];
    content.extend(beginning);
    let section = |name, flags, content| TestSection { name, flags, content };
    vmlinux(
        &[section(name, AX, &content), section(".rodata", WA, rodata)],
        functions,
        true,
    )
}

fn found(kernel: &[u8]) -> Result<Place, NoPlace> {
    find(&Vmlinux::parse(kernel).unwrap())
}

fn place(offset: usize, reg: u8) -> Place {
    Place {
        vaddr: TEXT + (FUNCTION_AT + offset) as u64,
        paddr: 0x0100_0000 + (FUNCTION_AT + offset) as u64,
        reg,
    }
}

fn symbols(name: &str) -> Vec<(String, u64)> {
    vec![("T_text".into(), TEXT), (format!("t{name}"), TEXT + FUNCTION_AT as u64)]
}

#[test]
fn the_place_is_found_by_the_files_symbols() {
    let of = |beginning: &[u8]| found(&kernel(beginning, &[], &[FUNCTION_AT as u64], FUNCTION));
    assert_eq!(of(WITH_FENTRY), Ok(place(9, 15)));
    assert_eq!(of(WITH_ENDBR), Ok(place(16, 12)));
    let other = kernel(WITH_FENTRY, &[], &[FUNCTION_AT as u64], ".text");
    assert_eq!(found(&other), Err(NoPlace::NoModules));
    // Of a file that has lost some of them, by its table.
    let table = table(&symbols(FUNCTION), LAYOUTS[0], true);
    let lost = kernel(WITH_FENTRY, &table, &[FUNCTION_AT as u64], ".text");
    assert_eq!(found(&lost), Ok(place(9, 15)));
}

#[test]
fn the_place_is_found_by_the_kernels_own_table() {
    for layout in LAYOUTS {
        let of = |name: &str| found(&kernel(WITH_ENDBR, &table(&symbols(name), layout, true), &[], ".text"));
        assert_eq!(of(FUNCTION), Ok(place(16, 12)), "{layout:?}");
        assert_eq!(of("module_frob"), Err(NoPlace::NoModules), "{layout:?}");
    }
    assert_eq!(
        found(&kernel(WITH_ENDBR, &[0; 4096], &[], ".text")),
        Err(NoPlace::NoSymbols)
    );
}

#[test]
fn a_function_that_begins_otherwise_has_no_place() {
    let of = |beginning: &[u8]| found(&kernel(beginning, &[], &[FUNCTION_AT as u64], FUNCTION));
    for beginning in [
        &[0xc3, 0x41, 0x57][..],               // ret
        &[0x55, 0x53, 0x41, 0x50, 0xc3],       // push rbp, rbx, r8; ret
        &[0x31, 0xff, 0x41, 0x57],             // xor edi, edi
        &[0x48, 0x89, 0xce, 0x41, 0x57],       // mov rsi, rcx
        &[0x48, 0x83, 0xec, 8, 0x41, 0x57],    // sub rsp, 8
        &[0xeb, 0, 0x41, 0x57],                // jmp
        &[0x55, 0xe8, 0, 0, 0, 0, 0x41, 0x57], // a call that is not the first
        &[0x66, 0x41, 0x57],                   // push r15w
        &[0x41],
    ] {
        let refused = of(beginning);
        assert_eq!(
            refused,
            Err(NoPlace::Beginning(TEXT + FUNCTION_AT as u64)),
            "{beginning:02x?}"
        );
    }
    // In no code.
    let outside = kernel(WITH_ENDBR, &[0; 64], &[0x10_0000], FUNCTION);
    assert!(found(&outside).is_err());
}

#[test]
fn the_trap_has_a_port_of_its_own_for_each_register() {
    for reg in REGISTERS {
        let [opcode, port] = trap(reg);
        assert_eq!((opcode, register_of(port.into())), (OUT_IMM8_EAX, Some(reg)));
        assert!(!crate::loader::trap::is_trap_port(port.into()));
    }
    for port in (0..=u16::MAX).filter(|port| !(0xac..=0xaf).contains(port)) {
        assert_eq!(register_of(port), None);
    }
    let ram = ram(&[(0, 32 << 20)]);
    plant(&ram, &place(9, 15)).unwrap();
    assert_eq!(read(&ram, 0x0100_0048, 4), [0, 0xe7, 0xaf, 0]);
    assert!(
        plant(
            &ram,
            &Place {
                paddr: 32 << 20,
                ..place(9, 15)
            }
        )
        .is_err()
    );
}

/// Distributions' kernels, where there are some: `LOCKSTEP_TEST_KERNEL` (vmlinux or bzImage), or what the tests of an
/// ordinary host leave.
#[test]
fn the_place_is_found_in_distributions_kernels() {
    let stock = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/stock/vmlinuz");
    let named = std::env::var_os("LOCKSTEP_TEST_KERNEL").map(std::path::PathBuf::from);
    let kernels: Vec<_> = named.into_iter().chain([stock]).filter(|path| path.exists()).collect();
    if kernels.is_empty() {
        println!("SKIPPED: no target/stock/vmlinuz and no LOCKSTEP_TEST_KERNEL");
    }
    for path in kernels {
        let file = std::fs::read(path).unwrap();
        let place = found(&crate::loader::vmlinux(&file).unwrap());
        println!("{place:x?}");
        assert!(matches!(place, Ok(_) | Err(NoPlace::NoModules)), "{place:x?}");
    }
}
