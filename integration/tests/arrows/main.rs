//! The arrows of ARCHITECTURE.md, held against the manifests and the sources: which crate may use which, which modules
//! there are, and that no two files of one crate need each other.

mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use source::Crate;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = repository().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The rows of the table below a heading, each cut into its cells.
fn table(text: &str, heading: &str) -> Vec<Vec<String>> {
    let (_, below) = text.split_once(heading).unwrap_or_else(|| panic!("no `{heading}`"));
    let rows = below.lines().skip(1).skip_while(|line| !line.starts_with("| --- "));
    let rows = rows.skip(1).take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        row.trim_matches('|')
            .split('|')
            .map(|cell| cell.trim().to_owned())
            .collect()
    })
    .collect()
}

/// The words between backticks.
fn names(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// Each folder, in the order of the arrows, with those that it may use.
fn folders() -> Vec<(String, BTreeSet<String>)> {
    let mut folders: Vec<(String, BTreeSet<String>)> = Vec::new();
    for row in table(&read("ARCHITECTURE.md"), "## Folders, in the order of the arrows") {
        let folder = names(&row[0]).next().unwrap().to_owned();
        let above = folders.iter().map(|(name, _)| name.clone());
        let may = match row[2].as_str() {
            "-" => BTreeSet::new(),
            "all" => above.collect(),
            cell => match cell.strip_suffix(" and up") {
                Some(last) => {
                    let (index, _) = (above.clone().enumerate().find(|(_, name)| name == last))
                        .unwrap_or_else(|| panic!("`{folder}` may use `{last}`, which does not stand above it"));
                    above.take(index + 1).collect()
                }
                None => cell.split(", ").map(str::to_owned).collect(),
            },
        };
        folders.push((folder, may));
    }
    folders
}

/// The crates of ours that a manifest names.
fn dependencies(folder: &str) -> BTreeSet<String> {
    let manifest = read(format!("{folder}/Cargo.toml"));
    let ours = manifest.lines().filter_map(|line| line.strip_prefix("lockstep-"));
    ours.filter_map(|line| line.split(['.', ' ']).next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn crates_use_what_the_table_of_folders_lets_them() {
    let folders = folders();
    let workspace = read("Cargo.toml");
    let members = workspace.lines().find_map(|line| line.strip_prefix("members = "));
    let members: Vec<_> = members.unwrap().split('"').skip(1).step_by(2).collect();
    let told: Vec<_> = folders.iter().map(|(folder, _)| folder.as_str()).collect();
    assert_eq!(told, members, "the table's folders and the workspace's members");
    for (folder, may) in &folders {
        let uses = dependencies(folder);
        let back: Vec<_> = uses.difference(may).collect();
        assert!(back.is_empty(), "`{folder}` uses {back:?}, and may not");
        let named = source::crates_named(&repository().join(folder));
        let idle: Vec<_> = uses.difference(&named).collect();
        assert!(
            idle.is_empty(),
            "`{folder}` names {idle:?} in its manifest, and uses nothing of it"
        );
    }
}

#[test]
fn no_two_files_of_a_crate_need_each_other() {
    for (folder, _) in folders() {
        let parsed = Crate::read(&repository().join(&folder).join("src"));
        let circles = parsed.circles();
        assert!(circles.is_empty(), "`{folder}` has circles:\n{}", circles.join("\n"));
    }
}

#[test]
fn every_module_stands_in_its_table() {
    let text = read("ARCHITECTURE.md");
    let mut told: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut of = |folder: &str, module: &str| {
        let first = module.split("::").next().unwrap_or_default();
        told.entry(folder.into()).or_default().insert(first.into());
    };
    for folder in ["vmm", "debugger"] {
        for row in table(&text, &format!("### Inside `{folder}`")) {
            names(&row[0]).for_each(|module| of(folder, module));
        }
    }
    for row in table(&text, "### Inside `node`, `replay`, `primary` and `backup`") {
        for path in names(&row[0]) {
            let (folder, module) = path.split_once("::").unwrap_or_else(|| panic!("`{path}` has no crate"));
            of(folder, module);
        }
    }
    for (folder, told) in told {
        let there = Crate::read(&repository().join(&folder).join("src")).top();
        assert_eq!(told, there, "what ARCHITECTURE.md says is in `{folder}`, and what is");
    }
}
