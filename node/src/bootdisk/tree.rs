//! The directory tree of a guest as it will see it: its root file system, with `/boot` from another partition where it has
//! one of its own. Symbolic links are followed here, each with its bounds, across both.

use super::refusal::Refusal;

/// Symbolic links on the way to one file, as many as Linux follows.
const MAX_LINKS: usize = 40;
/// Names on the way to one file, those of links included.
const MAX_STEPS: usize = 1000;

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Directory,
    /// A regular file, with its bytes.
    File(u64),
    /// A symbolic link, with what it leads to.
    Link(String),
    /// A device, a socket, a pipe.
    Other,
}

/// A file system that is read. Paths are absolute within it, and no name in them but the last is a link.
pub trait FileSystem {
    /// What is there, if anything.
    fn look(&self, path: &str) -> Result<Option<Node>, Refusal>;
    /// The names in a directory that are UTF-8, in no order.
    fn names(&self, path: &str) -> Result<Vec<String>, Refusal>;
    /// A regular file of at most `limit` bytes.
    fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>, Refusal>;
}

impl<F: FileSystem> FileSystem for std::rc::Rc<F> {
    fn look(&self, path: &str) -> Result<Option<Node>, Refusal> {
        (**self).look(path)
    }

    fn names(&self, path: &str) -> Result<Vec<String>, Refusal> {
        (**self).names(path)
    }

    fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>, Refusal> {
        (**self).read(path, limit)
    }
}

/// The tree.
pub struct Tree {
    /// The root file system, where it can be read.
    pub root: Option<Box<dyn FileSystem>>,
    /// What is mounted at `/boot`.
    pub boot: Option<Box<dyn FileSystem>>,
}

impl Tree {
    /// Where `path` leads, links followed, and what is there: a directory, a file, or something else.
    pub fn find(&self, path: &str) -> Result<Option<(String, Node)>, Refusal> {
        let mut ahead: Vec<String> = components(path).rev().map(str::to_owned).collect();
        let mut at: Vec<String> = Vec::new();
        let mut node = Node::Directory;
        let (mut links, mut steps) = (0, 0);
        while let Some(name) = ahead.pop() {
            steps += 1;
            if links > MAX_LINKS || steps > MAX_STEPS || ahead.len() > MAX_STEPS {
                return Err(Refusal::new(
                    path,
                    "its symbolic links lead nowhere: there are too many of them",
                ));
            }
            if name == ".." {
                at.pop();
                node = Node::Directory;
                continue;
            }
            if node != Node::Directory {
                return Ok(None);
            }
            at.push(name);
            match self.look(&join(&at))? {
                None => return Ok(None),
                Some(Node::Link(target)) => {
                    links += 1;
                    at.pop();
                    if target.starts_with('/') {
                        at.clear();
                    }
                    ahead.extend(components(&target).rev().map(str::to_owned));
                }
                Some(found) => node = found,
            }
        }
        Ok(Some((join(&at), node)))
    }

    /// Where `path` leads, if that is a regular file.
    pub fn file(&self, path: &str) -> Result<Option<String>, Refusal> {
        Ok(match self.find(path)? {
            Some((place, Node::File(_))) => Some(place),
            _ => None,
        })
    }

    /// Whether there is something of this name, were it a link that leads nowhere. Its directory is found by links.
    pub fn is_there(&self, path: &str) -> Result<bool, Refusal> {
        let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
        let Some((directory, Node::Directory)) = self.find(directory)? else {
            return Ok(false);
        };
        Ok(self
            .look(&format!("{}/{name}", directory.trim_end_matches('/')))?
            .is_some())
    }

    /// The names in the directory that `path` leads to; none where there is no such directory.
    pub fn names(&self, path: &str) -> Result<Vec<String>, Refusal> {
        let Some((place, Node::Directory)) = self.find(path)? else {
            return Ok(Vec::new());
        };
        match self.at(&place) {
            (Some(system), inside) => system.names(inside),
            (None, _) => Ok(Vec::new()),
        }
    }

    /// The file that `path` leads to, of at most `limit` bytes, if there is one.
    pub fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, Refusal> {
        let Some((place, Node::File(bytes))) = self.find(path)? else {
            return Ok(None);
        };
        if bytes > limit {
            return Err(Refusal::new(
                place,
                format!("it has {bytes} bytes, and may have {limit}"),
            ));
        }
        match self.at(&place) {
            (Some(system), inside) => system.read(inside, limit).map(Some),
            (None, _) => Ok(None),
        }
    }

    /// The same of a text.
    pub fn text(&self, path: &str, limit: u64) -> Result<Option<String>, Refusal> {
        let Some(bytes) = self.read(path, limit)? else {
            return Ok(None);
        };
        String::from_utf8(bytes)
            .map(Some)
            .map_err(|_| Refusal::new(path, "it is not UTF-8"))
    }

    fn look(&self, path: &str) -> Result<Option<Node>, Refusal> {
        if path == "/" || (path == "/boot" && self.boot.is_some()) {
            return Ok(Some(Node::Directory));
        }
        match self.at(path) {
            (Some(system), inside) => system.look(inside),
            (None, _) => Ok(None),
        }
    }

    /// The file system that a path without links lies in, and the path in there.
    fn at<'a>(&'a self, path: &'a str) -> (Option<&'a dyn FileSystem>, &'a str) {
        if let (Some(boot), Some(inside)) = (&self.boot, path.strip_prefix("/boot"))
            && (inside.is_empty() || inside.starts_with('/'))
        {
            return (Some(&**boot), if inside.is_empty() { "/" } else { inside });
        }
        (self.root.as_deref(), path)
    }
}

fn components(path: &str) -> impl DoubleEndedIterator<Item = &str> {
    path.split('/').filter(|name| !name.is_empty() && *name != ".")
}

fn join(names: &[String]) -> String {
    format!("/{}", names.join("/"))
}

#[cfg(test)]
mod tests {
    use super::super::pretended::Pretended;
    use super::*;

    fn tree() -> Tree {
        let root = Pretended::new()
            .file("/etc/fstab", "")
            .link("/vmlinuz", "boot/vmlinuz-1")
            .link("/absolute", "/boot/vmlinuz-1")
            .link("/up", "../../boot/../boot/./vmlinuz-1")
            .link("/a", "b")
            .link("/b", "a")
            .link("/self", "self/x")
            .link("/dangling", "boot/vmlinuz-9")
            .link("/through", "etc/fstab/x")
            .file("/boot/hidden", "below the mount");
        let boot = Pretended::new()
            .file("/vmlinuz-1", "kernel")
            .link("/out", "../etc/fstab");
        Tree {
            root: Some(Box::new(root)),
            boot: Some(Box::new(boot)),
        }
    }

    #[test]
    fn links_lead_across_file_systems() {
        let tree = tree();
        for path in [
            "/vmlinuz",
            "/absolute",
            "/up",
            "vmlinuz",
            "//boot//vmlinuz-1",
            "/boot/../vmlinuz",
        ] {
            assert_eq!(tree.file(path).unwrap().as_deref(), Some("/boot/vmlinuz-1"), "{path}");
        }
        assert_eq!(tree.file("/boot/out").unwrap().as_deref(), Some("/etc/fstab"));
        assert_eq!(tree.read("/vmlinuz", 6).unwrap().as_deref(), Some(&b"kernel"[..]));
        assert_eq!(tree.file("/boot/hidden").unwrap(), None);
        assert_eq!(tree.names("/boot").unwrap().len(), 2);
    }

    #[test]
    fn loops_of_links_end_and_what_leads_nowhere_is_not_there() {
        let tree = tree();
        for path in ["/a", "/self"] {
            let error = tree.file(path).unwrap_err().to_string();
            assert!(error.contains("too many"), "{error}");
        }
        // As many as Linux follows, and one more.
        let mut chain = Pretended::new().file("/0", "");
        for link in 1..=MAX_LINKS + 1 {
            chain = chain.link(&format!("/{link}"), &(link - 1).to_string());
        }
        let chain = Tree {
            root: Some(Box::new(chain)),
            boot: None,
        };
        assert_eq!(MAX_LINKS, 40);
        assert_eq!(chain.file("/40").unwrap().as_deref(), Some("/0"));
        assert!(chain.file("/41").unwrap_err().to_string().contains("too many"));
        for path in ["/dangling", "/through", "/nothing", "/etc"] {
            assert_eq!(tree.file(path).unwrap(), None, "{path}");
        }
        assert!(tree.is_there("/dangling").unwrap() && !tree.is_there("/nothing").unwrap());
        let error = tree.read("/vmlinuz", 5).unwrap_err().to_string();
        assert!(error.contains("6 bytes") && error.contains("may have 5"), "{error}");
    }
}
