//! How a recording begins: whether with a boot, and of which of the machine's.

use lockstep_proto::quantity::StopNumber;
use std::path::Path;

use lockstep_logcodec::{LogError, LogReader, Record};
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

/// Whether a recording goes on with the machine of the one in `before`: that one was, or ended, where it begins. What is
/// damaged before there is not gone on with.
pub fn goes_on(identity: &Identity, before: &Path) -> bool {
    was_at(before, identity.start_stop, &identity.start_chain).unwrap_or(false)
}

/// Whether a batch of the log in `directory` ends with this stop and digest chain.
fn was_at(directory: &Path, stop: u64, chain: &[u8]) -> Result<bool, LogError> {
    let mut reader = LogReader::open(directory)?;
    // Its first batch begins before the stop, or at it.
    reader.seek(StopNumber::new(stop))?;
    while let Some(record) = reader.next_record()? {
        let Record::Batch(batch) = record else { continue };
        if batch.last_stop > stop {
            break;
        }
        if batch.last_stop == stop && batch.digest == chain {
            return Ok(true);
        }
    }
    Ok(false)
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
