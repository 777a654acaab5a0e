//! The primary's end, with anything at any time.

use lockstep_proto::quantity::SessionTime;
use lockstep_proto::session::{Ending, Freeze, Gate, Primary, PrimaryAction, PrimaryInput, PrimaryState, Record};
use lockstep_proto::session::{Unprotected, Verdict};
use lockstep_proto::{Joined, Ready, ToPrimary, to_backup, to_primary};
use proptest::prelude::*;

use super::messages::{MS, TIMING, ack, any_to_primary, at, hello, name, number, record, reply, to_primary, welcome};

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
    /// An operator asks the guest to shut down within so much time.
    ShutDown(u64),
    /// An operator ends it at once.
    End,
    /// The guest has ended.
    Ends,
    /// The same, to be booted anew.
    Resets,
    /// What waits leaves.
    Leaves,
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
        2 => (0..200 * MS).prop_map(Step::ShutDown),
        1 => Just(Step::End),
        1 => Just(Step::Ends),
        1 => Just(Step::Resets),
        8 => Just(Step::Leaves),
    ]
}

/// A primary, and what must be true of it.
struct Watched {
    session: Primary,
    now: SessionTime,
    connected: bool,
    asked: Option<Record>,
    /// A record that names the backup was asked for, and none without since.
    may_be_named: bool,
    running: bool,
    /// It is handed over although it may run.
    given_away: bool,
    beat: u64,
    logged: u64,
    ending: Ending,
    gate: Gate<()>,
    /// An operator wanted the end.
    shut_down: bool,
    /// It was ended by force, and nobody has asked since.
    forced: bool,
    /// It has ended by a reset, and would be booted anew.
    resets: bool,
    /// How often the backup was told of the end.
    goodbyes: u32,
}

impl Watched {
    fn new() -> Self {
        Self {
            session: Primary::new(hello(), record(None), TIMING, Unprotected::NeedBackup),
            now: SessionTime::ZERO,
            connected: false,
            asked: None,
            may_be_named: false,
            running: true,
            given_away: false,
            beat: 0,
            logged: 0,
            ending: Ending::default(),
            gate: Gate::default(),
            shut_down: false,
            forced: false,
            resets: false,
            goodbyes: 0,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Good => self.good(),
            Step::Message(message) => self.handle(PrimaryInput::Message(message)),
            Step::Reply(number) => self.handle(PrimaryInput::Reply(reply(number))),
            Step::Time(time) => {
                self.now = self.now.plus_ns(time);
                self.handle(PrimaryInput::Tick);
                assert!(
                    self.session.wake().is_none_or(|wake| wake > self.now),
                    "it never sleeps"
                );
            }
            Step::Connected(name) => self.handle(PrimaryInput::Connected(name)),
            Step::Disconnected => self.handle(PrimaryInput::Disconnected),
            Step::StateSent => self.handle(PrimaryInput::StateSent),
            Step::Logged(_) if !self.running || self.ending.has_ended() => {}
            Step::Logged(more) => {
                self.logged += more;
                self.session.note_logged(at(self.logged));
                if more > 0 {
                    self.gate.push(at(self.logged), ());
                }
            }
            Step::ShutDown(patience) => {
                self.ending.ask(self.now, patience);
                self.shut_down |= self.goodbyes == 0;
                self.forced = false;
            }
            Step::End => {
                self.ending.force();
                self.shut_down |= self.goodbyes == 0;
            }
            Step::Ends => self.ending.guest_ended(self.now, "halt", false),
            Step::Resets => {
                self.resets |= !self.ending.has_ended();
                self.ending.guest_ended(self.now, "reset", true);
            }
            Step::Leaves => while self.gate.pop(self.session.release_limit(self.now)).is_some() {},
            // The machine stands still first.
            Step::HandOver if self.running => {
                self.running = false;
                self.handle(PrimaryInput::HandOver(at(self.logged)));
            }
            Step::HandOver => {}
            Step::GiveAway => {
                self.given_away |= self.session.state() == PrimaryState::Protected;
                self.handle(PrimaryInput::GiveAway);
            }
            Step::Suspend => self.handle(PrimaryInput::Suspend),
            Step::Resume => self.handle(PrimaryInput::Resume),
            Step::Verdict(verdict) => self.verdict(verdict),
        }
        self.look_at_the_end();
    }

    fn is_over(&self, has_peer: bool) -> bool {
        self.ending
            .is_over(self.now, self.gate.is_empty(), has_peer, &self.session.state())
    }

    /// What the link does after each event.
    fn look_at_the_end(&mut self) {
        if self.ending.forces(self.now, &self.session.state()) {
            let leaving = match self.session.state() {
                PrimaryState::Frozen(why) => why != Freeze::NoArbiter,
                state => matches!(state, PrimaryState::HandingOver { .. }),
            };
            assert!(!leaving, "ended by force, and it may be the other node's");
            assert!(!self.forced && self.shut_down && !self.ending.has_ended());
            self.forced = true;
        }
        if let Some(end) = self.ending.take_goodbye(self.gate.is_empty()) {
            self.goodbyes += 1;
            assert_eq!(self.goodbyes, 1, "told twice");
            assert!(self.gate.is_empty(), "told before all has left");
            assert_eq!(end.shut_down, self.shut_down);
            assert_eq!(end.restarts, self.resets && !self.shut_down);
            if end.restarts {
                self.handle(PrimaryInput::Disconnected);
            }
        }
        let wake = self.ending.wake();
        let is_over = self.is_over(self.session.peer().is_some());
        assert!(is_over || wake.is_none_or(|at| at > self.now), "it never sleeps");
        assert!(!is_over || self.ending.has_ended());
        let is_early = wake.is_some_and(|until| self.now < until);
        if is_over && is_early && self.resets && !self.ending.is_shut_down() {
            let is_lost = self.session.state() == PrimaryState::Frozen(Freeze::LostTerm);
            assert!(is_lost || !self.may_be_named, "booted while the backup may claim");
        }
        assert!(self.ending.has_ended() || self.goodbyes == 0);
    }

    fn verdict(&mut self, verdict: Verdict) {
        let asked = self.asked.take();
        let before = self.session.state();
        if verdict == Verdict::Won && asked.as_ref().is_some_and(|asked| asked.peer.is_none()) {
            self.may_be_named = false;
        }
        self.handle(PrimaryInput::Arbiter(verdict));
        if asked.is_none() {
            assert_eq!(self.session.state(), before, "a verdict that nobody waited for");
        }
    }

    fn good(&mut self) {
        let kind = match self.session.state() {
            PrimaryState::Alone(Unprotected::Suspended) => return self.handle(PrimaryInput::Resume),
            PrimaryState::Alone(_) => return self.handle(PrimaryInput::Connected("b".into())),
            PrimaryState::Greeting => to_primary::Kind::Welcome(welcome()),
            PrimaryState::Syncing { .. } => {
                self.session.note_logged(at(self.logged));
                self.handle(PrimaryInput::StateSent);
                to_primary::Kind::Joined(Joined {})
            }
            PrimaryState::Naming { .. } if self.session.record().peer.is_some() => to_primary::Kind::Ready(Ready {
                term: self.session.record().term.get(),
            }),
            PrimaryState::Naming { .. } | PrimaryState::Protected => {
                self.handle(PrimaryInput::Reply(reply(self.beat)));
                return self.handle(PrimaryInput::Message(ack(self.logged, self.session.ack().verified)));
            }
            PrimaryState::HandingOver { .. } => {
                return self.handle(PrimaryInput::Message(ack(self.logged, self.logged)));
            }
            PrimaryState::Fencing { .. } | PrimaryState::Frozen(_) => return self.verdict(Verdict::Won),
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
                    assert_eq!(self.session.release_limit(self.now), at(0));
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
        let limit = session.release_limit(self.now).get();
        assert!(session.ack().received <= self.logged);
        if self.may_be_named {
            assert!(limit <= session.ack().received);
        }
        match session.state() {
            PrimaryState::Alone(_) => assert!(!self.may_be_named && session.peer().is_none() && self.running),
            PrimaryState::Fencing { .. } => assert!(limit == 0 && session.peer().is_none()),
            PrimaryState::HandingOver { .. } => {
                assert!(session.peer().is_some() && (self.given_away || !self.running));
            }
            PrimaryState::Frozen(_) => assert!(limit == 0 && session.peer().is_none() && !self.running),
            _ => assert!(session.peer().is_some() && self.running),
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
            watched.step(Step::Time(TIMING.deadline_ns));
            if watched.asked.is_some() {
                watched.verdict(Verdict::Won);
            }
        }
        let state = watched.session.state();
        let ends = matches!(state, PrimaryState::Alone(_) | PrimaryState::Frozen(Freeze::LostTerm));
        prop_assert!(ends, "stuck in {:?}", state);
        // A guest that was asked to end does, by itself or by force; and the link with it, at the last by its own clock.
        for _ in 0..2 {
            if watched.shut_down && !watched.forced {
                let wake = watched.ending.wake().unwrap_or(watched.now);
                watched.step(Step::Time(wake.ns_since(watched.now)));
            }
        }
        watched.step(Step::Ends);
        let wake = watched.ending.wake().expect("it has ended");
        watched.step(Step::Time(wake.ns_since(watched.now)));
        prop_assert!(watched.is_over(true));
    }
}
