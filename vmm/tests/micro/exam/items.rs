//! The items of the exam.

use lockstep_proto::end::Reason;
use lockstep_proto::quantity::StopNumber;
use lockstep_proto::{DiskCompletion, Epoch, Turn};
use lockstep_vmm::machine::{Flow, MachineError, Seen, Slice, Stop, StopKind};

use super::super::harness::Fault;
use super::candidate::{Candidate, Do};
use super::examiner::Examiner;

const MARK: Do = Do::Out(0x80, 0);
const YEAR: u64 = 366 * 24 * 3600 * 1_000_000_000;

/// Interrupt controllers and the timer, some milliseconds a tick; then `rest`.
fn ticking(rest: &[Do]) -> Vec<Do> {
    let mut program = vec![];
    for (port, value) in [
        (0x20, 0x11),
        (0x21, 0x20),
        (0x21, 4),
        (0x21, 1),
        (0x21, 0xfe),
        (0x43, 0x34),
        (0x40, 0xd0),
        (0x40, 7),
    ] {
        program.push(Do::Out(port, value));
    }
    program.extend(rest);
    program
}

/// Natural stops that [`ticking`] makes.
const SET_UP: usize = 8;

fn clock(step: u64) -> Turn {
    Turn {
        clock: Some(step),
        ..Turn::default()
    }
}

/// Time goes on to the next timer.
fn to_timer(machine: &dyn Seen) -> Turn {
    clock(machine.deadline().map_or(0, |at| at.ns_since(machine.now())))
}

fn steps(machine: &mut impl Candidate, examiner: &mut Examiner, count: usize) {
    for _ in 0..count {
        assert_eq!(machine.step(examiner).expect("a step"), Flow::Continue);
    }
}

fn refused(result: &Result<Flow, Fault>) -> bool {
    matches!(
        result,
        Err(Fault::Machine(MachineError::Turn { .. } | MachineError::Device(_)))
    )
}

pub fn a_natural_stop_has_its_number_before_its_turn<C: Candidate>() {
    let mut machine = C::with(&[MARK, MARK, Do::End]);
    let mut examiner = Examiner::new();
    steps(&mut machine, &mut examiner, 2);
    assert_eq!(examiner.calls, ["slice", "turn", "taken", "slice", "turn", "taken"]);
    for (number, took) in (1..).map(StopNumber::new).zip(&examiner.took) {
        assert_eq!(
            (took.stop.number, took.before.stop, took.after.stop),
            (number, number, number)
        );
        let write = true;
        assert_eq!(took.stop.kind, StopKind::Port { port: 0x80, write });
        assert!(!took.stop.wants_time && !took.stop.wants_random && !took.stop.halted);
        assert_ne!(
            took.before.chain, took.after.chain,
            "each turn is in the chain, also an empty one"
        );
    }
    assert_eq!(examiner.took[0].after.chain, examiner.took[1].before.chain);
}

pub fn the_clock_enters_before_the_access<C: Candidate>() {
    let mut answers = Vec::new();
    for step in [0, 70_000_000_000] {
        let mut machine = C::with(&[Do::Out(0x70, 0), Do::In(0x71), Do::End]);
        let mut examiner = Examiner::giving(move |_, stop| if stop.wants_time { clock(step) } else { Turn::default() });
        steps(&mut machine, &mut examiner, 2);
        let took = examiner.last();
        assert!(took.stop.wants_time);
        assert_eq!((took.before.now.ns(), took.after.now.ns()), (0, step));
        answers.push(machine.seen().regs().rax & 0xff);
    }
    // Seconds of the CMOS clock, in BCD.
    assert_eq!(answers, [0, 0x10]);
}

pub fn a_halted_guest_has_turn_after_turn_and_no_slice<C: Candidate>() {
    let mut machine = C::with(&ticking(&[Do::Sti, Do::Halt, MARK, Do::End]));
    let mut halted = 0;
    let mut examiner = Examiner::giving(move |machine, stop| {
        halted += u32::from(stop.halted);
        if halted == 3 {
            to_timer(machine)
        } else {
            Turn::default()
        }
    });
    steps(&mut machine, &mut examiner, SET_UP);
    examiner.calls();
    steps(&mut machine, &mut examiner, 1);
    assert_eq!(
        examiner.calls(),
        ["slice", "turn", "taken", "turn", "taken", "turn", "taken"]
    );
    let number = StopNumber::new(SET_UP as u64 + 1);
    let turns = &examiner.took[SET_UP..];
    assert!(turns.iter().all(|took| took.stop.halted && took.stop.number == number));
    assert_eq!(
        turns.iter().map(|took| took.after.halted).collect::<Vec<_>>(),
        [true, true, false]
    );
    assert_eq!(examiner.last().interrupt, Some(0x20));
    assert_eq!(machine.seen().counters().interrupts, 1);
}

pub fn an_oracle_lets_go_of_a_halted_guest<C: Candidate>() {
    let mut machine = C::with(&ticking(&[Do::Sti, Do::Halt, MARK, Do::End]));
    let mut examiner = Examiner::new();
    examiner.lets_go = true;
    steps(&mut machine, &mut examiner, SET_UP);
    examiner.calls();
    examiner.took.clear();
    assert_eq!(machine.step(&mut examiner).expect("a step"), Flow::End);
    assert_eq!(examiner.calls(), ["slice", "turn", "taken"]);
    assert!(machine.seen().is_halted());
    assert_eq!(machine.step(&mut examiner).expect("a step"), Flow::End);
    assert_eq!(examiner.calls(), ["turn", "taken"], "no slice, and the same stop");
    assert_eq!(examiner.took[0].stop.number, examiner.took[1].stop.number);
    let mut waking = Examiner::giving(|machine, _| to_timer(machine));
    waking.lets_go = true;
    assert_eq!(machine.step(&mut waking).expect("a step"), Flow::Continue);
    assert_eq!(waking.calls(), ["turn", "taken"]);
    assert!(!machine.seen().is_halted());
}

pub fn hlt_with_interrupts_off_is_the_end<C: Candidate>() {
    let mut machine = C::with(&[Do::End]);
    let mut examiner = Examiner::new();
    assert_eq!(machine.step(&mut examiner).expect("a step"), Flow::End);
    assert_eq!(examiner.calls, ["slice", "turn", "taken"]);
    let took = examiner.last();
    assert_eq!(
        (took.stop.kind, took.stop.halted),
        (StopKind::Halt, false),
        "the oracle must not wait"
    );
    assert_eq!(took.ended, Some(Reason::Halted));
}

pub fn a_reset_is_the_end<C: Candidate>() {
    let mut machine = C::with(&[Do::Out(0x64, 0xfe), MARK, Do::End]);
    let mut examiner = Examiner::new();
    assert_eq!(machine.step(&mut examiner).expect("a step"), Flow::End);
    assert_eq!(examiner.last().ended, Some(Reason::Reset));
}

pub fn a_power_off_is_the_end<C: Candidate>() {
    let mut machine = C::with(&[Do::Out(0x605, 0x34), MARK, Do::End]);
    let mut examiner = Examiner::new();
    assert_eq!(machine.step(&mut examiner).expect("a step"), Flow::End);
    assert_eq!(examiner.last().ended, Some(Reason::PoweredOff));
}

pub fn the_end_of_the_log_runs_nothing<C: Candidate>() {
    let mut machine = C::with(&[MARK, Do::End]);
    let mut examiner = Examiner::new();
    examiner.slices.push_back(Slice::End);
    assert_eq!(machine.step(&mut examiner).expect("a step"), Flow::End);
    assert_eq!(examiner.calls, ["slice"]);
    assert_eq!(machine.seen().stop(), StopNumber::START);
}

pub fn a_forced_stop_has_no_number_and_carries_another_machine<C: Candidate>() {
    // Memory is written before an interrupt can enter: the delta has something in it.
    let program = ticking(&[MARK, Do::Work, Do::Sti, Do::Wait, MARK, Do::End]);
    let turn = |machine: &dyn Seen, stop: &Stop| {
        if stop.kind == StopKind::Forced {
            to_timer(machine)
        } else {
            Turn::default()
        }
    };
    let mut first = C::with(&program);
    let mut examiner = Examiner::giving(turn);
    steps(&mut first, &mut examiner, SET_UP + 1);
    examiner.calls();
    examiner.due = true;
    steps(&mut first, &mut examiner, 1);
    examiner.due = false;
    assert_eq!(examiner.calls(), ["slice", "forced", "turn", "taken"]);
    let took = examiner.last();
    let number = StopNumber::new(SET_UP as u64 + 1);
    assert_eq!(
        (took.stop.kind, took.stop.number, took.stop.halted),
        (StopKind::Forced, number, false)
    );
    assert_eq!(
        took.interrupt,
        Some(0x20),
        "a forced stop is made where an interrupt can enter"
    );
    assert_eq!(first.seen().counters().forced, 1);
    let delta = examiner.deltas[0].clone();
    assert!(!delta.frames.is_empty() && delta.frames.is_sorted());
    let forced = took.after;

    let mut second = C::with(&program);
    let mut carried = Examiner::giving(turn);
    steps(&mut second, &mut carried, SET_UP + 1);
    carried.calls();
    carried.slices.push_back(Slice::Carry(Box::new(delta)));
    steps(&mut second, &mut carried, 1);
    assert_eq!(carried.calls(), ["slice", "turn", "taken"]);
    assert_eq!(
        (carried.last().stop.kind, carried.last().after),
        (StopKind::Forced, forced)
    );
    // Both serve the tick, and come to the mark.
    steps(&mut first, &mut examiner, 2);
    steps(&mut second, &mut carried, 2);
    assert_eq!(examiner.last().after, carried.last().after);
    assert_eq!(first.seen().regs(), second.seen().regs());
    assert_eq!(first.seen().full_memory_digest(), second.seen().full_memory_digest());
}

pub fn no_forced_stop_where_no_interrupt_can_enter<C: Candidate>() {
    let mut machine = C::with(&[MARK, Do::Work, MARK, Do::End]);
    let mut examiner = Examiner::new();
    examiner.due = true;
    steps(&mut machine, &mut examiner, 2);
    assert_eq!(examiner.calls, ["slice", "turn", "taken", "slice", "turn", "taken"]);
    assert_eq!(machine.seen().stop(), StopNumber::new(2));
}

pub fn a_window_comes_back_where_an_interrupt_can_enter<C: Candidate>() {
    let program = ticking(&[MARK, Do::Sti, Do::Wait, MARK, Do::End]);
    let mut machine = C::with(&program);
    // The interrupt is requested at the mark, while it cannot enter.
    let mut examiner = Examiner::giving(|machine, stop| {
        let is_mark = stop.number == StopNumber::new(SET_UP as u64 + 1) && stop.kind != StopKind::Forced;
        if is_mark { to_timer(machine) } else { Turn::default() }
    });
    steps(&mut machine, &mut examiner, SET_UP + 1);
    assert!(machine.seen().interrupt_waits());
    examiner.calls();
    examiner.due = true;
    examiner.slices.push_back(Slice::RunToWindow);
    steps(&mut machine, &mut examiner, 1);
    assert_eq!(examiner.calls(), ["slice", "forced", "turn", "taken"]);
    assert_eq!(examiner.last().interrupt, Some(0x20));
}

pub fn an_interrupt_waits_until_it_can_enter<C: Candidate>() {
    let mut machine = C::with(&ticking(&[MARK, MARK, Do::Sti, MARK, MARK, Do::End]));
    let mut examiner = Examiner::giving(|machine, stop| {
        if stop.number == StopNumber::new(SET_UP as u64 + 1) {
            to_timer(machine)
        } else {
            Turn::default()
        }
    });
    steps(&mut machine, &mut examiner, SET_UP + 3);
    let turns = &examiner.took[SET_UP..];
    let seen: Vec<_> = turns.iter().map(|took| (took.interrupt, took.after.waits)).collect();
    assert_eq!(seen, [(None, true), (None, true), (Some(0x20), false)]);
}

pub fn an_epoch_ends_alike_on_two_machines<C: Candidate>() {
    let epochs = [(); 2].map(|()| {
        let mut machine = C::with(&[MARK, Do::Work, MARK, Do::End]);
        let mut examiner = Examiner::giving(|_, stop| Turn {
            epoch: (stop.number == StopNumber::new(2)).then(Epoch::default),
            ..Turn::default()
        });
        steps(&mut machine, &mut examiner, 2);
        assert!(examiner.took[0].epoch.is_none());
        assert_eq!(machine.seen().counters().epochs, 1);
        examiner.took.pop().and_then(|took| took.epoch).expect("an epoch")
    });
    assert!(!epochs[0].pages.is_empty());
    assert_eq!(epochs[0].digest, epochs[1].digest);
}

pub fn an_epoch_at_a_forced_stop_is_refused<C: Candidate>() {
    let mut machine = C::with(&ticking(&[MARK, Do::Sti, Do::Wait, MARK, Do::End]));
    let mut examiner = Examiner::giving(|_, stop| Turn {
        epoch: (stop.kind == StopKind::Forced).then(Epoch::default),
        ..Turn::default()
    });
    steps(&mut machine, &mut examiner, SET_UP + 1);
    examiner.calls();
    examiner.due = true;
    assert!(refused(&machine.step(&mut examiner)));
    assert_eq!(examiner.calls(), ["slice", "forced", "turn"]);
}

pub fn a_clock_step_of_a_year_is_refused<C: Candidate>() {
    for (step, is_refused) in [(YEAR, false), (YEAR + 1, true)] {
        let mut machine = C::with(&[MARK, Do::End]);
        let mut examiner = Examiner::giving(move |_, _| clock(step));
        let result = machine.step(&mut examiner);
        assert_eq!(refused(&result), is_refused, "{step}");
        let taken: &[&str] = if is_refused { &[] } else { &["taken"] };
        assert_eq!(examiner.calls, [&["slice", "turn"], taken].concat());
    }
}

pub fn a_completion_that_nobody_asked_for_is_refused<C: Candidate>() {
    let mut machine = C::with(&[MARK, Do::End]);
    let mut examiner = Examiner::giving(|_, _| Turn {
        disks: vec![DiskCompletion::default()],
        ..Turn::default()
    });
    assert!(refused(&machine.step(&mut examiner)));
    assert_eq!(examiner.calls, ["slice", "turn", "disk_data"]);
}

pub fn a_random_value_that_is_missing_is_refused<C: Candidate>() {
    for value in [None, Some(7)] {
        let mut machine = C::with(&[Do::Random, MARK, Do::End]);
        let mut examiner = Examiner::giving(move |_, stop| Turn {
            random: value.filter(|_| stop.wants_random),
            ..Turn::default()
        });
        assert_eq!(refused(&machine.step(&mut examiner)), value.is_none());
        if value.is_some() {
            assert!(examiner.last().stop.wants_random);
            assert_eq!(machine.seen().regs().rax, 7);
        }
    }
}
