//! How a recording begins: whether with a boot, and of which of the machine's.

use lockstep_proto::Identity;

/// How a recording begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// While the machine ran.
    Running,
    /// From a snapshot.
    Restored,
    /// The machine was booted, after so many resets that its node had counted.
    Booted { resets: u64 },
}

impl Beginning {
    /// As the log tells it. An older program does not say whether a part begins with the machine.
    pub fn of(identity: &Identity) -> Self {
        let resets = identity.tenure.as_ref().map_or(0, |tenure| tenure.restarts);
        if identity.part > 0 && identity.disk_digest_chunk > 0 && !identity.from_start {
            Self::Running
        } else if identity.kernel_digest.is_empty() {
            Self::Restored
        } else {
            Self::Booted { resets }
        }
    }

    /// In a sentence.
    pub fn words(self) -> String {
        match self {
            Self::Running => "the part begins while the machine runs".into(),
            Self::Restored => "the machine was restored from a snapshot".into(),
            Self::Booted { resets: 0 } => "the machine was booted".into(),
            Self::Booted { resets } => {
                format!("the machine was booted anew after its guest's reset (its node's {resets}.)")
            }
        }
    }

    /// In a table.
    pub fn short(self) -> String {
        match self {
            Self::Running => "while it runs".into(),
            Self::Restored => "from a snapshot".into(),
            Self::Booted { resets: 0 } => "boot".into(),
            Self::Booted { resets } => format!("boot after reset {resets}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_proto::Tenure;

    #[test]
    fn a_boot_is_told_from_a_part_that_goes_on() {
        let digest = || vec![0; 16].into();
        let tenure = |restarts| {
            Some(Tenure {
                restarts,
                ..Tenure::default()
            })
        };
        let first = Identity {
            from_start: true,
            part: 1,
            disk_digest_chunk: 65536,
            kernel_digest: digest(),
            tenure: tenure(0),
            ..Identity::default()
        };
        let again = Identity {
            tenure: tenure(2),
            ..first.clone()
        };
        let goes_on = Identity {
            from_start: false,
            ..again.clone()
        };
        let restored = Identity {
            kernel_digest: Vec::new().into(),
            ..first.clone()
        };
        let old = Identity {
            disk_digest_chunk: 0,
            from_start: false,
            part: 0,
            tenure: None,
            ..first.clone()
        };
        for (identity, beginning, short) in [
            (first, Beginning::Booted { resets: 0 }, "boot"),
            (again, Beginning::Booted { resets: 2 }, "boot after reset 2"),
            (goes_on, Beginning::Running, "while it runs"),
            (restored, Beginning::Restored, "from a snapshot"),
            (old, Beginning::Booted { resets: 0 }, "boot"),
        ] {
            assert_eq!(Beginning::of(&identity), beginning);
            assert_eq!(beginning.short(), short);
            assert!(beginning.words().contains("machine"));
        }
    }
}
