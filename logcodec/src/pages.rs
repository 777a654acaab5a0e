//! Pages of guest memory as chunks: at most [`MAX_CHUNK_PAGES`] pages, in ascending order of their frame numbers, one
//! after the other in one zstd frame.

use bytes::Bytes;
use lockstep_proto::PageChunk;
use lockstep_proto::quantity::PageNumber;
use zstd::bulk::Compressor;

use crate::error::Violation;
use crate::limits::{MAX_CHUNK_DATA, MAX_CHUNK_PAGES, MAX_FRAME_NUMBER, PAGE_BYTES};

/// zstd's level for pages. Level 1: the recorder pays for it while the guest waits.
const LEVEL: i32 = 1;

/// Packs chunk after chunk with the same compressor and buffers.
pub struct PagePacker {
    zstd: Compressor<'static>,
    raw: Vec<u8>,
}

impl PagePacker {
    /// A packer. Fails only where zstd gets no memory.
    pub fn new() -> Result<Self, Violation> {
        let zstd = Compressor::new(LEVEL).map_err(|_| Violation::Rule("zstd gets no memory for a compressor"))?;
        Ok(Self { zstd, raw: Vec::new() })
    }

    /// Packs 1 to [`MAX_CHUNK_PAGES`] pages: frame number (guest physical address / 4096) and 4096 bytes each, ascending.
    pub fn pack<'a>(
        &mut self,
        pages: impl IntoIterator<Item = (PageNumber, &'a [u8])>,
    ) -> Result<PageChunk, Violation> {
        self.raw.clear();
        let mut frame_gaps = Vec::new();
        let mut previous = None;
        for (frame, page) in pages {
            if page.len() != PAGE_BYTES {
                let (found, expected) = (page.len() as u64, PAGE_BYTES as u64);
                return Err(Violation::Mismatch {
                    what: "length of a page",
                    found,
                    expected,
                });
            }
            if frame_gaps.len() == MAX_CHUNK_PAGES {
                let limit = MAX_CHUNK_PAGES as u64;
                return Err(Violation::TooMuch {
                    what: "pages in a chunk",
                    value: limit + 1,
                    limit,
                });
            }
            if previous.is_some_and(|p| p >= frame) {
                return Err(Violation::Rule("the pages of a chunk are not in ascending order"));
            }
            frame_gaps.push(frame.since(previous.unwrap_or(PageNumber::FIRST)));
            previous = Some(frame);
            self.raw.extend_from_slice(page);
        }
        let data = self
            .zstd
            .compress(&self.raw)
            .map_err(|_| Violation::Rule("zstd does not compress these pages"))?;
        let chunk = PageChunk {
            frame_gaps,
            data: Bytes::from(data),
        };
        span(&chunk)?;
        Ok(chunk)
    }
}

impl std::fmt::Debug for PagePacker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PagePacker").finish_non_exhaustive()
    }
}

/// Packs one chunk; see [`PagePacker::pack`].
pub fn pack_pages<'a>(pages: impl IntoIterator<Item = (PageNumber, &'a [u8])>) -> Result<PageChunk, Violation> {
    PagePacker::new()?.pack(pages)
}

/// Which frames a chunk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub first: PageNumber,
    pub last: PageNumber,
    pub pages: u32,
}

/// Checks everything about a chunk but its compressed data.
pub(crate) fn span(chunk: &PageChunk) -> Result<Span, Violation> {
    let pages = chunk.frame_gaps.len();
    let Some((&first, further)) = chunk.frame_gaps.split_first() else {
        return Err(Violation::Rule("a chunk has no pages"));
    };
    too_much("pages in a chunk", pages, MAX_CHUNK_PAGES)?;
    too_much("compressed bytes in a chunk", chunk.data.len(), MAX_CHUNK_DATA)?;
    let first = PageNumber::new(first);
    let mut last = first;
    for &gap in further {
        if gap == 0 {
            return Err(Violation::Rule("the pages of a chunk are not in ascending order"));
        }
        last = last.plus(gap);
    }
    if last >= PageNumber::new(MAX_FRAME_NUMBER) {
        return Err(Violation::TooMuch {
            what: "page frame number",
            value: last.get(),
            limit: MAX_FRAME_NUMBER - 1,
        });
    }
    Ok(Span {
        first,
        last,
        pages: pages as u32,
    })
}

fn too_much(what: &'static str, value: usize, limit: usize) -> Result<(), Violation> {
    if value > limit {
        return Err(Violation::TooMuch {
            what,
            value: value as u64,
            limit: limit as u64,
        });
    }
    Ok(())
}

/// An unpacked chunk: its pages in one buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pages {
    frames: Vec<PageNumber>,
    raw: Vec<u8>,
}

impl Pages {
    /// Frame number and content of each page, ascending.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (PageNumber, &[u8; PAGE_BYTES])> {
        self.frames.iter().copied().zip(self.raw.as_chunks::<PAGE_BYTES>().0)
    }

    /// Number of pages, 1 to [`MAX_CHUNK_PAGES`].
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(&self) -> usize {
        self.frames.len()
    }
}

/// Unpacks a chunk whose frame numbers have to be below `frame_limit` (guest memory / 4096). Allocates at most 1 MiB,
/// whatever the data says.
pub fn unpack_pages(chunk: &PageChunk, frame_limit: PageNumber) -> Result<Pages, Violation> {
    let span = span(chunk)?;
    if span.last >= frame_limit {
        let limit = frame_limit.get().saturating_sub(1);
        return Err(Violation::TooMuch {
            what: "page frame number",
            value: span.last.get(),
            limit,
        });
    }
    let bytes = span.pages as usize * PAGE_BYTES;
    let raw = zstd::bulk::decompress(&chunk.data, bytes)
        .map_err(|_| Violation::Rule("the data of a chunk is not its pages in zstd"))?;
    if raw.len() != bytes {
        let (found, expected) = (raw.len() as u64, bytes as u64);
        return Err(Violation::Mismatch {
            what: "length of a chunk's pages",
            found,
            expected,
        });
    }
    let frames = chunk.frame_gaps.iter().scan(PageNumber::FIRST, |frame, gap| {
        *frame = frame.plus(*gap);
        Some(*frame)
    });
    Ok(Pages {
        frames: frames.collect(),
        raw,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(number: u64) -> PageNumber {
        PageNumber::new(number)
    }

    fn page(fill: u8) -> Vec<u8> {
        vec![fill; PAGE_BYTES]
    }

    #[test]
    fn pages_come_back() {
        let (a, b) = (page(1), page(2));
        let chunk = pack_pages([(at(0), &a[..]), (at(77), &b[..])]).unwrap();
        assert_eq!(chunk.frame_gaps, [0, 77]);
        let pages = unpack_pages(&chunk, at(78)).unwrap();
        assert_eq!(pages.len(), 2);
        let got: Vec<_> = pages.iter().map(|(frame, page)| (frame, page[4095])).collect();
        assert_eq!(got, [(at(0), 1), (at(77), 2)]);
    }

    #[test]
    fn a_full_chunk_of_noise_fits_and_one_more_page_does_not() {
        let mut state = 1u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .take((MAX_CHUNK_PAGES + 1) * PAGE_BYTES)
        .collect();
        let pages = || {
            noise
                .chunks(PAGE_BYTES)
                .enumerate()
                .map(|(i, page)| (at(i as u64), page))
        };
        let chunk = pack_pages(pages().take(MAX_CHUNK_PAGES)).unwrap();
        assert_eq!(unpack_pages(&chunk, at(256)).unwrap().len(), 256);
        assert!(matches!(
            pack_pages(pages()),
            Err(Violation::TooMuch { value: 257, .. })
        ));
        let mut taken = 0;
        let endless = (0..)
            .map(|frame| (at(frame), &noise[..PAGE_BYTES]))
            .take(10_000)
            .inspect(|_| taken += 1);
        assert!(pack_pages(endless).is_err());
        assert_eq!(taken, MAX_CHUNK_PAGES + 1, "no more than it needs to tell");
    }

    #[test]
    fn packing_checks_its_input() {
        let a = page(1);
        assert!(pack_pages([]).is_err());
        assert!(pack_pages([(at(3), &a[1..])]).is_err());
        assert!(pack_pages([(at(3), &a[..]), (at(3), &a[..])]).is_err());
        assert!(pack_pages([(at(3), &a[..]), (at(2), &a[..])]).is_err());
        assert!(pack_pages([(at(MAX_FRAME_NUMBER), &a[..])]).is_err());
        assert!(pack_pages([(at(MAX_FRAME_NUMBER - 1), &a[..])]).is_ok());
    }

    #[test]
    fn unpacking_checks_its_input() {
        let (a, b) = (page(1), page(2));
        let good = pack_pages([(at(5), &a[..]), (at(9), &b[..])]).unwrap();
        assert!(unpack_pages(&good, at(10)).is_ok());
        assert!(unpack_pages(&good, at(9)).is_err(), "beyond guest memory");
        let with = |frame_gaps: Vec<u64>| PageChunk {
            frame_gaps,
            data: good.data.clone(),
        };
        assert!(unpack_pages(&with(vec![]), at(10)).is_err(), "no pages");
        assert!(unpack_pages(&with(vec![5]), at(10)).is_err(), "more data than pages");
        assert!(
            unpack_pages(&with(vec![5, 1, 1]), at(10)).is_err(),
            "less data than pages"
        );
        assert!(unpack_pages(&with(vec![5, 0]), at(10)).is_err(), "the same frame twice");
        assert!(
            unpack_pages(&with(vec![5, u64::MAX]), at(u64::MAX)).is_err(),
            "overflow"
        );
        let error = unpack_pages(&with(vec![1; 257]), at(u64::MAX)).unwrap_err();
        assert!(matches!(
            error,
            Violation::TooMuch {
                what: "pages in a chunk",
                ..
            }
        ));
        let cut = PageChunk {
            data: good.data.slice(..good.data.len() - 1),
            ..good.clone()
        };
        assert!(unpack_pages(&cut, at(10)).is_err(), "cut data");
        let large = PageChunk {
            data: vec![0; MAX_CHUNK_DATA + 1].into(),
            ..good
        };
        let error = unpack_pages(&large, at(10)).unwrap_err();
        assert!(matches!(
            error,
            Violation::TooMuch {
                what: "compressed bytes in a chunk",
                ..
            }
        ));
    }

    #[test]
    fn a_bomb_is_not_unpacked() {
        let data = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
        let bomb = PageChunk {
            frame_gaps: vec![1; 256],
            data: data.into(),
        };
        assert!(unpack_pages(&bomb, at(1000)).is_err());
    }
}
