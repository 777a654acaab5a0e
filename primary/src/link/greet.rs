//! A look at the peer from outside a session: whether it stands by, and would fit.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use lockstep_node::pki::Credentials;
use lockstep_proto::session::{MAX_CONTROL_BYTES, PROTOCOL_VERSION};
use lockstep_proto::{Hello, ToBackup, ToPrimary, to_backup, to_primary};
use quinn::{Connection, ConnectionError};

use super::net::{self, FrameStream};
use super::{BUSY, wire};

/// How long the peer may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// What the peer answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Greeting {
    /// It stands by, and would take the machine.
    Fits {
        /// Its name.
        node: String,
        /// Its host's class.
        host_class: String,
    },
    /// It stands by for a primary that is there.
    Busy,
    /// It would not take the machine, for this reason.
    Refused(String),
}

/// Says `hello`, as an inquiry, to the node called `peer_name` that listens at `to`.
pub fn greet(to: std::net::SocketAddr, peer_name: &str, credentials: &Credentials, hello: Hello) -> Result<Greeting> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the network's runtime")?;
    runtime.block_on(async {
        let answer = tokio::time::timeout(PATIENCE, ask(to, peer_name, credentials, hello));
        answer
            .await
            .unwrap_or_else(|_| bail!("no answer in {} seconds", PATIENCE.as_secs()))
    })
}

async fn ask(to: std::net::SocketAddr, peer_name: &str, credentials: &Credentials, hello: Hello) -> Result<Greeting> {
    let endpoint = net::dialer(to)?;
    let client = net::client_config(credentials.client()?, PATIENCE)?;
    let connection = endpoint.connect_with(client, to, peer_name)?.await?;
    let answer = converse(&connection, hello).await;
    // A connection that was closed by the other side says why.
    let busy = matches!(
        connection.close_reason(),
        Some(ConnectionError::ApplicationClosed(close)) if close.reason.as_ref() == BUSY.as_bytes()
    );
    net::close(&connection, "the inquiry was answered");
    endpoint.wait_idle().await;
    if busy { Ok(Greeting::Busy) } else { answer }
}

async fn converse(connection: &Connection, hello: Hello) -> Result<Greeting> {
    let (mut control, replies) = connection.open_bi().await?;
    let message = ToBackup {
        kind: Some(to_backup::Kind::Hello(Hello {
            version_min: PROTOCOL_VERSION,
            version_max: PROTOCOL_VERSION,
            inquiry: true,
            ..hello
        })),
    };
    control.write_all(&wire::frame(0, &message)).await?;
    let mut replies = FrameStream::new(replies, MAX_CONTROL_BYTES);
    match replies.message::<ToPrimary>().await?.and_then(|reply| reply.kind) {
        Some(to_primary::Kind::Welcome(welcome)) => Ok(Greeting::Fits {
            node: welcome.node,
            host_class: welcome.host_class,
        }),
        Some(to_primary::Kind::Goodbye(goodbye)) => Ok(Greeting::Refused(goodbye.reason)),
        _ => bail!("it answered with another message than a welcome"),
    }
}
