//! What cannot be controlled is detected: a replica that differs by one bit, in any part, is found.

use iced_x86::code_asm::*;
use kvm_bindings::{kvm_debugregs, kvm_regs, kvm_sregs};
use lockstep_proto::quantity::{PageNumber, StopNumber};
use lockstep_proto::{Turn, VcpuState};
use lockstep_vmm::machine::Machine;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::{FromBytes, IntoBytes};

use super::forced::{computing, until};
use super::guest::*;
use super::harness::*;

fn marks() -> Recording {
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        for number in 0..10 {
            mark(a, number)?;
        }
        finish(a)
    });
    Micro::new(guest).check()
}

/// What a replay finds when `meddle` is done after the fourth stop.
fn found(recording: &Recording, mut meddle: impl FnMut(&mut Machine)) -> (usize, &'static str) {
    let (_, result) = recording.replay_with(5000, |machine, at| {
        if at == 4 {
            meddle(machine);
        }
    });
    match result {
        Err(Fault::Diverged(at, what)) => (at, what),
        other => panic!("not found: {other:?}"),
    }
}

fn flip(recording: &Recording, change: impl Fn(&mut VcpuState)) -> (usize, &'static str) {
    found(recording, |machine| {
        let mut state = machine.vcpu_state().expect("a state");
        change(&mut state);
        machine.set_vcpu_state(&state).expect("still a state");
    })
}

#[test]
fn an_epoch_finds_a_flipped_bit_in_memory() {
    if no_kvm() {
        return;
    }
    let recording = marks();
    for at in [DATA + 0x3_0123, MEMORY_BYTES - 0x1_2000] {
        let result = found(&recording, |machine| {
            machine
                .memory()
                .ram()
                .write_obj(0x10u8, GuestAddress(at))
                .expect("it is memory");
        });
        assert_eq!(result, (4, "epoch"));
    }
}

#[test]
fn the_chain_finds_a_changed_register() {
    if no_kvm() {
        return;
    }
    let recording = marks();
    let change = |set: fn(&mut kvm_regs)| {
        flip(&recording, |state| {
            let mut regs = kvm_regs::read_from_bytes(&state.regs).expect("registers");
            set(&mut regs);
            state.regs = regs.as_bytes().to_vec().into();
        })
    };
    assert_eq!(change(|regs| regs.rbx ^= 1 << 63), (4, "chain"));
    assert_eq!(change(|regs| regs.r15 ^= 1), (4, "chain"));
    assert_eq!(change(|regs| regs.rsp ^= 8), (4, "chain"));
    assert_eq!(change(|regs| regs.rflags ^= 1), (4, "chain"));
}

#[test]
fn an_epoch_finds_other_changed_state() {
    if no_kvm() {
        return;
    }
    let recording = marks();
    // XMM5; XSTATE_BV says that SSE registers are in use.
    let fpu = flip(&recording, |state| {
        let mut area = state.xsave.to_vec();
        area.resize(576, 0);
        area[160 + 5 * 16] ^= 1;
        area[512] |= 3;
        state.xsave = area.into();
    });
    assert_eq!(fpu, (4, "epoch"));
    let lstar = flip(&recording, |state| {
        let msr = state
            .msrs
            .iter_mut()
            .find(|msr| msr.index == 0xc000_0082)
            .expect("LSTAR");
        msr.value ^= 4096;
    });
    assert_eq!(lstar, (4, "epoch"));
    let address = flip(&recording, |state| {
        let mut sregs = kvm_sregs::read_from_bytes(&state.sregs).expect("special registers");
        sregs.cr2 ^= 1;
        state.sregs = sregs.as_bytes().to_vec().into();
    });
    assert_eq!(address, (4, "epoch"));
    let breakpoint = flip(&recording, |state| {
        let mut registers = kvm_debugregs::read_from_bytes(&state.debugregs).expect("debug registers");
        registers.db[0] ^= 1;
        state.debugregs = registers.as_bytes().to_vec().into();
    });
    assert_eq!(breakpoint, (4, "epoch"));
}

/// A clock of the board that began a second later: the guest does not look at it.
#[test]
fn an_epoch_finds_other_devices() {
    if no_kvm() {
        return;
    }
    let mut recording = marks();
    recording.config.rtc_base += 1;
    assert!(matches!(recording.replay(5000), Err(Fault::Diverged(0, "epoch"))));
}

/// What a delta has carried is in every later epoch.
#[test]
fn an_epoch_finds_a_changed_page_of_a_delta() {
    if no_kvm() {
        return;
    }
    let page = DATA + 0x4000;
    let guest = computing(Ring::Kernel, |a| {
        a.mov(dword_ptr(page), 1)?;
        until(a, 2, |a| a.inc(r8))?;
        a.ud2()
    });
    let mut recording = Micro::new(guest)
        .forced(move |machine| {
            let stored: u32 = machine.memory().ram().read_obj(GuestAddress(page)).expect("memory");
            stored == 1
        })
        .check();
    let delta = recording
        .steps
        .iter_mut()
        .find_map(|step| step.delta.as_mut())
        .expect("a forced stop");
    let index = delta
        .frames
        .iter()
        .position(|&frame| frame == PageNumber::of(page))
        .expect("the page is carried");
    delta.pages[index * 4096 + 100] ^= 1;
    assert_eq!(
        recording.replay(5000).expect_err("another page").differs(),
        Some("epoch")
    );
}

type Change = fn(&mut Turn);

/// Every value of a turn is in the chain, at the turn's own stop.
#[test]
fn the_chain_finds_a_changed_log() {
    if no_kvm() {
        return;
    }
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        mark(a, 1)?;
        mark(a, 2)?;
        finish(a)
    });
    let changes: [Change; 5] = [
        |turn| turn.clock = Some(turn.clock.unwrap_or(0) + 1),
        |turn| turn.console = b"y".as_slice().into(),
        |turn| turn.keyboard = [0x1c].as_slice().into(),
        |turn| turn.random = Some(1),
        |turn| turn.power_button = true,
    ];
    for change in changes {
        // What is changed is there already: its value counts, not only that there is some.
        let micro = Micro::new(guest.clone()).script(|_, _, stop, turn| {
            if stop.number == StopNumber::new(2) {
                turn.console = b"x".as_slice().into();
                turn.keyboard = [0x1d].as_slice().into();
            }
        });
        let mut recording = micro.record().expect("a recording");
        change(&mut recording.steps[1].turn);
        let error = recording.replay(5000).expect_err("another log");
        assert!(matches!(error, Fault::Diverged(1, "chain")), "{error:?}");
    }
}
