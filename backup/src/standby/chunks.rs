//! Chunks of a disk that a join brings.

use anyhow::{Context, Result, ensure};
use lockstep_node::host::chunks::CHUNK;
use lockstep_node::host::image::{Image, SECTOR};
use lockstep_proto::DiskChunk;
use lockstep_vmm::devices::DiskOp;
/// Writes one where it belongs.
pub fn write(images: &mut [Image], chunk: &DiskChunk) -> Result<()> {
    let image = images.get_mut(chunk.disk as usize);
    let image = image.with_context(|| format!("a chunk of disk {}, which the machine does not have", chunk.disk))?;
    let bytes = image.bytes()?;
    let data = zstd::bulk::decompress(&chunk.data, CHUNK as usize).context("a chunk of a disk does not unpack")?;
    let expected = bytes.saturating_sub(chunk.offset).min(CHUNK);
    ensure!(
        chunk.offset.is_multiple_of(CHUNK) && expected > 0 && data.len() as u64 == expected,
        "a chunk of {} bytes at {} of a disk with {bytes}",
        data.len(),
        chunk.offset
    );
    let sector = chunk.offset / SECTOR;
    image.execute(&if data.iter().all(|&byte| byte == 0) {
        // What was here goes, and the image stays as thin as the primary's.
        let sectors = (expected / SECTOR) as u32;
        DiskOp::Discard { sector, sectors }
    } else {
        DiskOp::Write { sector, data }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// Whatever a disk had before: it has the primary's zeroes then, and they take no room.
    #[test]
    fn zeroes_that_come_replace_what_was_there() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("disk");
        let chunk = CHUNK as usize;
        std::fs::write(&path, vec![9; 2 * chunk + 512]).unwrap();
        let mut images = vec![Image::open(&path, false).unwrap()];
        let full = std::fs::metadata(&path).unwrap().blocks();
        let mut write = |disk, offset, data: &[u8]| {
            let data = zstd::bulk::compress(data, 1).unwrap().into();
            super::write(&mut images, &DiskChunk { disk, offset, data })
        };
        write(0, CHUNK, &vec![0; chunk]).unwrap();
        write(0, 2 * CHUNK, &[0; 512]).unwrap();
        let mut expected = vec![0; 2 * chunk + 512];
        expected[..chunk].fill(9);
        assert!(std::fs::read(&path).unwrap() == expected);
        assert!(std::fs::metadata(&path).unwrap().blocks() + CHUNK / 512 <= full);
        write(0, 2 * CHUNK, &[7; 512]).unwrap();
        expected[2 * chunk..].fill(7);
        assert!(std::fs::read(&path).unwrap() == expected);
        write(1, 0, &vec![0; chunk]).unwrap_err();
        write(0, 3 * CHUNK, &vec![0; chunk]).unwrap_err();
        write(0, 0, &[0; 512]).unwrap_err();
        write(0, 512, &vec![0; chunk]).unwrap_err();
    }
}
