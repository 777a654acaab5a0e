//! The entropy device (virtio 1.2, section 5.4).
//!
//! Each buffer becomes a request for its length, 256 bytes at most, and is answered in order. At most
//! [`MAX_OUTSTANDING`] are outstanding; further buffers wait in the ring. Requests whose queue went away are still
//! answered, and reach the guest's memory no more.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::queue::{MAX_QUEUE_SIZE, Malformed, Piece, scatter, section, total};
use super::{Device, Io};
use crate::devices::effect::Effect;
use crate::devices::error::DeviceError;

/// The longest request.
const MAX_BYTES: u64 = 256;
/// How many requests are with the host at most.
const MAX_OUTSTANDING: usize = 16;
const QUEUE_SIZE: u16 = 16;

/// Where an answer goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Target {
    head: u16,
    data: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Outstanding {
    bytes: u32,
    /// `None` once its queue has gone away.
    target: Option<Target>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::devices) struct EntropyState {
    outstanding: VecDeque<Outstanding>,
}

#[derive(Debug, Default)]
pub(in crate::devices) struct Entropy {
    state: EntropyState,
}

impl Entropy {
    /// The lengths of the requests that the host has, oldest first.
    pub(in crate::devices) fn outstanding(&self) -> impl Iterator<Item = u32> + '_ {
        self.state.outstanding.iter().map(|it| it.bytes)
    }

    /// Checks an answer against the oldest request.
    pub(in crate::devices) fn check_answer(&self, bytes: &[u8]) -> Result<(), DeviceError> {
        let expected = self
            .state
            .outstanding
            .front()
            .ok_or(DeviceError::NoEntropyRequest)?
            .bytes as usize;
        let got = bytes.len();
        if got == expected {
            Ok(())
        } else {
            Err(DeviceError::WrongLength {
                what: "entropy",
                expected,
                got,
            })
        }
    }

    /// An answer that was checked. Then there is room for another request.
    pub(in crate::devices) fn answer(&mut self, bytes: &[u8], live: bool, io: &mut Io<'_>) -> Result<(), Malformed> {
        let target = self.state.outstanding.pop_front().and_then(|it| it.target);
        if !live {
            return Ok(());
        }
        if let Some(target) = target {
            scatter(io.ram, &target.data, bytes)?;
            io.push_used(0, target.head, bytes.len() as u32)?;
        }
        self.process(0, io)
    }
}

impl Device for Entropy {
    type State = EntropyState;

    const ID: u32 = VIRTIO_ID_RNG;
    const QUEUES: &'static [u16] = &[QUEUE_SIZE];

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn process(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), Malformed> {
        while self.state.outstanding.len() < MAX_OUTSTANDING {
            let Some(chain) = io.pop(queue)? else { break };
            let bytes = total(&chain.writable).min(MAX_BYTES);
            if bytes == 0 {
                // Nothing to fill; the driver gets it back as it is.
                io.push_used(queue, chain.head, 0)?;
                continue;
            }
            let target = Some(Target {
                head: chain.head,
                data: section(&chain.writable, 0, bytes),
            });
            self.state.outstanding.push_back(Outstanding {
                bytes: bytes as u32,
                target,
            });
            io.effects.push(Effect::Entropy { bytes: bytes as u32 });
        }
        Ok(())
    }

    fn forget(&mut self, _queue: usize) {
        for outstanding in &mut self.state.outstanding {
            outstanding.target = None;
        }
    }

    fn state(&self) -> &EntropyState {
        &self.state
    }

    fn set_state(&mut self, state: EntropyState) -> Result<(), DeviceError> {
        let sound = |it: &Outstanding| {
            let target = it.target.as_ref();
            (1..=MAX_BYTES).contains(&u64::from(it.bytes))
                && target.is_none_or(|target| total(&target.data) == u64::from(it.bytes))
                && target.is_none_or(|target| target.data.len() <= usize::from(MAX_QUEUE_SIZE))
        };
        if state.outstanding.len() > MAX_OUTSTANDING || !state.outstanding.iter().all(sound) {
            return Err(DeviceError::State("the outstanding entropy requests are impossible"));
        }
        self.state = state;
        Ok(())
    }
}

#[cfg(test)]
#[path = "entropy_tests.rs"]
mod tests;
