//! The debugger's screen, as a person uses it: in a terminal, with keys.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lockstep_integration::gate::{require_kvm, require_program};
use lockstep_integration::paths::program;
use lockstep_integration::screen::Screen;
use lockstep_integration::{Booted, Debug, Kind, work_dir};

const LIMIT: Duration = Duration::from_secs(120);

/// RIP as the screen shows it, once the machine has arrived at a stop.
fn rip_at(screen: &Screen, stop: u64) -> Result<String> {
    let title = format!("stop {stop}, ");
    let text = screen.wait(LIMIT, |text| {
        text.contains(&title) && !text.contains("not at the cursor")
    })?;
    let line = text.lines().find_map(|line| line.split(" rip ").nth(1));
    let rip = line.and_then(|rest| rest.split_whitespace().next());
    Ok(rip.context("no RIP on the screen")?.to_owned())
}

fn go(screen: &Screen, position: &str) -> Result<()> {
    screen.type_text("g")?;
    screen.type_text(position)?;
    screen.press("Enter")
}

#[test]
fn a_person_walks_through_a_recording() -> Result<()> {
    if !require_kvm() || !require_program("tmux", "tmux") {
        return Ok(());
    }
    let work = work_dir("tui")?;
    let (log, status) = (work.join("log"), work.join("status"));
    let mut run = Booted::get(Kind::Shell)?.go_on()?.record(&log).start()?;
    run.wait_for("lockstep#", LIMIT)?;
    for number in 0..4 {
        run.type_text(&format!("echo LINE $(({number} + 10))\n"))?;
        run.wait_for(&format!("\nLINE {}", number + 10), LIMIT)?;
    }
    run.terminate()?;
    let path = log.to_str().context("path")?;
    let typed = Debug::run(["events", path, "--kind", "console", "--json"])?.json_lines()?;
    let stop_of = |event: &serde_json::Value| event["stop"].as_u64().context("stop");
    // The second line is typed here; the first has been printed, the last has not.
    let middle = stop_of(&typed[1])?;
    let shown = |position: &str| -> Result<(u64, String)> {
        let shown = Debug::run(["show", path, "--json", "--at", position])?.json()?;
        let rip = shown["registers"]["rip"].as_str().context("rip")?.to_owned();
        Ok((stop_of(&shown)?, format!("{:0>16}", rip.trim_start_matches("0x"))))
    };
    let arrives = |screen: &Screen, stop: u64| -> Result<()> {
        let (there, rip) = (rip_at(screen, stop)?, shown(&stop.to_string())?.1);
        ensure!(
            there == rip,
            "RIP at stop {stop} is {there} on the screen and {rip} for `show`"
        );
        Ok(())
    };
    let command = format!(
        "{} tui {path} 2>{}; echo $? >{}",
        program("lockstep-debug")?.display(),
        work.join("messages").display(),
        status.display()
    );
    let screen = Screen::start("tui", (140, 45), &command)?;
    screen.wait(LIMIT, |text| text.contains("reached in"))?;

    go(&screen, "end")?;
    arrives(&screen, shown("end")?.0)?;
    let text = screen.text()?;
    ensure!(text.contains("LINE 13"), "{text}");

    // Backwards: the console is what it was then.
    go(&screen, &middle.to_string())?;
    arrives(&screen, middle)?;
    let text = screen.text()?;
    ensure!(text.contains("LINE 10") && !text.contains("LINE 13"), "{text}");

    screen.press("Right")?;
    arrives(&screen, middle + 1)?;
    screen.press("Home")?;
    screen.type_text("/console \"")?;
    screen.press("Enter")?;
    let first = stop_of(&typed[0])?;
    rip_at(&screen, first)?;
    screen.type_text("n")?;
    rip_at(&screen, middle)?;
    screen.type_text("N")?;
    rip_at(&screen, first)?;

    go(&screen, "nowhere")?;
    screen.wait(LIMIT, |text| text.contains("a position is a stop"))?;
    screen.type_text("/(")?;
    screen.press("Enter")?;
    screen.wait(LIMIT, |text| text.contains("unclosed group"))?;
    screen.type_text("?")?;
    screen.wait(LIMIT, |text| text.contains("previous match"))?;
    screen.press("Escape")?;
    // However small it is, it is a screen.
    for size in [(20, 6), (3, 2), (140, 45)] {
        screen.resize(size.0, size.1)?;
        screen.press("Down")?;
    }
    screen.wait(LIMIT, |text| text.contains("turns") && !text.contains("previous match"))?;
    screen.type_text("q")?;
    ensure!(
        screen.wait_for_file(&status, LIMIT)? == "0\n",
        "{:?}",
        std::fs::read_to_string(work.join("messages"))
    );
    // A vmlinux that is not the guest's gives no symbols, and says why.
    let other = format!(
        "{} tui {path} --vmlinux /bin/true",
        program("lockstep-debug")?.display()
    );
    let screen = Screen::start("tui-other", (140, 45), &other)?;
    screen.wait(LIMIT, |text| text.contains("no symbols: /bin/true"))?;
    Ok(())
}

#[test]
fn without_a_terminal_there_is_no_screen() -> Result<()> {
    let refused = Debug::run(["tui", "/nowhere"])?;
    ensure!(
        refused.status.code() == Some(1) && refused.messages.contains("terminal"),
        "{refused:?}"
    );
    Ok(())
}
