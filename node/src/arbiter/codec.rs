//! A record as bytes, the same for every arbiter: lines that people can read, the last of them a checksum.
//!
//! ```text
//! lockstep-record 1
//! term 7
//! owner alpha
//! peer beta            (only if there is one)
//! crc32c 1b2c3d4e      (of all bytes before this line)
//! ```
//!
//! Invariant: a record has exactly one encoding, because arbiters compare bytes; nothing else is read as a record.

use lockstep_proto::quantity::Term;
use lockstep_proto::session::{MAX_NAME_BYTES, Record};

/// Most bytes of an encoded record: two names, a number and some words are below this.
pub const MAX_RECORD_BYTES: usize = 512;
/// First line of the version that this program writes, and the only one that it reads.
const HEAD: &str = "lockstep-record 1\n";
/// What every version begins with.
const MAGIC: &str = "lockstep-record ";

/// The record's bytes; an error says what of it cannot be stored.
pub fn encode(record: &Record) -> Result<Vec<u8>, String> {
    check_name("owner", &record.owner)?;
    let Record { term, owner, peer } = record;
    let peer = match peer {
        Some(peer) => {
            check_name("peer", peer)?;
            format!("peer {peer}\n")
        }
        None => String::new(),
    };
    let text = format!("{HEAD}term {term}\nowner {owner}\n{peer}");
    let sum = crc32c::crc32c(text.as_bytes());
    Ok(format!("{text}crc32c {sum:08x}\n").into_bytes())
}

/// The record of these bytes; an error says what is wrong with them.
pub fn decode(bytes: &[u8]) -> Result<Record, String> {
    if bytes.len() > MAX_RECORD_BYTES {
        return Err(format!("it has {} bytes, more than {MAX_RECORD_BYTES}", bytes.len()));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not text")?;
    // The last line, and what it is the sum of.
    let at = text.strip_suffix('\n').and_then(|text| text.rfind('\n'));
    let (body, last) = text.split_at(at.ok_or("it is cut off")? + 1);
    let sum = crc32c::crc32c(body.as_bytes());
    if last != format!("crc32c {sum:08x}\n") {
        return Err("its checksum does not fit it".into());
    }
    if !body.starts_with(HEAD) {
        let head = body.lines().next().unwrap_or_default();
        return Err(match head.strip_prefix(MAGIC) {
            Some(version) => format!("it has version {version}, and this program reads version 1 only"),
            None => "it is not a lockstep-record".into(),
        });
    }
    let mut lines = body[HEAD.len()..].lines();
    let mut value = |word: &str| {
        let line = lines.next()?.strip_prefix(word)?.strip_prefix(' ')?;
        Some(line.to_owned())
    };
    let term = value("term")
        .and_then(|term| term.parse().ok().map(Term::new))
        .ok_or("it has no term")?;
    let owner = value("owner").ok_or("it has no owner")?;
    let record = Record {
        term,
        owner,
        peer: value("peer"),
    };
    // Also finds names that may not be, numbers written in another way, and lines that nobody has read.
    if encode(&record)? != bytes {
        return Err("it is not written as this program writes records".into());
    }
    Ok(record)
}

fn check_name(which: &str, name: &str) -> Result<(), String> {
    let wrong = |character: char| character.is_whitespace() || character.is_control();
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.contains(wrong) {
        let name = name.escape_debug().take(2 * MAX_NAME_BYTES).collect::<String>();
        return Err(format!(
            "the {which}'s name `{name}` is not 1 to {MAX_NAME_BYTES} bytes without blanks and control characters"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(peer: Option<&str>) -> Record {
        Record {
            term: Term::new(7),
            owner: "alpha".into(),
            peer: peer.map(Into::into),
        }
    }

    #[test]
    fn records_come_back_and_no_cut_or_changed_byte_is_read_as_one() {
        for record in [record(None), record(Some("beta"))] {
            let bytes = encode(&record).unwrap();
            assert_eq!(decode(&bytes).unwrap(), record);
            for end in 0..bytes.len() {
                assert!(decode(&bytes[..end]).is_err(), "cut at {end}");
            }
            for at in 0..bytes.len() {
                for bit in 0..8 {
                    let mut changed = bytes.clone();
                    changed[at] ^= 1 << bit;
                    assert!(decode(&changed).is_err(), "bit {bit} of byte {at}");
                }
            }
        }
    }

    #[test]
    fn only_the_one_way_of_writing_is_read() {
        let sealed = |body: &str| format!("{body}crc32c {:08x}\n", crc32c::crc32c(body.as_bytes()));
        for (body, reason) in [
            ("lockstep-record 1\nterm 07\nowner a\n", "as this program writes"),
            ("lockstep-record 1\nterm +7\nowner a\n", "as this program writes"),
            (
                "lockstep-record 1\nterm 7\nowner a\npeer b\nmore\n",
                "as this program writes",
            ),
            ("lockstep-record 1\nterm 7\nowner a b\n", "name"),
            ("lockstep-record 1\nterm 7\nowner \n", "name"),
            ("lockstep-record 1\nterm 99999999999999999999\nowner a\n", "no term"),
            ("lockstep-record 1\nterm 7\n", "no owner"),
            ("lockstep-record 2\nterm 7\nowner a\n", "version 2"),
            ("something\n", "not a lockstep-record"),
            ("", "cut off"),
        ] {
            let error = decode(sealed(body).as_bytes()).unwrap_err();
            assert!(error.contains(reason), "{body:?}: {error}");
        }
        assert!(decode(&[b'a'; 4000]).unwrap_err().contains("4000 bytes"));
    }

    #[test]
    fn names_that_would_break_the_lines_are_not_written() {
        for name in ["", "a b", "a\nterm 9", &"x".repeat(65)] {
            let bad = Record {
                owner: name.into(),
                ..Record::default()
            };
            assert!(encode(&bad).unwrap_err().contains("owner"), "{name:?}");
        }
        let longest = Record {
            term: Term::LAST,
            owner: "x".repeat(64),
            peer: Some("y".repeat(64)),
        };
        assert!(encode(&longest).unwrap().len() <= MAX_RECORD_BYTES);
        assert_eq!(decode(&encode(&longest).unwrap()).unwrap(), longest);
    }
}
