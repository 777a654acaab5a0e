//! The registers at the last natural stops. Both sides of a pair keep them: a divergence is found where a batch or an epoch
//! ends, and this tells at which stop it was first to be seen.

use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};

use lockstep_proto::RegisterSet;
use lockstep_proto::quantity::StopNumber;
use lockstep_vmm::machine::Seen;

/// Stops that are kept.
pub const KEPT: usize = 4096;
/// Names of the registers, in the order of KVM's `struct kvm_regs`.
pub const NAMES: [&str; 18] = [
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
    "rip", "rflags",
];

type Registers = [u64; NAMES.len()];

/// The last register sets of a machine, shared with the thread that may have to tell them.
#[derive(Clone, Debug, Default)]
pub struct History(Arc<Mutex<VecDeque<(StopNumber, Registers)>>>);

impl History {
    /// Keeps where `machine` is, if that is a further natural stop.
    pub fn keep(&self, machine: &dyn Seen) {
        let r = machine.regs();
        let registers = [
            r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rsp, r.rbp, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14,
            r.r15, r.rip, r.rflags,
        ];
        self.push(machine.stop(), registers);
    }

    fn push(&self, stop: StopNumber, registers: Registers) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.back().is_some_and(|(last, _)| *last >= stop) {
            return;
        }
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back((stop, registers));
    }

    /// All of them, to be sent.
    pub fn to_message(&self) -> Vec<RegisterSet> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let set = |(stop, registers): &(StopNumber, Registers)| RegisterSet {
            stop: stop.get(),
            registers: registers.to_vec(),
        };
        kept.iter().map(set).collect()
    }

    /// Where the other side's registers differ first from these, for people.
    pub fn compare(&self, other: &[RegisterSet]) -> String {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut compared = 0;
        for set in other {
            let Ok(at) = kept.binary_search_by_key(&StopNumber::new(set.stop), |(stop, _)| *stop) else {
                continue;
            };
            let expected = &kept[at].1;
            if set.registers.len() != expected.len() {
                return format!("the other side's registers at stop {} are not a set", set.stop);
            }
            if *expected != set.registers[..] {
                return difference(StopNumber::new(set.stop), expected, &set.registers);
            }
            compared += 1;
        }
        format!(
            "registers are equal at all of the last {compared} stops that both sides have: memory or devices differ"
        )
    }
}

fn difference(stop: StopNumber, expected: &[u64], actual: &[u64]) -> String {
    let mut text = format!("registers differ first at stop {stop}:");
    for ((name, expected), actual) in NAMES.iter().zip(expected).zip(actual) {
        let mark = if expected == actual { ' ' } else { '*' };
        // A string takes all that is written.
        let _ = write!(
            text,
            "\n  {mark} {name:>6} expected {expected:016x} actual {actual:016x}"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(stops: std::ops::Range<u64>) -> History {
        let history = History::default();
        for stop in stops {
            history.push(StopNumber::new(stop), [stop; NAMES.len()]);
        }
        history
    }

    #[test]
    fn the_first_difference_is_told() {
        let expected = history(0..100);
        let mut actual = history(10..90).to_message();
        actual[30].registers[16] = 7;
        actual[31].registers[0] = 7;
        let text = expected.compare(&actual);
        assert!(text.starts_with("registers differ first at stop 40:"), "{text}");
        assert!(
            text.contains("*    rip expected 0000000000000028 actual 0000000000000007"),
            "{text}"
        );
        assert_eq!(text.matches('*').count(), 1);
    }

    #[test]
    fn what_is_equal_is_said_to_be() {
        let text = history(0..100).compare(&history(50..200).to_message());
        assert!(
            text.starts_with("registers are equal at all of the last 50 stops"),
            "{text}"
        );
        assert!(history(0..0).compare(&[]).contains("last 0 stops"));
    }

    #[test]
    fn is_bounded_and_keeps_each_stop_once() {
        let kept = history(0..KEPT as u64 + 5);
        kept.push(StopNumber::new(KEPT as u64 + 4), [0; NAMES.len()]);
        let message = kept.to_message();
        assert_eq!((message.len(), message[0].stop), (KEPT, 5));
        assert_eq!(message[KEPT - 1].registers[0], KEPT as u64 + 4);
    }

    #[test]
    fn a_set_that_is_none_is_refused() {
        let set = RegisterSet {
            stop: 1,
            registers: vec![1],
        };
        assert!(history(0..2).compare(&[set]).contains("not a set"));
    }
}
