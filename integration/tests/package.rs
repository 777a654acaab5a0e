//! The Debian package, as its tools see it, and the unit in it, as systemd does.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lockstep_integration::gate::require_program;
use lockstep_integration::hosts::current_package;
use lockstep_integration::paths::{program, target_dir};
use lockstep_integration::process::check;
use lockstep_integration::work_dir;

const PROGRAMS: [&str; 3] = ["lockstep-primary", "lockstep-backup", "lockstep-debug"];
/// systemd's exposure, in tenths: 2.0 and more is for services that have more to do on a host.
const MOST_EXPOSED: u64 = 20;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn unit() -> PathBuf {
    repository().join("deploy/lockstep@.service")
}

/// Makes the package of the programs that are built, and returns where it is.
fn make(version: &str) -> Result<PathBuf> {
    for script in ["man.sh", "deb.sh"] {
        let mut command = Command::new(repository().join("integration/scripts").join(script));
        check(command.env("LOCKSTEP_VERSION", version))?;
    }
    Ok(target_dir().join(format!("deb/lockstep_{version}_amd64.deb")))
}

/// What `dpkg-deb` says of a package.
fn ask(package: &Path, what: &str) -> Result<String> {
    check(Command::new("dpkg-deb").arg(what).arg(package))
}

#[test]
fn the_package_has_what_it_should_and_is_the_same_when_made_again() -> Result<()> {
    if !require_program("dpkg-shlibdeps", "dpkg-dev") || !require_program("lintian", "lintian") {
        return Ok(());
    }
    let (package, version) = current_package()?;
    let first = fs::read(&package)?;
    ensure!(fs::read(make(&version)?)? == first, "made again, the package differs");

    let info = ask(&package, "--info")?;
    for field in [
        " Package: lockstep\n".to_owned(),
        format!(" Version: {version}\n"),
        " Architecture: amd64\n".to_owned(),
    ] {
        ensure!(info.contains(&field), "no `{}` in {info}", field.trim());
    }
    let depends = info.lines().find(|line| line.starts_with(" Depends: "));
    let depends = depends.context("no Depends")?;
    ensure!(
        depends.contains("libc6 (>= ") && depends.contains("systemd"),
        "{depends}"
    );

    let contents = ask(&package, "--contents")?;
    ensure!(contents.lines().all(|line| line.contains(" root/root ")), "{contents}");
    let files: BTreeSet<&str> = contents.lines().filter_map(|line| line.split(" .").last()).collect();
    for program in PROGRAMS {
        for file in [
            format!("/usr/bin/{program}"),
            format!("/usr/share/man/man1/{program}.1.gz"),
            format!("/usr/share/bash-completion/completions/{program}"),
            format!("/usr/share/fish/vendor_completions.d/{program}.fish"),
            format!("/usr/share/zsh/vendor-completions/_{program}"),
        ] {
            ensure!(files.contains(&*file), "no {file}:\n{contents}");
        }
    }
    for file in [
        "/lib/systemd/system/lockstep@.service",
        "/usr/lib/sysusers.d/lockstep.conf",
        "/usr/lib/tmpfiles.d/lockstep.conf",
        "/usr/share/man/man1/lockstep-backup-run.1.gz",
        "/usr/share/doc/lockstep/examples/lockstep.dashboard.json",
        "/usr/share/doc/lockstep/examples/lockstep.rules.test.yml",
        "/usr/share/doc/lockstep/examples/lockstep.rules.yml",
        "/usr/share/doc/lockstep/examples/machine.toml",
        "/usr/share/doc/lockstep/operations.md",
        "/usr/share/doc/lockstep/copyright",
        "/usr/share/doc/lockstep/changelog.gz",
    ] {
        ensure!(files.contains(file), "no {file}:\n{contents}");
    }
    check(
        Command::new("lintian")
            .args(["--allow-root", "--fail-on", "error"])
            .arg(&package),
    )?;
    Ok(())
}

/// What the package has runs, and says what the package's version is.
#[test]
fn the_packaged_programs_run_and_have_its_version() -> Result<()> {
    if !require_program("dpkg-shlibdeps", "dpkg-dev") {
        return Ok(());
    }
    let (package, version) = current_package()?;
    let dir = work_dir("package")?;
    check(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(&dir))?;
    for program in PROGRAMS {
        let said = check(Command::new(dir.join("usr/bin").join(program)).arg("--version"))?;
        ensure!(said.trim() == format!("{program} {version}"), "{said}");
    }
    let examples = dir.join("usr/share/doc/lockstep/examples");
    for source in ["machine.toml", "prometheus/lockstep.rules.yml"] {
        let source = repository().join("deploy").join(source);
        let packaged = examples.join(source.file_name().context("no name")?);
        ensure!(fs::read(packaged)? == fs::read(&source)?, "not {}", source.display());
    }
    let mut packaged = Command::new(dir.join("usr/bin/lockstep-primary"));
    packaged.args(["check-config", "--syntax"]);
    check(packaged.arg(examples.join("machine.toml")))?;
    Ok(())
}

/// Installed, upgraded and removed in a directory of its own, as far as that changes files: users and directories are made,
/// twice is as good as once, and what the machines have stays.
#[test]
fn the_maintainer_scripts_make_users_and_directories_and_remove_nothing() -> Result<()> {
    if !require_program("systemd-sysusers", "systemd") || !require_program("systemd-tmpfiles", "systemd") {
        return Ok(());
    }
    let source = repository().join("deploy/debian");
    let root = work_dir("package-root")?;
    let root_argument = format!("--root={}", root.display());
    fs::create_dir_all(root.join("etc"))?;
    for _ in 0..2 {
        check(
            Command::new("systemd-sysusers")
                .arg(&root_argument)
                .arg(source.join("lockstep.sysusers")),
        )?;
    }
    let users = fs::read_to_string(root.join("etc/passwd"))?;
    ensure!(
        users.lines().filter(|line| line.starts_with("lockstep:")).count() == 1
            && users.contains(":/var/lib/lockstep:"),
        "{users}"
    );
    // As the unit has it: what is asked or done as this user finds /dev/kvm as a machine does.
    let groups = fs::read_to_string(root.join("etc/group"))?;
    let is_member = |line: &str| line.starts_with("kvm:") && line.ends_with(":lockstep");
    ensure!(groups.lines().any(is_member), "{groups}");
    // Which directories, their modes and owners; making them with owners needs root.
    let wanted = [
        "d /var/lib/lockstep 0750 lockstep lockstep -",
        "d /etc/lockstep 0750 root lockstep -",
        "d /etc/lockstep/pki 0750 root lockstep -",
    ];
    let directories = fs::read_to_string(source.join("lockstep.tmpfiles"))?;
    ensure!(directories.lines().eq(wanted), "{directories}");
    for script in ["postinst", "prerm", "postrm"] {
        let path = source.join(script);
        let text = fs::read_to_string(&path)?;
        check(Command::new("sh").arg("-n").arg(&path))?;
        for word in ["restart", "rm ", "deluser", "userdel", "enable"] {
            ensure!(
                !text.lines().any(|line| !line.starts_with('#') && line.contains(word)),
                "{script}: {word}"
            );
        }
    }
    for wrong in [["prerm", "upgrade"], ["postinst", "abort-upgrade"]] {
        // Nothing is done: not even systemctl is asked for, which is not on this path.
        let mut quiet = Command::new("/bin/sh");
        check(
            quiet
                .arg(source.join(wrong[0]))
                .arg(wrong[1])
                .env("PATH", "/nonexistent"),
        )?;
    }
    Ok(())
}

#[test]
fn the_unit_is_understood_and_hardly_exposed() -> Result<()> {
    if !require_program("systemd-analyze", "systemd") {
        return Ok(());
    }
    // An instance whose program is there, so that nothing but the unit can be wrong.
    let dir = work_dir("package-unit")?;
    let text = fs::read_to_string(unit())?;
    let here = program("lockstep-backup")?.display().to_string();
    ensure!(text.contains("ExecStart=/usr/bin/lockstep-backup run "), "{text}");
    let instance = dir.join("lockstep@vm.service");
    fs::write(&instance, text.replace("/usr/bin/lockstep-backup", &here))?;
    let verified = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(&instance)
        .output()?;
    let said = String::from_utf8_lossy(&verified.stderr);
    ensure!(verified.status.success() && !said.contains("lockstep@"), "{said}");
    let rated = check(
        Command::new("systemd-analyze")
            .args(["security", "--offline=yes", &format!("--threshold={MOST_EXPOSED}")])
            .arg(unit()),
    )?;
    println!("{}", rated.lines().last().unwrap_or_default());
    Ok(())
}
