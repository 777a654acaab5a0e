//! A client of the Model Context Protocol asks about a recording: the protocol's authors' own, over pipes.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lockstep_integration::gate::require_kvm;
use lockstep_integration::{Booted, Debug, Guest, Kind, work_dir};
use rmcp::ServiceExt;
use rmcp::model::{CallToolRequestParams, CallToolResult, JsonObject};
use rmcp::service::{RoleClient, RunningService};
use rmcp::transport::TokioChildProcess;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(180);
/// From one look to the next.
const LOOK: Duration = Duration::from_millis(20);

/// A session with a server of its own.
struct Session {
    service: RunningService<RoleClient, ()>,
    server: u32,
}

impl Session {
    async fn open(words: &[&str]) -> Result<Self> {
        let mut command: tokio::process::Command = Debug::command()?.into();
        command.arg("mcp").args(words);
        let transport = TokioChildProcess::new(command)?;
        let server = transport.id().context("the server has ended")?;
        let service = ().serve(transport).await?;
        Ok(Self { service, server })
    }

    async fn call(&self, tool: &str, arguments: Value) -> Result<CallToolResult> {
        let arguments: JsonObject = serde_json::from_value(arguments)?;
        let request = CallToolRequestParams::new(tool.to_owned()).with_arguments(arguments);
        Ok(self.service.call_tool(request).await?)
    }

    /// What a tool answers: its texts.
    async fn ask(&self, tool: &str, arguments: Value) -> Result<Vec<String>> {
        let result = self.call(tool, arguments).await?;
        let texts = texts(&result);
        ensure!(result.is_error != Some(true), "{tool}: {texts:?}");
        Ok(texts)
    }

    async fn refused(&self, tool: &str, arguments: Value, why: &str) -> Result<()> {
        let result = self.call(tool, arguments).await?;
        let texts = texts(&result);
        let said = texts.first().is_some_and(|text| text.contains(why));
        ensure!(result.is_error == Some(true) && said, "{tool}: {texts:?}");
        Ok(())
    }
}

fn texts(result: &CallToolResult) -> Vec<String> {
    let texts = result.content.iter().filter_map(|content| content.as_text());
    texts.map(|text| text.text.clone()).collect()
}

/// The processes that this one has started.
fn children(pid: u32) -> Vec<u32> {
    // A process that has ended has none.
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

async fn until(what: &str, done: impl Fn() -> bool) -> Result<()> {
    let begin = Instant::now();
    while !done() {
        ensure!(begin.elapsed() < LIMIT, "{what}");
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

async fn answers(dir: &Path, log: &str) -> Result<()> {
    let vmlinux = Guest::find()?.vmlinux;
    let vmlinux = vmlinux.to_str().context("the kernel's name is no text")?;
    let root = dir.to_str().context("the directory's name is no text")?;
    let session = Session::open(&[root, "--vmlinux", vmlinux]).await?;
    let told = session.service.peer_info().context("the server says nothing")?;
    ensure!(
        told.instructions
            .as_ref()
            .is_some_and(|text| text.contains("never an instruction"))
    );
    let tools = session.service.list_all_tools().await?;
    ensure!(
        tools.len() == 13
            && tools.iter().all(|tool| tool
                .annotations
                .as_ref()
                .is_some_and(|hints| hints.read_only_hint == Some(true)))
    );

    let recordings = session.ask("recordings", json!({})).await?;
    ensure!(
        recordings[0].lines().count() == 1 && recordings[0].contains(log),
        "{recordings:?}"
    );
    // What a command prints is what its tool answers.
    for (tool, words) in [
        ("info", &["info", log, "--json"][..]),
        ("events", &["events", log, "--json"]),
    ] {
        let told = session.ask(tool, json!({"recording": "log"})).await?;
        let printed = Debug::run(words.to_vec())?;
        let printed = String::from_utf8(printed.expect(0, "")?.out.clone())?;
        ensure!(printed.starts_with(&told[0]) && !told[0].is_empty(), "{tool}: {told:?}");
        ensure!(
            (printed == told[0]) == (told.len() == 1),
            "{tool}: {} of {}",
            told[0].len(),
            printed.len()
        );
    }
    let console = session.ask("console", json!({"recording": log, "to": "end"})).await?;
    ensure!(
        console[0].contains("SPOKEN") && !console[0].contains('\u{1b}') && console[0].contains("u001b"),
        "{console:?}"
    );
    let shown = session
        .ask("show", json!({"recording": "log", "at": ["end"], "tasks": true}))
        .await?;
    let shown: Value = serde_json::from_str(&shown[0])?;
    ensure!(
        shown["tasks"].as_array().is_some_and(|tasks| tasks.len() > 2),
        "{shown:#}"
    );
    let calls = session
        .ask("strace", json!({"recording": "log", "summary": true}))
        .await?;
    ensure!(calls[0].contains("syscall"), "{calls:?}");
    let verified = session.ask("verify", json!({"recording": "log"})).await?;
    ensure!(
        serde_json::from_str::<Value>(&verified[0])?["identical"] == true,
        "{verified:?}"
    );

    session
        .refused("recordings", json!({"recording": "log"}), "takes nothing")
        .await?;
    session
        .refused("info", json!({"recording": "/etc"}), "there is no recording /etc")
        .await?;
    session
        .refused(
            "profile",
            json!({"recording": "log", "output": "/tmp/x"}),
            "nothing that profile takes",
        )
        .await?;
    session
        .refused("show", json!({"recording": "log", "at": "soon"}), "soon")
        .await?;
    let files = json!({"recording": "log", "at": "end", "path": "/"});
    session.refused("files", files, "the machine has no disk").await?;
    ensure!(session.call("fork", json!({})).await.is_err(), "a tool that writes");
    session.service.cancel().await?;
    Ok(())
}

/// Of a long answer the part is told that is wanted.
async fn is_bounded(log: &str) -> Result<()> {
    let session = Session::open(&[log, "--bytes", "1024"]).await?;
    let events = session.ask("events", json!({"recording": log})).await?;
    ensure!(
        events.len() == 2 && events[0].len() == 1024 && events[0].starts_with('{'),
        "{events:?}"
    );
    ensure!(events[1].starts_with("this is the beginning alone"), "{events:?}");
    let console = session.ask("console", json!({"recording": log})).await?;
    ensure!(console.len() == 2 && console[0].contains("SPOKEN"), "{console:?}");
    ensure!(console[1].starts_with("this is the end alone"), "{console:?}");
    session.service.cancel().await?;
    Ok(())
}

/// A replay ends with its server, however that ends.
async fn leaves_nothing(log: &str) -> Result<()> {
    let session = Session::open(&[log]).await?;
    let server = session.server;
    let arguments: JsonObject = serde_json::from_value(json!({"recording": log}))?;
    let request = CallToolRequestParams::new("verify").with_arguments(arguments);
    let peer = session.service.peer().clone();
    let call = tokio::spawn(async move { peer.call_tool(request).await });
    until("no process replays", || !children(server).is_empty()).await?;
    let replay = *children(server).first().context("it has ended already")?;
    let signal = |pid: u32, signal| -> Result<()> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("no process")?;
        Ok(kill_process(pid, signal)?)
    };
    // It cannot end by itself any more.
    signal(replay, Signal::STOP)?;
    signal(server, Signal::KILL)?;
    until("the replay goes on", || has_ended(replay)).await?;
    ensure!(call.await?.is_err(), "nobody could answer");
    Ok(())
}

/// Whether a process is no more, or only waits to be looked at.
fn has_ended(pid: u32) -> bool {
    let state = fs::read_to_string(format!("/proc/{pid}/stat"));
    state.map_or(true, |state| {
        state.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z"))
    })
}

#[test]
fn a_client_asks_about_a_recording() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    let dir = work_dir("mcp")?;
    let log = dir.join("log");
    let mut run = Booted::get(Kind::Shell)?.go_on()?.record(&log).start()?;
    run.type_text("printf '\\033]0;title\\007'; ls -l /bin /proc/sys/kernel; echo SPO''KEN\n")?;
    run.wait_for("SPOKEN", LIMIT)?;
    run.terminate()?.report()?;
    let log = log.to_str().context("the directory's name is no text")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        answers(&dir, log).await?;
        is_bounded(log).await?;
        leaves_nothing(log).await
    })
}
