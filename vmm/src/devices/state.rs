//! The devices as bytes.
//!
//! The encoding (postcard) is a function of the state, so that the bytes serve as the digest's input as well as for
//! snapshots. A saved state may come from outside: its length is bounded, every device checks its part, and encoding what
//! was decoded must give the same bytes.

use serde::{Deserialize, Serialize};

use super::pic::Pic;
use super::pit::Pit;
use super::reset::ResetPorts;
use super::rtc::Rtc;
use super::serial::{Uart, UartState};
use super::virtio::block::{self, BlockState};
use super::virtio::entropy::EntropyState;
use super::virtio::mmio::Registers;
use super::{DeviceError, Devices, NicCounters};

/// The encoding's version. The device model's revision is the configuration's.
const VERSION: u8 = 1;
/// What a state has at most beside captured write data: the fixed parts, and pieces of outstanding requests.
const MAX_FIXED: usize = 1 << 20;

/// What is written; [`Saved`] is the same, owned.
#[derive(Serialize)]
struct Saving<'a> {
    pic: &'a Pic,
    pit: &'a Pit,
    rtc: &'a Rtc,
    uart: UartState,
    reset: &'a ResetPorts,
    disks: Vec<(&'a Registers, &'a BlockState)>,
    nics: Vec<(&'a Registers, &'a NicCounters)>,
    entropy: (&'a Registers, &'a EntropyState),
}

#[derive(Deserialize)]
struct Saved {
    pic: Pic,
    pit: Pit,
    rtc: Rtc,
    uart: UartState,
    reset: ResetPorts,
    disks: Vec<(Registers, BlockState)>,
    nics: Vec<(Registers, NicCounters)>,
    entropy: (Registers, EntropyState),
}

impl Devices {
    /// The state of all devices. Equal states give equal bytes.
    pub fn save(&self) -> Vec<u8> {
        let state = Saving {
            pic: &self.pic,
            pit: &self.pit,
            rtc: &self.rtc,
            uart: self.uart.save(),
            reset: &self.reset,
            disks: self.disks.iter().map(super::Mmio::save).collect(),
            nics: self.nics.iter().map(super::Mmio::save).collect(),
            entropy: self.entropy.save(),
        };
        // Plain data into a growing vector: postcard's errors are those of bounded buffers and unsized sequences.
        let bytes = postcard::to_extend(&state, vec![VERSION]).expect("plain data are always encoded");
        // What a revision adds comes behind what was there: a machine of revision 1 is saved as it ever was.
        let bytes = match &self.keyboard {
            Some(keyboard) => postcard::to_extend(keyboard, bytes).expect("plain data are always encoded"),
            None => bytes,
        };
        match &self.power {
            Some(power) => postcard::to_extend(power, bytes).expect("plain data are always encoded"),
            None => bytes,
        }
    }

    /// The state of each device by itself, with its name and its number among those of its kind: what a report says of
    /// states that differ.
    pub fn pieces(&self, each: &mut impl FnMut(&'static str, Option<u32>, &[u8])) {
        fn encode(state: &impl Serialize) -> Vec<u8> {
            postcard::to_extend(state, Vec::new()).expect("plain data are always encoded")
        }
        each("interrupt controllers", None, &encode(&self.pic));
        each("timer", None, &encode(&self.pit));
        each("CMOS clock", None, &encode(&self.rtc));
        each("serial port", None, &encode(&self.uart.save()));
        each("reset ports", None, &encode(&self.reset));
        if let Some(keyboard) = &self.keyboard {
            each("keyboard", None, &encode(keyboard));
        }
        if let Some(power) = &self.power {
            each("power button", None, &encode(power));
        }
        for (number, disk) in (0..).zip(&self.disks) {
            each("disk", Some(number), &encode(&disk.save()));
        }
        for (number, nic) in (0..).zip(&self.nics) {
            each("network card", Some(number), &encode(&nic.save()));
        }
        each("entropy device", None, &encode(&self.entropy.save()));
    }

    /// The devices of a machine as they were saved.
    pub fn restore(config: &lockstep_proto::MachineConfig, bytes: &[u8]) -> Result<Self, DeviceError> {
        let mut devices = Self::new(config)?;
        let per_disk = block::MAX_OUTSTANDING * (block::MAX_DATA as usize + 8192);
        if bytes.len() > MAX_FIXED + devices.disks.len() * per_disk {
            return Err(DeviceError::State("it is longer than any state of this machine"));
        }
        let Some((&VERSION, encoded)) = bytes.split_first() else {
            return Err(DeviceError::State("another version wrote it"));
        };
        // Bytes after the state, and devices more or fewer than this machine's, show in the comparison at the end.
        let damaged = |_| DeviceError::State("it is damaged, or of a machine with other devices");
        let (saved, mut added): (Saved, _) = postcard::take_from_bytes(encoded).map_err(damaged)?;
        if let Some(keyboard) = &mut devices.keyboard {
            (*keyboard, added) = postcard::take_from_bytes(added).map_err(damaged)?;
            if !keyboard.is_sound() {
                return Err(DeviceError::State("the keyboard is in an impossible state"));
            }
        }
        if let Some(power) = &mut devices.power {
            *power = postcard::from_bytes(added).map_err(damaged)?;
            if !power.is_sound() {
                return Err(DeviceError::State("the power button is in an impossible state"));
            }
        }
        if !(saved.pic.is_sound() && saved.pit.is_sound() && saved.rtc.is_sound()) {
            return Err(DeviceError::State(
                "the interrupt controller, timer or clock is in an impossible state",
            ));
        }
        devices.pic = saved.pic;
        devices.pit = saved.pit;
        devices.rtc = saved.rtc;
        devices.uart = Uart::restore(saved.uart)?;
        devices.reset = saved.reset;
        for (slot, state) in devices.disks.iter_mut().zip(saved.disks) {
            slot.restore(state)?;
        }
        for (slot, state) in devices.nics.iter_mut().zip(saved.nics) {
            slot.restore(state)?;
        }
        devices.entropy.restore(saved.entropy)?;
        if devices.save() != bytes {
            return Err(DeviceError::State(
                "it is of a machine with other devices, or not how this one encodes it",
            ));
        }
        Ok(devices)
    }
}
