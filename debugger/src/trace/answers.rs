//! Which frame out answers which frame in, where the frames themselves say it:
//!
//! - ARP (RFC 826): the reply to a request for an address;
//! - ICMP and ICMPv6 echo (RFC 792, 4443): the reply with the addresses, identifier and sequence number of the request;
//! - TCP (RFC 9293): the first segment out that acknowledges all that a segment in has.
//!
//! What a program answers is not known: a response may go out with the acknowledgement of its request, or later.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Frames that wait for their answers at most; then all of them are given up.
const MOST: usize = 4096;

/// What tells an answer's question. Addresses are in the question's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Question {
    /// Asked for this address, by the owner of that one.
    Arp(Ipv4Addr, Ipv4Addr),
    /// From, to, identifier, sequence number.
    Echo(IpAddr, IpAddr, u16, u16),
    /// A direction of a connection.
    Tcp((IpAddr, u16), (IpAddr, u16)),
}

/// What a frame says.
enum Said {
    /// A question; of TCP with the sequence number after it.
    Asks(Question, u32),
    /// An answer; of TCP with the sequence number up to which it acknowledges.
    Answers(Question, u32),
}

/// Frames that wait for their answers.
#[derive(Default)]
pub struct Answers {
    last: u64,
    count: usize,
    /// By network card and question: sequence number and arrow.
    waiting: HashMap<(u32, Question), Vec<(u32, u64)>>,
}

impl Answers {
    /// A frame came in. The arrow that begins at it, if there may be an answer.
    pub fn received(&mut self, nic: u32, frame: &[u8]) -> Option<u64> {
        let question = said(frame).into_iter().find_map(|said| match said {
            Said::Asks(question, end) => Some((question, end)),
            Said::Answers(..) => None,
        });
        let (question, end) = question?;
        if self.count == MOST {
            self.waiting.clear();
            self.count = 0;
        }
        self.count += 1;
        self.last += 1;
        self.waiting.entry((nic, question)).or_default().push((end, self.last));
        Some(self.last)
    }

    /// A frame went out. The arrows that end at it.
    pub fn sent(&mut self, nic: u32, frame: &[u8]) -> Vec<u64> {
        let mut arrows = Vec::new();
        for said in said(frame) {
            let Said::Answers(question, acknowledged) = said else {
                continue;
            };
            let Some(waiting) = self.waiting.get_mut(&(nic, question)) else {
                continue;
            };
            // Sequence numbers go round.
            let is_answered = |end: u32| acknowledged.wrapping_sub(end) < 1 << 31;
            let answered = waiting
                .iter()
                .filter(|(end, _)| is_answered(*end))
                .map(|(_, arrow)| *arrow);
            arrows.extend(answered);
            waiting.retain(|(end, _)| !is_answered(*end));
            if waiting.is_empty() {
                self.waiting.remove(&(nic, question));
            }
        }
        self.count -= arrows.len();
        arrows
    }
}

/// What an Ethernet frame says; nothing where it is cut off or of another kind.
fn said(frame: &[u8]) -> Vec<Said> {
    let Some((kind, packet)) = frame.get(12..).and_then(<[u8]>::split_first_chunk) else {
        return Vec::new();
    };
    let said = match u16::from_be_bytes(*kind) {
        0x0806 => arp(packet).map(|said| vec![said]),
        0x0800 => ipv4(packet),
        0x86dd => ipv6(packet),
        _ => None,
    };
    said.unwrap_or_default()
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn arp(packet: &[u8]) -> Option<Said> {
    // Ethernet and IPv4.
    packet.strip_prefix(&[0, 1, 8, 0, 6, 4])?;
    let (sender, target) = (word(packet, 14)?.into(), word(packet, 24)?.into());
    match half(packet, 6)? {
        1 => Some(Said::Asks(Question::Arp(target, sender), 0)),
        2 => Some(Said::Answers(Question::Arp(sender, target), 0)),
        _ => None,
    }
}

fn ipv4(packet: &[u8]) -> Option<Vec<Said>> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let length = usize::from(half(packet, 2)?);
    // A later fragment has no header of what it is part of; the first one not all of it.
    if header < 20 || half(packet, 6)? & 0x3fff != 0 {
        return None;
    }
    let (from, to): (Ipv4Addr, Ipv4Addr) = (word(packet, 12)?.into(), word(packet, 16)?.into());
    // Behind it is Ethernet's padding.
    let payload = packet.get(header..length)?;
    match packet[9] {
        1 => Some(vec![echo(from.into(), to.into(), payload, 8, 0)?]),
        6 => tcp(from.into(), to.into(), payload),
        _ => None,
    }
}

fn ipv6(packet: &[u8]) -> Option<Vec<Said>> {
    let length = usize::from(half(packet, 4)?);
    let address = |at: usize| Some(Ipv6Addr::from(*packet.get(at..)?.first_chunk::<16>()?));
    let (from, to) = (address(8)?, address(24)?);
    let payload = packet.get(40..40 + length)?;
    match packet[6] {
        58 => Some(vec![echo(from.into(), to.into(), payload, 128, 129)?]),
        6 => tcp(from.into(), to.into(), payload),
        _ => None,
    }
}

fn echo(from: IpAddr, to: IpAddr, payload: &[u8], request: u8, reply: u8) -> Option<Said> {
    let (identifier, sequence) = (half(payload, 4)?, half(payload, 6)?);
    let kind = *payload.first()?;
    if kind == request {
        Some(Said::Asks(Question::Echo(from, to, identifier, sequence), 0))
    } else if kind == reply {
        Some(Said::Answers(Question::Echo(to, from, identifier, sequence), 0))
    } else {
        None
    }
}

fn tcp(from: IpAddr, to: IpAddr, payload: &[u8]) -> Option<Vec<Said>> {
    const FIN: u8 = 1;
    const SYN: u8 = 2;
    const ACK: u8 = 16;
    let (from, to) = ((from, half(payload, 0)?), (to, half(payload, 2)?));
    let (sequence, acknowledged) = (word(payload, 4)?, word(payload, 8)?);
    let flags = *payload.get(13)?;
    let data = payload.len().checked_sub(usize::from(payload[12] >> 4) * 4)? as u32;
    let length = data + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
    let mut said = Vec::new();
    if length > 0 {
        said.push(Said::Asks(Question::Tcp(from, to), sequence.wrapping_add(length)));
    }
    if flags & ACK != 0 {
        said.push(Said::Answers(Question::Tcp(to, from), acknowledged));
    }
    Some(said)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NONE: [u64; 0] = [];

    fn ethernet(kind: u16, packet: &[u8]) -> Vec<u8> {
        [&[0; 12][..], &kind.to_be_bytes(), packet].concat()
    }

    fn arp(operation: u8, sender: u8, target: u8) -> Vec<u8> {
        let mut packet = vec![0, 1, 8, 0, 6, 4, 0, operation];
        packet.extend([&[0; 6][..], &[10, 0, 0, sender], &[0; 6], &[10, 0, 0, target]].concat());
        ethernet(0x0806, &packet)
    }

    fn ipv4(protocol: u8, from: u8, to: u8, payload: &[u8]) -> Vec<u8> {
        let length = (20 + payload.len() as u16).to_be_bytes();
        let mut packet = vec![0x45, 0, length[0], length[1], 0, 0, 0x40, 0, 64, protocol, 0, 0];
        packet.extend([&[10, 0, 0, from, 10, 0, 0, to], payload, &[0; 6]].concat());
        ethernet(0x0800, &packet)
    }

    fn ping(kind: u8, from: u8, to: u8, sequence: u8) -> Vec<u8> {
        ipv4(1, from, to, &[kind, 0, 0, 0, 0, 7, 0, sequence, 1, 2, 3])
    }

    fn segment(from: u8, to: u8, flags: u8, sequence: u32, acknowledged: u32, data: &[u8]) -> Vec<u8> {
        let mut payload = vec![0x12, from, 0x12, to];
        payload.extend(
            [
                &sequence.to_be_bytes()[..],
                &acknowledged.to_be_bytes(),
                &[0x50, flags, 0, 0, 0, 0, 0, 0],
                data,
            ]
            .concat(),
        );
        ipv4(6, from, to, &payload)
    }

    #[test]
    fn a_reply_is_the_answer_of_its_request_and_of_no_other() {
        let mut answers = Answers::default();
        let one = answers.received(0, &ping(8, 1, 2, 1)).expect("an arrow");
        let two = answers.received(0, &ping(8, 1, 2, 2)).expect("an arrow");
        assert_eq!(answers.received(0, &ping(0, 1, 2, 3)), None, "an answer asks nothing");
        assert_eq!(answers.sent(1, &ping(0, 2, 1, 2)), NONE, "another network card");
        assert_eq!(answers.sent(0, &ping(0, 2, 3, 2)), NONE, "another address");
        assert_eq!(answers.sent(0, &ping(0, 2, 1, 2)), [two]);
        assert_eq!(answers.sent(0, &ping(0, 2, 1, 2)), NONE, "once");
        assert_eq!(answers.sent(0, &ping(0, 2, 1, 1)), [one]);
        let who = answers.received(0, &arp(1, 1, 2)).expect("an arrow");
        assert_eq!(answers.sent(0, &arp(2, 3, 1)), NONE);
        assert_eq!(answers.sent(0, &arp(2, 2, 1)), [who]);
        assert!(answers.waiting.is_empty() && answers.count == 0);
    }

    #[test]
    fn a_segment_is_answered_by_what_acknowledges_all_of_it() {
        let mut answers = Answers::default();
        let begin = u32::MAX - 1;
        let open = answers.received(0, &segment(1, 2, 2, begin, 0, b"")).expect("an arrow");
        assert_eq!(
            answers.sent(0, &segment(2, 1, 18, 77, begin.wrapping_add(1), b"")),
            [open]
        );
        assert_eq!(
            answers.received(0, &segment(1, 2, 16, begin.wrapping_add(1), 78, b"")),
            None,
            "it has nothing to answer"
        );
        let first = answers
            .received(0, &segment(1, 2, 24, u32::MAX, 78, b"GET"))
            .expect("an arrow");
        let second = answers.received(0, &segment(1, 2, 24, 2, 78, b"ME")).expect("an arrow");
        assert_eq!(answers.sent(0, &segment(2, 1, 16, 78, 1, b"")), NONE, "a part of it");
        assert_eq!(
            answers.sent(0, &segment(3, 1, 16, 78, 4, b"")),
            NONE,
            "another connection"
        );
        assert_eq!(answers.sent(0, &segment(2, 1, 24, 78, 4, b"OK")), [first, second]);
    }

    #[test]
    fn what_waits_has_bounds() {
        let mut answers = Answers::default();
        for round in 0..3 * MOST as u32 {
            assert!(answers.received(0, &segment(1, 2, 24, round * 8, 0, b"x")).is_some());
            let waiting: usize = answers.waiting.values().map(Vec::len).sum();
            assert!(waiting == answers.count && waiting <= MOST);
        }
    }

    proptest! {
        #[test]
        fn no_frame_is_a_panic(
            kind in prop::sample::select(vec![0x0806_u16, 0x0800, 0x86dd]),
            mut packet in prop::collection::vec(any::<u8>(), 0..80),
            first in prop::sample::select(vec![0x45_u8, 0x4f, 0x40, 0x60]),
            protocol in prop::sample::select(vec![1_u8, 6, 58]),
        ) {
            if packet.len() > 9 {
                (packet[0], packet[6], packet[9]) = (first, protocol, protocol);
            }
            let mut answers = Answers::default();
            let frame = ethernet(kind, &packet);
            answers.received(0, &frame);
            answers.sent(0, &frame);
            answers.received(0, &packet);
        }
    }
}
