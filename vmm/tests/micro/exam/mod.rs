//! One exam, sat by the machine that KVM runs and by the scripted one: what an oracle may rely on, whichever it has before it.
//! Who tests an oracle on a script tests it for the machine.

mod candidate;
mod examiner;
mod items;

use candidate::{Real, Scripted};

use super::harness::no_kvm;

/// Each item is a test for either candidate.
macro_rules! exam {
    ($($item:ident),* $(,)?) => {
        mod real {
            $(#[test]
            fn $item() {
                if !super::no_kvm() {
                    super::items::$item::<super::Real>();
                }
            })*
        }

        mod scripted {
            $(#[test]
            fn $item() {
                super::items::$item::<super::Scripted>();
            })*
        }
    };
}

exam!(
    a_natural_stop_has_its_number_before_its_turn,
    the_clock_enters_before_the_access,
    a_halted_guest_has_turn_after_turn_and_no_slice,
    an_oracle_lets_go_of_a_halted_guest,
    hlt_with_interrupts_off_is_the_end,
    a_reset_is_the_end,
    a_power_off_is_the_end,
    the_end_of_the_log_runs_nothing,
    a_forced_stop_has_no_number_and_carries_another_machine,
    no_forced_stop_where_no_interrupt_can_enter,
    a_window_comes_back_where_an_interrupt_can_enter,
    an_interrupt_waits_until_it_can_enter,
    an_epoch_ends_alike_on_two_machines,
    an_epoch_at_a_forced_stop_is_refused,
    a_clock_step_of_a_year_is_refused,
    a_completion_that_nobody_asked_for_is_refused,
    a_random_value_that_is_missing_is_refused,
);
