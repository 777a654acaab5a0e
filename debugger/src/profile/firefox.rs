//! What the Firefox Profiler reads (profiler.firefox.com): its processed format, gzipped.

use std::collections::HashMap;
use std::io::{self, Write};

use flate2::{Compression, GzBuilder};
use fxprof_processed_profile::{
    CategoryColor, CategoryHandle, CpuDelta, Frame, FrameFlags, FrameInfo, Profile, ReferenceTimestamp,
    SamplingInterval, Timestamp,
};
use lockstep_node::out::one_line;

use super::facts::Facts;
use super::moments::Moments;
use super::stacks::{Side, Stack, Stacks, Task};

/// Writes it.
pub fn write(stacks: &Stacks, moments: &Moments, facts: &Facts, out: &mut dyn Write) -> io::Result<()> {
    let profile = profile(stacks, moments, facts);
    // Without a time or a name, which would make two files of the same samples differ.
    let mut gzip = GzBuilder::new().write(out, Compression::default());
    serde_json::to_writer(&mut gzip, &profile)?;
    gzip.finish()?;
    Ok(())
}

/// What a frame's time was.
struct Categories {
    kernel: CategoryHandle,
    user: CategoryHandle,
    carried: CategoryHandle,
}

/// A sample for each tick, at its guest time since the profile's beginning; a thread for each task.
fn profile(stacks: &Stacks, moments: &Moments, facts: &Facts) -> Profile {
    let began = ReferenceTimestamp::from_millis_since_unix_epoch(facts.unix_ns.unwrap_or(0) as f64 / 1e6);
    let interval = SamplingInterval::from_nanos(facts.period_ns());
    let mut profile = Profile::new("Lockstep guest", began, interval);
    // There are names, and nothing is left to be looked up.
    profile.set_symbolicated(true);
    profile.set_os_name("Linux");
    let categories = Categories {
        kernel: profile.add_category("Kernel", CategoryColor::Orange),
        user: profile.add_category("User", CategoryColor::Blue),
        carried: profile.add_category("Carried by deltas", CategoryColor::Gray),
    };
    let at = Timestamp::from_nanos_since_reference;
    let guest = profile.add_process("guest", 1, at(0));
    profile.set_process_end_time(guest, at(facts.span_ns()));
    let by_number = stacks.by_number();
    let mut threads = HashMap::new();
    for moment in moments.iter() {
        let stack = by_number[moment.stack as usize];
        let thread = *threads.entry(&stack.task).or_insert_with(|| {
            let Task { comm, pid } = &stack.task;
            let thread = profile.add_thread(guest, *pid, at(0), false);
            profile.set_thread_name(thread, &one_line(comm));
            profile.set_thread_end_time(thread, at(facts.span_ns()));
            thread
        });
        let executed = moment.weight.samples.saturating_sub(moment.weight.carried);
        let [done, carried] = [false, true].map(|is_carried| {
            let frames = frames(&mut profile, stacks, stack, &categories, is_carried);
            profile.intern_stack_frames(thread, frames.into_iter())
        });
        for tick in 0..moment.weight.samples {
            let handle = if tick < executed { done } else { carried };
            let time = facts.tick_ns(moment.first.saturating_add(tick).saturating_add(1));
            let cpu = CpuDelta::from_nanos(facts.period_ns());
            profile.add_sample(thread, at(time), handle, cpu, 1);
        }
    }
    profile
}

/// A stack's, the outermost first.
fn frames(
    profile: &mut Profile,
    stacks: &Stacks,
    stack: &Stack,
    categories: &Categories,
    is_carried: bool,
) -> Vec<FrameInfo> {
    let info = |number: &u32| {
        let frame = stacks.frame(*number);
        let category = match frame.side {
            _ if is_carried => categories.carried,
            Side::Kernel => categories.kernel,
            Side::User => categories.user,
        };
        FrameInfo {
            frame: Frame::Label(profile.intern_string(&one_line(&frame.name))),
            category_pair: category.into(),
            flags: FrameFlags::empty(),
        }
    };
    stack.frames.iter().map(info).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::moments::Moment;
    use super::super::stacks::Weight;
    use super::super::stacks::testing::stacks;
    use super::*;

    fn written(moments: &Moments) -> Value {
        let stacks = stacks(&[("spin", &["main", "k:entry"], 4), ("s\nh", &["main"], 1)]);
        let facts = Facts {
            from_ns: 1_000,
            to_ns: 2_000_001_000,
            rate: 1000,
            unix_ns: Some(1_700_000_000_500_000_000),
            ..Facts::default()
        };
        let bytes = || {
            let mut bytes = Vec::new();
            write(&stacks, moments, &facts, &mut bytes).unwrap();
            bytes
        };
        assert_eq!(bytes(), bytes());
        serde_json::from_reader(flate2::read::GzDecoder::new(&*bytes())).unwrap()
    }

    #[test]
    fn each_tick_is_a_sample_of_its_task_at_its_time() {
        let mut moments = Moments::default();
        let rows = [(0, 0, 2, 1), (2, 1, 1, 0), (9, 0, 1, 0)];
        for (first, stack, samples, carried) in rows {
            let weight = Weight { samples, carried };
            moments.add(Moment { first, stack, weight }).unwrap();
        }
        let profile = written(&moments);
        assert_eq!(profile["meta"]["startTime"], 1_700_000_000_500.0);
        assert_eq!(profile["meta"]["interval"], 1.0);
        let threads = profile["threads"].as_array().unwrap();
        let names: Vec<_> = threads.iter().map(|thread| thread["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["s\\u000ah", "spin"]);
        let (shell, spin) = (&threads[0], &threads[1]);
        let times = |thread: &Value| -> Vec<f64> {
            let deltas = thread["samples"]["timeDeltas"].as_array().unwrap();
            let mut now = 0.0;
            let sum = |delta: &Value| {
                now += delta.as_f64().unwrap();
                now
            };
            deltas.iter().map(sum).collect()
        };
        assert_eq!((times(spin), times(shell)), (vec![1.0, 2.0, 10.0], vec![3.0]));
        let text = profile.to_string();
        assert!(
            text.contains("\"entry\"") && text.contains("Carried by deltas"),
            "{text}"
        );
        // What a delta carried has a stack of its own, in another category.
        let of = |sample: usize| spin["samples"]["stack"][sample].clone();
        assert!(of(0) == of(2) && of(0) != of(1), "{text}");
    }
}
