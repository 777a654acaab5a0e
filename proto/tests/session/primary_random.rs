//! The primary's end, with anything at any time.

use lockstep_proto::session::{Freeze, Primary, PrimaryAction, PrimaryInput, PrimaryState, Record};
use lockstep_proto::session::{Unprotected, Verdict};
use lockstep_proto::{Joined, Ready, ToPrimary, to_backup, to_primary};
use proptest::prelude::*;

use super::messages::{MS, TIMING, ack, any_to_primary, hello, name, number, record, reply, to_primary, welcome};

#[derive(Clone, Debug)]
enum Step {
    /// What a backup as it should be would do next.
    Good,
    Message(ToPrimary),
    Reply(u64),
    /// That so much time has passed.
    Time(u64),
    Connected(String),
    Disconnected,
    StateSent,
    Logged(u64),
    HandOver,
    GiveAway,
    Suspend,
    Resume,
    Verdict(Verdict),
}

fn step() -> impl Strategy<Value = Step> {
    let verdict = prop_oneof![3 => Just(Verdict::Won), 1 => Just(Verdict::Lost), 3 => Just(Verdict::Unknown)];
    prop_oneof![
        30 => Just(Step::Good),
        2 => any_to_primary().prop_map(Step::Message),
        2 => number().prop_map(Step::Reply),
        4 => (0..200 * MS).prop_map(Step::Time),
        1 => name().prop_map(Step::Connected),
        1 => Just(Step::Disconnected),
        1 => Just(Step::StateSent),
        3 => (0..20_u64).prop_map(Step::Logged),
        2 => Just(Step::HandOver),
        2 => Just(Step::GiveAway),
        1 => Just(Step::Suspend),
        2 => Just(Step::Resume),
        6 => verdict.prop_map(Step::Verdict),
    ]
}

/// A primary, and what must be true of it.
struct Watched {
    session: Primary,
    now: u64,
    connected: bool,
    asked: Option<Record>,
    /// A record that names the backup was asked for, and none without since.
    may_be_named: bool,
    running: bool,
    /// It is handed over although it may run.
    given_away: bool,
    beat: u64,
    logged: u64,
}

impl Watched {
    fn new() -> Self {
        Self {
            session: Primary::new(hello(), record(None), TIMING, Unprotected::NeedBackup),
            now: 0,
            connected: false,
            asked: None,
            may_be_named: false,
            running: true,
            given_away: false,
            beat: 0,
            logged: 0,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Good => self.good(),
            Step::Message(message) => self.handle(PrimaryInput::Message(message)),
            Step::Reply(number) => self.handle(PrimaryInput::Reply(reply(number))),
            Step::Time(time) => {
                self.now += time;
                self.handle(PrimaryInput::Tick);
                assert!(
                    self.session.wake().is_none_or(|wake| wake > self.now),
                    "it never sleeps"
                );
            }
            Step::Connected(name) => self.handle(PrimaryInput::Connected(name)),
            Step::Disconnected => self.handle(PrimaryInput::Disconnected),
            Step::StateSent => self.handle(PrimaryInput::StateSent),
            Step::Logged(_) if !self.running => {}
            Step::Logged(more) => {
                self.logged += more;
                self.session.note_logged(self.logged);
            }
            // The machine stands still first.
            Step::HandOver if self.running => {
                self.running = false;
                self.handle(PrimaryInput::HandOver(self.logged));
            }
            Step::HandOver => {}
            Step::GiveAway => {
                self.given_away |= *self.session.state() == PrimaryState::Protected;
                self.handle(PrimaryInput::GiveAway);
            }
            Step::Suspend => self.handle(PrimaryInput::Suspend),
            Step::Resume => self.handle(PrimaryInput::Resume),
            Step::Verdict(verdict) => self.verdict(verdict),
        }
    }

    fn verdict(&mut self, verdict: Verdict) {
        let asked = self.asked.take();
        let before = self.session.state().clone();
        if verdict == Verdict::Won && asked.as_ref().is_some_and(|asked| asked.peer.is_none()) {
            self.may_be_named = false;
        }
        self.handle(PrimaryInput::Arbiter(verdict));
        if asked.is_none() {
            assert_eq!(*self.session.state(), before, "a verdict that nobody waited for");
        }
    }

    fn good(&mut self) {
        let kind = match self.session.state() {
            PrimaryState::Alone(Unprotected::Suspended) => return self.handle(PrimaryInput::Resume),
            PrimaryState::Alone(_) => return self.handle(PrimaryInput::Connected("b".into())),
            PrimaryState::Greeting => to_primary::Kind::Welcome(welcome()),
            PrimaryState::Syncing => {
                self.session.note_logged(self.logged);
                self.handle(PrimaryInput::StateSent);
                to_primary::Kind::Joined(Joined {})
            }
            PrimaryState::Naming if self.session.record().peer.is_some() => to_primary::Kind::Ready(Ready {
                term: self.session.record().term,
            }),
            PrimaryState::Naming | PrimaryState::Protected => {
                self.handle(PrimaryInput::Reply(reply(self.beat)));
                return self.handle(PrimaryInput::Message(ack(self.logged, self.session.ack().verified)));
            }
            PrimaryState::HandingOver => {
                return self.handle(PrimaryInput::Message(ack(self.logged, self.logged)));
            }
            PrimaryState::Fencing(_) | PrimaryState::Frozen(_) => return self.verdict(Verdict::Won),
        };
        self.handle(PrimaryInput::Message(to_primary(kind)));
    }

    fn handle(&mut self, input: PrimaryInput) {
        let greets = matches!(input, PrimaryInput::Connected(_));
        self.session.handle(self.now, input);
        while let Some(action) = self.session.poll() {
            self.action(action, greets);
        }
        self.check();
    }

    fn action(&mut self, action: PrimaryAction, greets: bool) {
        match action {
            PrimaryAction::Send(message) => {
                if let Some(to_backup::Kind::Handover(handover)) = message.kind {
                    assert!(handover.position <= self.session.ack().verified);
                    assert!(self.given_away || handover.position == self.logged);
                    assert_eq!(handover.stalled, self.given_away);
                    assert_eq!(self.session.release_limit(self.now), 0);
                }
                assert!(self.connected || greets);
                self.connected = true;
            }
            PrimaryAction::Heartbeat(heartbeat) => {
                assert!(self.connected && heartbeat.number > self.beat);
                self.beat = heartbeat.number;
            }
            PrimaryAction::BeginJoin => assert!(self.connected),
            PrimaryAction::EndLog => self.connected = false,
            PrimaryAction::Disconnect(reason) => assert!(!reason.is_empty()),
            PrimaryAction::Arbitrate { expected, new } => {
                assert_eq!(self.asked, None, "two questions at a time");
                assert_eq!(expected, *self.session.record());
                assert_eq!(new.owner, "a");
                self.may_be_named |= new.peer.is_some();
                self.asked = Some(new);
            }
            PrimaryAction::Freeze(_) => self.running = false,
            PrimaryAction::Thaw => self.running = true,
            PrimaryAction::Report(_) => {}
        }
    }

    fn check(&mut self) {
        self.given_away &= !matches!(self.session.state(), PrimaryState::Alone(_));
        let session = &self.session;
        let limit = session.release_limit(self.now);
        assert!(session.ack().received <= self.logged);
        if self.may_be_named {
            assert!(limit <= session.ack().received);
        }
        match session.state() {
            PrimaryState::Alone(_) => assert!(!self.may_be_named && session.peer().is_empty() && self.running),
            PrimaryState::Fencing(_) => assert!(limit == 0 && session.peer().is_empty()),
            PrimaryState::HandingOver => {
                assert!(!session.peer().is_empty() && (self.given_away || !self.running));
            }
            PrimaryState::Frozen(_) => assert!(limit == 0 && session.peer().is_empty() && !self.running),
            _ => assert!(!session.peer().is_empty() && self.running),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2_000) })]

    #[test]
    fn keeps_to_its_rules_and_is_never_stuck(steps in prop::collection::vec(step(), 0..120)) {
        let mut watched = Watched::new();
        for step in steps {
            watched.step(step);
        }
        // The peer is silent from now on, and the arbiter willing.
        for _ in 0..6 {
            watched.step(Step::Time(TIMING.deadline));
            if watched.asked.is_some() {
                watched.verdict(Verdict::Won);
            }
        }
        let state = watched.session.state().clone();
        let ends = matches!(state, PrimaryState::Alone(_) | PrimaryState::Frozen(Freeze::LostTerm));
        prop_assert!(ends, "stuck in {:?}", state);
    }
}
