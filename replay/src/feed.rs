//! The log as a feed of turns, with their absolute positions and whole deltas.

use std::collections::VecDeque;

use lockstep_logcodec::record::{Record, unpack_pages};
use lockstep_logcodec::{Bookmark, Ending, LogError, LogReader};
use lockstep_proto::quantity::{BatchNumber, PageNumber, StopNumber};
use lockstep_proto::{Batch, End, Turn};
use lockstep_vmm::machine::Delta;
use lockstep_vmm::memory::PAGE_SIZE;

/// Where the records of a log come from: files, or a primary that is still writing.
pub trait Source {
    /// The next record; `None` when there is no more.
    fn next_record(&mut self) -> Result<Option<Record>, LogError>;

    /// How the log ends, as far as is known.
    fn ending(&self) -> Ending;

    /// Whether nobody wants the machine any more: asked now and then while the guest runs.
    fn is_given_up(&mut self) -> bool {
        false
    }

    /// A place to come back to: between two batches of a log that lies in files.
    fn bookmark(&self) -> Option<Bookmark> {
        None
    }

    /// Comes back to such a place.
    fn return_to(&mut self, _: &Bookmark) -> Result<(), LogError> {
        Err(LogError::damaged(
            "a log that is still on its way has no places to come back to",
        ))
    }
}

impl Source for LogReader {
    fn next_record(&mut self) -> Result<Option<Record>, LogError> {
        Self::next_record(self)
    }

    fn ending(&self) -> Ending {
        Self::ending(self)
    }

    fn bookmark(&self) -> Option<Bookmark> {
        Self::bookmark(self)
    }

    fn return_to(&mut self, bookmark: &Bookmark) -> Result<(), LogError> {
        Self::return_to(self, bookmark)
    }
}

/// A turn and where it stands.
#[derive(Clone, Debug)]
pub struct Placed {
    /// The natural stop of the turn, or before it for a forced one.
    pub stop: StopNumber,
    /// The turn.
    pub turn: Turn,
    /// The pages of its delta: frame numbers and contents.
    pub pages: (Vec<PageNumber>, Vec<u8>),
}

impl Placed {
    /// The delta of a forced stop.
    pub fn take_delta(&mut self) -> Option<Delta> {
        let vcpu = self.turn.forced.as_ref()?.vcpu.clone()?;
        let (frames, pages) = std::mem::take(&mut self.pages);
        Some(Delta { vcpu, frames, pages })
    }
}

/// What stands at the end of a batch.
#[derive(Clone, Debug, Default)]
pub struct Mark {
    /// Number of the batch in the log, from 0.
    pub batch: BatchNumber,
    /// The stops that it covers: after this one ...
    pub first_stop: StopNumber,
    /// ... up to and including this one.
    pub last_stop: StopNumber,
    /// The digest chain at its end.
    pub digest: bytes::Bytes,
}

/// Where a feed stands between two turns.
#[derive(Clone, Debug)]
pub struct SavedFeed {
    bookmark: Bookmark,
    turns: VecDeque<Placed>,
    mark: Mark,
    next: BatchNumber,
}

impl SavedFeed {
    /// Bytes that are kept, roughly.
    pub fn bytes(&self) -> usize {
        let turn = |placed: &Placed| {
            let frames: usize = placed.turn.frames.iter().map(|frame| frame.data.len()).sum();
            size_of::<Placed>() + frames + placed.pages.1.len() + placed.pages.0.len() * 8
        };
        size_of::<Self>() + self.turns.iter().map(turn).sum::<usize>()
    }
}

/// The next thing in a log.
pub enum Next {
    /// A batch was taken in; its turns are in the queue.
    Batch,
    /// The log was closed in order.
    End(Box<End>),
    /// There is no more.
    Stop,
}

/// A log, batch by batch.
pub struct Feed {
    source: Box<dyn Source>,
    frames: Vec<PageNumber>,
    pages: Vec<u8>,
    max_frame: PageNumber,
    /// Turns of the batch in work that are still to come.
    pub turns: VecDeque<Placed>,
    /// The batch in work.
    pub mark: Mark,
    next: BatchNumber,
}

impl Feed {
    /// A feed of `source` for a machine whose memory ends before frame `max_frame`.
    pub fn new(source: Box<dyn Source>, start_stop: StopNumber, max_frame: PageNumber) -> Self {
        let mark = Mark {
            first_stop: start_stop,
            last_stop: start_stop,
            ..Mark::default()
        };
        Self {
            source,
            frames: Vec::new(),
            pages: Vec::new(),
            max_frame,
            turns: VecDeque::new(),
            mark,
            next: BatchNumber::FIRST,
        }
    }

    /// How the log ends, as far as is known.
    pub fn ending(&self) -> Ending {
        self.source.ending()
    }

    /// Whether nobody wants the machine any more.
    pub fn is_given_up(&mut self) -> bool {
        self.source.is_given_up()
    }

    /// Where it stands; `None` for a log that is still on its way.
    pub fn saved(&self) -> Option<SavedFeed> {
        Some(SavedFeed {
            bookmark: self.source.bookmark()?,
            turns: self.turns.clone(),
            mark: self.mark.clone(),
            next: self.next,
        })
    }

    /// Comes back to where it stood.
    pub fn return_to(&mut self, saved: &SavedFeed) -> Result<(), LogError> {
        self.source.return_to(&saved.bookmark)?;
        self.turns.clone_from(&saved.turns);
        self.mark = saved.mark.clone();
        self.next = saved.next;
        self.frames.clear();
        self.pages.clear();
        Ok(())
    }

    /// Reads up to and including the next batch.
    pub fn advance(&mut self) -> Result<Next, LogError> {
        loop {
            match self.source.next_record()? {
                None => return Ok(Next::Stop),
                Some(Record::End(end)) => return Ok(Next::End(Box::new(end))),
                Some(Record::Pages(chunk)) => {
                    let pages = unpack_pages(&chunk, self.max_frame)?;
                    for (frame, page) in pages.iter() {
                        self.frames.push(frame);
                        self.pages.extend_from_slice(page);
                    }
                }
                Some(Record::Batch(batch)) => {
                    self.take_batch(batch)?;
                    return Ok(Next::Batch);
                }
            }
        }
    }

    fn take_batch(&mut self, batch: Batch) -> Result<(), LogError> {
        let first_stop = StopNumber::new(batch.first_stop);
        let mut stop = first_stop;
        self.mark = Mark {
            batch: self.next,
            first_stop,
            last_stop: StopNumber::new(batch.last_stop),
            digest: batch.digest,
        };
        self.next = self.next.next();
        let (frames, pages) = (std::mem::take(&mut self.frames), std::mem::take(&mut self.pages));
        let (mut frames, mut pages) = (&frames[..], &pages[..]);
        for turn in batch.turns {
            stop = stop.plus(turn.gap.into());
            let count = turn.forced.as_ref().map_or(0, |forced| forced.pages as usize);
            if count > frames.len() {
                return Err(LogError::damaged(format!("the delta after stop {stop} lacks pages")));
            }
            // Copies of its own size: all turns of a batch wait together, most of them without a page.
            let (own_frames, own_pages);
            (own_frames, frames) = frames.split_at(count);
            (own_pages, pages) = pages.split_at(count * PAGE_SIZE);
            let pages = (own_frames.to_vec(), own_pages.to_vec());
            self.turns.push_back(Placed { stop, turn, pages });
        }
        if frames.is_empty() {
            Ok(())
        } else {
            Err(LogError::damaged(format!(
                "{} pages before stop {stop} belong to no delta",
                frames.len()
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use lockstep_proto::Forced;

    use super::*;

    /// A log that is a list.
    struct Records(std::vec::IntoIter<Record>);

    impl Source for Records {
        fn next_record(&mut self) -> Result<Option<Record>, LogError> {
            Ok(self.0.next())
        }

        fn ending(&self) -> Ending {
            Ending::Unfinished
        }
    }

    /// What a feed makes of a batch behind so many pages, of which its turns want these.
    fn advanced(pages: u64, wanted: &[u32]) -> Result<Feed, LogError> {
        let turns = wanted.iter().map(|pages| Turn {
            gap: 1,
            forced: (*pages > 0).then(|| Forced {
                pages: *pages,
                ..Forced::default()
            }),
            ..Turn::default()
        });
        let batch = Batch {
            turns: turns.collect(),
            ..Batch::default()
        };
        let mut feed = Feed::new(
            Box::new(Records(vec![Record::Batch(batch)].into_iter())),
            StopNumber::START,
            PageNumber::new(pages),
        );
        for frame in 0..pages {
            feed.frames.push(PageNumber::new(frame));
            feed.pages.extend_from_slice(&[frame as u8; PAGE_SIZE]);
        }
        feed.advance().map(|_| feed)
    }

    #[test]
    fn each_delta_has_its_pages_and_no_turn_has_room_for_others() {
        let mut wanted = vec![0; 100];
        (wanted[10], wanted[20], wanted[21]) = (3, 1, 60);
        let feed = advanced(64, &wanted).unwrap();
        let mut next = 0;
        for (placed, wanted) in feed.turns.iter().zip(wanted) {
            let (frames, pages) = &placed.pages;
            let end = next + u64::from(wanted);
            assert_eq!(*frames, (next..end).map(PageNumber::new).collect::<Vec<_>>());
            let contents = frames.iter().flat_map(|frame| [frame.get() as u8; PAGE_SIZE]);
            assert_eq!(*pages, contents.collect::<Vec<_>>());
            assert_eq!(
                (frames.capacity(), pages.capacity()),
                (frames.len(), pages.len()),
                "at stop {}",
                placed.stop
            );
            next = end;
        }
        assert_eq!((next, feed.turns.len()), (64, 100));
    }

    #[test]
    fn pages_and_deltas_have_to_fit() {
        for (pages, wanted, why) in [
            (2, &[1, 2][..], "the delta after stop 2 lacks pages"),
            (3, &[1, 0, 1], "1 pages before stop 3 belong to no delta"),
        ] {
            let error = advanced(pages, wanted).err().unwrap().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
