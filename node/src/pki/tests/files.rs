//! What `init`, `issue` and `renew` leave on the disk.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use super::super::store::{CA, Pair, Writer};
use super::super::*;
use super::{deployment, dir};

#[test]
fn keys_and_the_directory_are_for_their_owner_alone() {
    let root = deployment(&["a"]);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&dir(&root)), 0o700);
    for key in ["ca.key", "a.key"] {
        assert_eq!(mode(&dir(&root).join(key)), 0o600);
    }
    let key = dir(&root).join("a.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let error = load_identity(&dir(&root), "a").unwrap_err().to_string();
    assert!(error.contains("chmod 600") && error.contains("0640"), "{error}");
    fs::set_permissions(dir(&root), fs::Permissions::from_mode(0o755)).unwrap();
    let error = issue(&dir(&root), "b", Validity::days(1).unwrap())
        .unwrap_err()
        .to_string();
    assert!(error.contains("chmod 700"), "{error}");
}

#[test]
fn nothing_is_overwritten() {
    let root = deployment(&["a"]);
    let all = || -> Vec<_> {
        let files = ["ca.pem", "ca.key", "a.pem", "a.key"];
        files
            .iter()
            .map(|file| fs::read(dir(&root).join(file)).unwrap())
            .collect()
    };
    let before = all();
    let day = Validity::days(1).unwrap();
    for error in [
        init(&dir(&root)).unwrap_err(),
        issue(&dir(&root), "a", day).unwrap_err(),
    ] {
        assert!(matches!(error, PkiError::Exists { .. }), "{error}");
    }
    // A key alone may be somebody's only copy.
    fs::write(dir(&root).join("b.key"), "precious").unwrap();
    assert!(matches!(issue(&dir(&root), "b", day), Err(PkiError::Exists { .. })));
    assert_eq!(fs::read(dir(&root).join("b.key")).unwrap(), b"precious");
    assert_eq!(all(), before);
}

#[test]
fn names_that_are_no_host_names_are_refused() {
    let root = deployment(&[]);
    for name in [
        "",
        "ca",
        "..",
        "a/b",
        "../a",
        "A",
        "a b",
        "*.a",
        "a.",
        "10.0.0.1",
        "-a",
        "a_b",
        &"a".repeat(65),
    ] {
        let error = issue(&dir(&root), name, Validity::days(1).unwrap()).unwrap_err();
        assert!(matches!(error, PkiError::Name { .. }), "{name}: {error}");
    }
    let files = fs::read_dir(dir(&root)).unwrap().count();
    assert_eq!(files, 2, "only the CA's");
}

#[test]
fn a_certificate_does_not_outlive_its_ca() {
    let root = tempfile::tempdir().unwrap();
    let (short, ended) = (root.path().join("short"), root.path().join("ended"));
    authority::init_for(&short, Validity::days(1).unwrap()).unwrap();
    issue(&short, "a", Validity::days(MAX_DAYS).unwrap()).unwrap();
    assert_eq!(load(&short, "a"), load(&short, CA));
    issue(&short, "b", Validity::from_now(Duration::from_secs(60)).unwrap()).unwrap();
    assert!(load(&short, "b") < load(&short, CA));

    authority::init_for(&ended, Validity::ended(Duration::from_secs(60))).unwrap();
    let error = issue(&ended, "a", Validity::days(1).unwrap()).unwrap_err().to_string();
    assert!(error.contains("make a new CA"), "{error}");
    assert!(Validity::days(0).is_err() && Validity::days(MAX_DAYS + 1).is_err());
}

fn load(directory: &Path, name: &str) -> time::OffsetDateTime {
    let pair = Pair::new(directory, name);
    let certified = pair.load().unwrap();
    authority::last_second(&pair.cert, certified.end_entity_cert().unwrap()).unwrap()
}

#[test]
fn a_renewed_certificate_has_a_new_key() {
    let root = deployment(&["a", "b"]);
    let directory = dir(&root);
    let old = fs::read(directory.join("a.key")).unwrap();
    let before = load_identity(&directory, "a").unwrap();
    let issued = renew(&directory, "a", Validity::days(2).unwrap()).unwrap();
    assert_ne!(fs::read(issued.key).unwrap(), old);
    assert!(load_identity(&directory, "a").unwrap().not_after > before.not_after);
    let missing = renew(&directory, "c", Validity::days(2).unwrap()).unwrap_err();
    assert!(matches!(missing, PkiError::Missing { .. }), "{missing}");
}

#[test]
fn a_crash_in_renew_leaves_two_files_that_belong_together() {
    let root = deployment(&["a"]);
    let directory = dir(&root);
    let pair = Pair::new(&directory, "a");
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    let old = (read(&pair.cert), read(&pair.key));
    renew(&directory, "a", Validity::days(2).unwrap()).unwrap();
    let new = (read(&pair.cert), read(&pair.key));
    let writer = Writer::open(&directory).unwrap();
    // After how many of its steps it crashes: none, staged, key renamed.
    for steps in 0..3 {
        fs::write(&pair.cert, &old.0).unwrap();
        fs::write(&pair.key, &old.1).unwrap();
        if steps > 0 {
            writer.stage(&pair, &new.0, &new.1).unwrap();
        }
        if steps > 1 {
            fs::rename(&pair.new_key, &pair.key).unwrap();
        }
        load_identity(&directory, "a").unwrap_or_else(|error| panic!("after {steps} steps: {error}"));
        writer.pair("a").unwrap();
        let found = (read(&pair.cert), read(&pair.key));
        assert_eq!(
            found,
            if steps > 1 { new.clone() } else { old.clone() },
            "after {steps} steps"
        );
        load_identity(&directory, "a").unwrap();
        let _ = (fs::remove_file(&pair.new_cert), fs::remove_file(&pair.new_key));
    }
    drop(writer);
    // The same for the first certificate of a node: nothing is there but a key whose certificate is staged.
    fs::rename(&pair.cert, &pair.new_cert).unwrap();
    let error = issue(&directory, "a", Validity::days(1).unwrap()).unwrap_err();
    assert!(
        matches!(error, PkiError::Exists { .. }) && pair.cert.exists(),
        "{error}"
    );
    renew(&directory, "a", Validity::days(1).unwrap()).unwrap();
}

#[test]
fn readers_during_renewals_get_two_files_that_belong_together() {
    let root = deployment(&["a"]);
    let directory = dir(&root);
    let renewing = directory.clone();
    let writer = std::thread::spawn(move || {
        for _ in 0..30 {
            renew(&renewing, "a", Validity::days(1).unwrap()).unwrap();
        }
    });
    while !writer.is_finished() {
        load_identity(&directory, "a").unwrap();
    }
    writer.join().unwrap();
}

#[test]
fn files_that_are_not_what_they_should_be_are_refused() {
    let root = deployment(&["a", "b"]);
    let directory = dir(&root);
    let error = load_identity(&directory, "c").unwrap_err().to_string();
    assert!(
        error.contains("c.pem is missing") && error.contains("pki issue"),
        "{error}"
    );
    // Another node's certificate under this name, and then with another's key.
    let at = |file: &str| directory.join(file);
    fs::copy(at("b.pem"), at("c.pem")).unwrap();
    fs::copy(at("b.key"), at("c.key")).unwrap();
    let error = load_identity(&directory, "c").unwrap_err().to_string();
    assert!(error.contains("not valid for name"), "{error}");
    fs::copy(at("a.key"), at("c.key")).unwrap();
    let error = load_identity(&directory, "c").unwrap_err().to_string();
    assert!(error.contains("do not belong together"), "{error}");
    for content in [
        vec![],
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_vec(),
        vec![b'a'; 1 << 20],
    ] {
        fs::write(at("ca.pem"), content).unwrap();
        assert!(load_ca(&directory).is_err());
        assert!(issue(&directory, "d", Validity::days(1).unwrap()).is_err());
    }
}
