//! Whether the guest's kernel has said that it panicked.
//!
//! Nothing but its own words tells: what it does then (its word `panic=`) is a reset like any other. They are a line on the console, which
//! a program can print as well. So this is for the policy of who runs the machine, and for nobody else: no digest and no snapshot has it.

use crate::devices::Effect;

/// What Linux has begun this line with since long before 5.10 (`panic()` in kernel/panic.c).
const WORDS: &[u8] = b"Kernel panic - not syncing";
/// Bytes of a line that are looked at: a time and a caller may stand before the words.
const LINE: usize = 256;
/// Printed bytes after which the words are no longer what went before an end. A call trace has some thousands.
const FORGOTTEN: usize = 64 << 10;

/// A guest's last words.
#[derive(Clone, Debug, Default)]
pub(crate) struct LastWords {
    /// The beginning of the line that is being printed.
    line: Vec<u8>,
    /// Bytes since the kernel has said it.
    since: Option<usize>,
}

impl LastWords {
    /// Hears what a guest prints.
    pub fn hear(&mut self, effects: &[Effect]) {
        for effect in effects {
            if let Effect::Console(bytes) = effect {
                for byte in bytes {
                    self.byte(*byte);
                }
            }
        }
    }

    fn byte(&mut self, byte: u8) {
        self.since = self.since.map(|bytes| bytes + 1).filter(|bytes| *bytes < FORGOTTEN);
        if byte == b'\n' {
            self.line.clear();
        } else if self.line.len() < LINE {
            self.line.push(byte);
            if self.line.ends_with(WORDS) {
                self.since = Some(0);
            }
        }
    }

    /// Whether it has said so a short while ago.
    pub fn panicked(&self) -> bool {
        self.since.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(printed: &[&[u8]]) -> bool {
        let mut words = LastWords::default();
        for bytes in printed {
            words.hear(&[Effect::Console(bytes.to_vec())]);
        }
        words.panicked()
    }

    #[test]
    fn a_panic_is_heard() {
        let trace = "Call Trace:\r\n".repeat(300);
        for (printed, panicked) in [
            (
                &["[    1.5] Kernel panic - not syncing: sysrq triggered crash\r\n"][..],
                true,
            ),
            (&["Kernel panic - not ", "syncing: VFS: Unable to mount root fs"], true),
            (&["Kernel panic - not syncing: x\n", &trace], true),
            (&["[   12.0] reboot: Restarting system\r\n"], false),
            (&["Kernel panic - not\nsyncing"], false),
            (&["Kernel panic", " not syncing"], false),
            (&[""], false),
        ] {
            let printed: Vec<_> = printed.iter().map(|text| text.as_bytes()).collect();
            assert_eq!(after(&printed), panicked, "{printed:?}");
        }
    }

    #[test]
    fn what_was_said_long_ago_is_forgotten_and_no_line_is_kept_whole() {
        let much = vec![b'x'; FORGOTTEN];
        assert!(after(&[WORDS, &much[1..]]));
        assert!(!after(&[WORDS, &much]));
        // Beyond what of a line is looked at.
        assert!(!after(&[&much, WORDS]));
        let mut words = LastWords::default();
        words.hear(&[Effect::Console(much)]);
        assert_eq!(words.line.len(), LINE);
    }
}
