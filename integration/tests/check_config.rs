//! `check-config` on the hosts of a pair: before it runs, while it runs, and with one thing wrong at a time.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use lockstep_integration::gate::{require_program, require_root_net};
use lockstep_integration::pair::{LIMIT, PORT, SOME, Scene, Setup};
use lockstep_integration::paths::program;
use lockstep_integration::process::check;
use lockstep_integration::{Run, work_dir};
use lockstep_node::start::mac_text;
use lockstep_vmm::snapshot::Restore;
use serde_json::Value;

/// What every check of a host that can run a node passes, whoever else runs.
const ALWAYS: [&str; 13] = [
    "kvm",
    "probe",
    "cpu",
    "machine",
    "snapshot",
    "disk",
    "tap",
    "listen",
    "api",
    "reports",
    "timing",
    "certificate",
    "arbiter",
];

/// A path as a value.
fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display())
}

/// The keys of a host's file, with their values.
fn keys(scene: &Scene, host: usize) -> Result<Vec<(&'static str, String)>> {
    let pair = &scene.pair;
    let hosts = &pair.network.hosts;
    let disk = &scene.disks.as_ref().context("the machine has no disk")?[host];
    Ok(vec![
        ("name", "\"pair\"".into()),
        ("node", format!("{:?}", hosts[host].name)),
        ("peer-name", format!("{:?}", hosts[1 - host].name)),
        ("listen", format!("\"{}:{PORT}\"", hosts[host].ip)),
        ("peer", format!("\"{}:{PORT}\"", hosts[1 - host].ip)),
        ("role", "\"auto\"".into()),
        ("pki", quoted(&pair.dir().join("pki"))),
        ("arbiter", format!("{:?}", pair.arbiter())),
        ("snapshot", quoted(&scene.snapshot())),
        ("disk", format!("[{}]", quoted(disk))),
        ("net", "[\"tap=tap0\"]".into()),
    ])
}

/// A file of `host` in which these keys have other values.
fn file(scene: &Scene, host: usize, others: &[(&'static str, String)]) -> Result<PathBuf> {
    let mut keys = keys(scene, host)?;
    for (key, value) in others {
        keys.retain(|(name, _)| name != key);
        keys.push((key, value.clone()));
    }
    let lines: Vec<String> = keys.iter().map(|(key, value)| format!("{key} = {value}")).collect();
    let path = scene.pair.dir().join(format!("{host}.toml"));
    std::fs::write(&path, lines.join("\n"))?;
    Ok(path)
}

fn ask(scene: &Scene, host: usize, others: &[(&'static str, String)], words: &[&str]) -> Result<Output> {
    let path = file(scene, host, others)?;
    let mut all = vec!["check-config", path.to_str().context("a path that is no text")?];
    all.extend(words);
    scene.pair.operate_with("lockstep-primary", host, &all)
}

/// Outcome, and what was found with what to do about it, of each check.
fn findings(output: &Output) -> Result<Vec<(String, String, String)>> {
    let told: Value = serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))?;
    ensure!(told["problems"].as_array().is_some_and(Vec::is_empty), "{told}");
    let findings = told["findings"].as_array().context("no findings")?;
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    Ok(findings
        .iter()
        .map(|finding| {
            let words = format!("{}; remedy: {}", text(finding, "found"), text(finding, "remedy"));
            (text(finding, "check"), text(finding, "outcome"), words)
        })
        .collect())
}

/// A check, how it comes out, and words of what is found or to be done.
type Expected<'a> = (&'a str, &'a str, &'a [&'a str]);

/// Checks a host's file: these come out so, and no other one fails.
fn expect(scene: &Scene, host: usize, others: &[(&'static str, String)], expected: &[Expected<'_>]) -> Result<()> {
    let output = ask(scene, host, others, &["--json"])?;
    let findings = findings(&output)?;
    for (wanted, outcome, words) in expected {
        let fits = |(check, found, text): &(String, String, String)| {
            check == wanted && found == outcome && words.iter().all(|word| text.contains(word))
        };
        ensure!(
            findings.iter().any(fits),
            "`{wanted}` is not {outcome} with {words:?}: {findings:?}"
        );
    }
    let fails = findings.iter().filter(|(_, outcome, _)| outcome == "fail").count();
    let should = expected.iter().filter(|(_, outcome, _)| *outcome == "fail").count();
    ensure!(fails == should, "{fails} checks fail and not {should}: {findings:?}");
    ensure!(output.status.code() == Some(i32::from(should > 0)), "{output:?}");
    Ok(())
}

/// A host that can run a node, where these come out so.
fn expect_good(scene: &Scene, host: usize, expected: &[Expected<'_>]) -> Result<()> {
    let all = ALWAYS.map(|check| (check, "pass", &[][..]));
    expect(scene, host, &[], &[&all, expected].concat())
}

fn open(name: &str) -> Result<Option<Scene>> {
    if !require_root_net() || !require_program("etcd", "etcd-server") {
        return Ok(None);
    }
    Setup::new(name).etcd().disk().build().map(Some)
}

#[test]
fn a_pair_is_checked_before_it_runs_and_while_it_runs() -> Result<()> {
    let Some(scene) = open("check-config")? else {
        return Ok(());
    };
    let up: Expected<'_> = (
        "peer",
        "warn",
        &["its host answers at 10.77.0.12:7700", "else start it"],
    );
    let new: Expected<'_> = ("arbiter", "pass", &["no record of this machine"]);
    let still: Expected<'_> = ("machine", "pass", &["does not run on this host"]);
    expect_good(&scene, 0, &[up, new, still, ("witness", "pass", &[])])?;
    let output = ask(&scene, 0, &[], &["--json", "--offline"])?;
    let offline = findings(&output)?;
    ensure!(
        offline.iter().all(|(check, ..)| check != "peer" && check != "arbiter"),
        "{offline:?}"
    );
    // What a person reads.
    scene.pair.network.set_cable(1, false)?;
    let output = ask(&scene, 0, &[], &[])?;
    scene.pair.network.set_cable(1, true)?;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    for words in [
        "0.toml: no problem in the file",
        "pass  kvm ",
        "WARN  peer         nobody answers at 10.77.0.12:7700",
        "remedy: start the other node",
    ] {
        ensure!(told.contains(words), "no `{words}`: {told}");
    }
    let primary = scene.start_primary(0)?;
    primary.wait_for_state("not-protected (need-backup)", LIMIT)?;
    let owner: Expected<'_> = (
        "peer",
        "warn",
        &["its host answers", "if that node runs the machine now"],
    );
    expect_good(&scene, 1, &[owner, ("arbiter", "pass", &["`a`"])])?;
    let backup = scene.start_backup(1)?;
    primary.wait_for_state("protected", LIMIT)?;
    let counter = scene.count()?;
    let before = scene.pair.operate(0, &["status", "--json"])?;
    let runs: Expected<'_> = ("machine", "pass", &["runs on this host"]);
    let standby: Expected<'_> = (
        "peer",
        "pass",
        &["stands by at 10.77.0.12:7700 for the primary that runs"],
    );
    expect_good(&scene, 0, &[runs, standby])?;
    expect_good(&scene, 1, &[runs, owner])?;
    // Nothing has changed for the pair.
    counter.wait_for(SOME, LIMIT)?;
    let after = scene.pair.operate(0, &["status", "--json"])?;
    let state = |output: &Output| -> Result<[Value; 4]> {
        let told: Value = serde_json::from_slice(&output.stdout)?;
        Ok(["state", "term", "role", "pid"].map(|key| told[0][key].clone()))
    };
    ensure!(state(&before)? == state(&after)?, "{before:?} {after:?}");
    ensure!(state(&after)?[0] == "protected", "{after:?}");
    let tally = counter.finish()?;
    ensure!(tally.broken == 0 && tally.jumps == 0, "{tally:?}");
    drop(backup);
    Ok(())
}

#[test]
fn what_is_wrong_on_a_host_is_named_with_its_remedy() -> Result<()> {
    let Some(scene) = open("check-config-wrong")? else {
        return Ok(());
    };
    let pair = &scene.pair;
    let backup = scene.start_backup(1)?;
    backup.wait_for_state("standby: starting", LIMIT)?;
    let standby: Expected<'_> = ("peer", "pass", &["node `b` stands by at 10.77.0.12:7700"]);
    expect_good(&scene, 0, &[standby])?;
    let torn = pair.dir().join("torn.snapshot");
    std::fs::write(&torn, &std::fs::read(scene.snapshot())?[..100])?;
    let odd = pair.dir().join("odd.img");
    std::fs::write(&odd, [0; 700])?;
    let cases: [(&'static str, String, Expected<'_>); 14] = [
        (
            "snapshot",
            quoted(&torn),
            ("snapshot", "fail", &["torn.snapshot", "lockstep-primary run --save"]),
        ),
        (
            "disk",
            "[\"/nowhere/a.img\"]".into(),
            ("disk", "fail", &["/nowhere/a.img", "truncate -s"]),
        ),
        (
            "disk",
            format!("[{}]", quoted(&odd)),
            ("disk", "fail", &["odd.img", "raw image"]),
        ),
        (
            "net",
            "[\"tap=none0\"]".into(),
            ("tap", "fail", &["no interface none0", "ip tuntap add none0"]),
        ),
        (
            "listen",
            "\"10.99.0.1:7700\"".into(),
            ("listen", "fail", &["10.99.0.1:7700", "an address of this host"]),
        ),
        (
            "metrics",
            "\"10.99.0.1:9470\"".into(),
            ("metrics", "fail", &["10.99.0.1:9470", "an address of this host"]),
        ),
        (
            "uplink",
            "\"none0\"".into(),
            ("uplink", "fail", &["interface none0", "ip link"]),
        ),
        (
            "api",
            "\"/nowhere/run/vm.sock\"".into(),
            ("api", "fail", &["/nowhere which is missing", "name a socket"]),
        ),
        (
            "api",
            quoted(&odd),
            ("api", "fail", &["odd.img", "no socket", "name a socket"]),
        ),
        (
            "reports",
            quoted(&odd.join("reports")),
            ("reports", "warn", &["odd.img is no directory", "set reports"]),
        ),
        (
            "record",
            quoted(&odd.join("ring")),
            ("record", "fail", &["odd.img is no directory", "can write or make"]),
        ),
        (
            "deadline-ms",
            "100".into(),
            ("timing", "fail", &["deadline", "twice heartbeat-ms"]),
        ),
        (
            "name",
            "\"other\"".into(),
            ("peer", "fail", &["does not fit", "both configurations alike"]),
        ),
        (
            "node",
            "\"c\"".into(),
            ("certificate", "fail", &["c.pem is missing", "pki issue"]),
        ),
    ];
    for (key, value, expected) in cases {
        expect(&scene, 0, &[(key, value)], &[expected])?;
    }
    // A witness that dies with a host of the pair; nobody answers there either.
    let witness: Expected<'_> = ("witness", "fail", &["1 of 1 members", "put etcd on a third machine"]);
    let silent: Expected<'_> = ("arbiter", "fail", &["see that this host reaches it"]);
    for host in 0..2 {
        let url = format!("\"etcd:https://{}:2379\"", pair.network.hosts[host].ip);
        expect(&scene, 0, &[("arbiter", url)], &[witness, silent])?;
    }
    let url = "\"etcd:https://witness.invalid:2379\"".to_owned();
    let unknown: Expected<'_> = (
        "witness",
        "warn",
        &["no address was found for witness.invalid", "/etc/hosts"],
    );
    expect(&scene, 0, &[("arbiter", url)], &[unknown, silent])?;
    // One that ends soon.
    let mut renew = Command::new(program("lockstep-primary")?);
    renew.args(["pki", "renew", "a", "--days", "20", "--dir"]);
    check(renew.arg(pair.dir().join("pki")))?;
    let soon: Expected<'_> = ("certificate", "warn", &["19 more days", "pki renew"]);
    expect(&scene, 0, &[], &[soon, standby])?;
    // A machine of that name belongs to other nodes.
    let primary = scene.start_primary(0)?;
    primary.wait_for_state("protected", LIMIT)?;
    let other: Expected<'_> = ("arbiter", "fail", &["belongs to node `a`", "set node and peer-name"]);
    expect(&scene, 1, &[("peer-name", "\"c\"".into())], &[other])
}

/// A machine's file beside the others, with keys of its own; it lies in `scene`'s directory as `beside.toml`.
fn beside(scene: &Scene, others: &[(&'static str, String)]) -> Result<PathBuf> {
    let own = scene.pair.dir().join("beside.img");
    std::fs::File::create(&own)?.set_len(1 << 20)?;
    let mut keys = keys(scene, 0)?;
    keys.retain(|(key, _)| *key != "snapshot");
    let differs = [
        ("name", "\"other\"".into()),
        ("role", "\"backup\"".into()),
        ("listen", format!("\"{}:{}\"", scene.pair.network.hosts[0].ip, PORT + 1)),
        ("disk", format!("[{}]", quoted(&own))),
    ];
    for (key, value) in differs.into_iter().chain(others.iter().cloned()) {
        keys.retain(|(name, _)| *name != key);
        keys.push((key, value));
    }
    let lines: Vec<String> = keys.iter().map(|(key, value)| format!("{key} = {value}")).collect();
    let path = scene.pair.dir().join("beside.toml");
    std::fs::write(&path, lines.join("\n"))?;
    Ok(path)
}

#[test]
fn equal_addresses_of_two_machines_of_one_host_are_told() -> Result<()> {
    let Some(scene) = open("check-config-addresses")? else {
        return Ok(());
    };
    let snapshot = Restore::open(&scene.snapshot())?;
    let nic = &snapshot.config().context("no machine")?.nics[0];
    let mac = mac_text(nic.mac.as_ref().try_into()?);
    let net = |tap: &str, mac: &str| ("net", format!("[\"tap={tap},mac={mac}\"]"));
    // What lies in the same directory, whether it runs or not.
    beside(&scene, &[net("tap0", &mac)])?;
    let equal: Expected<'_> = ("mac", "fail", &[&mac, "`other`", "beside.toml", "mac= of its own"]);
    expect(&scene, 0, &[], &[equal])?;
    for (key, value) in [net("tap0", "52:00:00:00:00:07"), ("net", "[\"tap=tap0\"]".into())] {
        beside(&scene, &[(key, value)])?;
        expect(&scene, 0, &[], &[("mac", "pass", &[&mac])])?;
    }
    beside(&scene, &[net("tap0", &mac), ("name", "\"pair\"".into())])?;
    expect(&scene, 0, &[], &[("mac", "pass", &[])])?;
    // In a network of its own.
    let host = &scene.pair.network.hosts[0].namespace;
    host.ip(&["link", "add", "apart", "type", "bridge"])?;
    host.ip(&["tuntap", "add", "tap7", "mode", "tap"])?;
    host.ip(&["link", "set", "tap7", "master", "apart"])?;
    let path = beside(&scene, &[net("tap7", &mac)])?;
    expect(
        &scene,
        0,
        &[],
        &[("mac", "warn", &[&mac, "`other`", "in another bridge"])],
    )?;
    // What is on this host, wherever its file is.
    let moved = work_dir("check-config-elsewhere")?.join("elsewhere.toml");
    std::fs::rename(path, &moved)?;
    host.ip(&["link", "set", "tap7", "nomaster"])?;
    let _primary = scene.start_primary(0)?;
    expect(&scene, 1, &[], &[("mac", "pass", &[])])?;
    let run = Run::with(host.command(program("lockstep-backup")?))
        .env("LOCKSTEP_RUN_DIR", &scene.pair.run_dir(0))
        .env("LOCKSTEP_STATE_DIR", &scene.pair.state_dir(0));
    let other = run.args(["--config".into(), moved.into_os_string()]).start()?;
    other
        .messages
        .wait_for(&format!("the card on tap7 has the address {mac}"), LIMIT)?;
    other
        .messages
        .wait_for("of machine `pair`, which is on this host", LIMIT)?;
    expect(
        &scene,
        0,
        &[],
        &[("mac", "fail", &["of machine `other`, which is on this host"])],
    )
}
