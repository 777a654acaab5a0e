//! How the primary's end reaches its backup: it dials, says what is to be said, begins a join and hangs up.

use std::net::SocketAddr;
use std::time::Duration;

use lockstep_node::pki::Credentials;
use lockstep_node::status::count;
use lockstep_proto::ToBackup;
use lockstep_proto::session::{PrimaryState, Unprotected};
use quinn::{Connection, Endpoint};
use tokio::sync::mpsc;

use super::super::channels::{JoinChannels, log_channel};
use super::super::have::{Had, read_have};
use super::super::net;
use super::super::peer::Heard;
use super::super::port::Command;
use super::super::streams::{write_bulk, write_log};
use super::{Event, Loop, REDIAL};

/// Joins that failed one after the other double the time between attempts, so often at most.
const MOST_DOUBLINGS: u32 = 6;
/// Chunks of a join that may wait for the network.
const BULK_QUEUE: usize = 16;

/// Tells a join what the backup has. A stream that is not as it should be ends the connection, and so the join.
async fn hear_of_had(
    connection: Connection,
    pages: u64,
    chunks: Vec<u64>,
    tell: crossbeam_channel::Sender<Had>,
    fail: impl FnOnce(String),
) {
    match read_have(&connection, pages, &chunks).await {
        // A join that is over wants nothing.
        Ok(had) => drop(tell.send(had)),
        Err(error) => fail(format!("what the backup has: {error:#}")),
    }
}

impl Loop {
    pub(super) fn dial(&mut self, endpoint: &Endpoint, credentials: &Credentials, idle: Duration, to: SocketAddr) {
        let wants = matches!(self.session.state(), PrimaryState::Alone(why) if why != Unprotected::Suspended);
        let pause = REDIAL * (1 << self.joins.saturating_sub(1).min(MOST_DOUBLINGS));
        let too_early = self.joins > 0 && self.joined_at.elapsed() < pause;
        // There is nothing to join any more.
        let is_over = self.ending.has_ended();
        if self.dialing || self.peer.is_some() || !wants || too_early || is_over {
            return;
        }
        self.dialing = true;
        self.dials += 1;
        let (events, number) = (self.events.clone(), self.dials);
        let tls = credentials.client().map_err(anyhow::Error::from);
        let connecting = tls
            .and_then(|tls| net::client_config(tls, idle))
            .and_then(|client| Ok(endpoint.connect_with(client, to, &self.peer_name)?));
        tokio::spawn(async move {
            let result = async {
                let connection = connecting?.await?;
                let (control, replies) = connection.open_bi().await?;
                anyhow::Ok((connection, control, replies))
            };
            let event = match result.await {
                Ok((connection, control, replies)) => Event::Connected(number, connection, control, replies),
                Err(error) => Event::DialFailed(error),
            };
            let _ = events.send(event);
        });
    }

    pub(super) fn is_current(&self, number: u64) -> bool {
        self.peer.as_ref().is_some_and(|peer| peer.number == number)
    }

    /// Ends a connection that is over for this side, because of what came or as it broke: the other end is told why.
    pub(super) fn hang_up(&mut self, reason: &str) {
        if let Some(peer) = self.peer.take() {
            net::close(&peer.connection, reason);
        }
    }

    pub(super) fn send(&self, message: &ToBackup) {
        if let Some(peer) = &self.peer {
            peer.send(message);
        }
    }

    pub(super) fn begin_join(&mut self) {
        let Some(peer) = &mut self.peer else { return };
        let (bulk, chunks) = mpsc::channel(BULK_QUEUE);
        let (log, items) = log_channel();
        let (tell_had, had) = crossbeam_channel::bounded(1);
        let (number, events) = (peer.number, self.events.clone());
        peer.add(write_bulk(peer.connection.clone(), chunks));
        let (connection, ending) = (peer.connection.clone(), self.events.clone());
        let fail = move |reason| drop(ending.send(Event::Heard(number, Heard::Closed(reason))));
        let chunks_there = self.chunks.clone();
        peer.add(hear_of_had(connection, self.pages, chunks_there, tell_had, fail));
        let (logged, status) = (self.events.clone(), self.status.clone());
        let tell = move |position| {
            let _ = logged.send(Event::Logged(position));
        };
        let wrote = move |bytes| count(&status.gauges().log_bytes, bytes);
        peer.add(write_log(peer.connection.clone(), items, tell, wrote));
        let state = Box::new(move |state| {
            let _ = events.send(Event::State(number, Result::map(state, Box::new)));
        });
        self.command(Command::BeginJoin(JoinChannels { had, bulk, log, state }));
    }
}
