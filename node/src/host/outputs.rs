//! What leaves a machine: frames and console bytes.

use lockstep_vmm::devices::Effect;

use super::console::ConsoleOutput;
use super::tap::TapSender;

/// Where a machine's frames and console bytes go.
pub struct Outputs {
    /// One for each NIC.
    pub taps: Vec<TapSender>,
    /// The console.
    pub console: ConsoleOutput,
}

impl Outputs {
    /// Whether an effect is one that leaves the machine.
    pub fn concerns(effect: &Effect) -> bool {
        matches!(effect, Effect::Console(_) | Effect::Frame { .. })
    }

    /// Lets an effect go. One that stays inside is ignored. Returns how many bytes left.
    pub fn emit(&mut self, effect: &Effect) -> usize {
        match effect {
            Effect::Console(bytes) => {
                self.console.write(bytes);
                bytes.len()
            }
            Effect::Frame { nic, data } => {
                if let Some(tap) = self.taps.get_mut(*nic as usize) {
                    tap.send(data);
                }
                data.len()
            }
            Effect::Disk(_) | Effect::Entropy { .. } | Effect::Reset | Effect::PowerOff => 0,
        }
    }

    /// Tells the networks where these addresses are now, as a migrated machine's host does: a RARP request of each NIC's
    /// own address (RFC 903), which switches learn from and nobody answers.
    pub fn announce(&mut self, macs: &[[u8; 6]]) {
        for (tap, mac) in self.taps.iter_mut().zip(macs) {
            tap.send(&rarp(*mac));
        }
    }
}

/// A RARP request of `mac` for itself, padded to the least length of an Ethernet frame.
fn rarp(mac: [u8; 6]) -> [u8; 60] {
    let mut frame = [0; 60];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac);
    // EtherType RARP; hardware Ethernet, protocol IPv4, lengths 6 and 4, operation 3 (request reverse).
    frame[12..22].copy_from_slice(&[0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    frame[22..28].copy_from_slice(&mac);
    frame[32..38].copy_from_slice(&mac);
    frame
}
