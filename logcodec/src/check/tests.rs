//! Each limit: its last allowed value is, and the next one is not.

use bytes::Bytes;
use lockstep_proto::{DiskCompletion, DiskConfig, Frame, MachineConfig, Msr, NicConfig, Tenure, TermBegun};

use super::*;
use crate::limits::*;

mod ends;

const DEVICES: Devices = Devices {
    disks: 2,
    nics: 1,
    keyboard: true,
    power_button: false,
};

fn zeros(n: usize) -> Bytes {
    vec![0; n].into()
}

/// Checks `good`, and that each of `bad` is refused for its own reason: the violation's text has these words in it.
#[allow(clippy::needless_pass_by_value)] // shorter to call
fn turns(good: Turn, bad: Turn, why: &str) {
    turn(&good, DEVICES).unwrap_or_else(|e| panic!("{e}"));
    let error = turn(&bad, DEVICES).expect_err(why).to_string();
    assert!(error.contains(why), "{error} is not about {why}");
}

#[test]
fn clock() {
    let with = |ns| Turn {
        clock: Some(ns),
        ..Turn::default()
    };
    turns(with(MAX_CLOCK_STEP_NS), with(MAX_CLOCK_STEP_NS + 1), "clock step");
}

#[test]
fn frames() {
    let with = |n, nic, bytes| Turn {
        frames: vec![
            Frame {
                nic,
                data: zeros(bytes)
            };
            n
        ],
        ..Turn::default()
    };
    turns(
        with(MAX_NET_FRAMES, 0, 1),
        with(MAX_NET_FRAMES + 1, 0, 1),
        "network frames in a turn",
    );
    turns(
        with(1, 0, MAX_NET_FRAME_BYTES),
        with(1, 0, MAX_NET_FRAME_BYTES + 1),
        "bytes of a network frame",
    );
    turns(with(1, 0, 1), with(1, 1, 1), "network card of a frame");
}

#[test]
fn console() {
    let with = |n| Turn {
        console: zeros(n),
        ..Turn::default()
    };
    turns(with(MAX_CONSOLE_BYTES), with(MAX_CONSOLE_BYTES + 1), "console bytes");
}

#[test]
fn keyboard() {
    let with = |n| Turn {
        keyboard: zeros(n),
        ..Turn::default()
    };
    turns(with(MAX_KEYBOARD_BYTES), with(MAX_KEYBOARD_BYTES + 1), "keyboard bytes");
    let machine = |model_revision| MachineConfig {
        model_revision,
        ..MachineConfig::default()
    };
    assert!(turn(&with(1), Devices::of_machine(&machine(2))).is_ok());
    let error = turn(&with(1), Devices::of_machine(&machine(1))).unwrap_err();
    assert!(error.to_string().contains("without a keyboard"), "{error}");
    assert!(turn(&with(0), Devices::of_machine(&machine(1))).is_ok());
}

#[test]
fn power_button() {
    let pressed = Turn {
        power_button: true,
        ..Turn::default()
    };
    let of = |model_revision| {
        Devices::of_machine(&MachineConfig {
            model_revision,
            ..MachineConfig::default()
        })
    };
    assert!(turn(&pressed, of(4)).is_ok());
    let error = turn(&pressed, of(3)).unwrap_err();
    assert!(error.to_string().contains("power button"), "{error}");
}

#[test]
fn disks() {
    let with = |n, disk, status| Turn {
        disks: vec![
            DiskCompletion {
                disk,
                request: 0,
                status
            };
            n
        ],
        ..Turn::default()
    };
    turns(
        with(MAX_DISK_COMPLETIONS, 0, 0),
        with(MAX_DISK_COMPLETIONS + 1, 0, 0),
        "disk completions",
    );
    turns(with(1, 1, 0), with(1, 2, 0), "disk of a completion");
    turns(
        with(1, 1, MAX_DISK_STATUS),
        with(1, 1, MAX_DISK_STATUS + 1),
        "status of a disk request",
    );
}

#[test]
fn entropy() {
    let with = |n, bytes| Turn {
        entropy: vec![zeros(bytes); n],
        ..Turn::default()
    };
    turns(
        with(MAX_ENTROPY_ANSWERS, 1),
        with(MAX_ENTROPY_ANSWERS + 1, 1),
        "entropy answers",
    );
    turns(
        with(1, MAX_ENTROPY_BYTES),
        with(1, MAX_ENTROPY_BYTES + 1),
        "bytes of an entropy answer",
    );
}

#[test]
fn forced_stops() {
    let with = |vcpu, pages| Turn {
        forced: Some(Forced {
            vcpu,
            pages,
            slice_ns: 0,
        }),
        ..Turn::default()
    };
    let whole = VcpuState::default;
    turns(with(Some(whole()), 0), with(None, 0), "no vCPU state");
    let most = (MAX_CHUNKS * MAX_CHUNK_PAGES) as u32;
    turns(
        with(Some(whole()), most),
        with(Some(whole()), most + 1),
        "pages of a delta",
    );
    let msrs = |n| {
        with(
            Some(VcpuState {
                msrs: vec![Msr::default(); n],
                ..whole()
            }),
            0,
        )
    };
    turns(msrs(MAX_MSRS), msrs(MAX_MSRS + 1), "MSRs");
    let parts: [fn(&mut VcpuState) -> &mut Bytes; 6] = [
        |v| &mut v.regs,
        |v| &mut v.sregs,
        |v| &mut v.xsave,
        |v| &mut v.xcrs,
        |v| &mut v.debugregs,
        |v| &mut v.events,
    ];
    for part in parts {
        let of = |n| {
            let mut vcpu = whole();
            *part(&mut vcpu) = zeros(n);
            with(Some(vcpu), 0)
        };
        turns(
            of(MAX_VCPU_PART_BYTES),
            of(MAX_VCPU_PART_BYTES + 1),
            "a part of the vCPU state",
        );
    }
}

#[test]
fn epochs() {
    let with = |digest, pages, frame_gaps, page_hashes| {
        let epoch = Epoch {
            digest: zeros(digest),
            pages,
            frame_gaps,
            page_hashes,
            ..Epoch::default()
        };
        Turn {
            epoch: Some(epoch),
            ..Turn::default()
        }
    };
    for wrong in [0, 15, 17] {
        turns(
            with(16, 5, vec![], vec![]),
            with(wrong, 5, vec![], vec![]),
            "epoch's digest",
        );
    }
    let good = || with(16, 2, vec![0, 1], vec![1, 1]);
    turns(good(), with(16, 2, vec![0, 1], vec![1]), "one hash for each page");
    turns(good(), with(16, 3, vec![0, 1], vec![1, 1]), "not all its pages");
    turns(good(), with(16, 2, vec![5, 0], vec![1, 1]), "ascending order");
    let top = MAX_FRAME_NUMBER - 1;
    turns(
        with(16, 1, vec![top], vec![1]),
        with(16, 1, vec![top + 1], vec![1]),
        "page frame number",
    );
    turns(
        good(),
        with(16, 2, vec![u64::MAX, u64::MAX], vec![1, 1]),
        "page frame number",
    );
    let detail = |n: usize| with(16, n as u32, vec![1; n], vec![1; n]);
    turns(
        detail(MAX_EPOCH_DETAIL),
        detail(MAX_EPOCH_DETAIL + 1),
        "pages in an epoch's detail",
    );
}

fn batches(good: &Batch, bad: &Batch, why: &str) {
    batch(good, DEVICES).unwrap_or_else(|e| panic!("{e}"));
    let error = batch(bad, DEVICES).expect_err(why).to_string();
    assert!(error.contains(why), "{error} is not about {why}");
}

#[test]
fn batches_as_a_whole() {
    let with = |last_stop, digest, turns| Batch {
        first_stop: 10,
        last_stop,
        digest: zeros(digest),
        turns,
        ..Batch::default()
    };
    let gaps = |gaps: &[u32]| {
        gaps.iter()
            .map(|&gap| Turn { gap, ..Turn::default() })
            .collect::<Vec<_>>()
    };
    batches(&with(10, 16, vec![]), &with(9, 16, vec![]), "ends before it begins");
    batches(&with(10, 16, vec![]), &with(10, 0, vec![]), "digest");
    batches(
        &with(15, 16, gaps(&[2, 0, 3])),
        &with(14, 16, gaps(&[2, 0, 3])),
        "gaps in a batch",
    );
    let far = |last_stop| with(last_stop, 16, gaps(&[u32::MAX; 3]));
    batches(
        &far(10 + 3 * u64::from(u32::MAX)),
        &far(9 + 3 * u64::from(u32::MAX)),
        "gaps in a batch",
    );
    let term = |stop, why: usize| Batch {
        terms: vec![TermBegun {
            stop,
            why: "x".repeat(why),
            ..TermBegun::default()
        }],
        ..with(12, 16, vec![])
    };
    batches(&term(10, 0), &term(9, 0), "outside of its batch");
    batches(&term(12, MAX_TEXT_BYTES), &term(13, 0), "outside of its batch");
    batches(&term(12, 0), &term(12, MAX_TEXT_BYTES + 1), "a term's reason");
    let terms = |n| Batch {
        terms: vec![term(12, 0).terms[0].clone(); n],
        ..with(12, 16, vec![])
    };
    batches(&terms(MAX_TERMS), &terms(MAX_TERMS + 1), "terms in a batch");
    let many = |n| with(10, 16, vec![Turn::default(); n]);
    batches(&many(MAX_TURNS), &many(MAX_TURNS + 1), "turns in a batch");
    let bad = Turn {
        console: zeros(MAX_CONSOLE_BYTES + 1),
        ..Turn::default()
    };
    batches(&many(3), &with(10, 16, vec![Turn::default(), bad]), "console bytes");
}

fn who() -> Identity {
    Identity {
        machine: Some(MachineConfig::default()),
        start_chain: zeros(16),
        ..Identity::default()
    }
}

fn refused(why: &str, change: impl FnOnce(&mut Identity, &mut MachineConfig)) {
    let mut bad = who();
    let mut machine = MachineConfig::default();
    change(&mut bad, &mut machine);
    bad.machine = bad.machine.map(|_| machine);
    let error = identity(&bad).expect_err(why).to_string();
    assert!(error.contains(why), "{error} is not about {why}");
    let header = SegmentHeader {
        identity: Some(bad),
        number: 0,
        first_stop: 0,
        chain: zeros(16),
    };
    assert!(segment_header(&header).is_err());
}

#[test]
fn identities() {
    let long = || "x".repeat(MAX_TEXT_BYTES + 1);
    let disk = |serial: &str| DiskConfig {
        serial: serial.into(),
        ..DiskConfig::default()
    };
    let nic = |bytes| NicConfig {
        mac: zeros(bytes),
        ..NicConfig::default()
    };
    identity(&who()).unwrap();
    let full = MachineConfig {
        memory_bytes: MAX_FRAME_NUMBER * 4096,
        cmdline: "x".repeat(MAX_TEXT_BYTES),
        disks: vec![disk("12345678901234567890"); MAX_DEVICES],
        nics: vec![nic(6); MAX_DEVICES],
        ..MachineConfig::default()
    };
    let tenure = |machine: usize, node: usize| Identity {
        tenure: Some(Tenure {
            machine: "x".repeat(machine),
            node: "x".repeat(node),
            term: u64::MAX,
            restarts: u64::MAX,
        }),
        ..who()
    };
    identity(&tenure(MAX_TEXT_BYTES, MAX_TEXT_BYTES)).unwrap();
    assert!(identity(&tenure(MAX_TEXT_BYTES + 1, 1)).is_err());
    assert!(identity(&tenure(1, MAX_TEXT_BYTES + 1)).is_err());
    identity(&Identity {
        machine: Some(full),
        kernel_digest: zeros(16),
        kernel_build_id: zeros(MAX_BUILD_ID_BYTES),
        ..who()
    })
    .unwrap();

    refused("no machine", |who, _| who.machine = None);
    refused("program's name", |who, _| who.program = long());
    refused("host class", |who, _| who.host_class = long());
    refused("kernel's path", |who, _| who.kernel_path = long());
    refused("kernel's build id", |who, _| {
        who.kernel_build_id = zeros(MAX_BUILD_ID_BYTES + 1);
    });
    refused("command line", |_, machine| machine.cmdline = long());
    refused("CPU profile", |_, machine| machine.cpu_profile = long());
    refused("disks", |_, machine| machine.disks = vec![disk(""); MAX_DEVICES + 1]);
    refused("network cards", |_, machine| {
        machine.nics = vec![nic(6); MAX_DEVICES + 1];
    });
    refused("disk digests", |who, _| {
        who.disk_digests = vec![zeros(16); MAX_DEVICES + 1];
    });
    refused("multiple of 4 KiB", |_, machine| machine.memory_bytes = 4097);
    refused("guest memory", |_, machine| {
        machine.memory_bytes = (MAX_FRAME_NUMBER + 1) * 4096;
    });
    refused("serial", |_, machine| {
        machine.disks = vec![disk("123456789012345678901")];
    });
    refused("MAC address", |_, machine| machine.nics = vec![nic(5)]);
    refused("MTU", |_, machine| {
        machine.nics = vec![NicConfig { mtu: 1279, ..nic(6) }];
    });
    refused("kernel's digest", |who, _| who.kernel_digest = zeros(15));
    refused("initrd's digest", |who, _| who.initrd_digest = zeros(17));
    refused("disk's digest", |who, _| who.disk_digests = vec![zeros(16), zeros(1)]);
    refused("start snapshot's digest", |who, _| who.start_digest = zeros(1));
    refused("chain at the start", |who, _| who.start_chain = Bytes::new());
}

#[test]
fn segment_headers() {
    let good = SegmentHeader {
        identity: Some(who()),
        number: MAX_SEGMENT,
        first_stop: u64::MAX,
        chain: zeros(16),
    };
    segment_header(&good).unwrap();
    assert!(
        segment_header(&SegmentHeader {
            identity: None,
            ..good.clone()
        })
        .is_err()
    );
    assert!(
        segment_header(&SegmentHeader {
            number: MAX_SEGMENT + 1,
            ..good.clone()
        })
        .is_err()
    );
    assert!(
        segment_header(&SegmentHeader {
            chain: zeros(15),
            ..good
        })
        .is_err()
    );
}

#[test]
fn a_trap_for_modules() {
    let of = |model_revision| {
        let machine = MachineConfig {
            model_revision,
            module_trap: 0xffff_ffff_8100_0000,
            ..MachineConfig::default()
        };
        identity(&Identity {
            machine: Some(machine),
            ..who()
        })
    };
    of(5).unwrap();
    let error = of(4).expect_err("an older machine").to_string();
    assert!(error.contains("a trap for modules"), "{error}");
}

#[test]
fn devices_are_the_machines() {
    assert_eq!(Devices::of(&Identity::default()), Devices::NONE);
    let machine = MachineConfig {
        disks: vec![DiskConfig::default(); 3],
        model_revision: 2,
        ..MachineConfig::default()
    };
    assert_eq!(
        Devices::of(&Identity {
            machine: Some(machine),
            ..who()
        }),
        Devices {
            disks: 3,
            nics: 0,
            keyboard: true,
            power_button: false,
        }
    );
}
