//! A flame graph as SVG: the width of a box is how often its function was on the stack, what it called stands on it.

use std::io::{self, Write};

use inferno::flamegraph::color::{MultiPalette, Palette};
use inferno::flamegraph::{Options, from_lines};
use lockstep_node::out::one_line;

use super::folded;
use super::stacks::Stacks;

/// Writes it, with this line above.
pub fn write(stacks: &Stacks, title: &str, line: &str, out: &mut dyn Write) -> io::Result<()> {
    let mut folded = Vec::new();
    folded::write(stacks, &mut folded)?;
    let folded = String::from_utf8(folded).map_err(io::Error::other)?;
    if folded.is_empty() {
        return Err(io::Error::other(
            "there is no sample to draw: the guest was idle all the time, or no task fits",
        ));
    }
    let mut options = Options::default();
    options.title = one_line(title).into_owned();
    options.subtitle = Some(one_line(line).into_owned());
    // Knows the kernel's frames by their ending.
    options.colors = Palette::Multi(MultiPalette::Java);
    // Two of the same samples are the same picture.
    options.deterministic = true;
    from_lines(&mut options, folded.lines(), out).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::super::stacks::testing::stacks;
    use super::*;

    fn drawn(stacks: &Stacks) -> io::Result<String> {
        let mut out = Vec::new();
        write(stacks, "title", "one & all", &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn boxes_have_their_samples() {
        let stacks = stacks(&[
            ("spin", &["main", "k:entry"], 20),
            ("sh", &["main"], 50),
            ("spin", &["main"], 30),
        ]);
        let svg = drawn(&stacks).unwrap();
        for (task, samples) in [
            ("sh (7)", "50 samples, 50.00%"),
            ("spin (7)", "50 samples, 50.00%"),
            ("entry", "20 samples, 20.00%"),
        ] {
            assert!(
                svg.contains(&format!("<title>{task} ({samples})</title>")),
                "{task}: {svg}"
            );
        }
        // One of each task.
        assert_eq!(svg.matches("<title>main ").count(), 2, "{svg}");
        assert!(svg.contains("one &amp; all"), "{svg}");
        assert_eq!(svg, drawn(&stacks).unwrap());
    }

    #[test]
    fn names_are_text_and_nothing_else() {
        let svg = drawn(&stacks(&[("</svg><script>\u{1b}", &["f<a&\"b'>\u{ffff}"], 3)])).unwrap();
        assert_eq!(svg.matches("<script").count(), 1, "{svg}");
        assert!(svg.contains("f&lt;a&amp;"), "{svg}");
        assert!(!svg.contains('\u{1b}'));
    }

    #[test]
    fn nothing_is_no_picture() {
        let error = drawn(&Stacks::default()).unwrap_err().to_string();
        assert!(error.contains("no sample"), "{error}");
    }
}
