//! Every bound on what a log may hold, with its reason. The writer refuses more, the reader calls more damage.

/// Largest payload of a frame in a log, in bytes. A batch is closed at 64 KiB or a millisecond; this leaves room for the
/// one turn that goes over it ([`MAX_TURN_BYTES`]), and a chunk of pages that do not compress needs 1 MiB.
pub const MAX_PAYLOAD: u32 = 4 << 20;

/// Most turns in a batch. A turn takes some 500 bytes in memory and as few as 2 in a file: without this bound a frame of
/// 4 MiB would decode to 1 GiB. The 64 KiB at which a batch is closed hold fewer.
pub const MAX_TURNS: usize = 65_536;

/// Largest encoded turn, in bytes: half of [`MAX_PAYLOAD`], so that a batch below 2 MiB always takes one more turn.
pub const MAX_TURN_BYTES: usize = 2 << 20;

/// Length of every digest, in bytes (xxh3-128).
pub const DIGEST_BYTES: usize = 16;

/// Longest network frame, in bytes: what virtio-net delivers at most with segmentation offload (64 KiB).
pub const MAX_NET_FRAME_BYTES: usize = 64 << 10;

/// Most network frames in a turn: four full receive queues of 256 descriptors.
pub const MAX_NET_FRAMES: usize = 1024;

/// Most console bytes in a turn: a pipe's worth of pasted text (64 KiB).
pub const MAX_CONSOLE_BYTES: usize = 64 << 10;

/// Most keyboard bytes in a turn: what a PS/2 keyboard keeps.
pub const MAX_KEYBOARD_BYTES: usize = 16;

/// Most disk completions in a turn: sixteen disks with full queues of 256 descriptors.
pub const MAX_DISK_COMPLETIONS: usize = 4096;

/// Largest status byte of a virtio-blk request (UNSUPP).
pub const MAX_DISK_STATUS: u32 = 2;

/// Most entropy answers in a turn: one full queue of 256 descriptors.
pub const MAX_ENTROPY_ANSWERS: usize = 256;

/// Longest entropy answer, in bytes (Linux asks for 64; a hostile guest gets no more than this).
pub const MAX_ENTROPY_BYTES: usize = 64 << 10;

/// Longest clock step, in nanoseconds: 2^56, more than two years. A guest that was paused for longer is not resumed.
pub const MAX_CLOCK_STEP_NS: u64 = 1 << 56;

/// Largest part of the vCPU state (registers, XSAVE area, events...), in bytes. The largest XSAVE area known, with AMX,
/// has 11,008.
pub const MAX_VCPU_PART_BYTES: usize = 16 << 10;

/// Most MSRs in a vCPU state; KVM lists some 150.
pub const MAX_MSRS: usize = 1024;

/// Most pages named one by one in an epoch's detail (1 GiB dirtied); more leave the detail out.
pub const MAX_EPOCH_DETAIL: usize = 262_144;
/// Most bytes of an epoch's parts: two for each, and a machine has some fifty.
pub const MAX_EPOCH_PARTS: usize = 512;

/// Most terms that begin in a batch: a term takes an answer of the arbiter and a join before it, and a batch is closed
/// within a second.
pub const MAX_TERMS: usize = 64;

/// Bytes in a page.
pub const PAGE_BYTES: usize = 4096;

/// Most pages in a chunk: 1 MiB before compression, so that a reader never holds more for one.
pub const MAX_CHUNK_PAGES: usize = 256;

/// Largest compressed data of a chunk, in bytes: the raw pages plus what zstd adds to data that do not compress.
pub const MAX_CHUNK_DATA: usize = MAX_CHUNK_PAGES * PAGE_BYTES + (8 << 10);

/// Most chunks before a batch: 64 GiB of guest memory.
pub const MAX_CHUNKS: usize = 65_536;

/// Page frame numbers are below this: x86-64 has at most 52 bits of physical address.
pub const MAX_FRAME_NUMBER: u64 = 1 << 40;

/// Longest text in an identity or an end (command line, paths, details), in bytes. Linux takes 2,048 of command line and
/// 4,096 of path.
pub const MAX_TEXT_BYTES: usize = 4096;

/// Longest build id of a kernel, in bytes: linkers make 8 to 32 (xxhash, MD5, SHA-1, SHA-256).
pub const MAX_BUILD_ID_BYTES: usize = 64;

/// Most disks of a machine, and most network cards: more than a PCI bus has functions for.
pub const MAX_DEVICES: usize = 256;

/// Largest segment number: eight digits in the file's name.
pub const MAX_SEGMENT: u32 = 99_999_999;

/// Most entries of an index that are read: at one for each 256 KiB, as many as a segment of 64 GiB has.
pub const MAX_INDEX_ENTRIES: usize = 1 << 18;
