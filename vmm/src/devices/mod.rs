//! The devices of the machine: a PC's board as far as Linux wants one, and virtio devices behind it.
//!
//! Devices are pure state machines. They know no file descriptor, thread or clock: guest time is passed in (`now`, in
//! nanoseconds since the machine's start), what comes from outside is passed in, and what goes out is handed back as
//! [`Effect`]s. So the same accesses and inputs in the same order give the same state, byte for byte of
//! [`Devices::save`], on every replica; and nothing that a guest does is an error here, let alone a panic.
//!
//! | where | what |
//! | --- | --- |
//! | ports 0x20, 0xa0, 0x4d0 | two 8259A interrupt controllers |
//! | ports 0x40, 0x61 | 8254 timer, IRQ 0 |
//! | ports 0x60, 0x64 | 8042 keyboard controller with a keyboard, IRQ 1; before model revision 2, no more than its reset |
//! | ports 0x92, 0xcf9 | resets |
//! | ports 0x70, 0x71 | MC146818 clock, IRQ 8 |
//! | ports 0x3f8 | 16550A console, IRQ 4 |
//! | ports 0x600, 0x604 | ACPI's PM1a event and control blocks with a power button, IRQ 14; since model revision 4 |
//! | from 0xd000_0000, 4 KiB each | virtio: disks, then network interfaces, then the entropy device; IRQs 5, 6, 7, 9 to 12 |

mod bus;
mod effect;
mod error;
mod keyboard;
mod line;
mod pic;
mod pit;
mod power;
mod reset;
mod resources;
mod rtc;
mod serial;
mod state;
#[cfg(test)]
mod testing;
mod virtio;

pub use effect::{DiskOp, DiskRequest, Effect};
pub use error::DeviceError;
pub(crate) use virtio::block::STATUS_OK;
pub use virtio::net::NicCounters;

pub use keyboard::CTRL_ALT_DEL;
pub use resources::{FIXED, FixedHardware, Resources};

use bus::Port;
use keyboard::Keyboard;
use pic::Pic;
use pit::Pit;
use power::Power;
use reset::ResetPorts;
use rtc::Rtc;
use serial::Uart;
use virtio::block::Block;
use virtio::entropy::Entropy;
use virtio::mmio::{Mmio, Slot};
use virtio::net::{Net, RECEIVE};
use virtio::{MAX_SLOTS, SLOT_IRQS};

use lockstep_proto::program::model_revisions;

use crate::memory::GuestRam;

const TIMER_IRQ: u8 = 0;
const KEYBOARD_IRQ: u8 = 1;
const SERIAL_IRQ: u8 = 4;
const RTC_IRQ: u8 = 8;
/// ACPI's system control interrupt: one that no virtio slot has. (It is a disk controller's on a PC that has one.)
const POWER_IRQ: u8 = 14;
/// The last second of the year 9999, which is as far as a clock with four digits for the year goes.
const LAST_SECOND: i64 = 253_402_300_799;

/// All devices of one machine.
#[derive(Debug)]
pub struct Devices {
    pic: Pic,
    pit: Pit,
    rtc: Rtc,
    uart: Uart,
    reset: ResetPorts,
    keyboard: Option<Keyboard>,
    power: Option<Power>,
    disks: Vec<Mmio<Block>>,
    nics: Vec<Mmio<Net>>,
    entropy: Mmio<Entropy>,
}

/// How many of the slots a configuration fills.
fn slots(config: &lockstep_proto::MachineConfig) -> usize {
    config.disks.len().saturating_add(config.nics.len()).saturating_add(1)
}

fn check_rtc_base(base: i64) -> Result<(), DeviceError> {
    if (0..=LAST_SECOND).contains(&base) {
        return Ok(());
    }
    Err(DeviceError::Config(
        "the clock's start is outside the years 1970 to 9999".to_owned(),
    ))
}

impl Devices {
    /// The devices as they are when the machine is switched on.
    pub fn new(config: &lockstep_proto::MachineConfig) -> Result<Self, DeviceError> {
        if !model_revisions().contains(&config.model_revision) {
            return Err(DeviceError::Revision {
                wanted: config.model_revision,
            });
        }
        if slots(config) > MAX_SLOTS {
            let room = MAX_SLOTS - 1;
            return Err(DeviceError::Config(format!(
                "there is room for {room} disks and network interfaces in all"
            )));
        }
        check_rtc_base(config.rtc_base)?;
        let disks = (0..)
            .zip(&config.disks)
            .map(|(index, disk)| Block::new(index, disk).map(Mmio::new));
        let nics = (0..)
            .zip(&config.nics)
            .map(|(index, nic)| Net::new(index, nic, config.model_revision).map(Mmio::new));
        Ok(Self {
            pic: Pic::new(),
            pit: Pit::new(),
            rtc: Rtc::new(config.rtc_base),
            uart: Uart::new(),
            reset: ResetPorts::new(),
            keyboard: config.has_keyboard().then(Keyboard::new),
            power: config.has_power_button().then(Power::new),
            disks: disks.collect::<Result<_, _>>()?,
            nics: nics.collect::<Result<_, _>>()?,
            entropy: Mmio::new(Entropy::default()),
        })
    }

    /// Sets the CMOS clock: at guest time zero it showed `base`, in seconds since 1970.
    pub fn set_rtc(&mut self, base: i64) -> Result<(), DeviceError> {
        check_rtc_base(base)?;
        self.rtc.set_base(base);
        Ok(())
    }

    /// Whether what an access to this port does depends on the guest's time.
    pub fn needs_time(port: u16, write: bool) -> bool {
        bus::needs_time(port, write)
    }

    /// The guest reads a port: one access of 1, 2 or 4 bytes. Where nothing answers, all bits are one.
    pub fn pio_read(&mut self, port: u16, data: &mut [u8], now: u64) {
        if Self::needs_time(port, false) {
            self.advance(now);
        }
        let width = data.len();
        for (byte, at) in data.iter_mut().zip(0..) {
            *byte = match bus::decode(port.wrapping_add(at), width) {
                Some((device, offset)) => self.read_port(device, offset, now),
                None => 0xff,
            };
        }
        self.route_board();
    }

    fn read_port(&mut self, device: Port, offset: u16, now: u64) -> u8 {
        match device {
            Port::MasterPic => self.pic.read(false, offset != 0),
            Port::SlavePic => self.pic.read(true, offset != 0),
            Port::Elcr => self.pic.elcr(offset != 0),
            Port::Pit => self.pit.read(offset, now),
            Port::SystemControlB => self.pit.read_port61(now),
            Port::KeyboardData => self.keyboard.as_mut().map_or(0xff, Keyboard::read_data),
            Port::KeyboardCommand => self
                .keyboard
                .as_ref()
                .map_or_else(ResetPorts::read_keyboard_status, Keyboard::read_status),
            // The index cannot be read back.
            Port::RtcIndex => 0xff,
            Port::RtcData => self.rtc.read(now),
            Port::SystemControlA => self.reset.read_port_a(),
            Port::Serial => self.uart.read(offset),
            Port::PowerEvents => self.power.as_ref().map_or(0xff, |power| power.read_events(offset)),
            Port::PowerControl => self.power.as_ref().map_or(0xff, |power| power.read_control(offset)),
            Port::ResetControl => self.reset.read_control(),
        }
    }

    /// The guest writes a port: one access of 1, 2 or 4 bytes.
    pub fn pio_write(&mut self, port: u16, data: &[u8], now: u64, effects: &mut Vec<Effect>) {
        if Self::needs_time(port, true) {
            self.advance(now);
        }
        for (&byte, at) in data.iter().zip(0..) {
            if let Some((device, offset)) = bus::decode(port.wrapping_add(at), data.len()) {
                self.write_port(device, offset, byte, now, effects);
            }
        }
        self.route_board();
    }

    fn write_port(&mut self, device: Port, offset: u16, value: u8, now: u64, effects: &mut Vec<Effect>) {
        let reset = match device {
            Port::KeyboardData => self.keyboard.as_mut().is_some_and(|it| it.write_data(value)),
            Port::KeyboardCommand => {
                if let Some(keyboard) = &mut self.keyboard {
                    keyboard.write_command(value);
                }
                ResetPorts::keyboard_command(value)
            }
            Port::SystemControlA => self.reset.write_port_a(value),
            Port::ResetControl => self.reset.write_control(value),
            _ => false,
        };
        if reset {
            effects.push(Effect::Reset);
        }
        match device {
            Port::PowerEvents => {
                if let Some(power) = &mut self.power {
                    power.write_events(offset, value);
                }
            }
            Port::PowerControl => {
                if self
                    .power
                    .as_mut()
                    .is_some_and(|power| power.write_control(offset, value))
                {
                    effects.push(Effect::PowerOff);
                }
            }
            Port::MasterPic => self.pic.write(false, offset != 0, value),
            Port::SlavePic => self.pic.write(true, offset != 0, value),
            Port::Elcr => self.pic.set_elcr(offset != 0, value),
            Port::Pit => self.pit.write(offset, value, now),
            Port::SystemControlB => self.pit.write_port61(value, now),
            Port::RtcIndex => self.rtc.select(value),
            Port::RtcData => self.rtc.write(value, now),
            Port::Serial => {
                let mut out = Vec::new();
                self.uart.write(offset, value, &mut out);
                match effects.last_mut() {
                    _ if out.is_empty() => {}
                    Some(Effect::Console(bytes)) => bytes.append(&mut out),
                    _ => effects.push(Effect::Console(out)),
                }
            }
            Port::KeyboardData | Port::KeyboardCommand | Port::SystemControlA | Port::ResetControl => {}
        }
    }

    /// The guest reads memory where there is no RAM. Where nothing answers, all bits are one.
    pub fn mmio_read(&mut self, addr: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((slot, offset)) = bus::slot(addr, data.len())
            && let Some(slot) = self.slot(slot)
        {
            slot.read(offset, data);
        }
    }

    /// The guest writes memory where there is no RAM.
    pub fn mmio_write(&mut self, addr: u64, data: &[u8], ram: &GuestRam, effects: &mut Vec<Effect>) {
        let Some((index, offset)) = bus::slot(addr, data.len()) else {
            return;
        };
        if let Some(slot) = self.slot(index) {
            slot.write(offset, data, ram, effects);
            self.route_slot(index);
        }
    }

    /// Disks first, then network interfaces, then the entropy device.
    fn slot(&mut self, index: usize) -> Option<&mut dyn Slot> {
        let (disks, nics) = (self.disks.len(), self.nics.len());
        if index < disks {
            Some(&mut self.disks[index])
        } else if index < disks + nics {
            Some(&mut self.nics[index - disks])
        } else if index == disks + nics {
            Some(&mut self.entropy)
        } else {
            None
        }
    }

    /// Takes what the virtio slot's line did over to the interrupt controller.
    fn route_slot(&mut self, index: usize) {
        if let Some(signal) = self.slot(index).map(|slot| slot.line().take()) {
            self.pic.drive(SLOT_IRQS[index], signal);
        }
    }

    /// The same for the devices on the board.
    fn route_board(&mut self) {
        self.pic.drive(TIMER_IRQ, self.pit.line.take());
        self.pic.drive(RTC_IRQ, self.rtc.line.take());
        self.pic.drive(SERIAL_IRQ, self.uart.line.take());
        if let Some(keyboard) = &mut self.keyboard {
            self.pic.drive(KEYBOARD_IRQ, keyboard.line.take());
        }
        if let Some(power) = &mut self.power {
            self.pic.drive(POWER_IRQ, power.line.take());
        }
    }

    /// Guest time has come to `now`, which never decreases: timers whose time has come raise their interrupts.
    pub fn advance(&mut self, now: u64) {
        self.pit.advance(now);
        self.rtc.advance(now);
        self.route_board();
    }

    /// The earliest guest time at which [`advance`](Self::advance) would do something that the guest notices without
    /// asking: raise an interrupt that is unmasked and not requested already. It may lie in the past, where the guest has
    /// unmasked one since.
    ///
    /// A tick that comes while the previous one is still requested is lost, as on the chip. So that this does not depend
    /// on when the host looks, call `advance` with the present guest time before [`acknowledge`](Self::acknowledge).
    pub fn deadline(&self) -> Option<u64> {
        let timer = self.pit.deadline().filter(|_| self.pic.would_notice(TIMER_IRQ));
        let clock = self.rtc.deadline().filter(|_| self.pic.would_notice(RTC_IRQ));
        timer.into_iter().chain(clock).min()
    }

    /// Whether the interrupt controller asks for an interrupt (its INTR output).
    pub fn interrupt_pending(&self) -> bool {
        self.pic.interrupt_pending()
    }

    /// Whether the interrupt controller asks for an interrupt, or will when one that is in service has ended.
    pub fn interrupt_requested(&self) -> bool {
        self.pic.interrupt_requested()
    }

    /// The CPU acknowledges the interrupt: its vector. Without a request it is the spurious vector 7 of the 8259A.
    pub fn acknowledge(&mut self) -> u8 {
        self.pic.acknowledge()
    }

    /// How many bytes the console takes now.
    pub fn console_room(&self) -> usize {
        self.uart.room()
    }

    /// Bytes typed on the console, not more than there is room for.
    pub fn console_input(&mut self, bytes: &[u8]) -> Result<(), DeviceError> {
        self.uart.receive(bytes)?;
        self.route_board();
        Ok(())
    }

    /// How many bytes the keyboard can have waiting besides those that wait now; none where there is no keyboard.
    pub fn keyboard_room(&self) -> usize {
        self.keyboard.as_ref().map_or(0, Keyboard::room)
    }

    /// Keys are pressed and released: scan codes of set 2, not more than there is room for.
    pub fn keyboard_input(&mut self, codes: &[u8]) -> Result<(), DeviceError> {
        self.keyboard.as_mut().ok_or(DeviceError::NoKeyboard)?.press(codes)?;
        self.route_board();
        Ok(())
    }

    /// Whether the guest listens to the power button.
    pub fn hears_power_button(&self) -> bool {
        self.power.as_ref().is_some_and(Power::hears_button)
    }

    /// The power button is pressed.
    pub fn press_power_button(&mut self) -> Result<(), DeviceError> {
        self.power.as_mut().ok_or(DeviceError::NoPowerButton)?.press_button();
        self.route_board();
        Ok(())
    }

    /// How many frames would find a receive buffer now.
    pub fn frame_room(&self, nic: u32, ram: &GuestRam) -> usize {
        self.nics
            .get(nic as usize)
            .map_or(0, |nic| nic.available(RECEIVE, ram).into())
    }

    /// A frame for the guest. Without a buffer for it, it is dropped and counted.
    pub fn frame_input(&mut self, nic: u32, frame: &[u8], ram: &GuestRam) -> Result<(), DeviceError> {
        let index = nic as usize;
        let slot = self.nics.get_mut(index).ok_or(DeviceError::UnknownNic(nic))?;
        Net::check_frame(frame)?;
        let live = slot.is_live();
        slot.with_device(ram, &mut Vec::new(), |net, io| {
            if live {
                return net.receive(frame, io);
            }
            net.drop_frame();
            Ok(())
        });
        self.route_slot(self.disks.len() + index);
        Ok(())
    }

    /// A disk request has completed, with a status byte of virtio 1.2, section 5.2.6 and, for a read that succeeded, its
    /// data. Requests that had to wait for room follow as effects.
    pub fn disk_completion(
        &mut self,
        disk: u32,
        request: u64,
        status: u8,
        read_data: Option<&[u8]>,
        ram: &GuestRam,
        effects: &mut Vec<Effect>,
    ) -> Result<(), DeviceError> {
        let index = disk as usize;
        let slot = self.disks.get_mut(index).ok_or(DeviceError::UnknownDisk(disk))?;
        slot.device().check_completion(request, status, read_data)?;
        let live = slot.is_live();
        slot.with_device(ram, effects, |block, io| {
            block.complete(request, status, read_data, live, io)
        });
        self.route_slot(index);
        Ok(())
    }

    /// The disk requests that have not completed: the oldest of each disk first, disk by disk. After a restore, the host
    /// submits them again.
    pub fn outstanding_disk_requests(&self) -> impl Iterator<Item = DiskRequest> + '_ {
        self.disks.iter().flat_map(|slot| slot.device().outstanding())
    }

    /// The answer to the oldest entropy request, of exactly its length. Requests that had to wait for room follow as
    /// effects.
    pub fn entropy_input(
        &mut self,
        bytes: &[u8],
        ram: &GuestRam,
        effects: &mut Vec<Effect>,
    ) -> Result<(), DeviceError> {
        self.entropy.device().check_answer(bytes)?;
        let live = self.entropy.is_live();
        self.entropy
            .with_device(ram, effects, |entropy, io| entropy.answer(bytes, live, io));
        self.route_slot(self.disks.len() + self.nics.len());
        Ok(())
    }

    /// The lengths of the entropy requests that wait for an answer, oldest first.
    pub fn outstanding_entropy_requests(&self) -> impl Iterator<Item = u32> + '_ {
        self.entropy.device().outstanding()
    }

    /// Frames for the guest that were larger than a network interface's buffers, since this program has the machine; they are
    /// among those dropped.
    pub fn nic_too_large(&self, nic: u32) -> Option<u64> {
        self.nics.get(nic as usize).map(|slot| slot.device().too_large())
    }

    /// What a network interface has dropped.
    pub fn nic_counters(&self, nic: u32) -> Option<NicCounters> {
        self.nics.get(nic as usize).map(|slot| slot.device().counters())
    }
}

#[cfg(test)]
mod fuzz_tests;
#[cfg(test)]
mod tests;
