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
    let _ = stream.set_priority(net::BULK_PRIORITY);
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
    let _ = stream.set_priority(net::LOG_PRIORITY);
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lockstep_node::pki::{Credentials, Validity, init, issue};
    use lockstep_proto::{Batch, Turn};
    use quinn::RecvStream;

    use super::super::channels::log_channel;
    use super::super::wire::LOG_STREAM;
    use super::*;

    const IDLE: Duration = Duration::from_secs(60);
    /// Of one frame of the bulk stream, and of the whole of it.
    const FRAME: usize = 64 << 10;
    const BULK: usize = 4 << 20;

    /// Both ends of a connection of this host with itself: the primary's, the backup's.
    async fn connection() -> (Connection, Connection) {
        let home = tempfile::tempdir().unwrap();
        let pki = home.path().join("pki");
        init(&pki).unwrap();
        for name in ["a", "b"] {
            issue(&pki, name, Validity::days(1).unwrap()).unwrap();
        }
        let server = Credentials::new(&pki, "b", "a").server().unwrap();
        let listener = net::listen(([127, 0, 0, 1], 0).into(), server, IDLE).unwrap();
        let to = listener.local_addr().unwrap();
        let client = Credentials::new(&pki, "a", "b").client().unwrap();
        let dialer = net::dialer(to).unwrap();
        let connecting = dialer.connect_with(net::client_config(client, IDLE).unwrap(), to, "b");
        let accepted = async { listener.accept().await.unwrap().await.unwrap() };
        let (near, far) = tokio::join!(connecting.unwrap(), accepted);
        (near.unwrap(), far)
    }

    /// Reads a stream to its end or for as long as `go_on` wants; returns how many bytes it brought.
    async fn read(mut stream: RecvStream, go_on: impl Fn(usize) -> bool) -> usize {
        let mut bytes = 0;
        while go_on(bytes)
            && let Some(chunk) = stream.read_chunk(FRAME, true).await.unwrap()
        {
            bytes += chunk.bytes.len();
        }
        bytes
    }

    /// A guest that makes log as fast as the network takes it does not keep its own join from ending.
    #[tokio::test]
    async fn a_join_goes_before_the_log_behind_it() {
        let (near, far) = connection().await;
        let (chunks, bulk) = mpsc::channel(BULK / FRAME);
        for _ in 0..BULK / FRAME {
            chunks.try_send(Bytes::from(vec![1; FRAME])).unwrap();
        }
        drop(chunks);
        let (items, log) = log_channel();
        let endless = tokio::spawn(async move {
            let turn = Turn {
                console: vec![2; FRAME].into(),
                ..Turn::default()
            };
            let batch = Batch {
                turns: vec![turn],
                ..Batch::default()
            };
            while items
                .send(LogItem::Batch(LogPosition::START, batch.clone()))
                .await
                .is_ok()
            {}
        });
        let writers = [
            tokio::spawn(write_log(near.clone(), log, |_| {}, |_| {})),
            tokio::spawn(write_bulk(near.clone(), bulk)),
        ];
        let mut streams = [None, None];
        for _ in 0..2 {
            let mut stream = far.accept_uni().await.unwrap();
            let mut kind = [0];
            stream.read_exact(&mut kind).await.unwrap();
            streams[usize::from(kind[0] == LOG_STREAM)] = Some(stream);
        }
        let [Some(bulk), Some(log)] = streams else {
            panic!("two of a kind")
        };
        // Whatever of the log comes meanwhile: less than the join.
        tokio::select! {
            biased;
            bytes = read(bulk, |_| true) => assert_eq!(bytes, BULK),
            bytes = read(log, |bytes| bytes < BULK) => panic!("{bytes} bytes of the log have come, and the join is not over"),
        }
        endless.abort();
        for writer in writers {
            writer.abort();
        }
    }
}
