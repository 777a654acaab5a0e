//! The backup's end, with anything at any time.

use lockstep_proto::quantity::{SessionTime, StopNumber, Term};
use lockstep_proto::session::{Backup, BackupAction, BackupInput, BackupState, Verdict};
use lockstep_proto::{Handover, Heartbeat, Named, ToBackup, to_backup, to_primary};
use proptest::prelude::*;

use super::messages::{MS, TERM, TIMING, any_to_backup, at, diverged, hello, identity, name, number, state, to_backup};

#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)]
enum Step {
    /// What a primary as it should be, or the driver, would do next.
    Good,
    Message(ToBackup),
    Heartbeat(u64, u64),
    Time(u64),
    Connected(String),
    Disconnected,
    Built,
    Unfit(String),
    Received(u64),
    Verified(u64),
    Diverged(String),
    HandOver,
    Verdict(Verdict),
}

fn step() -> impl Strategy<Value = Step> {
    let verdict = prop_oneof![Just(Verdict::Won), Just(Verdict::Lost), Just(Verdict::Unknown)];
    prop_oneof![
        30 => Just(Step::Good),
        2 => any_to_backup().prop_map(Step::Message),
        4 => (number(), number()).prop_map(|(number, released)| Step::Heartbeat(number, released)),
        4 => (0..200 * MS).prop_map(Step::Time),
        1 => name().prop_map(Step::Connected),
        1 => Just(Step::Disconnected),
        1 => Just(Step::Built),
        1 => name().prop_map(Step::Unfit),
        3 => number().prop_map(Step::Received),
        3 => number().prop_map(Step::Verified),
        1 => name().prop_map(Step::Diverged),
        1 => Just(Step::HandOver),
        3 => verdict.prop_map(Step::Verdict),
    ]
}

struct Watched {
    session: Backup,
    now: SessionTime,
    /// When anything of the connection came last.
    heard: SessionTime,
    received: u64,
    asked: bool,
    /// The primary told it to claim.
    handed_over: bool,
}

impl Watched {
    fn step(&mut self, step: Step) {
        match step {
            Step::Good => self.good(),
            Step::Message(message) => self.heard(BackupInput::Message(message)),
            Step::Heartbeat(number, released) => self.heard(BackupInput::Heartbeat(Heartbeat {
                number,
                released,
                ..Heartbeat::default()
            })),
            Step::Time(time) => {
                self.now = self.now.plus_ns(time);
                self.handle(BackupInput::Tick);
                assert!(
                    self.session.wake().is_none_or(|wake| wake > self.now),
                    "it never sleeps"
                );
            }
            Step::Connected(name) => self.heard(BackupInput::Connected(name)),
            Step::Disconnected => self.handle(BackupInput::Disconnected),
            Step::Built => self.handle(BackupInput::Built),
            Step::Unfit(reason) => self.handle(BackupInput::Unfit(reason)),
            Step::Received(position) => {
                self.received = self.received.max(position);
                self.heard(BackupInput::Received(at(position)));
            }
            Step::Verified(position) => self.handle(BackupInput::Verified(at(position), StopNumber::new(position))),
            Step::Diverged(report) => self.handle(BackupInput::Diverged(diverged(1, report))),
            Step::HandOver => {
                let position = self.session.ack().verified;
                let message = to_backup(to_backup::Kind::Handover(Handover {
                    position,
                    ..Handover::default()
                }));
                self.heard(BackupInput::Message(message));
            }
            Step::Verdict(verdict) => self.verdict(verdict),
        }
    }

    fn verdict(&mut self, verdict: Verdict) {
        let was_asked = std::mem::take(&mut self.asked);
        let before = self.session.state();
        self.handle(BackupInput::Arbiter(verdict));
        if !was_asked {
            assert_eq!(self.session.state(), before, "a verdict that nobody waited for");
        }
    }

    fn good(&mut self) {
        let kind = match self.session.state() {
            BackupState::Waiting => return self.heard(BackupInput::Connected("a".into())),
            BackupState::Connected => to_backup::Kind::Hello(hello()),
            BackupState::Syncing => {
                self.heard(BackupInput::Message(to_backup(to_backup::Kind::State(state(5)))));
                return self.handle(BackupInput::Built);
            }
            BackupState::Joined => to_backup::Kind::Named(Named { term: TERM }),
            _ => return,
        };
        self.heard(BackupInput::Message(to_backup(kind)));
    }

    fn heard(&mut self, input: BackupInput) {
        self.heard = self.now;
        if let BackupInput::Message(ToBackup {
            kind: Some(to_backup::Kind::State(state)),
        }) = &input
        {
            self.received = self.received.max(state.position);
        }
        if let BackupInput::Message(ToBackup {
            kind: Some(to_backup::Kind::Handover(handover)),
        }) = &input
        {
            self.handed_over = handover.position <= self.session.ack().verified;
        }
        self.handle(input);
        self.handed_over = false;
    }

    fn handle(&mut self, input: BackupInput) {
        let was = self.session.state();
        self.session.handle(self.now, input);
        while let Some(action) = self.session.poll() {
            self.action(action, was);
        }
        assert!(self.session.released().get() <= self.session.ack().received);
        assert!(self.session.ack().received <= self.received);
    }

    fn action(&mut self, action: BackupAction, was: BackupState) {
        let claims = |state| matches!(state, BackupState::Claiming | BackupState::Frozen | BackupState::Live);
        match action {
            BackupAction::Send(message) => {
                assert!(!claims(was), "{was:?} sends {message:?}");
                if let Some(to_primary::Kind::Ack(ack)) = message.kind {
                    assert!(ack.verified <= ack.received && ack.received <= self.received);
                }
            }
            BackupAction::Reply(_) => assert!(!claims(was)),
            BackupAction::Arbitrate { expected, new } => {
                assert!(!std::mem::replace(&mut self.asked, true), "two questions at a time");
                assert!(was == BackupState::Protected || claims(was), "{was:?} claims");
                assert_eq!((expected.term, expected.owner.as_str()), (Term::new(TERM), "a"));
                assert_eq!(new, expected.alone("b"));
                if was == BackupState::Protected {
                    assert!(
                        self.handed_over || self.now >= self.heard.plus_ns(TIMING.deadline_ns),
                        "it claims before the deadline"
                    );
                }
            }
            BackupAction::Promote(record) => assert_eq!(record.term, Term::new(TERM + 1)),
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2_000) })]

    #[test]
    fn keeps_to_its_rules_and_is_never_stuck(steps in prop::collection::vec(step(), 0..120)) {
        let session = Backup::new(identity());
        let (now, heard) = (SessionTime::ZERO, SessionTime::ZERO);
        let mut watched = Watched { session, now, heard, received: 0, asked: false, handed_over: false };
        for step in steps {
            watched.step(step);
        }
        // The primary is silent from now on, and the arbiter willing.
        for _ in 0..3 {
            watched.step(Step::Time(3_600_000 * MS));
            if watched.asked {
                watched.verdict(Verdict::Won);
            }
        }
        let state = watched.session.state();
        prop_assert!(matches!(state, BackupState::Waiting | BackupState::Live), "stuck in {:?}", state);
    }
}
