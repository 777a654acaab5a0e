//! Feeds both ends of a session with messages, heartbeats, reports, verdicts and time, in any order.
//!
//! fuzz/README.md says how it is run.
//!
//! The bytes are a list of steps: what happens, how much time went by, a length, and so many bytes of a message. Bytes
//! alone would seldom be a message that fits the session, so a step can also say one that does, with numbers from its bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lockstep_proto::quantity::{LogPosition, SessionTime, StopNumber, Term};
use lockstep_proto::session::{
    Backup, BackupAction, BackupIdentity, BackupInput, BackupState, MAX_POSITION, Primary, PrimaryAction, PrimaryInput,
    PrimaryState, Record, Timing, Unprotected, Verdict,
};
use lockstep_proto::{
    Ack, Diverged, Goodbye, Handover, Heartbeat, HeartbeatReply, Hello, JoinState, Joined, MachineConfig, Named, Ready,
    ToBackup, ToPrimary, Welcome, to_backup, to_primary,
};
use prost::Message;

/// A step's time is counted in these: some hundred are a deadline.
const MOMENT_NS: u64 = 10_000_000;

/// What happens, how much time went by before, and the bytes of it.
struct Step<'a> {
    what: u8,
    moments: u8,
    bytes: &'a [u8],
}

impl<'a> Step<'a> {
    fn take(bytes: &mut &'a [u8]) -> Option<Self> {
        let [what, moments, length, rest @ ..] = bytes else {
            return None;
        };
        let (taken, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        *bytes = rest;
        Some(Self {
            what: *what,
            moments: *moments,
            bytes: taken,
        })
    }

    /// One of its numbers: small ones come often, and any can come.
    fn number(&self, index: usize) -> u64 {
        match self.bytes.get(index * 8..index * 8 + 8) {
            Some(bytes) => bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)),
            None => self.bytes.get(index).copied().unwrap_or_default().into(),
        }
    }

    fn verdict(&self) -> Verdict {
        match self.number(0) % 3 {
            0 => Verdict::Won,
            1 => Verdict::Lost,
            _ => Verdict::Unknown,
        }
    }
}

fn hello() -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        node: "a".into(),
        machine_name: "m".into(),
        machine: Some(MachineConfig::default()),
        host_class: "c".into(),
        term: 1,
        heartbeat_ns: Timing::CALM.heartbeat_ns,
        deadline_ns: Timing::CALM.deadline_ns,
        inquiry: false,
        knows_zeroes: true,
    }
}

fuzz_target!(|bytes: &[u8]| {
    primary(bytes);
    backup(bytes);
});

fn primary(mut bytes: &[u8]) {
    let record = Record {
        term: Term::new(1),
        owner: "a".into(),
        peer: None,
    };
    let mut session = Primary::new(hello(), record, Timing::CALM, Unprotected::NeedBackup);
    let (mut now, mut logged, mut asked) = (SessionTime::from_ns(1), 0, 0);
    while let Some(step) = Step::take(&mut bytes) {
        now = now.plus_ns(u64::from(step.moments) * MOMENT_NS);
        let input = match step.what % 16 {
            0 => PrimaryInput::Connected("b".into()),
            1 => PrimaryInput::Connected(String::from_utf8_lossy(step.bytes).into()),
            2 => PrimaryInput::Disconnected,
            3 => PrimaryInput::StateSent,
            4 => PrimaryInput::HandOver(LogPosition::new(logged)),
            5 => PrimaryInput::Suspend,
            6 => PrimaryInput::Resume,
            7 => {
                logged = step.number(0).max(logged);
                session.note_logged(LogPosition::new(logged));
                continue;
            }
            // Exactly one to each question, and not before it.
            8 if asked > 0 => {
                asked -= 1;
                PrimaryInput::Arbiter(step.verdict())
            }
            9 => PrimaryInput::Reply(HeartbeatReply {
                number: step.number(0),
                uplink_down: step.number(1) == 1,
            }),
            10 => answer(to_primary::Kind::Welcome(Welcome {
                version: 1,
                node: "b".into(),
                host_class: "c".into(),
            })),
            11 => answer(to_primary::Kind::Joined(Joined {})),
            12 => answer(to_primary::Kind::Ack(Ack {
                received: step.number(0),
                verified: step.number(1),
                ..Ack::default()
            })),
            13 => answer(to_primary::Kind::Ready(Ready { term: step.number(0) })),
            14 => match ToPrimary::decode(step.bytes) {
                Ok(message) => PrimaryInput::Message(message),
                Err(_) => continue,
            },
            _ => PrimaryInput::Tick,
        };
        let was = session.record().term;
        session.handle(now, input);
        assert!(session.record().term >= was, "the term falls");
        while let Some(action) = session.poll() {
            match action {
                PrimaryAction::Arbitrate { expected, new } => {
                    assert_eq!(expected, *session.record());
                    assert!(new.owner == "a" && new != expected);
                    asked += 1;
                }
                PrimaryAction::Send(message) => drop(message.encode_to_vec()),
                _ => {}
            }
        }
        assert!(asked <= 1, "one question at a time");
        let limit = session.release_limit(now).get();
        match session.state() {
            PrimaryState::Alone(_) | PrimaryState::Greeting | PrimaryState::Syncing { .. } => {
                assert!(session.record().peer.is_none(), "it lets all go and a peer is named");
            }
            PrimaryState::Naming { .. } | PrimaryState::Protected | PrimaryState::HandingOver { .. } => {
                assert!(limit <= logged, "more may leave than there is");
            }
            PrimaryState::Fencing { .. } | PrimaryState::Frozen(_) => assert_eq!(limit, 0),
        }
        let ack = session.ack();
        assert!(ack.verified <= ack.received && ack.received <= logged);
        assert!(
            session
                .wake()
                .is_none_or(|_| !matches!(session.state(), PrimaryState::Alone(_)))
        );
    }
}

fn answer(kind: to_primary::Kind) -> PrimaryInput {
    PrimaryInput::Message(ToPrimary { kind: Some(kind) })
}

fn backup(mut bytes: &[u8]) {
    let mut session = Backup::new(BackupIdentity {
        node: "b".into(),
        machine_name: "m".into(),
        host_class: "c".into(),
        model_revisions: 0..=0,
        nic_mtus: Vec::new(),
    });
    let (mut now, mut asked, mut named) = (SessionTime::from_ns(1), 0, false);
    while let Some(step) = Step::take(&mut bytes) {
        now = now.plus_ns(u64::from(step.moments) * MOMENT_NS);
        let input = match step.what % 16 {
            0 => BackupInput::Connected("a".into()),
            1 => BackupInput::Connected(String::from_utf8_lossy(step.bytes).into()),
            2 => BackupInput::Disconnected,
            3 => BackupInput::Built,
            4 => BackupInput::Unfit(String::from_utf8_lossy(step.bytes).into()),
            5 => BackupInput::Received(LogPosition::new(step.number(0))),
            6 => BackupInput::Verified(LogPosition::new(step.number(0)), StopNumber::new(step.number(1))),
            7 => BackupInput::Diverged(Diverged {
                stop: step.number(0),
                report: String::from_utf8_lossy(step.bytes).into(),
                registers: Vec::new(),
            }),
            8 if asked > 0 => {
                asked -= 1;
                BackupInput::Arbiter(step.verdict())
            }
            9 => BackupInput::Heartbeat(Heartbeat {
                number: step.number(0),
                released: step.number(1),
                stalled: step.number(0) % 2 == 1,
            }),
            10 => say(to_backup::Kind::Hello(hello())),
            11 => say(to_backup::Kind::State(JoinState {
                position: step.number(0),
                ..JoinState::default()
            })),
            12 => say(to_backup::Kind::Named(Named { term: 1 })),
            13 => match step.number(0) % 2 {
                0 => say(to_backup::Kind::Handover(Handover {
                    position: step.number(1),
                    ..Handover::default()
                })),
                _ => say(to_backup::Kind::Goodbye(Goodbye::default())),
            },
            14 => match ToBackup::decode(step.bytes) {
                Ok(message) => BackupInput::Message(message),
                Err(_) => continue,
            },
            _ => BackupInput::Tick,
        };
        let was = session.state();
        session.handle(now, input);
        while let Some(action) = session.poll() {
            match action {
                BackupAction::Send(message) => {
                    named |= matches!(message.kind, Some(to_primary::Kind::Ready(_)));
                    let acknowledges = matches!(message.kind, Some(to_primary::Kind::Ack(_)));
                    assert!(
                        !acknowledges || !is_claiming(session.state()),
                        "it claims and acknowledges"
                    );
                }
                BackupAction::Arbitrate { expected, new } => {
                    assert!(named, "it claims and was not named");
                    assert!(expected.peer.as_deref() == Some("b") && new.owner == "b" && new.term > expected.term);
                    asked += 1;
                }
                BackupAction::Build(state) => assert!(state.position <= MAX_POSITION.get()),
                BackupAction::Reply(_) => assert!(!is_claiming(session.state()), "it claims and answers"),
                BackupAction::Discard => named = false,
                _ => {}
            }
        }
        assert!(asked <= 1, "one question at a time");
        assert!(
            was != BackupState::Live || session.state() == BackupState::Live,
            "live is final"
        );
        assert!(session.released().get() <= session.ack().received);
        assert!(session.ack().verified <= session.ack().received);
        session.lag_ns(now);
        session.wake();
    }
}

fn is_claiming(state: BackupState) -> bool {
    matches!(state, BackupState::Claiming | BackupState::Frozen | BackupState::Live)
}

fn say(kind: to_backup::Kind) -> BackupInput {
    BackupInput::Message(ToBackup { kind: Some(kind) })
}
