//! The recorder of production against the replayer of production, on scripted machines in a simulated host: all of a run
//! follows from its seed. `LOCKSTEP_SEED=7` runs this one and tells what happened in it, `LOCKSTEP_SOAK=1` runs 100,000.

mod bug;
mod counts;
mod disk;
mod host;
mod log;
mod plan;
mod planted;
mod replay;
#[path = "../../../proto/tests/simulation/rng.rs"]
mod rng;
mod run;

use bug::Bug;
use counts::Counts;
use run::run;

/// Seeds of an ordinary test.
const SEEDS: u64 = 2_000;
const SOAK_SEEDS: u64 = 100_000;
/// A planted bug must be found within so many.
const BUG_SEEDS: u64 = 500;

fn is_soak() -> bool {
    std::env::var("LOCKSTEP_SOAK").is_ok_and(|value| value == "1")
}

#[test]
fn what_is_recorded_is_replayed() {
    if let Ok(seed) = std::env::var("LOCKSTEP_SEED") {
        let seed = seed.parse().expect("LOCKSTEP_SEED is a number");
        let outcome = run(seed, None);
        println!("{:?}", outcome.counts);
        assert_eq!(outcome.violation, None, "seed {seed}");
        return;
    }
    let seeds = if is_soak() { SOAK_SEEDS } else { SEEDS };
    let begin = std::time::Instant::now();
    let mut total = Counts::default();
    for seed in 0..seeds {
        let outcome = run(seed, None);
        if let Some(violation) = outcome.violation {
            panic!("seed {seed}: {violation}; LOCKSTEP_SEED={seed} runs it alone");
        }
        total.add(&outcome.counts);
    }
    println!("{total:?}");
    println!("{:.0} seeds a second", seeds as f64 / begin.elapsed().as_secs_f64());
    // A simulator to which nothing happens shows nothing.
    for (what, count) in total.all() {
        assert!(count >= SEEDS / 10, "{what}: {count} in {seeds} seeds");
    }
}

/// A seed gives the same run again: else it is no help when it fails.
#[test]
fn a_run_follows_from_its_seed() {
    for seed in 0..20 {
        let [one, other] = [(), ()].map(|()| run(seed, None));
        assert_eq!(one.counts, other.counts, "seed {seed}");
        assert_eq!(one.chain, other.chain, "seed {seed}");
    }
}

/// How many seeds it takes to find `bug`, and as what.
fn find(bug: Bug, says: &str) {
    for seed in 0..BUG_SEEDS {
        if let Some(violation) = run(seed, Some(bug)).violation {
            let line = violation.lines().next().unwrap_or_default();
            println!("{bug:?} is found at seed {seed}: {line}");
            assert!(line.contains(says), "as something else: {violation}");
            return;
        }
    }
    panic!("{bug:?} is not found within {BUG_SEEDS} seeds");
}

#[test]
fn finds_halt_not_logged() {
    find(Bug::HaltNotLogged, "replay: ");
}

#[test]
fn finds_unseen_time() {
    find(Bug::UnseenTime, "replay: ");
}

#[test]
fn finds_input_early() {
    find(Bug::InputEarly, "replay: ");
}

#[test]
fn finds_delta_twice() {
    find(Bug::DeltaTwice, "replay: ");
}

#[test]
fn finds_delta_left_out() {
    find(Bug::DeltaLeftOut, "replay: ");
}

#[test]
fn finds_page_left_out() {
    find(Bug::PageLeftOut, "replay: ");
}

#[test]
fn finds_epoch_at_forced() {
    find(Bug::EpochAtForced, "recording: the turn at stop");
}

#[test]
fn finds_interrupt_late() {
    find(Bug::InterruptLate, "replay: ");
}

#[test]
fn finds_frame_lost() {
    find(Bug::FrameLost, "replay: ");
}

#[test]
fn finds_batch_split_wrong() {
    find(Bug::BatchSplitWrong, "replay: ");
}

#[test]
fn finds_effect_early() {
    find(Bug::EffectEarly, "may leave at position");
}

#[test]
fn finds_typed_otherwise() {
    find(Bug::TypedOtherwise, "replay: ");
}

#[test]
fn finds_random_otherwise() {
    find(Bug::RandomOtherwise, "replay: ");
}
