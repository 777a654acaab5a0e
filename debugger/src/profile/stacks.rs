//! What was sampled, added up: stacks of frames, each with how many samples it had.

use std::collections::{BTreeMap, HashMap};

/// Different stacks that are kept apart.
const MOST_STACKS: usize = 50_000;
/// Different frames that are kept apart.
const MOST_FRAMES: usize = 200_000;
/// Bytes of a name that are kept: some of a compiler's have many.
const MOST_NAME: usize = 512;

/// Where a frame's code is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// In the kernel.
    Kernel,
    /// In a program.
    User,
}

/// A function on a stack.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frame {
    /// Where its code is.
    pub side: Side,
    /// Its name; else its file and the place in it, or the address, in brackets.
    pub name: String,
    /// The file that it is from, or what else lies there.
    pub file: String,
    /// The name is a symbol's.
    pub is_named: bool,
}

impl Frame {
    /// In the kernel.
    pub fn kernel(name: Option<&str>, address: u64) -> Self {
        Self {
            side: Side::Kernel,
            name: name.map_or_else(|| format!("[{address:#x}]"), short),
            file: "[kernel]".into(),
            is_named: name.is_some(),
        }
    }

    /// In a program: in a file, or in what else a name in brackets says.
    pub fn user(name: Option<&str>, file: &str, place: u64) -> Self {
        let unnamed = || {
            if file.starts_with('[') {
                return file.to_owned();
            }
            let base = file.rsplit('/').next().unwrap_or(file);
            format!("[{}+{place:#x}]", short(base))
        };
        Self {
            side: Side::User,
            name: name.map_or_else(unnamed, short),
            file: short(file),
            is_named: name.is_some(),
        }
    }
}

fn short(name: &str) -> String {
    match name
        .char_indices()
        .find(|(at, letter)| at + letter.len_utf8() > MOST_NAME)
    {
        Some((end, _)) => format!("{}...", &name[..end]),
        None => name.into(),
    }
}

/// A task of the guest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Task {
    /// Its name.
    pub comm: String,
    /// Its number.
    pub pid: u32,
}

impl std::fmt::Display for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.comm, self.pid)
    }
}

/// A task, and what it was in: the outermost frame first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stack {
    /// Whose.
    pub task: Task,
    /// By their numbers.
    pub frames: Vec<u32>,
}

/// How much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weight {
    /// Samples.
    pub samples: u64,
    /// Those of them that stand for what a delta carried.
    pub carried: u64,
}

impl Weight {
    /// Both of them.
    pub fn add(&mut self, other: Self) {
        self.samples = self.samples.saturating_add(other.samples);
        self.carried = self.carried.saturating_add(other.carried);
    }
}

/// All of them. Numbers are given in the order in which frames came.
#[derive(Default)]
pub struct Stacks {
    frames: Vec<Frame>,
    numbers: HashMap<Frame, u32>,
    /// The stacks' numbers and weights.
    weights: BTreeMap<Stack, (u32, Weight)>,
}

impl Stacks {
    /// The number of a frame.
    pub fn number(&mut self, frame: Frame) -> u32 {
        if let Some(number) = self.numbers.get(&frame) {
            return *number;
        }
        let frame = if self.frames.len() < MOST_FRAMES {
            frame
        } else {
            let other = Frame {
                name: "[other functions]".into(),
                file: String::new(),
                is_named: false,
                ..frame
            };
            if let Some(number) = self.numbers.get(&other) {
                return *number;
            }
            other
        };
        let number = self.frames.len() as u32;
        self.numbers.insert(frame.clone(), number);
        self.frames.push(frame);
        number
    }

    /// A frame by its number.
    pub fn frame(&self, number: u32) -> &Frame {
        &self.frames[number as usize]
    }

    /// Counts a stack, and returns its number.
    pub fn add(&mut self, stack: Stack, weight: Weight) -> u32 {
        let is_full = self.weights.len() >= MOST_STACKS && !self.weights.contains_key(&stack);
        let stack = if is_full {
            let task = Task {
                comm: "[other stacks]".into(),
                pid: 0,
            };
            Stack {
                task,
                frames: Vec::new(),
            }
        } else {
            stack
        };
        let next = self.weights.len() as u32;
        let (number, sum) = self.weights.entry(stack).or_insert((next, Weight::default()));
        sum.add(weight);
        *number
    }

    /// All of them, each at its number.
    pub fn by_number(&self) -> Vec<&Stack> {
        let mut all: Vec<_> = self
            .weights
            .iter()
            .map(|(stack, (number, _))| (*number, stack))
            .collect();
        all.sort_unstable_by_key(|(number, _)| *number);
        all.into_iter().map(|(_, stack)| stack).collect()
    }

    /// Each stack with its weight, in one order.
    pub fn iter(&self) -> impl Iterator<Item = (&Stack, Weight)> {
        self.weights.iter().map(|(stack, (_, weight))| (stack, *weight))
    }

    /// The weight of all.
    pub fn total(&self) -> Weight {
        let mut total = Weight::default();
        self.weights.values().for_each(|(_, weight)| total.add(*weight));
        total
    }

    /// The weight of those whose innermost frame is one of these.
    pub fn total_of(&self, mut is: impl FnMut(&Frame) -> bool) -> Weight {
        let mut total = Weight::default();
        for (stack, (_, weight)) in &self.weights {
            if stack.frames.last().is_some_and(|frame| is(self.frame(*frame))) {
                total.add(*weight);
            }
        }
        total
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// `(task, frames from the outermost on, samples)`; a frame that begins with `k:` is the kernel's.
    pub fn stacks(rows: &[(&str, &[&str], u64)]) -> Stacks {
        let mut stacks = Stacks::default();
        for (comm, frames, samples) in rows {
            let frame = |name: &&str| match name.strip_prefix("k:") {
                Some(name) => Frame::kernel(Some(name), 0),
                None => Frame::user(Some(name), "/bin/program", 0),
            };
            let frames = frames.iter().map(frame).map(|frame| stacks.number(frame)).collect();
            let task = Task {
                comm: (*comm).into(),
                pid: 7,
            };
            let weight = Weight {
                samples: *samples,
                carried: *samples / 2,
            };
            stacks.add(Stack { task, frames }, weight);
        }
        stacks
    }
}

#[cfg(test)]
mod tests {
    use super::testing::stacks;
    use super::*;

    #[test]
    fn equal_stacks_are_one() {
        let stacks = stacks(&[
            ("b", &["main", "f"], 4),
            ("a", &["main"], 1),
            ("b", &["main", "f"], 6),
            ("b", &["main", "f", "k:g"], 2),
        ]);
        let rows: Vec<_> = stacks
            .iter()
            .map(|(stack, weight)| (stack.task.to_string(), stack.frames.len(), weight.samples))
            .collect();
        assert_eq!(
            rows,
            [("a (7)".into(), 1, 1), ("b (7)".into(), 2, 10), ("b (7)".into(), 3, 2)]
        );
        assert_eq!(
            stacks.total(),
            Weight {
                samples: 13,
                carried: 6
            }
        );
        assert_eq!(stacks.total_of(|frame| frame.side == Side::Kernel).samples, 2);
    }

    #[test]
    fn what_a_guest_makes_up_has_bounds() {
        let mut stacks = Stacks::default();
        let task = Task {
            comm: "x".into(),
            pid: 1,
        };
        let one = Weight { samples: 1, carried: 0 };
        for number in 0..MOST_FRAMES as u64 + 10 {
            let frames = vec![stacks.number(Frame::kernel(None, number))];
            let task = task.clone();
            stacks.add(Stack { task, frames }, one);
        }
        assert_eq!(stacks.total().samples, MOST_FRAMES as u64 + 10, "none is lost");
        assert!(stacks.frames.len() <= MOST_FRAMES + 2 && stacks.weights.len() <= MOST_STACKS + 1);
        let long = Frame::user(Some(&"ä".repeat(100_000)), "/x", 0);
        assert!(long.name.len() <= MOST_NAME + 3);
        assert_eq!(Frame::user(None, "/usr/bin/a", 0x12).name, "[a+0x12]");
        assert_eq!(Frame::user(None, "[not mapped]", 0x12).name, "[not mapped]");
    }
}
