//! Two turns, value by value.

use std::cmp::Ordering;
use std::fmt::Write;

use lockstep_node::history::NAMES;
use lockstep_proto::quantity::PageNumber;
use lockstep_proto::{DiskCompletion, Epoch, Forced, Frame, Turn, VcpuState};
use lockstep_replay::feed::Placed;

use super::Differs;
use crate::symbols::Symbols;

const NONE: &str = "none";
/// Bytes that are shown from the first that differs on.
const SHOWN: usize = 12;
/// Pages that are named one by one.
const NAMED_PAGES: usize = 32;
const PAGE: usize = 4096;

/// What differs between two turns; nothing where they are equal.
pub fn compare(one: &Placed, two: &Placed, symbols: Option<&Symbols>) -> Vec<Differs> {
    let mut values = Vec::new();
    if one.stop != two.stop {
        values.push(Differs::new("stop", one.stop.to_string(), two.stop.to_string()));
        return values;
    }
    let (a, b) = (&one.turn, &two.turn);
    number(&mut values, "clock step, ns", a.clock, b.clock);
    if a.random != b.random {
        let [a, b] = [a.random, b.random].map(|random| random.map_or(NONE.into(), |random| format!("{random:#018x}")));
        values.push(Differs::new("random", a, b));
    }
    frames(&mut values, &a.frames, &b.frames);
    bytes(&mut values, "typed bytes", &a.console, &b.console);
    bytes(&mut values, "the keyboard's bytes", &a.keyboard, &b.keyboard);
    if a.power_button != b.power_button {
        let [a, b] = [a, b].map(|turn| if turn.power_button { "pressed" } else { NONE }.to_owned());
        values.push(Differs::new("the power button", a, b));
    }
    disks(&mut values, a, b);
    for index in 0..a.entropy.len().max(b.entropy.len()) {
        let [a, b] = [a, b].map(|turn| turn.entropy.get(index));
        maybe_bytes(&mut values, &format!("entropy answer {index}"), a, b);
    }
    forced(&mut values, a.forced.as_ref(), b.forced.as_ref(), symbols);
    pages(&mut values, &one.pages, &two.pages);
    epochs(&mut values, a.epoch.as_ref(), b.epoch.as_ref());
    values
}

fn number(values: &mut Vec<Differs>, name: &str, a: Option<u64>, b: Option<u64>) {
    if a != b {
        let [a, b] = [a, b].map(|value| value.map_or(NONE.into(), |value| value.to_string()));
        values.push(Differs::new(name, a, b));
    }
}

fn frames(values: &mut Vec<Differs>, a: &[Frame], b: &[Frame]) {
    for index in 0..a.len().max(b.len()) {
        let (one, two) = (a.get(index), b.get(index));
        let name = format!("frame {index}");
        number(
            values,
            &format!("{name}, network card"),
            one.map(|frame| frame.nic.into()),
            two.map(|frame| frame.nic.into()),
        );
        maybe_bytes(
            values,
            &name,
            one.map(|frame| &frame.data),
            two.map(|frame| &frame.data),
        );
    }
}

fn disks(values: &mut Vec<Differs>, a: &Turn, b: &Turn) {
    let text = |done: Option<&DiskCompletion>| {
        done.map_or(NONE.into(), |done| {
            format!("disk {}, request {}, status {}", done.disk, done.request, done.status)
        })
    };
    for index in 0..a.disks.len().max(b.disks.len()) {
        let (one, two) = (a.disks.get(index), b.disks.get(index));
        if one != two {
            values.push(Differs::new(format!("disk completion {index}"), text(one), text(two)));
        }
    }
}

fn maybe_bytes<T: AsRef<[u8]>>(values: &mut Vec<Differs>, name: &str, a: Option<T>, b: Option<T>) {
    match (&a, &b) {
        (Some(a), Some(b)) => bytes(values, name, a.as_ref(), b.as_ref()),
        (None, None) => {}
        _ => {
            let [a, b] =
                [a, b].map(|bytes| bytes.map_or(NONE.into(), |bytes| format!("{} bytes", bytes.as_ref().len())));
            values.push(Differs::new(name, a, b));
        }
    }
}

fn bytes(values: &mut Vec<Differs>, name: &str, a: &[u8], b: &[u8]) {
    if a.len() != b.len() {
        let [a, b] = [a, b].map(|bytes| bytes.len().to_string());
        values.push(Differs::new(format!("{name}, length"), a, b));
    }
    let Some(first) = first_difference(a, b) else { return };
    let count = a.iter().zip(b).filter(|(a, b)| a != b).count();
    let name = format!("{name}, from byte {first} ({count} differ)");
    values.push(Differs::new(name, hex(a, first), hex(b, first)));
}

fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    a.iter().zip(b).position(|(a, b)| a != b)
}

fn hex(bytes: &[u8], from: usize) -> String {
    let shown = &bytes[from..bytes.len().min(from + SHOWN)];
    shown.iter().fold(String::new(), |mut text, byte| {
        // A string takes all that is written.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn forced(values: &mut Vec<Differs>, a: Option<&Forced>, b: Option<&Forced>, symbols: Option<&Symbols>) {
    let (Some(a), Some(b)) = (a, b) else {
        if a.is_some() != b.is_some() {
            let [a, b] = [a, b].map(|forced| if forced.is_some() { "forced" } else { "natural" });
            values.push(Differs::new("stop", a, b));
        }
        return;
    };
    // The host time of the slice is no state of the machine.
    let (none, also_none) = (VcpuState::default(), VcpuState::default());
    vcpu(
        values,
        a.vcpu.as_ref().unwrap_or(&none),
        b.vcpu.as_ref().unwrap_or(&also_none),
        symbols,
    );
}

fn vcpu(values: &mut Vec<Differs>, a: &VcpuState, b: &VcpuState, symbols: Option<&Symbols>) {
    match (general(&a.regs), general(&b.regs)) {
        (Some(a), Some(b)) => {
            for ((name, a), b) in NAMES.iter().zip(a).zip(b) {
                if a != b {
                    values.push(register(name, a, b, symbols));
                }
            }
        }
        _ => bytes(values, "general registers", &a.regs, &b.regs),
    }
    number(values, "mp_state", Some(a.mp_state.into()), Some(b.mp_state.into()));
    for (name, a, b) in [
        ("control and segment registers", &a.sregs, &b.sregs),
        ("XSAVE area", &a.xsave, &b.xsave),
        ("extended control registers", &a.xcrs, &b.xcrs),
        ("debug registers", &a.debugregs, &b.debugregs),
        ("vCPU events", &a.events, &b.events),
    ] {
        bytes(values, name, a, b);
    }
    for index in 0..a.msrs.len().max(b.msrs.len()) {
        let (one, two) = (a.msrs.get(index), b.msrs.get(index));
        if one != two {
            let text = |msr: Option<&lockstep_proto::Msr>| {
                msr.map_or(NONE.into(), |msr| format!("{:#x} in {:#x}", msr.value, msr.index))
            };
            values.push(Differs::new(format!("MSR {index}"), text(one), text(two)));
        }
    }
}

/// A general register that differs, with symbols where there are some.
pub fn register(name: &str, a: u64, b: u64, symbols: Option<&Symbols>) -> Differs {
    let text = |value: u64| match symbols.and_then(|symbols| symbols.name(value)) {
        Some(symbol) => format!("{value:016x} {symbol}"),
        None => format!("{value:016x}"),
    };
    Differs::new(name, text(a), text(b))
}

/// The general registers of `struct kvm_regs`.
fn general(regs: &[u8]) -> Option<[u64; NAMES.len()]> {
    let (words, []) = regs.as_chunks::<8>() else {
        return None;
    };
    let words: &[[u8; 8]; NAMES.len()] = words.try_into().ok()?;
    Some(words.map(u64::from_le_bytes))
}

type Pages = (Vec<PageNumber>, Vec<u8>);

/// The pages of two deltas: frame numbers ascending, and contents.
fn pages(values: &mut Vec<Differs>, a: &Pages, b: &Pages) {
    let (mut i, mut j, mut more) = (0, 0, 0usize);
    let mut named = 0;
    let mut push = |name: String, a: String, b: String| {
        if named < NAMED_PAGES {
            values.push(Differs::new(name, a, b));
            named += 1;
        } else {
            more += 1;
        }
    };
    loop {
        let order = match (a.0.get(i), b.0.get(j)) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) => a.cmp(b),
        };
        match order {
            Ordering::Less => {
                push(page_name(a.0[i]), "written".into(), "not written".into());
                i += 1;
            }
            Ordering::Greater => {
                push(page_name(b.0[j]), "not written".into(), "written".into());
                j += 1;
            }
            Ordering::Equal => {
                let (one, two) = (content(a, i), content(b, j));
                if let Some(first) = first_difference(one, two) {
                    let count = one.iter().zip(two).filter(|(a, b)| a != b).count();
                    let name = format!("{}+{first:#x} ({count} differ)", page_name(a.0[i]));
                    push(name, hex(one, first), hex(two, first));
                }
                i += 1;
                j += 1;
            }
        }
    }
    if more > 0 {
        values.push(Differs::new(format!("and {more} pages more"), "", ""));
    }
}

fn page_name(frame: PageNumber) -> String {
    format!("page {:#x}", frame.address())
}

fn content(pages: &Pages, index: usize) -> &[u8] {
    pages.1.get(index * PAGE..(index + 1) * PAGE).unwrap_or_default()
}

fn epochs(values: &mut Vec<Differs>, a: Option<&Epoch>, b: Option<&Epoch>) {
    if a == b {
        return;
    }
    let (Some(a), Some(b)) = (a, b) else {
        let [a, b] = [a, b].map(|epoch| if epoch.is_some() { "ends here" } else { NONE });
        values.push(Differs::new("epoch", a, b));
        return;
    };
    if a.digest != b.digest {
        let [a, b] = [a, b].map(|epoch| format!("{:x}", epoch.digest));
        values.push(Differs::new("epoch's digest", a, b));
    }
    number(
        values,
        "epoch's dirty pages",
        Some(a.pages.into()),
        Some(b.pages.into()),
    );
    let [one, two] = [a, b].map(page_hashes);
    for (frame, hash) in one.iter().take(NAMED_PAGES) {
        let other = two.iter().find(|other| other.0 == *frame);
        if let Some((_, other)) = other.filter(|other| other.1 != *hash) {
            values.push(Differs::new(
                format!("hash of {}", page_name(*frame)),
                format!("{hash:08x}"),
                format!("{other:08x}"),
            ));
        }
    }
}

/// An epoch's pages and their hashes, where the log has them.
fn page_hashes(epoch: &Epoch) -> Vec<(PageNumber, u32)> {
    let frames = epoch.frame_gaps.iter().scan(PageNumber::FIRST, |frame, gap| {
        *frame = frame.plus(*gap);
        Some(*frame)
    });
    frames.zip(epoch.page_hashes.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use lockstep_proto::VcpuState;
    use lockstep_proto::quantity::StopNumber;

    use super::*;

    fn placed(turn: Turn) -> Placed {
        Placed {
            stop: StopNumber::new(7),
            turn,
            pages: (Vec::new(), Vec::new()),
        }
    }

    fn shown(one: &Placed, two: &Placed) -> Vec<(String, String, String)> {
        let values = compare(one, two, None);
        values
            .into_iter()
            .map(|value| (value.name, value.expected, value.actual))
            .collect()
    }

    fn row(name: &str, expected: &str, actual: &str) -> (String, String, String) {
        (name.into(), expected.into(), actual.into())
    }

    #[test]
    fn equal_turns_have_no_difference() {
        let turn = Turn {
            clock: Some(5),
            console: b"ls"[..].into(),
            ..Turn::default()
        };
        // Gaps depend on where batches end.
        let moved = Turn { gap: 3, ..turn.clone() };
        assert_eq!(shown(&placed(turn), &placed(moved)), []);
    }

    #[test]
    fn each_value_that_differs_is_named() {
        let frame = |data: &[u8]| Frame {
            nic: 0,
            data: data.to_vec().into(),
        };
        let one = Turn {
            clock: Some(5),
            random: Some(1),
            frames: vec![frame(b"abcdef")],
            console: b"ls"[..].into(),
            disks: vec![DiskCompletion::default()],
            ..Turn::default()
        };
        let two = Turn {
            clock: Some(6),
            frames: vec![frame(b"abXdeY"), frame(b"z")],
            console: b"l"[..].into(),
            ..Turn::default()
        };
        assert_eq!(
            shown(&placed(one), &placed(two)),
            [
                row("clock step, ns", "5", "6"),
                row("random", "0x0000000000000001", NONE),
                row("frame 0, from byte 2 (2 differ)", "63646566", "58646559"),
                row("frame 1, network card", NONE, "0"),
                row("frame 1", NONE, "1 bytes"),
                row("typed bytes, length", "2", "1"),
                row("disk completion 0", "disk 0, request 0, status 0", NONE),
            ]
        );
    }

    #[test]
    fn deltas_differ_in_registers_and_pages() {
        let forced = |rip: u64| {
            let mut regs = vec![0; NAMES.len() * 8];
            regs[16 * 8..17 * 8].copy_from_slice(&rip.to_le_bytes());
            Turn {
                forced: Some(Forced {
                    vcpu: Some(VcpuState {
                        regs: regs.into(),
                        ..VcpuState::default()
                    }),
                    pages: 2,
                    slice_ns: rip,
                }),
                ..Turn::default()
            }
        };
        let (mut one, mut two) = (placed(forced(0x1000)), placed(forced(0x2000)));
        one.pages = ([1, 3].map(PageNumber::new).to_vec(), vec![0; 2 * PAGE]);
        two.pages = ([3, 4].map(PageNumber::new).to_vec(), vec![0; 2 * PAGE]);
        two.pages.1[5] = 9;
        let nothing = "000000000000000000000000";
        assert_eq!(
            shown(&one, &two),
            [
                row("rip", "0000000000001000", "0000000000002000"),
                row("page 0x1000", "written", "not written"),
                row("page 0x3000+0x5 (1 differ)", nothing, "090000000000000000000000"),
                row("page 0x4000", "not written", "written"),
            ]
        );
    }
}
