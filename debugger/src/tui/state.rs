//! What the screen is about: where the cursor stands, and what keys make of it.

use lockstep_proto::quantity::StopNumber;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use regex::Regex;

use super::index::Index;
use super::scene::Scene;
use crate::kinds::Kind;

/// Longest text that is typed in.
const MAX_TYPED: usize = 200;

/// What is typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Keys move the cursor.
    Move,
    /// A position is being typed.
    Jump(String),
    /// A pattern is being typed.
    Search(String),
    /// The keys are explained.
    Help,
}

/// What a key came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Draw anew.
    Draw,
    /// The cursor has moved: the machine goes there.
    Go,
    /// The end.
    Quit,
}

/// The screen's state.
pub struct State {
    /// The stop where the cursor is.
    pub stop: StopNumber,
    /// The turn that is marked: the last one at or before the cursor.
    pub row: usize,
    /// What keys do.
    pub mode: Mode,
    /// The last thing to tell.
    pub message: String,
    /// The machine, where it arrived last.
    pub scene: Option<Scene>,
    /// Where the machine is on its way.
    pub walking: Option<StopNumber>,
    /// Rows in the list of turns, as it was drawn last.
    pub page: usize,
    pattern: Option<Regex>,
    kind: Option<Kind>,
}

impl State {
    /// At the recording's first turn.
    pub fn new(index: &Index) -> Self {
        Self {
            stop: index.rows().first().map_or(StopNumber::START, |row| row.stop),
            row: 0,
            mode: Mode::Move,
            message: "? explains the keys".into(),
            scene: None,
            walking: None,
            page: 10,
            pattern: None,
            kind: None,
        }
    }

    /// The kind that `f` has chosen.
    pub fn kind(&self) -> Option<Kind> {
        self.kind
    }

    /// Takes a key.
    pub fn key(&mut self, key: KeyEvent, index: &mut Index) -> Outcome {
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            return Outcome::Quit;
        }
        match std::mem::replace(&mut self.mode, Mode::Move) {
            Mode::Move => self.moved(key.code, index),
            Mode::Help => Outcome::Draw,
            Mode::Jump(text) => match typed(text, key.code) {
                Typed::More(text) => self.mode(Mode::Jump(text)),
                Typed::Given(text) => self.jump(&text, index),
                Typed::Dropped => Outcome::Draw,
            },
            Mode::Search(text) => match typed(text, key.code) {
                Typed::More(text) => self.mode(Mode::Search(text)),
                Typed::Given(text) => match Regex::new(&text) {
                    Ok(pattern) => {
                        self.pattern = Some(pattern);
                        self.find(true, index)
                    }
                    Err(error) => self.tell(error.to_string().lines().last().unwrap_or_default()),
                },
                Typed::Dropped => Outcome::Draw,
            },
        }
    }

    fn moved(&mut self, code: KeyCode, index: &mut Index) -> Outcome {
        let last = index.rows().len().saturating_sub(1);
        let row = match code {
            KeyCode::Char('q') => return Outcome::Quit,
            KeyCode::Char('?') | KeyCode::F(1) => return self.mode(Mode::Help),
            KeyCode::Char('g' | ':') => return self.mode(Mode::Jump(String::new())),
            KeyCode::Char('/') => return self.mode(Mode::Search(String::new())),
            KeyCode::Char('n') => return self.find(true, index),
            KeyCode::Char('N') => return self.find(false, index),
            KeyCode::Char('f') => return self.next_kind(),
            KeyCode::Char(']') => return self.find_kind(true, index),
            KeyCode::Char('[') => return self.find_kind(false, index),
            KeyCode::Right | KeyCode::Char('l') => return self.go_to_stop(self.stop.plus(1), index),
            KeyCode::Left | KeyCode::Char('h') => return self.go_to_stop(self.stop.before(), index),
            KeyCode::Down | KeyCode::Char('j') => (self.row + 1).min(last),
            KeyCode::Up | KeyCode::Char('k') => self.row.saturating_sub(1),
            KeyCode::PageDown | KeyCode::Char(' ') => (self.row + self.page).min(last),
            KeyCode::PageUp | KeyCode::Char('b') => self.row.saturating_sub(self.page),
            KeyCode::Home => 0,
            KeyCode::End | KeyCode::Char('G') => last,
            _ => return Outcome::Draw,
        };
        self.go_to_row(row, index)
    }

    fn mode(&mut self, mode: Mode) -> Outcome {
        self.mode = mode;
        Outcome::Draw
    }

    /// Tells something.
    pub fn tell(&mut self, text: impl Into<String>) -> Outcome {
        self.message = text.into();
        Outcome::Draw
    }

    fn go_to_row(&mut self, row: usize, index: &Index) -> Outcome {
        let Some(there) = index.rows().get(row) else {
            return Outcome::Draw;
        };
        self.row = row;
        self.stop = there.stop;
        self.message.clear();
        Outcome::Go
    }

    fn go_to_stop(&mut self, stop: StopNumber, index: &Index) -> Outcome {
        let first = index.rows().first().map_or(StopNumber::START, |row| row.stop);
        if !(first..=index.last_stop()).contains(&stop) {
            return self.tell(format!("the recording has stops {first} to {}", index.last_stop()));
        }
        self.stop = stop;
        self.row = index.at_stop(stop);
        self.message.clear();
        Outcome::Go
    }

    fn jump(&mut self, text: &str, index: &Index) -> Outcome {
        match index.position(text.trim()) {
            Err(why) => self.tell(format!("{why:#}")),
            Ok(position) => match index.stop_of(position) {
                Some(stop) => self.go_to_stop(stop, index),
                None => self.tell(format!("{position} lies beyond the end")),
            },
        }
    }

    fn find(&mut self, forward: bool, index: &mut Index) -> Outcome {
        let Some(pattern) = self.pattern.clone() else {
            return self.tell("/ begins a search");
        };
        self.found(index.find(self.row, forward, self.kind, Some(&pattern)), index)
    }

    fn find_kind(&mut self, forward: bool, index: &mut Index) -> Outcome {
        if self.kind.is_none() {
            return self.tell("f chooses a kind of turns");
        }
        self.found(index.find(self.row, forward, self.kind, None), index)
    }

    fn found(&mut self, found: anyhow::Result<Option<usize>>, index: &Index) -> Outcome {
        match found {
            Ok(Some(row)) => self.go_to_row(row, index),
            Ok(None) => self.tell("no turn matches"),
            Err(error) => self.tell(format!("{error:#}")),
        }
    }

    fn next_kind(&mut self) -> Outcome {
        let kinds = Kind::all();
        self.kind = match self.kind {
            None => kinds.first().copied(),
            Some(kind) => kinds.iter().skip_while(|other| **other != kind).nth(1).copied(),
        };
        match self.kind {
            Some(kind) => self.tell(format!("[ and ] go to turns of kind {}", kind.name())),
            None => self.tell("no kind is chosen"),
        }
    }
}

enum Typed {
    More(String),
    Given(String),
    Dropped,
}

fn typed(mut text: String, code: KeyCode) -> Typed {
    match code {
        KeyCode::Enter if text.is_empty() => Typed::Dropped,
        KeyCode::Enter => Typed::Given(text),
        KeyCode::Esc => Typed::Dropped,
        KeyCode::Backspace => {
            text.pop();
            Typed::More(text)
        }
        KeyCode::Char(letter) if text.len() < MAX_TYPED => {
            text.push(letter);
            Typed::More(text)
        }
        _ => Typed::More(text),
    }
}
