//! What `deploy` has for operators, from hosts with nothing but Debian to the end of a machine, on three hosts in containers:
//! real systemd, sshd and etcd, and one client's connection all the while.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lockstep_integration::disk::make_ext4;
use lockstep_integration::gate::require_hosts;
use lockstep_integration::hosts::{Controller, Host, Site, current_package, older_package};
use lockstep_integration::http::get;
use lockstep_integration::load::redis_cli;
use lockstep_integration::net::inside;
use lockstep_integration::pair::{Counter, LIMIT, SOME};
use lockstep_integration::paths::program;
use lockstep_integration::run::WORDS;
use lockstep_integration::snapshot::BOOT_LIMIT;
use lockstep_integration::{Guest, work_dir};
use serde_json::{Value, json};

/// Hosts by which Ansible reaches them; the pair's talk to each other there too.
const A: &str = "10.78.0.11";
const B: &str = "10.78.0.12";
/// Where the host that takes b's place is reached; it has b's address too.
const NEW_B: &str = "10.78.0.22";
const WITNESS: &str = "10.78.0.9";
const MACHINE: &str = "vm";
const MAC: &str = "52:4c:53:00:00:01";
/// Where a host serves its metrics, in one setting for both.
const METRICS: &str = "{{ ansible_host }}:9470";
const ALL: [&str; 3] = ["a", "b", "w"];
/// From an answer to the client's next request: playbooks take minutes, and the other tests run beside them.
const PAUSE: Duration = Duration::from_secs(1);
/// From one look to the next.
const LOOK: Duration = Duration::from_millis(200);

/// What an operator writes.
fn inventory(dir: &Path, package: &Path, change: &Value) -> Result<Value> {
    let guest = Guest::find()?;
    let mut machine = json!({
        "name": MACHINE,
        "kernel": guest.vmlinux,
        "initrd": dir.join("initrd.cpio"),
        "cmdline": format!("{WORDS} lockstep.run=redis lockstep.ip=10.77.0.2/24"),
        "memory_mib": 128,
        "disks": [{"file": "disk.img", "source": dir.join("disk.img")}],
        "nics": [{"bridge": "br0", "mac": MAC}],
        // Two busy cores stand still for a second now and then.
        "settings": {"heartbeat-ms": 100, "deadline-ms": 3000, "metrics": METRICS},
    });
    let shared = json!({
        "lockstep_package": package,
        "lockstep_pki_dir": dir.join("pki"),
        "lockstep_pki_program": program("lockstep-primary")?,
        // Containers may set what is their network's alone.
        "lockstep_sysctl": {"net.ipv4.conf.all.arp_notify": 1},
        "lockstep_bridges": [{"name": "br0", "interface": "lan"}],
    });
    for (key, value) in change.as_object().into_iter().flatten() {
        machine[key] = value.clone();
    }
    let mut inventory = json!({"all": {"vars": shared}});
    inventory["all"]["vars"]["lockstep_machines"] = json!([machine]);
    inventory["all"]["children"] = json!({
        "lockstep_witness": {"hosts": {"w": {"ansible_host": WITNESS}}},
        "lockstep_nodes": {"hosts": {
            "a": {"ansible_host": A},
            "b": {"ansible_host": B, "lockstep_address": B},
        }},
    });
    Ok(inventory)
}

/// The hosts' addresses, the one that runs the machine first.
fn parts(controller: &Controller<'_>, b: &'static str) -> Result<[&'static str; 2]> {
    let state = |address| -> Result<String> {
        let status = controller.status(address, MACHINE)?;
        ensure!(status["state"] == "protected", "at {address}: {status}");
        Ok(status["role"].as_str().unwrap_or_default().to_owned())
    };
    match (&*state(A)?, &*state(b)?) {
        ("primary", "backup") => Ok([A, b]),
        ("backup", "primary") => Ok([b, A]),
        other => anyhow::bail!("the hosts' parts are {other:?}"),
    }
}

/// A client of a machine that boots; while it does, nobody answers, or a Redis that reads its disk yet.
fn count(site: &Site, key: &str) -> Result<Counter> {
    let begin = Instant::now();
    loop {
        let answer = redis_cli(&site.client, &["ping"]);
        if answer.as_ref().is_ok_and(|answer| answer == "PONG") {
            break;
        }
        ensure!(
            begin.elapsed() < BOOT_LIMIT,
            "the guest's Redis does not answer: {answer:?}"
        );
        std::thread::sleep(LOOK);
    }
    let counter = Counter::start(&site.client, key, PAUSE)?;
    counter.wait_for(SOME, LIMIT)?;
    Ok(counter)
}

/// The machine's processes: at a, and at b by that address.
fn pids(controller: &Controller<'_>, b: &str) -> Result<[Value; 2]> {
    let pid = |address: &str| -> Result<Value> { Ok(controller.status(address, MACHINE)?["pid"].clone()) };
    Ok([pid(A)?, pid(b)?])
}

/// All is as the inventory says: a playbook changes nothing, and neither foretells that it would.
fn check_settled(controller: &Controller<'_>) -> Result<()> {
    let before = pids(controller, B)?;
    let looks: [&[&str]; 2] = [&[], &["--check"]];
    for words in looks {
        controller.play("site.yml", words)?.check_unchanged(&ALL)?;
    }
    let after = pids(controller, B)?;
    ensure!(after == before, "{before:?} {after:?}");
    Ok(())
}

/// Brings a change to both processes, one after the other; the machine goes on.
fn apply(controller: &Controller<'_>, counter: &Counter) -> Result<()> {
    let before = pids(controller, B)?;
    controller.play("site.yml", &[])?;
    let after = pids(controller, B)?;
    ensure!(before[0] != after[0] && before[1] != after[1], "{before:?} {after:?}");
    parts(controller, B)?;
    counter.wait_for(SOME, LIMIT)
}

/// A host tells Prometheus what its node is.
fn check_metrics(site: &Site, address: &str) -> Result<()> {
    let place: SocketAddr = format!("{address}:9470").parse()?;
    let answer = inside(site.controller.name(), || get(place, "/metrics"))?;
    ensure!(
        answer.starts_with("HTTP/1.0 200 ") && answer.contains("\nlockstep_state{"),
        "{answer}"
    );
    Ok(())
}

/// Shuts the machine down, and waits until no host has a process of it.
fn shut_down(controller: &Controller<'_>, hosts: [&str; 2]) -> Result<()> {
    let output = controller.ask(hosts[0], &["lockstep-backup", "shutdown", MACHINE])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let begin = Instant::now();
    for host in hosts {
        let unit = format!("lockstep@{MACHINE}");
        while controller.ask(host, &["systemctl", "is-active", &unit])?.stdout != b"inactive\n" {
            ensure!(begin.elapsed() < LIMIT, "at {host} its process does not end");
            std::thread::sleep(LOOK);
        }
    }
    Ok(())
}

/// Types a command on a host; it has to fail and say `why`.
fn refused(controller: &Controller<'_>, address: &str, words: &[&str], why: &str) -> Result<()> {
    let output = controller.ask(address, words)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && said.contains(why), "{words:?}: {said}");
    Ok(())
}

#[test]
fn playbooks_make_a_pair_and_keep_its_machine_running_through_all_that_follows() -> Result<()> {
    if !require_hosts() {
        return Ok(());
    }
    let dir = work_dir("ansible")?;
    let (older, older_version) = older_package()?;
    let (package, version) = current_package()?;
    make_ext4(&dir.join("disk.img"), 32)?;
    let initrd = dir.join("initrd.cpio");
    std::fs::copy(Guest::find()?.redis, &initrd)?;

    let site = Site::create()?;
    let controller = Controller::create(&site.controller, &dir)?;
    let host = |name: &str, addresses: &[&str], place: &str| -> Result<Host> {
        let mut host = site.host(name, addresses, &dir.join(place), &controller.key())?;
        host.power_on()?;
        Ok(host)
    };
    let _witness = host("w", &[WITNESS], "w")?;
    let mut first = host("a", &[A], "a")?;
    let mut second = host("b", &[B], "b")?;
    let older_inventory = inventory(&dir, &older, &json!({}))?;
    controller.set_inventory(&older_inventory)?;

    // Nothing is done to a new host that is only looked at, nor with an interface that is in use.
    let foretold = controller.play("site.yml", &["--check"])?;
    ensure!(foretold.changed("a")? > 0, "{foretold:?}");
    refused(&controller, A, &["ls", "/etc/lockstep"], "No such file")?;
    let taken = r#"{"lockstep_bridges": [{"name": "br9", "interface": "uplink"}]}"#;
    controller.refused(
        "site.yml",
        &["--extra-vars", taken],
        "uplink cannot become a port of br9",
    )?;

    controller.play("site.yml", &["--diff"])?;
    let [live, _] = parts(&controller, B)?;
    ensure!(controller.status(live, MACHINE)?["version"] == *older_version);
    // The machine is of the older revision, which has no keyboard.
    let shutdown = ["lockstep-backup", "shutdown", MACHINE];
    refused(&controller, live, &shutdown, "keyboard")?;
    let counter = count(&site, "counter")?;
    check_settled(&controller)?;
    for host in [A, B] {
        check_metrics(&site, host)?;
    }
    let several = r#"{"lockstep_machines": [{"name": "x"}, {"name": "y"}]}"#;
    controller.refused(
        "test-failover.yml",
        &["--extra-vars", several],
        "Name the machine, -e lockstep_machine=NAME, one of x, y",
    )?;

    // A drill; what the roles made stays as it is, though the hosts' parts have changed.
    let report = dir.join("report.json");
    let words = format!("lockstep_report={}", report.display());
    controller.play("test-failover.yml", &["--extra-vars", &words])?;
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&report)?)?;
    println!("{report}");
    let silence = report["silence_ms"].as_str().and_then(|text| text.parse::<u64>().ok());
    ensure!(silence.is_some(), "{report}");
    let [now, _] = parts(&controller, B)?;
    ensure!(now != live && report["term_after"] == "2", "{report}");
    ensure!(report["live"] == controller.status(now, MACHINE)?["node"], "{report}");
    counter.wait_for(SOME, LIMIT)?;
    check_settled(&controller)?;

    controller.play("switchover.yml", &[])?;
    ensure!(parts(&controller, B)?[0] == live);
    counter.wait_for(SOME, LIMIT)?;

    // Every certificate is one that ends soon; nobody has to start again for new ones.
    let renewed = controller.play("site.yml", &["--extra-vars", "lockstep_pki_renew_days=400"])?;
    for host in ALL {
        ensure!(renewed.changed(host)? > 0, "{renewed:?}");
    }
    ensure!(parts(&controller, B)?[0] == live);

    // A setting reaches both processes; one that they have to agree on is refused while they run.
    let settings = json!({"heartbeat-ms": 100, "deadline-ms": 3000, "metrics": METRICS, "epoch-ms": 12});
    let changed = json!({"settings": settings});
    controller.set_inventory(&inventory(&dir, &older, &changed)?)?;
    apply(&controller, &counter)?;
    for [bridge, mac] in [["br0", "52:4c:53:00:00:02"], ["br1", MAC]] {
        let fixed = json!({"settings": settings, "nics": [{"bridge": bridge, "mac": mac}]});
        controller.set_inventory(&inventory(&dir, &older, &fixed)?)?;
        controller.refused("site.yml", &[], "can change only while the machine is shut down")?;
        parts(&controller, B)?;
    }
    // So does another initrd under the old one's name; Linux passes over zeroes at its end.
    controller.set_inventory(&inventory(&dir, &older, &changed)?)?;
    OpenOptions::new().append(true).open(&initrd)?.write_all(&[0; 512])?;
    apply(&controller, &counter)?;

    // Other programs, with a newer revision of the device model; the machine keeps its own.
    controller.set_inventory(&inventory(&dir, &package, &changed)?)?;
    controller.play("rolling-upgrade.yml", &[])?;
    let [live, _] = parts(&controller, B)?;
    for host in [A, B] {
        ensure!(controller.status(host, MACHINE)?["version"] == *version);
    }
    refused(&controller, live, &shutdown, "keyboard")?;
    counter.wait_for(SOME, LIMIT)?;

    // A host is lost, the one that runs the machine if that is b, and another one takes its place.
    if live == A {
        controller.play("switchover.yml", &["--extra-vars", "lockstep_to=b"])?;
        ensure!(parts(&controller, B)?[0] == B);
    }
    second.power_off();
    drop(second);
    counter.wait_for(SOME, LIMIT)?;
    let mut second = host("b", &[B, NEW_B], "b2")?;
    let mut replaced = inventory(&dir, &package, &changed)?;
    replaced["all"]["children"]["lockstep_nodes"]["hosts"]["b"]["ansible_host"] = NEW_B.into();
    controller.set_inventory(&replaced)?;
    let new = ["--extra-vars", "lockstep_new_host=b"];
    controller.refused("replace-host.yml", &new, "power the lost one off")?;
    let sure = [&new[..], &["--extra-vars", "lockstep_lost_host_is_off=true"]].concat();
    let other = format!("lockstep_package={}", older.display());
    controller.refused(
        "replace-host.yml",
        &[&sure[..], &["--extra-vars", other.as_str()]].concat(),
        "the new host would get other programs",
    )?;
    controller.play("replace-host.yml", &sure)?;
    ensure!(parts(&controller, NEW_B)? == [A, NEW_B]);
    check_metrics(&site, NEW_B)?;
    counter.wait_for(SOME, LIMIT)?;

    // Both lose their power. What is acknowledged from now on is on the guest's disk before.
    ensure!(redis_cli(&site.client, &["config", "set", "appendfsync", "always"])? == "OK");
    counter.wait_for(SOME, LIMIT)?;
    ensure!(!counter.has_ended());
    first.power_off();
    second.power_off();
    first.power_on()?;
    second.power_on()?;
    for host in [A, NEW_B] {
        let wait = [
            "lockstep-backup",
            "wait",
            MACHINE,
            "--for",
            "protected",
            "--timeout",
            "240",
        ];
        let output = controller.ask(host, &wait)?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    // Until here the client had one connection.
    let tally = counter.finish()?;
    println!("{tally:?}");
    ensure!(tally.last == tally.acknowledged && tally.jumps == 0, "{tally:?}");
    let again = count(&site, "again")?;
    let value: u64 = redis_cli(&site.client, &["get", "counter"])?
        .parse()
        .context("no counter")?;
    // The request that was under way may have been carried out.
    ensure!((tally.last..=tally.last + 1).contains(&value), "{value}: {tally:?}");
    controller.play("site.yml", &[])?.check_unchanged(&ALL)?;
    let tally = again.finish()?;
    ensure!(tally.broken == 0 && tally.last == tally.acknowledged, "{tally:?}");

    // Booted anew it has the newer revision, and its guest shuts down. Then its tap device can become another one.
    shut_down(&controller, parts(&controller, NEW_B)?)?;
    let nics = json!([{"bridge": "br0", "mac": MAC, "tap": "other0"}]);
    replaced["all"]["vars"]["lockstep_machines"][0]["nics"] = nics;
    controller.set_inventory(&replaced)?;
    controller.play("site.yml", &[])?;
    for host in [A, NEW_B] {
        refused(
            &controller,
            host,
            &["ip", "link", "show", "dev", "vm0"],
            "does not exist",
        )?;
    }
    let tally = count(&site, "third")?.finish()?;
    ensure!(tally.broken == 0 && tally.last == tally.acknowledged, "{tally:?}");
    controller.play("site.yml", &[])?.check_unchanged(&ALL)?;

    // It goes for good, and its guest shuts down again.
    controller.refused("remove.yml", &[], "lockstep_confirm_remove")?;
    parts(&controller, NEW_B)?;
    let sure = ["--extra-vars", "lockstep_confirm_remove=vm lockstep_remove_disks=true"];
    controller.play("remove.yml", &sure)?;
    for host in [A, NEW_B] {
        refused(&controller, host, &["ls", "/var/lib/lockstep/vm"], "No such file")?;
        refused(&controller, host, &["ls", "/etc/lockstep/vm.toml"], "No such file")?;
        refused(
            &controller,
            host,
            &["ip", "link", "show", "dev", "other0"],
            "does not exist",
        )?;
        let unit = "/etc/systemd/system/lockstep-tap-vm.service";
        refused(&controller, host, &["ls", unit], "No such file")?;
    }
    controller.play("remove.yml", &sure)?.check_unchanged(&["a", "b"])?;
    ensure!(!controller.has_said("PRIVATE KEY")?, "a key is in what Ansible said");
    Ok(())
}
