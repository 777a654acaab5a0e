//! Real handshakes between nodes.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};

use super::super::store::Pair;
use super::super::*;
use super::{deployment, dir};

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
fn a_renewed_certificate_is_accepted() {
    let root = deployment(&["a", "b"]);
    renew(&dir(&root), "a", Validity::days(2).unwrap()).unwrap();
    let ends = handshake(client(&dir(&root), "a", "b"), server(&dir(&root), "b", "a"));
    assert_eq!(ends, (Ok(()), Ok(())));
}
