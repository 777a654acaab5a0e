//! Entries of the UAPI Group's Boot Loader Specification (type 1): `/boot/loader/entries/*.conf`.

use std::cmp::Ordering;

use super::refusal::Refusal;
use super::tree::Tree;
use super::version;

/// Where they are.
pub const DIRECTORY: &str = "/boot/loader/entries";
/// Bytes of an entry.
const MAX_ENTRY: u64 = 64 << 10;
/// Entries.
const MAX_ENTRIES: usize = 1000;

/// An entry that boots Linux on x86-64.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Its file's path.
    pub path: String,
    /// Of the kernel: what entries are sorted by.
    pub version: String,
    /// The kernel, as it stands there.
    pub linux: String,
    /// Initrds, which are loaded one behind the other.
    pub initrds: Vec<String>,
    /// The command line.
    pub options: String,
    /// It has been tried as often as it may be, and never came up (boot counting).
    pub is_bad: bool,
}

/// All entries, the newest first.
pub fn entries(tree: &Tree) -> Result<Vec<Entry>, Refusal> {
    let mut names = tree.names(DIRECTORY)?;
    names.retain(|name| name.strip_suffix(".conf").is_some());
    if names.len() > MAX_ENTRIES {
        return Err(Refusal::new(DIRECTORY, format!("it has {} entries", names.len())));
    }
    let mut entries = Vec::new();
    for name in names {
        let path = format!("{DIRECTORY}/{name}");
        if let Some(text) = tree.text(&path, MAX_ENTRY)? {
            entries.extend(parse(&path, &text));
        }
    }
    entries.sort_by(|a, b| newer(b, a));
    Ok(entries)
}

fn newer(a: &Entry, b: &Entry) -> Ordering {
    let good = |entry: &Entry| !entry.is_bad;
    good(a)
        .cmp(&good(b))
        .then_with(|| version::compare(&a.version, &b.version))
        .then_with(|| version::compare(&a.path, &b.path))
}

/// An entry; `None` where it boots something else.
fn parse(path: &str, text: &str) -> Option<Entry> {
    let name = path.rsplit('/').next().unwrap_or(path).trim_end_matches(".conf");
    let mut entry = Entry {
        path: path.into(),
        is_bad: tries_left(name) == Some(0),
        ..Entry::default()
    };
    let mut options = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        let (key, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let value = value.trim();
        match key {
            "version" => entry.version = value.into(),
            "linux" => entry.linux = value.into(),
            "initrd" => entry.initrds.extend(value.split_whitespace().map(str::to_owned)),
            "options" => options.push(value),
            "architecture" if !value.eq_ignore_ascii_case("x64") => return None,
            _ => {}
        }
    }
    if entry.version.is_empty() {
        name.clone_into(&mut entry.version);
    }
    entry.options = options.join(" ");
    (!entry.linux.is_empty()).then_some(entry)
}

/// `NAME+LEFT-DONE`.
fn tries_left(name: &str) -> Option<u32> {
    let counts = name.rsplit_once('+')?.1;
    counts.split('-').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::pretended::Pretended;
    use super::*;

    #[test]
    fn the_newest_that_came_up_is_first() {
        let entry = |version: &str| format!("title x\nversion {version}\nlinux /vmlinuz-{version}\n");
        let boot = Pretended::new()
            .file("/loader/entries/a.conf", &entry("6.1.9"))
            .file("/loader/entries/b.conf", &entry("6.1.10"))
            .file("/loader/entries/c+0-3.conf", &entry("6.2"))
            .file("/loader/entries/d.conf", "# none\nefi /x.efi\n")
            .file("/loader/entries/e.conf", "architecture aa64\nlinux /x\n")
            .file("/loader/entries/z.txt", &entry("9"));
        let tree = Tree {
            root: None,
            boot: Some(Box::new(boot)),
        };
        let versions: Vec<_> = entries(&tree).unwrap().into_iter().map(|entry| entry.version).collect();
        assert_eq!(versions, ["6.1.10", "6.1.9", "6.2"]);
    }

    #[test]
    fn its_lines_are_read() {
        let text = "title\tFedora\nversion 6.5\n\nlinux  /vmlinuz-6.5\ninitrd /a.img\ninitrd /b.img $tuned\n\
                    options root=UUID=1 ro\noptions quiet\ngrub_users $x\n";
        let entry = parse("/boot/loader/entries/x+2.conf", text).unwrap();
        assert_eq!(entry.linux, "/vmlinuz-6.5");
        assert_eq!(entry.initrds, ["/a.img", "/b.img", "$tuned"]);
        assert_eq!(entry.options, "root=UUID=1 ro quiet");
        assert!(!entry.is_bad);
        assert_eq!(parse("/boot/loader/entries/7.conf", "linux /x").unwrap().version, "7");
    }
}
