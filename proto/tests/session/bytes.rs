//! Bytes that are no message, or one of another version.

use lockstep_proto::quantity::{LogPosition, SessionTime};
use lockstep_proto::session::{Backup, BackupInput, Primary, PrimaryInput, Unprotected};
use lockstep_proto::{Heartbeat, HeartbeatReply, ToBackup, ToPrimary};
use proptest::prelude::*;
use prost::Message;

use super::messages::{TIMING, any_to_backup, any_to_primary, hello, identity, record};

/// Whenever they come.
const NOW: SessionTime = SessionTime::ZERO;

/// A message with some bytes changed, cut or added.
fn damaged(message: Vec<u8>, changes: &[(usize, u8)], length: usize) -> Vec<u8> {
    let mut bytes = message;
    bytes.resize(length.min(bytes.len() + 8), 0);
    for (at, value) in changes {
        let length = bytes.len().max(1);
        if let Some(byte) = bytes.get_mut(at % length) {
            *byte = *value;
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1_000) })]

    #[test]
    fn do_no_harm(
        to_primary in any_to_primary(),
        to_backup in any_to_backup(),
        changes in prop::collection::vec((any::<usize>(), any::<u8>()), 0..4),
        length in 0..400_usize,
    ) {
        let mut primary = Primary::new(hello(), record(None), TIMING, Unprotected::NeedBackup);
        primary.handle(NOW, PrimaryInput::Connected("b".into()));
        let bytes = damaged(to_primary.encode_to_vec(), &changes, length);
        if let Ok(message) = ToPrimary::decode(&bytes[..]) {
            primary.handle(NOW, PrimaryInput::Message(message));
        }
        if let Ok(reply) = HeartbeatReply::decode(&bytes[..]) {
            primary.handle(NOW, PrimaryInput::Reply(reply));
        }
        // The record names nobody.
        prop_assert_eq!(primary.release_limit(NOW), LogPosition::NO_LIMIT);

        let mut backup = Backup::new(identity());
        backup.handle(NOW, BackupInput::Connected("a".into()));
        let bytes = damaged(to_backup.encode_to_vec(), &changes, length);
        if let Ok(message) = ToBackup::decode(&bytes[..]) {
            backup.handle(NOW, BackupInput::Message(message));
        }
        if let Ok(heartbeat) = Heartbeat::decode(&bytes[..]) {
            backup.handle(NOW, BackupInput::Heartbeat(heartbeat));
        }
        prop_assert!(backup.released().get() <= backup.ack().received);
    }
}
