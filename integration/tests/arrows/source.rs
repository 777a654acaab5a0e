//! Sources as far as arrows are concerned: modules, and the paths that they name. Tests do not count.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A module's place in its crate.
type Module = Vec<String>;

/// A crate's modules, with the paths that each names.
pub struct Crate(BTreeMap<Module, Vec<Module>>);

impl Crate {
    /// Reads the sources in `root`.
    pub fn read(root: &Path) -> Self {
        let mut modules: BTreeMap<Module, Vec<Module>> = BTreeMap::new();
        for file in sources(root) {
            let relative = file.strip_prefix(root).unwrap().with_extension("");
            let mut module: Module = relative
                .iter()
                .map(|part| part.to_string_lossy().into_owned())
                .collect();
            let is_test = |name: &String| name == "tests" || name == "testing" || name.ends_with("_tests");
            // Binaries beside a library are crates of their own.
            if module.iter().any(is_test) || module.first().is_some_and(|first| first == "bin") {
                continue;
            }
            if module.last().is_some_and(|last| last == "mod") || module == ["lib"] || module == ["main"] {
                module.pop();
            }
            let text = fs::read_to_string(&file).unwrap();
            let paths = paths(without_tests(&text)).filter_map(|path| absolute(&path, &module));
            let paths: Vec<_> = paths.collect();
            modules.entry(module).or_default().extend(paths);
        }
        Self(modules)
    }

    /// The modules that the crate's root has.
    pub fn top(&self) -> BTreeSet<String> {
        self.0.keys().filter_map(|module| module.first().cloned()).collect()
    }

    /// Modules beside each other that need each other, also by way of others.
    pub fn circles(&self) -> Vec<String> {
        let mut arrows: BTreeMap<Module, BTreeSet<Module>> = BTreeMap::new();
        for (from, paths) in &self.0 {
            for path in paths {
                // The longest beginning that is a module: what follows is in it.
                let known = (0..=path.len())
                    .rev()
                    .find(|length| self.0.contains_key(&path[..*length]));
                let to = &path[..known.unwrap_or(0)];
                let common = from.iter().zip(to).take_while(|(a, b)| a == b).count();
                if common < from.len() && common < to.len() {
                    let from = from[..=common].to_vec();
                    arrows.entry(from).or_default().insert(to[..=common].to_vec());
                }
            }
        }
        let back = |from: &Module| reached(&arrows, from).contains(from);
        let circles = arrows.keys().filter(|from| back(from));
        circles.map(|from| told(&arrows, from)).collect()
    }
}

/// All that can be reached from a module.
fn reached(arrows: &BTreeMap<Module, BTreeSet<Module>>, from: &Module) -> BTreeSet<Module> {
    let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(module) = open.pop() {
        for next in arrows.get(module).into_iter().flatten() {
            if seen.insert(next.clone()) {
                open.push(next);
            }
        }
    }
    seen
}

/// The arrows of a module from which there is a way back to it.
fn told(arrows: &BTreeMap<Module, BTreeSet<Module>>, from: &Module) -> String {
    let returns = arrows[from].iter().filter(|to| reached(arrows, to).contains(from));
    let names: Vec<_> = returns.map(|to| to.join("::")).collect();
    format!("{} uses {}", from.join("::"), names.join(", "))
}

/// The crates of ours that the sources and tests of a folder name.
pub fn crates_named(folder: &Path) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    for file in ["src", "tests"].iter().flat_map(|part| sources(&folder.join(part))) {
        let text = fs::read_to_string(file).unwrap();
        let ours = text
            .split("lockstep_")
            .skip(1)
            .filter_map(|rest| rest.split("::").next());
        named.extend(ours.map(str::to_owned));
    }
    named
}

fn sources(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// The text before a file's own tests, which stand at its end.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default()
}

/// Every path that begins with `crate`, `super` or `self`; the branches of a `use` one by one.
fn paths(text: &str) -> impl Iterator<Item = String> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code = code.collect::<Vec<_>>().join("\n");
    let mut found = Vec::new();
    for start in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(start) {
            // Not within a longer word or path, and not a macro's `$crate`.
            let before = code[..at].chars().next_back();
            if !before.is_some_and(|letter| letter.is_alphanumeric() || "_:$".contains(letter)) {
                branches(path_at(&code[at..]), "", &mut found);
            }
        }
    }
    found.into_iter()
}

/// As much of `code` as is one path, with all branches that it may have.
fn path_at(code: &str) -> &str {
    let mut depth = 0;
    let end = code.char_indices().find(|&(_, letter)| match letter {
        '{' => {
            depth += 1;
            false
        }
        '}' => {
            depth -= 1;
            depth < 0
        }
        _ if depth > 0 => false,
        _ => !(letter.is_alphanumeric() || "_:".contains(letter)),
    });
    let path = end.map_or(code, |(end, _)| &code[..end]);
    // A block that begins behind a path is none of its branches.
    match path.split_once('{') {
        Some((before, _)) if !before.ends_with("::") => before,
        _ => path,
    }
}

fn branches(path: &str, prefix: &str, found: &mut Vec<String>) {
    let path = path.trim();
    let Some((stem, inner)) = path.split_once('{') else {
        return found.push(format!("{prefix}{path}"));
    };
    let prefix = format!("{prefix}{stem}");
    let mut depth = 0;
    let is_between = |letter: char| {
        depth += i32::from(letter == '{') - i32::from(letter == '}');
        letter == ',' && depth == 0
    };
    let inner = inner.strip_suffix('}').unwrap_or(inner);
    inner
        .split(is_between)
        .for_each(|branch| branches(branch, &prefix, found));
}

/// A path from the crate's root; `None`: it is none.
fn absolute(path: &str, module: &[String]) -> Option<Module> {
    let mut at: Module = module.to_vec();
    let mut parts = path.split("::").peekable();
    match parts.next()? {
        "crate" => at.clear(),
        "super" => drop(at.pop()),
        "self" => {}
        _ => return None,
    }
    while parts.next_if_eq(&"super").is_some() {
        at.pop();
    }
    at.extend(parts.map(|part| part.split_whitespace().next().unwrap_or_default().to_owned()));
    Some(at)
}

#[test]
fn circles_are_found() {
    let home = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = home.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("lib.rs", "mod a;\nmod b;\nmod c;\npub use a::A;\n");
    write("a.rs", "use crate::{b::{self, B}, c::C};\n// use crate::a::x;\n");
    write(
        "b.rs",
        "pub struct B;\n#[cfg(test)]\nmod tests {\n    use crate::a::A;\n}\n",
    );
    write("c/mod.rs", "mod x;\nmod y;\n");
    write("c/x.rs", "fn f() { super::y::g(); crate::c::x::h() }\n");
    write("c/y.rs", "struct S { c: Vec<u8> }\n");
    assert_eq!(Crate::read(home.path()).circles(), Vec::<String>::new());
    write("c/y.rs", "use super::x;\n");
    assert_eq!(Crate::read(home.path()).circles(), ["c::x uses c::y", "c::y uses c::x"]);
    write("c/y.rs", "fn f(_: crate::a::A) {}\n");
    assert_eq!(Crate::read(home.path()).circles(), ["a uses c", "c uses a"]);
    write("c/y.rs", "");
    write("b.rs", "use crate::c;\n");
    write("c/y.rs", "use super::super::b::B;\n");
    assert_eq!(Crate::read(home.path()).circles(), ["b uses c", "c uses b"]);
}
