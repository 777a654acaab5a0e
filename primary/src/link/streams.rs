//! What the primary writes one way: a join, and the log.

use bytes::Bytes;
use lockstep_logcodec::{packed::pack, record::kind};
use quinn::Connection;
use tokio::sync::mpsc;

use super::net;
use super::port::LogItem;
use super::wire::{self, BULK_STREAM, LOG_STREAM};
use crate::recorder::pack_delta;

/// Log items written together.
const WRITE_TOGETHER: usize = 64;

/// Writes a join's frames.
pub async fn write_bulk(connection: Connection, mut chunks: mpsc::Receiver<Bytes>) {
    let Ok(mut stream) = connection.open_uni().await else {
        return;
    };
    let _ = stream.set_priority(-1);
    if stream.write_all(&[BULK_STREAM]).await.is_err() {
        return;
    }
    while let Some(bytes) = chunks.recv().await {
        if stream.write_chunk(bytes).await.is_err() {
            return;
        }
    }
    let _ = stream.finish();
}

/// Writes the log; `logged` is told each position before it goes out, as the backup may answer at once, and `wrote` how
/// many bytes go.
pub async fn write_log(
    connection: Connection,
    mut items: mpsc::Receiver<LogItem>,
    logged: impl Fn(u64),
    wrote: impl Fn(u64),
) {
    let Ok(mut stream) = connection.open_uni().await else {
        return;
    };
    let _ = stream.set_priority(1);
    if stream.write_all(&[LOG_STREAM]).await.is_err() {
        return;
    }
    let mut waiting = Vec::with_capacity(WRITE_TOGETHER);
    while items.recv_many(&mut waiting, WRITE_TOGETHER).await > 0 {
        let mut chunks = Vec::new();
        for item in waiting.drain(..) {
            match item {
                LogItem::Batch(position, batch) => {
                    logged(position);
                    chunks.push(wire::frame(kind::BATCH as u8, &pack(&batch)));
                }
                LogItem::Pages(frames, pages) => match pack_delta(&frames, &pages) {
                    Ok(packed) => chunks.extend(packed.iter().map(|chunk| wire::frame(kind::PAGES as u8, chunk))),
                    Err(error) => {
                        net::close(&connection, &error.to_string());
                        return;
                    }
                },
            }
        }
        wrote(chunks.iter().map(|chunk| chunk.len() as u64).sum());
        if stream.write_all_chunks(&mut chunks).await.is_err() {
            return;
        }
    }
    let _ = stream.finish();
}
