//! Turns gathered into a batch, and their positions in it.
//!
//! A turn's *gap* is the number of natural stops from the position of the turn before it in the same batch to its own; for
//! the first turn of a batch, from the batch's `first_stop`. Several turns may stand at one stop (gap 0): the guest is
//! halted there and more comes in, or (with `forced`) it was stopped by force after that stop, and before the next. This
//! holds across batches too: the first turn of a batch may stand at the stop that the batch before it ended with.

use bytes::Bytes;
use lockstep_proto::quantity::StopNumber;
use lockstep_proto::{Batch, Turn};
use prost::Message;

use crate::check::{self, Devices};
use crate::error::Violation;
use crate::limits::{DIGEST_BYTES, MAX_PAYLOAD, MAX_TURN_BYTES, MAX_TURNS};

/// Most bytes that an encoded batch has besides its turns: two numbers of 64 bits (11 each) and the digest (18).
const FIXED_BYTES: usize = 40;

/// Gathers the turns of a batch. After [`BatchBuilder::close`], it is ready for the next one.
#[derive(Debug, Clone)]
pub struct BatchBuilder {
    first_stop: StopNumber,
    position: StopNumber,
    bytes: usize,
    turns: Vec<Turn>,
}

impl BatchBuilder {
    /// For a batch that begins at `first_stop`: the natural stop that the previous batch ended with, or where the log
    /// begins.
    pub fn new(first_stop: StopNumber) -> Self {
        Self {
            first_stop,
            position: first_stop,
            bytes: FIXED_BYTES,
            turns: Vec::new(),
        }
    }

    /// Adds a turn at a natural stop, or at the forced stop that followed it. Sets its gap. Refused: a stop before the
    /// last turn's, or more than `u32::MAX` stops after it (close the batch: one without turns covers any number), a turn
    /// that breaks a limit, a batch that is full. Where it is refused, the builder is as it was.
    pub fn push(&mut self, stop: StopNumber, mut turn: Turn) -> Result<(), Violation> {
        if stop < self.position {
            return Err(Violation::Rule("a turn stands before the turn that was pushed last"));
        }
        let gap = stop.since(self.position);
        turn.gap = u32::try_from(gap).map_err(|_| Violation::TooMuch {
            what: "stops between two turns",
            value: gap,
            limit: u32::MAX.into(),
        })?;
        check::turn(&turn, Devices::ANY)?;
        let length = turn.encoded_len();
        let too_much = |what, value: usize, limit: usize| {
            Err(Violation::TooMuch {
                what,
                value: value as u64,
                limit: limit as u64,
            })
        };
        if length > MAX_TURN_BYTES {
            return too_much("encoded bytes of a turn", length, MAX_TURN_BYTES);
        }
        let bytes = self.bytes + 1 + prost::length_delimiter_len(length) + length;
        if bytes > MAX_PAYLOAD as usize {
            return too_much("encoded bytes of a batch", bytes, MAX_PAYLOAD as usize);
        }
        if self.turns.len() == MAX_TURNS {
            return too_much("turns in a batch", MAX_TURNS + 1, MAX_TURNS);
        }
        self.bytes = bytes;
        self.position = stop;
        self.turns.push(turn);
        Ok(())
    }

    /// Ends the batch at the natural stop `last_stop` with the digest chain there. Refused: a stop before the last turn's;
    /// the builder is then as it was. Otherwise it is empty and begins at `last_stop`.
    pub fn close(&mut self, last_stop: StopNumber, digest: [u8; DIGEST_BYTES]) -> Result<Batch, Violation> {
        if last_stop < self.position {
            return Err(Violation::Rule("a batch ends before its last turn"));
        }
        // The next batch will be about as large.
        let next = Vec::with_capacity(self.turns.len());
        let turns = std::mem::replace(&mut self.turns, next);
        let digest = Bytes::copy_from_slice(&digest);
        let batch = Batch {
            first_stop: self.first_stop.get(),
            last_stop: last_stop.get(),
            digest,
            turns,
            terms: Vec::new(),
        };
        (self.first_stop, self.position, self.bytes) = (last_stop, last_stop, FIXED_BYTES);
        Ok(batch)
    }

    /// Encoded size of the batch so far, in bytes; at most 40 too much.
    pub fn encoded_len(&self) -> usize {
        self.bytes
    }

    /// Number of turns so far.
    pub fn len(&self) -> usize {
        self.turns.len()
    }

    /// Whether there is no turn yet.
    pub fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// The natural stop of the last turn, or where the batch begins.
    pub fn position(&self) -> StopNumber {
        self.position
    }

    /// Where the batch begins.
    pub fn first_stop(&self) -> StopNumber {
        self.first_stop
    }
}

/// The turns of a batch with the natural stops that they stand at (or after, where they are forced).
pub fn positions(batch: &Batch) -> impl Iterator<Item = (StopNumber, &Turn)> {
    let first_stop = StopNumber::new(batch.first_stop);
    batch.turns.iter().scan(first_stop, |position, turn| {
        *position = position.plus(turn.gap.into());
        Some((*position, turn))
    })
}

#[cfg(test)]
mod tests {
    use lockstep_proto::Frame;

    use super::*;

    fn at(stop: u64) -> StopNumber {
        StopNumber::new(stop)
    }

    fn clock(ns: u64) -> Turn {
        Turn {
            clock: Some(ns),
            ..Turn::default()
        }
    }

    #[test]
    fn gaps_are_relative_to_the_turn_before_in_the_same_batch() {
        let mut builder = BatchBuilder::new(at(100));
        for stop in [100, 100, 103, 110, 110].map(at) {
            builder.push(stop, clock(1)).unwrap();
        }
        let batch = builder.close(at(120), [9; 16]).unwrap();
        assert_eq!((batch.first_stop, batch.last_stop), (100, 120));
        assert_eq!(batch.turns.iter().map(|t| t.gap).collect::<Vec<_>>(), [0, 0, 3, 7, 0]);
        assert_eq!(
            positions(&batch).map(|(stop, _)| stop).collect::<Vec<_>>(),
            [100, 100, 103, 110, 110].map(at)
        );

        builder.push(at(125), clock(1)).unwrap();
        let next = builder.close(at(125), [9; 16]).unwrap();
        assert_eq!(
            (next.first_stop, next.turns[0].gap),
            (120, 5),
            "relative to first_stop, not to stop 110"
        );
    }

    #[test]
    fn stops_do_not_go_back_or_too_far() {
        let mut builder = BatchBuilder::new(at(100));
        assert!(builder.push(at(99), clock(1)).is_err());
        assert!(builder.push(at(101 + u64::from(u32::MAX)), clock(1)).is_err());
        builder.push(at(100 + u64::from(u32::MAX)), clock(1)).unwrap();
        assert_eq!(builder.len(), 1);
        assert!(builder.close(at(100), [0; 16]).is_err());
        assert_eq!(builder.len(), 1, "still there");
    }

    #[test]
    fn the_size_is_known() {
        let mut builder = BatchBuilder::new(at(u64::MAX - 1000));
        for i in 0..500u64 {
            let frame = Frame {
                nic: 0,
                data: vec![1; (i * i % 1000) as usize].into(),
            };
            builder
                .push(
                    at(u64::MAX - 1000 + i),
                    Turn {
                        frames: vec![frame],
                        ..clock(i << i.min(40))
                    },
                )
                .unwrap();
        }
        let known = builder.encoded_len();
        let real = builder.close(at(u64::MAX), [1; 16]).unwrap().encoded_len();
        assert!((real..real + FIXED_BYTES).contains(&known), "{known} for {real}");
    }

    #[test]
    fn a_batch_and_a_turn_have_limits() {
        let large = |frames: usize| {
            let data = Bytes::from(vec![1; 60_000]);
            Turn {
                frames: vec![Frame { nic: 0, data }; frames],
                ..Turn::default()
            }
        };
        let mut builder = BatchBuilder::new(at(0));
        let frame = Frame {
            nic: 0,
            data: vec![1; 65_537].into(),
        };
        assert!(
            builder
                .push(
                    at(0),
                    Turn {
                        frames: vec![frame],
                        ..Turn::default()
                    }
                )
                .is_err(),
            "a frame over 64 KiB"
        );
        assert!(builder.push(at(0), large(35)).is_err(), "a turn of 2.1 MB");
        assert!(builder.is_empty());
        builder.push(at(0), large(34)).unwrap();
        builder.push(at(0), large(34)).unwrap();
        assert!(builder.push(at(0), large(2)).is_err(), "a batch over 4 MiB");
        assert_eq!(builder.len(), 2);

        let mut builder = BatchBuilder::new(at(0));
        for _ in 0..MAX_TURNS {
            builder.push(at(0), Turn::default()).unwrap();
        }
        assert!(builder.push(at(0), Turn::default()).is_err());
    }
}
