//! A guest that does a bit of everything, in an order that its seed gives.

use bytes::Bytes;
use lockstep_proto::model::NEWEST_REVISION;
use lockstep_proto::{DiskConfig, MachineConfig, NicConfig};

use super::mix;
use super::script::{Op, QUEUE_SIZE, Queue, Script};

/// Size of its one disk, in bytes.
pub const DISK_BYTES: u64 = 64 * 512;

const MEMORY_BYTES: u64 = 0x1_0000;
const RECEIVE: Queue = Queue(0x1000);
const SEND: Queue = Queue(0x2000);
const DISK: Queue = Queue(0x3000);
const ENTROPY: Queue = Queue(0x4000);
/// Buffers; those from which something is sent lie among what is computed.
const FRAMES: u64 = 0x5000;
const BLOCKS: u64 = 0x6000;
const RANDOM: u64 = 0x7800;
const HEADERS: u64 = 0x7a00;
const COMPUTED: u64 = 0x8000;
const SLOTS: u64 = 0xd000_0000;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// Receive buffers, and requests that the disk may have.
const BUFFERS: u16 = 6;
const REQUESTS: u16 = 4;

/// One disk, one network card.
pub fn config() -> MachineConfig {
    MachineConfig {
        memory_bytes: MEMORY_BYTES,
        disks: vec![DiskConfig {
            bytes: DISK_BYTES,
            ..DiskConfig::default()
        }],
        nics: vec![NicConfig {
            mac: Bytes::from_static(&[2, 0, 0, 0, 0, 1]),
            ..NicConfig::default()
        }],
        model_revision: NEWEST_REVISION,
        ..MachineConfig::default()
    }
}

/// Splitmix64.
struct Rng(u64);

impl Rng {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0) % end
    }
}

/// It computes, halts, prints, sends, reads clocks and random numbers, has interrupts off for a while, and never ends by itself.
/// All devices are driven, by interrupts.
pub fn busy(seed: u64) -> Script {
    let rng = &mut Rng(seed);
    let mut script = Script::default();
    memory(&mut script);
    start(&mut script.ops, rng);
    let begin = script.ops.len();
    for _ in 0..20 + rng.below(30) {
        let piece = piece(rng);
        if rng.below(4) == 0 {
            script.ops.push(Op::SkipIfOdd(piece.len()));
        }
        script.ops.extend(piece);
    }
    script.ops.push(Op::Jump(begin));
    handlers(&mut script, rng);
    script
}

fn memory(script: &mut Script) {
    let receive: Vec<_> = (0..u64::from(BUFFERS))
        .map(|n| (FRAMES + n * 256, 256, WRITE))
        .collect();
    script.queue(RECEIVE, &receive);
    let send: Vec<_> = (0..2)
        .flat_map(|n| [(HEADERS + 0x100, 12, NEXT), (COMPUTED + n * 512, 60 + 40 * n as u32, 0)])
        .collect();
    script.queue(SEND, &send);
    let mut blocks = Vec::new();
    for n in 0..u64::from(REQUESTS) {
        // The kinds of virtio-blk: 0 reads, 1 writes.
        let kind = n as u32 % 2;
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend((n * 5 % 8).to_le_bytes());
        script.data.push((HEADERS + n * 16, header));
        let (at, flags) = if kind == 0 {
            (BLOCKS + n * 512, NEXT | WRITE)
        } else {
            (COMPUTED + 0x1000 + n * 512, NEXT)
        };
        let status = HEADERS + 0x200 + n;
        blocks.extend([(HEADERS + n * 16, 16, NEXT), (at, 512, flags), (status, 1, WRITE)]);
    }
    script.queue(DISK, &blocks);
    script.queue(ENTROPY, &[(RANDOM, 32, WRITE)]);
}

fn register(slot: u64, offset: u64) -> u64 {
    SLOTS + slot * 4096 + offset
}

/// Brings a device up with these queues.
fn device(ops: &mut Vec<Op>, slot: u64, queues: &[Queue]) {
    let mut set = |offset, value| ops.push(Op::Store(register(slot, offset), value));
    // Acknowledge and driver; VIRTIO_F_VERSION_1; features taken; queues; driver ready.
    set(0x70, 3);
    set(0x24, 1);
    set(0x20, 1);
    set(0x70, 0xb);
    for (index, queue) in (0..).zip(queues) {
        let [descriptors, available, used] = queue.parts();
        set(0x30, index);
        set(0x38, QUEUE_SIZE.into());
        set(0x80, descriptors as u32);
        set(0x90, available as u32);
        set(0xa0, used as u32);
        set(0x44, 1);
    }
    set(0x70, 0xf);
}

fn start(ops: &mut Vec<Op>, rng: &mut Rng) {
    let out = |port, value| Op::Out(port, Some(value));
    // Both interrupt controllers: vectors from 0x20 on, edges, all of the first chip's lines.
    for (port, values) in [(0x20, [0x20, 4, 1, 0]), (0xa0, [0x28, 2, 1, 0xff])] {
        ops.push(out(port, 0x11));
        ops.extend(values.map(|value| out(port + 1, value)));
    }
    // The console: receive interrupts.
    ops.extend([out(0x3f9, 1), out(0x3fc, 0x0b)]);
    device(ops, 0, &[DISK]);
    device(ops, 1, &[RECEIVE, SEND]);
    device(ops, 2, &[ENTROPY]);
    ops.extend((0..BUFFERS).map(|head| Op::Submit(RECEIVE, head)));
    ops.push(Op::Store(register(1, 0x50), 0));
    // The timer, periodic: 0.4 to 12 ms.
    let count = 500 + rng.below(14_000) as u16;
    ops.extend([
        out(0x43, 0x34),
        out(0x40, count as u8),
        out(0x40, (count >> 8) as u8),
        Op::Sti,
    ]);
}

fn piece(rng: &mut Rng) -> Vec<Op> {
    match rng.below(14) {
        0 => vec![Op::Sti, Op::Halt],
        1 => vec![Op::Compute(rng.below(20) as u32 + 1)],
        2 => vec![Op::Compute(rng.below(3000) as u32 + 1)],
        3 => vec![Op::User(true), Op::Compute(rng.below(6000) as u32 + 1), Op::User(false)],
        4 => vec![Op::Out(0x3f8, None); rng.below(3) as usize + 1],
        5 => vec![
            Op::Submit(SEND, 2 * rng.below(2) as u16),
            Op::Store(register(1, 0x50), 1),
        ],
        6 => vec![
            Op::Submit(DISK, 3 * rng.below(REQUESTS.into()) as u16),
            Op::Store(register(0, 0x50), 0),
        ],
        7 => vec![Op::Submit(ENTROPY, 0), Op::Store(register(2, 0x50), 0)],
        8 => vec![Op::ReadTsc],
        9 => vec![Op::ReadRandom],
        10 => vec![Op::Cli, Op::Compute(rng.below(2000) as u32 + 1), Op::Sti],
        11 => vec![Op::In(0x3fd), Op::In(0x64)],
        12 => vec![Op::Out(0x70, Some(0)), Op::In(0x71)],
        // Reads the timer's count.
        _ => vec![Op::Out(0x43, Some(0)), Op::In(0x40), Op::In(0x40)],
    }
}

fn handlers(script: &mut Script, rng: &mut Rng) {
    let end = [Op::Out(0x20, Some(0x20)), Op::Return];
    let with = |ops: &[Op]| [ops, &end].concat();
    // Each has an access of its own before the end of interrupt, by which it is told from others.
    script.handler(0x20, &with(&[Op::Compute(rng.below(4) as u32), Op::In(0x61)]));
    script.handler(0x21, &with(&[Op::In(0x60)]));
    script.handler(
        0x24,
        &with(&[Op::In(0x3fa), Op::In(0x3f8), Op::In(0x3f8), Op::In(0x3fa)]),
    );
    for (vector, slot, harvests) in [
        (0x25, 0, vec![Op::Harvest(DISK, false)]),
        (0x26, 1, vec![Op::Harvest(RECEIVE, true), Op::Harvest(SEND, false)]),
        (0x27, 2, vec![Op::Harvest(ENTROPY, false)]),
    ] {
        let acknowledged = [Op::Load(register(slot, 0x60)), Op::Store(register(slot, 0x64), 3)];
        script.handler(vector, &with(&[&acknowledged[..], &harvests].concat()));
    }
}
