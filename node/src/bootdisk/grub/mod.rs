//! GRUB's configuration: its menu, and which entry of it is the default.

mod lexer;
mod parser;
mod run;

use std::collections::BTreeMap;

use super::refusal::Refusal;
use super::tree::Tree;
use lexer::MAX_FILE;
use run::{Item, ItemKind, Run};

pub use run::Linux;

/// Where grub.cfg is, in the order in which it is looked for.
const FILES: [&str; 2] = ["/boot/grub/grub.cfg", "/boot/grub2/grub.cfg"];
/// Bytes of an environment block; GRUB's has 1024.
const MAX_ENVIRONMENT: u64 = 64 << 10;

/// The menu.
pub struct Menu {
    /// The file that it is from.
    pub file: String,
    items: Vec<Item>,
    default: String,
}

impl Menu {
    /// The menu of the guest's grub.cfg, if there is one.
    pub fn read(tree: &Tree) -> Result<Option<Self>, Refusal> {
        for file in FILES {
            if let Some(text) = tree.text(file, MAX_FILE)? {
                let saved = environment(tree)?;
                let (items, default) = Run::menu(tree, file, &text, &saved)?;
                return Ok(Some(Self {
                    file: file.into(),
                    items,
                    default,
                }));
            }
        }
        Ok(None)
    }

    /// What the default entry boots, and its title. The first one is the default where none of the name is there.
    pub fn default(&self) -> Option<(&str, Result<&Linux, Refusal>)> {
        let mut items = &self.items;
        let mut name = self.default.as_str();
        loop {
            let (head, rest) = name.split_once('>').unwrap_or((name, ""));
            let item = pick(items, head)?;
            match &item.kind {
                ItemKind::Boots(boots) => return Some((&item.title, boots.as_ref().map_err(Clone::clone))),
                ItemKind::Shows(inner) => (items, name) = (inner, rest),
            }
        }
    }

    /// What the first entry boots that `wanted` says yes to; the default one is asked first.
    pub fn first(&self, mut wanted: impl FnMut(&Linux) -> Result<bool, Refusal>) -> Result<Option<&Linux>, Refusal> {
        let mut all: Vec<&Linux> = self.default().and_then(|(_, boots)| boots.ok()).into_iter().collect();
        gather(&self.items, &mut all);
        for linux in all {
            if wanted(linux)? {
                return Ok(Some(linux));
            }
        }
        Ok(None)
    }
}

/// By number, title or id.
fn pick<'a>(items: &'a [Item], name: &str) -> Option<&'a Item> {
    let numbered = name.trim().parse::<usize>().ok().and_then(|number| items.get(number));
    let named = || {
        items
            .iter()
            .find(|item| item.id.as_deref() == Some(name) || item.title == name)
    };
    numbered.or_else(named).or(items.first())
}

fn gather<'a>(items: &'a [Item], all: &mut Vec<&'a Linux>) {
    for item in items {
        match &item.kind {
            ItemKind::Boots(boots) => all.extend(boots),
            ItemKind::Shows(inner) => gather(inner, all),
        }
    }
}

/// The variables of GRUB's environment block, where it keeps what is to last from one boot to the next.
pub fn environment(tree: &Tree) -> Result<BTreeMap<String, String>, Refusal> {
    for file in FILES {
        let block = file.replace("grub.cfg", "grubenv");
        if let Some(text) = tree.text(&block, MAX_ENVIRONMENT)? {
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            let pairs = lines.filter_map(|line| line.split_once('='));
            return Ok(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect());
        }
    }
    Ok(BTreeMap::new())
}

#[cfg(test)]
mod tests;
