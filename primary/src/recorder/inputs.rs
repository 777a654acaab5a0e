//! What enters: what waits outside, as far as the machine has room for it.

use lockstep_proto::{DiskCompletion, Frame, Turn};
use lockstep_vmm::machine::Machine;

use super::{RecordError, Recorder};
use crate::host::disk::IO_ERROR;

/// Most frames that enter in one turn.
const FRAMES_PER_TURN: usize = 64;

impl Recorder {
    /// Takes what waits outside into `turn`, as far as the machine has room.
    pub(super) fn collect(&mut self, machine: &Machine, turn: &mut Turn) {
        self.world.inbox.bell.answer();
        let room = machine.devices().console_room();
        if self.typed.len() < room {
            while let Ok(bytes) = self.world.inbox.console.try_recv() {
                self.typed.extend(bytes);
            }
        }
        turn.console = take(&mut self.typed, room);
        turn.keyboard = take(&mut self.keys, machine.devices().keyboard_room());
        turn.disks.append(&mut self.errors);
        while let Some((disk, request, status)) = self.world.disks.poll() {
            let completion = DiskCompletion {
                disk,
                request,
                status: status.into(),
            };
            if status == IO_ERROR && self.withhold(&completion) {
                continue;
            }
            turn.disks.push(completion);
        }
        while turn.frames.len() < FRAMES_PER_TURN {
            let Some((nic, frame)) = self.frames.take().or_else(|| self.world.inbox.frames.try_recv().ok()) else {
                break;
            };
            // The machine drops what it has no buffer for: wait with it, so that none is lost to a guest that is slow.
            let offered = turn.frames.iter().filter(|frame| frame.nic == nic).count();
            if offered < machine.devices().frame_room(nic, machine.memory().ram()) {
                turn.frames.push(Frame {
                    nic,
                    data: frame.into(),
                });
            } else {
                self.frames = Some((nic, frame));
                break;
            }
        }
    }

    pub(super) fn fill_entropy(&mut self, turn: &mut Turn) -> Result<(), RecordError> {
        for bytes in self.entropy_wanted.drain(..) {
            let mut buffer = vec![0; bytes as usize];
            fill_random(&mut buffer)?;
            turn.entropy.push(buffer.into());
        }
        Ok(())
    }
}

/// As many of the first bytes as there is room for.
fn take(bytes: &mut Vec<u8>, room: usize) -> bytes::Bytes {
    let taken = bytes.len().min(room);
    bytes.drain(..taken).collect::<Vec<_>>().into()
}

/// Random bytes from the host's kernel.
pub fn fill_random(buffer: &mut [u8]) -> Result<(), RecordError> {
    let mut done = 0;
    while done < buffer.len() {
        match rustix::rand::getrandom(&mut buffer[done..], rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => done += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                return Err(RecordError::Host {
                    what: "getrandom",
                    cause: error.into(),
                });
            }
        }
    }
    Ok(())
}
