use std::io::Write;

use clap::Args;

use super::*;
use crate::cli::node::NodeArgs;

/// A file that has everything a node needs; line 1 is its name.
const GOOD: &str = r#"name = "vm"
node = "a"
peer-name = "b"
listen = "10.0.0.1:7700"
peer = "10.0.0.2:7700"
pki = "/etc/lockstep/pki"
role = "auto"
kernel = "/boot/vmlinux"
memory-mib = 512
disk = ["/var/lib/lockstep/vm.img", "/srv/data.img,ro"]
net = ["tap=vm0,mac=52:4c:53:00:00:01"]

[arbiter]
directory = "etcd:https://witness:2379"
ca = "/etc/lockstep/pki/witness.pem"
"#;

/// A program that runs nodes.
fn program() -> Command {
    Command::new("lockstep-backup").subcommand(NodeArgs::augment_args(Command::new(RUN)))
}

fn checked(text: &str) -> Checked {
    check(&file::parse(text))
}

#[test]
fn a_good_file_is_a_node() {
    let checked = checked(GOOD);
    assert_eq!(checked.problems, []);
    let node = checked.node.unwrap();
    assert_eq!((node.pair.name.as_str(), node.pair.node.as_str()), ("vm", "a"));
    assert_eq!(node.devices.disk.len(), 2);
    assert!(node.devices.disk[1].read_only);
    assert!(node.pair.arbiter_ca.is_some());
}

/// Files that differ from the good one by one line: the line, what it becomes, the key that is named, and words of what is
/// said.
#[test]
fn broken_files_are_explained() {
    let broken = [
        (1, "name = vm", "", "not TOML"),
        (1, "name = \"vm", "", "not TOML"),
        (1, "name \"vm\"", "", "not TOML"),
        (1, "nmae = \"vm\"", "nmae", "`name` may be meant"),
        (1, "name = \"vm\"\ncolour = \"red\"", "colour", "take it out"),
        (1, "name = \"vm\"\nconfig = \"other.toml\"", "config", "no such key"),
        (
            1,
            "name = \"vm\"\nsave = \"vm.snapshot\"",
            "save",
            "only `lockstep-primary run` has --save",
        ),
        (1, "name = [\"vm\", \"wm\"]", "name", "one value, not a list"),
        (1, "name = true", "name", "a text or a number"),
        (2, "node = 1979-05-27", "node", "neither a text"),
        (2, "name = \"vm\"", "", "not TOML"),
        (2, "", "node", "required"),
        (4, "listen = \"10.0.0.1\"", "listen", "IP:PORT"),
        (4, "listen = \"witness:7700\"", "listen", "IP:PORT"),
        (4, "", "listen", "required"),
        (5, "peer = 7700", "peer", "IP:PORT"),
        (5, "peer = \"10.0.0.2:99999\"", "peer", "IP:PORT"),
        (7, "role = \"primary\"", "role", "possible values: backup, auto"),
        (8, "", "kernel", "required"),
        (8, "kernel = \"k\"\nsnapshot = \"s\"", "", "cannot be used with"),
        (9, "memory-mib = 8", "memory-mib", "16..=262144"),
        (9, "memory-mib = \"512M\"", "memory-mib", "invalid digit"),
        (9, "memory-mib = 512.5", "memory-mib", "invalid digit"),
        (9, "memory-mib = -1", "memory-mib", "invalid digit"),
        (9, "heartbeat-ms = 0", "heartbeat-ms", "1..=60000"),
        (9, "ack = \"sometimes\"", "ack", "`received` or `replayed`"),
        (9, "json = \"yes\"", "json", "true or false"),
        (9, "uplink-grace-ms = 10", "uplink", "required"),
        (10, "disk = [\",ro\"]", "disk", "path is missing"),
        (10, "disk = [1, true]", "disk", "neither a text"),
        (11, "net = [\"vm0\"]", "net", "tap=NAME"),
        (11, "net = [\"tap=vm0,mac=01:00:00:00:00:00\"]", "net", "multicast"),
        (14, "directory = \"zookeeper:x\"", "arbiter", "etcd:"),
        (14, "directory = \"etcd:http://u@w:2379\"", "arbiter", "user name"),
        (15, "[arbiter.tls]\nca = \"x\"", "arbiter-tls", "outer table"),
        (15, "cert = \"c\"", "arbiter-ca", "required"),
    ];
    for (line, text, key, words) in broken {
        let lines: Vec<&str> = GOOD
            .lines()
            .enumerate()
            .map(|(index, old)| if index + 1 == line { text } else { old })
            .collect();
        let checked = checked(&lines.join("\n"));
        let told = describe(Path::new("vm.toml"), &checked.problems);
        assert!(checked.node.is_none(), "{text}: nothing is wrong");
        let [problem] = &checked.problems[..] else {
            panic!("{text}: {told}");
        };
        assert!(told.contains(words), "{text}: {told}");
        let named = problem.key.clone().unwrap_or_default();
        assert!(key.is_empty() || named == key, "{text}: {told}");
        let without_line = words == "required";
        assert!(without_line || problem.line >= line, "{text}: {told}");
        assert!(!problem.remedy.is_empty(), "{text}: {told}");
    }
}

#[test]
fn every_problem_is_told_at_once() {
    let text = GOOD
        .replace("memory-mib = 512", "memory-mib = 1\ncolour = 1")
        .replace("10.0.0.2:7700", "nowhere");
    let problems = checked(&text).problems;
    let keys: Vec<_> = problems.iter().filter_map(|problem| problem.key.as_deref()).collect();
    assert_eq!(keys, ["peer", "memory-mib", "colour"]);
}

/// What is missing is told beside what is wrong, unless it may be missing because it is wrong.
#[test]
fn what_is_missing_is_told_with_everything_else() {
    let keys = |text: &str| -> Vec<String> {
        let problems = checked(text).problems;
        problems.into_iter().filter_map(|problem| problem.key).collect()
    };
    let text = GOOD
        .replace("node = \"a\"\n", "")
        .replace("listen = \"10.0.0.1:7700\"\n", "")
        .replace("kernel = \"/boot/vmlinux\"\n", "")
        .replace("memory-mib = 512", "memory-mib = 1");
    let mut found = keys(&text);
    assert_eq!(found.pop().as_deref(), Some("memory-mib"));
    found.sort();
    assert_eq!(found, ["kernel", "listen", "node"]);
    // Wrong, and misspelt.
    assert_eq!(keys(&GOOD.replace("10.0.0.2:7700", "nowhere")), ["peer"]);
    assert_eq!(keys(&GOOD.replace("peer-name", "peer-nmae")), ["peer-nmae"]);
    // Nothing of a pair at all.
    let mut found = keys("listen = \"10.0.0.1:7700\"\n");
    found.sort();
    assert_eq!(found, ["arbiter", "name", "node", "peer", "peer-name", "pki"]);
}

#[test]
fn a_flag_counts_more_than_the_file_and_a_list_is_taken_whole() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(file, "compress = true\n{GOOD}[record]\ndirectory = \"log\"\n").unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    let run = |more: &[&str]| {
        let first = ["lockstep-backup", RUN, "--config", &path];
        let arguments = first.iter().chain(more);
        complete(program(), arguments.map(OsString::from).collect())
    };
    let matches = run(&["--memory-mib", "64", "--disk", "other.img"]).unwrap();
    let matches = matches.subcommand_matches(RUN).unwrap();
    assert_eq!(matches.get_one::<u64>("memory_mib"), Some(&64));
    assert_eq!(matches.get_many::<crate::start::DiskOption>("disk").unwrap().count(), 1);
    assert_eq!(matches.get_many::<crate::start::NicOption>("net").unwrap().count(), 1);
    assert_eq!(matches.get_one::<String>("name").map(String::as_str), Some("vm"));

    let refused = run(&["--memory-mib", "1"]).unwrap_err().to_string();
    assert!(refused.contains("16..=262144") && !refused.contains(&path), "{refused}");
    writeln!(file, "[force]\nhz = 0").unwrap();
    let refused = run(&[]).unwrap_err().to_string();
    assert!(refused.contains("force-hz") && refused.contains("line 20"), "{refused}");
    assert!(refused.contains(&path), "{refused}");
}

#[test]
fn a_file_that_cannot_be_read_starts_nothing() {
    let run = |path: &str| complete(program(), ["l", RUN, "--config", path].map(OsString::from).into());
    assert!(
        run("/nowhere/vm.toml")
            .unwrap_err()
            .to_string()
            .contains("cannot be read")
    );
    assert!(run("/dev/zero").unwrap_err().to_string().contains("more than"));
    let mut binary = tempfile::NamedTempFile::new().unwrap();
    binary.write_all(&[0xff, 0xfe]).unwrap();
    assert!(
        run(binary.path().to_str().unwrap())
            .unwrap_err()
            .to_string()
            .contains("UTF-8")
    );
}

/// The example that operators start from, whole and with everything in it that is commented out.
#[test]
fn the_example_is_a_node_and_has_every_key_that_operators_set() {
    const EXAMPLE: &str = include_str!("../../../../deploy/machine.toml");
    let found = checked(EXAMPLE);
    assert_eq!(found.problems, []);
    let everything: String = EXAMPLE
        .lines()
        .map(|line| match line.strip_prefix('#') {
            // Comments in words begin with a blank.
            Some(key) if !key.starts_with(' ') => format!("{key}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let content = file::parse(&everything);
    assert_eq!(content.problems, []);
    let keys: Vec<_> = content.entries.iter().map(|entry| entry.key.as_str()).collect();
    // Those are for tests and people at a terminal.
    let others = ["config", "force-hz", "for", "until", "kicks", "json"];
    for arg in merge::options().get_arguments() {
        let long = arg.get_long().unwrap();
        assert!(
            keys.contains(&long) || others.contains(&long),
            "--{long} is not in the example"
        );
    }
    // Only that a machine comes from a kernel or from a snapshot.
    let problems = check(&content).problems;
    let told = describe(Path::new("machine.toml"), &problems);
    let excluded = |problem: &Problem| problem.what.contains("cannot be used with");
    assert!(!problems.is_empty() && problems.iter().all(excluded), "{told}");
}
