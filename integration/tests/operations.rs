//! What operators type, against real processes and their sockets.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Output;
use std::time::Duration;

use anyhow::{Result, ensure};
use lockstep_integration::gate::require_root_net;
use lockstep_integration::pair::{Arbiter, CALM, Counter, Pair};
use lockstep_integration::{Booted, Kind, work_dir};
use rustix::process::Signal;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(120);
const HEARTBEAT: Duration = Duration::from_millis(100);
const DEADLINE: Duration = Duration::from_secs(3);
const SOME: u64 = 15;

fn create(name: &str) -> Result<Pair> {
    Pair::create(&work_dir(name)?, Arbiter::File, HEARTBEAT, DEADLINE)
}

fn expect(output: &Output, code: i32, text: &str) -> Result<()> {
    let told = [&output.stdout[..], &output.stderr[..]].concat();
    let told = String::from_utf8_lossy(&told);
    ensure!(
        output.status.code() == Some(code) && told.contains(text),
        "{} and not {code} with `{text}`: {told}",
        output.status
    );
    Ok(())
}

#[test]
fn operators_see_whether_a_machine_is_protected() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let machine = Booted::get(Kind::Memory)?;
    let pair = create("ops-status")?;
    expect(&pair.operate(0, &["status"])?, 0, "no machine runs here")?;
    let none = pair.operate(0, &["status", "--check"])?;
    expect(&none, 1, "")?;
    ensure!(none.stdout.is_empty(), "{none:?}");
    let backup = pair.start_backup(1, |run| run)?;
    let primary = pair.start_primary(0, |run| run.restore(&machine.snapshot()))?;
    for (host, program) in [(0, "lockstep-primary"), (1, "lockstep-backup")] {
        // Also before the socket is there.
        let wait = ["wait", "--for", "protected", "--timeout", "60"];
        expect(&pair.operate_with(program, host, &wait)?, 0, "")?;
        expect(
            &pair.operate_with(program, host, &["status", "--check"])?,
            0,
            "protected",
        )?;
    }
    let counter = Counter::start(&pair.network.client, "counter", CALM)?;
    counter.wait_for(SOME, LIMIT)?;
    let told = pair.operate(0, &["status", "pair", "--json"])?;
    let told: Value = serde_json::from_slice(&told.stdout)?;
    for (field, value) in [
        ("machine", "pair".into()),
        ("node", "a".into()),
        ("role", "primary".into()),
        ("state", "protected".into()),
        ("reason", Value::Null),
        ("term", 1.into()),
        ("peer", "b".into()),
        ("pid", primary.run.pid().into()),
        ("version", lockstep_proto::program::version().into()),
    ] {
        ensure!(told[0][field] == value, "{field} is not {value}: {told}");
    }
    ensure!(told[0]["received"].as_u64() > Some(0), "{told}");
    let other = ["wait", "--for", "frozen", "--timeout", "0.1"];
    expect(&pair.operate(0, &other)?, 1, "is `protected` and not `frozen`")?;
    expect(&pair.operate(0, &["wait", "--for", "protected"])?, 2, "--timeout")?;
    let unknown = ["wait", "--for", "frosen", "--timeout", "60"];
    expect(
        &pair.operate(0, &unknown)?,
        2,
        "not a state; these are: starting; syncing;",
    )?;
    expect(&pair.operate(0, &["status", "vm"])?, 1, "sockets of: pair")?;
    backup.run.kill()?;
    let wait = [
        "wait",
        "pair",
        "--for",
        "not-protected (lost-connection)",
        "--timeout",
        "60",
    ];
    expect(&pair.operate(0, &wait)?, 0, "")?;
    expect(
        &pair.operate(0, &["status", "--check"])?,
        1,
        "not-protected (lost-connection)",
    )?;
    counter.wait_for(SOME, LIMIT)?;
    counter.finish()?;
    primary.run.terminate()?.report()?;
    ensure!(!pair.socket(0).exists(), "the socket stays behind");
    Ok(())
}

#[test]
fn a_socket_has_one_process_and_goes_on_to_the_next() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let pair = create("ops-socket")?;
    let first = pair.start_backup(0, |run| run)?;
    first.wait_for_state("standby: starting", LIMIT)?;
    let mode = |path: &std::path::Path| Ok::<_, anyhow::Error>(path.metadata()?.permissions().mode() & 0o777);
    ensure!(mode(&pair.socket(0))? == 0o660 && mode(&pair.run_dir(0))? & 0o027 == 0);
    let second = pair.start_backup(0, |run| run)?.run.wait(LIMIT)?;
    second.expect_failure(1, &["another process serves", "--api"])?;
    expect(&pair.operate(0, &["status", "pair"])?, 0, "starting")?;
    first.run.signal(Signal::STOP)?;
    expect(&pair.operate(0, &["status", "pair"])?, 1, "did not answer")?;
    first.run.kill()?;
    ensure!(pair.socket(0).exists());
    expect(&pair.operate(0, &["status"])?, 0, "not running")?;
    expect(&pair.operate(0, &["status", "pair"])?, 1, "is gone")?;
    expect(&pair.operate(0, &["suspend", "pair"])?, 1, "is gone")?;
    let third = pair.start_backup(0, |run| run)?;
    let wait = ["wait", "--for", "starting", "--timeout", "60"];
    expect(&pair.operate(0, &wait)?, 0, "")?;
    third.run.terminate()?;
    ensure!(
        std::fs::read_dir(pair.run_dir(0))?.count() == 0,
        "something stays behind"
    );
    Ok(())
}

/// Sends `request` as it is, and returns what comes back until the other side closes.
fn send(pair: &Pair, request: &[u8]) -> Result<String> {
    let mut stream = UnixStream::connect(pair.socket(0))?;
    stream.set_read_timeout(Some(LIMIT))?;
    // The other side may close before all has gone.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[test]
fn damaged_requests_leave_the_machine_running() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let machine = Booted::get(Kind::Memory)?;
    let pair = create("ops-damaged")?;
    let _backup = pair.start_backup(1, |run| run)?;
    let primary = pair.start_primary(0, |run| run.restore(&machine.snapshot()))?;
    primary.wait_for_state("protected", LIMIT)?;
    let counter = Counter::start(&pair.network.client, "counter", CALM)?;
    counter.wait_for(SOME, LIMIT)?;
    // More than may talk at once say nothing, and stay.
    let silent: Vec<_> = (0..40)
        .map(|_| UnixStream::connect(pair.socket(0)))
        .collect::<std::io::Result<_>>()?;
    let large = vec![b'x'; 1 << 20];
    let body = format!(
        "POST /v1/shutdown HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
        large.len()
    );
    let endless = b"POST /v1/suspend HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nfffff\r\n";
    for (request, wanted) in [
        (&b"\x16\x03\x01 garbage \xff\xfe\r\n\r\n"[..], "400"),
        (&large, ""),
        (&[body.as_bytes(), &large].concat(), "413"),
        (&[endless, &large[..]].concat(), "413"),
        (b"GET /v1/../../etc/passwd HTTP/1.1\r\nhost: x\r\n\r\n", "404"),
        (
            b"POST /v1/shutdown HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\n{",
            "400",
        ),
        (
            b"POST /v1/promote HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n",
            "409",
        ),
    ] {
        let answer = send(&pair, request)?;
        ensure!(
            wanted.is_empty() || answer.starts_with(&format!("HTTP/1.1 {wanted} ")),
            "not {wanted}: {answer}"
        );
    }
    drop(silent);
    expect(&pair.operate(0, &["status", "--check"])?, 0, "protected")?;
    counter.wait_for(SOME, LIMIT)?;
    let tally = counter.finish()?;
    ensure!(tally.broken == 0 && tally.jumps == 0, "{tally:?}");
    Ok(())
}
