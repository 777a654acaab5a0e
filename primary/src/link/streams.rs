//! What the primary writes one way: a join, and the log.

use bytes::Bytes;
use lockstep_logcodec::{PagePacker, packed::pack, record::kind};
use lockstep_proto::quantity::LogPosition;
use lockstep_vmm::memory::PAGE_SIZE;
use quinn::{Connection, SendStream};
use tokio::sync::mpsc;

use super::channels::LogItem;
use super::net;
use super::wire::{self, BULK_STREAM, LOG_STREAM};

/// Log items written together.
const WRITE_TOGETHER: usize = 64;
/// Pages of a delta that are packed at a time: a fraction of a millisecond.
const PACK_PAGES: usize = 64;

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
    logged: impl Fn(LogPosition),
    wrote: impl Fn(u64),
) {
    let Ok(mut stream) = connection.open_uni().await else {
        return;
    };
    let _ = stream.set_priority(1);
    if stream.write_all(&[LOG_STREAM]).await.is_err() {
        return;
    }
    let mut packer = match PagePacker::new() {
        Ok(packer) => packer,
        Err(error) => return net::close(&connection, &error.to_string()),
    };
    let mut frames = Vec::new();
    let mut waiting = Vec::with_capacity(WRITE_TOGETHER);
    while items.recv_many(&mut waiting, WRITE_TOGETHER).await > 0 {
        for item in waiting.drain(..) {
            let (numbers, contents) = match item {
                LogItem::Batch(position, batch) => {
                    logged(position);
                    frames.push(wire::frame(kind::BATCH as u8, &pack(&batch)));
                    continue;
                }
                LogItem::Pages(numbers, contents) => (numbers, contents),
            };
            for (numbers, contents) in numbers.chunks(PACK_PAGES).zip(contents.chunks(PACK_PAGES * PAGE_SIZE)) {
                let pages = numbers.iter().copied().zip(contents.chunks(PAGE_SIZE));
                match packer.pack(pages) {
                    Ok(chunk) => frames.push(wire::frame(kind::PAGES as u8, &chunk)),
                    Err(error) => return net::close(&connection, &error.to_string()),
                }
                if !write(&mut stream, &mut frames, &wrote).await {
                    return;
                }
                // A large delta takes long to pack: acknowledgements that let outputs go are heard meanwhile.
                tokio::task::yield_now().await;
            }
        }
        if !write(&mut stream, &mut frames, &wrote).await {
            return;
        }
    }
    let _ = stream.finish();
}

/// Writes frames, and leaves none. False where the stream has ended.
async fn write(stream: &mut SendStream, frames: &mut Vec<Bytes>, wrote: &impl Fn(u64)) -> bool {
    wrote(frames.iter().map(|frame| frame.len() as u64).sum());
    let is_written = stream.write_all_chunks(frames).await.is_ok();
    frames.clear();
    is_written
}
