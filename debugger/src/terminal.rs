//! What a guest printed, on an operator's terminal: text, lines and colours, as `less -R` has them. Whatever else would work
//! there is shown as an escape: a guest could set the title, answer for the keyboard, or overwrite what was told before.

use std::io::{self, Write};

use lockstep_node::out::printable;

/// A line that is longer is shown in pieces.
const LONGEST: usize = 4096;
/// Bytes of a colour's parameters, at most.
const MOST_PARAMETERS: usize = 64;
/// What ends all colours.
const PLAIN: &[u8] = b"\x1b[0m";

/// A guest's console on its way to a terminal.
pub struct Terminal<W: Write> {
    out: W,
    /// Of a line that has not ended yet.
    held: Vec<u8>,
    coloured: bool,
}

impl<W: Write> Terminal<W> {
    pub fn new(out: W) -> Self {
        Self {
            out,
            held: Vec::new(),
            coloured: false,
        }
    }

    fn show(&mut self) -> io::Result<()> {
        let held = std::mem::take(&mut self.held);
        let text = String::from_utf8_lossy(&held);
        let mut rest = &*text;
        while let Some(at) = rest.find('\x1b') {
            let (plain, escape) = rest.split_at(at);
            self.out.write_all(printable(plain).as_bytes())?;
            let length = colour(escape);
            let (shown, after) = escape.split_at(length.unwrap_or(1));
            if length.is_some() {
                self.coloured = true;
                self.out.write_all(shown.as_bytes())?;
            } else {
                self.out.write_all(printable(shown).as_bytes())?;
            }
            rest = after;
        }
        self.out.write_all(printable(rest).as_bytes())
    }
}

impl<W: Write> Write for Terminal<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for line in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.held.extend_from_slice(line);
            if line.ends_with(b"\n") || self.held.len() >= LONGEST {
                self.show()?;
            }
        }
        Ok(bytes.len())
    }

    /// At the end: what comes after is not coloured any more.
    fn flush(&mut self) -> io::Result<()> {
        self.show()?;
        if std::mem::take(&mut self.coloured) {
            self.out.write_all(PLAIN)?;
        }
        self.out.flush()
    }
}

/// Bytes of the sequence that `text` begins with, if it does nothing but set colours (ECMA-48: SGR).
fn colour(text: &str) -> Option<usize> {
    let body = text.strip_prefix("\x1b[")?;
    let end = body.find(|letter: char| !letter.is_ascii_digit() && letter != ';' && letter != ':')?;
    (body[end..].starts_with('m') && end <= MOST_PARAMETERS).then_some(2 + end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(pieces: &[&[u8]]) -> String {
        let mut out = Vec::new();
        let mut terminal = Terminal::new(&mut out);
        for piece in pieces {
            terminal.write_all(piece).unwrap();
        }
        terminal.flush().unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_and_colours_work_and_nothing_else() {
        assert_eq!(shown(&[b"plain\r\n\tline\n"]), "plain\r\n\tline\n");
        // In pieces, as a serial port has it.
        assert_eq!(
            shown(&[b"\x1b[0;", b"32mOK\x1b", b"[38:5:1m!\n"]),
            "\x1b[0;32mOK\x1b[38:5:1m!\n\x1b[0m"
        );
        assert_eq!(
            shown(&[b"a\x1b[2Jb\x1b]0;title\x07c\rd\x1b[31", b"\n\xc2\x9b1m\xff\x1b"]),
            "a\\u001b[2Jb\\u001b]0;title\\u0007c\\u000dd\\u001b[31\n\\u009b1m\u{fffd}\\u001b"
        );
        let long = [b"\x1b[".to_vec(), vec![b';'; 100], b"m".to_vec()].concat();
        assert!(shown(&[&long]).starts_with("\\u001b[;"));
        assert_eq!(shown(&[&vec![b'x'; 3 * LONGEST]]).len(), 3 * LONGEST);
    }
}
