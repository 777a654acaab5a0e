//! The guest kernel's command line: what the machine needs, what its devices add, what the user wants.
//!
//! Linux takes the last of several values of a key (or joins them), so a user's value that contradicts what the machine
//! needs cannot be left standing beside ours: it is refused, and the message says why the machine needs it.

use thiserror::Error;

/// Longest command line that an x86 kernel takes (`COMMAND_LINE_SIZE` less the terminating zero).
pub const MAX_LENGTH: usize = 2047;

/// Why there is no command line.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CmdlineError {
    /// The user wants what the machine cannot have.
    #[error(
        "the kernel command line says `{given}`, but this machine needs `{needed}`: {why}. Leave `{key}` out; it is set for you"
    )]
    Conflict {
        /// The word that was given.
        given: String,
        /// The word that is needed.
        needed: String,
        /// Its key.
        key: String,
        /// Why it is needed.
        why: &'static str,
    },
    /// It is too long.
    #[error("the kernel command line has {length} bytes with what the machine adds; the kernel takes {MAX_LENGTH}: shorten it by {}", .length - MAX_LENGTH)]
    TooLong {
        /// How long it is.
        length: usize,
    },
    /// It holds a character that ends it or splits it.
    #[error("the kernel command line has a control character (byte {byte:#04x} at offset {at}): remove it")]
    Control {
        /// The byte.
        byte: u8,
        /// Where it stands.
        at: usize,
    },
    /// ACPI is to be off, and the devices are found by it.
    #[error(
        "the kernel command line says `{0}`, but this kernel finds the machine's devices by ACPI: leave it out, or say `--acpi off` and give a kernel with CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES"
    )]
    Acpi(String),
    /// A device's words do.
    #[error("a device's kernel parameter `{0}` is empty or has white space or control characters")]
    DeviceWord(String),
}

/// What of a machine its command line depends on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts {
    /// It has tables, which the kernel must look at.
    pub acpi: bool,
    /// RDTSC in the guest's programs is answered by the machine ([`crate::machine::Machine::guard_programs`]).
    pub guarded: bool,
}

enum Rule {
    /// This value and no other.
    Fixed,
    /// The same where RDTSC in programs is not answered by the machine; else this value unless another is given.
    FixedUnguarded,
    /// A comma-separated list that must hold at least these.
    AtLeast,
    /// This value unless another is given.
    Default,
}

struct Need {
    key: &'static str,
    value: Option<&'static str>,
    rule: Rule,
    why: &'static str,
}

const fn need(key: &'static str, value: Option<&'static str>, rule: Rule, why: &'static str) -> Need {
    Need { key, value, rule, why }
}

/// The key that is ours to say only where there are no tables.
const ACPI: &str = "acpi";

/// What the machine needs, in the order in which it is written.
const NEEDS: &[Need] = &[
    need(
        "console",
        Some("ttyS0"),
        Rule::Default,
        "the machine's console is its serial port",
    ),
    need(
        "tsc_early_khz",
        Some("1000000"),
        Rule::Fixed,
        "the machine's time stamp counter runs at 1 GHz",
    ),
    need(
        "tsc",
        Some("reliable"),
        Rule::Fixed,
        "the machine's clock is its time stamp counter, whose reads are trapped and logged",
    ),
    need(
        "vdso",
        Some("0"),
        Rule::FixedUnguarded,
        "the vDSO reads the time stamp counter in user mode, where it cannot be trapped on this host",
    ),
    need(
        "vdso32",
        Some("0"),
        Rule::FixedUnguarded,
        "32-bit programs have a vDSO of their own, which does the same",
    ),
    need(
        "nolapic",
        None,
        Rule::Fixed,
        "the machine has no local APIC; its interrupts come from two 8259A",
    ),
    need(
        "noapic",
        None,
        Rule::Fixed,
        "the machine has no I/O APIC; its interrupts come from two 8259A",
    ),
    need(ACPI, Some("off"), Rule::Fixed, "the machine has no ACPI tables"),
    need("noxsave", None, Rule::Fixed, "what XSAVE writes depends on the host"),
    need(
        "nofsgsbase",
        None,
        Rule::Fixed,
        "not every KVM gives the guest these instructions",
    ),
    need(
        "clearcpuid",
        Some("smap,smep,popcnt,erms,fsrm,rdrand,rdseed,serialize"),
        Rule::AtLeast,
        "not every KVM can execute these features in the kernel, and some show them whatever the CPU profile says",
    ),
    need(
        "lpj",
        Some("1000000"),
        Rule::Default,
        "calibrating the delay loop takes long where ring-0 code is emulated",
    ),
    need(
        "nokaslr",
        None,
        Rule::Fixed,
        "the kernel is loaded at the address that it is linked for",
    ),
    need(
        "random.trust_bootloader",
        Some("on"),
        Rule::Fixed,
        "the boot seed, which is logged, is what seeds the kernel's random numbers",
    ),
    need(
        "randomize_kstack_offset",
        Some("off"),
        Rule::Default,
        "each system call would read the time stamp counter, which is a stop",
    ),
];

/// Words that contradict a need under another name.
const OPPOSITES: &[(&str, &str)] = &[
    ("lapic", "nolapic"),
    ("x2apic", "nolapic"),
    ("apic", "noapic"),
    ("notsc", "tsc"),
];

/// The command line: what the machine needs and the user has not said, then the devices' words, then the user's words
/// as they are.
pub fn compose(user: &str, device_words: &[String], facts: Facts) -> Result<String, CmdlineError> {
    let Facts { acpi, guarded } = facts;
    if let Some((at, byte)) = user
        .bytes()
        .enumerate()
        .find(|(_, b)| b.is_ascii_control() && *b != b'\t')
    {
        return Err(CmdlineError::Control { byte, at });
    }
    if let Some(word) = device_words
        .iter()
        .find(|w| w.is_empty() || w.chars().any(|c| c.is_whitespace() || c.is_control()))
    {
        return Err(CmdlineError::DeviceWord(word.clone()));
    }
    let given = words(user);
    let mut line: Vec<String> = Vec::new();
    if acpi && let Some(off) = given.iter().find(|word| turns_acpi_off(word)) {
        return Err(CmdlineError::Acpi(off.clone()));
    }
    for need in NEEDS.iter().filter(|need| !(acpi && need.key == ACPI)) {
        let word = need
            .value
            .map_or_else(|| need.key.to_owned(), |value| format!("{}={value}", need.key));
        let mut said = false;
        for given in &given {
            let (key, value) = split(given);
            let opposite = OPPOSITES.iter().any(|(o, k)| *k == need.key && same_key(&key, o));
            if !opposite && !same_key(&key, need.key) {
                continue;
            }
            let agrees = !opposite
                && match need.rule {
                    Rule::Fixed => value.as_deref() == need.value,
                    Rule::AtLeast => contains_all(value.as_deref(), need.value),
                    Rule::FixedUnguarded => guarded || value.as_deref() == need.value,
                    Rule::Default => true,
                };
            if !agrees {
                return Err(CmdlineError::Conflict {
                    given: given.clone(),
                    needed: word,
                    key,
                    why: need.why,
                });
            }
            said = true;
        }
        if !said {
            line.push(word);
        }
    }
    line.extend(device_words.iter().cloned());
    let user = user.trim();
    if !user.is_empty() {
        line.push(user.to_owned());
    }
    let line = line.join(" ");
    if line.len() > MAX_LENGTH {
        return Err(CmdlineError::TooLong { length: line.len() });
    }
    Ok(line)
}

/// `acpi=off`, or `acpi=ht`, which leaves the tables of processors.
fn turns_acpi_off(word: &str) -> bool {
    let (key, value) = split(word);
    same_key(&key, ACPI) && matches!(value.as_deref(), Some("off" | "ht"))
}

/// The kernel's words (those after ` -- ` are init's), split as the kernel does: at white space outside double quotes.
pub fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    for c in line.chars().chain(std::iter::once(' ')) {
        match c {
            '"' => {
                quoted = !quoted;
                word.push(c);
            }
            c if c.is_ascii_whitespace() && !quoted => {
                if word == "--" {
                    return words;
                }
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    if !word.trim().is_empty() {
        words.push(word);
    }
    words
}

/// A word's key and value, without the quotes.
fn split(word: &str) -> (String, Option<String>) {
    let word = word
        .strip_prefix('"')
        .map_or(word, |w| w.strip_suffix('"').unwrap_or(w));
    match word.split_once('=') {
        Some((key, value)) => {
            let value = value
                .strip_prefix('"')
                .map_or(value, |v| v.strip_suffix('"').unwrap_or(v));
            (key.to_owned(), Some(value.to_owned()))
        }
        None => (word.to_owned(), None),
    }
}

/// To the kernel, `-` and `_` are the same in a key.
fn same_key(a: &str, b: &str) -> bool {
    a.len() == b.len()
        && a.bytes()
            .zip(b.bytes())
            .all(|(a, b)| a == b || (matches!(a, b'-' | b'_') && matches!(b, b'-' | b'_')))
}

fn contains_all(given: Option<&str>, needed: Option<&str>) -> bool {
    let given: Vec<&str> = given.unwrap_or("").split(',').collect();
    needed.unwrap_or("").split(',').all(|n| given.contains(&n))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEEDED: &str = "console=ttyS0 tsc_early_khz=1000000 tsc=reliable vdso=0 vdso32=0 nolapic noapic acpi=off noxsave nofsgsbase \
                          clearcpuid=smap,smep,popcnt,erms,fsrm,rdrand,rdseed,serialize lpj=1000000 nokaslr random.trust_bootloader=on \
                          randomize_kstack_offset=off";

    const NOTHING: Facts = Facts {
        acpi: false,
        guarded: false,
    };
    const TABLES: Facts = Facts { acpi: true, ..NOTHING };

    #[test]
    fn what_the_machine_needs_is_there() {
        assert_eq!(compose("", &[], NOTHING).unwrap(), NEEDED);
        assert_eq!(
            compose("  quiet panic=-1\t", &[], NOTHING).unwrap(),
            format!("{NEEDED} quiet panic=-1")
        );
        let devices = [
            "virtio_mmio.device=4K@0xd0000000:5".to_owned(),
            "root=/dev/vda".to_owned(),
        ];
        assert_eq!(
            compose("init=/init -- tsc=unstable", &devices, NOTHING).unwrap(),
            format!("{NEEDED} virtio_mmio.device=4K@0xd0000000:5 root=/dev/vda init=/init -- tsc=unstable")
        );
    }

    #[test]
    fn a_word_that_agrees_is_not_repeated() {
        let line = compose(
            "vdso=0 nolapic tsc=\"reliable\" clearcpuid=popcnt,avx,smap,smep,serialize,rdseed,rdrand,fsrm,erms",
            &[],
            NOTHING,
        )
        .unwrap();
        assert_eq!(line.matches("vdso=0").count(), 1);
        assert_eq!(line.matches("nolapic").count(), 1);
        assert_eq!(line.matches("clearcpuid").count(), 1);
        assert_eq!(line.matches("tsc=").count(), 1);
    }

    #[test]
    fn with_acpi_the_kernel_is_not_told_to_leave_it() {
        let without = NEEDED.replace(" acpi=off", "");
        assert_eq!(compose("quiet", &[], TABLES).unwrap(), format!("{without} quiet"));
        assert_eq!(
            compose("acpi=force", &[], TABLES).unwrap(),
            format!("{without} acpi=force")
        );
        for off in ["acpi=off", "\"acpi=off\"", "quiet acpi=ht"] {
            let error = compose(off, &[], TABLES).unwrap_err();
            assert!(matches!(error, CmdlineError::Acpi(_)), "{error}");
            assert!(error.to_string().contains("--acpi off"), "{error}");
        }
        assert!(compose("acpi=force", &[], NOTHING).is_err());
    }

    #[test]
    fn a_default_gives_way() {
        let line = compose("console=tty0 lpj=5", &[], NOTHING).unwrap();
        assert!(!line.contains("ttyS0") && !line.contains("lpj=1000000") && line.ends_with("console=tty0 lpj=5"));
    }

    /// It stays off unless somebody wants it, and is refused where a program's RDTSC is the host's.
    #[test]
    fn a_vdso_may_be_had_where_rdtsc_in_programs_is_answered() {
        let guarded = Facts {
            guarded: true,
            ..NOTHING
        };
        assert_eq!(compose("", &[], guarded).unwrap(), NEEDED);
        for word in ["vdso=1", "vdso32=1"] {
            let line = compose(word, &[], guarded).unwrap();
            let key = word.split_once('=').unwrap().0;
            assert!(line.ends_with(word) && !line.contains(&format!("{key}=0")), "{line}");
            assert!(compose(word, &[], NOTHING).is_err());
        }
    }

    #[test]
    fn a_word_that_contradicts_is_refused() {
        for (bad, needed) in [
            ("vdso=1", "vdso=0"),
            ("tsc=unstable", "tsc=reliable"),
            ("tsc=reliable tsc=nowatchdog", "tsc=reliable"),
            ("quiet tsc-early_khz=2000000", "tsc_early_khz=1000000"),
            (
                "clearcpuid=smap",
                "clearcpuid=smap,smep,popcnt,erms,fsrm,rdrand,rdseed,serialize",
            ),
            ("random.trust_bootloader=off", "random.trust_bootloader=on"),
            ("random.trust-bootloader=off", "random.trust_bootloader=on"),
            ("lapic", "nolapic"),
            ("notsc", "tsc=reliable"),
            ("\"vdso=1\"", "vdso=0"),
            ("nolapic=x", "nolapic"),
        ] {
            let error = compose(bad, &[], NOTHING).expect_err(bad);
            assert!(matches!(error, CmdlineError::Conflict { .. }), "{error}");
            let text = error.to_string();
            assert!(text.contains(needed), "{text}");
        }
    }

    #[test]
    fn words_are_split_as_the_kernel_does() {
        assert_eq!(words("a  b=\"c d\"\te -- f"), ["a", "b=\"c d\"", "e"]);
        assert_eq!(words("a \"b c"), ["a", "\"b c "]);
        assert!(words("  ").is_empty());
    }

    #[test]
    fn length_and_control_characters_are_bounded() {
        let room = MAX_LENGTH - NEEDED.len() - 1;
        assert_eq!(compose(&"x".repeat(room), &[], NOTHING).unwrap().len(), MAX_LENGTH);
        assert_eq!(
            compose(&"x".repeat(room + 3), &[], NOTHING),
            Err(CmdlineError::TooLong { length: MAX_LENGTH + 3 })
        );
        assert_eq!(
            compose("a\nb", &[], NOTHING),
            Err(CmdlineError::Control { byte: b'\n', at: 1 })
        );
        assert_eq!(
            compose("a\0b", &[], NOTHING),
            Err(CmdlineError::Control { byte: 0, at: 1 })
        );
        assert!(matches!(
            compose("", &["a b".into()], NOTHING),
            Err(CmdlineError::DeviceWord(_))
        ));
    }
}
