//! Messages, right and wrong.

use lockstep_proto::quantity::{LogPosition, SessionTime, Term};
use lockstep_proto::session::{BackupIdentity, MAX_NAME_BYTES, MAX_REASON_BYTES, PROTOCOL_VERSION, Record, Timing};
use lockstep_proto::{
    Ack, Diverged, Goodbye, Handover, HeartbeatReply, Hello, JoinState, Joined, MachineConfig, Named, Ready, ToBackup,
    ToPrimary, Welcome, to_backup, to_primary,
};
use proptest::prelude::*;
use prost::Message;

pub const MS: u64 = 1_000_000;
pub const TIMING: Timing = Timing {
    heartbeat_ns: 50 * MS,
    deadline_ns: 150 * MS,
};
pub const TERM: u64 = 7;

pub fn at(position: u64) -> LogPosition {
    LogPosition::new(position)
}

/// So many nanoseconds after the session's time began.
pub fn time(ns: u64) -> SessionTime {
    SessionTime::from_ns(ns)
}

pub fn record(peer: Option<&str>) -> Record {
    Record {
        term: Term::new(TERM),
        owner: "a".into(),
        peer: peer.map(Into::into),
    }
}

pub fn identity() -> BackupIdentity {
    BackupIdentity {
        node: "b".into(),
        machine_name: "machine".into(),
        host_class: "class".into(),
        model_revisions: 2..=3,
        nic_mtus: Vec::new(),
    }
}

/// What node `a` says first.
pub fn hello() -> Hello {
    Hello {
        version_min: PROTOCOL_VERSION,
        version_max: PROTOCOL_VERSION,
        node: "a".into(),
        machine_name: "machine".into(),
        machine: Some(MachineConfig {
            model_revision: 3,
            ..MachineConfig::default()
        }),
        host_class: "class".into(),
        term: TERM,
        heartbeat_ns: TIMING.heartbeat_ns,
        deadline_ns: TIMING.deadline_ns,
        inquiry: false,
        knows_zeroes: true,
    }
}

pub fn welcome() -> Welcome {
    Welcome {
        version: PROTOCOL_VERSION,
        node: "b".into(),
        host_class: "class".into(),
    }
}

pub fn state(position: u64) -> JoinState {
    JoinState {
        position,
        ..JoinState::default()
    }
}

pub fn diverged(stop: u64, report: String) -> Diverged {
    Diverged {
        stop,
        report,
        registers: Vec::new(),
    }
}

pub fn reply(number: u64) -> HeartbeatReply {
    HeartbeatReply {
        number,
        uplink_down: false,
    }
}

pub fn to_primary(kind: to_primary::Kind) -> ToPrimary {
    ToPrimary { kind: Some(kind) }
}

pub fn to_backup(kind: to_backup::Kind) -> ToBackup {
    ToBackup { kind: Some(kind) }
}

pub fn ack(received: u64, verified: u64) -> ToPrimary {
    let stop = verified;
    to_primary(to_primary::Kind::Ack(Ack {
        received,
        verified,
        stop,
        lag_ns: 0,
    }))
}

/// A message of a later version: its kind has a number that this one does not know.
pub fn unknown<M: Message + Default>() -> M {
    M::decode(&[0xfa, 0x06, 0x00][..]).expect("an unknown field is skipped")
}

/// Numbers as they come, and those at the ends.
pub fn number() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0..30_u64, 1 => (u64::MAX - 2)..=u64::MAX, 1 => any::<u64>()]
}

/// Names and classes: right, wrong, none and far too long.
pub fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("a".to_string()),
        Just("b".to_string()),
        Just("class".to_string()),
        Just("machine".to_string()),
        Just(String::new()),
        Just("ü".repeat(MAX_NAME_BYTES)),
        Just("x".repeat(3 * MAX_REASON_BYTES)),
    ]
}

pub fn any_to_primary() -> impl Strategy<Value = ToPrimary> {
    use to_primary::Kind;
    let kind = prop_oneof![
        (0..3_u32, name(), name()).prop_map(|(version, node, host_class)| Kind::Welcome(Welcome {
            version,
            node,
            host_class
        })),
        Just(Kind::Joined(Joined {})),
        (number(), number(), number(), number()).prop_map(|(received, verified, stop, lag_ns)| Kind::Ack(Ack {
            received,
            verified,
            stop,
            lag_ns
        })),
        (number(), name()).prop_map(|(stop, report)| Kind::Diverged(diverged(stop, report))),
        (name(), any::<bool>()).prop_map(|(reason, shut_down)| Kind::Goodbye(Goodbye { reason, shut_down })),
        number().prop_map(|term| Kind::Ready(Ready { term })),
    ];
    prop::option::of(kind).prop_map(|kind| ToPrimary { kind })
}

pub fn any_to_backup() -> impl Strategy<Value = ToBackup> {
    use to_backup::Kind;
    let kind = prop_oneof![
        any_hello().prop_map(Kind::Hello),
        number().prop_map(|position| Kind::State(state(position))),
        number().prop_map(|term| Kind::Named(Named { term })),
        (number(), any::<bool>()).prop_map(|(position, stalled)| Kind::Handover(Handover { position, stalled })),
        (name(), any::<bool>()).prop_map(|(reason, shut_down)| Kind::Goodbye(Goodbye { reason, shut_down })),
    ];
    prop::option::of(kind).prop_map(|kind| ToBackup { kind })
}

/// A hello that may be right but for some fields.
pub fn any_hello() -> impl Strategy<Value = Hello> {
    let versions = prop_oneof![3 => Just((1, 1)), 1 => (0..3_u32, 0..3_u32)];
    let names = prop_oneof![3 => Just(("a".to_string(), "machine".to_string())), 1 => (name(), name())];
    let times = prop_oneof![3 => Just((TIMING.heartbeat_ns, TIMING.deadline_ns)), 1 => (number(), number())];
    let term = prop_oneof![3 => Just(TERM), 1 => number()];
    (versions, names, times, term, any::<bool>()).prop_map(|(versions, names, times, term, machine)| Hello {
        version_min: versions.0,
        version_max: versions.1,
        node: names.0,
        machine_name: names.1,
        heartbeat_ns: times.0,
        deadline_ns: times.1,
        inquiry: false,
        term,
        machine: if machine { hello().machine } else { None },
        ..hello()
    })
}
