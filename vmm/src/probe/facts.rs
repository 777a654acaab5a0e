//! The findings in words: one row for each fact, with what follows from it.

use super::debugging::Aids;
use super::emulator::Fate;
use super::engine::{Engine, Rate};
use super::findings::Findings;
use super::interrupts::Window;
use super::msrs::Outcome;
use super::offers::{capabilities, timing};
use super::paging::Paging;
use super::rows::{Fact, Rows, needed};
use super::sensitive::{Seen, Sensitive, Sight};
use super::strategy::Strategies;
use super::syscall::Syscall;

/// All rows.
pub fn facts(found: &Findings, strategies: &Strategies) -> Vec<Fact> {
    let mut rows = Rows(Vec::new());
    execution(&mut rows, found);
    cpuid(&mut rows, found);
    rows.tested(
        "sensitive",
        "instructions that show the host",
        &found.sensitive,
        |rows, seen| {
            for one in seen {
                sensitive(rows, found, one);
            }
        },
    );
    rows.tested("msr", "MSR exits", &found.msrs, |rows, msrs| {
        rows.add(
            "msr-read",
            "RDMSR of a filtered MSR",
            &msrs.read,
            needed(&msrs.read, "IA32_TSC is guest time"),
        );
        rows.add(
            "msr-write",
            "WRMSR of a filtered MSR",
            &msrs.write,
            needed(&msrs.write, "writes reach the machine"),
        );
        rows.add(
            "msr-unknown",
            "RDMSR of an unknown MSR",
            &msrs.unknown,
            needed(&msrs.unknown, "we make it fault"),
        );
        let open = msrs.apic_base != Outcome::Works;
        rows.add(
            "msr-apic-base",
            "RDMSR of IA32_APIC_BASE, filtered",
            &msrs.apic_base,
            if open {
                "harmless: a constant, and the profile has no APIC"
            } else {
                "it faults, as the profile has no APIC"
            },
        );
    });
    interrupts(&mut rows, found, strategies);
    rows.tested(
        "completion",
        "completing exits",
        &found.completion,
        |rows, completion| {
            rows.add(
                "completion-wide-store",
                "16-byte store to a device",
                match &completion.wide_store {
                    Outcome::Works => "its second half comes from completing the first".to_owned(),
                    instead @ Outcome::Instead(_) => instead.to_string(),
                },
                "a stop goes on until completing it brings no more exits",
            );
            let early = if completion.ready_too_early {
                "ready before and after"
            } else {
                "ready only after"
            };
            rows.add(
                "completion-sti-in",
                "`sti; in`: ready for an interrupt",
                match &completion.after_sti {
                    Outcome::Works => format!("{early} the IN is completed"),
                    instead @ Outcome::Instead(_) => instead.to_string(),
                },
                "exits are completed before KVM is asked",
            );
        },
    );
    rows.tested(
        "transfer",
        "vCPU state into another VM",
        &found.transfer,
        |rows, outcome| {
            rows.add(
                "transfer",
                "vCPU state into another VM",
                outcome,
                needed(outcome, "deltas, snapshots and joins are exact"),
            );
        },
    );
    rows.tested(
        "states",
        "vCPU states set and read back",
        &found.states,
        |rows, states| {
            rows.add(
                "states",
                "vCPU states set and read back",
                states,
                needed(&states.outcome(), "equal states have equal digests"),
            );
        },
    );
    paging(&mut rows, found);
    syscall(&mut rows, found);
    emulator(&mut rows, found);
    rows.tested(
        "debugging-kernel",
        "debugging ring 0",
        &found.kernel_aids,
        |rows, aids| aids_rows(rows, "kernel", "ring 0", aids),
    );
    rows.tested("debugging-user", "debugging ring 3", &found.user_aids, |rows, aids| {
        aids_rows(rows, "user", "ring 3", aids);
    });
    rows.tested("timing", "what exits cost", &found.timing, timing);
    rows.tested("capabilities", "what KVM offers", &found.capabilities, capabilities);
    rows.0
}

fn execution(rows: &mut Rows, found: &Findings) {
    let engine = &found.essentials.engine;
    rows.add(
        "engine",
        "ring-0 code",
        match engine {
            Engine::Cpu => "executed by the CPU".to_owned(),
            Engine::Emulator => "interpreted by KVM's instruction emulator".to_owned(),
            Engine::Unknown(what) => format!("unclear: the guest {what}"),
        },
        match engine {
            Engine::Cpu => "no instruction needs our help",
            Engine::Emulator => "instructions that the emulator lacks are executed by us",
            Engine::Unknown(_) => "taken as interpreted",
        },
    );
    rows.tested("rate-kernel", "speed of ring 0", &found.kernel_rate, |rows, rate| {
        rows.add(
            "rate-kernel",
            "speed of ring 0",
            rate,
            "sets how long an interrupt may wait for IF=1",
        );
    });
    rows.tested("rate-user", "speed of ring 3", &found.user_rate, |rows, rate| {
        let native = matches!(rate, Rate::PerSecond(rate) if *rate > 200_000_000);
        rows.add(
            "rate-user",
            "speed of ring 3",
            rate,
            if native {
                "programs run natively"
            } else {
                "programs do not run natively: expect a slow guest"
            },
        );
    });
}

fn cpuid(rows: &mut Rows, found: &Findings) {
    let cpuid = &found.essentials.cpuid;
    let leaves: Vec<_> = cpuid
        .altered
        .iter()
        .map(|altered| format!("{:#x}", altered.leaf))
        .collect();
    if leaves.is_empty() {
        rows.add(
            "cpuid-table",
            "CPUID table as KVM took it",
            "as the profile has it",
            "the profile binds",
        );
    } else {
        rows.add(
            "cpuid-table",
            "CPUID table as KVM took it",
            format!("KVM changed leaves {}", leaves.join(", ")),
            "part of the host's class; the kernel's command line must hide what KVM shows",
        );
        rows.add(
            "cpuid-shown",
            "features hidden by the profile but shown",
            if cpuid.shown.is_empty() {
                "none that matters".to_owned()
            } else {
                cpuid.shown.join(" ")
            },
            "the guest must be told not to use them (clearcpuid=, noxsave, nofsgsbase ...)",
        );
    }
    for (name, fact, reads) in [
        ("cpuid-kernel", "CPUID in ring 0", &cpuid.kernel),
        ("cpuid-user", "CPUID in ring 3", &cpuid.user),
    ] {
        let table = *reads == super::cpuid::Reads::Table;
        rows.add(
            name,
            fact,
            reads,
            if table {
                "the same on every host of this class"
            } else {
                "shows the host: what executes it may diverge"
            },
        );
    }
}

/// Whether the machine answers it in programs, by way of CR4.TSD.
fn is_answered(found: &Findings, instruction: Sensitive) -> bool {
    found.essentials.tsd_works() && matches!(instruction, Sensitive::Rdtsc | Sensitive::Rdtscp)
}

fn sensitive(rows: &mut Rows, found: &Findings, seen: &Seen) {
    let name = format!("sensitive-{}", seen.instruction.key());
    let kernel = if seen.kernel.is_controlled() {
        "ring 0: under control"
    } else if seen.instruction.is_rewritten() {
        "ring 0: rewritten when the kernel is loaded, and logged"
    } else {
        "ring 0: not under control"
    };
    let user = if seen.user.is_controlled() {
        "ring 3: under control"
    } else if is_answered(found, seen.instruction) {
        "ring 3: faults by CR4.TSD, answered with guest time, and logged"
    } else {
        "ring 3: may diverge, which is detected and healed"
    };
    let consequence = match (seen.instruction, &seen.user) {
        (Sensitive::RdtscWithTsd, Sight::Faults(_)) => "RDTSC of programs is answered by the machine".to_owned(),
        (Sensitive::RdtscWithTsd, _) => {
            "CR4.TSD is not enforced: a guest kernel cannot take RDTSC from programs".to_owned()
        }
        _ => format!("{kernel}; {user}"),
    };
    rows.add(
        &name,
        seen.instruction.name(),
        format!("ring 0: {}; ring 3: {}", seen.kernel, seen.user),
        consequence,
    );
}

fn interrupts(rows: &mut Rows, found: &Findings, strategies: &Strategies) {
    for (name, fact, tested) in [
        (
            "injection-kernel",
            "KVM_INTERRUPT at an exit, ring 0",
            &found.kernel_injection,
        ),
        (
            "injection-user",
            "KVM_INTERRUPT at an exit, ring 3",
            &found.user_injection,
        ),
    ] {
        rows.tested(name, fact, tested, |rows, outcome| {
            let result = if *outcome == Outcome::Works {
                "exact".to_owned()
            } else {
                outcome.to_string()
            };
            rows.add(
                name,
                fact,
                result,
                needed(outcome, "interrupts are injected at natural stops"),
            );
        });
    }
    for (name, fact, tested) in [
        ("window-kernel", "interrupt window in ring 0", &found.kernel_window),
        ("window-user", "interrupt window, ring 0 to ring 3", &found.user_window),
    ] {
        rows.tested(name, fact, tested, |rows, window| {
            rows.add(
                name,
                fact,
                window,
                match (window, strategies.windows_exact) {
                    (Window::Exact, true) => "a forced stop at a window needs no delta",
                    (Window::Exact, false) => "not relied on, since windows are not exact everywhere",
                    _ => "a forced stop needs a delta",
                },
            );
        });
    }
}

fn paging(rows: &mut Rows, found: &Findings) {
    rows.tested("paging", "page tables", &found.paging, |rows, test| {
        let (result, consequence) = match &test.paging {
            Paging::Hardware => (
                "walked by the CPU".to_owned(),
                "slots are re-created after a delta nevertheless: a stale TLB cannot be ruled out by experiment"
                    .to_owned(),
            ),
            Paging::Shadow => (
                "copied by KVM; what userspace writes into them goes unnoticed until the slot is re-created".to_owned(),
                format!(
                    "slots are re-created after every delta ({:.2} ms)",
                    test.reset_ns as f64 / 1e6
                ),
            ),
            Paging::Unknown(why) => (format!("unclear: {why}"), "taken as copied by KVM".to_owned()),
        };
        rows.add("paging", "page tables", result, consequence);
    });
}

fn syscall(rows: &mut Rows, found: &Findings) {
    let syscall = &found.essentials.syscall;
    rows.add(
        "syscall",
        "SYSCALL in ring 3",
        syscall,
        match syscall {
            Syscall::EntersKernel => "any guest kernel works",
            _ => "the guest kernel needs Lockstep's patch for system calls",
        },
    );
    rows.tested("int80", "INT 80H in ring 3", &found.int80, |rows, outcome| {
        rows.add(
            "int80",
            "INT 80H in ring 3",
            outcome,
            if *outcome == Outcome::Works {
                "32-bit programs can make system calls"
            } else {
                "32-bit programs cannot make system calls"
            },
        );
    });
}

fn emulator(rows: &mut Rows, found: &Findings) {
    rows.tested(
        "declined",
        "instructions that KVM declines in ring 0",
        &found.emulator,
        |rows, tried| {
            let list = |wanted: fn(&Fate) -> bool| {
                let names: Vec<_> = tried
                    .iter()
                    .filter(|one| wanted(&one.fate))
                    .map(|one| one.instruction.as_str())
                    .collect();
                if names.is_empty() {
                    "none".to_owned()
                } else {
                    names.join(", ")
                }
            };
            let declined = list(|fate| *fate == Fate::Declined);
            let consequence = if declined == "none" {
                "nothing to do for us"
            } else {
                "executed by us where the assist has them; an unknown one stops the machine"
            };
            rows.add(
                "declined",
                "instructions that KVM declines in ring 0",
                declined,
                consequence,
            );
            rows.add(
                "faulting",
                "instructions that fault in ring 0",
                list(|fate| matches!(fate, Fate::Faults(_))),
                "hidden by the profile",
            );
            let strange = list(|fate| matches!(fate, Fate::Other(_)));
            if strange != "none" {
                rows.add(
                    "strange",
                    "instructions with another outcome in ring 0",
                    strange,
                    "see the findings in JSON",
                );
            }
        },
    );
}

fn aids_rows(rows: &mut Rows, key: &str, ring: &str, aids: &Aids) {
    for (name, fact, aid) in [
        ("step", "single-step", &aids.step),
        ("hardware-breakpoint", "hardware breakpoint", &aids.hardware),
        ("software-breakpoint", "software breakpoint", &aids.software),
    ] {
        rows.add(
            &format!("{name}-{key}"),
            format!("{fact} in {ring}"),
            aid,
            if aid.works() {
                "the debugger can use it"
            } else {
                "the debugger does without"
            },
        );
    }
}

/// What is not under control in ring 3, by name.
pub(super) fn uncontrolled_in_programs(found: &Findings) -> Vec<&'static str> {
    let mut names: Vec<_> = found
        .sensitive
        .iter()
        .flatten()
        .filter(|seen| seen.instruction != Sensitive::RdtscWithTsd)
        .filter(|seen| !seen.user.is_controlled() && !matches!(seen.user, Sight::Other(_)))
        .filter(|seen| !is_answered(found, seen.instruction))
        .map(|seen| seen.instruction.name())
        .collect();
    if found.essentials.cpuid.user != super::cpuid::Reads::Table {
        names.push("CPUID");
    }
    names
}
