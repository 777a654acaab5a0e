//! What is done in a process of its own, which may die of it: this program, started again.

use std::env;
use std::fs::{self, File};
use std::io::ErrorKind::PermissionDenied;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use lockstep_node::sandbox::{self, Kind, Needs, Paths};
use lockstep_vmm::cpu::vm;

/// Names the variable that says what to do.
pub const CHILD: &str = "LOCKSTEP_TEST_CHILD";
/// Exit status: all was as it should be in a sandbox.
pub const DONE: i32 = 42;
/// Exit status: a path was open that should be none in a sandbox.
pub const OPEN: i32 = 43;

/// No test: the child.
#[test]
fn acts() {
    let Ok(told) = env::var(CHILD) else { return };
    let mut words = told.split(' ');
    let (Some(sandbox), Some(kind), Some(act)) = (words.next(), words.next(), words.next()) else {
        panic!("{told}");
    };
    let kind = match kind {
        "base" => Kind::Base,
        "vcpu" => Kind::Vcpu,
        "replica" => Kind::Replica,
        "disk" => Kind::Disk,
        "bytes" => Kind::Bytes,
        "waits" => Kind::Waits,
        "files" => Kind::Files,
        "network" => Kind::Network,
        _ => panic!("{told}"),
    };
    if let Some(dir) = act.strip_prefix("paths:") {
        paths(sandbox == "on", Path::new(dir));
    }
    if sandbox == "on" {
        let me = env::current_exe().unwrap();
        sandbox::enter(&Needs {
            read: vec!["/proc".into(), "/etc".into()],
            devices: vec!["/dev/kvm".into()],
            execute: vec![me],
            ..Needs::default()
        })
        .unwrap();
    }
    // On a thread of its kind, as the programs do.
    let act = act.to_owned();
    let kvm = vm::open().unwrap();
    sandbox::confine(kind).unwrap();
    match act.as_str() {
        "nothing" => println!("{}", String::from_utf8(vec![b'x'; 1 << 20]).unwrap().len()),
        "open" => drop(File::open("/proc/self/status").unwrap()),
        "is-open-refused" => {
            let refused = File::open("/proc/self/status").is_err_and(|error| error.kind() == PermissionDenied);
            std::process::exit(if refused { DONE } else { OPEN });
        }
        "remove" => assert!(fs::remove_file("/nonexistent").is_err()),
        "socket" => drop(UdpSocket::bind("127.0.0.1:0").unwrap()),
        "thread" => std::thread::spawn(|| ()).join().unwrap(),
        "spawn" => {
            let files = || drop(File::open("/proc/self/status").unwrap());
            sandbox::spawn(Kind::Files, "files", files).unwrap().join().unwrap();
        }
        "execute" => execute("off base nothing"),
        "aside" => sandbox::aside("aside", || execute("off base nothing")).unwrap(),
        "make-vm" => drop(kvm.create_vm().unwrap()),
        "open-kvm-and-ask" => drop(vm::open().unwrap()),
        "then-vcpu" => sandbox::confine(Kind::Vcpu).unwrap(),
        "chroot" => std::os::unix::fs::chroot("/").unwrap(),
        "signal-another" => {
            let parent = nix::unistd::getppid();
            // No signal: only whether one could be sent.
            nix::sys::signal::kill(parent, None).unwrap();
        }
        other => match other.strip_prefix("replace:") {
            Some(left) => replace(left.parse().unwrap()),
            None => panic!("{told}"),
        },
    }
    std::process::exit(DONE);
}

/// Takes this process' place.
fn execute(told: &str) {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(env::args_os().skip(1)).env(CHILD, told);
    if let Some(mark) = sandbox::mark() {
        command.env(sandbox::MARK, mark);
    }
    panic!("{}", command.exec());
}

/// Takes this process' place, `left` times.
fn replace(left: u32) {
    let next = move || {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        assert!(status.contains("\nSeccomp_filters:\t1\n"), "{status}");
        if left > 0 {
            execute(&format!("on vcpu replace:{}", left - 1));
        }
    };
    sandbox::aside("again", next).unwrap();
}

/// Looks at files and ports that were named and at others.
fn paths(sandbox: bool, dir: &Path) {
    let named = TcpListener::bind("127.0.0.1:0").unwrap();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    // Paths are restricted from Landlock's version 1 on (Linux 5.13), ports from version 4 (6.7).
    let mut version = i32::MAX;
    if sandbox {
        let entered = sandbox::enter(&Needs {
            read: vec![dir.join("read")],
            make: vec![dir.join("make")],
            connect: vec![named.local_addr().unwrap().port()],
            ..Needs::default()
        });
        version = match entered.unwrap().paths {
            Paths::Restricted(version) => version,
            Paths::Open(_) | Paths::Kept => 0,
        };
    }
    assert_eq!(fs::read(dir.join("read/file")).unwrap(), b"read");
    fs::write(dir.join("make/new"), "new").unwrap();
    fs::rename(dir.join("make/new"), dir.join("make/file")).unwrap();
    fs::remove_file(dir.join("make/file")).unwrap();
    TcpStream::connect(named.local_addr().unwrap()).unwrap();
    let paths = [
        fs::read(dir.join("other/file")).err(),
        fs::write(dir.join("read/file"), "").err(),
        fs::write(dir.join("read/new"), "").err(),
        fs::remove_file(dir.join("read/file")).err(),
        fs::read_dir("/").err(),
        fs::read("/etc/passwd").err(),
    ];
    let ports = [
        TcpStream::connect(other.local_addr().unwrap()).err(),
        TcpListener::bind("127.0.0.1:0").err(),
    ];
    let refused = |error: &Option<std::io::Error>| error.as_ref().is_some_and(|error| error.kind() == PermissionDenied);
    if (version < 1 || paths.iter().all(refused)) && (version < 4 || ports.iter().all(refused)) {
        if version < 4 {
            eprintln!("what Landlock's version {version} here cannot restrict is not looked at");
        }
        std::process::exit(DONE);
    }
    eprintln!("{paths:?} {ports:?}");
    std::process::exit(OPEN);
}
