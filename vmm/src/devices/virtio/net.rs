//! A network interface (virtio 1.2, section 5.1): two queues, whole frames, no offloads.
//!
//! A frame that the guest sends is captured at the stop at which the driver notifies the device. A frame for the guest
//! that finds no receive buffer, or one that is too small, is dropped and counted (the small buffer stays for the next
//! frame), as is a frame of the guest's without a whole header or of an impossible length.

use lockstep_proto::model::{MTU_REVISION, MTUS};
use serde::{Deserialize, Serialize};
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;

use super::queue::{MAX_QUEUE_SIZE, Malformed, gather, scatter, section, total};
use super::{Device, Io};
use crate::devices::effect::Effect;
use crate::devices::error::DeviceError;

pub(in crate::devices) const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// `struct virtio_net_hdr` with `num_buffers`, which is always there with VERSION_1 (5.1.6.1).
const HEADER: u64 = 12;
/// A frame has at least addresses and type.
const MIN_FRAME: u64 = 14;
/// A payload of 65,535 bytes, header and VLAN tag.
const MAX_FRAME: u64 = 65_535 + 18;

/// What an interface has dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicCounters {
    /// Frames for the guest without a receive buffer, or with one that was too small.
    pub rx_dropped: u64,
    /// Frames from the guest that were no frames.
    pub tx_dropped: u64,
}

#[derive(Debug)]
pub(in crate::devices) struct Net {
    nic: u32,
    mac: [u8; 6],
    /// What the guest is told that a packet may have, if it is.
    mtu: Option<u16>,
    counters: NicCounters,
    /// Of those for the guest, the ones that were larger than its buffer, since this program has the machine: no part of its
    /// state.
    too_large: u64,
}

impl Net {
    pub(in crate::devices) fn new(
        nic: u32,
        config: &lockstep_proto::NicConfig,
        revision: u32,
    ) -> Result<Self, DeviceError> {
        let mtu = match config.mtu {
            0 => None,
            mtu if revision < MTU_REVISION => {
                return Err(DeviceError::Config(format!(
                    "network interface {nic} cannot have an MTU of {mtu}: that needs device model revision {MTU_REVISION}, and \
                     the machine has {revision}"
                )));
            }
            mtu => Some(u16::try_from(mtu).ok().filter(|_| MTUS.contains(&mtu)).ok_or_else(|| {
                let (least, most) = (MTUS.start(), MTUS.end());
                DeviceError::Config(format!(
                    "network interface {nic} cannot have an MTU of {mtu}: it has {least} to {most}"
                ))
            })?),
        };
        match <[u8; 6]>::try_from(config.mac.as_ref()) {
            Ok(mac) if mac[0] & 1 == 0 && mac != [0; 6] => Ok(Self {
                nic,
                mac,
                mtu,
                counters: NicCounters::default(),
                too_large: 0,
            }),
            _ => Err(DeviceError::Config(format!(
                "network interface {nic} needs a MAC address of one station"
            ))),
        }
    }

    pub(in crate::devices) fn counters(&self) -> NicCounters {
        self.counters
    }

    /// Frames for the guest that were larger than its buffers.
    pub(in crate::devices) fn too_large(&self) -> u64 {
        self.too_large
    }

    /// Checks a frame for the guest.
    pub(in crate::devices) fn check_frame(frame: &[u8]) -> Result<(), DeviceError> {
        if (MIN_FRAME..=MAX_FRAME).contains(&(frame.len() as u64)) {
            return Ok(());
        }
        Err(DeviceError::WrongLength {
            what: "frame received",
            expected: MAX_FRAME as usize,
            got: frame.len(),
        })
    }

    /// A frame came that nobody wants.
    pub(in crate::devices) fn drop_frame(&mut self) {
        self.counters.rx_dropped += 1;
    }

    /// A frame came that was checked; the driver is up.
    pub(in crate::devices) fn receive(&mut self, frame: &[u8], io: &mut Io<'_>) -> Result<(), Malformed> {
        let Some(chain) = io.pop(RECEIVE)? else {
            self.drop_frame();
            return Ok(());
        };
        let length = HEADER + frame.len() as u64;
        if total(&chain.writable) < length {
            io.put_back(RECEIVE);
            self.too_large += 1;
            self.drop_frame();
            return Ok(());
        }
        // No offloads: all of the header is zero but `num_buffers`, the last field.
        let mut header = [0; HEADER as usize];
        header[10] = 1;
        scatter(io.ram, &section(&chain.writable, 0, HEADER), &header)?;
        scatter(io.ram, &section(&chain.writable, HEADER, frame.len() as u64), frame)?;
        io.push_used(RECEIVE, chain.head, length as u32)
    }
}

impl Device for Net {
    type State = NicCounters;

    const ID: u32 = VIRTIO_ID_NET;
    const QUEUES: &'static [u16] = &[MAX_QUEUE_SIZE, MAX_QUEUE_SIZE];

    fn features(&self) -> u64 {
        1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_STATUS | u64::from(self.mtu.is_some()) << VIRTIO_NET_F_MTU
    }

    /// `struct virtio_net_config` (5.1.4): the address, and the link is up; behind the number of queue pairs, which counts for
    /// nobody, the MTU.
    fn config(&self) -> Vec<u8> {
        let mut config = self.mac.to_vec();
        config.extend((VIRTIO_NET_S_LINK_UP as u16).to_le_bytes());
        if let Some(mtu) = self.mtu {
            config.extend([0; 2]);
            config.extend(mtu.to_le_bytes());
        }
        config
    }

    fn process(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), Malformed> {
        if queue != TRANSMIT {
            return Ok(());
        }
        while let Some(chain) = io.pop(TRANSMIT)? {
            let length = total(&chain.readable).saturating_sub(HEADER);
            if (MIN_FRAME..=MAX_FRAME).contains(&length) {
                let data = gather(io.ram, &section(&chain.readable, HEADER, length))?;
                io.effects.push(Effect::Frame { nic: self.nic, data });
            } else {
                self.counters.tx_dropped += 1;
            }
            io.push_used(TRANSMIT, chain.head, 0)?;
        }
        Ok(())
    }

    fn forget(&mut self, _queue: usize) {}

    fn state(&self) -> &NicCounters {
        &self.counters
    }

    fn set_state(&mut self, state: NicCounters) -> Result<(), DeviceError> {
        self.counters = state;
        Ok(())
    }
}

#[cfg(test)]
#[path = "net_tests.rs"]
mod tests;
