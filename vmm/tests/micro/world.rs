//! What stands around a machine: the same while recording and while replaying.

use std::collections::HashMap;

use lockstep_vmm::devices::{DiskOp, DiskRequest, Effect};

/// What stands around a machine, the same on both sides: images, and what came out.
#[derive(Debug, Default)]
pub struct World {
    pub images: Vec<Vec<u8>>,
    pub requests: Vec<DiskRequest>,
    pub reads: HashMap<(u32, u64), Vec<u8>>,
    pub entropy: Vec<u32>,
    pub console: Vec<u8>,
    pub sent: Vec<Vec<u8>>,
}

impl World {
    /// Does what the effects ask for.
    pub fn absorb(&mut self, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Console(bytes) => self.console.extend(bytes),
                Effect::Frame { data, .. } => self.sent.push(data.clone()),
                Effect::Entropy { bytes } => self.entropy.push(*bytes),
                Effect::Reset | Effect::PowerOff => {}
                Effect::Disk(request) => {
                    let image = &mut self.images[request.disk as usize];
                    match &request.op {
                        DiskOp::Read { sector, bytes } => {
                            let at = *sector as usize * 512;
                            let data = image[at..at + *bytes as usize].to_vec();
                            self.reads.insert((request.disk, request.request), data);
                        }
                        DiskOp::Write { sector, data } => {
                            let at = *sector as usize * 512;
                            image[at..at + data.len()].copy_from_slice(data);
                        }
                        _ => {}
                    }
                    self.requests.push(request.clone());
                }
            }
        }
    }
}
