//! `lockstep-debug tui`: a screen on which one walks through a recording.
//!
//! [`index`] has the turns, [`guide`] takes the machine to the cursor in a thread of its own, [`scene`] is what is shown of
//! it, [`state`] what keys make of the cursor, [`view`] draws.

mod guide;
mod index;
mod scene;
mod state;
mod view;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::PoisonError;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use lockstep_node::out::one_line;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};

use crate::Recording;
use crate::timeline::TimelineOptions;
use guide::{Guide, News};
use index::Index;
use state::{Outcome, State};

/// From one look at the machine's thread to the next while no key is typed.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Args)]
pub struct TuiOptions {
    #[command(flatten)]
    recording: Recording,
    /// The recorded kernel's vmlinux, for symbols.
    #[arg(long, value_name = "FILE")]
    vmlinux: Option<PathBuf>,
    #[command(flatten)]
    timeline: TimelineOptions,
}

pub fn run(options: &TuiOptions) -> Result<ExitCode> {
    if !std::io::stdout().is_terminal() {
        bail!("the screen needs a terminal; `show`, `events` and `console` print");
    }
    let directory = options.recording.one()?;
    let mut index = Index::read(directory)?;
    if index.rows().is_empty() {
        bail!("the log has no turns: there is nothing to walk through");
    }
    let guide = Guide::start(directory.to_owned(), options.timeline.clone(), options.vmlinux.clone())?;
    let title = format!("lockstep-debug  {}", one_line(&directory.display().to_string()));
    // Restored when this function ends, and by ratatui's hook in a panic.
    let terminal = ratatui::init();
    let result = show(terminal, &mut index, &guide, &title);
    ratatui::restore();
    result.map(|()| ExitCode::SUCCESS)
}

fn show(mut terminal: DefaultTerminal, index: &mut Index, guide: &Guide, title: &str) -> Result<()> {
    let mut state = State::new(index);
    guide.go(state.stop);
    let mut stale = true;
    loop {
        while let Ok(news) = guide.news.try_recv() {
            stale = true;
            match news {
                News::Arrived(scene) => {
                    state.walking = None;
                    state.scene = Some(*scene);
                }
                News::Walking(stop) => state.walking = Some(stop),
                News::Failed(why) => bail!("the replay cannot go on: {why}"),
            }
        }
        if stale {
            let printed = guide.printed.lock().unwrap_or_else(PoisonError::into_inner);
            terminal.draw(|frame| view::draw(frame, &mut state, index, &printed, title))?;
            stale = false;
        }
        if !event::poll(LOOK)? {
            continue;
        }
        stale = true;
        let outcome = match event::read()? {
            Event::Key(key) if key.kind != KeyEventKind::Release => state.key(key, index),
            _ => Outcome::Draw,
        };
        match outcome {
            Outcome::Draw => {}
            Outcome::Go => guide.go(state.stop),
            Outcome::Quit => return Ok(()),
        }
    }
}
