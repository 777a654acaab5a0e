//! grub.cfg, cut into words as GRUB's shell does (GNU GRUB manual, "Shell-like scripting").

use super::super::refusal::Refusal;

/// Bytes of a grub.cfg, and of what it leads to.
pub const MAX_FILE: u64 = 1 << 20;

/// A piece of a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// As it stands.
    Text(String),
    /// A variable's value; unquoted, it is cut into words.
    Variable {
        /// Its name.
        name: String,
        /// It stands in double quotes.
        quoted: bool,
    },
}

/// A word before its variables are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Word {
    /// Its pieces.
    pub pieces: Vec<Piece>,
    /// A part of it is quoted: it is a word, were it empty.
    pub is_quoted: bool,
}

impl Word {
    /// Its text, if it is one without quotes and variables: a keyword, say.
    pub fn plain(&self) -> Option<&str> {
        match (&self.pieces[..], self.is_quoted) {
            ([Piece::Text(text)], false) => Some(text),
            _ => None,
        }
    }

    fn push(&mut self, c: char) {
        if let Some(Piece::Text(text)) = self.pieces.last_mut() {
            text.push(c);
        } else {
            self.pieces.push(Piece::Text(c.into()));
        }
    }
}

/// What stands there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// A word.
    Word(Word),
    /// The end of a command: a line's, or `;`.
    End,
    /// `{`.
    Open,
    /// `}`.
    Close,
}

/// That a line of a file is not understood.
pub fn unclear(file: &str, line: usize, why: &str) -> Refusal {
    Refusal::new(
        format!("{file}, line {line}"),
        format!("this program does not understand it: {why}"),
    )
    .or(format!(
        "have the guest keep the links /vmlinuz and /initrd.img to the kernel that it is to boot, or {}",
        super::super::refusal::GIVE_FILES
    ))
}

/// All tokens, each with its line from 1.
pub fn tokens(file: &str, text: &str) -> Result<Vec<(usize, Token)>, Refusal> {
    let mut tokens = Vec::new();
    let mut line = 1;
    let mut rest = text.chars().peekable();
    let mut word: Option<Word> = None;
    while let Some(c) = rest.next() {
        let begin = line;
        match c {
            '\n' | ';' | ' ' | '\t' | '\r' => {
                tokens.extend(word.take().map(|word| (line, finished(word))));
                if c == '\n' || c == ';' {
                    tokens.push((line, Token::End));
                }
                line += usize::from(c == '\n');
            }
            '#' if word.is_none() => while rest.next_if(|c| *c != '\n').is_some() {},
            '|' | '&' | '<' | '>' => return Err(unclear(file, line, &format!("`{c}`"))),
            '\\' => match rest.next() {
                Some('\n') => line += 1,
                Some(c) => word.get_or_insert_default().push(c),
                None => return Err(unclear(file, line, "it ends in a backslash")),
            },
            '\'' => {
                let word = word.get_or_insert_default();
                word.is_quoted = true;
                loop {
                    match rest.next() {
                        Some('\'') => break,
                        Some(c) => {
                            line += usize::from(c == '\n');
                            word.push(c);
                        }
                        None => return Err(unclear(file, begin, "a quote that does not end")),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                word.is_quoted = true;
                loop {
                    match rest.next() {
                        Some('"') => break,
                        Some('$') => word.pieces.push(variable(&mut rest, true)),
                        Some('\\') => match rest.next() {
                            Some(c @ ('"' | '\\' | '$')) => word.push(c),
                            Some(c) => {
                                line += usize::from(c == '\n');
                                word.push('\\');
                                word.push(c);
                            }
                            None => return Err(unclear(file, begin, "a quote that does not end")),
                        },
                        Some(c) => {
                            line += usize::from(c == '\n');
                            word.push(c);
                        }
                        None => return Err(unclear(file, begin, "a quote that does not end")),
                    }
                }
            }
            '$' => word.get_or_insert_default().pieces.push(variable(&mut rest, false)),
            c => word.get_or_insert_default().push(c),
        }
    }
    tokens.extend(word.take().map(|word| (line, finished(word))));
    tokens.push((line, Token::End));
    Ok(tokens)
}

fn finished(word: Word) -> Token {
    match word.plain() {
        Some("{") => Token::Open,
        Some("}") => Token::Close,
        _ => Token::Word(word),
    }
}

/// What stands behind a `$`.
fn variable(rest: &mut std::iter::Peekable<std::str::Chars<'_>>, quoted: bool) -> Piece {
    let mut name = String::new();
    if rest.next_if_eq(&'{').is_some() {
        while let Some(c) = rest.next_if(|c| *c != '}' && *c != '\n') {
            name.push(c);
        }
        rest.next_if_eq(&'}');
    } else if let Some(c) = rest.next_if(|c| "?*@#".contains(*c)) {
        name.push(c);
    } else {
        while let Some(c) = rest.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
            name.push(c);
        }
    }
    if name.is_empty() {
        return Piece::Text("$".into());
    }
    Piece::Variable { name, quoted }
}
