//! Batches as they lie in a file: turns that do nothing but sample the clock ("ticks", most of them) take two numbers
//! instead of a message, a third to a half of the bytes.

use lockstep_proto::{Batch, PackedBatch, Turn};

use crate::error::Violation;
use crate::limits::MAX_TURNS;

/// The gap and the clock step of a turn that has nothing else.
fn as_tick(turn: &Turn) -> Option<(u32, u64)> {
    let clock = turn.clock?;
    let rest = turn.random.is_none()
        && turn.frames.is_empty()
        && turn.console.is_empty()
        && turn.keyboard.is_empty()
        && !turn.power_button
        && turn.disks.is_empty()
        && turn.entropy.is_empty()
        && turn.forced.is_none()
        && turn.epoch.is_none();
    rest.then_some((turn.gap, clock))
}

/// Packs a batch.
pub fn pack(batch: &Batch) -> PackedBatch {
    let mut packed = PackedBatch {
        first_stop: batch.first_stop,
        last_stop: batch.last_stop,
        digest: batch.digest.clone(),
        terms: batch.terms.clone(),
        ..PackedBatch::default()
    };
    let mut before = 0;
    for turn in &batch.turns {
        if let Some((gap, clock)) = as_tick(turn) {
            packed.ticks.extend([gap.into(), clock]);
            before += 1;
        } else {
            packed.turns.push(turn.clone());
            packed.ticks_before.push(before);
            before = 0;
        }
    }
    packed
}

/// Unpacks a batch; refuses one whose numbers do not fit together or that would hold more than [`MAX_TURNS`] turns.
pub fn unpack(packed: PackedBatch) -> Result<Batch, Violation> {
    let turns = packed.turns.len() + packed.ticks.len() / 2;
    if turns > MAX_TURNS {
        return Err(Violation::TooMuch {
            what: "turns in a batch",
            value: turns as u64,
            limit: MAX_TURNS as u64,
        });
    }
    if !packed.ticks.len().is_multiple_of(2) || packed.ticks_before.len() != packed.turns.len() {
        return Err(Violation::Rule("a batch's ticks do not fit its turns"));
    }
    let mut batch = Batch {
        first_stop: packed.first_stop,
        last_stop: packed.last_stop,
        digest: packed.digest,
        turns: Vec::with_capacity(turns),
        terms: packed.terms,
    };
    let mut ticks = packed.ticks.chunks_exact(2).map(|pair| {
        let gap = u32::try_from(pair[0]).map_err(|_| Violation::TooMuch {
            what: "stops between two turns",
            value: pair[0],
            limit: u32::MAX.into(),
        })?;
        Ok(Turn {
            gap,
            clock: Some(pair[1]),
            ..Turn::default()
        })
    });
    for (before, turn) in packed.ticks_before.into_iter().zip(packed.turns) {
        for _ in 0..before {
            let tick = ticks
                .next()
                .ok_or(Violation::Rule("a batch has fewer ticks than it says"))?;
            batch.turns.push(tick?);
        }
        batch.turns.push(turn);
    }
    for tick in ticks {
        batch.turns.push(tick?);
    }
    Ok(batch)
}

#[cfg(test)]
mod tests {
    use lockstep_proto::TermBegun;
    use prost::Message;

    use super::*;

    fn tick(gap: u32, ns: u64) -> Turn {
        Turn {
            gap,
            clock: Some(ns),
            ..Turn::default()
        }
    }

    fn typed(gap: u32) -> Turn {
        Turn {
            console: b"x"[..].into(),
            ..tick(gap, 5)
        }
    }

    #[test]
    fn the_order_of_ticks_and_turns_is_kept() {
        for pattern in 0..1u32 << 7 {
            let turn = |at: u32| if pattern >> at & 1 == 1 { tick(at, 9) } else { typed(at) };
            let batch = Batch {
                first_stop: 3,
                last_stop: 900,
                digest: vec![1; 16].into(),
                turns: (0..7).map(turn).collect(),
                ..Batch::default()
            };
            let packed = pack(&batch);
            assert_eq!(packed.ticks.len() as u32, 2 * pattern.count_ones());
            assert_eq!(unpack(packed).unwrap(), batch, "{pattern:b}");
        }
    }

    #[test]
    fn terms_are_kept_and_do_not_count_as_turns() {
        let term = TermBegun {
            term: 7,
            why: "fencing (lost-connection)".into(),
            stop: 3,
            guest_ns: 9,
        };
        let batch = Batch {
            turns: vec![tick(0, 1), typed(0)],
            terms: vec![term],
            ..Batch::default()
        };
        let packed = pack(&batch);
        let bytes = packed.encode_to_vec();
        assert_eq!(unpack(PackedBatch::decode(&bytes[..]).unwrap()).unwrap(), batch);
        // What a program made of it that did not know the field yet: the same turns.
        let without = Batch {
            terms: Vec::new(),
            ..batch
        };
        let old = pack(&without).encode_to_vec();
        assert!(
            bytes.starts_with(&old),
            "the field comes last, and nothing else is changed by it"
        );
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        let good = pack(&Batch {
            turns: vec![tick(1, 1), typed(1), tick(1, 1)],
            ..Batch::default()
        });
        let broken = |change: &dyn Fn(&mut PackedBatch)| {
            let mut packed = good.clone();
            change(&mut packed);
            unpack(packed)
        };
        assert!(broken(&|_| ()).is_ok());
        assert!(broken(&|packed| packed.ticks.truncate(3)).is_err());
        assert!(broken(&|packed| packed.ticks_before[0] = 3).is_err());
        assert!(broken(&|packed| packed.ticks_before.clear()).is_err());
        assert!(broken(&|packed| packed.ticks[0] = 1 << 32).is_err());
        assert!(broken(&|packed| packed.ticks = vec![0; 2 * MAX_TURNS + 2]).is_err());
    }
}
