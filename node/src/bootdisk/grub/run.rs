//! What grub.cfg does: variables, conditions, and the menu that comes of them. What only draws, waits, or finds the disk that
//! is known already, does nothing here.

use std::collections::BTreeMap;

use super::super::refusal::Refusal;
use super::super::tree::{Node, Tree};
use super::lexer::{MAX_FILE, Piece, Word, tokens, unclear};
use super::parser::{Kind, Statement, parse};

/// Variables that are set.
const MAX_VARIABLES: usize = 1000;
/// Bytes of a value.
const MAX_VALUE: usize = 16 << 10;
/// Words of a condition, whose parts are looked at one within the other.
const MAX_CONDITION: usize = 64;
/// Initrds of an entry.
const MAX_INITRDS: usize = 100;
/// Entries of all menus.
const MAX_ENTRIES: usize = 1000;

/// An entry of the menu.
#[derive(Clone, Debug)]
pub struct Item {
    /// Its title.
    pub title: String,
    /// Its `--id`.
    pub id: Option<String>,
    /// What it does.
    pub kind: ItemKind,
}

/// What an entry of the menu does.
#[derive(Clone, Debug)]
pub enum ItemKind {
    /// It boots this, or it is not understood.
    Boots(Result<Linux, Refusal>),
    /// It shows others.
    Shows(Vec<Item>),
}

/// What an entry boots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Linux {
    /// The kernel, as it stands there.
    pub kernel: String,
    /// Its command line.
    pub words: String,
    /// Initrds.
    pub initrds: Vec<String>,
}

/// Executes a file.
pub struct Run<'a> {
    tree: &'a Tree,
    file: &'a str,
    variables: BTreeMap<String, String>,
    entries: usize,
}

/// What executing leaves.
#[derive(Default)]
struct Outcome {
    items: Vec<Item>,
    linux: Linux,
}

impl<'a> Run<'a> {
    /// Executes `file`, whose environment block has these variables. Returns the menu and the default that is set.
    pub fn menu(
        tree: &'a Tree,
        file: &'a str,
        text: &str,
        saved: &'a BTreeMap<String, String>,
    ) -> Result<(Vec<Item>, String), Refusal> {
        let directory = file.rsplit_once('/').map_or("", |(directory, _)| directory);
        let known = [
            ("prefix", directory),
            ("config_directory", directory),
            ("feature_menuentry_id", "y"),
            ("feature_timeout_style", "y"),
            ("feature_platform_search_hint", "y"),
            ("feature_default_font_path", "y"),
            ("grub_platform", "pc"),
            ("grub_cpu", "i386"),
        ];
        let mut run = Self {
            tree,
            file,
            variables: known.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            entries: 0,
        };
        run.variables.extend(saved.clone());
        let mut outcome = Outcome::default();
        run.all(&parse(file, &tokens(file, text)?)?, &mut outcome)?;
        let default = run.variables.remove("default").unwrap_or_default();
        Ok((outcome.items, default))
    }

    fn all(&mut self, statements: &[Statement], outcome: &mut Outcome) -> Result<(), Refusal> {
        for statement in statements {
            match &statement.kind {
                Kind::Command(words) => self.command(statement.line, words, outcome)?,
                Kind::Function => {}
                Kind::Menu {
                    is_submenu,
                    words,
                    body,
                } => {
                    let item = self.item(statement.line, *is_submenu, words, body)?;
                    outcome.items.push(item);
                }
                Kind::If(branches, otherwise) => {
                    let mut body = otherwise;
                    for (condition, then) in branches {
                        if self.holds(condition)? {
                            body = then;
                            break;
                        }
                    }
                    self.all(body, outcome)?;
                }
            }
        }
        Ok(())
    }

    fn item(&mut self, line: usize, is_submenu: bool, words: &[Word], body: &[Statement]) -> Result<Item, Refusal> {
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return Err(unclear(self.file, line, "it has too many entries"));
        }
        let words = self.expand(line, words)?;
        let mut words = words.into_iter();
        let title = words.next().unwrap_or_default();
        let mut id = None;
        while let Some(word) = words.next() {
            if word == "--id" {
                id = words.next();
            } else if let Some(value) = word.strip_prefix("--id=") {
                id = Some(value.into());
            }
        }
        // Its own variables are gone when it ends.
        let kept = self.variables.clone();
        let mut outcome = Outcome::default();
        let done = self.all(body, &mut outcome);
        self.variables = kept;
        let kind = if is_submenu {
            done?;
            ItemKind::Shows(outcome.items)
        } else {
            let boots = done.and_then(|()| {
                if outcome.linux.kernel.is_empty() {
                    Err(unclear(self.file, line, "this entry has no `linux`"))
                } else {
                    Ok(outcome.linux)
                }
            });
            ItemKind::Boots(boots)
        };
        Ok(Item { title, id, kind })
    }

    fn command(&mut self, line: usize, words: &[Word], outcome: &mut Outcome) -> Result<(), Refusal> {
        // An assignment's value is one word, whatever is in it.
        if let [word] = words
            && let Some(Piece::Text(first)) = word.pieces.first()
            && let Some((name, _)) = first.split_once('=')
            && is_name(name)
        {
            let whole = self.whole(line, word)?;
            return self.set(line, name, whole.split_once('=').map_or("", |(_, value)| value));
        }
        let expanded = self.expand(line, words)?;
        let Some((command, arguments)) = expanded.split_first() else {
            return Ok(());
        };
        match command.as_str() {
            "set" => {
                let text = arguments.join(" ");
                if let Some((name, value)) = text.split_once('=') {
                    self.set(line, name, value)?;
                }
            }
            "unset" => {
                for name in arguments {
                    self.variables.remove(name);
                }
            }
            "linux" | "linux16" | "linuxefi" => {
                let Some((kernel, words)) = arguments.split_first() else {
                    return Err(unclear(self.file, line, "`linux` without a kernel"));
                };
                outcome.linux.kernel = self.path(line, kernel)?;
                outcome.linux.words = words.join(" ");
            }
            "initrd" | "initrd16" | "initrdefi" => {
                if outcome.linux.initrds.len() + arguments.len() > MAX_INITRDS {
                    return Err(unclear(self.file, line, "too many initrds"));
                }
                for initrd in arguments {
                    let path = self.path(line, initrd)?;
                    outcome.linux.initrds.push(path);
                }
            }
            // These change what is booted in ways that are not followed.
            "source"
            | "."
            | "configfile"
            | "extract_entries_source"
            | "normal"
            | "blscfg"
            | "legacy_configfile"
            | "eval"
            | "regexp"
            | "read"
            | "chainloader"
            | "multiboot"
            | "multiboot2"
            | "kexec"
            | "load_env_from" => {
                return Err(unclear(self.file, line, &format!("`{command}`")));
            }
            _ => {}
        }
        Ok(())
    }

    fn set(&mut self, line: usize, name: &str, value: &str) -> Result<(), Refusal> {
        if value.len() > MAX_VALUE || (self.variables.len() >= MAX_VARIABLES && !self.variables.contains_key(name)) {
            return Err(unclear(self.file, line, "too much is kept in variables"));
        }
        self.variables.insert(name.into(), value.into());
        Ok(())
    }

    /// A file's path: on the file system that GRUB has searched for, which is this one.
    fn path(&self, line: usize, word: &str) -> Result<String, Refusal> {
        let root = self.variables.get("root").map_or("", String::as_str);
        let given = word.strip_prefix('(').and_then(|rest| rest.split_once(')'));
        match given {
            None => Ok(word.into()),
            Some((device, path)) if device == root => Ok(path.into()),
            Some((device, _)) => Err(unclear(self.file, line, &format!("the device ({device})"))),
        }
    }

    /// A word's text, not cut where variables have spaces.
    fn whole(&self, line: usize, word: &Word) -> Result<String, Refusal> {
        let mut text = String::new();
        for piece in &word.pieces {
            match piece {
                Piece::Text(piece) => text.push_str(piece),
                Piece::Variable { name, .. } => text.push_str(self.value(name)),
            }
            if text.len() > MAX_VALUE {
                return Err(unclear(self.file, line, "a word is too long"));
            }
        }
        Ok(text)
    }

    fn value(&self, name: &str) -> &str {
        self.variables.get(name).map_or("", String::as_str)
    }

    fn expand(&self, line: usize, words: &[Word]) -> Result<Vec<String>, Refusal> {
        let mut expanded: Vec<String> = Vec::new();
        // Bytes of values: what stands in the file is bounded by it.
        let mut total = 0;
        for word in words {
            let mut current = word.is_quoted.then(String::new);
            for piece in &word.pieces {
                match piece {
                    Piece::Text(text) => current.get_or_insert_default().push_str(text),
                    Piece::Variable { name, quoted: true } => {
                        let value = self.value(name);
                        total += value.len();
                        current.get_or_insert_default().push_str(value);
                    }
                    Piece::Variable { name, quoted: false } => {
                        let value = self.value(name);
                        let starts_apart = value.starts_with(char::is_whitespace);
                        total += value.len();
                        for (index, part) in value.split_whitespace().enumerate() {
                            if index > 0 || starts_apart {
                                expanded.extend(current.take());
                            }
                            current.get_or_insert_default().push_str(part);
                        }
                        if value.ends_with(char::is_whitespace) {
                            expanded.extend(current.take());
                        }
                    }
                }
                if total > MAX_FILE as usize || current.as_ref().is_some_and(|word| word.len() > MAX_VALUE) {
                    return Err(unclear(self.file, line, "a command is too long"));
                }
            }
            expanded.extend(current);
        }
        Ok(expanded)
    }

    /// Whether the last command of a condition succeeds. What is not known does not.
    fn holds(&mut self, condition: &[Statement]) -> Result<bool, Refusal> {
        let mut holds = false;
        for statement in condition {
            let Kind::Command(words) = &statement.kind else {
                return Err(unclear(self.file, statement.line, "a condition that is no command"));
            };
            let words = self.expand(statement.line, words)?;
            if words.len() > MAX_CONDITION {
                return Err(unclear(self.file, statement.line, "a condition that is too long"));
            }
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let (negated, words) = match &words[..] {
                ["!", rest @ ..] => (true, rest),
                all => (false, all),
            };
            let truth = match words {
                ["[", inner @ .., "]"] | ["test", inner @ ..] => self.test(statement.line, inner)?,
                ["true"] => true,
                _ => false,
            };
            holds = truth != negated;
        }
        Ok(holds)
    }

    /// `test`, without parentheses.
    fn test(&self, line: usize, words: &[&str]) -> Result<bool, Refusal> {
        if let Some(at) = words.iter().position(|word| *word == "-o") {
            return Ok(self.test(line, &words[..at])? || self.test(line, &words[at + 1..])?);
        }
        if let Some(at) = words.iter().position(|word| *word == "-a") {
            return Ok(self.test(line, &words[..at])? && self.test(line, &words[at + 1..])?);
        }
        match words {
            ["!", rest @ ..] => Ok(!self.test(line, rest)?),
            ["-z", text] => Ok(text.is_empty()),
            // An unquoted variable that is not set leaves nothing behind.
            ["-z"] => Ok(true),
            [] | ["-n" | "-f" | "-e" | "-s" | "-d"] => Ok(false),
            ["-e", path] => Ok(self.tree.find(on_disk(path))?.is_some()),
            ["-d", path] => Ok(matches!(self.tree.find(on_disk(path))?, Some((_, Node::Directory)))),
            ["-f", path] => Ok(matches!(self.tree.find(on_disk(path))?, Some((_, Node::File(_))))),
            ["-s", path] => Ok(matches!(self.tree.find(on_disk(path))?, Some((_, Node::File(1..))))),
            ["-n", text] | [text] => Ok(!text.is_empty()),
            [a, "=" | "==", b] => Ok(a == b),
            [a, "!=", b] => Ok(a != b),
            _ => Err(unclear(
                self.file,
                line,
                &format!("the condition `{}`", words.join(" ")),
            )),
        }
    }
}

/// A path of a condition, without the device: most begin with `$prefix`, which is one of the tree already.
fn on_disk(path: &str) -> &str {
    let apart = path.strip_prefix('(').and_then(|rest| rest.split_once(')'));
    apart.map_or(path, |(_, path)| path)
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}
