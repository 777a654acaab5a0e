//! How a primary's hello is met.

use lockstep_proto::quantity::Term;
use lockstep_proto::session::{Backup, BackupAction, BackupIdentity, BackupInput, BackupState, MAX_REASON_BYTES};
use lockstep_proto::{Hello, to_backup, to_primary};

use super::backup::{connected, does};
use super::messages::{hello, identity, to_backup};

#[test]
fn a_backup_whose_cards_tell_another_mtu_refuses() {
    let hello = |mtus: &[u32]| {
        let nics = mtus.iter().map(|mtu| lockstep_proto::NicConfig {
            mtu: *mtu,
            ..Default::default()
        });
        let machine = hello().machine.map(|machine| lockstep_proto::MachineConfig {
            nics: nics.collect(),
            ..machine
        });
        Hello { machine, ..hello() }
    };
    for (primary, fits) in [
        (&[9000, 0][..], true),
        (&[9000], true),
        (&[], true),
        (&[0, 0], false),
        (&[9000, 1500], false),
    ] {
        let identity = BackupIdentity {
            nic_mtus: vec![9000, 0],
            ..identity()
        };
        let mut session = Backup::new(identity);
        does(&mut session, 0, BackupInput::Connected("a".into()));
        let message = to_backup(to_backup::Kind::Hello(hello(primary)));
        does(&mut session, 0, BackupInput::Message(message));
        let state = if fits {
            BackupState::Syncing
        } else {
            BackupState::Waiting
        };
        assert_eq!(session.state(), state, "{primary:?}");
    }
}

fn machine(model_revision: u32) -> Option<lockstep_proto::MachineConfig> {
    let machine = hello().machine?;
    Some(lockstep_proto::MachineConfig {
        model_revision,
        ..machine
    })
}

/// A pair is upgraded one host after the other: the backup first, and the machine keeps its revision.
#[test]
fn machines_of_this_revision_and_the_one_before_are_taken_and_newer_ones_refused_with_the_reason() {
    for (revision, takes) in [(1, false), (2, true), (3, true), (4, false)] {
        let mut session = connected();
        let hello = Hello {
            machine: machine(revision),
            ..hello()
        };
        let message = to_backup(to_backup::Kind::Hello(hello));
        let actions = does(&mut session, 0, BackupInput::Message(message));
        assert_eq!(
            session.state() == BackupState::Syncing,
            takes,
            "{revision}: {actions:?}"
        );
        let reason = format!("the machine has device model revision {revision} and this program 2 to 3");
        assert_eq!(
            actions.contains(&BackupAction::Disconnect(reason)),
            !takes,
            "{actions:?}"
        );
    }
}

#[test]
fn an_inquiry_is_answered_and_makes_nothing() {
    let inquiry = |node: &str| {
        to_backup(to_backup::Kind::Hello(Hello {
            node: node.into(),
            inquiry: true,
            ..hello()
        }))
    };
    for (node, fits) in [("a", true), ("c", false)] {
        let mut session = connected();
        let actions = does(&mut session, 0, BackupInput::Message(inquiry(node)));
        let [BackupAction::Send(reply), BackupAction::Disconnect(_)] = &actions[..] else {
            panic!("{actions:?}");
        };
        let welcome = matches!(reply.kind, Some(to_primary::Kind::Welcome(_)));
        let goodbye = matches!(reply.kind, Some(to_primary::Kind::Goodbye(_)));
        assert_eq!((welcome, goodbye), (fits, !fits));
        assert_eq!((session.state(), session.term()), (BackupState::Waiting, Term::NONE));
        assert_eq!(does(&mut session, 0, BackupInput::Connected("a".into())), []);
        assert_eq!(session.state(), BackupState::Connected);
    }
}

#[test]
fn hellos_that_do_not_fit_are_refused() {
    let wrong = [
        (
            "old version",
            Hello {
                version_max: 0,
                version_min: 0,
                ..hello()
            },
        ),
        (
            "new version",
            Hello {
                version_min: 2,
                version_max: 9,
                ..hello()
            },
        ),
        (
            "versions turned round",
            Hello {
                version_min: 2,
                version_max: 0,
                ..hello()
            },
        ),
        (
            "other name",
            Hello {
                node: "c".into(),
                ..hello()
            },
        ),
        (
            "long name",
            Hello {
                node: "x".repeat(1 << 20),
                ..hello()
            },
        ),
        (
            "other machine",
            Hello {
                machine_name: "é".repeat(1 << 20),
                ..hello()
            },
        ),
        (
            "other class",
            Hello {
                host_class: "é".repeat(1 << 20),
                ..hello()
            },
        ),
        (
            "newer revision",
            Hello {
                machine: machine(4),
                ..hello()
            },
        ),
        (
            "revision before the last",
            Hello {
                machine: machine(1),
                ..hello()
            },
        ),
        (
            "no machine",
            Hello {
                machine: None,
                ..hello()
            },
        ),
        ("no term", Hello { term: 0, ..hello() }),
        (
            "last term",
            Hello {
                term: u64::MAX,
                ..hello()
            },
        ),
        (
            "no heartbeats",
            Hello {
                heartbeat_ns: 0,
                ..hello()
            },
        ),
        (
            "overflow",
            Hello {
                heartbeat_ns: u64::MAX,
                ..hello()
            },
        ),
        (
            "half of it",
            Hello {
                heartbeat_ns: 1 << 63,
                deadline_ns: 0,
                ..hello()
            },
        ),
        (
            "no deadline",
            Hello {
                deadline_ns: u64::MAX,
                ..hello()
            },
        ),
    ];
    for (what, hello) in wrong {
        let mut session = connected();
        let message = to_backup(to_backup::Kind::Hello(hello));
        let actions = does(&mut session, 0, BackupInput::Message(message));
        assert!(
            matches!(&actions[..], [BackupAction::Send(message), BackupAction::Disconnect(_), BackupAction::Discard]
                if matches!(&message.kind, Some(to_primary::Kind::Goodbye(goodbye))
                    if !goodbye.reason.is_empty() && goodbye.reason.len() <= MAX_REASON_BYTES)),
            "{what}: {actions:?}"
        );
    }
    let mut session = Backup::new(identity());
    does(&mut session, 0, BackupInput::Connected("b".into()));
    let hello = Hello {
        node: "b".into(),
        ..hello()
    };
    let message = to_backup(to_backup::Kind::Hello(hello));
    does(&mut session, 0, BackupInput::Message(message));
    assert_eq!(session.state(), BackupState::Waiting, "it is called as this node is");
}
