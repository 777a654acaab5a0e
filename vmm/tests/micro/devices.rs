//! What devices bring in and give out: entropy, disks, frames, the console; memory written by devices is in every epoch
//! and delta.

use iced_x86::code_asm::*;
use lockstep_proto::quantity::{PageNumber, StopNumber};
use lockstep_proto::{DiskCompletion, DiskConfig, Frame, NicConfig};
use lockstep_vmm::devices::Effect;
use lockstep_vmm::machine::StopKind;

use super::guest::*;
use super::harness::*;
use super::virtio::*;

const QUEUE: u64 = DATA + 0x1000;
const QUEUE2: u64 = DATA + 0x2000;
const BUFFER: u64 = DATA + 0x1_0000;

/// Waits in HLT until the handler has counted `count` interrupts at [`DATA`].
fn wait(a: &mut CodeAssembler, count: i32) -> Body {
    let (mut again, mut done) = (a.create_label(), a.create_label());
    a.set_label(&mut again)?;
    a.cli()?;
    a.cmp(qword_ptr(DATA), count)?;
    a.jae(done)?;
    a.sti()?;
    a.hlt()?;
    a.jmp(again)?;
    a.set_label(&mut done)?;
    a.nop()
}

/// A handler that takes back the interrupt of `slot`.
fn served(guest: MicroGuest, vector: u8, slot: u64) -> MicroGuest {
    guest.handler(vector, |a| {
        acknowledge(a, slot)?;
        a.inc(qword_ptr(DATA))?;
        end_of_interrupt(a)
    })
}

fn entropy() -> MicroGuest {
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        pic(a, 0xffdf)?;
        start(a, 0, &[QUEUE])?;
        notify(a, 0, 0)?;
        mark(a, 1)?;
        wait(a, 1)?;
        a.mov(rbx, qword_ptr(BUFFER))?;
        mark(a, 2)?;
        finish(a)
    });
    queue(served(guest, 0x25, 0), QUEUE, &[(BUFFER, 8, WRITE)], &[0])
}

/// Answers entropy when the guest is halted.
fn answering(guest: MicroGuest) -> Micro {
    let mut rng = Rng(seed());
    Micro::new(guest).script(move |world, _, stop, turn| {
        if stop.halted {
            for bytes in world.entropy.drain(..) {
                let answer: Vec<u8> = (0..bytes).map(|_| rng.next() as u8).collect();
                turn.entropy.push(answer.into());
            }
        }
    })
}

#[test]
fn entropy_comes_from_the_log() {
    if no_kvm() {
        return;
    }
    let recording = answering(entropy()).check();
    let step = recording
        .steps
        .iter()
        .find(|step| !step.turn.entropy.is_empty())
        .expect("an answer");
    let value = u64::from_le_bytes(step.turn.entropy[0][..].try_into().expect("eight bytes"));
    assert_eq!(recording.at(2).regs.rbx, value);
    assert_eq!((step.interrupt, recording.interrupts().len()), (Some(0x25), 1));
}

/// KVM's dirty log knows nothing of what userspace writes.
#[test]
fn what_devices_write_is_in_epochs() {
    if no_kvm() {
        return;
    }
    let recording = answering(entropy()).check();
    let step = recording
        .steps
        .iter()
        .find(|step| !step.turn.entropy.is_empty())
        .expect("an answer");
    let pages = &step.epoch.as_ref().expect("an epoch at every natural stop").pages;
    let frames: Vec<_> = pages.iter().map(|page| page.0).collect();
    assert!(
        frames.contains(&PageNumber::of(BUFFER)) && frames.contains(&PageNumber::of(QUEUE)),
        "{frames:x?}"
    );
}

/// A delta holds them too, where no epoch has collected them since.
#[test]
fn what_devices_write_is_in_deltas() {
    if no_kvm() {
        return;
    }
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        pic(a, 0xffdf)?;
        start(a, 0, &[QUEUE])?;
        notify(a, 0, 0)?;
        mark(a, 1)?;
        a.sti()?;
        a.nop()?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.inc(rcx)?;
        a.cmp(qword_ptr(BUFFER + 0x1000), 0)?;
        a.je(again)?;
        finish(a)
    });
    let guest = queue(
        served(guest, 0x25, 0),
        QUEUE,
        &[(BUFFER, 8, WRITE), (BUFFER + 0x1000, 8, WRITE)],
        &[0, 1],
    );
    let mut micro = Micro::new(guest)
        .script(|world, _, stop, turn| {
            let answers = matches!(stop.kind, StopKind::Port { port: 0x81, .. } | StopKind::Forced);
            if answers && !world.entropy.is_empty() {
                let bytes = world.entropy.remove(0);
                turn.entropy.push(vec![0x5a; bytes as usize].into());
            }
        })
        .forced(|machine| machine.stop() > StopNumber::new(20));
    micro.epochs = u64::MAX;
    let recording = micro.check();
    let delta = recording
        .steps
        .iter()
        .find_map(|step| step.delta.as_ref())
        .expect("a forced stop");
    assert!(delta.frames.contains(&PageNumber::of(BUFFER)), "{:x?}", delta.frames);
}

/// Request headers, data and status bytes stand from [`BUFFER`] on, 4 KiB for each request.
fn disk(kinds: &[(u32, u64)]) -> (MicroGuest, Vec<Descriptor>, Vec<u16>) {
    let count = kinds.len() as i32;
    let mut guest = MicroGuest::new(Ring::Kernel, |a| {
        pic(a, 0xffdf)?;
        start(a, 0, &[QUEUE])?;
        notify(a, 0, 0)?;
        mark(a, 1)?;
        wait(a, count)?;
        finish(a)
    });
    let (mut descriptors, mut heads) = (Vec::new(), Vec::new());
    for (index, &(kind, sector)) in kinds.iter().enumerate() {
        let at = BUFFER + index as u64 * 4096;
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        guest = guest
            .data(at, &header)
            .data(at + 16, &[index as u8 + 1; 512])
            .data(at + 0x800, &[0xee]);
        heads.push(descriptors.len() as u16);
        let data = if kind == 0 { WRITE } else { 0 };
        descriptors.extend([(at, 16, NEXT), (at + 16, 512, NEXT | data), (at + 0x800, 1, WRITE)]);
    }
    (served(guest, 0x25, 0), descriptors, heads)
}

fn with_disk(kinds: &[(u32, u64)], last_first: bool) -> Micro {
    let (guest, descriptors, heads) = disk(kinds);
    let mut micro = Micro::new(queue(guest, QUEUE, &descriptors, &heads)).script(move |world, machine, stop, turn| {
        if stop.halted && !machine.interrupt_waits() {
            let next = if last_first {
                world.requests.pop()
            } else {
                (!world.requests.is_empty()).then(|| world.requests.remove(0))
            };
            let done = next.map(|next| DiskCompletion {
                disk: next.disk,
                request: next.request,
                status: 0,
            });
            turn.disks.extend(done);
        }
    });
    micro.config.disks = vec![DiskConfig {
        bytes: 1 << 20,
        ..DiskConfig::default()
    }];
    micro.images = vec![(0..1 << 20).map(|at: u32| (at / 512 + 0x40) as u8).collect()];
    micro
}

#[test]
fn disk_reads_complete_in_the_order_of_the_log() {
    if no_kvm() {
        return;
    }
    for last_first in [false, true] {
        let recording = with_disk(&[(0, 3), (0, 9), (0, 27)], last_first).check();
        let order: Vec<_> = recording
            .steps
            .iter()
            .flat_map(|step| &step.turn.disks)
            .map(|done| done.request)
            .collect();
        let expected = if last_first { [2, 1, 0] } else { [0, 1, 2] };
        assert_eq!(order, expected);
        // Data come from the replica's own image.
        for (index, sector) in [3u64, 9, 27].into_iter().enumerate() {
            let word = recording.word(BUFFER + index as u64 * 4096 + 16);
            assert_eq!(word, (sector + 0x40) * 0x0101_0101_0101_0101);
        }
        let used = recording.words(QUEUE + USED, 4);
        assert_eq!(used[0] >> 16 & 0xffff, 3);
        let heads = [used[0] >> 32, used[1] >> 32, used[2] >> 32];
        assert_eq!(heads, expected.map(|request| request * 3));
    }
}

#[test]
fn disk_writes_are_captured_at_the_stop() {
    if no_kvm() {
        return;
    }
    let recording = with_disk(&[(1, 5), (1, 6), (0, 7)], false).check();
    let effects: Vec<_> = recording.steps.iter().flat_map(|step| &step.effects).collect();
    assert!(matches!(effects[0], Effect::Disk(request) if request.request == 0));
    assert_eq!(
        recording.world.images[0][5 * 512..7 * 512],
        [[1u8; 512], [2; 512]].concat()
    );
}

/// Another image on the replica: what it reads shows in memory at the next epoch.
#[test]
fn a_different_image_is_detected_by_an_epoch() {
    if no_kvm() {
        return;
    }
    let mut recording = with_disk(&[(0, 3)], false).record().expect("a recording");
    recording.image_mut(0)[3 * 512 + 77] ^= 1;
    assert_eq!(
        recording.replay(5000).expect_err("another image").differs(),
        Some("epoch")
    );
}

#[test]
fn frames_enter_and_leave_at_stops() {
    if no_kvm() {
        return;
    }
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        pic(a, 0xffdf)?;
        start(a, 0, &[QUEUE, QUEUE2])?;
        notify(a, 0, 0)?;
        notify(a, 0, 1)?;
        mark(a, 1)?;
        wait(a, 2)?;
        finish(a)
    });
    let guest = queue(
        served(guest, 0x25, 0),
        QUEUE,
        &[(BUFFER, 2048, WRITE), (BUFFER + 0x1000, 2048, WRITE)],
        &[1, 0],
    );
    let frame: Vec<u8> = (0..80).collect();
    let packet = [vec![0; 12], frame.clone()].concat();
    let guest = queue(guest, QUEUE2, &[(BUFFER + 0x2000, packet.len() as u32, 0)], &[0]).data(BUFFER + 0x2000, &packet);
    let mut given = false;
    let mut micro = Micro::new(guest).script(move |_, machine, stop, turn| {
        if stop.halted && !machine.interrupt_waits() && !given {
            given = true;
            turn.frames.push(Frame {
                nic: 0,
                data: vec![0xab; 60].into(),
            });
        }
    });
    micro.config.nics = vec![NicConfig {
        mac: vec![2, 0, 0, 0, 0, 1].into(),
        ..NicConfig::default()
    }];
    let recording = micro.check();
    assert_eq!(recording.world.sent, [frame]);
    // The first buffer that the guest offered was number 1; the frame follows virtio's header of 12 bytes.
    assert_eq!(recording.word(BUFFER + 0x1000 + 16), 0xabab_abab_abab_abab);
}

#[test]
fn the_console_reads_what_the_log_says() {
    if no_kvm() {
        return;
    }
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        mark(a, 1)?;
        a.mov(edx, 0x3f8)?;
        for register in [r8, r9, r10] {
            a.in_(al, dx)?;
            a.mov(register, rax)?;
        }
        a.mov(al, 0x21)?;
        a.out(dx, al)?;
        mark(a, 2)?;
        finish(a)
    });
    let recording = Micro::new(guest)
        .script(|_, _, stop, turn| {
            if stop.number == StopNumber::new(1) {
                turn.console = b"abc".as_slice().into();
            }
        })
        .check();
    let regs = recording.at(2).regs;
    assert_eq!([regs.r8 as u8, regs.r9 as u8, regs.r10 as u8], *b"abc");
    assert_eq!(recording.world.console, b"!");
}

#[test]
fn the_keyboard_sends_what_the_log_says() {
    if no_kvm() {
        return;
    }
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        mark(a, 1)?;
        a.mov(edx, 0x60)?;
        for register in [r8, r9, r10] {
            a.in_(al, dx)?;
            a.mov(register, rax)?;
        }
        mark(a, 2)?;
        finish(a)
    });
    let recording = Micro::new(guest)
        .script(|_, machine, stop, turn| {
            if stop.number == StopNumber::new(1) {
                assert_eq!(machine.devices().keyboard_room(), 16);
                turn.keyboard = [0xe0, 0xf0, 0x71].as_slice().into();
            }
        })
        .check();
    let regs = recording.at(2).regs;
    assert_eq!([regs.r8 as u8, regs.r9 as u8, regs.r10 as u8], [0xe0, 0xf0, 0x71]);
}
