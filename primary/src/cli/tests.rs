use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory};
use lockstep_node::cli::config::{OF_PRIMARY, complete};
use lockstep_node::cli::node::NodeArgs;

use super::Cli;

/// A file that has everything a node needs, and what only this program takes.
const FILE: &str = r#"save = "vm.snapshot"
name = "vm"
node = "a"
peer-name = "b"
listen = "10.0.0.1:7700"
peer = "10.0.0.2:7700"
pki = "/etc/lockstep/pki"
role = "auto"
kernel = "/boot/vmlinux"

[arbiter]
directory = "etcd:http://witness:2379"
"#;

/// `lockstep-primary run` takes a node's file; no program passes over a key that it does not know.
#[test]
fn a_key_of_the_other_program_is_passed_over_by_the_primary_alone() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(FILE.as_bytes()).unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    let run = |command: Command| {
        let arguments = ["lockstep", "run", "--config", &path].map(OsString::from);
        complete(command, arguments.into())
    };
    let matches = run(Cli::command()).unwrap();
    let matches = matches.subcommand_matches("run").unwrap();
    assert_eq!(
        matches.get_one::<PathBuf>("save").map(PathBuf::as_path),
        Some(Path::new("vm.snapshot"))
    );
    let backup = Command::new("lockstep-backup").subcommand(NodeArgs::augment_args(Command::new("run")));
    let refused = run(backup).unwrap_err().to_string();
    assert!(refused.contains("line 1") && refused.contains("save"), "{refused}");
    assert!(refused.contains("Remedy: take it out"), "{refused}");
}

/// What a file's problems say of keys that only this program has.
#[test]
fn the_keys_that_a_node_does_not_have_are_known() {
    let longs = |command: &Command| -> Vec<String> {
        let longs = command.get_arguments().filter_map(clap::Arg::get_long);
        longs.map(str::to_owned).collect()
    };
    let of_node = longs(&NodeArgs::augment_args(Command::new("")));
    let mut own = longs(Cli::command().find_subcommand("run").unwrap());
    own.retain(|long| !of_node.contains(long));
    assert_eq!(own, OF_PRIMARY);
}
