//! What a peer says that it should not: the session ends with a reason that both ends are told, and nothing else ends.

mod rogue;

use anyhow::{Context, Result, ensure};
use lockstep_integration::gate::require_root_net;
use lockstep_integration::pair::{LIMIT, Node, Setup};
use lockstep_logcodec::pack_pages;
use lockstep_primary::link::wire::{self, BULK_CHUNK, BULK_PAGES, BULK_STREAM, HAVE, HAVE_STREAM, LOG_STREAM};
use lockstep_proto::quantity::PageNumber;
use lockstep_proto::session::MAX_CONTROL_BYTES;
use lockstep_proto::to_backup::Kind as Say;
use lockstep_proto::to_primary::Kind as Answer;
use lockstep_proto::{Ack, DiskChunk, Have, Hello, JoinState, Joined, ToBackup, Welcome, to_backup};

use rogue::{Line, Rogue, header};

/// What works on a terminal, and looks like a message of its own.
const HOSTILE: &str = "another\x1b]0;owned\x07\r\n INFO lockstep::state: protected\u{9b}2J";
/// Pages of 4 KiB.
const PAGE: usize = 4096;
/// A frame of more bytes than there are in any message of the control stream.
const OVERSIZE: u32 = MAX_CONTROL_BYTES as u32 + 1;
/// Sessions one after the other, before a real backup lets the pauses between a primary's attempts begin anew.
const AT_A_TIME: usize = 4;

/// What a rogue backup does.
#[derive(Clone, Copy, Debug)]
enum Backup {
    Garbage,
    Oversize,
    OldVersion,
    WrongClass,
    AckFirst,
    TooManyDigests,
    JoinedTwice,
    AckOfWhatIsNotThere,
    Silence,
}

/// What it is told, and what the primary tells its operators.
const BACKUPS: [(Backup, &str); 9] = [
    (Backup::Garbage, "a message does not decode"),
    (
        Backup::Oversize,
        "a message of 4194305 bytes: at most 4194304 are taken",
    ),
    (Backup::OldVersion, "the backup chose protocol version 0"),
    (Backup::WrongClass, "the backup's host is of class `another"),
    (Backup::AckFirst, "the backup sent a message out of turn"),
    (Backup::TooManyDigests, "more digests than there are pages or chunks"),
    (Backup::JoinedTwice, "the backup sent a message out of turn"),
    (
        Backup::AckOfWhatIsNotThere,
        "the backup acknowledges what was never sent",
    ),
    (Backup::Silence, "silent past the deadline"),
];

impl Backup {
    async fn play(self, line: &mut Line) -> Result<()> {
        let hello = hear_hello(line).await?;
        if !matches!(self, Self::Silence) {
            line.answer_heartbeats();
        }
        let welcome = Welcome {
            version: hello.version_max,
            node: "b".into(),
            host_class: hello.host_class.clone(),
        };
        match self {
            Self::Silence => Ok(()),
            // A field's number without its value.
            Self::Garbage => line.raw(&[&header(1, 0)[..], &[0x0a]].concat()).await,
            Self::Oversize => line.raw(&header(OVERSIZE, 0)).await,
            Self::OldVersion => line.answer(Answer::Welcome(Welcome { version: 0, ..welcome })).await,
            Self::WrongClass => {
                let host_class = HOSTILE.into();
                line.answer(Answer::Welcome(Welcome { host_class, ..welcome })).await
            }
            Self::AckFirst => line.answer(Answer::Ack(Ack::default())).await,
            Self::TooManyDigests => {
                line.answer(Answer::Welcome(welcome)).await?;
                let pages = hello.machine.context("no machine")?.memory_bytes as usize / PAGE;
                let have = Have {
                    memory: true,
                    disk: 0,
                    digests: vec![0; 4096 * 16].into(),
                    zeroes: 0,
                };
                let frame = wire::frame(HAVE, &have);
                let stream = line.stream(HAVE_STREAM, &frame.repeat(pages / 4096 + 1)).await?;
                line.connection.closed().await;
                drop(stream);
                Ok(())
            }
            Self::JoinedTwice | Self::AckOfWhatIsNotThere => {
                line.answer(Answer::Welcome(welcome)).await?;
                let join = take_join(line, hello).await?;
                line.answer(Answer::Joined(Joined {})).await?;
                if matches!(self, Self::JoinedTwice) {
                    return line.answer(Answer::Joined(Joined {})).await;
                }
                let received = join.state.position + (1 << 40);
                let ack = Ack {
                    received,
                    ..Ack::default()
                };
                line.answer(Answer::Ack(ack)).await
            }
        }
    }
}

/// All that a primary says until a backup has the machine.
struct Join {
    hello: Hello,
    /// The bulk stream.
    bulk: Vec<u8>,
    state: JoinState,
}

async fn hear_hello(line: &mut Line) -> Result<Hello> {
    match line.hear::<ToBackup>().await?.kind {
        Some(Say::Hello(hello)) => Ok(hello),
        other => anyhow::bail!("no hello but {other:?}"),
    }
}

/// Takes a join as a backup that has nothing would.
async fn take_join(line: &mut Line, hello: Hello) -> Result<Join> {
    let nothing = line.stream(HAVE_STREAM, &[]).await?;
    drop(nothing);
    let (kind, mut frames) = line.take_stream().await?;
    ensure!(kind == BULK_STREAM, "a stream of kind {kind} comes first");
    let mut bulk = Vec::new();
    let mut state = None;
    // The bulk stream ends with the join.
    while let Some((kind, payload)) = frames.next_frame().await? {
        bulk.extend_from_slice(&header(payload.len() as u32, kind));
        bulk.extend_from_slice(&payload);
    }
    while state.is_none() {
        if let Some(to_backup::Kind::State(it)) = line.hear::<ToBackup>().await?.kind {
            state = Some(it);
        }
    }
    let state = state.context("no state")?;
    Ok(Join { hello, bulk, state })
}

/// The guest answers on its console.
fn answers(node: &mut Node, number: usize) -> Result<()> {
    node.run.type_text(&format!("echo ANSWER-$(({number} + 1000))\n"))?;
    node.run.wait_for(&format!("ANSWER-{}", number + 1000), LIMIT)
}

#[test]
fn a_primary_outlives_what_a_backup_says() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let scene = Setup::new("bad-backup").build()?;
    let mut primary = scene.start_primary(0)?;
    primary.wait_for_state("not-protected (need-backup)", LIMIT)?;
    for (number, group) in BACKUPS.chunks(AT_A_TIME).enumerate() {
        let rogue = Rogue::backup(&scene.pair, 1)?;
        for &(case, reason) in group {
            let session = rogue.accept(async |line| case.play(line).await);
            let told = session.with_context(|| format!("{case:?}"))?;
            ensure!(told.contains(reason), "{case:?}: the backup is told {told:?}");
            primary
                .run
                .messages
                .wait_for(reason, LIMIT)
                .with_context(|| format!("{case:?}"))?;
            answers(&mut primary, case as usize)?;
            ensure!(
                primary.state().starts_with("not-protected"),
                "{case:?}: {}",
                primary.state()
            );
        }
        let messages = primary.run.messages.text();
        ensure!(
            messages.chars().all(|one| one == '\n' || !one.is_control()),
            "{messages:?}"
        );
        ensure!(
            !messages.contains("\n INFO lockstep::state: protected\\u"),
            "{messages}"
        );
        drop(rogue);
        let backup = scene.start_backup(1)?;
        primary.wait_for_state(&format!("protected term={}", number + 1), LIMIT)?;
        backup.wait_for_state("standby: protected", LIMIT)?;
        answers(&mut primary, BACKUPS.len())?;
        backup.run.kill()?;
        primary.wait_for_state(&format!("not-protected (lost-connection) term={}", number + 2), LIMIT)?;
    }
    Ok(())
}

/// What a rogue primary does.
#[derive(Clone, Copy, Debug)]
enum Primary {
    Garbage,
    Oversize,
    NoMessage,
    UnknownVersion,
    HelloTwice,
    LogFirst,
    BrokenLog,
    PagesBeyond,
    NoSuchDisk,
    NoSuchPosition,
    WrongDigest,
    NoSuchStream,
}

/// What it is told, and what the standby tells its operators.
const PRIMARIES: [(Primary, &str); 12] = [
    (Primary::Garbage, "a message does not decode"),
    (
        Primary::Oversize,
        "a message of 4194305 bytes: at most 4194304 are taken",
    ),
    (Primary::NoMessage, "of a kind that is not known"),
    (Primary::UnknownVersion, "the primary speaks protocol versions 2 to 9"),
    (Primary::HelloTwice, "the primary sent a message out of turn"),
    (Primary::LogFirst, "the primary is silent past the deadline"),
    (Primary::BrokenLog, "a frame of a kind that a log does not have"),
    (Primary::PagesBeyond, "page frame number"),
    (
        Primary::NoSuchDisk,
        "a chunk of disk 7, which the machine does not have",
    ),
    (Primary::NoSuchPosition, "a position that no log reaches"),
    (Primary::WrongDigest, "guest memory has another digest"),
    (Primary::NoSuchStream, "a stream of kind 9, which is not known"),
];

impl Primary {
    async fn play(self, line: &mut Line, join: &Join) -> Result<()> {
        // What was heard from a real primary is said once more.
        let hello = join.hello.clone();
        let mut stream = None;
        match self {
            Self::Garbage => line.raw(&[&header(1, 0)[..], &[0x0a]].concat()).await?,
            Self::Oversize => line.raw(&header(OVERSIZE, 0)).await?,
            Self::NoMessage => line.raw(&header(0, 0)).await?,
            Self::UnknownVersion => {
                let hello = Hello {
                    version_min: 2,
                    version_max: 9,
                    ..hello
                };
                line.say(Say::Hello(hello)).await?;
            }
            Self::HelloTwice => {
                line.say(Say::Hello(hello.clone())).await?;
                line.say(Say::Hello(hello)).await?;
            }
            Self::LogFirst | Self::BrokenLog | Self::NoSuchStream => {
                // QUIC tells of the control stream with its first byte, and only then there is a session.
                line.raw(&[0]).await?;
                let (kind, bytes) = match self {
                    Self::LogFirst => (LOG_STREAM, an_empty_batch()),
                    Self::BrokenLog => (LOG_STREAM, header(0, 99)),
                    _ => (9, bytes::Bytes::new()),
                };
                stream = Some(line.stream(kind, &bytes).await?);
            }
            Self::PagesBeyond => {
                let page = [1; PAGE];
                let frame = wire::frame(BULK_PAGES, &pack_pages([(PageNumber::new(1 << 30), &page[..])])?);
                line.say(Say::Hello(hello)).await?;
                stream = Some(line.stream(BULK_STREAM, &frame).await?);
            }
            Self::NoSuchDisk => {
                let chunk = DiskChunk {
                    disk: 7,
                    ..DiskChunk::default()
                };
                line.say(Say::Hello(hello)).await?;
                stream = Some(line.stream(BULK_STREAM, &wire::frame(BULK_CHUNK, &chunk)).await?);
            }
            Self::NoSuchPosition => {
                let state = JoinState {
                    position: u64::MAX,
                    ..join.state.clone()
                };
                line.say(Say::Hello(hello)).await?;
                line.say(Say::State(state)).await?;
            }
            Self::WrongDigest => {
                let state = JoinState {
                    memory_digest: vec![7; 16].into(),
                    ..join.state.clone()
                };
                line.say(Say::Hello(hello)).await?;
                // To take all of memory in may take longer than the deadline: it is not for silence that the session ends.
                line.send_heartbeats();
                line.say(Say::State(state)).await?;
                stream = Some(line.stream(BULK_STREAM, &join.bulk).await?);
            }
        }
        // A stream that is finished, or a control stream that ends, would be another fault.
        line.connection.closed().await;
        drop(stream);
        Ok(())
    }
}

/// A frame of the log without a turn in it.
fn an_empty_batch() -> bytes::Bytes {
    use lockstep_logcodec::{packed::pack, record::kind};
    wire::frame(kind::BATCH as u8, &pack(&lockstep_proto::Batch::default()))
}

#[test]
fn a_standby_outlives_what_a_primary_says() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let scene = Setup::new("bad-primary").build()?;
    let primary = scene.start_primary(0)?;
    let mut heard = None;
    // A real primary's join, kept to be said again.
    Rogue::backup(&scene.pair, 1)?.accept(async |line| {
        line.answer_heartbeats();
        let hello = hear_hello(line).await?;
        let welcome = Welcome {
            version: hello.version_max,
            node: "b".into(),
            host_class: hello.host_class.clone(),
        };
        line.answer(Answer::Welcome(welcome)).await?;
        heard = Some(take_join(line, hello).await?);
        line.answer(Answer::Ack(Ack::default())).await
    })?;
    let join = heard.context("nothing was heard")?;
    primary.run.kill()?;
    let standby = scene.start_backup(1)?;
    standby.wait_for_state("standby: starting", LIMIT)?;
    let rogue = Rogue::primary(&scene.pair, 0)?;
    for (case, reason) in PRIMARIES {
        let session = rogue.dial(&scene.pair, 1, async |line| case.play(line, &join).await);
        let told = session.with_context(|| format!("{case:?}"))?;
        ensure!(told.contains(reason), "{case:?}: the primary is told {told:?}");
        standby
            .run
            .messages
            .wait_for(reason, LIMIT)
            .with_context(|| format!("{case:?}"))?;
    }
    // Each ended its own session, and the standby is the one that was started.
    drop(rogue);
    let mut primary = scene.start_primary(0)?;
    primary.wait_for_state("protected", LIMIT)?;
    standby.wait_for_state("standby: protected", LIMIT)?;
    answers(&mut primary, 0)
}
