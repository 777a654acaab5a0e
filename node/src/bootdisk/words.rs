//! The kernel's command line from what the guest's own configuration says and what the operator adds.
//!
//! The operator's words are not touched: where they contradict the machine they are refused when it is booted. The guest's
//! own were written for another machine: what cannot be here is left out, and told.

use lockstep_vmm::loader::cmdline::{self, Facts};

/// A vDSO is for the operator to want: an image's word was meant for a machine that traps nothing.
const WITHOUT: Facts = Facts {
    acpi: false,
    guarded: false,
};
const WITH_ACPI: Facts = Facts { acpi: true, ..WITHOUT };

/// The words of the image that this machine can have, then the operator's; and what was left out.
pub fn merge(image: &str, operator: &str) -> (String, Vec<String>) {
    let mut kept = Vec::new();
    let mut notes = Vec::new();
    for word in cmdline::words(image) {
        if word.starts_with("console=") && !word.starts_with("console=ttyS0") {
            notes.push(format!("`{word}` is left out: the machine's console is ttyS0"));
            continue;
        }
        // Alone, it contradicts or it does not; whether this machine has ACPI follows from the kernel, which has it told.
        match cmdline::compose(&word, &[], WITHOUT).and_then(|_| cmdline::compose(&word, &[], WITH_ACPI)) {
            Ok(_) => kept.push(word),
            Err(cmdline::CmdlineError::Conflict { needed, why, .. }) => {
                notes.push(format!("`{word}` is left out: this machine has `{needed}`, as {why}"));
            }
            Err(error) => notes.push(format!("`{word}` is left out: {error}")),
        }
    }
    if image.split_whitespace().any(|word| word == "--") {
        notes.push("what stands behind `--` is left out: give it to init by `cmdline`".into());
    }
    let operator = operator.trim();
    if !operator.is_empty() {
        kept.push(operator.into());
    }
    (kept.join(" "), notes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn harmless_words_stay_and_others_are_told() {
        let image =
            "root=UUID=1 ro console=tty0 console=ttyS0,115200 quiet vdso=1 apic \"a=b c\" nolapic notsc acpi=off -- x";
        let (line, notes) = merge(image, " single root=/dev/vdb ");
        assert_eq!(
            line,
            "root=UUID=1 ro console=ttyS0,115200 quiet \"a=b c\" nolapic single root=/dev/vdb"
        );
        for word in ["`console=tty0`", "`vdso=1`", "`apic`", "`notsc`", "`acpi=off`", "`--`"] {
            assert!(notes.iter().any(|note| note.contains(word)), "{word}: {notes:?}");
        }
        assert_eq!(notes.len(), 6, "{notes:?}");
    }

    #[test]
    fn the_operators_contradictions_are_left_to_be_refused() {
        let (line, notes) = merge("", "vdso=1");
        assert_eq!((line.as_str(), notes.len()), ("vdso=1", 0));
        assert!(cmdline::compose(&line, &[], WITHOUT).is_err());
        assert_eq!(merge("quiet a\u{1}b", ""), ("quiet".into(), merge("a\u{1}b", "").1));
    }
}
