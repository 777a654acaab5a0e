//! The last divergence reports, kept as files: messages may be gone when somebody asks.
//!
//! A report is a file of text, `divergence-NUMBER.txt`, in the form in which the messages have it. What cannot be written
//! is a message: no machine stands still for a report.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::durable;
use crate::out::printable;

/// Reports that are kept.
pub const KEPT: usize = 8;
/// How each begins, in messages and files.
pub const BEGIN: &str = "the backup diverged:";

const PREFIX: &str = "divergence-";
const SUFFIX: &str = ".txt";

/// Where the reports of a node are kept; `None`: nowhere.
#[derive(Clone, Debug, Default)]
pub struct Reports(Option<PathBuf>);

/// A report that was kept, to be completed.
#[derive(Clone, Debug)]
pub struct Kept {
    path: PathBuf,
    text: String,
}

impl Reports {
    /// In `directory`, which is made when the first one comes.
    pub fn new(directory: PathBuf) -> Self {
        Self(Some(directory))
    }

    /// Keeps a report, and of the older ones as many as there is room for. `None`: it is not kept.
    pub fn keep(&self, report: &str) -> Option<Kept> {
        let directory = self.0.as_ref()?;
        match keep_in(directory, report) {
            Ok(kept) => {
                tracing::info!("the report is kept in {}", kept.path.display());
                Some(kept)
            }
            Err(error) => {
                tracing::warn!("a divergence report cannot be kept in {}: {error}", directory.display());
                None
            }
        }
    }
}

impl Kept {
    /// Adds to the report.
    pub fn add(&mut self, more: &str) {
        self.text.push_str(more);
        if let Err(error) = write(&self.path, &self.text) {
            tracing::warn!("{} cannot be completed: {error}", self.path.display());
        }
    }
}

fn keep_in(directory: &Path, report: &str) -> io::Result<Kept> {
    fs::create_dir_all(directory)?;
    let mut numbers = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.parse::<u64>().ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    let number = numbers.last().map_or(1, |last| last.saturating_add(1));
    let kept = Kept {
        path: path(directory, number),
        text: format!("{BEGIN}\n{}\n", printable(report)),
    };
    write(&kept.path, &kept.text)?;
    for old in numbers.iter().rev().skip(KEPT - 1) {
        fs::remove_file(path(directory, *old))?;
    }
    Ok(kept)
}

fn path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{PREFIX}{number:08}{SUFFIX}"))
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let staged = path.with_extension("new");
    // What the guest had in memory is in it.
    durable::stage(&staged, text.as_bytes(), 0o600)?;
    durable::publish(&staged, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_reports_are_kept_and_can_be_completed() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("reports");
        let reports = Reports::new(directory.clone());
        for number in 1..=KEPT + 3 {
            let mut kept = reports.keep(&format!("report {number}")).unwrap();
            kept.add(&format!("more of {number}\n"));
        }
        let mut names: Vec<_> = fs::read_dir(&directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let expected: Vec<_> = (4..=KEPT + 3)
            .map(|number| format!("divergence-{number:08}.txt"))
            .collect();
        assert_eq!(names, expected);
        assert_eq!(
            fs::read_to_string(directory.join("divergence-00000011.txt")).unwrap(),
            "the backup diverged:\nreport 11\nmore of 11\n"
        );
    }

    #[test]
    fn what_cannot_be_kept_is_left() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("file"), "").unwrap();
        assert!(Reports::new(home.path().join("file")).keep("report").is_none());
        assert!(Reports::default().keep("report").is_none());
        // Another file's number is not ours to count on.
        fs::write(home.path().join("divergence-x.txt"), "").unwrap();
        assert!(Reports::new(home.path().into()).keep("report").is_some());
        assert!(home.path().join("divergence-00000001.txt").exists());
    }
}
