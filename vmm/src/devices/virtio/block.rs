//! A disk (virtio 1.2, section 5.2).
//!
//! A request is checked completely, and its data are captured, at the stop at which the driver notifies the device; what
//! is sound becomes an [`Effect::Disk`] and ends when a turn says so. What is not is answered at once, without an effect:
//! beyond the disk's end, not a multiple of a sector, too long, or a write to a read-only disk: IOERR; unknown: UNSUPP.
//! Without a place for the status byte or a whole header there is no answering, and the device needs a reset.
//!
//! At most [`MAX_OUTSTANDING`] requests are outstanding; further ones wait in the ring. Requests whose queue went away
//! (a reset) are still carried out and completed by the host, and reach the guest's memory no more.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use virtio_bindings::bindings::virtio_blk as blk;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use super::queue::{Chain, MAX_QUEUE_SIZE, Malformed, Piece, gather, scatter, section, total};
use super::{Device, Io};
use crate::devices::effect::{DiskOp, DiskRequest, Effect};
use crate::devices::error::DeviceError;

pub(in crate::devices) const SECTOR: u64 = 512;
const HEADER: u64 = 16;
/// The longest request's data: as many segments of such a size.
const SEGMENTS: u32 = 64;
const SEGMENT_BYTES: u32 = 16 << 10;
pub(in crate::devices) const MAX_DATA: u64 = SEGMENTS as u64 * SEGMENT_BYTES as u64;
/// The longest range that a discard or write-zeroes request names.
const MAX_RANGE_SECTORS: u32 = (64 << 20) / SECTOR as u32;
/// How many requests are with the host at most. Bounds what the state holds.
pub(in crate::devices) const MAX_OUTSTANDING: usize = 64;
/// Sectors that a discard is best aligned to.
const DISCARD_ALIGNMENT: u32 = 8;

pub(crate) const STATUS_OK: u8 = blk::VIRTIO_BLK_S_OK as u8;
const STATUS_IOERR: u8 = blk::VIRTIO_BLK_S_IOERR as u8;
const STATUS_UNSUPP: u8 = blk::VIRTIO_BLK_S_UNSUPP as u8;

/// Where a request's answer goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Target {
    head: u16,
    /// Where read data go.
    data: Vec<Piece>,
    /// Where the status byte goes.
    status: u64,
}

/// A request that the host has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Outstanding {
    request: u64,
    op: DiskOp,
    /// `None` once its queue has gone away.
    target: Option<Target>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::devices) struct BlockState {
    next_request: u64,
    outstanding: VecDeque<Outstanding>,
}

#[derive(Debug)]
pub(in crate::devices) struct Block {
    disk: u32,
    sectors: u64,
    read_only: bool,
    serial: [u8; blk::VIRTIO_BLK_ID_BYTES as usize],
    state: BlockState,
}

/// What becomes of a request.
enum Verdict {
    /// The host has to do something.
    Submit(DiskOp),
    /// It is answered at once, with these data.
    Answer(u8, Vec<u8>),
}

impl Block {
    pub(in crate::devices) fn new(disk: u32, config: &lockstep_proto::DiskConfig) -> Result<Self, DeviceError> {
        if config.bytes == 0 || !config.bytes.is_multiple_of(SECTOR) {
            return Err(DeviceError::Config(format!(
                "disk {disk} has {} bytes; give a multiple of 512",
                config.bytes
            )));
        }
        let mut serial = [0; blk::VIRTIO_BLK_ID_BYTES as usize];
        let name = config.serial.as_bytes();
        if name.len() > serial.len() || !name.is_ascii() {
            return Err(DeviceError::Config(format!(
                "disk {disk}: a serial has at most {} ASCII bytes",
                serial.len()
            )));
        }
        serial[..name.len()].copy_from_slice(name);
        let (sectors, read_only) = (config.bytes / SECTOR, config.read_only);
        Ok(Self {
            disk,
            sectors,
            read_only,
            serial,
            state: BlockState::default(),
        })
    }

    /// The requests that the host has, oldest first.
    pub(in crate::devices) fn outstanding(&self) -> impl Iterator<Item = DiskRequest> + '_ {
        let disk = self.disk;
        self.state.outstanding.iter().map(move |it| DiskRequest {
            disk,
            request: it.request,
            op: it.op.clone(),
        })
    }

    /// Checks a completion against the request it is for.
    pub(in crate::devices) fn check_completion(
        &self,
        request: u64,
        status: u8,
        data: Option<&[u8]>,
    ) -> Result<(), DeviceError> {
        let known = self.state.outstanding.iter().find(|it| it.request == request);
        let outstanding = known.ok_or(DeviceError::NotOutstanding {
            disk: self.disk,
            request,
        })?;
        if status > STATUS_UNSUPP {
            return Err(DeviceError::UnknownStatus(status));
        }
        let expected = match outstanding.op {
            DiskOp::Read { bytes, .. } if status == STATUS_OK => bytes as usize,
            _ if data.is_some() => return Err(DeviceError::UnexpectedData),
            _ => return Ok(()),
        };
        let got = data.map_or(0, <[u8]>::len);
        if got == expected {
            Ok(())
        } else {
            Err(DeviceError::WrongLength {
                what: "data read",
                expected,
                got,
            })
        }
    }

    /// A completion that was checked. Then there is room for another request.
    pub(in crate::devices) fn complete(
        &mut self,
        request: u64,
        status: u8,
        data: Option<&[u8]>,
        live: bool,
        io: &mut Io<'_>,
    ) -> Result<(), Malformed> {
        let Some(at) = self.state.outstanding.iter().position(|it| it.request == request) else {
            return Ok(());
        };
        let done = self.state.outstanding.remove(at).and_then(|it| it.target);
        if !live {
            return Ok(());
        }
        if let Some(target) = done {
            let data = data.unwrap_or_default();
            scatter(io.ram, &target.data, data)?;
            answer(io, target.head, target.status, status, data.len() as u32)?;
        }
        self.process(0, io)
    }

    fn examine(&self, chain: &Chain, status_at: u64, io: &Io<'_>) -> Result<Verdict, Malformed> {
        let header = gather(io.ram, &section(&chain.readable, 0, HEADER))?;
        let (Some(kind), Some(sector)) = (le32(&header, 0), le64(&header, 8)) else {
            return Err(Malformed("a disk request's header is short"));
        };
        let given = total(&chain.readable) - HEADER;
        let wanted = status_at;
        let data = section(&chain.readable, HEADER, given);
        Ok(match kind {
            blk::VIRTIO_BLK_T_IN if self.holds(sector, wanted) => Verdict::Submit(DiskOp::Read {
                sector,
                bytes: wanted as u32,
            }),
            blk::VIRTIO_BLK_T_OUT if !self.read_only && self.holds(sector, given) => Verdict::Submit(DiskOp::Write {
                sector,
                data: gather(io.ram, &data)?,
            }),
            blk::VIRTIO_BLK_T_FLUSH => Verdict::Submit(DiskOp::Flush),
            blk::VIRTIO_BLK_T_DISCARD | blk::VIRTIO_BLK_T_WRITE_ZEROES if !self.read_only && given == 16 => {
                self.examine_range(kind, &gather(io.ram, &data)?)
            }
            blk::VIRTIO_BLK_T_GET_ID => Verdict::Answer(STATUS_OK, self.serial.to_vec()),
            blk::VIRTIO_BLK_T_IN
            | blk::VIRTIO_BLK_T_OUT
            | blk::VIRTIO_BLK_T_DISCARD
            | blk::VIRTIO_BLK_T_WRITE_ZEROES => Verdict::Answer(STATUS_IOERR, Vec::new()),
            _ => Verdict::Answer(STATUS_UNSUPP, Vec::new()),
        })
    }

    /// A discard's or write-zeroes' one segment (5.2.6): sector, number of sectors, flags.
    fn examine_range(&self, kind: u32, segment: &[u8]) -> Verdict {
        let (Some(sector), Some(sectors), Some(flags)) = (le64(segment, 0), le32(segment, 8), le32(segment, 12)) else {
            return Verdict::Answer(STATUS_IOERR, Vec::new());
        };
        let zeroes = kind == blk::VIRTIO_BLK_T_WRITE_ZEROES;
        let known = if zeroes {
            blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP
        } else {
            0
        };
        if flags & !known != 0 {
            return Verdict::Answer(STATUS_UNSUPP, Vec::new());
        }
        let end = sector.checked_add(u64::from(sectors));
        if sectors == 0 || sectors > MAX_RANGE_SECTORS || end.is_none_or(|end| end > self.sectors) {
            return Verdict::Answer(STATUS_IOERR, Vec::new());
        }
        Verdict::Submit(if zeroes {
            DiskOp::WriteZeroes {
                sector,
                sectors,
                unmap: flags != 0,
            }
        } else {
            DiskOp::Discard { sector, sectors }
        })
    }

    /// Whether data of this length at this sector are whole sectors, not too many, and within the disk.
    fn holds(&self, sector: u64, bytes: u64) -> bool {
        bytes > 0
            && bytes <= MAX_DATA
            && bytes.is_multiple_of(SECTOR)
            && sector
                .checked_add(bytes / SECTOR)
                .is_some_and(|end| end <= self.sectors)
    }

    fn take(&mut self, chain: &Chain, io: &mut Io<'_>) -> Result<(), Malformed> {
        // The status byte is the last one that the device may write; what is before it is for data.
        let room = total(&chain.writable)
            .checked_sub(1)
            .ok_or(Malformed("a disk request has no status byte"))?;
        let status = section(&chain.writable, room, 1)
            .first()
            .map_or(0, |piece| piece.address);
        match self.examine(chain, room, io)? {
            Verdict::Submit(op) => {
                let request = self.state.next_request;
                self.state.next_request += 1;
                let data = match op {
                    DiskOp::Read { .. } => section(&chain.writable, 0, room),
                    _ => Vec::new(),
                };
                let target = Some(Target {
                    head: chain.head,
                    data,
                    status,
                });
                self.state.outstanding.push_back(Outstanding {
                    request,
                    op: op.clone(),
                    target,
                });
                io.effects.push(Effect::Disk(DiskRequest {
                    disk: self.disk,
                    request,
                    op,
                }));
                Ok(())
            }
            Verdict::Answer(code, mut data) => {
                data.truncate(room as usize);
                scatter(io.ram, &section(&chain.writable, 0, room), &data)?;
                answer(io, chain.head, status, code, data.len() as u32)
            }
        }
    }
}

/// Writes the status byte and returns the chain to the driver.
fn answer(io: &mut Io<'_>, head: u16, status_at: u64, status: u8, data: u32) -> Result<(), Malformed> {
    scatter(
        io.ram,
        &[Piece {
            address: status_at,
            bytes: 1,
        }],
        &[status],
    )?;
    io.push_used(0, head, data + 1)
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

impl Device for Block {
    type State = BlockState;

    const ID: u32 = VIRTIO_ID_BLOCK;
    const QUEUES: &'static [u16] = &[MAX_QUEUE_SIZE];

    fn features(&self) -> u64 {
        let always = 1 << blk::VIRTIO_BLK_F_SIZE_MAX
            | 1 << blk::VIRTIO_BLK_F_SEG_MAX
            | 1 << blk::VIRTIO_BLK_F_BLK_SIZE
            | 1 << blk::VIRTIO_BLK_F_FLUSH;
        always
            | if self.read_only {
                1 << blk::VIRTIO_BLK_F_RO
            } else {
                1 << blk::VIRTIO_BLK_F_DISCARD | 1 << blk::VIRTIO_BLK_F_WRITE_ZEROES
            }
    }

    /// `struct virtio_blk_config` (5.2.4).
    fn config(&self) -> Vec<u8> {
        let mut config = vec![0; 60];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.sectors.to_le_bytes());
        put(8, &SEGMENT_BYTES.to_le_bytes());
        put(12, &SEGMENTS.to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        if !self.read_only {
            put(36, &MAX_RANGE_SECTORS.to_le_bytes());
            put(40, &1_u32.to_le_bytes());
            put(44, &DISCARD_ALIGNMENT.to_le_bytes());
            put(48, &MAX_RANGE_SECTORS.to_le_bytes());
            put(52, &1_u32.to_le_bytes());
            put(56, &[1]);
        }
        config
    }

    fn process(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), Malformed> {
        while self.state.outstanding.len() < MAX_OUTSTANDING {
            let Some(chain) = io.pop(queue)? else { break };
            self.take(&chain, io)?;
        }
        Ok(())
    }

    fn forget(&mut self, _queue: usize) {
        for outstanding in &mut self.state.outstanding {
            outstanding.target = None;
        }
    }

    fn state(&self) -> &BlockState {
        &self.state
    }

    fn set_state(&mut self, state: BlockState) -> Result<(), DeviceError> {
        let mut last = None;
        for it in &state.outstanding {
            let sound = match &it.op {
                DiskOp::Read { sector, bytes } => {
                    let data = it
                        .target
                        .as_ref()
                        .map_or(u64::from(*bytes), |target| total(&target.data));
                    self.holds(*sector, u64::from(*bytes)) && data == u64::from(*bytes)
                }
                DiskOp::Write { sector, data } => !self.read_only && self.holds(*sector, data.len() as u64),
                DiskOp::Flush => true,
                DiskOp::Discard { sector, sectors } | DiskOp::WriteZeroes { sector, sectors, .. } => {
                    !self.read_only
                        && (1..=MAX_RANGE_SECTORS).contains(sectors)
                        && sector
                            .checked_add(u64::from(*sectors))
                            .is_some_and(|end| end <= self.sectors)
                }
            };
            let pieces = it.target.as_ref().map_or(0, |target| target.data.len());
            if !sound || pieces > usize::from(MAX_QUEUE_SIZE) || last >= Some(it.request) {
                return Err(DeviceError::State("an outstanding disk request is impossible"));
            }
            last = Some(it.request);
        }
        if state.outstanding.len() > MAX_OUTSTANDING || last >= Some(state.next_request) {
            return Err(DeviceError::State("the outstanding disk requests are impossible"));
        }
        self.state = state;
        Ok(())
    }
}

#[cfg(test)]
#[path = "block_tests.rs"]
mod tests;
