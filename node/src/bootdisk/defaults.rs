//! `/etc/default/grub` and `/etc/default/grub.d/*.cfg`: the kernel's words, where there is no other configuration that has
//! them. They are shell scripts; what is read of them are assignments.

use std::collections::BTreeMap;

use super::refusal::Refusal;
use super::tree::Tree;

/// The file.
pub const FILE: &str = "/etc/default/grub";
/// Bytes of a file.
const MAX_FILE: u64 = 256 << 10;
/// Bytes of a value: what doubles itself line by line has an end.
const MAX_VALUE: usize = 16 << 10;

/// The words, as grub-mkconfig would write them, and what of the files was passed over.
pub fn words(tree: &Tree) -> Result<(String, Vec<String>), Refusal> {
    let mut files = vec![FILE.to_owned()];
    let mut more = tree.names("/etc/default/grub.d")?;
    more.retain(|name| name.strip_suffix(".cfg").is_some());
    more.sort();
    files.extend(more.iter().map(|name| format!("/etc/default/grub.d/{name}")));
    let mut values = BTreeMap::new();
    let mut notes = Vec::new();
    for file in files {
        if let Some(text) = tree.text(&file, MAX_FILE)? {
            assignments(&file, &text, &mut values, &mut notes);
        }
    }
    let value = |name: &str| values.get(name).map_or("", String::as_str);
    let words = [value("GRUB_CMDLINE_LINUX"), value("GRUB_CMDLINE_LINUX_DEFAULT")];
    let words: Vec<_> = words.into_iter().flat_map(str::split_whitespace).collect();
    Ok((words.join(" "), notes))
}

fn assignments(file: &str, text: &str, values: &mut BTreeMap<String, String>, notes: &mut Vec<String>) {
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        let Some((name, value)) = line.split_once('=') else {
            continue;
        };
        if !name.starts_with("GRUB_CMDLINE_LINUX") || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            continue;
        }
        match evaluate(value, values) {
            Some(value) => {
                values.insert(name.to_owned(), value);
            }
            None => notes.push(format!(
                "{file}, line {number}: passed over, as only a shell understands it: {line}"
            )),
        }
    }
}

/// A word of a shell: quotes, variables that were set here, and nothing that is executed.
fn evaluate(word: &str, values: &BTreeMap<String, String>) -> Option<String> {
    let mut text = String::new();
    let mut rest = word.chars().peekable();
    let mut quote = None;
    while let Some(c) = rest.next() {
        match c {
            '\'' | '"' if quote.is_none() => quote = Some(c),
            c if quote == Some(c) => quote = None,
            '\\' if quote != Some('\'') => text.push(rest.next()?),
            '`' if quote != Some('\'') => return None,
            '$' if quote != Some('\'') => {
                let braced = rest.next_if_eq(&'{').is_some();
                let mut name = String::new();
                while let Some(c) = rest.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
                    name.push(c);
                }
                if name.is_empty() || (braced && rest.next() != Some('}')) {
                    return None;
                }
                text.push_str(values.get(&name).map_or("", String::as_str));
            }
            c if quote.is_none() && c.is_whitespace() => {
                let rest: String = rest.collect();
                // A comment may follow; a command would have the value for itself alone.
                return (rest.trim().is_empty() || rest.trim_start().starts_with('#')).then_some(text);
            }
            ';' | '&' | '|' if quote.is_none() => return None,
            c => text.push(c),
        }
        if text.len() > MAX_VALUE {
            return None;
        }
    }
    quote.is_none().then_some(text)
}

#[cfg(test)]
mod tests {
    use super::super::pretended::Pretended;
    use super::*;

    fn read(root: Pretended) -> (String, Vec<String>) {
        let tree = Tree {
            root: Some(Box::new(root)),
            boot: None,
        };
        words(&tree).unwrap()
    }

    #[test]
    fn assignments_are_read_in_their_order() {
        let main = "# GRUB_CMDLINE_LINUX=\"no\"\nGRUB_DEFAULT=0\nGRUB_DISTRIBUTOR=`lsb_release -i`\n\
                    GRUB_CMDLINE_LINUX_DEFAULT=\"quiet   splash\" # why\nGRUB_CMDLINE_LINUX='a b'\n";
        let cloud = "GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX console=ttyS0,115200\"\nGRUB_CMDLINE_LINUX=${GRUB_CMDLINE_LINUX}\\ c\n";
        let root = Pretended::new()
            .file(FILE, main)
            .file("/etc/default/grub.d/10_cloud.cfg", cloud)
            .file("/etc/default/grub.d/20.bak", "GRUB_CMDLINE_LINUX=wrong\n");
        let (words, notes) = read(root);
        assert_eq!(words, "a b console=ttyS0,115200 c quiet splash");
        assert!(notes.is_empty(), "{notes:?}");
        assert_eq!(read(Pretended::new()).0, "");
    }

    #[test]
    fn what_only_a_shell_understands_is_passed_over_and_told() {
        let doubling = "GRUB_CMDLINE_LINUX=$GRUB_CMDLINE_LINUX$GRUB_CMDLINE_LINUX\n".repeat(100);
        let text = format!(
            "GRUB_CMDLINE_LINUX=\"x y\"\nGRUB_CMDLINE_LINUX=\"$(cat /x)\"\nGRUB_CMDLINE_LINUX=`x`\n\
             GRUB_CMDLINE_LINUX=\"open\nGRUB_CMDLINE_LINUX=a b\nGRUB_CMDLINE_LINUX=a;b\n{doubling}"
        );
        let (words, notes) = read(Pretended::new().file(FILE, &text));
        assert!(
            words.starts_with("x yx y") && words.len() <= MAX_VALUE,
            "{}",
            words.len()
        );
        for line in 2..=6 {
            let said = format!("line {line}:");
            assert!(notes.iter().any(|note| note.contains(&said)), "{said} {notes:?}");
        }
    }
}
