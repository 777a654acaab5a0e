use super::*;

const BASE: u64 = 0xffff_ffff_8100_0000;

/// Where the parts stand, as kernels of some time have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// 4.6 to 6.1.
    Early,
    /// 6.2 to 6.4, and later releases of 6.1.
    Seqs,
    /// From 6.5 on.
    Late,
}

pub(crate) const LAYOUTS: [Layout; 3] = [Layout::Early, Layout::Seqs, Layout::Late];

/// A table of these symbols (kind and name, address; ascending), with something before and behind it.
pub(crate) fn table(symbols: &[(String, u64)], layout: Layout, percpu: bool) -> Vec<u8> {
    table_with(symbols, layout, percpu, 0)
}

/// The same, with markers that are wrong by so much.
fn table_with(symbols: &[(String, u64)], layout: Layout, percpu: bool, wrong: u32) -> Vec<u8> {
    // Letters, digits and the like stand for themselves; some more tokens are pairs.
    let pairs = ["__", "mod", "T_", "final"];
    let unused = |token: u8| !(token.is_ascii_alphanumeric() || matches!(token, b'_' | b'.' | b'$'));
    let free: Vec<u8> = (0..=255).filter(|token| unused(*token)).collect();
    let spell = |name: &str| {
        let mut bytes = Vec::new();
        let mut rest = name;
        while let Some(first) = rest.bytes().next() {
            if let Some(pair) = pairs.iter().position(|pair| rest.starts_with(pair)) {
                bytes.push(free[pair]);
                rest = &rest[pairs[pair].len()..];
            } else {
                bytes.push(first);
                rest = &rest[1..];
            }
        }
        bytes
    };
    let mut offsets = Vec::new();
    for (_, address) in symbols {
        let offset = match address.checked_sub(BASE) {
            None => *address as u32,
            Some(distance) if percpu => !(distance as u32),
            Some(distance) => distance as u32,
        };
        offsets.extend(offset.to_le_bytes());
    }
    let (mut names, mut markers) = (Vec::new(), Vec::new());
    for (number, (name, _)) in symbols.iter().enumerate() {
        if number % MARKED == 0 {
            markers.extend((names.len() as u32 + wrong).to_le_bytes());
        }
        let spelled = spell(name);
        match spelled.len() {
            length @ 0..=0x7f => names.push(length as u8),
            length => names.extend([(length & 0x7f | 0x80) as u8, (length >> 7) as u8]),
        }
        names.extend(spelled);
    }
    let (mut tokens, mut index) = (Vec::new(), Vec::new());
    for token in 0..=255u8 {
        index.extend((tokens.len() as u16).to_le_bytes());
        match free.iter().position(|unused| *unused == token) {
            Some(pair) => tokens.extend(pairs.get(pair).unwrap_or(&"").bytes()),
            None => tokens.push(token),
        }
        tokens.push(0);
    }
    let seqs: Vec<u8> = (0..symbols.len())
        .flat_map(|number| [0, 0x10, number as u8 | 1])
        .collect();
    let count = (symbols.len() as u32).to_le_bytes().to_vec();
    let base = BASE.to_le_bytes().to_vec();
    let parts = match layout {
        Layout::Early => vec![offsets, base, count, names, markers, tokens, index],
        Layout::Seqs => vec![offsets, base, count, names, markers, seqs, tokens, index],
        Layout::Late => vec![count, names, markers, tokens, index, offsets, base, seqs],
    };
    // Of other tables: a count that leads nowhere, digits that are no tokens.
    let mut bytes = b"3\0\0\0\0\0\0\0abcdefgh".to_vec();
    bytes.extend(DIGITS);
    for part in parts {
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes.extend(part);
    }
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes.extend([0xa5; 64]);
    bytes
}

fn symbols(percpu: bool) -> Vec<(String, u64)> {
    let mut symbols = Vec::new();
    if percpu {
        symbols.extend((0..9).map(|number| (format!("Dper_cpu_{number}"), number * 64)));
    }
    symbols.push(("T_text".into(), BASE));
    symbols.extend((1..700).map(|number| (format!("tf{number}.isra.0"), BASE + number * 16)));
    symbols.push((format!("t{}", "long_name".repeat(40)), BASE + 0x1_0000));
    symbols.push(("T__pfx_module_finalize".into(), BASE + 0x2_0000));
    symbols.push(("Tmodule_finalize".into(), BASE + 0x2_0010));
    symbols.push(("Dmodule_finalize_data".into(), BASE + 0x100_0000));
    symbols.push(("dtwice".into(), BASE + 0x100_0008));
    symbols.push(("ttwice".into(), BASE + 0x100_0010));
    symbols.push(("ttwice".into(), BASE + 0x100_0018));
    symbols
}

fn is_kernel(address: u64) -> bool {
    (BASE..BASE + 0x200_0000).contains(&address)
}

#[test]
fn functions_are_found_in_every_layout() {
    for layout in LAYOUTS {
        for percpu in [false, true] {
            let bytes = table(&symbols(percpu), layout, percpu);
            let table = Kallsyms::find(&bytes, is_kernel).unwrap_or_else(|| panic!("{layout:?} {percpu}"));
            assert_eq!(
                table.function("module_finalize"),
                Some(BASE + 0x2_0010),
                "{layout:?} {percpu}"
            );
            assert_eq!(table.function("_text"), Some(BASE));
            assert_eq!(table.function("f699.isra.0"), Some(BASE + 699 * 16));
            assert_eq!(table.function(&"long_name".repeat(40)), Some(BASE + 0x1_0000));
            assert_eq!(table.function("module_finalize_data"), None, "no function");
            assert_eq!(table.function("twice"), None, "two of them");
            assert_eq!(table.function("per_cpu_1"), None);
            assert_eq!(table.function(""), None);
        }
    }
}

#[test]
fn what_is_no_table_is_none() {
    for layout in LAYOUTS {
        let good = table(&symbols(true), layout, true);
        assert!(
            Kallsyms::find(&good, |_| false).is_none(),
            "a base that is not the kernel's"
        );
        // Cut anywhere, and with any byte changed: no panic, and no address but the right one or another of the table's.
        for cut in (0..good.len()).step_by(97) {
            let _ = Kallsyms::find(&good[..cut], is_kernel).and_then(|table| table.function("module_finalize"));
        }
        for at in (0..good.len()).step_by(31) {
            let mut bad = good.clone();
            bad[at] ^= 0x81;
            let found = Kallsyms::find(&bad, is_kernel).and_then(|table| table.function("module_finalize"));
            assert!(found.is_none_or(is_kernel), "{at:#x}");
        }
    }
    for layout in LAYOUTS {
        let wrong = table_with(&symbols(true), layout, true, 1);
        assert!(Kallsyms::find(&wrong, is_kernel).is_none(), "markers that do not agree");
    }
    assert!(Kallsyms::find(&[], is_kernel).is_none());
    assert!(Kallsyms::find(DIGITS, is_kernel).is_none());
}

/// Whoever makes up a kernel does not hold up its start.
#[test]
fn a_kernel_full_of_counts_is_given_up() {
    let mut bytes = Vec::new();
    // Names of 15 tokens, each with a count of names in its last half. There are no markers behind them.
    while bytes.len() < 8 << 20 {
        bytes.extend([15, b'A', 1, 1, 1, 1, 1, 1, 0, 0, 4, 0, 0, 0, 0, 0]);
    }
    let tokens = table(&[("T_text".into(), BASE)], Layout::Late, false);
    let begin = tokens.len() - tokens.len() % 8;
    bytes.extend(&tokens[..begin]);
    let began = std::time::Instant::now();
    assert!(Kallsyms::find(&bytes, |_| false).is_none());
    assert!(began.elapsed().as_secs() < 60);
}
