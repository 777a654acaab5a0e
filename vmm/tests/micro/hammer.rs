//! Guests that hammer ports, MSRs and virtio devices with garbage, while the world outside answers well or badly: the
//! machine goes on or ends in order, and a replay does the same.

use iced_x86::code_asm::*;
use lockstep_proto::{DiskCompletion, DiskConfig, Frame, NicConfig};
use lockstep_vmm::loader::trap::is_trap_port;

use super::guest::*;
use super::harness::*;
use super::virtio::*;

/// Guests in one run, and in a long one.
const GUESTS: u64 = 40;
const MANY: u64 = 4000;
/// Blows of one guest.
const BLOWS: u64 = 200;

/// A disk, a read-only one, a network card and the entropy device, which comes last.
const DEVICES: u64 = 4;
/// The rings of each device, three of them, and what descriptors may point to.
const RINGS: u64 = DATA + 0x1_0000;
const BUFFERS: u64 = DATA + 0x4_0000;
const BUFFER_BYTES: u64 = 0x4_0000;

const DISK_BYTES: u64 = 64 << 10;

/// Ports with something behind them, but for those that end the machine.
const PORTS: [u16; 25] = [
    0x20, 0x21, 0xa0, 0xa1, 0x40, 0x41, 0x42, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x4d0, 0x4d1, 0xcf8, 0xcfc, 0x3f8,
    0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x3fe, 0x3ff,
];

/// MSRs that are kept, that are answered, and that nobody has. Not EFER and what paging depends on.
const MSRS: [u32; 12] = [
    0x10,
    0x1b,
    0xc1,
    0x174,
    0x1a0,
    0x277,
    0x2ff,
    0x4b56_4d00,
    0x4b56_4d01,
    0xc000_0082,
    0xc000_0102,
    0xc001_0117,
];

fn pick<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[(rng.next() % of.len() as u64) as usize]
}

fn ring(rng: &mut Rng) -> u64 {
    RINGS + rng.next() % (DEVICES * 3) * 4096
}

/// A number as garbage is: small, large, an address of something, or anything.
fn value(rng: &mut Rng) -> u32 {
    match rng.next() % 6 {
        0 => (rng.next() % 20) as u32,
        1 => u32::MAX - (rng.next() % 4) as u32,
        2 => ring(rng) as u32,
        3 => (BUFFERS + rng.next() % BUFFER_BYTES) as u32,
        4 => 1 << (rng.next() % 32),
        _ => rng.next() as u32,
    }
}

/// An access to a port, of any width, or a string of them.
fn port(a: &mut CodeAssembler, rng: &mut Rng) -> Body {
    let port = if rng.next().is_multiple_of(4) {
        rng.next() as u16
    } else {
        pick(rng, &PORTS)
    };
    // What ends the machine, and in order: the reset control register, the fast reset, and a port that stands for a
    // trapped instruction, which stops it with an error.
    let port = if matches!(port, 0xcf9 | 0x92) || is_trap_port(port) {
        0x80
    } else {
        port
    };
    a.mov(edx, u32::from(port))?;
    let value = value(rng);
    a.mov(eax, value)?;
    match rng.next() % 8 {
        0 => a.in_(al, dx),
        1 => a.in_(ax, dx),
        2 => a.in_(eax, dx),
        3 | 4 => a.out(dx, al),
        5 => a.out(dx, ax),
        6 => a.out(dx, eax),
        _ => {
            a.mov(esi, BUFFERS as u32)?;
            a.mov(ecx, (rng.next() % 40) as u32)?;
            a.rep().outsb()
        }
    }
}

/// An access to a device's register, or to what lies between registers.
fn register(a: &mut CodeAssembler, rng: &mut Rng) -> Body {
    const REGISTERS: [u64; 22] = [
        0, 0x10, 0x14, 0x20, 0x24, 0x30, 0x34, 0x38, 0x44, 0x50, 0x60, 0x64, 0x70, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4,
        0xfc, 0x100, 0x104,
    ];
    let offset = if rng.next().is_multiple_of(5) {
        rng.next() % 0xff8
    } else {
        pick(rng, &REGISTERS)
    };
    let at = SLOTS + rng.next() % 8 * 4096 + offset;
    let value = value(rng);
    match rng.next() % 8 {
        0 => a.mov(eax, dword_ptr(at)),
        1 => a.mov(al, byte_ptr(at)),
        2 => a.mov(rax, qword_ptr(at)),
        3 => {
            a.mov(rax, u64::from(value) << (rng.next() % 32))?;
            a.mov(qword_ptr(at), rax)
        }
        4 => a.mov(word_ptr(at), value & 0xffff),
        _ => a.mov(dword_ptr(at), value),
    }
}

/// A descriptor of a ring, more or less as it should be, offered or not.
fn descriptor(a: &mut CodeAssembler, rng: &mut Rng) -> Body {
    let (ring, index) = (ring(rng), rng.next() % 16);
    let at = ring + index * 16;
    let address = match rng.next() % 8 {
        // Nobody's memory, and the last bytes of the machine's.
        0 => rng.next(),
        1 => MEMORY_BYTES - rng.next() % 16,
        _ => BUFFERS + rng.next() % BUFFER_BYTES,
    };
    let length = match rng.next() % 4 {
        0 => value(rng),
        1 => 16,
        _ => (rng.next() % 2048) as u32,
    };
    // What devices write must not be the guest's code: its way would end there.
    let length = if address < MEMORY_BYTES {
        length.min(0x8000)
    } else {
        length
    };
    a.mov(rax, address)?;
    a.mov(qword_ptr(at), rax)?;
    a.mov(dword_ptr(at + 8), length)?;
    a.mov(
        dword_ptr(at + 12),
        (rng.next() % 8) as u32 | ((rng.next() % 18) as u32) << 16,
    )?;
    if rng.next().is_multiple_of(2) {
        a.mov(word_ptr(ring + 0x404 + index * 2), (rng.next() % 18) as u32)?;
        a.inc(word_ptr(ring + 0x402))?;
    }
    Ok(())
}

/// A request of a disk that is right but for what is garbage in it.
fn request(a: &mut CodeAssembler, rng: &mut Rng) -> Body {
    let at = BUFFERS + rng.next() % 16 * 4096;
    a.mov(dword_ptr(at), pick(rng, &[0, 1, 4, 8, 11, 13, 99]))?;
    a.mov(dword_ptr(at + 8), value(rng) % (DISK_BYTES / 256) as u32)?;
    let ring = RINGS + rng.next() % 2 * 3 * 4096;
    for (index, (from, length, flags)) in [(0, 16, 1), (16, 512, pick(rng, &[1, 3])), (0x800, 1, 2)]
        .into_iter()
        .enumerate()
    {
        let entry = ring + index as u64 * 16;
        a.mov(rax, at + from)?;
        a.mov(qword_ptr(entry), rax)?;
        a.mov(dword_ptr(entry + 8), length)?;
        a.mov(dword_ptr(entry + 12), flags | (index as u32 + 1) << 16)?;
    }
    a.mov(word_ptr(ring + 0x404), 0)?;
    a.inc(word_ptr(ring + 0x402))?;
    notify(a, rng.next() % 2, 0)
}

fn msr(a: &mut CodeAssembler, rng: &mut Rng) -> Body {
    a.mov(ecx, pick(rng, &MSRS))?;
    a.mov(eax, value(rng))?;
    a.xor(edx, edx)?;
    if rng.next().is_multiple_of(2) {
        a.rdmsr()
    } else {
        a.wrmsr()
    }
}

fn blow(a: &mut CodeAssembler, rng: &mut Rng) -> Body {
    match rng.next() % 12 {
        0 | 1 => port(a, rng),
        2 | 3 => register(a, rng),
        4 | 5 => descriptor(a, rng),
        6 | 7 => request(a, rng),
        8 => {
            let queue = (rng.next() % 3) as u32;
            notify(a, rng.next() % DEVICES, queue)
        }
        9 => msr(a, rng),
        10 => {
            a.mov(eax, value(rng))?;
            a.mov(dword_ptr(ring(rng) + rng.next() % 0xc00), eax)
        }
        _ => {
            let slot = rng.next() % DEVICES;
            let first = RINGS + slot * 3 * 4096;
            set_up(a, slot, first)
        }
    }
}

fn set_up(a: &mut CodeAssembler, slot: u64, first: u64) -> Body {
    let queues = [first, first + 4096, first + 2 * 4096];
    // Disks and entropy have one queue, a network card two: what there is not is ignored.
    start(a, slot, &queues[..if slot == 2 { 2 } else { 1 }])
}

fn guest(rng: &mut Rng) -> MicroGuest {
    let mut guest = MicroGuest::new(Ring::Kernel, |a| {
        pic(a, 0)?;
        for slot in 0..DEVICES {
            set_up(a, slot, RINGS + slot * 3 * 4096)?;
        }
        if rng.next().is_multiple_of(4) {
            timer(a, 20_000)?;
            a.sti()?;
        }
        for _ in 0..BLOWS {
            blow(a, rng)?;
        }
        finish(a)
    })
    .handler(13, |a| {
        // An MSR that there is not: the error code, and the two bytes of the instruction.
        a.add(rsp, 8)?;
        a.add(qword_ptr(rsp), 2)?;
        a.iretq()
    });
    for vector in 0x20..0x30 {
        guest = guest.handler(vector, move |a| {
            a.push(rax)?;
            a.mov(al, 0x20)?;
            if vector >= 0x28 {
                a.out(0xa0, al)?;
            }
            a.out(0x20, al)?;
            a.pop(rax)?;
            a.iretq()
        });
    }
    guest
}

/// A world that answers at random: late, out of order, with errors, and with frames that nobody waits for.
fn hammered(seed: u64) -> Micro {
    let mut rng = Rng(seed);
    let guest = guest(&mut rng);
    let mut micro = Micro::new(guest).script(move |world, machine, _, turn| {
        if rng.next().is_multiple_of(3) && !world.requests.is_empty() {
            let next = rng.next() as usize % world.requests.len();
            let done = world.requests.remove(next);
            turn.disks.push(DiskCompletion {
                disk: done.disk,
                request: done.request,
                status: u32::from(rng.next().is_multiple_of(8)),
            });
        }
        if rng.next().is_multiple_of(4) && !world.entropy.is_empty() {
            let bytes = world.entropy.remove(0);
            turn.entropy.push(vec![0x5a; bytes as usize].into());
        }
        if rng.next().is_multiple_of(8) {
            let bytes = 14 + rng.next() as usize % 1500;
            turn.frames.push(Frame {
                nic: 0,
                data: vec![0xab; bytes].into(),
            });
        }
        if rng.next().is_multiple_of(16) && machine.devices().console_room() > 0 {
            turn.console = b"x".as_slice().into();
        }
    });
    micro.config.disks = vec![
        DiskConfig {
            bytes: DISK_BYTES,
            ..DiskConfig::default()
        },
        DiskConfig {
            bytes: DISK_BYTES,
            read_only: true,
            ..DiskConfig::default()
        },
    ];
    micro.config.nics = vec![NicConfig {
        mac: vec![2, 0, 0, 0, 0, 1].into(),
        ..NicConfig::default()
    }];
    micro.images = vec![vec![0; DISK_BYTES as usize]; 2];
    micro
}

#[test]
fn garbage_from_a_guest_harms_nobody_and_is_replayed() {
    if no_kvm() {
        return;
    }
    let soak = std::env::var_os("LOCKSTEP_SOAK").is_some_and(|value| value == "1");
    let mut seeds = Rng(seed());
    let (mut stops, mut requests, mut faults) = (0, 0, 0);
    for _ in 0..if soak { MANY } else { GUESTS } {
        let seed = seeds.next();
        println!("guest {seed:#x}");
        let recording = hammered(seed).check();
        stops += recording.steps.len();
        requests += recording.steps.iter().map(|step| step.turn.disks.len()).sum::<usize>();
        faults += recording.end.counters.msr_faults;
    }
    println!("{stops} stops, {requests} disk requests, {faults} MSR faults");
    assert!(stops > 2000 && requests > 20 && faults > 20);
}
