//! `fleet`: what nodes tell at a real etcd, and what is made of it when they change, die, or are cut off.

use std::collections::BTreeMap;
use std::process::Output;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lockstep_integration::etcd::Etcd;
use lockstep_integration::gate::{require_program, require_root_net};
use lockstep_integration::pair::{Arbiter, Pair};
use lockstep_integration::{Booted, Kind, work_dir};
use lockstep_node::api::Identity;
use lockstep_node::arbiter::{self, Gateway, Outcome, Record, open};
use lockstep_node::fleet::{self, Entry, Presence, row};
use lockstep_node::status::{Role, Status, StatusInner};
use lockstep_proto::quantity::Term;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(120);
/// From one look to the next.
const LOOK: Duration = Duration::from_millis(50);
/// More than an answer has: they are read in pages.
const MANY: u64 = 250;

fn require_etcd() -> bool {
    require_program("etcd", "etcd-server")
}

fn gateway(etcd: &Etcd) -> Result<Gateway> {
    let spec = format!("etcd:{}", etcd.url()).parse()?;
    arbiter::gateway(&spec, None, None, "a test".into())?.context("not an etcd")
}

/// Makes a machine's record, as the node `a` does that boots it and has taken `b` in.
fn make_record(etcd: &Etcd, machine: &str) -> Result<()> {
    let record = Record {
        term: Term::new(1),
        owner: "a".into(),
        peer: Some("b".into()),
    };
    let mut arbiter = open(&format!("etcd:{}", etcd.url()).parse()?, None, None, machine)?;
    ensure!(arbiter.compare_and_set(None, &record)? == Outcome::Done);
    Ok(())
}

/// `lockstep/vm/told/a`.
const KEY: &str = "bG9ja3N0ZXAvdm0vdG9sZC9h";
/// What is made of the owner's `protected` where its backup tells nothing.
const BLOCKED: &str = "protected, failover blocked (backup-silent)";

/// When the key was made that the node tells under.
fn revision(etcd: &Etcd) -> Result<Option<String>> {
    let answer = etcd.post("/v3/kv/range", &format!(r#"{{"key":"{KEY}"}}"#))?;
    let made = answer.split("\"create_revision\":\"").nth(1);
    Ok(made.and_then(|rest| rest.split('"').next()).map(str::to_owned))
}

fn says(state: &str, lag_ms: u64) -> StatusInner {
    StatusInner {
        role: Role::Primary,
        state: state.into(),
        term: Term::new(1),
        peer: "b".into(),
        lag_ns: lag_ms * 1_000_000,
        ..StatusInner::default()
    }
}

/// Looks until `so` holds of what there is.
fn until(etcd: &Etcd, so: impl Fn(&BTreeMap<String, Entry>) -> bool) -> Result<BTreeMap<String, Entry>> {
    let (mut gateway, begin) = (gateway(etcd)?, Instant::now());
    loop {
        // An etcd that starts does not answer.
        let found = fleet::read(&mut gateway);
        match found {
            Ok(found) if so(&found) => return Ok(found),
            found => ensure!(begin.elapsed() < LIMIT, "it stays {found:?}"),
        }
        std::thread::sleep(LOOK);
    }
}

#[test]
fn what_a_node_tells_follows_its_state_and_comes_again_when_etcd_has_lost_it() -> Result<()> {
    if !require_etcd() {
        return Ok(());
    }
    let home = tempfile::tempdir()?;
    let mut etcd = Etcd::start(home.path(), None)?;
    make_record(&etcd, "vm")?;
    let identity = Identity {
        machine: "vm".into(),
        node: "a".into(),
        pki: "/nowhere".into(),
    };
    let status = Status::default();
    let start = || Presence::start(gateway(&etcd)?, identity.clone(), status.clone()).context("no thread");
    let presence = start()?;
    let is = |words: &'static str| {
        move |found: &BTreeMap<String, Entry>| found.get("vm").is_some_and(|entry| row("vm", entry).words() == words)
    };
    until(&etcd, is("starting"))?;
    status.set(says("protected", 137));
    let first = row("vm", &until(&etcd, is(BLOCKED))?["vm"]);
    ensure!(first.since.is_none() && first.lag_at_most_ms == Some(200), "{first:?}");
    status.set(says("not-protected (refused: no \u{1b}room)", 0));
    until(&etcd, is("not-protected (refused: no \u{1b}room)"))?;

    // Its lease has gone, as in a restore of data from before it: another one takes its place.
    let first = revision(&etcd)?;
    let leases = etcd.post("/v3/lease/leases", "{}")?;
    let id = leases.split("\"ID\":\"").nth(1).and_then(|rest| rest.split('"').next());
    let id = id.with_context(|| format!("no lease: {leases}"))?;
    etcd.post("/v3/lease/revoke", &format!(r#"{{"ID":"{id}"}}"#))?;
    let begin = Instant::now();
    while revision(&etcd)?.is_none_or(|now| Some(now) == first) {
        ensure!(begin.elapsed() < LIMIT, "it is not told again");
        std::thread::sleep(LOOK);
    }
    // Somebody has written there.
    until(&etcd, is("not-protected (refused: no \u{1b}room)"))?;
    let put = etcd.post("/v3/kv/put", &format!(r#"{{"key":"{KEY}","value":"MQ=="}}"#))?;
    ensure!(put.contains("200 OK"), "{put}");
    until(&etcd, is("not-protected (refused: no \u{1b}room)"))?;
    drop(presence);
    // Who leaves takes back what it told.
    until(&etcd, is("unknown (owner-silent)"))?;

    // Another process of the same node, before the lease of one that was killed has ended: what it tells is under its own.
    etcd.post("/v3/lease/grant", r#"{"TTL":2,"ID":77}"#)?;
    let put = etcd.post("/v3/kv/put", &format!(r#"{{"key":"{KEY}","value":"MQ==","lease":77}}"#))?;
    ensure!(put.contains("200 OK"), "{put}");
    status.set(says("protected", 1));
    let next = start()?;
    until(&etcd, is(BLOCKED))?;
    let begin = Instant::now();
    while !etcd
        .post("/v3/lease/timetolive", r#"{"ID":77}"#)?
        .contains("\"TTL\":\"-1\"")
    {
        ensure!(begin.elapsed() < LIMIT, "the lease does not end");
        std::thread::sleep(LOOK);
    }
    ensure!(revision(&etcd)?.is_some(), "it went with another process' lease");
    etcd.kill();
    status.set(says("frozen (no-arbiter)", 0));
    etcd.run()?;
    until(&etcd, is("frozen (no-arbiter)"))?;
    drop(next);
    Ok(())
}

#[test]
fn many_machines_are_read_in_pages_and_damage_hides_none() -> Result<()> {
    if !require_etcd() {
        return Ok(());
    }
    let home = tempfile::tempdir()?;
    let etcd = Etcd::start(home.path(), None)?;
    for machine in 0..MANY {
        make_record(&etcd, &format!("m{machine}"))?;
    }
    // `lockstep/m7/record` and `lockstep/m8/told/a`, both `1`; and `lockstepx`, which is not Lockstep's.
    for key in ["bG9ja3N0ZXAvbTcvcmVjb3Jk", "bG9ja3N0ZXAvbTgvdG9sZC9h", "bG9ja3N0ZXB4"] {
        let put = etcd.post("/v3/kv/put", &format!(r#"{{"key":"{key}","value":"MQ=="}}"#))?;
        ensure!(put.contains("200 OK"), "{put}");
    }
    let found = until(&etcd, |found| !found.is_empty())?;
    ensure!(found.len() as u64 == MANY, "{} machines", found.len());
    for (machine, entry) in &found {
        let words = row(machine, entry).words();
        let wanted = match machine.as_str() {
            "m7" => "unknown (damaged-record)",
            "m8" => "unknown (owner-unreadable)",
            _ => "unknown (owner-silent)",
        };
        ensure!(words == wanted, "{machine}: {words}");
    }
    Ok(())
}

/// What `fleet` shows of the pair's machine.
fn shown(pair: &Pair, words: &[&str]) -> Result<Output> {
    let words = [&["fleet", "--arbiter", pair.arbiter()], words].concat();
    pair.operate_with("lockstep-primary", 0, &words)
}

fn wait_for(pair: &Pair, so: impl Fn(&Value) -> bool) -> Result<Value> {
    let begin = Instant::now();
    loop {
        let output = shown(pair, &["--json"])?;
        // A request has a second.
        if !output.status.success() && begin.elapsed() < LIMIT {
            continue;
        }
        ensure!(output.status.success(), "{output:?}");
        let rows: Value = serde_json::from_slice(&output.stdout)?;
        let row = rows[0].clone();
        if so(&row) {
            return Ok(row);
        }
        ensure!(begin.elapsed() < LIMIT, "it stays {rows}");
        std::thread::sleep(LOOK);
    }
}

#[test]
fn a_machine_is_shown_where_it_runs_and_as_unknown_when_both_nodes_are_dead() -> Result<()> {
    if !require_root_net() || !require_etcd() {
        return Ok(());
    }
    let machine = Booted::get(Kind::Memory)?;
    let (beat, deadline) = (Duration::from_millis(100), Duration::from_secs(3));
    let pair = Pair::create(&work_dir("fleet")?, Arbiter::QuickEtcd, beat, deadline)?;
    let none = shown(&pair, &["--check"])?;
    let said = String::from_utf8_lossy(&none.stderr).into_owned();
    ensure!(
        none.status.code() == Some(1) && none.stdout.is_empty() && said.contains("no machine has a record"),
        "{none:?}"
    );
    let backup = pair.start_backup(1, |run| run)?;
    let primary = pair.start_primary(0, |run| run.restore(&machine.snapshot()))?;
    let row = wait_for(&pair, |row| {
        row["state"] == "protected" && row["backup_state"] == "protected"
    })?;
    for (field, value) in [
        ("machine", "pair".into()),
        ("reason", Value::Null),
        ("runs_on", "a".into()),
        ("backup", "b".into()),
        ("term", 1.into()),
        ("version", lockstep_proto::program::version().into()),
    ] {
        ensure!(row[field] == value, "{field} is not {value}: {row}");
    }
    ensure!(
        row["lag_at_most_ms"].as_u64() >= Some(1) && row["since"].is_string(),
        "{row}"
    );
    let check = shown(&pair, &["--check"])?;
    let table = String::from_utf8_lossy(&check.stdout).into_owned();
    ensure!(
        check.status.success() && table.starts_with("MACHINE ") && table.lines().count() == 2,
        "{check:?}"
    );
    let other = shown(&pair, &["vm"])?;
    ensure!(other.status.code() == Some(1), "{other:?}");
    ensure!(
        String::from_utf8_lossy(&other.stderr).contains("it has: pair"),
        "{other:?}"
    );

    // From the moment in which the other node has the term, nobody says that it is protected.
    primary.run.kill()?;
    let row = wait_for(&pair, |row| {
        assert!(row["runs_on"] != "b" || row["state"] != "protected", "{row}");
        row["runs_on"] == "b" && row["state"] == "not-protected"
    })?;
    ensure!(row["backup"].is_null() && row["lag_at_most_ms"].is_null(), "{row}");
    ensure!(shown(&pair, &["--check"])?.status.code() == Some(1));
    backup.run.kill()?;
    let row = wait_for(&pair, |row| row["state"] == "unknown")?;
    ensure!(row["reason"] == "owner-silent" && row["runs_on"] == "b", "{row}");
    Ok(())
}

#[test]
fn wrong_usage_of_fleet_says_what_is_right() -> Result<()> {
    let fleet = |words: &[&str]| -> Result<(Option<i32>, String)> {
        let program = lockstep_integration::paths::program("lockstep-backup")?;
        let output = std::process::Command::new(program).arg("fleet").args(words).output()?;
        Ok((
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ))
    };
    for (words, code, said) in [
        (&[][..], 2, "--config"),
        (
            &["--arbiter", "etcd:http://127.0.0.1:1", "--config", "x"],
            2,
            "cannot be used with",
        ),
        (&["--arbiter", "witness"], 2, "etcd:URL"),
        (&["--arbiter", "file:/x"], 1, "`status` tells of them all"),
        (&["--config", "/nowhere/vm.toml"], 1, "cannot be read"),
        (
            &["--arbiter", "etcd:http://127.0.0.1:1"],
            1,
            "no answer from the arbiter",
        ),
        (
            &["--arbiter", "etcd:https://127.0.0.1:1"],
            1,
            "give the CA's certificate too",
        ),
    ] {
        let (status, told) = fleet(words)?;
        ensure!(
            status == Some(code) && told.contains(said),
            "{words:?}: {status:?}: {told}"
        );
    }
    Ok(())
}
