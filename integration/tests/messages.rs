//! Messages whose reader stops or goes away: nobody waits for it, and nothing ends.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lockstep_integration::gate::require_root_net;
use lockstep_integration::pair::{Alone, LIMIT, Pair, SOME, Setup};
use lockstep_integration::process::check;
use lockstep_integration::transcript::Transcript;
use rustix::fs::OFlags;

/// Waits for a state of the node on `host`: what it tells is not to be had.
fn wait_on(pair: &Pair, host: usize, state: &str) -> Result<()> {
    let done = pair.operate(host, &["wait", "pair", "--for", state, "--timeout", "240"])?;
    ensure!(done.status.success(), "host {host} is not {state}: {done:?}");
    Ok(())
}

/// A pipe with a name, and an end of it that is held open and not read.
fn pipe(path: &Path) -> Result<File> {
    check(Command::new("mkfifo").arg(path))?;
    let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
    let held = File::options()
        .read(true)
        .write(true)
        .custom_flags(nonblocking)
        .open(path);
    held.context("the pipe's end")
}

#[test]
fn who_stops_reading_messages_or_goes_away_holds_no_machine_up() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let mut scene = Setup::new("messages-unread").build()?;
    let dir = scene.pair.dir().to_owned();
    // A pipe that is full soon, as every stop of the guest is told of; and a journal that stands still, of which every network
    // namespace queues ten entries unless it is told otherwise.
    let full = dir.join("full");
    let held = pipe(&full)?;
    let told_all = format!("export LOCKSTEP_LOG=trace; exec 2>>{}", full.display());
    scene.pair.prepare(0, told_all);
    let place = tempfile::Builder::new().prefix("lockstep-").tempdir()?;
    let journal = UnixDatagram::bind(place.path().join("socket"))?;
    let standing = "/run/systemd/journal";
    scene.pair.prepare(
        1,
        format!(
            "mount -t tmpfs none /run; mkdir -p {standing}; mount --bind {} {standing}; \
             export JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) LOCKSTEP_LOG=debug",
            place.path().display()
        ),
    );
    let primary = scene.start_primary(0)?;
    wait_on(&scene.pair, 0, "not-protected")?;
    let backup = scene.start_backup(1)?;
    wait_on(&scene.pair, 1, "protected")?;
    wait_on(&scene.pair, 0, "protected")?;
    let counter = scene.count()?;
    let more = (&held).write(&[b'x'; 4096]).map_err(|error| error.kind());
    ensure!(more == Err(ErrorKind::WouldBlock), "the pipe has room: {more:?}");
    let checked = scene.pair.operate(0, &["status", "pair", "--check"])?;
    ensure!(checked.status.success(), "{checked:?}");
    // It reads again, and hears of what it has missed.
    let read = Transcript::of(File::open(&full)?)?;
    read.wait_for("messages were dropped: nobody took them in time", LIMIT)?;
    counter.wait_for(SOME, LIMIT)?;

    // The machine goes on with a journal that stands still.
    scene.kill(primary)?;
    wait_on(&scene.pair, 1, "not-protected")?;
    counter.wait_for(SOME, LIMIT)?;

    // A reader that has gone.
    let gone = dir.join("gone");
    let reader = pipe(&gone)?;
    scene
        .pair
        .prepare(0, format!("export LOCKSTEP_LOG=debug; exec 2>>{}", gone.display()));
    let newcomer = scene.start_backup(0)?;
    wait_on(&scene.pair, 0, "protected")?;
    drop(reader);
    wait_on(&scene.pair, 1, "protected")?;
    counter.wait_for(SOME, LIMIT)?;
    scene.kill(backup)?;
    wait_on(&scene.pair, 0, "not-protected")?;
    drop(journal);
    Alone {
        counter,
        live: newcomer,
        scene,
    }
    .settle()
}
