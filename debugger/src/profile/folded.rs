//! Folded stacks: a line for each, as Brendan Gregg's and other tools for flame graphs read them.

use std::collections::BTreeMap;
use std::io::{self, Write};

use lockstep_node::out::one_line;

use super::stacks::{Side, Stacks};

/// Writes them: the task, its frames from the outermost on, and how many samples; the kernel's end with `_[k]`.
pub fn write(stacks: &Stacks, out: &mut dyn Write) -> io::Result<()> {
    // Two stacks may look alike: with functions of one name in two files.
    let mut lines: BTreeMap<String, u64> = BTreeMap::new();
    for (stack, weight) in stacks.iter() {
        let mut line = word(&stack.task.to_string());
        for frame in stack.frames.iter().map(|number| stacks.frame(*number)) {
            line.push(';');
            line.push_str(&word(&frame.name));
            if frame.side == Side::Kernel {
                line.push_str("_[k]");
            }
        }
        let samples = lines.entry(line).or_default();
        *samples = samples.saturating_add(weight.samples);
    }
    for (line, samples) in lines {
        writeln!(out, "{line} {samples}")?;
    }
    Ok(())
}

/// What has no character that means something in such a line.
fn word(name: &str) -> String {
    one_line(name).replace(';', ":")
}

#[cfg(test)]
mod tests {
    use super::super::stacks::testing::stacks;
    use super::*;

    #[test]
    fn a_line_is_a_stack_and_a_number() -> io::Result<()> {
        let stacks = stacks(&[
            ("spin", &["main", "k:entry"], 2),
            ("spin", &["main"], 5),
            ("a\n1;b", &["f(int; x)"], 1),
        ]);
        let mut out = Vec::new();
        write(&stacks, &mut out)?;
        assert_eq!(
            String::from_utf8_lossy(&out),
            "a\\u000a1:b (7);f(int: x) 1\nspin (7);main 5\nspin (7);main;entry_[k] 2\n"
        );
        Ok(())
    }
}
