//! A program on a terminal's screen, in tmux: what a person sees, and keys.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// From one look at the screen to the next: tmux tells of no change.
const LOOK: Duration = Duration::from_millis(50);

/// A screen of its own, with its own tmux server.
pub struct Screen {
    socket: String,
}

impl Screen {
    /// Runs `command`, a shell's, on a screen of this size. `name` tells it from other screens of this process.
    pub fn start(name: &str, (columns, rows): (u16, u16), command: &str) -> Result<Self> {
        let screen = Self {
            socket: format!("lockstep-{}-{name}", std::process::id()),
        };
        let size = [columns.to_string(), rows.to_string()];
        screen.tmux(&["new-session", "-d", "-x", &size[0], "-y", &size[1], command])?;
        Ok(screen)
    }

    fn tmux(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new("tmux")
            // Nobody's configuration; UTF-8 whatever the locale is.
            .args(["-u", "-f", "/dev/null", "-L", &self.socket])
            .args(arguments)
            .output()
            .context("cannot start tmux")?;
        ensure!(
            output.status.success(),
            "tmux {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Types letters.
    pub fn type_text(&self, text: &str) -> Result<()> {
        self.tmux(&["send-keys", "-l", text]).map(drop)
    }

    /// Presses a key by its name: `Enter`, `Down`, `PageUp`.
    pub fn press(&self, key: &str) -> Result<()> {
        self.tmux(&["send-keys", key]).map(drop)
    }

    /// Gives the screen another size.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let size = [columns.to_string(), rows.to_string()];
        self.tmux(&["resize-window", "-x", &size[0], "-y", &size[1]]).map(drop)
    }

    /// What is on it.
    pub fn text(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Waits until what is on it is as wanted and stays so for a look: it may have been drawn by half. Returns it.
    pub fn wait(&self, limit: Duration, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let begin = Instant::now();
        let mut before = String::new();
        loop {
            let text = self.text()?;
            if text == before && wanted(&text) {
                return Ok(text);
            }
            if begin.elapsed() > limit {
                bail!("the screen did not become what was waited for:\n{text}");
            }
            before = text;
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until the command has written this file, which is the last that it does.
    pub fn wait_for_file(&self, path: &Path, limit: Duration) -> Result<String> {
        let begin = Instant::now();
        loop {
            if let Ok(text) = std::fs::read_to_string(path)
                && text.ends_with('\n')
            {
                return Ok(text);
            }
            ensure!(begin.elapsed() < limit, "{} is not written", path.display());
            std::thread::sleep(LOOK);
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // It is gone where its command has ended.
        let _ = self.tmux(&["kill-server"]);
    }
}
