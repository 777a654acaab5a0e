use std::io::{self, Read};

use super::*;

const FORMAT: Format = Format {
    magic: *b"TESTFILE",
    version: 2,
    min_version: 1,
    max_payload: 1000,
};

fn file(payloads: &[&[u8]]) -> Vec<u8> {
    let mut frames = FrameWriter::create(Vec::new(), FORMAT).unwrap();
    for (i, payload) in payloads.iter().enumerate() {
        let before = frames.position();
        assert_eq!(frames.write(i as u32 + 1, payload).unwrap(), frames.position() - before);
    }
    assert_eq!(frames.position(), frames.get_ref().len() as u64);
    frames.into_inner()
}

/// The payloads, and how it ends: "end", "torn" with its offset and bytes, or the error.
fn read(bytes: &[u8], whole: bool) -> (Vec<Vec<u8>>, String) {
    let mut got = Vec::new();
    let mut frames = match FrameReader::open(bytes, FORMAT) {
        Ok(frames) => frames,
        Err(e) => return (got, e.to_string()),
    };
    frames.set_whole(whole);
    let end = loop {
        match frames.next() {
            Ok(Next::Frame(frame)) => {
                got.push(frame.payload.to_vec());
                assert_eq!(frame.kind as usize, got.len());
            }
            Ok(Next::End) => break "end".into(),
            Ok(Next::Torn { offset, bytes }) => break format!("torn {offset} {bytes}"),
            Err(e) => break e.to_string(),
        }
    };
    (got, end)
}

#[test]
fn the_layout_is_as_documented() {
    let bytes = file(&[b"abc"]);
    assert_eq!(&bytes[..8], b"TESTFILE");
    assert_eq!(&bytes[8..12], &[2, 0, 0, 0]);
    assert_eq!(&bytes[12..16], &crc32c::crc32c(&bytes[..12]).to_le_bytes());
    assert_eq!(&bytes[16..24], &[1, 0, 0, 0, 3, 0, 0, 0]);
    assert_eq!(&bytes[24..28], &crc32c::crc32c(b"abc").to_le_bytes());
    let covered = [&16u64.to_le_bytes()[..], &bytes[16..28]].concat();
    assert_eq!(&bytes[28..32], &crc32c::crc32c(&covered).to_le_bytes());
    assert_eq!(&bytes[32..], b"abc");
}

#[test]
fn frames_come_back() {
    let payloads = [&b"one"[..], b"", &[7; 1000]];
    assert_eq!(
        read(&file(&payloads), true),
        (payloads.map(<[u8]>::to_vec).to_vec(), "end".into())
    );
}

#[test]
fn any_cut_is_a_torn_tail_or_a_clean_end() {
    let payloads = [&b"one"[..], b"", b"three"];
    let bytes = file(&payloads);
    let ends = [16, 35, 51, 72];
    assert_eq!(ends[3], bytes.len());
    for length in 16..=bytes.len() {
        let whole = ends.iter().filter(|&&end| end <= length).count() - 1;
        let (got, end) = read(&bytes[..length], false);
        assert_eq!(got, payloads[..whole], "cut to {length}");
        let torn = length - ends[whole];
        let expected = if torn == 0 {
            "end".into()
        } else {
            format!("torn {} {torn}", ends[whole])
        };
        assert_eq!(end, expected);
        if torn > 0 {
            assert!(
                read(&bytes[..length], true).1.starts_with("the file ends inside"),
                "a whole file is not torn"
            );
        }
    }
    for length in 0..16 {
        assert!(
            read(&bytes[..length], false)
                .1
                .contains(&format!("ends after {length} bytes"))
        );
    }
}

#[test]
fn any_damage_is_found_and_only_the_last_frames_is_a_torn_tail() {
    let payloads = [&b"one"[..], b"", b"three"];
    let good = file(&payloads);
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << bit;
            let (got, end) = read(&bytes, false);
            let (frames, expected) = match at {
                0..8 => (0, "it starts with"),
                8..16 => (0, "its first 16 bytes are damaged"),
                16..32 => (
                    0,
                    "a frame's header is damaged (and there is a valid frame after it, at offset 35)",
                ),
                32..35 => (0, "a frame's payload does not match its CRC (and there is"),
                35..51 => (
                    1,
                    "a frame's header is damaged (and there is a valid frame after it, at offset 51)",
                ),
                _ => (2, "torn 51 21"),
            };
            assert_eq!(got, payloads[..frames], "bit {bit} of byte {at}");
            assert!(end.starts_with(expected), "bit {bit} of byte {at}: {end}");
            let (_, end) = read(&bytes, true);
            assert!(
                !end.starts_with("torn") && !end.contains("valid frame after"),
                "a whole file is not searched"
            );
        }
    }
}

#[test]
fn an_error_stays() {
    let mut bytes = file(&[b"one", b"two"]);
    bytes[33] ^= 1;
    let mut frames = FrameReader::open(&bytes[..], FORMAT).unwrap();
    for _ in 0..3 {
        assert!(matches!(frames.next(), Err(FrameError::Corrupt { offset: 16, .. })));
        assert_eq!(frames.offset(), 16);
        assert!(frames.is_lost());
    }
}

/// What is found after damage is searched for beyond the reader's window, and across its edges.
#[test]
fn a_valid_frame_is_found_however_far_away() {
    for gap in [1, 1000, (256 << 10) - 40, (256 << 10) - 32, (256 << 10) - 17, 3 << 20] {
        // A frame knows its place, so one is built for the place where it will stand.
        let mut bytes = file(&[b"one"]);
        bytes.extend(vec![0xee; gap]);
        let header = FrameHeader {
            kind: 2,
            length: 0,
            payload_crc: 0,
        };
        let at = bytes.len() as u64;
        bytes.extend(header.encode(at));
        let (got, end) = read(&bytes, false);
        assert_eq!(got, [b"one"]);
        assert!(end.ends_with(&format!("at offset {at})")), "{end}");
        // The same frame in another place is none.
        bytes.insert(35, 0xee);
        assert!(read(&bytes, false).1.starts_with("torn 35"));
    }
}

/// A log that a guest downloads stands in the network frames of another one.
#[test]
fn a_file_in_a_frame_is_not_taken_for_frames() {
    let inner = file(&[b"a frame", b"another"]);
    let outer = file(&[b"first", &inner]);
    let (got, end) = read(&outer[..outer.len() - 1], false);
    assert_eq!((got.len(), end), (1, format!("torn 37 {}", outer.len() - 1 - 37)));
}

#[test]
fn a_moved_or_repeated_frame_is_damage() {
    let bytes = file(&[b"one", b"two", b"six"]);
    let (one, two) = (&bytes[16..35], &bytes[35..54]);
    let swapped = [&bytes[..16], two, one, &bytes[54..]].concat();
    assert!(read(&swapped, false).1.contains("header is damaged (and"));
    let dropped = [&bytes[..16], one, &bytes[54..]].concat();
    assert!(
        read(&dropped, false).1.starts_with("torn 35"),
        "nothing after the gap is in its place"
    );
}

#[test]
fn versions_n_and_n_minus_1_are_read() {
    let doctored = |version: u32| {
        let mut bytes = file(&[b"one"]);
        bytes[8..12].copy_from_slice(&version.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..12]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        FrameReader::open(&bytes[..], FORMAT).map(|frames| frames.version())
    };
    assert_eq!(doctored(1).unwrap(), 1);
    assert_eq!(doctored(2).unwrap(), 2);
    for version in [0, 3] {
        assert!(matches!(
            doctored(version),
            Err(FrameError::Version { min: 1, max: 2, .. })
        ));
    }
}

#[test]
fn lengths_are_checked_before_anything_is_allocated() {
    let mut frames = FrameWriter::create(Vec::new(), FORMAT).unwrap();
    assert!(matches!(
        frames.write(1, &[0; 1001]),
        Err(FrameError::TooLarge {
            length: 1001,
            max: 1000,
            ..
        })
    ));
    assert!(matches!(frames.write(0, b""), Err(FrameError::Kind(0))));
    assert!(matches!(frames.write(MAX_KIND + 1, b""), Err(FrameError::Kind(_))));
    frames.write(MAX_KIND, b"good").unwrap();
    let mut bytes = frames.into_inner();
    assert_eq!(read(&bytes[..16], false).1, "end", "what is refused is not written");
    assert!(matches!(
        FrameReader::open(&bytes[..], FORMAT).unwrap().next(),
        Ok(Next::Frame(_))
    ));
    // A header that is valid and says four gigabytes.
    bytes.truncate(16);
    bytes.extend(
        FrameHeader {
            kind: 1,
            length: u32::MAX,
            payload_crc: 0,
        }
        .encode(16),
    );
    let mut frames = FrameReader::open(&bytes[..], FORMAT).unwrap();
    for _ in 0..2 {
        assert!(matches!(frames.next(), Err(FrameError::TooLarge { offset: 16, .. })));
    }
}

/// Gives its bytes in small pieces, with interruptions and with pauses in which there is no more for now.
struct Trickle<'a> {
    bytes: &'a [u8],
    turn: usize,
}

impl Read for Trickle<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.turn += 1;
        match self.turn % 3 {
            0 => Err(io::ErrorKind::Interrupted.into()),
            1 => Ok(0),
            _ => {
                let n = self.turn % 7 + 1;
                self.bytes.read(&mut buf[..n])
            }
        }
    }
}

#[test]
fn a_file_may_grow_while_it_is_read() {
    let payloads = [&b"one"[..], b"", &[7; 500], b"four"];
    let bytes = file(&payloads);
    let trickle = Trickle {
        bytes: &bytes[16..],
        turn: 0,
    };
    let mut frames = FrameReader::resume(trickle, FORMAT, 2, 16);
    let mut got = Vec::new();
    while got.len() < payloads.len() {
        if let Next::Frame(frame) = frames.next().unwrap() {
            got.push(frame.payload.to_vec());
        }
    }
    assert_eq!(got, payloads);
}

#[test]
fn an_error_of_the_system_is_passed_on_and_may_be_over_later() {
    struct Once<'a>(&'a [u8], bool);
    impl Read for Once<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            if std::mem::take(&mut self.1) {
                Err(io::ErrorKind::Other.into())
            } else {
                self.0.read(buf)
            }
        }
    }
    let bytes = file(&[b"one"]);
    let mut frames = FrameReader::resume(Once(&bytes[16..], true), FORMAT, 2, 16);
    assert!(matches!(frames.next(), Err(FrameError::Io(_))));
    assert!(matches!(frames.next(), Ok(Next::Frame(_))));
}

#[test]
fn a_frame_without_a_kind_is_none() {
    for kind in [0, MAX_KIND + 1, u32::MAX] {
        let mut bytes = file(&[]);
        let header = FrameHeader {
            kind,
            length: 0,
            payload_crc: 0,
        };
        bytes.extend(header.encode(16));
        assert_eq!(read(&bytes, false).1, "torn 16 16");
    }
}
