//! What the probe found, for people and for programs.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::bench::Lab;
use super::engine::Engine;
use super::facts;
use super::findings::{self, Findings};
use super::msrs::Outcome;
use super::paging::Paging;
use super::rows::Fact;
use super::syscall::Syscall;
use super::{ProbeError, Strategies};
use crate::cpu::profile::Profile;

/// What the probe found, and what follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The class of this host: see [`super::host_class`].
    pub class: String,
    /// The CPU profile that guests get, if there is one for this vendor.
    pub profile: Option<String>,
    /// The table.
    pub facts: Vec<Fact>,
    /// Why this host cannot be used; empty where it can.
    pub obstacles: Vec<String>,
    /// What follows.
    pub what_follows: Vec<String>,
    /// What is not guaranteed on this host.
    pub not_guaranteed: Vec<String>,
    /// How this host is used.
    pub strategies: Strategies,
    /// The findings that all this rests on.
    pub findings: Findings,
}

pub(super) fn survey(lab: &Lab) -> Result<Report, ProbeError> {
    let profile = Profile::for_this_host().map(|profile| profile.name().to_owned());
    Ok(Report::from_findings(findings::survey(lab)?, profile))
}

impl Report {
    /// Words the findings.
    pub fn from_findings(findings: Findings, profile: Option<String>) -> Self {
        let strategies = Strategies::from_findings(&findings.essentials);
        Self {
            class: findings.essentials.class(),
            facts: facts::facts(&findings, &strategies),
            obstacles: obstacles(&findings, profile.is_some()),
            what_follows: follows(&findings, &strategies),
            not_guaranteed: not_guaranteed(&findings),
            profile,
            strategies,
            findings,
        }
    }
}

fn obstacles(found: &Findings, has_profile: bool) -> Vec<String> {
    let mut obstacles = Vec::new();
    if !has_profile {
        obstacles.push(format!(
            "There is no CPU profile for {} CPUs.",
            found.essentials.cpu.vendor
        ));
    }
    let works = |tested: &Result<Outcome, String>| matches!(tested, Ok(Outcome::Works));
    if !works(&found.kernel_injection) || !works(&found.user_injection) {
        obstacles.push("An interrupt injected at an exit does not arrive at the next instruction.".into());
    }
    if !works(&found.transfer) {
        obstacles.push("A vCPU's state does not move to another VM unchanged.".into());
    }
    match &found.states {
        Ok(states) if states.outcome() == Outcome::Works => {}
        Ok(states) => obstacles.push(format!(
            "A vCPU's state that is set is not the state that is read back, beyond what is made uniform: {}.",
            states.outcome()
        )),
        Err(_) => {
            obstacles.push("Whether a vCPU's state that is set is read back the same could not be found out.".into());
        }
    }
    if !found.msrs.as_ref().is_ok_and(super::msrs::Msrs::work) {
        obstacles.push("MSR accesses are not under our control.".into());
    }
    let misses = |outcome: &Outcome| matches!(outcome, Outcome::Instead(what) if !what.starts_with("names "));
    if found
        .capabilities
        .as_ref()
        .map_or(true, |found| misses(&found.dirty_log))
    {
        obstacles.push("The dirty log misses pages.".into());
    }
    obstacles
}

fn follows(found: &Findings, strategies: &Strategies) -> Vec<String> {
    let essentials = &found.essentials;
    let mut lines = vec![if strategies.windows_exact {
        "Interrupts: injected at natural stops. Interrupt windows are exact here, so that a forced stop at a window is \
         a position by itself and needs no delta."
            .to_owned()
    } else {
        "Interrupts: injected at natural stops. Interrupt windows are not exact here, so a forced stop needs a delta."
            .to_owned()
    }];
    lines.push(format!(
        "Patience: something due waits {:.1} ms for a natural stop (30,000 ring-0 instructions here, 1 to 20 ms) before \
         the guest is stopped by force.",
        strategies.grace_ns as f64 / 1e6
    ));
    lines.push("TSC, RDRAND and RDSEED in the guest kernel: rewritten when the kernel is loaded, and logged.".into());
    let programs = facts::uncontrolled_in_programs(found);
    lines.push(if programs.is_empty() {
        "Programs of the guest: no instruction was found that shows them the host.".into()
    } else {
        format!(
            "Programs of the guest: {} show the host and cannot be trapped; a program that lets their values reach its \
             output diverges; that is detected and healed.",
            programs.join(", ")
        )
    });
    lines.push(match essentials.paging {
        Paging::Hardware => {
            "Memory: page tables are walked by the CPU. Slots are re-created after a delta all the same, \
                             because that also empties the TLB, which a delta must do and KVM offers no other way for."
                .into()
        }
        _ => "Memory: shadow page tables. Slots are re-created after every delta.".to_owned(),
    });
    if essentials.engine != Engine::Cpu {
        lines.push(
            "Ring 0 is interpreted: instructions that KVM's emulator lacks are executed by us, and a guest kernel should \
             be small and configured without what the emulator lacks."
                .into(),
        );
    }
    if !essentials.cpuid.shown.is_empty() {
        lines.push(format!(
            "CPU profile: KVM shows more than the profile ({}). The guest kernel is told on its command line not to use \
             what it must not.",
            essentials.cpuid.shown.join(" ")
        ));
    }
    if essentials.syscall != Syscall::EntersKernel {
        lines
            .push("System calls: the guest kernel needs Lockstep's patch, which turns the fault into the call.".into());
    }
    lines.push("Positions between exits are not counted, whatever the PMU: a delta carries them.".into());
    lines
}

fn not_guaranteed(found: &Findings) -> Vec<String> {
    let mut lines = Vec::new();
    let programs = facts::uncontrolled_in_programs(found);
    if !programs.is_empty() {
        lines.push(format!(
            "That programs which execute {} do the same when replayed. Use programs without them, or rely on detection \
             and healing.",
            programs.join(", ")
        ));
    }
    if !found.essentials.cpuid.binds() {
        lines.push(
            "That guests see exactly the CPU profile: a pair needs two hosts whose class is equal to the letter."
                .into(),
        );
    }
    lines.push(
        "That kernel modules of the guest keep to the log where its kernel has neither symbols nor CONFIG_KALLSYMS: they \
         are not looked through for RDTSC, RDRAND and RDSEED then. A start says so."
            .into(),
    );
    if found.essentials.paging == Paging::Hardware {
        lines.push(
            "That accessed and dirty bits in the guest's page tables are equal: the CPU sets them as its TLB needs. A \
             difference is detected and healed."
                .into(),
        );
    }
    if found.essentials.engine == Engine::Emulator {
        lines.push(
            "That any kernel boots: an instruction unknown to KVM's emulator and to us stops the machine.".into(),
        );
    }
    lines.push(
        "What has not been verified on any host is off: freezing the TSC by scaling, and positions counted by the PMU."
            .into(),
    );
    lines
}

/// Widths of the table's columns.
const WIDTHS: [usize; 3] = [34, 44, 50];

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Host class: {}", self.class)?;
        writeln!(f, "CPU profile: {}", self.profile.as_deref().unwrap_or("none"))?;
        writeln!(f)?;
        row(f, ["FACT", "RESULT", "CONSEQUENCE"])?;
        for fact in &self.facts {
            row(f, [&fact.fact, &fact.result, &fact.consequence])?;
        }
        for (title, lines) in [
            ("This host cannot be used", &self.obstacles),
            ("What follows", &self.what_follows),
            ("What is not guaranteed here", &self.not_guaranteed),
        ] {
            if lines.is_empty() {
                continue;
            }
            writeln!(f, "\n{title}\n")?;
            for line in lines {
                for (number, part) in wrap(line, WIDTHS.iter().sum()).into_iter().enumerate() {
                    writeln!(f, "{} {part}", if number == 0 { "-" } else { " " })?;
                }
            }
        }
        writeln!(f, "\nAll experiments took {} ms.", self.findings.took_ms)
    }
}

fn row(f: &mut fmt::Formatter<'_>, cells: [&str; 3]) -> fmt::Result {
    let [first, second, third] = [0, 1, 2].map(|column| wrap(cells[column], WIDTHS[column]));
    let part = |cell: &[String], line: usize| cell.get(line).cloned().unwrap_or_default();
    for line in 0..first.len().max(second.len()).max(third.len()) {
        let text = format!(
            "{:3$}  {:4$}  {}",
            part(&first, line),
            part(&second, line),
            part(&third, line),
            WIDTHS[0],
            WIDTHS[1]
        );
        writeln!(f, "{}", text.trim_end())?;
    }
    Ok(())
}

/// Breaks text at spaces into lines of at most `width` characters; a longer word stands alone.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.len() - 1;
        if lines[last].is_empty() {
            lines[last].push_str(word);
        } else if lines[last].chars().count() + 1 + word.chars().count() <= width {
            lines[last].push(' ');
            lines[last].push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_broken_at_spaces_and_none_is_lost() {
        let text = "one two three averyveryverylongword four";
        let lines = wrap(text, 9);
        assert_eq!(lines, ["one two", "three", "averyveryverylongword", "four"]);
        assert_eq!(lines.join(" "), text);
        assert_eq!(wrap("", 9), [""]);
    }
}
