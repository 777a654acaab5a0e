//! What a guest's reset does to a node that boots its machine, and a machine that is stopped for good.

use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};

use super::again::RESTARTED;
use super::leave::Leave;
use crate::control::{Control, Request};
use crate::restart::{Limit, MOST, Policy, Restarts};
use crate::status::{Role, Status, StatusInner};

/// The state of a machine that has reset too often.
const STOPPED: &str = "stopped (restarts-too-often)";
/// How long the process of a stopped machine stays when it is to end.
const ANSWERING: Duration = Duration::from_millis(300);
/// Most of what options can say.
const MOST_TIMES: i64 = MOST as i64;

/// What a guest's end does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OnEnd {
    /// The machine is booted anew.
    #[default]
    Restart,
    /// It is not.
    Stop,
}

/// What a guest's reset or panic does, where the node has a kernel and boots the machine by the arbiter's record.
#[derive(Args, Clone, Debug)]
pub struct RestartArgs {
    /// What a guest's reset does under `--role auto` with a kernel: `restart` boots the machine anew, `stop` ends it.
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    pub on_reset: OnEnd,
    /// What a panic of the guest's kernel does there: `restart` has it reset the machine after ten seconds (the word
    /// `panic=10`), `stop` has it stand where it is (`panic=0`). A `panic=` among the kernel's other words counts more.
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    pub on_panic: OnEnd,
    /// A machine that resets is booted anew at most so many times within --restarts-within-seconds; then it is stopped.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=MOST_TIMES))]
    pub restarts_at_most: u32,
    /// The time of --restarts-at-most.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub restarts_within_seconds: u64,
}

impl RestartArgs {
    /// The policy of a node, which `boots` its machine or cannot.
    pub fn policy(&self, boots: bool) -> Policy {
        let limit = Limit {
            most: self.restarts_at_most,
            within: Duration::from_secs(self.restarts_within_seconds),
        };
        Policy {
            limit: (boots && self.on_reset == OnEnd::Restart).then_some(limit),
            so_far: std::env::var(RESTARTED).map_or_else(|_| Restarts::default(), |text| Restarts::parse(&text)),
        }
    }

    /// What the kernel's command line begins with.
    pub fn first_words(&self) -> &'static str {
        match self.on_panic {
            OnEnd::Restart => "panic=10",
            OnEnd::Stop => "panic=0",
        }
    }
}

/// Tells that the machine is stopped, until somebody ends this process.
pub fn stay_stopped(status: &Status, control: &Control, leave: &Leave) -> Result<()> {
    tracing::error!("the guest has reset too often: the machine is stopped until somebody starts this process anew");
    let mut requests = control.connect();
    status.set(StatusInner {
        role: Role::Primary,
        state: STOPPED.into(),
        term: status.get().term,
        ..StatusInner::default()
    });
    let control = control.clone();
    // It may be called from here.
    leave.ends(move || control.tell(Request::Shutdown(Duration::ZERO)))?;
    while let Some(asked) = requests.blocking_recv() {
        let ends = matches!(asked.request, Request::Shutdown(_));
        let answer = if ends {
            Ok(())
        } else {
            Err(
                "the machine is stopped: its guest has reset too often. Start the node's process anew to boot it"
                    .into(),
            )
        };
        // One that does not wait for the answer does not need it.
        let _ = asked.answer.send(answer);
        if ends {
            // Who has asked is answered by another thread.
            std::thread::sleep(ANSWERING);
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::is_a_state;
    use crate::cli::leave::LeaveArgs;

    #[derive(clap::Parser)]
    struct Typed {
        #[command(flatten)]
        restart: RestartArgs,
    }

    #[test]
    fn the_options_are_a_policy() {
        use clap::Parser;
        let typed =
            |words: &[&str]| Typed::try_parse_from(std::iter::once(&"run").chain(words)).map(|typed| typed.restart);
        let limit = |words: &[&str], boots| {
            let limit = typed(words).unwrap().policy(boots).limit;
            limit.map(|limit| (limit.most, limit.within.as_secs()))
        };
        assert_eq!(limit(&[], true), Some((5, 600)));
        assert_eq!(limit(&[], false), None);
        assert_eq!(limit(&["--on-reset", "stop"], true), None);
        let given = ["--restarts-at-most", "0", "--restarts-within-seconds", "60"];
        assert_eq!(limit(&given, true), Some((0, 60)));
        for wrong in [
            ["--restarts-at-most", "101"],
            ["--restarts-within-seconds", "0"],
            ["--on-panic", "reset"],
        ] {
            assert!(typed(&wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(typed(&[]).unwrap().first_words(), "panic=10");
        assert_eq!(typed(&["--on-panic", "stop"]).unwrap().first_words(), "panic=0");
    }

    #[test]
    fn a_stopped_machine_says_so_until_it_is_ended() {
        let (status, control) = (Status::default(), Control::default());
        let leave = Leave::new(&LeaveArgs { on_sigterm: None }, &status, &control);
        let (told, asked) = (status.clone(), control.clone());
        let stopped = std::thread::spawn(move || stay_stopped(&told, &asked, &leave));
        let is_stopped = |now: &StatusInner| now.state == STOPPED && now.role == Role::Primary;
        assert!(status.wait_for(is_stopped, Duration::from_secs(600)));
        assert!(is_a_state(STOPPED));
        let refused = control.ask(Request::Switchover).unwrap_err();
        assert!(refused.contains("too often"), "{refused}");
        assert_eq!(control.ask(Request::Shutdown(Duration::from_secs(60))), Ok(()));
        stopped.join().unwrap().unwrap();
    }
}
