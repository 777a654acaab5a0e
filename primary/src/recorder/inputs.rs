//! What enters: what waits outside, as far as the machine has room for it.

use lockstep_node::host::disk::IO_ERROR;
use lockstep_node::host::random;
use lockstep_proto::{DiskCompletion, Frame, Turn};
use lockstep_vmm::devices::CTRL_ALT_DEL;
use lockstep_vmm::machine::Seen;

use super::{RecordError, Recorder};

/// Most frames that enter in one turn.
const FRAMES_PER_TURN: usize = 64;

impl Recorder {
    /// Takes what waits outside into `turn`, as far as the machine has room.
    pub(super) fn collect(&mut self, machine: &dyn Seen, turn: &mut Turn) {
        self.world.inbox.bell.answer();
        let room = machine.devices().console_room();
        if self.typed.len() < room {
            while let Ok(bytes) = self.world.inbox.console.try_recv() {
                self.typed.extend(bytes);
            }
        }
        turn.console = take(&mut self.typed, room);
        if std::mem::take(&mut self.asks) {
            if machine.devices().hears_power_button() {
                turn.power_button = true;
            } else {
                // Keys that wait already have the same to say.
                self.keys = CTRL_ALT_DEL.to_vec();
            }
        }
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
            self.world.kernel.fill_random(&mut buffer)?;
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

/// Random bytes from the host.
pub(super) fn fill_random(buffer: &mut [u8]) -> Result<(), RecordError> {
    let what = "getrandom";
    random::fill(buffer).map_err(|cause| RecordError::Host { what, cause })
}
