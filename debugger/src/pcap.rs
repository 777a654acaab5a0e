//! `lockstep-debug export-pcap`: the machine's network traffic as pcapng.

use std::borrow::Cow;
use std::cell::RefCell;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use lockstep_node::{out, tell};
use lockstep_proto::Identity;
use lockstep_proto::program::version;
use lockstep_vmm::devices::Effect;
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption};
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::{DataLink, Endianness, PcapError};

use crate::Recording;
use crate::place::{Place, help};
use crate::watched::{Exchange, Replay};

/// Nanoseconds, as a power of ten.
const RESOLUTION: u8 = 9;

#[derive(Args)]
pub struct PcapOptions {
    #[command(flatten)]
    recording: Recording,
    /// The pcapng file to write; what is there is replaced. `-` is standard output.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[arg(long, value_name = "POSITION", allow_hyphen_values = true, help = help("Where to end, included"))]
    to: Option<Place>,
}

pub fn run(options: &PcapOptions) -> Result<ExitCode> {
    let (directory, to) = options.recording.up_to(options.to)?;
    let replay = Replay::open(&directory)?;
    let cannot = || format!("cannot write {}", options.file.display());
    let file = out::create(&options.file).with_context(cannot)?;
    let capture = Capture::begin(BufWriter::new(file), replay.identity()).with_context(cannot)?;
    let capture = RefCell::new(capture);
    let result = replay.show(
        to,
        |exchange| capture.borrow_mut().exchange(exchange),
        |_| capture.borrow_mut().take_result().with_context(cannot),
    );
    let frames = capture.into_inner().end().with_context(cannot)?;
    result?;
    let [received, sent] = frames;
    tell!(
        "{}: {received} frames received and {sent} sent by the machine",
        options.file.display()
    );
    Ok(ExitCode::SUCCESS)
}

/// Which way a frame went, as the machine sees it; the numbers are those of `epb_flags`.
#[derive(Clone, Copy)]
enum Direction {
    Inbound = 1,
    Outbound = 2,
}

/// A capture that is being written.
struct Capture<W: Write> {
    writer: PcapNgWriter<W>,
    frames: [u64; 2],
    result: Result<(), PcapError>,
}

impl<W: Write> Capture<W> {
    fn begin(out: W, identity: &Identity) -> Result<Self, PcapError> {
        let section = SectionHeaderBlock {
            endianness: Endianness::Little,
            options: vec![
                SectionHeaderOption::UserApplication(Cow::Owned(format!("lockstep-debug {}", version()))),
                SectionHeaderOption::Comment(Cow::Borrowed(
                    "Times are guest time: seconds since the machine was made, as if that were 1970-01-01. \
                     A frame's comment names the natural stop at which it passed.",
                )),
            ],
            ..SectionHeaderBlock::default()
        };
        let mut writer = PcapNgWriter::with_section_header(out, section)?;
        let nics = identity.machine.iter().flat_map(|machine| &machine.nics);
        for (index, nic) in nics.enumerate() {
            writer.write_pcapng_block(InterfaceDescriptionBlock {
                linktype: DataLink::ETHERNET,
                snaplen: 0,
                options: vec![
                    InterfaceDescriptionOption::IfName(format!("nic{index}").into()),
                    InterfaceDescriptionOption::IfDescription(format!("network card {index} of the machine").into()),
                    InterfaceDescriptionOption::IfMacAddr(nic.mac.to_vec().into()),
                    InterfaceDescriptionOption::IfTsResol(RESOLUTION),
                ],
            })?;
        }
        Ok(Self {
            writer,
            frames: [0; 2],
            result: Ok(()),
        })
    }

    fn exchange(&mut self, exchange: &Exchange<'_>) {
        for effect in exchange.effects {
            if let Effect::Frame { nic, data } = effect {
                self.frame(exchange, *nic, data, Direction::Outbound);
            }
        }
        for frame in &exchange.turn.frames {
            self.frame(exchange, frame.nic, &frame.data, Direction::Inbound);
        }
    }

    fn frame(&mut self, exchange: &Exchange<'_>, nic: u32, data: &[u8], direction: Direction) {
        if self.result.is_err() {
            return;
        }
        self.frames[direction as usize - 1] += 1;
        let block = EnhancedPacketBlock {
            interface_id: nic,
            timestamp: Duration::from_nanos(exchange.guest_ns),
            original_len: data.len() as u32,
            data: Cow::Borrowed(data),
            options: vec![
                EnhancedPacketOption::Flags(direction as u32),
                EnhancedPacketOption::Comment(format!("stop {}", exchange.stop).into()),
            ],
        };
        self.result = self.writer.write_pcapng_block(block).map(drop);
    }

    fn take_result(&mut self) -> Result<(), PcapError> {
        std::mem::replace(&mut self.result, Ok(()))
    }

    /// Frames received and sent.
    fn end(mut self) -> Result<[u64; 2], PcapError> {
        self.take_result()?;
        self.writer.get_mut().flush().map_err(PcapError::IoError)?;
        Ok(self.frames)
    }
}
