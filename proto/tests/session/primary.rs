//! The primary's end, case by case.

use lockstep_proto::quantity::{LogPosition, Term};
use lockstep_proto::session::{Commit, Unprotected, Verdict};
use lockstep_proto::session::{Freeze, MAX_REASON_BYTES, Primary, PrimaryAction, PrimaryInput, PrimaryState};
use lockstep_proto::{Diverged, Goodbye, Joined, Ready, ToPrimary, Welcome, to_backup, to_primary};

use super::messages::{MS, TERM, TIMING, ack, at, diverged, hello, record, reply, time, to_primary, unknown, welcome};

/// What `session` does about `input`, `now` nanoseconds after time began.
fn does(session: &mut Primary, now: u64, input: PrimaryInput) -> Vec<PrimaryAction> {
    session.handle(time(now), input);
    std::iter::from_fn(|| session.poll()).collect()
}

fn alone() -> Primary {
    Primary::new(hello(), record(None), TIMING, Unprotected::NeedBackup)
}

fn greeting() -> Primary {
    let mut session = alone();
    does(&mut session, 0, PrimaryInput::Connected("b".into()));
    session
}

fn syncing() -> Primary {
    let mut session = greeting();
    let message = to_primary(to_primary::Kind::Welcome(welcome()));
    let actions = does(&mut session, 0, PrimaryInput::Message(message));
    assert_eq!(actions, [PrimaryAction::BeginJoin]);
    session
}

/// The state is sent at 10, 12 is logged and has left, and the backup has joined.
fn joined() -> Primary {
    let mut session = syncing();
    session.note_logged(at(10));
    does(&mut session, 0, PrimaryInput::StateSent);
    session.note_logged(at(12));
    assert_eq!(session.release_limit(time(0)), LogPosition::NO_LIMIT);
    session.note_released(at(12));
    let message = to_primary(to_primary::Kind::Joined(Joined {}));
    assert_eq!(does(&mut session, 0, PrimaryInput::Message(message)), []);
    session
}

fn asking() -> Primary {
    let mut session = joined();
    let actions = does(&mut session, 0, PrimaryInput::Message(ack(12, 10)));
    let asks = PrimaryAction::Arbitrate {
        expected: record(None),
        new: record(Some("b")),
    };
    assert_eq!(actions, [asks]);
    session
}

fn named() -> Primary {
    let mut session = asking();
    let actions = does(&mut session, 0, PrimaryInput::Arbiter(Verdict::Won));
    assert!(matches!(&actions[..], [PrimaryAction::Send(message)]
        if matches!(&message.kind, Some(to_backup::Kind::Named(named)) if named.term == TERM)));
    assert_eq!(session.state(), PrimaryState::Naming { catch_up: at(12) });
    session
}

fn protected() -> Primary {
    let mut session = named();
    let message = to_primary(to_primary::Kind::Ready(Ready { term: TERM }));
    assert_eq!(does(&mut session, 0, PrimaryInput::Message(message)), []);
    assert_eq!(session.state(), PrimaryState::Protected);
    session
}

fn fencing_question() -> PrimaryAction {
    PrimaryAction::Arbitrate {
        expected: record(Some("b")),
        new: record(Some("b")).alone("a"),
    }
}

#[test]
fn names_the_backup_only_when_it_has_what_left() {
    let mut session = joined();
    assert_eq!(does(&mut session, 0, PrimaryInput::Message(ack(11, 10))), []);
    assert_eq!(session.release_limit(time(0)), at(0));
    assert_eq!(does(&mut session, 0, PrimaryInput::Message(ack(12, 10))).len(), 1);
}

#[test]
fn a_backup_that_was_not_asked_for_needs_no_fencing() {
    for mut session in [greeting(), syncing(), joined()] {
        let actions = does(&mut session, 0, PrimaryInput::Disconnected);
        assert_eq!(actions, [PrimaryAction::EndLog]);
        assert_eq!(session.state(), PrimaryState::Alone(Unprotected::LostConnection));
        assert_eq!(session.release_limit(time(0)), LogPosition::NO_LIMIT);
    }
}

#[test]
fn a_backup_that_may_be_named_is_fenced_off() {
    for mut session in [named(), protected()] {
        let actions = does(&mut session, 0, PrimaryInput::Disconnected);
        assert_eq!(actions, [PrimaryAction::EndLog, fencing_question()]);
        assert_eq!(session.release_limit(time(0)), at(0));
        assert_eq!(does(&mut session, 0, PrimaryInput::Arbiter(Verdict::Won)), []);
        assert_eq!(session.state(), PrimaryState::Alone(Unprotected::LostConnection));
        assert_eq!(session.record().term, Term::new(TERM + 1));
        assert_eq!(session.release_limit(time(0)), LogPosition::NO_LIMIT);
    }
}

#[test]
fn one_that_begins_with_a_named_peer_fences_it_off_first() {
    let mut session = Primary::new(hello(), record(Some("b")), TIMING, Unprotected::NeedBackup);
    assert_eq!(session.release_limit(time(0)), at(0));
    assert_eq!(session.wake(), Some(time(0)));
    assert_eq!(does(&mut session, 5, PrimaryInput::Tick), [fencing_question()]);
    does(&mut session, 5, PrimaryInput::Arbiter(Verdict::Won));
    assert_eq!(session.state(), PrimaryState::Alone(Unprotected::NeedBackup));
}

#[test]
fn a_naming_on_its_way_is_awaited_before_fencing() {
    let mut session = asking();
    assert_eq!(
        does(&mut session, 0, PrimaryInput::Disconnected),
        [PrimaryAction::EndLog]
    );
    assert_eq!(session.release_limit(time(0)), at(0));
    let actions = does(&mut session, 0, PrimaryInput::Arbiter(Verdict::Won));
    assert_eq!(actions, [fencing_question()]);
    does(&mut session, 0, PrimaryInput::Arbiter(Verdict::Won));
    assert!(matches!(session.state(), PrimaryState::Alone(_)));
}

#[test]
fn freezes_without_an_arbiter_and_thaws_with_it() {
    let mut session = asking();
    let message = to_primary(to_primary::Kind::Diverged(Diverged::default()));
    does(&mut session, 0, PrimaryInput::Message(message));
    let actions = does(&mut session, 0, PrimaryInput::Arbiter(Verdict::Unknown));
    assert_eq!(actions, [PrimaryAction::Freeze(Freeze::NoArbiter)]);
    assert_eq!(session.wake(), Some(time(TIMING.heartbeat_ns)));
    // A verdict while none is awaited is no verdict.
    assert_eq!(does(&mut session, 1, PrimaryInput::Arbiter(Verdict::Won)), []);
    assert_eq!(does(&mut session, TIMING.heartbeat_ns, PrimaryInput::Tick).len(), 1);
    let actions = does(&mut session, TIMING.heartbeat_ns, PrimaryInput::Arbiter(Verdict::Won));
    assert_eq!(actions, [fencing_question()]);
    assert_eq!(session.state(), PrimaryState::Frozen(Freeze::NoArbiter));
    let actions = does(&mut session, TIMING.heartbeat_ns, PrimaryInput::Arbiter(Verdict::Won));
    assert_eq!(actions, [PrimaryAction::Thaw]);
    assert_eq!(session.state(), PrimaryState::Alone(Unprotected::Divergence));
}

#[test]
fn freezes_for_good_when_the_term_is_lost() {
    let mut session = asking();
    let actions = does(&mut session, 0, PrimaryInput::Arbiter(Verdict::Lost));
    assert!(matches!(
        &actions[..],
        [
            PrimaryAction::Disconnect(_),
            PrimaryAction::EndLog,
            PrimaryAction::Freeze(Freeze::LostTerm)
        ]
    ));
    for input in [PrimaryInput::Tick, PrimaryInput::Arbiter(Verdict::Won)] {
        assert_eq!(does(&mut session, 1_000 * MS, input), []);
    }
    let actions = does(&mut session, 0, PrimaryInput::Connected("b".into()));
    assert!(matches!(&actions[..], [PrimaryAction::Disconnect(_)]));
    assert_eq!(session.state(), PrimaryState::Frozen(Freeze::LostTerm));
    assert_eq!(session.release_limit(time(0)), at(0));
}

#[test]
fn releases_what_is_acknowledged_within_the_lease() {
    let mut session = protected();
    assert_eq!(session.release_limit(time(0)), at(0));
    let actions = does(&mut session, 10 * MS, PrimaryInput::Tick);
    let [PrimaryAction::Heartbeat(heartbeat)] = &actions[..] else {
        panic!("no heartbeat: {actions:?}");
    };
    assert_eq!(heartbeat.released, 12);
    let number = heartbeat.number;
    does(&mut session, 60 * MS, PrimaryInput::Reply(reply(number)));
    let until = 10 * MS + TIMING.lease_ns();
    assert_eq!(session.release_limit(time(until - 1)), at(12));
    assert_eq!(session.release_limit(time(until)), at(0));
}

#[test]
fn suspects_after_the_lease_and_before_the_backup_does() {
    let suspicion = TIMING.suspicion_ns();
    assert!(TIMING.lease_ns() < suspicion && suspicion < TIMING.deadline_ns);
    let mut session = protected();
    does(&mut session, suspicion - 1, PrimaryInput::Tick);
    assert_eq!(session.state(), PrimaryState::Protected);
    let actions = does(&mut session, suspicion, PrimaryInput::Tick);
    assert!(matches!(
        &actions[..],
        [
            PrimaryAction::Disconnect(_),
            PrimaryAction::EndLog,
            PrimaryAction::Arbitrate { .. }
        ]
    ));
}

#[test]
fn wrong_messages_end_the_session_with_a_reason() {
    type Make = fn() -> Primary;
    let states: [(Make, &[usize]); 6] = [
        (greeting, &[0]),
        (syncing, &[]),
        (joined, &[2]),
        (asking, &[2]),
        (named, &[2, 4]),
        (protected, &[2]),
    ];
    let long = "é".repeat(MAX_REASON_BYTES);
    let messages: [ToPrimary; 12] = [
        to_primary(to_primary::Kind::Welcome(welcome())),
        to_primary(to_primary::Kind::Joined(Joined {})),
        ack(12, 12),
        ack(13, 12),
        to_primary(to_primary::Kind::Ready(Ready { term: TERM })),
        to_primary(to_primary::Kind::Ready(Ready { term: TERM + 1 })),
        to_primary(to_primary::Kind::Goodbye(Goodbye {
            reason: long.clone(),
            ..Goodbye::default()
        })),
        to_primary(to_primary::Kind::Diverged(diverged(1, long))),
        unknown(),
        ack(u64::MAX, 0),
        ack(9, 10),
        to_primary(to_primary::Kind::Welcome(Welcome::default())),
    ];
    for (make, allowed) in states {
        for (index, message) in messages.iter().enumerate() {
            if allowed.contains(&index) {
                continue;
            }
            let mut session = make();
            let before = session.state();
            let actions = does(&mut session, 0, PrimaryInput::Message(message.clone()));
            let reason = actions.iter().find_map(|action| match action {
                PrimaryAction::Disconnect(reason) => Some(reason),
                _ => None,
            });
            let reason = reason.unwrap_or_else(|| panic!("{before:?} takes {message:?}"));
            assert!(!reason.is_empty() && reason.len() <= MAX_REASON_BYTES);
            assert!(actions.contains(&PrimaryAction::EndLog));
            assert!(session.peer().is_none());
            assert!(matches!(
                session.state(),
                PrimaryState::Alone(_) | PrimaryState::Fencing { .. }
            ));
        }
    }
}

#[test]
fn a_welcome_of_another_version_class_or_node_is_refused() {
    let wrong = [
        Welcome {
            version: 0,
            ..welcome()
        },
        Welcome {
            node: "c".into(),
            ..welcome()
        },
        Welcome {
            host_class: "x".repeat(100_000),
            ..welcome()
        },
    ];
    for welcome in wrong {
        let mut session = greeting();
        let message = to_primary(to_primary::Kind::Welcome(welcome));
        does(&mut session, 0, PrimaryInput::Message(message));
        assert!(matches!(session.state(), PrimaryState::Alone(Unprotected::Refused(_))));
    }
}

#[test]
fn peers_with_names_that_cannot_be_are_refused() {
    for name in [String::new(), "x".repeat(65), "a".into()] {
        let mut session = alone();
        let actions = does(&mut session, 0, PrimaryInput::Connected(name));
        assert!(matches!(&actions[..], [PrimaryAction::Disconnect(_)]));
        assert_eq!(session.state(), PrimaryState::Alone(Unprotected::NeedBackup));
    }
}

#[test]
fn a_second_connection_ends_the_session() {
    let mut session = protected();
    let actions = does(&mut session, 0, PrimaryInput::Connected("b".into()));
    assert!(matches!(
        &actions[..],
        [
            PrimaryAction::Send(_),
            PrimaryAction::Disconnect(_),
            PrimaryAction::EndLog,
            PrimaryAction::Arbitrate { .. }
        ]
    ));
}

#[test]
fn hands_over_when_the_backup_has_executed_everything() {
    let mut session = protected();
    session.note_logged(at(20));
    assert_eq!(does(&mut session, 0, PrimaryInput::HandOver(at(20))), []);
    let handing_over = PrimaryState::HandingOver {
        at: at(20),
        stalled: false,
        told: false,
    };
    assert_eq!(session.state(), handing_over);
    let [PrimaryAction::Heartbeat(heartbeat)] = &does(&mut session, 0, PrimaryInput::Tick)[..] else {
        panic!("no heartbeat");
    };
    does(&mut session, 0, PrimaryInput::Reply(reply(heartbeat.number)));
    assert_eq!(does(&mut session, 0, PrimaryInput::Message(ack(20, 19))), []);
    assert_eq!(session.release_limit(time(0)), at(20));
    let actions = does(&mut session, 0, PrimaryInput::Message(ack(20, 20)));
    assert!(matches!(&actions[..], [PrimaryAction::Send(message)]
        if matches!(&message.kind, Some(to_backup::Kind::Handover(handover)) if handover.position == 20)));
    assert_eq!(session.release_limit(time(0)), at(0));
    // The backup closes the connection and is given the time to claim.
    assert_eq!(
        does(&mut session, MS, PrimaryInput::Disconnected),
        [PrimaryAction::EndLog]
    );
    let at = MS + TIMING.deadline_ns;
    assert_eq!(does(&mut session, at - 1, PrimaryInput::Tick), []);
    assert_eq!(does(&mut session, at, PrimaryInput::Tick), [fencing_question()]);
    let actions = does(&mut session, at, PrimaryInput::Arbiter(Verdict::Lost));
    assert_eq!(actions, [PrimaryAction::Freeze(Freeze::LostTerm)]);
}

/// Nobody stops it, and it may even move: nothing leaves once the backup was told.
#[test]
fn gives_a_machine_away_that_does_not_move() {
    let mut session = protected();
    session.set_machine_stalled(true);
    session.note_logged(at(20));
    assert_eq!(does(&mut session, 0, PrimaryInput::GiveAway), []);
    let handing_over = PrimaryState::HandingOver {
        at: at(20),
        stalled: true,
        told: false,
    };
    assert_eq!(session.state(), handing_over);
    let [PrimaryAction::Heartbeat(heartbeat)] = &does(&mut session, 0, PrimaryInput::Tick)[..] else {
        panic!("no heartbeat");
    };
    assert!(heartbeat.stalled);
    does(&mut session, 0, PrimaryInput::Reply(reply(heartbeat.number)));
    session.note_logged(at(25));
    assert_eq!(does(&mut session, 0, PrimaryInput::Message(ack(22, 19))), []);
    assert_eq!(session.release_limit(time(0)), at(22));
    let actions = does(&mut session, 0, PrimaryInput::Message(ack(25, 21)));
    assert!(matches!(&actions[..], [PrimaryAction::Send(message)]
        if matches!(&message.kind, Some(to_backup::Kind::Handover(handover)) if handover.position == 20 && handover.stalled)));
    assert_eq!(session.release_limit(time(0)), at(0));
    does(&mut session, MS, PrimaryInput::Disconnected);
    let at = MS + TIMING.deadline_ns;
    assert_eq!(does(&mut session, at, PrimaryInput::Tick), [fencing_question()]);
    // The backup has not taken it: what was asked of it is over.
    assert_eq!(
        does(&mut session, at, PrimaryInput::Arbiter(Verdict::Won)),
        [PrimaryAction::Thaw]
    );
    assert_eq!(session.release_limit(time(at)), LogPosition::NO_LIMIT);
}

#[test]
fn gives_nothing_away_without_a_backup_in_sync() {
    for mut session in [alone(), greeting(), syncing(), joined(), named()] {
        let before = session.state();
        assert_eq!(does(&mut session, 0, PrimaryInput::GiveAway), []);
        assert_eq!(session.state(), before);
    }
}

#[test]
fn goes_on_when_the_backup_is_lost_in_a_handover() {
    let mut session = protected();
    session.note_logged(at(20));
    does(&mut session, 0, PrimaryInput::HandOver(at(20)));
    let actions = does(&mut session, MS, PrimaryInput::Disconnected);
    assert_eq!(actions, [PrimaryAction::EndLog, fencing_question()]);
    let actions = does(&mut session, MS, PrimaryInput::Arbiter(Verdict::Won));
    assert_eq!(actions, [PrimaryAction::Thaw]);
    assert_eq!(session.release_limit(time(MS)), LogPosition::NO_LIMIT);
}

#[test]
fn nobody_to_hand_over_to_thaws_at_once() {
    for mut session in [alone(), greeting(), syncing(), joined(), named()] {
        let actions = does(&mut session, 0, PrimaryInput::HandOver(at(12)));
        assert_eq!(actions, [PrimaryAction::Thaw]);
    }
}

#[test]
fn in_mode_replayed_what_was_executed_may_leave() {
    let mut session = protected();
    session.set_commit(Commit::Replayed);
    session.note_logged(at(20));
    let [PrimaryAction::Heartbeat(heartbeat)] = &does(&mut session, 0, PrimaryInput::Tick)[..] else {
        panic!("no heartbeat");
    };
    does(&mut session, 0, PrimaryInput::Reply(reply(heartbeat.number)));
    does(&mut session, 0, PrimaryInput::Message(ack(20, 15)));
    assert_eq!(session.release_limit(time(0)), at(15));
}

#[test]
fn a_backup_that_acknowledges_nothing_is_given_up() {
    let mut session = protected();
    session.note_logged(at(20));
    let mut now = 0;
    let actions = loop {
        let actions = does(&mut session, now, PrimaryInput::Tick);
        let [PrimaryAction::Heartbeat(heartbeat)] = &actions[..] else {
            break actions;
        };
        does(&mut session, now, PrimaryInput::Reply(reply(heartbeat.number)));
        now = session.wake().unwrap().ns();
    };
    assert_eq!(now, TIMING.stall_ns());
    assert!(
        matches!(&actions[..], [PrimaryAction::Send(_), PrimaryAction::Disconnect(why), ..]
        if why.contains("acknowledges nothing"))
    );
}

#[test]
fn suspended_it_takes_no_backup() {
    let mut session = protected();
    let actions = does(&mut session, 0, PrimaryInput::Suspend);
    assert_eq!(actions.last(), Some(&fencing_question()));
    does(&mut session, 0, PrimaryInput::Arbiter(Verdict::Won));
    assert_eq!(session.state(), PrimaryState::Alone(Unprotected::Suspended));
    let actions = does(&mut session, 0, PrimaryInput::Connected("b".into()));
    assert!(matches!(&actions[..], [PrimaryAction::Disconnect(_)]));
    does(&mut session, 0, PrimaryInput::Resume);
    does(&mut session, 0, PrimaryInput::Connected("b".into()));
    assert_eq!(session.state(), PrimaryState::Greeting);
}
