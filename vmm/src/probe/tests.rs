use std::collections::BTreeSet;
use std::time::Duration;

use iced_x86::code_asm::{al, ecx};

use super::bench::{Event, Lab};
use super::capabilities::Capabilities;
use super::completion::Completion;
use super::cpuid::{CpuidTest, Reads};
use super::debugging::{Aid, Aids};
use super::emulator::{Fate, Tried};
use super::engine::{Engine, Rate};
use super::essentials::Cpu;
use super::interrupts::Window;
use super::msrs::{Msrs, Outcome};
use super::paging::{Paging, PagingTest};
use super::sensitive::{Seen, Sensitive, Sight};
use super::signals::{done, mark};
use super::states::States;
use super::syscall::Syscall;
use super::timing::Timing;
use super::*;
use crate::micro::{FLAG_IF, MicroGuest, Ring};
use crate::sys::kick::Kicks;
use crate::sys::vcpu::Exit;

/// Whether there is a KVM to test with. Without, the test is skipped, or fails if LOCKSTEP_REQUIRE_KVM=1.
fn has_kvm() -> bool {
    match crate::cpu::vm::open() {
        Ok(_) => true,
        Err(error) => {
            let required = std::env::var("LOCKSTEP_REQUIRE_KVM").is_ok_and(|value| value == "1");
            assert!(!required, "LOCKSTEP_REQUIRE_KVM=1, but: {error}");
            println!("SKIPPED: {error}");
            false
        }
    }
}

/// What a host with VMX should give, by its documentation.
fn hardware() -> Findings {
    let faults = || Sight::Faults(6);
    let aids = || Aids {
        step: Aid::Works { ns: 1500 },
        hardware: Aid::Works { ns: 1500 },
        software: Aid::Works { ns: 1500 },
    };
    Findings {
        essentials: Essentials {
            cpu: Cpu {
                vendor: "GenuineIntel".into(),
                family: 6,
                model: 207,
            },
            engine: Engine::Cpu,
            kernel_rate: Rate::PerSecond(5_000_000_000),
            paging: Paging::Hardware,
            kernel_window: Window::Exact,
            user_window: Window::Exact,
            kernel_rdtsc: Sight::Host,
            user_rdtsc: Sight::Host,
            user_rdtsc_with_tsd: Sight::Faults(13),
            user_rdrand: faults(),
            cpuid: CpuidTest {
                altered: vec![],
                shown: vec![],
                kernel: Reads::Table,
                user: Reads::Table,
            },
            syscall: Syscall::EntersKernel,
            cuts_msrs: false,
        },
        kernel_rate: Ok(Rate::PerSecond(5_000_000_000)),
        user_rate: Ok(Rate::PerSecond(5_000_000_000)),
        sensitive: Ok(vec![
            Seen {
                instruction: Sensitive::Rdtsc,
                kernel: Sight::Host,
                user: Sight::Host,
            },
            Seen {
                instruction: Sensitive::Rdrand,
                kernel: faults(),
                user: faults(),
            },
        ]),
        msrs: Ok(Msrs {
            read: Outcome::Works,
            write: Outcome::Works,
            unknown: Outcome::Works,
            apic_base: Outcome::Works,
        }),
        kernel_window: Ok(Window::Exact),
        user_window: Ok(Window::Exact),
        kernel_injection: Ok(Outcome::Works),
        user_injection: Ok(Outcome::Works),
        completion: Ok(Completion {
            wide_store: Outcome::Works,
            after_sti: Outcome::Works,
            ready_too_early: false,
        }),
        transfer: Ok(Outcome::Works),
        states: Ok(States {
            tried: 64,
            uniform: vec!["DS".into(), "pending events".into()],
            cut: vec!["MSR 0x175".into()],
            ..States::default()
        }),
        kernel_aids: Ok(aids()),
        user_aids: Ok(aids()),
        paging: Ok(PagingTest {
            paging: Paging::Hardware,
            seen_at_once: true,
            seen_after_cr3: true,
            seen_after_reset: true,
            reset_ns: 30_000,
        }),
        int80: Ok(Outcome::Works),
        emulator: Ok(vec![
            Tried {
                instruction: "int3".into(),
                fate: Fate::Executes,
            },
            Tried {
                instruction: "popcnt".into(),
                fate: Fate::Executes,
            },
            Tried {
                instruction: "stac".into(),
                fate: Fate::Faults(6),
            },
        ]),
        timing: Ok(Timing {
            pio_ns: Ok(1200),
            mmio_ns: Ok(1500),
            mmio_user_ns: Ok(1500),
            kick_ns: Ok(30_000),
            kick_user_ns: Ok(30_000),
        }),
        capabilities: Ok(Capabilities {
            tsc_control: true,
            tsc_frozen: [Outcome::Works, Outcome::Works],
            dirty_log: Outcome::Works,
            dirty_ring_bytes: 1 << 20,
            pmu: Outcome::Works,
        }),
        took_ms: 150,
    }
}

fn row<'report>(report: &'report Report, name: &str) -> &'report Fact {
    report
        .facts
        .iter()
        .find(|fact| fact.name == name)
        .unwrap_or_else(|| panic!("no row {name}"))
}

fn check_form(report: &Report) {
    let names: BTreeSet<_> = report.facts.iter().map(|fact| &fact.name).collect();
    assert_eq!(names.len(), report.facts.len(), "a row's name stands twice");
    for fact in &report.facts {
        for text in [&fact.fact, &fact.result, &fact.consequence] {
            assert!(!text.is_empty() && !text.contains('\n'), "{fact:?}");
        }
    }
    let text = report.to_string();
    for part in ["FACT", "What follows", "What is not guaranteed here", &report.class] {
        assert!(text.contains(part), "{part} is missing:\n{text}");
    }
    assert_eq!(
        text.contains("cannot be used\n"),
        !report.obstacles.is_empty(),
        "{text}"
    );
    let json = serde_json::to_string(report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), *report);
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    for name in [
        "class",
        "facts",
        "what_follows",
        "not_guaranteed",
        "strategies",
        "findings",
        "obstacles",
    ] {
        assert!(!value[name].is_null(), "{name} is missing in JSON");
    }
}

fn check_consistency(report: &Report) {
    let (found, strategies) = (&report.findings.essentials, &report.strategies);
    assert_eq!(*strategies, Strategies::from_findings(found));
    let both_exact = found.kernel_window == Window::Exact && found.user_window == Window::Exact;
    assert_eq!(strategies.windows_exact, both_exact);
    assert!(strategies.reset_slots_after_delta || !strategies.shadow_paging);
    assert!((1_000_000..=20_000_000).contains(&strategies.grace_ns));
    assert!(strategies.rewrite_kernel && !strategies.freeze_user_tsc && !strategies.pmu_positions);
    assert_eq!(report.class, found.class());
    assert_eq!(report.class.contains("cpuid=profile"), found.cpuid.altered.is_empty());
}

#[test]
fn a_host_by_the_book_gets_the_cheap_strategies_that_an_experiment_proves() {
    let report = Report::from_findings(hardware(), Some("lockstep-intel-1".into()));
    check_form(&report);
    check_consistency(&report);
    assert!(report.obstacles.is_empty(), "{:?}", report.obstacles);
    assert!(report.strategies.windows_exact);
    assert!(!report.strategies.shadow_paging);
    assert_eq!(report.strategies.grace_ns, 1_000_000);
    assert_eq!(row(&report, "declined").result, "none");
    let rdrand3 = "rdtsc3=host rdrand3=faults cpuid=profile cpuid3=table syscall=ring0 tsd=traps";
    assert_eq!(
        report.class,
        format!("intel-6-207 ring0=native paging=hardware windows=exact rdtsc0=host {rdrand3}")
    );
    let names_rdtsc = |report: &Report| report.not_guaranteed.iter().any(|line| line.contains("execute RDTSC"));
    assert!(report.strategies.guard_programs);
    assert!(!names_rdtsc(&report), "{:?}", report.not_guaranteed);

    // A KVM that does not enforce CR4.TSD.
    let mut found = hardware();
    found.essentials.user_rdtsc_with_tsd = Sight::Host;
    let report = Report::from_findings(found, Some("lockstep-intel-1".into()));
    check_consistency(&report);
    assert!(!report.strategies.guard_programs && report.class.ends_with("syscall=ring0"));
    assert!(names_rdtsc(&report), "{:?}", report.not_guaranteed);
}

#[test]
fn what_kvm_cuts_is_given_by_us_and_is_part_of_the_class() {
    let mut found = hardware();
    found.essentials.cuts_msrs = true;
    let report = Report::from_findings(found, Some("lockstep-amd-1".into()));
    check_consistency(&report);
    assert!(report.strategies.gives_cut_msrs && report.class.ends_with(" sysenter=cut"));
}

/// A host that is busy opens a window late now and then, and is the same host.
#[test]
fn one_inexact_window_suffices_for_deltas_and_changes_no_class() {
    for spoil in [
        (|found| found.kernel_window = Window::Late(vec![0, 0, 1])) as fn(&mut Essentials),
        |found| found.user_window = Window::Never,
        |found| found.user_window = Window::Other("the guest did not come back in its time".into()),
    ] {
        let mut found = hardware();
        spoil(&mut found.essentials);
        let report = Report::from_findings(found, None);
        check_consistency(&report);
        assert!(!report.strategies.windows_exact);
        assert_eq!(report.class, hardware().essentials.class());
    }
}

#[test]
fn what_was_not_found_out_is_taken_as_the_worse() {
    let mut found = hardware();
    found.essentials.paging = Paging::Unknown("the guest hung".into());
    found.essentials.kernel_rate = Rate::Failed("the guest hung".into());
    found.kernel_injection = Err("no VM".into());
    found.capabilities = Err("no VM".into());
    found.transfer = Ok(Outcome::Instead("the guest ends with other registers".into()));
    found.states = Ok(States {
        tried: 64,
        differ: vec!["CR8".into()],
        ..States::default()
    });
    let report = Report::from_findings(found, Some("lockstep-intel-1".into()));
    check_form(&report);
    check_consistency(&report);
    assert!(report.strategies.shadow_paging && report.strategies.reset_slots_after_delta);
    assert_eq!(report.strategies.grace_ns, 20_000_000);
    assert_eq!(report.obstacles.len(), 4, "{:?}", report.obstacles);
}

#[test]
fn this_host_is_found_out() {
    if !has_kvm() {
        return;
    }
    let report = run().unwrap();
    check_form(&report);
    check_consistency(&report);
    let found = &report.findings;
    let declined = found
        .emulator
        .as_ref()
        .unwrap()
        .iter()
        .any(|one| one.fate == Fate::Declined);
    assert_eq!(
        declined,
        found.essentials.engine == Engine::Emulator,
        "{:?}",
        found.emulator
    );
    assert_eq!(found.paging.as_ref().unwrap().paging, found.essentials.paging);
    assert_eq!(report.class, host_class().unwrap());
}

#[test]
fn the_class_is_short_and_the_same_at_every_start() {
    if !has_kvm() {
        return;
    }
    let first = at_start().unwrap();
    assert!(first.class.len() < 200 && first.class.is_ascii(), "{}", first.class);
    for _ in 0..4 {
        let next = at_start().unwrap();
        assert_eq!(next.class, first.class);
        assert_eq!(next.strategies.windows_exact, first.strategies.windows_exact);
    }
}

#[test]
fn a_guest_that_hangs_is_reported_and_does_not_spoil_the_next() {
    if !has_kvm() {
        return;
    }
    let lab = Lab::for_this_thread().unwrap();
    let mut bench = lab.bench().unwrap();
    for ring in Ring::ALL {
        let hangs = MicroGuest::new(ring, |a| {
            let mut stay = a.create_label();
            a.set_label(&mut stay)?;
            a.jmp(stay)
        });
        assert_eq!(bench.first(&hangs, Duration::from_millis(5)).unwrap(), Event::Hung);
        let ends = MicroGuest::new(ring, |a| {
            a.mov(ecx, 7)?;
            done(a)
        });
        assert_eq!(bench.first(&ends, Duration::from_secs(2)).unwrap(), Event::Done);
        assert_eq!(bench.regs().unwrap().rcx, 7);
    }
}

#[test]
fn a_guest_left_at_an_exit_does_not_spoil_the_next() {
    if !has_kvm() {
        return;
    }
    let lab = Lab::for_this_thread().unwrap();
    let mut bench = lab.bench().unwrap();
    let asks = MicroGuest::new(Ring::Kernel, |a| {
        a.in_(al, 0xf7_u32)?;
        done(a)
    });
    let event = bench.first(&asks, Duration::from_secs(2)).unwrap();
    assert!(matches!(event, Event::Exit(Exit::In { port: 0xf7, .. })), "{event:?}");
    bench.vcpu().answer_in(&[0x55]);
    let marks = MicroGuest::new(Ring::Kernel, |a| {
        mark(a)?;
        done(a)
    })
    .with_flags(FLAG_IF);
    assert_eq!(bench.first(&marks, Duration::from_secs(2)).unwrap(), Event::Mark);
    assert_eq!(
        bench.regs().unwrap().rax,
        0,
        "the abandoned IN was completed on this guest's registers"
    );
    assert_eq!(bench.next_event(), Event::Done);
}

#[test]
fn experiments_leave_the_callers_kicks_alone() {
    if !has_kvm() {
        return;
    }
    let kicks = Kicks::for_this_thread().unwrap();
    host_class().unwrap();
    assert!(!kicks.take(), "an experiment's kick came here");
    kicks.handle().kick();
    assert!(kicks.take(), "kicks no longer arrive");
}
