//! Real handshakes between nodes, and what `init`, `issue` and `renew` leave on the disk.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};

use super::store::{CA, Pair, Writer};
use super::*;

/// A directory with a CA and certificates for these nodes.
fn deployment(nodes: &[&str]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    init(&dir(&root)).unwrap();
    for node in nodes {
        issue(&dir(&root), node, Validity::days(1).unwrap()).unwrap();
    }
    root
}

fn dir(root: &tempfile::TempDir) -> PathBuf {
    root.path().join("pki")
}

fn server(directory: &Path, name: &str, peer: &str) -> ServerConfig {
    server_config(&load_identity(directory, name).unwrap(), peer).unwrap()
}

fn client(directory: &Path, name: &str, peer: &str) -> ClientConfig {
    client_config(&load_identity(directory, name).unwrap(), peer).unwrap()
}

/// What each side says at the end of a handshake: the client's, the server's.
type Ends = (Result<(), rustls::Error>, Result<(), rustls::Error>);

fn handshake(client: ClientConfig, server: ServerConfig) -> Ends {
    // A name that no certificate carries: what counts is the one in the configuration.
    let opened_with = ServerName::try_from("irrelevant").unwrap();
    let mut client = Connection::from(ClientConnection::new(Arc::new(client), opened_with).unwrap());
    let mut server = Connection::from(ServerConnection::new(Arc::new(server)).unwrap());
    let mut ends = (Ok(()), Ok(()));
    for _ in 0..10 {
        if ends.1.is_ok() {
            ends.1 = carry(&mut client, &mut server);
        } else {
            let _ = carry(&mut client, &mut server);
        }
        if ends.0.is_ok() {
            ends.0 = carry(&mut server, &mut client);
        } else {
            let _ = carry(&mut server, &mut client);
        }
    }
    if ends.0.is_ok() && ends.1.is_ok() {
        assert!(!client.is_handshaking() && !server.is_handshaking());
        assert_eq!(client.alpn_protocol(), Some(ALPN));
        assert_eq!(client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    }
    ends
}

fn carry(from: &mut Connection, to: &mut Connection) -> Result<(), rustls::Error> {
    let mut wire = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut wire).unwrap();
    }
    let mut wire = wire.as_slice();
    while !wire.is_empty() {
        to.read_tls(&mut wire).unwrap();
        to.process_new_packets()?;
    }
    Ok(())
}

/// The server must refuse and the client be told: the reasons of both.
fn server_refuses(ends: Ends) -> (String, String) {
    let refusal = ends.1.expect_err("the server let the client in");
    let told = ends.0.expect_err("the client was not told");
    assert!(matches!(told, rustls::Error::AlertReceived(_)), "{told}");
    (explain(&refusal), explain(&told))
}

fn client_refuses(ends: Ends) -> (String, String) {
    let refusal = ends.0.expect_err("the client spoke to the server");
    let told = ends.1.expect_err("the server was not told");
    assert!(matches!(told, rustls::Error::AlertReceived(_)), "{told}");
    (explain(&refusal), explain(&told))
}

#[test]
fn two_nodes_that_expect_each_other_meet() {
    let root = deployment(&["a", "b.example"]);
    let ends = handshake(
        client(&dir(&root), "a", "b.example"),
        server(&dir(&root), "b.example", "a"),
    );
    assert_eq!(ends, (Ok(()), Ok(())));
}

#[test]
fn a_node_of_the_same_deployment_with_another_name_is_refused_on_both_sides() {
    let root = deployment(&["a", "b", "c"]);
    let directory = dir(&root);
    let (why, told) = server_refuses(handshake(client(&directory, "c", "b"), server(&directory, "b", "a")));
    assert!(
        why.contains("not the one expected") && why.contains("\"a\"") && why.contains("\"c\""),
        "{why}"
    );
    assert!(told.contains("does not carry the name"), "{told}");
    let (why, told) = client_refuses(handshake(client(&directory, "a", "b"), server(&directory, "c", "a")));
    assert!(
        why.contains("not the one expected") && why.contains("\"b\"") && why.contains("\"c\""),
        "{why}"
    );
    assert!(told.contains("does not carry the name"), "{told}");
}

#[test]
fn a_node_of_another_deployment_is_refused_on_both_sides() {
    let (ours, theirs) = (deployment(&["a", "b"]), deployment(&["a", "b"]));
    // Foreign certificates, but our CA to check the other side with.
    let forged = tempfile::tempdir().unwrap();
    fs::copy(dir(&ours).join("ca.pem"), forged.path().join("ca.pem")).unwrap();
    for file in ["a.pem", "a.key", "b.pem", "b.key"] {
        fs::copy(dir(&theirs).join(file), forged.path().join(file)).unwrap();
    }
    let (why, told) = server_refuses(handshake(
        client(forged.path(), "a", "b"),
        server(&dir(&ours), "b", "a"),
    ));
    assert!(why.contains("foreign"), "{why}");
    assert!(told.contains("same ca.pem"), "{told}");
    let (why, told) = client_refuses(handshake(
        client(&dir(&ours), "a", "b"),
        server(forged.path(), "b", "a"),
    ));
    assert!(why.contains("foreign"), "{why}");
    assert!(told.contains("same ca.pem"), "{told}");
}

#[test]
fn a_certificate_that_has_ended_or_not_begun_is_refused_on_both_sides() {
    let root = deployment(&["a", "b"]);
    let directory = dir(&root);
    let minute = Duration::from_secs(60);
    for (validity, reason) in [
        (Validity::ended(minute), "has expired"),
        (Validity::begins(minute), "not valid yet"),
    ] {
        for node in ["late-a", "late-b"] {
            let made = Pair::new(&directory, node);
            let _ = (fs::remove_file(&made.cert), fs::remove_file(&made.key));
            issue(&directory, node, validity).unwrap();
        }
        let (why, told) = server_refuses(handshake(
            client(&directory, "late-a", "b"),
            server(&directory, "b", "late-a"),
        ));
        assert!(why.contains(reason), "{why}");
        assert!(told.contains("this node's certificate"), "{told}");
        let (why, told) = client_refuses(handshake(
            client(&directory, "a", "late-b"),
            server(&directory, "late-b", "a"),
        ));
        assert!(why.contains(reason), "{why}");
        assert!(told.contains("this node's certificate"), "{told}");
    }
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let root = deployment(&["b"]);
    let mut anonymous = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(load_ca(&dir(&root)).unwrap())
        .with_no_client_auth();
    anonymous.alpn_protocols = vec![ALPN.to_vec()];
    let mut server = Connection::from(ServerConnection::new(Arc::new(server(&dir(&root), "b", "a"))).unwrap());
    let name = ServerName::try_from("b").unwrap();
    let mut client = Connection::from(ClientConnection::new(Arc::new(anonymous), name).unwrap());
    carry(&mut client, &mut server).unwrap();
    carry(&mut server, &mut client).unwrap();
    let refusal = explain(&carry(&mut client, &mut server).unwrap_err());
    assert!(refusal.contains("no certificate"), "{refusal}");
}

#[test]
fn another_protocol_is_refused() {
    let root = deployment(&["a", "b"]);
    let mut other = client(&dir(&root), "a", "b");
    other.alpn_protocols = vec![b"lockstep/0".to_vec()];
    let (why, told) = server_refuses(handshake(other, server(&dir(&root), "b", "a")));
    assert!(
        why.contains("another protocol") && told.contains("another protocol"),
        "{why}; {told}"
    );
}

#[test]
fn no_connection_is_resumed() {
    let root = deployment(&["a", "b"]);
    let (client, server) = (client(&dir(&root), "a", "b"), server(&dir(&root), "b", "a"));
    for _ in 0..2 {
        let name = ServerName::try_from("b").unwrap();
        let mut caller = ClientConnection::new(Arc::new(client.clone()), name).unwrap();
        let mut called = ServerConnection::new(Arc::new(server.clone())).unwrap();
        for _ in 0..5 {
            let mut wire = Vec::new();
            caller.write_tls(&mut wire).unwrap();
            called.read_tls(&mut wire.as_slice()).unwrap();
            called.process_new_packets().unwrap();
            wire.clear();
            called.write_tls(&mut wire).unwrap();
            caller.read_tls(&mut wire.as_slice()).unwrap();
            caller.process_new_packets().unwrap();
        }
        assert_eq!(called.handshake_kind(), Some(rustls::HandshakeKind::Full));
        assert_eq!(caller.tls13_tickets_received(), 0);
    }
}

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
    let root = deployment(&[]);
    let ca = load(&dir(&root), CA);
    let issued = issue(&dir(&root), "a", Validity::days(MAX_DAYS).unwrap()).unwrap();
    assert!(load(&dir(&root), "a") <= ca, "{issued:?}");
    assert!(Validity::days(0).is_err() && Validity::days(MAX_DAYS + 1).is_err());
}

fn load(directory: &Path, name: &str) -> time::OffsetDateTime {
    let pair = Pair::new(directory, name);
    let certified = pair.load().unwrap();
    authority::last_second(&pair.cert, certified.end_entity_cert().unwrap()).unwrap()
}

#[test]
fn a_renewed_certificate_has_a_new_key_and_is_accepted() {
    let root = deployment(&["a", "b"]);
    let directory = dir(&root);
    let old = fs::read(directory.join("a.key")).unwrap();
    let before = load_identity(&directory, "a").unwrap();
    let issued = renew(&directory, "a", Validity::days(2).unwrap()).unwrap();
    assert_ne!(fs::read(issued.key).unwrap(), old);
    assert!(load_identity(&directory, "a").unwrap().not_after > before.not_after);
    let ends = handshake(client(&directory, "a", "b"), server(&directory, "b", "a"));
    assert_eq!(ends, (Ok(()), Ok(())));
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
