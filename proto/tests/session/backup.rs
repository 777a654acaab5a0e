//! The backup's end, case by case.

use lockstep_proto::quantity::StopNumber;
use lockstep_proto::session::{Backup, BackupAction, BackupInput, BackupState, MAX_REASON_BYTES, Verdict};
use lockstep_proto::{Ack, Goodbye, Handover, Heartbeat, Named, Ready, ToBackup, to_backup, to_primary};

use super::messages::{MS, TERM, TIMING, at, diverged, hello, identity, record, state, time, to_backup, unknown};

const STOP: StopNumber = StopNumber::new(1);

/// What `session` does about `input`, `now` nanoseconds after time began.
pub fn does(session: &mut Backup, now: u64, input: BackupInput) -> Vec<BackupAction> {
    session.handle(time(now), input);
    std::iter::from_fn(|| session.poll()).collect()
}

pub fn connected() -> Backup {
    let mut session = Backup::new(identity());
    assert_eq!(does(&mut session, 0, BackupInput::Connected("a".into())), []);
    session
}

fn syncing() -> Backup {
    let mut session = connected();
    let message = to_backup(to_backup::Kind::Hello(hello()));
    assert_eq!(does(&mut session, 0, BackupInput::Message(message)).len(), 2);
    assert_eq!(session.state(), BackupState::Syncing);
    session
}

fn building() -> Backup {
    let mut session = syncing();
    let message = to_backup(to_backup::Kind::State(state(10)));
    does(&mut session, 0, BackupInput::Message(message));
    session
}

fn joined() -> Backup {
    let mut session = building();
    let actions = does(&mut session, 0, BackupInput::Built);
    assert_eq!(acks(&actions), [(10, 10)]);
    session
}

fn protected() -> Backup {
    let mut session = joined();
    let message = to_backup(to_backup::Kind::Named(Named { term: TERM }));
    let actions = does(&mut session, 0, BackupInput::Message(message));
    assert!(matches!(&actions[..], [BackupAction::Send(message)]
        if message.kind == Some(to_primary::Kind::Ready(Ready { term: TERM }))));
    session
}

fn acks(actions: &[BackupAction]) -> Vec<(u64, u64)> {
    let ack = |action: &BackupAction| match action {
        BackupAction::Send(message) => match message.kind {
            Some(to_primary::Kind::Ack(Ack { received, verified, .. })) => Some((received, verified)),
            _ => None,
        },
        _ => None,
    };
    actions.iter().filter_map(ack).collect()
}

fn claim() -> BackupAction {
    BackupAction::Arbitrate {
        expected: record(Some("b")),
        new: record(Some("b")).alone("b"),
    }
}

#[test]
fn log_that_comes_before_the_state_counts() {
    let mut session = syncing();
    assert_eq!(does(&mut session, 0, BackupInput::Received(at(13))), []);
    let message = to_backup(to_backup::Kind::State(state(10)));
    does(&mut session, 0, BackupInput::Message(message));
    let actions = does(&mut session, 0, BackupInput::Built);
    assert_eq!(acks(&actions), [(13, 10)]);
}

#[test]
fn acknowledges_no_more_than_was_received() {
    let mut session = protected();
    let actions = does(&mut session, 0, BackupInput::Verified(at(99), STOP));
    assert_eq!(acks(&actions), [(10, 10)]);
    let heartbeat = Heartbeat {
        number: 1,
        released: 99,
        ..Heartbeat::default()
    };
    does(&mut session, 0, BackupInput::Heartbeat(heartbeat));
    assert_eq!(session.released(), at(10));
    does(&mut session, 0, BackupInput::Received(at(50)));
    assert_eq!(session.released(), at(50));
}

#[test]
fn what_is_verified_after_the_end_is_of_no_session() {
    let mut session = joined();
    does(&mut session, 0, BackupInput::Disconnected);
    assert_eq!(does(&mut session, 0, BackupInput::Verified(at(11), STOP)), []);
    does(&mut session, 0, BackupInput::Connected("a".into()));
    assert_eq!(*session.ack(), Ack::default());
}

#[test]
fn one_that_was_not_told_that_it_is_named_claims_nothing() {
    for mut session in [connected(), syncing(), building(), joined()] {
        let actions = does(&mut session, 0, BackupInput::Disconnected);
        assert!(matches!(
            &actions[..],
            [BackupAction::Disconnect(_), BackupAction::Discard]
        ));
        assert_eq!(session.state(), BackupState::Waiting);
        assert_eq!(session.wake(), None);
    }
}

#[test]
fn claims_after_the_deadline_however_it_learns_of_the_loss() {
    let mut session = protected();
    does(&mut session, 5 * MS, BackupInput::Received(at(11)));
    let actions = does(&mut session, 6 * MS, BackupInput::Disconnected);
    assert!(matches!(&actions[..], [BackupAction::Disconnect(_)]));
    assert_eq!(session.state(), BackupState::Claiming);
    let at = 5 * MS + TIMING.deadline_ns;
    assert_eq!(session.wake(), Some(time(at)));
    assert_eq!(does(&mut session, at - 1, BackupInput::Tick), []);
    assert_eq!(does(&mut session, at, BackupInput::Tick), [claim()]);

    let mut session = protected();
    let actions = does(&mut session, TIMING.deadline_ns, BackupInput::Tick);
    assert!(matches!(&actions[..], [BackupAction::Disconnect(_), asks] if *asks == claim()));
}

#[test]
fn what_is_not_the_machine_claims_no_term() {
    let diverged = || BackupInput::Diverged(diverged(1, String::new()));
    for input in [diverged(), BackupInput::Unfit("no disk".into())] {
        let mut session = protected();
        does(&mut session, 6 * MS, BackupInput::Disconnected);
        assert_eq!(session.state(), BackupState::Claiming);
        assert_eq!(does(&mut session, 7 * MS, input), [BackupAction::Discard]);
        assert_eq!((session.state(), session.wake()), (BackupState::Waiting, None));
        assert_eq!(does(&mut session, 2 * TIMING.deadline_ns, BackupInput::Tick), []);
    }
    // Where it has asked, the record may name it already: only the same question can tell.
    let mut session = protected();
    does(&mut session, TIMING.deadline_ns, BackupInput::Tick);
    assert_eq!(does(&mut session, TIMING.deadline_ns, diverged()), []);
    does(&mut session, TIMING.deadline_ns, BackupInput::Arbiter(Verdict::Unknown));
    assert_eq!(does(&mut session, TIMING.deadline_ns, diverged()), []);
    assert_eq!(session.state(), BackupState::Frozen);
}

#[test]
fn acknowledges_and_answers_nothing_while_it_claims() {
    let mut session = protected();
    does(&mut session, TIMING.deadline_ns, BackupInput::Tick);
    let heartbeat = Heartbeat {
        number: 1,
        ..Heartbeat::default()
    };
    for input in [
        BackupInput::Received(at(20)),
        BackupInput::Verified(at(10), STOP),
        BackupInput::Heartbeat(heartbeat),
        BackupInput::Message(to_backup(to_backup::Kind::Goodbye(Goodbye::default()))),
    ] {
        assert_eq!(does(&mut session, TIMING.deadline_ns, input), []);
    }
}

#[test]
fn asks_the_same_again_until_it_is_told() {
    let mut session = protected();
    let mut now = TIMING.deadline_ns;
    does(&mut session, now, BackupInput::Tick);
    for _ in 0..3 {
        assert_eq!(does(&mut session, now, BackupInput::Arbiter(Verdict::Unknown)), []);
        assert_eq!(session.state(), BackupState::Frozen);
        now += TIMING.heartbeat_ns;
        assert_eq!(does(&mut session, now, BackupInput::Tick), [claim()]);
    }
    let actions = does(&mut session, now, BackupInput::Arbiter(Verdict::Won));
    assert_eq!(actions, [BackupAction::Promote(record(None).alone("b"))]);
    assert_eq!(session.state(), BackupState::Live);
    assert_eq!(does(&mut session, now, BackupInput::Arbiter(Verdict::Lost)), []);
}

#[test]
fn the_loser_waits_for_a_primary() {
    let mut session = protected();
    does(&mut session, TIMING.deadline_ns, BackupInput::Tick);
    let actions = does(&mut session, TIMING.deadline_ns, BackupInput::Arbiter(Verdict::Lost));
    assert_eq!(actions, [BackupAction::Discard]);
    assert_eq!(does(&mut session, 0, BackupInput::Connected("a".into())), []);
    assert_eq!(session.state(), BackupState::Connected);
}

#[test]
fn wrong_messages_end_the_session_with_a_reason() {
    type Make = fn() -> Backup;
    let states: [(Make, &[usize]); 5] = [
        (connected, &[0]),
        (syncing, &[1]),
        (building, &[]),
        (joined, &[2]),
        (protected, &[]),
    ];
    let reason = "é".repeat(MAX_REASON_BYTES);
    let messages: [ToBackup; 6] = [
        to_backup(to_backup::Kind::Hello(hello())),
        to_backup(to_backup::Kind::State(state(3))),
        to_backup(to_backup::Kind::Named(Named { term: TERM })),
        to_backup(to_backup::Kind::Named(Named { term: TERM + 1 })),
        to_backup(to_backup::Kind::Goodbye(Goodbye {
            reason,
            shut_down: false,
        })),
        unknown(),
    ];
    for (make, allowed) in states {
        for (index, message) in messages.iter().enumerate() {
            if !allowed.contains(&index) {
                let mut session = make();
                let before = session.state();
                let actions = does(&mut session, 0, BackupInput::Message(message.clone()));
                let ended = actions.iter().any(
                    |action| matches!(action, BackupAction::Disconnect(why) if !why.is_empty() && why.len() <= MAX_REASON_BYTES),
                );
                assert!(ended, "{before:?} takes {message:?}");
                assert_eq!(actions.last(), Some(&BackupAction::Discard));
                assert_eq!(session.state(), BackupState::Waiting);
            }
        }
    }
}

#[test]
fn a_backup_ends_with_a_machine_that_an_operator_has_shut_down_and_with_no_other() {
    type Make = fn() -> Backup;
    let states: [(Make, bool); 5] = [
        (connected, false),
        (syncing, true),
        (building, true),
        (joined, true),
        (protected, true),
    ];
    for (make, of_my_machine) in states {
        for shut_down in [false, true] {
            let mut session = make();
            let reason = "bye".to_owned();
            let message = to_backup(to_backup::Kind::Goodbye(Goodbye { reason, shut_down }));
            let actions = does(&mut session, 0, BackupInput::Message(message));
            assert_eq!(actions.last() == Some(&BackupAction::End), shut_down && of_my_machine);
            assert!(actions.contains(&BackupAction::Discard), "{actions:?}");
        }
    }
}

#[test]
fn claims_at_once_when_it_is_handed_the_machine() {
    let mut session = protected();
    let handover = |position| {
        let handover = Handover {
            position,
            ..Handover::default()
        };
        BackupInput::Message(to_backup(to_backup::Kind::Handover(handover)))
    };
    let actions = does(&mut session, MS, handover(10));
    assert!(matches!(&actions[..], [BackupAction::Disconnect(_), asks] if *asks == claim()));
    assert!(!session.is_stalled());

    // What it has not executed cannot be handed over.
    let mut session = protected();
    let actions = does(&mut session, MS, handover(11));
    assert!(matches!(
        &actions[..],
        [
            BackupAction::Send(_),
            BackupAction::Disconnect(_),
            BackupAction::Discard
        ]
    ));
}

#[test]
fn knows_whether_the_machine_that_it_takes_over_was_stalled() {
    let beat = |number, stalled| {
        BackupInput::Heartbeat(Heartbeat {
            number,
            stalled,
            ..Heartbeat::default()
        })
    };
    let mut session = protected();
    for (number, stalled) in [(1, true), (2, false), (3, true)] {
        does(&mut session, MS, beat(number, stalled));
        assert_eq!(session.is_stalled(), stalled);
    }
    // However it comes to take over.
    does(&mut session, MS, BackupInput::Disconnected);
    assert!(session.is_stalled());
    let mut session = protected();
    let handover = Handover {
        position: 10,
        stalled: true,
    };
    let message = to_backup(to_backup::Kind::Handover(handover));
    does(&mut session, MS, BackupInput::Message(message));
    assert!(session.is_stalled());
    does(&mut session, MS, BackupInput::Arbiter(Verdict::Lost));
    does(&mut session, MS, BackupInput::Connected("a".into()));
    assert!(!session.is_stalled(), "that was another session");
}

#[test]
fn says_how_far_its_execution_lags() {
    let mut session = protected();
    does(&mut session, 0, BackupInput::Received(at(11)));
    does(&mut session, 2 * MS, BackupInput::Received(at(12)));
    does(&mut session, 5 * MS, BackupInput::Verified(at(11), STOP));
    assert_eq!(session.ack().lag_ns, 3 * MS);
    does(&mut session, 6 * MS, BackupInput::Verified(at(12), STOP));
    assert_eq!(session.ack().lag_ns, 0);
}

#[test]
fn says_that_its_uplink_is_down() {
    let mut session = protected();
    session.set_uplink_down(true);
    let heartbeat = Heartbeat {
        number: 1,
        ..Heartbeat::default()
    };
    let actions = does(&mut session, 0, BackupInput::Heartbeat(heartbeat));
    assert!(matches!(&actions[..], [BackupAction::Reply(reply)] if reply.uplink_down));
}

#[test]
fn heartbeats_that_do_not_come_are_counted() {
    let mut session = protected();
    // Late is not missed; two intervals without one are one missed.
    for (number, at) in [(1, 0), (2, 90), (4, 190), (5, 240)] {
        let heartbeat = Heartbeat {
            number,
            ..Heartbeat::default()
        };
        does(&mut session, at * MS, BackupInput::Heartbeat(heartbeat));
    }
    assert_eq!(
        (session.take_missed_heartbeats(), session.take_missed_heartbeats()),
        (1, 0)
    );
}
