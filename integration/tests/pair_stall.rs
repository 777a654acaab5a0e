//! A guest that does not move though something is due: it is told, given to the other node once, and stays there.

use std::fs;

use anyhow::{Context, Result, ensure};
use iced_x86::code_asm::CodeAssembler;
use iced_x86::code_asm::registers::{al, dx};
use lockstep_integration::gate::require_root_net;
use lockstep_integration::http::{body, get_unix};
use lockstep_integration::pair::{Arbiter, LIMIT, Pair, Protected, SOME, Setup, status, stop_vcpu};
use lockstep_integration::prometheus::value;
use lockstep_integration::run::Run;
use lockstep_integration::{tiny, work_dir};
use lockstep_vmm::micro::Body;
use rustix::process::Signal;

const HEARTBEAT: std::time::Duration = std::time::Duration::from_millis(100);
/// Ten of them are a stall.
const DEADLINE: std::time::Duration = std::time::Duration::from_secs(3);

/// What a node that stays with a stalled machine says of it.
fn stays(pair: &Pair, host: usize, reason: &str, stalls: f64) -> Result<()> {
    let socket = pair.socket(host);
    let told = status(&socket)?;
    ensure!(
        told["state"] == "stalled, also after a handover" && told["reason"] == reason,
        "{told}"
    );
    let health = get_unix(&socket, "/healthz")?;
    ensure!(health.contains(" 503 ") && health.contains("does not move"), "{health}");
    let metrics = get_unix(&socket, "/metrics")?;
    let metrics = body(&metrics);
    for (name, labels, wanted) in [
        ("lockstep_state", &["state=\"stalled, also after a handover\""][..], 1.0),
        ("lockstep_state", &["state=\"protected\""], 0.0),
        ("lockstep_stalls_total", &[], stalls),
    ] {
        ensure!(
            value(metrics, name, labels) == Some(wanted),
            "{name} {labels:?}: {metrics}"
        );
    }
    Ok(())
}

/// A debugger holds the thread that runs the guest: it comes by at no kick.
#[test]
fn a_guest_whose_thread_does_not_come_by_goes_to_the_other_node_once() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let Protected {
        counter,
        primary: old,
        backup: new,
        scene,
        ..
    } = Setup::new("stall-silent").auto().open()?;
    let held = stop_vcpu(&old)?;
    old.wait_for_state("stalled (vcpu-silent)", LIMIT)?;
    new.wait_for_state("not-protected (stalled-there) term=2", LIMIT)?;
    // Though its thread hears nothing.
    old.run.messages.wait_for("this one starts over", LIMIT)?;
    new.wait_for_state("protected term=2", LIMIT)?;
    old.wait_for_state("standby: protected", LIMIT)?;
    drop(held);
    counter.wait_for(SOME, LIMIT)?;
    // It stalls there too: there it stays, though the other one is in sync, and neither says that it is protected.
    let held = stop_vcpu(&new)?;
    new.wait_for_state("stalled, also after a handover (vcpu-silent)", LIMIT)?;
    old.wait_for_state("standby: stalled (on-the-other-node)", LIMIT)?;
    stays(&scene.pair, new.host, "vcpu-silent", 2.0)?;
    let check = scene.pair.operate(old.host, &["status", "--check"])?;
    ensure!(check.status.code() == Some(1), "{check:?}");
    drop(held);
    // It moves again.
    new.wait_for_state("protected term=2", LIMIT)?;
    old.wait_for_state("standby: protected", LIMIT)?;
    ensure!(!new.run.messages.text().contains("handing the machine over"));
    Protected::new(scene, new, old, counter)?.settle()
}

/// Sets a timer that no interrupt is let in for, and waits for a typed byte; then it computes for ever.
fn deaf(a: &mut CodeAssembler) -> Body {
    // Both controllers' words, the timer's line open; the timer, every 10 ms.
    for (port, value) in [
        (0x20, 0x11),
        (0x21, 0x20),
        (0x21, 0x04),
        (0x21, 0x01),
        (0x21, 0xfe),
        (0x43, 0x34),
        (0x40, 0x9c),
        (0x40, 0x2e),
    ] {
        a.mov(al, value)?;
        a.out(port, al)?;
    }
    let (mut again, mut ever) = (a.create_label(), a.create_label());
    a.cli()?;
    a.mov(dx, 0x3fd)?;
    a.set_label(&mut again)?;
    a.in_(al, dx)?;
    a.test(al, 1)?;
    a.jz(again)?;
    // What it says next is the last that it does.
    a.mov(dx, 0x3f8)?;
    a.in_(al, dx)?;
    a.out(dx, al)?;
    a.set_label(&mut ever)?;
    a.jmp(ever)
}

/// The thread comes by at every kick, and the guest takes nothing in: so it does on the other node.
#[test]
fn a_guest_that_takes_nothing_in_stalls_on_both_nodes_and_stays_on_the_second() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let dir = work_dir("stall-deaf")?;
    let kernel = dir.join("kernel");
    fs::write(&kernel, tiny::kernel(deaf)?)?;
    let pair = Pair::create(&dir, Arbiter::File, HEARTBEAT, DEADLINE)?;
    let with = |run: Run| run.args(["--memory-mib", "16", "--kernel"]).args([&kernel]);
    let mut old = pair.start_auto(0, with)?;
    old.wait_for_state("not-protected (need-backup)", LIMIT)?;
    let new = pair.start_auto(1, with)?;
    old.wait_for_state("protected", LIMIT)?;
    old.run.type_text("S")?;
    old.run.wait_for("S", LIMIT)?;
    old.wait_for_state("stalled (no-stop)", LIMIT)?;
    new.wait_for_state("not-protected (stalled-there) term=2", LIMIT)?;
    old.run.messages.wait_for("this one starts over", LIMIT)?;
    new.wait_for_state("stalled, also after a handover (no-stop)", LIMIT)?;
    // The other one is back, and cannot get a machine that does not stop.
    old.wait_for_state("standby: syncing", LIMIT)?;
    stays(&pair, 1, "no-stop", 2.0)?;
    ensure!(status(&pair.socket(1))?["term"] == 2);
    ensure!(!new.run.messages.text().contains("handing the machine over"));
    // Its process ends all the same.
    new.run.signal(Signal::HUP)?;
    let outcome = new.run.wait(LIMIT)?;
    ensure!(
        outcome.status.code() == Some(1) && outcome.messages.contains("the machine does not stop"),
        "{outcome:?}"
    );
    old.kill().map(drop).context("the one that stands by")
}
