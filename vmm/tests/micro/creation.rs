//! Machines that are made while another one of the same thread is kicked.

use lockstep_vmm::machine::Machine;

use super::harness::{config, no_kvm, seed};
use super::kicks::Kicker;

#[test]
fn machines_are_made_beside_the_kicks_of_another() {
    if no_kvm() {
        return;
    }
    let mut kicked = Machine::create(config()).expect("a machine");
    let kicker = Kicker::start(&mut kicked, seed(), 50);
    for _ in 0..50 {
        Machine::create(config()).expect("another machine");
    }
    kicker.stop();
}
