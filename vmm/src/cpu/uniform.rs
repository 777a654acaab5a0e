//! One form for vCPU states that mean the same.
//!
//! A state that is set and read back must be equal, and so must the states of two replicas that executed the same. KVM
//! does not keep that promise for what cannot be observed by the guest:
//!
//! - **Attributes of unusable segments**: of the null selectors that a 64-bit kernel's DS and ES hold. On VMX with
//!   unrestricted guests KVM sets the accessed bit in the type of every segment but LDTR when it is given them, unusable
//!   ones too, so type 0 reads back as 1. On SVM it clears the B bit of an unusable SS. What counts of such a segment is
//!   its selector, FS' and GS' base, and SS' DPL, which is the CPL.
//! - **Events that are over.** KVM keeps vector and error code of the last exception and interrupt that it put into the
//!   guest itself, also long after. It does so where an exit came in the middle of a delivery, as an EPT or NPT violation
//!   of the stack: where pages are mapped is a matter of each host, so replicas differ.
//!
//! Every state that is read goes through [`settle`], so that states in logs, snapshots and digests have this form. The
//! probe sets random states and reads them back ([`crate::probe::states`]): what a host changes beyond this is an obstacle.

use kvm_bindings::{kvm_segment, kvm_sregs, kvm_vcpu_events};

/// Brings a state as KVM reads it into the one form.
pub fn settle(sregs: &mut kvm_sregs, events: &mut kvm_vcpu_events) {
    for segment in segments(sregs) {
        if segment.unusable != 0 {
            let kept = *segment;
            *segment = kvm_segment {
                base: kept.base,
                limit: kept.limit,
                selector: kept.selector,
                dpl: kept.dpl,
                unusable: 1,
                ..kvm_segment::default()
            };
        }
    }
    let exception = &mut events.exception;
    if exception.injected == 0 && exception.pending == 0 {
        exception.nr = 0;
        exception.has_error_code = 0;
        exception.error_code = 0;
        events.exception_has_payload = 0;
        events.exception_payload = 0;
    }
    if events.interrupt.injected == 0 {
        events.interrupt.nr = 0;
        events.interrupt.soft = 0;
    }
}

fn segments(sregs: &mut kvm_sregs) -> [&mut kvm_segment; 8] {
    [
        &mut sregs.cs,
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
        &mut sregs.tr,
        &mut sregs.ldt,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_leaves_no_trace() {
        let mut sregs = kvm_sregs::default();
        let mut events = kvm_vcpu_events::default();
        sregs.ds.unusable = 1;
        sregs.ds.type_ = 1;
        sregs.ds.db = 1;
        events.exception.nr = 14;
        events.exception.has_error_code = 1;
        events.exception.error_code = 6;
        events.interrupt.nr = 0x30;
        events.interrupt.soft = 1;
        settle(&mut sregs, &mut events);
        let mut unusable = kvm_sregs::default();
        unusable.ds.unusable = 1;
        assert_eq!(sregs, unusable);
        assert_eq!(events, kvm_vcpu_events::default());
    }

    #[test]
    fn what_is_pending_stays() {
        let mut sregs = kvm_sregs::default();
        sregs.cs.type_ = 11;
        sregs.ss.type_ = 3;
        let mut events = kvm_vcpu_events::default();
        events.exception.injected = 1;
        events.exception.nr = 13;
        events.exception.has_error_code = 1;
        events.exception.error_code = 0x18;
        events.interrupt.injected = 1;
        events.interrupt.nr = 0x20;
        events.interrupt.shadow = 1;
        let before = (sregs, events);
        settle(&mut sregs, &mut events);
        assert_eq!((sregs, events), before);
    }
}
