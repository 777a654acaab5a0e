//! Every limit of the session's messages.

use crate::Goodbye;
use crate::quantity::LogPosition;

/// The protocol version that this program speaks.
pub const PROTOCOL_VERSION: u32 = 1;
/// Most bytes of a message on the control stream: a machine's state without its memory is far below.
pub const MAX_CONTROL_BYTES: usize = 4 << 20;
/// Most bytes of a datagram; every path that carries QUIC carries this (RFC 9000, 14.1).
pub const MAX_DATAGRAM_BYTES: usize = 1000;
/// Most bytes of a node's or a machine's name.
pub const MAX_NAME_BYTES: usize = 64;
/// The last position at which a join may begin. No log gets there; sums with what follows do not overflow.
pub const MAX_POSITION: LogPosition = LogPosition::new(1 << 62);
/// Most bytes of a reason or report that are kept.
pub const MAX_REASON_BYTES: usize = 4096;

/// The shortest time from one heartbeat to the next, in nanoseconds: 1 ms.
pub const MIN_HEARTBEAT_NS: u64 = 1_000_000;
/// The longest deadline, in nanoseconds: an hour.
pub const MAX_DEADLINE_NS: u64 = 3_600_000_000_000;

/// `text` as far as it is kept.
pub fn bounded(text: &str) -> String {
    let mut end = text.len().min(MAX_REASON_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].into()
}

/// Why the other side said goodbye, as far as it is kept.
pub(super) fn reason_of(goodbye: &Goodbye) -> String {
    if goodbye.reason.is_empty() {
        return "goodbye, without a reason".into();
    }
    bounded(&goodbye.reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_cut_between_characters() {
        for text in [
            "",
            "a",
            &"é".repeat(MAX_REASON_BYTES),
            &format!("a{}", "é".repeat(MAX_REASON_BYTES)),
        ] {
            let kept = bounded(text);
            assert!(text.starts_with(&kept) && kept.len() <= MAX_REASON_BYTES);
            assert!(kept.len() == text.len() || kept.len() >= MAX_REASON_BYTES - 1);
        }
    }
}
