//! What the primary writes one way: a join, and the log.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, anyhow, bail};
use bytes::Bytes;
use crossbeam_channel::Sender;
use lockstep_logcodec::Record as LogRecord;
use lockstep_logcodec::limits::MAX_PAYLOAD;
use lockstep_primary::link::net::FrameStream;
use lockstep_primary::link::peer::Heard;
use lockstep_primary::link::wire::{self, BULK_CHUNK, BULK_PAGES, BULK_STREAM, LOG_STREAM};
use quinn::{Connection, RecvStream};
use tokio::sync::{Semaphore, mpsc};

use super::link::Event;
use super::{Order, Queued};

/// Takes the primary's one-way streams.
pub async fn read_streams(
    number: u64,
    connection: Connection,
    log: Sender<Queued>,
    room: Arc<Semaphore>,
    events: mpsc::UnboundedSender<Event>,
) {
    while let Ok(mut stream) = connection.accept_uni().await {
        let (log, room, events) = (log.clone(), room.clone(), events.clone());
        tokio::spawn(async move {
            let mut first = [0];
            let result = match stream.read_exact(&mut first).await {
                Err(error) => Err(error.into()),
                Ok(()) => match first[0] {
                    BULK_STREAM => read_bulk(number, stream, &room, &events).await,
                    LOG_STREAM => read_log(number, stream, &log, &room, &events).await,
                    other => Err(anyhow!("a stream of kind {other}, which is not known")),
                },
            };
            if let Err(error) = result {
                let _ = events.send(Event::Heard(number, Heard::Closed(error.to_string())));
            }
        });
    }
}

/// Waits for room for a payload, which the replica gives back when it has taken it. Returns its weight.
async fn wait_for_room(room: &Semaphore, payload: &Bytes) -> Result<u32> {
    let weight = (payload.len() / 1024 + 1) as u32;
    room.acquire_many(weight).await?.forget();
    Ok(weight)
}

async fn read_bulk(
    number: u64,
    stream: RecvStream,
    room: &Semaphore,
    events: &mpsc::UnboundedSender<Event>,
) -> Result<()> {
    let mut frames = FrameStream::new(stream, MAX_PAYLOAD as usize);
    while let Some((frame_kind, payload)) = frames.next_frame().await? {
        let weight = wait_for_room(room, &payload).await?;
        let order = match frame_kind {
            BULK_PAGES => Order::Pages(wire::decode(payload)?, weight),
            BULK_CHUNK => Order::Chunk(wire::decode(payload)?, weight),
            other => bail!("a record of kind {other} among a join's pages and chunks"),
        };
        let _ = events.send(Event::Bulk(number, order));
    }
    Ok(())
}

async fn read_log(
    number: u64,
    stream: RecvStream,
    log: &Sender<Queued>,
    room: &Semaphore,
    events: &mpsc::UnboundedSender<Event>,
) -> Result<()> {
    let mut frames = FrameStream::new(stream, MAX_PAYLOAD as usize);
    let mut batches = 0;
    while let Some((frame_kind, payload)) = frames.next_frame().await? {
        let weight = wait_for_room(room, &payload).await?;
        let record = LogRecord::decode(frame_kind.into(), &payload)?;
        let is_batch = matches!(record, LogRecord::Batch(_));
        let came = Instant::now();
        let _ = log.send(Queued { record, weight, came });
        if is_batch {
            batches += 1;
            let _ = events.send(Event::Log(number, batches));
        }
    }
    Ok(())
}
