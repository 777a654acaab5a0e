//! How a machine begins and ends: booted, from a snapshot, from one process to the next; halt, reset, end from outside.

use std::time::Duration;

use anyhow::{Result, ensure};
use lockstep_integration::gate::require_kvm;
use lockstep_integration::verify::summary;
use lockstep_integration::{Booted, Guest, Kind, Run, Verify, work_dir};

const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn a_boot_to_halt_verifies_and_only_its_own_kernel_gives_symbols() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    let dir = work_dir("boot")?;
    let log = dir.join("log");
    let guest = Guest::find()?;
    let words = "lockstep.run=clock lockstep.args=100,5 lockstep.then=halt";
    let run = Run::bare()?.boot(&guest, &guest.general, 64, words).record(&log);
    let outcome = run.complete(2 * LIMIT)?;
    let report = outcome.report()?;
    ensure!(
        outcome.console.contains("LOCKSTEP-EXIT 0"),
        "the clock failed: {}",
        outcome.console
    );
    ensure!(report["ended"] == "the guest halted with interrupts off", "{report}");

    let verify = Verify::run_with(&log, ["--vmlinux".into(), guest.vmlinux.clone()])?;
    let report = verify.identical()?;
    println!("boot: {}", summary(report));
    ensure!(
        report["ending"]
            .as_str()
            .is_some_and(|ending| ending.contains("halted")),
        "{report}"
    );
    ensure!(
        report["final_memory"] == true,
        "all memory is compared at the end: {report}"
    );

    let wrong = Verify::run_with(&log, ["--vmlinux".into(), guest.general])?;
    ensure!(wrong.status.code() == Some(1) && wrong.report.is_none(), "{wrong:?}");
    ensure!(
        wrong.messages.contains("is not the kernel that was recorded"),
        "{}",
        wrong.messages
    );
    Ok(())
}

#[test]
fn a_reboot_ends_the_recording_with_a_reset() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    let dir = work_dir("reboot")?;
    let log = dir.join("log");
    let mut run = Booted::get(Kind::Shell)?.go_on()?.record(&log).start()?;
    run.wait_for("lockstep#", LIMIT)?;
    run.type_text("reboot\n")?;
    let report = run.wait(LIMIT)?.report()?;
    ensure!(report["ended"] == "the guest reset", "{report}");
    let verify = Verify::run(&log)?;
    let report = verify.identical()?;
    println!("reboot: {}", summary(report));
    ensure!(
        report["ending"].as_str().is_some_and(|ending| ending.contains("reset")),
        "{report}"
    );
    Ok(())
}

#[test]
fn a_machine_goes_on_from_process_to_process() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    let dir = work_dir("snapshots")?;
    let (first, second, middle) = (dir.join("first"), dir.join("second"), dir.join("middle.snapshot"));
    let run = Booted::get(Kind::Shell)?
        .go_on()?
        .record(&first)
        .args(["--save".into(), middle.clone()]);
    let mut run = run.start()?;
    run.wait_for("lockstep#", LIMIT)?;
    // Counts on through the change of processes, and looks at the clocks.
    run.type_text(
        "(until [ -s /tmp/clock ]; do sleep 0.1; done; echo UNDER-WAY-$((6 * 7))) & \
         clock 200 60 >/tmp/clock; echo CLOCK-ENDED-$? $(wc -l </tmp/clock)\n",
    )?;
    run.wait_for("UNDER-WAY-42", LIMIT)?;
    let outcome = run.terminate()?;
    ensure!(
        outcome.report()?["ended"] == "ended from outside",
        "{}",
        outcome.messages
    );

    let run = Run::bare()?.restore(&middle).record(&second).start()?;
    run.wait_for("CLOCK-ENDED-0 60", LIMIT)?;
    run.terminate()?.report()?;
    for (name, log) in [("before the change", &first), ("after it", &second)] {
        println!("{name}: {}", summary(Verify::run(log)?.identical()?));
    }
    Ok(())
}
