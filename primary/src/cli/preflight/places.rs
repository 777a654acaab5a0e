//! Directories that a node writes into: of its socket, its divergence reports and its recordings.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use lockstep_node::cli::node::NodeArgs;
use lockstep_node::cli::sockets;
use lockstep_node::recording::{Place, ring};
use rustix::fs::Access;

use super::Finding;

pub(super) fn check(node: &NodeArgs, runs: bool) -> Vec<Finding> {
    let mut findings = vec![check_api(node, runs), check_reports(node)];
    findings.extend(node.record.place().map(|place| check_recording(&place)));
    findings
}

/// The directory that is there of those that lead to `directory`, if this user can write into it: itself, or the one in which
/// the others are made.
fn there(directory: &Path) -> Result<&Path, String> {
    // One that this user may not look at is found by the directory that it lies in.
    let there = directory.ancestors().find(|path| path.symlink_metadata().is_ok());
    let there = there.ok_or_else(|| format!("{} is nowhere: name it by its whole path", directory.display()))?;
    if !there.is_dir() {
        return Err(format!("{} is no directory", there.display()));
    }
    rustix::fs::access(there, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|error| format!("{} cannot be written: {error}", there.display()))?;
    Ok(there)
}

fn check_api(node: &NodeArgs, runs: bool) -> Finding {
    let socket = node.api.api.clone().unwrap_or_else(|| sockets::of(&node.pair.name));
    let shown = socket.display();
    if runs {
        return Finding::pass("api", format!("{shown} is this node's"));
    }
    match can_serve(&socket) {
        Ok(()) => Finding::pass("api", format!("{shown} can be made")),
        Err(error) if node.api.api.is_some() => Finding::fail(
            "api",
            format!("{shown}: {error}"),
            "name a socket in a directory that this user can write, or that it can make in one",
        ),
        // The machine runs without, as said there.
        Err(error) => Finding::warn(
            "api",
            format!("{shown}: {error}: the machine could be asked nothing"),
            "let this user write that directory, or name a socket elsewhere (api)",
        ),
    }
}

/// As far as can be told without serving it.
fn can_serve(socket: &Path) -> Result<(), String> {
    match socket.symlink_metadata() {
        Ok(metadata) if !metadata.file_type().is_socket() => return Err("it is there and is no socket".into()),
        _ => {}
    }
    let parent = socket.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = parent.unwrap_or(Path::new("."));
    let there = there(directory)?;
    // Only the last one is made.
    if there != directory && directory.parent() != Some(there) {
        return Err(format!("its directory would be in {} which is missing", {
            directory.parent().unwrap_or(directory).display()
        }));
    }
    Ok(())
}

/// A node runs without reports, but what a divergence was is then told by messages alone.
fn check_reports(node: &NodeArgs) -> Finding {
    let given = node.pair.reports.clone();
    let directory = given.unwrap_or_else(|| sockets::reports_of(&node.pair.name));
    match there(&directory) {
        Ok(_) => Finding::pass("reports", format!("{} can be written", directory.display())),
        Err(error) => Finding::warn(
            "reports",
            format!("{}: {error}: no divergence report would be kept", directory.display()),
            "set reports to a directory that this user can write or make",
        ),
    }
}

fn check_recording(place: &Place) -> Finding {
    let shown = place.directory.display();
    let there = match there(&place.directory) {
        Ok(there) => there,
        Err(error) => {
            return Finding::fail(
                "record",
                format!("{shown}: {error}"),
                "name a directory that this user can write or make",
            );
        }
    };
    let Some(max) = place.limits.max_bytes else {
        return match place.limits.max_age {
            Some(_) => Finding::warn(
                "record",
                format!("{shown}: its age is limited, its size is not"),
                "set record-max-bytes to what its file system can spare",
            ),
            None => Finding::fail(
                "record",
                format!("{shown}: a node that may stand by records a ring, which has limits"),
                "set record-max-bytes, record-max-age-seconds or both",
            ),
        };
    };
    let room = rustix::fs::statvfs(there).map(|free| free.f_bavail * free.f_frsize);
    let kept: u64 = ring::parts(&place.directory).map_or(0, |parts| parts.iter().map(|part| part.bytes).sum());
    match room {
        Err(error) => Finding::fail(
            "record",
            format!("{}: {error}", there.display()),
            "see that its file system can be used",
        ),
        Ok(free) if free.saturating_add(kept) < max => Finding::warn(
            "record",
            format!("{shown}: the ring may take {max} bytes, has {kept}, and its file system has {free} more"),
            "free some space or give it less: a full file system stops the recording",
        ),
        Ok(_) => Finding::pass("record", format!("{shown}, a ring of {max} bytes at most")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::cli::preflight::Outcome;
    use lockstep_node::recording::ring::Limits;

    #[test]
    fn a_ring_has_limits_and_room() {
        let home = tempfile::tempdir().unwrap();
        let found = |max_bytes, age: Option<u64>, directory: &Path| {
            let limits = Limits {
                max_bytes,
                max_age: age.map(std::time::Duration::from_secs),
            };
            let directory = directory.to_owned();
            check_recording(&Place { directory, limits }).outcome
        };
        let new = home.path().join("not/there/yet");
        assert_eq!(found(Some(1 << 20), None, &new), Outcome::Pass);
        assert_eq!(found(Some(u64::MAX), None, &new), Outcome::Warn);
        assert_eq!(found(None, Some(1), &new), Outcome::Warn);
        assert_eq!(found(None, None, &new), Outcome::Fail);
        assert!(!home.path().join("not").exists(), "looking changes nothing");
        // A file is in the way.
        let file = home.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(found(Some(1 << 20), None, &file), Outcome::Fail);
        assert_eq!(found(None, Some(1), &file.join("ring")), Outcome::Fail);
    }

    #[test]
    fn a_directory_is_there_or_can_be_made() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(there(home.path()), Ok(home.path()));
        assert_eq!(there(&home.path().join("a/b")), Ok(home.path()));
        assert!(there(Path::new("no/such/thing")).unwrap_err().contains("whole path"));
        let file = home.path().join("file");
        std::fs::write(&file, "").unwrap();
        let refused = there(&file.join("a")).unwrap_err();
        assert!(refused.contains("is no directory"), "{refused}");
    }

    #[test]
    fn a_socket_has_a_directory_of_which_the_last_part_is_made() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(can_serve(&home.path().join("m.sock")), Ok(()));
        assert_eq!(can_serve(&home.path().join("run/m.sock")), Ok(()));
        let refused = can_serve(&home.path().join("run/deep/m.sock")).unwrap_err();
        assert!(refused.contains("missing"), "{refused}");
        // A dead server's is replaced, another file is not.
        let left = home.path().join("left.sock");
        drop(UnixListener::bind(&left).unwrap());
        assert_eq!(can_serve(&left), Ok(()));
        let file = home.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(can_serve(&file).unwrap_err().contains("no socket"));
        assert_eq!(
            std::fs::read_dir(home.path()).unwrap().count(),
            2,
            "looking changes nothing"
        );
    }
}
