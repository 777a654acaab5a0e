//! What grub.cfg says, as statements.

use super::super::refusal::Refusal;
use super::lexer::{Token, Word, unclear};

/// Blocks within blocks.
const MAX_DEPTH: usize = 32;

/// A statement, with its line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// From 1.
    pub line: usize,
    /// What it is.
    pub kind: Kind,
}

/// What a statement is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A command with its arguments.
    Command(Vec<Word>),
    /// Branches with their conditions, and what is done otherwise.
    If(Vec<(Vec<Statement>, Vec<Statement>)>, Vec<Statement>),
    /// `menuentry` or `submenu`, its arguments, its body.
    Menu {
        /// It is a `submenu`.
        is_submenu: bool,
        /// Title and options.
        words: Vec<Word>,
        /// What it does.
        body: Vec<Statement>,
    },
    /// A function is defined; what calls it has no say in what is booted.
    Function,
}

/// Reads a file's tokens.
pub fn parse(file: &str, tokens: &[(usize, Token)]) -> Result<Vec<Statement>, Refusal> {
    let mut parser = Parser { file, tokens, at: 0 };
    let (statements, end) = parser.list(0, &[])?;
    match end {
        None => Ok(statements),
        Some(_) => Err(parser.unclear("`}` without `{`")),
    }
}

struct Parser<'a> {
    file: &'a str,
    tokens: &'a [(usize, Token)],
    at: usize,
}

impl Parser<'_> {
    fn line(&self) -> usize {
        let at = self.at.min(self.tokens.len().saturating_sub(1));
        self.tokens.get(at).map_or(1, |(line, _)| *line)
    }

    fn unclear(&self, why: &str) -> Refusal {
        unclear(self.file, self.line(), why)
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|(_, token)| token)
    }

    fn keyword(&self) -> Option<String> {
        match self.peek() {
            Some(Token::Word(word)) => word.plain().map(str::to_owned),
            _ => None,
        }
    }

    /// Statements up to one of `ends`, a `}` (which is taken as is one of `ends`), or the file's end; and which it was.
    fn list(&mut self, depth: usize, ends: &[&str]) -> Result<(Vec<Statement>, Option<String>), Refusal> {
        if depth > MAX_DEPTH {
            return Err(self.unclear("blocks within blocks, too many of them"));
        }
        let mut statements = Vec::new();
        loop {
            match self.peek() {
                None => return Ok((statements, None)),
                Some(Token::End) => self.at += 1,
                Some(Token::Close) => {
                    self.at += 1;
                    return Ok((statements, Some("}".into())));
                }
                Some(Token::Open) => return Err(self.unclear("`{` without a name")),
                Some(Token::Word(_)) => {
                    let keyword = self.keyword();
                    if let Some(end) = keyword.as_deref().filter(|word| ends.contains(word)) {
                        self.at += 1;
                        return Ok((statements, Some(end.into())));
                    }
                    statements.push(self.statement(depth, keyword.as_deref())?);
                }
            }
        }
    }

    fn statement(&mut self, depth: usize, keyword: Option<&str>) -> Result<Statement, Refusal> {
        let line = self.line();
        let kind = match keyword {
            Some("if") => self.branches(depth)?,
            Some("function") => {
                self.at += 1;
                self.words();
                self.block(depth)?;
                Kind::Function
            }
            Some(word @ ("menuentry" | "submenu")) => {
                self.at += 1;
                let words = self.words();
                Kind::Menu {
                    is_submenu: word == "submenu",
                    words,
                    body: self.block(depth)?,
                }
            }
            Some(
                word
                @ ("for" | "while" | "until" | "case" | "select" | "then" | "else" | "elif" | "fi" | "do" | "done"),
            ) => {
                return Err(self.unclear(&format!("`{word}` here")));
            }
            _ => Kind::Command(self.words()),
        };
        Ok(Statement { line, kind })
    }

    /// The words up to what is none.
    fn words(&mut self) -> Vec<Word> {
        let mut words = Vec::new();
        while let Some(Token::Word(word)) = self.peek() {
            words.push(word.clone());
            self.at += 1;
        }
        words
    }

    fn block(&mut self, depth: usize) -> Result<Vec<Statement>, Refusal> {
        while self.peek() == Some(&Token::End) {
            self.at += 1;
        }
        if self.peek() != Some(&Token::Open) {
            return Err(self.unclear("`{` is missing"));
        }
        self.at += 1;
        match self.list(depth + 1, &[])? {
            (body, Some(_)) => Ok(body),
            (_, None) => Err(self.unclear("`}` is missing")),
        }
    }

    /// From `if` to `fi`.
    fn branches(&mut self, depth: usize) -> Result<Kind, Refusal> {
        self.at += 1;
        let mut branches = Vec::new();
        loop {
            let (condition, end) = self.list(depth + 1, &["then"])?;
            if end.as_deref() != Some("then") {
                return Err(self.unclear("`then` is missing"));
            }
            let (body, end) = self.list(depth + 1, &["elif", "else", "fi"])?;
            branches.push((condition, body));
            match end.as_deref() {
                Some("elif") => {}
                Some("fi") => return Ok(Kind::If(branches, Vec::new())),
                Some("else") => {
                    let (otherwise, end) = self.list(depth + 1, &["fi"])?;
                    return match end.as_deref() {
                        Some("fi") => Ok(Kind::If(branches, otherwise)),
                        _ => Err(self.unclear("`fi` is missing")),
                    };
                }
                _ => return Err(self.unclear("`fi` is missing")),
            }
        }
    }
}
