//! What a guest's reset does to a node that boots its machine, and a machine that is stopped for good.

use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};

use super::again::{RESTARTED, SUSPENDED};
use super::leave::Leave;
use crate::control::{Control, Request};
use crate::restart::{Does, Limit, MOST, Policy, Restarts, Why};
use crate::status::{Role, Status, StatusInner};

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
    /// `panic=10`), which boots it anew; `stop` has it reset the machine at once (`panic=-1`), which stops it. A `panic=` among the
    /// kernel's other words counts more; without a reset nothing happens.
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
        let does = |on_end, stops| match on_end {
            _ if !boots => Does::End,
            OnEnd::Restart => Does::Restart,
            OnEnd::Stop => stops,
        };
        Policy {
            on_reset: does(self.on_reset, Does::End),
            on_panic: does(self.on_panic, Does::Stop),
            limit,
            so_far: std::env::var(RESTARTED).map_or_else(|_| Restarts::default(), |text| Restarts::parse(&text)),
            suspended: boots && std::env::var_os(SUSPENDED).is_some(),
        }
    }

    /// What the kernel's command line begins with.
    pub fn first_words(&self) -> &'static str {
        match self.on_panic {
            OnEnd::Restart => "panic=10",
            OnEnd::Stop => "panic=-1",
        }
    }
}

/// Tells that the machine is stopped, until somebody ends this process.
pub fn stay_stopped(why: Why, status: &Status, control: &Control, leave: &Leave) -> Result<()> {
    let what = match why {
        Why::TooOften => "has reset too often",
        Why::Panic => "had a panic of its kernel",
    };
    tracing::error!("the guest {what}: the machine is stopped until somebody starts this process anew");
    let mut requests = control.connect();
    status.set(StatusInner {
        role: Role::Primary,
        state: format!("stopped ({})", why.name()),
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
            Err(format!(
                "the machine is stopped: its guest {what}. Start the node's process anew to boot it"
            ))
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
        let limit = |words: &[&str]| {
            let limit = typed(words).unwrap().policy(true).limit;
            (limit.most, limit.within.as_secs())
        };
        assert_eq!(limit(&[]), (5, 600));
        let given = ["--restarts-at-most", "0", "--restarts-within-seconds", "60"];
        assert_eq!(limit(&given), (0, 60));
        let does = |words: &[&str], boots| {
            let policy = typed(words).unwrap().policy(boots);
            (policy.on_reset, policy.on_panic)
        };
        assert_eq!(does(&[], true), (Does::Restart, Does::Restart));
        assert_eq!(does(&["--on-reset", "stop"], true), (Does::End, Does::Restart));
        assert_eq!(does(&["--on-panic", "stop"], true), (Does::Restart, Does::Stop));
        assert_eq!(does(&["--on-panic", "stop"], false), (Does::End, Does::End));
        for wrong in [
            ["--restarts-at-most", "101"],
            ["--restarts-within-seconds", "0"],
            ["--on-panic", "reset"],
        ] {
            assert!(typed(&wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(typed(&[]).unwrap().first_words(), "panic=10");
        assert_eq!(typed(&["--on-panic", "stop"]).unwrap().first_words(), "panic=-1");
    }

    #[test]
    fn a_stopped_machine_says_so_until_it_is_ended() {
        for (why, state, word) in [
            (Why::TooOften, "stopped (restarts-too-often)", "too often"),
            (Why::Panic, "stopped (panic)", "a panic"),
        ] {
            let (status, control) = (Status::default(), Control::default());
            let leave = Leave::new(&LeaveArgs { on_sigterm: None }, &status, &control);
            let (told, asked) = (status.clone(), control.clone());
            let stopped = std::thread::spawn(move || stay_stopped(why, &told, &asked, &leave));
            let is_stopped = |now: &StatusInner| now.state == state && now.role == Role::Primary;
            assert!(status.wait_for(is_stopped, Duration::from_secs(600)));
            assert!(is_a_state(state));
            let refused = control.ask(Request::Switchover).unwrap_err();
            assert!(refused.contains(word), "{refused}");
            assert_eq!(control.ask(Request::Shutdown(Duration::from_secs(60))), Ok(()));
            stopped.join().unwrap().unwrap();
        }
    }
}
