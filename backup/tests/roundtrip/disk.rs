//! A disk in memory, that is served when the simulation says so.

use std::collections::VecDeque;

use crossbeam_channel::{Receiver, Sender, unbounded};
use lockstep_node::host::disk::{Disks, Done, IO_ERROR};
use lockstep_vmm::devices::{DiskOp, DiskRequest};
use lockstep_vmm::scripted::DISK_BYTES;

pub struct Disk {
    requests: Receiver<DiskRequest>,
    done: Sender<Done>,
    image: Vec<u8>,
    /// What was asked for and is not done, oldest first.
    pub waiting: VecDeque<DiskRequest>,
}

impl Disk {
    /// A disk, and what the vCPU thread has of it.
    pub fn new() -> (Self, Disks) {
        let (queue, requests) = unbounded();
        let (done, finished) = unbounded();
        let disk = Self {
            requests,
            done,
            image: (0..DISK_BYTES).map(|at| (at / 512 + at % 7) as u8).collect(),
            waiting: VecDeque::new(),
        };
        (disk, Disks::served(vec![queue], finished))
    }

    /// Takes what was asked for in; how many that is.
    pub fn listen(&mut self) -> usize {
        let before = self.waiting.len();
        self.waiting.extend(self.requests.try_iter());
        self.waiting.len() - before
    }

    /// Serves the oldest; a read may fail.
    pub fn serve(&mut self, fails: bool) {
        let Some(DiskRequest { disk, request, op }) = self.waiting.pop_front() else {
            return;
        };
        let at = |sector: u64| sector as usize * 512;
        let (status, data) = match op {
            DiskOp::Read { .. } if fails => (IO_ERROR, None),
            DiskOp::Read { sector, bytes } => (0, Some(self.image[at(sector)..][..bytes as usize].to_vec())),
            DiskOp::Write { sector, data } => {
                self.image[at(sector)..][..data.len()].copy_from_slice(&data);
                (0, None)
            }
            DiskOp::Flush | DiskOp::Discard { .. } | DiskOp::WriteZeroes { .. } => (0, None),
        };
        // Nobody takes it any more when the machine is gone.
        let _ = self.done.send(Done {
            disk,
            request,
            status,
            data,
        });
    }
}
