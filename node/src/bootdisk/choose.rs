//! Which kernel a guest is booted with: the links that its distribution keeps, else the newest entry of the Boot Loader
//! Specification, else the default of GRUB's menu.

use super::bls::{self, Entry};
use super::defaults;
use super::grub::{self, Linux, Menu};
use super::refusal::Refusal;
use super::tree::{Node, Tree};

/// Links to a kernel and to its initrd.
const LINKS: [(&str, &str); 3] = [
    ("/vmlinuz", "/initrd.img"),
    ("/boot/vmlinuz", "/boot/initrd.img"),
    ("/boot/vmlinuz", "/boot/initrd"),
];

/// What is booted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// The kernel's path in the guest.
    pub kernel: String,
    /// The initrds' paths, which are loaded one behind the other.
    pub initrds: Vec<String>,
    /// The command line that the guest's own configuration has.
    pub words: String,
    /// What the choice and the words follow from, for people.
    pub how: String,
    /// What was passed over, for people.
    pub notes: Vec<String>,
}

/// Chooses. `root`: the word that names the root file system where no configuration does, if there is one.
pub fn choose(tree: &Tree, root: Option<&str>) -> Result<Chosen, Refusal> {
    let mut notes = Vec::new();
    if let Some(mut chosen) = by_links(tree, &mut notes)? {
        words_for(tree, root, &mut chosen, &mut notes)?;
        chosen.notes = notes;
        return Ok(chosen);
    }
    if let Some(entry) = bls::entries(tree)?.first() {
        return Ok(Chosen {
            kernel: needed(tree, &entry.linux, &entry.path)?,
            initrds: all(tree, &entry.initrds, &entry.path)?,
            words: options(tree, entry)?,
            how: format!("the newest entry of {}: {}", bls::DIRECTORY, entry.path),
            notes,
        });
    }
    if let Some(menu) = Menu::read(tree)?
        && let Some((title, boots)) = menu.default()
    {
        let linux = boots?;
        return Ok(Chosen {
            kernel: needed(tree, &linux.kernel, &menu.file)?,
            initrds: all(tree, &linux.initrds, &menu.file)?,
            words: linux.words.clone(),
            how: format!("the default of {}: {title}", menu.file),
            notes,
        });
    }
    let mut why =
        "it has no /vmlinuz or /boot/vmlinuz that leads to a kernel, no entries in /boot/loader/entries and no \
                   /boot/grub/grub.cfg"
            .to_owned();
    for note in notes {
        why = format!("{why}; {note}");
    }
    Err(Refusal::new("the guest's file system", why))
}

/// By the links of Debian, Ubuntu and SUSE.
fn by_links(tree: &Tree, notes: &mut Vec<String>) -> Result<Option<Chosen>, Refusal> {
    for (link, initrd) in LINKS {
        let Some(kernel) = tree.file(link)? else {
            let note = format!("{link} leads to nothing");
            if tree.is_there(link)? && !notes.contains(&note) {
                notes.push(note);
            }
            continue;
        };
        let initrds = match tree.file(initrd)? {
            Some(initrd) => vec![initrd],
            None if tree.is_there(initrd)? => {
                return Err(Refusal::new(initrd, format!("it leads to nothing, and {link} to {kernel}")).or(
                    "have the guest make it (update-initramfs -u -k all), or remove the link if the kernel needs none",
                ));
            }
            None if link == "/boot/vmlinuz" && initrd == "/boot/initrd.img" && tree.file("/boot/initrd")?.is_some() => {
                continue;
            }
            None => Vec::new(),
        };
        return Ok(Some(Chosen {
            kernel,
            initrds,
            how: format!("the link {link}"),
            ..Chosen::default()
        }));
    }
    Ok(None)
}

/// The words for a kernel that a link leads to: those of the entry that boots it, else those that grub-mkconfig would write.
fn words_for(tree: &Tree, root: Option<&str>, chosen: &mut Chosen, notes: &mut Vec<String>) -> Result<(), Refusal> {
    for entry in bls::entries(tree)? {
        if located(tree, &entry.linux)?.as_ref() == Some(&chosen.kernel) {
            chosen.words = options(tree, &entry)?;
            chosen.how = format!("{}, words of {}", chosen.how, entry.path);
            return Ok(());
        }
    }
    match Menu::read(tree) {
        Err(error) => notes.push(format!("its words are not taken from there: {error}")),
        Ok(None) => {}
        Ok(Some(menu)) => {
            let is_it = |linux: &Linux| Ok(located(tree, &linux.kernel)?.as_ref() == Some(&chosen.kernel));
            if let Some(linux) = menu.first(is_it)? {
                chosen.words.clone_from(&linux.words);
                chosen.how = format!("{}, words of {}", chosen.how, menu.file);
                return Ok(());
            }
            notes.push(format!("{} has no entry that boots {}", menu.file, chosen.kernel));
        }
    }
    let Some(root) = root else {
        let why = "the root file system is not read, and no configuration says where it is";
        return Err(Refusal::new(&chosen.kernel, why));
    };
    let (words, passed_over) = defaults::words(tree)?;
    notes.extend(passed_over);
    chosen.words = format!("{root} ro {words}").trim_end().into();
    chosen.how = format!("{}, words of {}", chosen.how, defaults::FILE);
    Ok(())
}

/// An entry's options, with the variables of GRUB's environment block that Fedora's have.
fn options(tree: &Tree, entry: &Entry) -> Result<String, Refusal> {
    let known = grub::environment(tree)?;
    let mut words = Vec::new();
    for word in entry.options.split_whitespace() {
        match word.strip_prefix('$') {
            None => words.push(word),
            // Its initrd or its words were added by a program that is not there: GRUB makes it nothing, too.
            Some(name) => words.extend(known.get(name).map(String::as_str)),
        }
    }
    Ok(words.join(" "))
}

/// Where a loader's path leads: it is one of the file system that has the loader's files, which is the root or `/boot`.
fn located(tree: &Tree, path: &str) -> Result<Option<String>, Refusal> {
    let path = path.trim_start_matches('/');
    let below = [format!("/boot/{path}"), format!("/{path}")];
    let [apart, whole] = if tree.boot.is_some() {
        below
    } else {
        [below[1].clone(), below[0].clone()]
    };
    Ok(match tree.file(&apart)? {
        Some(place) => Some(place),
        None => tree.file(&whole)?,
    })
}

fn needed(tree: &Tree, path: &str, of: &str) -> Result<String, Refusal> {
    located(tree, path)?.ok_or_else(|| {
        let what = match tree.find(path) {
            Ok(Some((_, Node::Directory))) => "a directory",
            Ok(Some(_)) => "no regular file",
            _ => "not there",
        };
        Refusal::new(of, format!("it names {path}, which is {what}"))
            .or("have the guest make its boot loader's configuration anew (update-grub, kernel-install)")
    })
}

fn all(tree: &Tree, paths: &[String], of: &str) -> Result<Vec<String>, Refusal> {
    let named = paths.iter().filter(|path| !path.starts_with('$'));
    named.map(|path| needed(tree, path, of)).collect()
}

#[cfg(test)]
mod tests;
