//! A snapshot at any step, restored, goes on as the original did.

use std::path::PathBuf;

use iced_x86::code_asm::*;
use lockstep_vmm::snapshot::{self, Restore, SnapshotError};

use super::forced::{after_the_store, computing, until};
use super::guest::*;
use super::halt::ticking;
use super::harness::*;
use super::power;

/// Saves between all steps, also between the turns of a halted guest, then restores each and replays the rest.
pub fn at_every_step(mut micro: Micro) -> Recording {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |step: usize| -> PathBuf { directory.path().join(step.to_string()) };
    let to = directory.path().to_owned();
    micro.pauses = true;
    micro.between = Box::new(move |machine, step| {
        snapshot::save(machine, "here", &to.join(step.to_string())).expect("a snapshot");
    });
    let recording = micro.record().unwrap_or_else(|fault| panic!("recording: {fault:?}"));
    for step in 0..recording.steps.len() {
        let restore = Restore::open(&path(step)).expect("the file that was saved");
        let (mut machine, _) = restore.finish("here").expect("what was saved");
        if let Err(fault) = recording.go_on(&mut machine, step, 3000, |_, _| {}) {
            panic!("from {step}: {}", recording.explain(&fault));
        }
    }
    recording
}

#[test]
fn a_halting_guest_goes_on_from_every_step() {
    if no_kvm() {
        return;
    }
    let mut turns = 0;
    let recording = at_every_step(Micro::new(ticking(2)).script(move |_, _, stop, turn| {
        if stop.halted {
            turns += 1;
            if turns % 3 != 0 {
                turn.clock = Some(5);
            }
        }
    }));
    assert_eq!(recording.interrupts().len(), 2);
}

#[test]
fn a_pressed_power_button_goes_on_from_every_step() {
    if no_kvm() {
        return;
    }
    assert_eq!(at_every_step(power::pressed()).interrupts().len(), 1);
}

#[test]
fn a_computing_guest_goes_on_from_every_step() {
    if no_kvm() {
        return;
    }
    let guest = computing(Ring::User, |a| {
        a.fldpi()?;
        a.mov(rax, 1.25f64.to_bits())?;
        a.movq(xmm1, rax)?;
        a.mov(dword_ptr(NOBODY), eax)?;
        until(a, 3, |a| a.addsd(xmm0, xmm1))?;
        a.fstp(qword_ptr(DATA + 0x1000))?;
        a.movdqu(xmmword_ptr(DATA + 0x1010), xmm0)?;
        a.mov(dword_ptr(NOBODY), eax)?;
        a.ud2()
    });
    let recording = at_every_step(after_the_store(guest));
    assert!(recording.forced() >= 3);
}

#[test]
fn string_io_goes_on_from_every_step() {
    if no_kvm() {
        return;
    }
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        a.mov(edi, DATA as u32 + 0xff0)?;
        a.mov(ecx, 3000)?;
        a.mov(edx, 0x3fd)?;
        a.rep().insb()?;
        a.mov(esi, DATA as u32 + 0xff0)?;
        a.mov(ecx, 6)?;
        a.mov(edx, 0x3f8)?;
        a.rep().outsb()?;
        a.mov(esi, SLOTS as u32)?;
        a.mov(edi, DATA as u32)?;
        a.mov(ecx, 30)?;
        a.rep().movsd()?;
        finish(a)
    });
    let recording = at_every_step(Micro::new(guest));
    println!("{} steps", recording.steps.len());
}

#[test]
fn a_snapshot_of_another_class_is_refused() {
    if no_kvm() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("snapshot");
    let to = path.clone();
    let mut micro = Micro::new(MicroGuest::new(Ring::Kernel, finish));
    micro.between = Box::new(move |machine, _| {
        snapshot::save(machine, "here", &to).expect("a snapshot");
    });
    micro.record().expect("a recording");
    let result = Restore::open(&path).expect("the file").finish("elsewhere");
    assert!(matches!(result, Err(SnapshotError::HostClass { .. })));
}

#[test]
fn a_fork_is_told_and_stays_one_in_all_that_is_saved_of_it() {
    if no_kvm() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("snapshot");
    let mut micro = Micro::new(ticking(1));
    let to = path.clone();
    micro.between = Box::new(move |machine, _| {
        snapshot::save(machine, "here", &to).expect("a snapshot");
    });
    micro.record().unwrap_or_else(|fault| panic!("recording: {fault:?}"));
    let restore = Restore::open(&path).expect("the file that was saved");
    assert!(restore.forked_from().is_empty());
    let (mut machine, _) = restore.finish("here").expect("what was saved");
    for name in ["vm", "vm2", "vm"] {
        machine.mark_fork_of(name);
    }
    machine.set_rtc(1_700_000_000).expect("a time");
    machine.set_rtc(-1).expect_err("before 1970");
    snapshot::save(&machine, "here", &path).expect("a snapshot");
    let restore = Restore::open(&path).expect("the file that was saved");
    assert_eq!(restore.forked_from(), ["vm", "vm2"]);
    let (machine, _) = restore.finish("here").expect("what was saved");
    assert_eq!(machine.forked_from(), ["vm", "vm2"]);
    assert_eq!(machine.config().rtc_base, 1_700_000_000);
}
