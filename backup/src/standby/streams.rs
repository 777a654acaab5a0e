//! What the primary writes one way: a join, and the log.

use std::time::Instant;

use anyhow::{Result, anyhow, bail};
use bytes::Bytes;
use crossbeam_channel::Sender;
use lockstep_logcodec::Record as LogRecord;
use lockstep_logcodec::limits::MAX_PAYLOAD;
use lockstep_primary::link::net::FrameStream;
use lockstep_primary::link::peer::Heard;
use lockstep_primary::link::wire::{self, BULK_CHUNK, BULK_PAGES, BULK_STREAM, LOG_STREAM};
use lockstep_proto::Turn;
use quinn::{Connection, RecvStream};
use tokio::sync::mpsc;

use super::room::{Room, Rooms};
use super::{Event, Order, Queued};

/// Takes the primary's one-way streams.
pub async fn read_streams(
    number: u64,
    connection: Connection,
    log: Sender<Queued>,
    rooms: Rooms,
    events: mpsc::UnboundedSender<Event>,
) {
    while let Ok(mut stream) = connection.accept_uni().await {
        let (log, rooms, events) = (log.clone(), rooms.clone(), events.clone());
        tokio::spawn(async move {
            let mut first = [0];
            let result = match stream.read_exact(&mut first).await {
                Err(error) => Err(error.into()),
                Ok(()) => match first[0] {
                    BULK_STREAM => read_bulk(number, stream, &rooms.bulk, &events).await,
                    LOG_STREAM => read_log(number, stream, &log, &rooms.log, &events).await,
                    other => Err(anyhow!("a stream of kind {other}, which is not known")),
                },
            };
            if let Err(error) = result {
                let _ = events.send(Event::Heard(number, Heard::Closed(error.to_string())));
            }
        });
    }
}

/// Bytes that a record takes in memory, where a turn takes more than its two bytes on the way.
fn size_in_memory(record: &LogRecord, payload: &Bytes) -> usize {
    let turns = match record {
        LogRecord::Batch(batch) => batch.turns.len(),
        _ => 0,
    };
    payload.len() + turns * size_of::<Turn>()
}

async fn read_bulk(number: u64, stream: RecvStream, room: &Room, events: &mpsc::UnboundedSender<Event>) -> Result<()> {
    let mut frames = FrameStream::new(stream, MAX_PAYLOAD as usize);
    while let Some((frame_kind, payload)) = frames.next_frame().await? {
        let weight = room.take(payload.len()).await?;
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
    room: &Room,
    events: &mpsc::UnboundedSender<Event>,
) -> Result<()> {
    let mut frames = FrameStream::new(stream, MAX_PAYLOAD as usize);
    let mut batches = 0;
    while let Some((frame_kind, payload)) = frames.next_frame().await? {
        let record = LogRecord::decode(frame_kind.into(), &payload)?;
        let weight = room.take(size_in_memory(&record, &payload)).await?;
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

#[cfg(test)]
mod tests {
    use lockstep_proto::Batch;

    use super::*;

    /// The smallest on the way and the largest in memory.
    #[test]
    fn a_batch_of_many_empty_turns_weighs_what_it_takes() {
        let batch = Batch {
            turns: vec![Turn::default(); 65_536],
            ..Batch::default()
        };
        let record = LogRecord::Batch(batch);
        assert!(size_in_memory(&record, &Bytes::from_static(&[0; 1000])) > 65_536 * 100);
    }
}
