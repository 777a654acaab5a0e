//! What devices ask the outside world for.

use serde::{Deserialize, Serialize};

/// Something that the guest did and that the outside world has to see, in the order in which it did it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect {
    /// Bytes that the guest wrote to its serial console.
    Console(Vec<u8>),
    /// An Ethernet frame that the guest sent.
    Frame {
        /// The network interface's index.
        nic: u32,
        /// The frame, without checksum.
        data: Vec<u8>,
    },
    /// A disk request; to be answered with [`disk_completion`](super::Devices::disk_completion).
    Disk(DiskRequest),
    /// The guest wants entropy; to be answered with [`entropy_input`](super::Devices::entropy_input), oldest first.
    Entropy {
        /// How many bytes, exactly.
        bytes: u32,
    },
    /// The guest asked for a reset of the machine.
    Reset,
    /// The guest powered the machine off.
    PowerOff,
}

/// A request to one of the disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRequest {
    /// The disk's index.
    pub disk: u32,
    /// The request's number on its disk, from 0, never reused.
    pub request: u64,
    /// What to do.
    pub op: DiskOp,
}

/// What a disk is asked to do. Sectors have 512 bytes; every range lies within the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskOp {
    /// Read. The data come with the completion.
    Read {
        /// First sector.
        sector: u64,
        /// Length, a multiple of 512.
        bytes: u32,
    },
    /// Write the data, captured when the guest notified the device.
    Write {
        /// First sector.
        sector: u64,
        /// The data; a multiple of 512 bytes.
        data: Vec<u8>,
    },
    /// Make all completed writes durable.
    Flush,
    /// The guest no longer needs the contents.
    Discard {
        /// First sector.
        sector: u64,
        /// Number of sectors.
        sectors: u32,
    },
    /// Fill with zeroes.
    WriteZeroes {
        /// First sector.
        sector: u64,
        /// Number of sectors.
        sectors: u32,
        /// Whether the range may be deallocated instead.
        unmap: bool,
    },
}
