//! What the clock of a machine that goes on from a snapshot does about the time that has gone by since then.

use anyhow::{Result, bail};
use clap::ValueEnum;
use lockstep_vmm::machine::Machine;

use crate::host::clock::{INSANE, calendar_since, realtime};

const SECOND: i128 = 1_000_000_000;

/// See above. Guest time itself never steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Clock {
    /// It goes on from where it was.
    Freeze,
    /// It comes back to the host's calendar by gaining a little.
    Slew,
    /// Its CMOS clock shows the host's calendar. The guest's own clock does when the guest reads that one.
    Set,
}

impl Clock {
    /// Does what is to be done before the machine runs, and refuses what cannot be.
    pub fn prepare(self, machine: &mut Machine) -> Result<()> {
        let behind = calendar_since(realtime(), machine.config().rtc_base) - i128::from(machine.now().ns());
        match self {
            Self::Freeze => {}
            Self::Slew => check_slewing(behind)?,
            Self::Set => machine.set_rtc(base_for(machine.config().rtc_base, behind))?,
        }
        Ok(())
    }
}

fn check_slewing(behind: i128) -> Result<()> {
    if behind.abs() > i128::from(INSANE) {
        bail!(
            "the guest's clock is {} s off this host's calendar, and by --clock slew it would come back from {} s at most: \
             take `freeze` or `set`",
            behind / SECOND,
            i128::from(INSANE) / SECOND
        );
    }
    Ok(())
}

/// What a CMOS clock that is so many nanoseconds behind has to show at guest time zero, to the nearest second.
fn base_for(rtc_base: i64, behind: i128) -> i64 {
    let seconds = (behind + SECOND / 2).div_euclid(SECOND);
    i64::try_from(i128::from(rtc_base) + seconds).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_far_off_is_not_slewed() {
        for (behind, slews) in [
            (0, true),
            (1000 * SECOND, true),
            (1000 * SECOND + 1, false),
            (-1000 * SECOND, true),
            (-1001 * SECOND, false),
        ] {
            assert_eq!(check_slewing(behind).is_ok(), slews, "{behind}");
        }
        let error = check_slewing(7200 * SECOND).unwrap_err().to_string();
        assert!(
            error.contains("7200 s off") && error.contains("1000 s at most"),
            "{error}"
        );
    }

    #[test]
    fn a_cmos_clock_is_set_to_the_nearest_second() {
        for (behind, base) in [
            (0, 1000),
            (SECOND / 2 - 1, 1000),
            (SECOND / 2, 1001),
            (7200 * SECOND, 8200),
            (-SECOND / 2 - 1, 999),
            (i128::MAX / 2, i64::MAX),
        ] {
            assert_eq!(base_for(1000, behind), base, "{behind}");
        }
    }
}
