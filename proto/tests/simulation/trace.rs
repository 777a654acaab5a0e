//! What happened, for people. A run that failed is run once more with it.

use super::plan::MICRO;

#[derive(Default)]
pub struct Trace {
    on: bool,
    pub lines: Vec<String>,
}

impl Trace {
    pub fn new(on: bool) -> Self {
        Self { on, lines: Vec::new() }
    }

    pub fn line(&mut self, now: u64, text: impl FnOnce() -> String) {
        if self.on {
            self.lines.push(format!("{:>12} us  {}", now / MICRO, text()));
        }
    }
}
