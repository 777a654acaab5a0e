//! Perfetto's own format: a message of packets, written packet by packet.

use std::io::{self, Write};

use prost::Message;

use super::sink::{Event, Sink, Track, Value};

/// Messages of `proto/perfetto.proto`.
#[allow(clippy::pedantic)]
mod messages {
    include!(concat!(env!("OUT_DIR"), "/lockstep.perfetto.rs"));
}

use messages::clock_snapshot::Clock;
use messages::track_event::Type;
use messages::{ClockSnapshot, DebugAnnotation, ProcessDescriptor, Trace, TracePacket, TrackDescriptor, TrackEvent};

/// The machine's track.
const MACHINE: u64 = 1;
const REALTIME: u32 = 1;
const BOOTTIME: u32 = 6;
/// All packets are one stream.
const SEQUENCE: u32 = 1;

/// A trace that is being written.
pub struct Perfetto<W> {
    out: W,
    /// The next packet is the first one.
    first: bool,
}

impl<W: Write> Perfetto<W> {
    pub fn new(out: W) -> Self {
        Self { out, first: true }
    }

    fn packet(&mut self, packet: TracePacket) -> io::Result<()> {
        let packet = TracePacket {
            trusted_packet_sequence_id: Some(SEQUENCE),
            sequence_flags: std::mem::take(&mut self.first).then_some(1),
            ..packet
        };
        // A message with one packet: messages one after the other are one message with all of their packets.
        let trace = Trace { packet: vec![packet] };
        self.out.write_all(&trace.encode_to_vec())
    }

    fn event(&mut self, at_ns: u64, event: TrackEvent) -> io::Result<()> {
        self.packet(TracePacket {
            timestamp: Some(at_ns),
            track_event: Some(event),
            ..TracePacket::default()
        })
    }
}

fn message(track: Track, kind: Type, event: &Event) -> TrackEvent {
    let annotation = |(name, value): &(&str, Value)| {
        let named = DebugAnnotation {
            name: Some((*name).into()),
            ..DebugAnnotation::default()
        };
        match value {
            Value::Number(number) => DebugAnnotation {
                uint_value: Some(*number),
                ..named
            },
            Value::Text(text) => DebugAnnotation {
                string_value: Some(text.clone()),
                ..named
            },
        }
    };
    TrackEvent {
        debug_annotations: event.values.iter().map(annotation).collect(),
        r#type: Some(kind.into()),
        track_uuid: Some(track.number()),
        categories: vec![track.category().into()],
        name: Some(event.name.clone()),
        flow_ids: event.asks.into_iter().collect(),
        terminating_flow_ids: event.answers.clone(),
    }
}

impl<W: Write> Sink for Perfetto<W> {
    fn machine(&mut self, name: &str, guest_ns: u64, unix_ns: Option<u64>) -> io::Result<()> {
        if let Some(unix_ns) = unix_ns {
            let clock = |clock_id, timestamp| Clock {
                clock_id: Some(clock_id),
                timestamp: Some(timestamp),
            };
            self.packet(TracePacket {
                clock_snapshot: Some(ClockSnapshot {
                    clocks: vec![clock(BOOTTIME, guest_ns), clock(REALTIME, unix_ns)],
                }),
                ..TracePacket::default()
            })?;
        }
        self.packet(TracePacket {
            track_descriptor: Some(TrackDescriptor {
                uuid: Some(MACHINE),
                process: Some(ProcessDescriptor {
                    pid: Some(1),
                    process_name: Some(name.into()),
                }),
                ..TrackDescriptor::default()
            }),
            ..TracePacket::default()
        })
    }

    fn track(&mut self, track: Track) -> io::Result<()> {
        self.packet(TracePacket {
            track_descriptor: Some(TrackDescriptor {
                uuid: Some(track.number()),
                name: Some(track.name()),
                parent_uuid: Some(MACHINE),
                ..TrackDescriptor::default()
            }),
            ..TracePacket::default()
        })
    }

    fn slice(&mut self, track: Track, from_ns: u64, to_ns: u64, event: &Event) -> io::Result<()> {
        self.event(from_ns, message(track, Type::SliceBegin, event))?;
        let end = TrackEvent {
            r#type: Some(Type::SliceEnd.into()),
            track_uuid: Some(track.number()),
            ..TrackEvent::default()
        };
        self.event(to_ns, end)
    }

    fn instant(&mut self, track: Track, at_ns: u64, event: &Event) -> io::Result<()> {
        self.event(at_ns, message(track, Type::Instant, event))
    }

    fn finish(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
