//! What the nodes of a pair tell Prometheus, and that its alerts fire.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lockstep_integration::gate::{require_program, require_root_net};
use lockstep_integration::http::{body, get, get_unix};
use lockstep_integration::net::inside;
use lockstep_integration::pair::{LIMIT, Pair, SOME, Setup, status};
use lockstep_integration::process::check;
use lockstep_integration::prometheus::{Prometheus, check_metrics, dashboard, rules, value};
use lockstep_integration::work_dir;

/// Where each host serves its metrics.
const ADDRESSES: [&str; 2] = ["10.77.0.11:9470", "10.77.0.12:9470"];

fn has_prometheus() -> bool {
    require_program("promtool", "prometheus") && require_program("prometheus", "prometheus")
}

fn setup(name: &str) -> Setup {
    Setup::new(name)
        .arguments(0, &["--metrics", ADDRESSES[0]])
        .arguments(1, &["--metrics", ADDRESSES[1]])
}

/// What `host` answers to someone else on its network.
fn answer(pair: &Pair, host: usize, path: &str) -> Result<String> {
    let address: SocketAddr = ADDRESSES[host].parse()?;
    inside(pair.network.client.name(), || get(address, path))
}

fn scrape(pair: &Pair, host: usize) -> Result<String> {
    let answer = answer(pair, host, "/metrics")?;
    ensure!(answer.starts_with("HTTP/1.0 200 "), "{answer}");
    Ok(body(&answer).to_owned())
}

fn number(text: &str, name: &str, labels: &[&str]) -> Result<f64> {
    value(text, name, labels).with_context(|| format!("no {name} {labels:?} in:\n{text}"))
}

/// Whether a gauge is not 0.
fn holds(text: &str, name: &str, labels: &[&str]) -> Result<bool> {
    Ok(number(text, name, labels)? > 0.0)
}

/// Names of the metrics in a scrape, or in the rules' expressions.
fn names(text: &str) -> BTreeSet<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c| !is_name(c));
    words
        .filter(|word| word.starts_with("lockstep_"))
        .map(str::to_owned)
        .collect()
}

/// The dashboard, and the queries of its panels as Grafana sends them.
fn panels() -> Result<(serde_json::Value, Vec<String>)> {
    let dashboard: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(dashboard())?)?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let targets = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let queries = targets.map(|target| Ok(as_sent(target["expr"].as_str().context("no expression")?)));
    let queries = queries.collect::<Result<_>>()?;
    Ok((dashboard, queries))
}

/// With Grafana's variables replaced: all machines, and a minute.
fn as_sent(expression: &str) -> String {
    let minute = expression.replace("$__rate_interval", "1m").replace("$__range", "1m");
    minute.replace("$machine", ".*")
}

/// The rules' text with no patience.
fn hasty_rules() -> Result<String> {
    let text = std::fs::read_to_string(rules())?;
    let lines = text.lines().map(|line| match line.split_once("for: ") {
        Some((indent, _)) if indent.trim().is_empty() => format!("{indent}for: 1s"),
        _ => line.to_owned(),
    });
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

/// No alert fires, but the one of a machine that goes on from a snapshot: its calendar is that of the time when it was taken.
fn none(firing: &[&str]) -> bool {
    firing.iter().all(|name| *name == "LockstepClockWrong")
}

#[test]
fn the_rules_are_rules_and_do_what_their_tests_say() -> Result<()> {
    if !has_prometheus() {
        return Ok(());
    }
    let rules = rules();
    check(Command::new("promtool").args(["check", "rules"]).arg(&rules))?;
    check(
        Command::new("promtool")
            .args(["test", "rules"])
            .arg(rules.with_extension("test.yml")),
    )
    .map(drop)
}

#[test]
fn every_metric_and_alert_is_documented() -> Result<()> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let docs = std::fs::read_to_string(docs)?;
    let rules = std::fs::read_to_string(rules())? + &panels()?.1.join("\n");
    let alerts = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    for name in names(&rules).iter().map(String::as_str).chain(alerts) {
        // A histogram's are three.
        let base = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| name.strip_suffix(end));
        let is_told = |name: &str| docs.contains(&format!("`{name}`"));
        ensure!(
            is_told(name) || base.is_some_and(is_told),
            "{name} is not in docs/metrics.md"
        );
    }
    Ok(())
}

/// What Grafana would show otherwise than it is meant, without a word.
#[test]
fn the_dashboards_panels_have_a_place_each_and_say_what_they_show() -> Result<()> {
    let (dashboard, queries) = panels()?;
    let (mut ids, mut cells) = (BTreeSet::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().context("no panels")? {
        ensure!(
            ids.insert(panel["id"].as_u64().context("no id")?),
            "two have an id: {panel}"
        );
        ensure!(
            panel["title"].as_str() > Some("") && panel["datasource"]["uid"] == "${datasource}",
            "{panel}"
        );
        let at = |name: &str| panel["gridPos"][name].as_u64().context("no place");
        for (x, y) in (0..at("w")?).flat_map(|x| (0..10).map(move |y| (x, y))) {
            let (column, row) = (at("x")? + x, at("y")? + y);
            ensure!(
                y >= at("h")? || column < 24 && cells.insert((column, row)),
                "no room: {panel}"
            );
        }
    }
    ensure!(
        queries.len() >= ids.len() && queries.iter().all(|query| !query.contains('$')),
        "{queries:?}"
    );
    Ok(())
}

#[test]
fn both_nodes_tell_what_the_rules_ask_for() -> Result<()> {
    if !require_root_net() || !has_prometheus() {
        return Ok(());
    }
    let pair = setup("metrics-scrape").open()?;
    let hosts = &pair.scene.pair;
    let docs = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md"))?;
    let wanted = names(&std::fs::read_to_string(rules())?);
    for (host, role) in [(0, "primary"), (1, "backup")] {
        let text = scrape(hosts, host)?;
        check_metrics(&text)?;
        let told = names(&text);
        let missing: Vec<_> = wanted.difference(&told).collect();
        ensure!(
            missing.is_empty(),
            "the rules name {missing:?}, which host {host} does not tell:\n{text}"
        );
        for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let name = line.split(' ').next().unwrap_or_default();
            ensure!(docs.contains(&format!("`{name}`")), "{name} is not in docs/metrics.md");
        }
        for (name, labels) in [
            ("lockstep_state", &["state=\"protected\"", "machine=\"pair\""][..]),
            ("lockstep_role", &[&format!("role=\"{role}\"")]),
            ("lockstep_recording_state", &["state=\"off\""]),
            ("lockstep_build_info", &["version="]),
            ("lockstep_term", &[]),
            ("lockstep_peer_connected", &[]),
        ] {
            ensure!(holds(&text, name, labels)?, "{name} {labels:?}:\n{text}");
        }
        ensure!(number(&text, "lockstep_certificate_expiry_timestamp_seconds", &[])? > 1.7e9);
        let healthy = answer(hosts, host, "/healthz?protected")?;
        ensure!(healthy.starts_with("HTTP/1.0 200 "), "{healthy}");
        ensure!(answer(hosts, host, "/v1/status")?.starts_with("HTTP/1.0 404 "));
        // The socket says the same.
        let socket = get_unix(&hosts.socket(host), "/metrics")?;
        ensure!(names(body(&socket)) == told, "{socket}");
    }
    // What is counted grows with what the client does.
    let before = scrape(hosts, 0)?;
    pair.counter.wait_for(SOME, LIMIT)?;
    let after = scrape(hosts, 0)?;
    check_metrics(&after)?;
    for (name, labels) in [
        ("lockstep_stops_total", &[][..]),
        ("lockstep_guest_seconds_total", &[]),
        ("lockstep_log_bytes_total", &[]),
        ("lockstep_output_bytes_total", &[]),
        ("lockstep_run_seconds_total", &["by=\"executed\""]),
        ("lockstep_output_held_seconds_count", &[]),
        ("lockstep_output_held_seconds_sum", &[]),
        ("lockstep_exit_seconds_count", &["kind=\"mmio\""]),
        ("lockstep_exit_seconds_sum", &["kind=\"mmio\""]),
    ] {
        let (before, after) = (number(&before, name, labels)?, number(&after, name, labels)?);
        ensure!(after > before, "{name} {labels:?}: {before}, then {after}");
    }
    pair.settle()
}

#[test]
fn the_death_of_a_backup_fires_the_alerts() -> Result<()> {
    if !require_root_net() || !has_prometheus() {
        return Ok(());
    }
    let pair = setup("metrics-alerts").open()?;
    let directory = work_dir("metrics-prometheus")?;
    let targets = [ADDRESSES[0].parse()?, ADDRESSES[1].parse()?];
    let client = &pair.scene.pair.network.client;
    let mut prometheus = Prometheus::start(client, &directory, &targets, &hasty_rules()?)?;
    prometheus.wait_for_targets(2, LIMIT)?;
    prometheus.wait_for_alerts(LIMIT, none)?;
    // Every panel of the dashboard shows something of a pair that has clients; its marks only where something went wrong.
    let (dashboard, queries) = panels()?;
    for query in queries {
        prometheus.wait_for_results(&query, LIMIT, false)?;
    }
    for mark in dashboard["annotations"]["list"].as_array().context("no marks")? {
        let query = as_sent(mark["expr"].as_str().context("no expression")?);
        prometheus.wait_for_results(&query, LIMIT, true)?;
    }
    let alone = pair.kill_backup()?;
    let text = scrape(&alone.scene.pair, 0)?;
    ensure!(holds(&text, "lockstep_state", &["state=\"not-protected\""])?, "{text}");
    ensure!(!holds(&text, "lockstep_state", &["state=\"protected\""])?, "{text}");
    // The process is fine; the machine is not protected.
    for (path, code) in [("/healthz", 200), ("/healthz?protected", 503)] {
        let told = answer(&alone.scene.pair, 0, path)?;
        ensure!(told.starts_with(&format!("HTTP/1.0 {code} ")), "{path}: {told}");
    }
    prometheus.wait_for_alerts(LIMIT, |firing| {
        ["LockstepNotProtected", "LockstepDown"]
            .iter()
            .all(|name| firing.contains(name))
    })?;
    let pair = alone.protect()?;
    prometheus.wait_for_alerts(LIMIT, none)?;
    drop(prometheus);
    pair.settle()
}

/// Waits until this gauge of `host` is not 0.
fn wait_for(pair: &Pair, host: usize, name: &str, labels: &[&str]) -> Result<()> {
    let begin = Instant::now();
    loop {
        let text = scrape(pair, host)?;
        if holds(&text, name, labels)? {
            return Ok(());
        }
        ensure!(begin.elapsed() < LIMIT, "{name} {labels:?}:\n{text}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_recording_that_cannot_be_kept_stops_and_the_machine_goes_on() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let directory = work_dir("metrics-recording-log")?.join("log");
    let place = directory.display().to_string();
    let mut scene = setup("metrics-recording").arguments(0, &["--record", &place]).build()?;
    let mib = std::fs::metadata(scene.snapshot())?.len().div_ceil(1 << 20) + 64;
    let small = format!("mkdir -p {place}; mount -t tmpfs -o size={mib}m none {place}");
    scene.pair.prepare(0, small);
    let pair = scene.open()?;
    let hosts = &pair.scene.pair;
    let before = scrape(hosts, 0)?;
    ensure!(
        holds(&before, "lockstep_recording_state", &["state=\"on\""])?,
        "{before}"
    );
    ensure!(number(&before, "lockstep_recording_bytes", &[])? > 0.0, "{before}");
    // The file system is in the program's own mounts.
    let inside = format!("/proc/{}/root{place}/filler", pair.primary.run.pid());
    let full = std::io::copy(&mut std::io::repeat(0), &mut std::fs::File::create(inside)?);
    ensure!(full.is_err_and(|error| error.kind() == std::io::ErrorKind::StorageFull));
    wait_for(hosts, 0, "lockstep_recording_state", &["state=\"stopped\""])?;
    let told = status(&hosts.socket(0))?;
    let reason = told["recording"]["reason"].as_str().unwrap_or_default();
    ensure!(
        told["recording"]["state"] == "stopped" && reason.contains("No space left"),
        "{told}"
    );
    ensure!(told["state"] == "protected", "{told}");
    pair.settle()
}
