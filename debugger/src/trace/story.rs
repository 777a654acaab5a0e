//! What turns and effects are in a trace. What waits for its end is bounded by what a machine can have in flight.

use lockstep_proto::quantity::StopNumber;
use std::collections::{HashMap, HashSet};
use std::io;

use lockstep_node::out::one_line;
use lockstep_proto::Turn;
use lockstep_vmm::devices::{DiskOp, DiskRequest, Effect};

use super::answers::Answers;
use super::sink::{Event, Kind, Sink, Track};

/// Bytes of a console's text that an event has.
const MOST_TEXT: usize = 256;
/// Disk requests in flight that are kept; a machine has fewer.
const MOST_REQUESTS: usize = 65_536;

/// Where something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// The natural stop, or the one before it.
    pub stop: StopNumber,
    /// Guest time, in nanoseconds.
    pub guest_ns: u64,
}

/// Where the machine stood before a turn's clock moved guest time there.
pub fn before(at: At, turn: &Turn) -> At {
    At {
        guest_ns: at.guest_ns.saturating_sub(turn.clock.unwrap_or(0)),
        ..at
    }
}

/// Something that is not over.
struct Open {
    since: At,
    track: Track,
    event: Event,
}

/// How many events were written, by the word that they are filtered by.
pub type Counts = std::collections::BTreeMap<&'static str, u64>;

/// A trace that is being told.
pub struct Story {
    sink: Box<dyn Sink>,
    known: HashSet<Track>,
    answers: Answers,
    requests: HashMap<(u32, u64), Open>,
    lanes: HashMap<u32, Vec<bool>>,
    /// Where the epoch began.
    epoch: At,
    halted: Option<At>,
    task: Option<(String, At)>,
    /// The log knows when a request is done, and a replay when it was made.
    is_replay: bool,
    counts: Counts,
}

impl Story {
    /// That begins here. `is_replay`: effects are told too.
    pub fn begin(sink: Box<dyn Sink>, at: At, is_replay: bool) -> Self {
        Self {
            sink,
            known: HashSet::new(),
            answers: Answers::default(),
            requests: HashMap::new(),
            lanes: HashMap::new(),
            epoch: at,
            halted: None,
            task: None,
            is_replay,
            counts: Counts::new(),
        }
    }

    fn know(&mut self, track: Track) -> io::Result<()> {
        if self.known.insert(track) {
            self.sink.track(track)?;
        }
        *self.counts.entry(track.category()).or_default() += 1;
        Ok(())
    }

    fn instant(&mut self, track: Track, at: At, event: Event) -> io::Result<()> {
        self.know(track)?;
        self.sink
            .instant(track, at.guest_ns, &event.with("stop", at.stop.get()))
    }

    fn slice(&mut self, track: Track, since: At, to_ns: u64, event: Event) -> io::Result<()> {
        self.know(track)?;
        let event = event.with("stop", since.stop.get());
        self.sink.slice(track, since.guest_ns.min(to_ns), to_ns, &event)
    }

    /// Something about the recording itself.
    pub fn note(&mut self, at: At, text: impl Into<String>) -> io::Result<()> {
        self.instant(Track::only(Kind::Recording), at, Event::named(text))
    }

    /// What a turn brought. To be told of every turn: what is shown may have begun before.
    pub fn turn(&mut self, at: At, turn: &Turn, is_shown: bool) -> io::Result<()> {
        self.epoch(at, turn, is_shown)?;
        if !is_shown {
            for done in &turn.disks {
                self.leave((done.disk, done.request));
            }
            return Ok(());
        }
        if let Some(forced) = &turn.forced {
            let event = Event::named("carried by a delta")
                .with("pages", u64::from(forced.pages))
                .with("host_ns", forced.slice_ns);
            self.slice(Track::only(Kind::Forced), before(at, turn), at.guest_ns, event)?;
        }
        if let Some(random) = turn.random {
            let event = Event::named("random value").with("value", format!("{random:#018x}"));
            self.instant(Track::only(Kind::Random), at, event)?;
        }
        for frame in &turn.frames {
            let event = Event {
                asks: self
                    .is_replay
                    .then(|| self.answers.received(frame.nic, &frame.data))
                    .flatten(),
                ..Event::named("frame in")
            };
            let event = event.with("bytes", frame.data.len() as u64);
            self.instant(Track::of(Kind::FramesIn, frame.nic), at, event)?;
        }
        if !turn.console.is_empty() {
            self.instant(Track::only(Kind::Typed), at, text("typed", &turn.console))?;
        }
        if !turn.keyboard.is_empty() {
            let event = Event::named("keyboard").with("bytes", turn.keyboard.len() as u64);
            self.instant(Track::only(Kind::Keyboard), at, event)?;
        }
        if turn.power_button {
            self.instant(Track::only(Kind::PowerButton), at, Event::named("power button"))?;
        }
        for done in &turn.disks {
            self.completed(at, done.disk, done.request, done.status)?;
        }
        for bytes in &turn.entropy {
            let event = Event::named("entropy").with("bytes", bytes.len() as u64);
            self.instant(Track::only(Kind::Entropy), at, event)?;
        }
        Ok(())
    }

    /// An epoch ends, if this turn ends one; it began where the one before has ended.
    fn epoch(&mut self, at: At, turn: &Turn, is_shown: bool) -> io::Result<()> {
        let Some(epoch) = &turn.epoch else { return Ok(()) };
        let since = std::mem::replace(&mut self.epoch, at);
        if !is_shown {
            return Ok(());
        }
        let event = Event::named("epoch").with("pages", u64::from(epoch.pages));
        self.slice(Track::only(Kind::Epochs), since, at.guest_ns, event)
    }

    fn completed(&mut self, at: At, disk: u32, request: u64, status: u32) -> io::Result<()> {
        let Some(open) = self.leave((disk, request)) else {
            let event = Event::named("completed")
                .with("request", request)
                .with("status", u64::from(status));
            return self.instant(Track::of(Kind::Disk, disk), at, event);
        };
        let event = open.event.with("status", u64::from(status));
        self.slice(open.track, open.since, at.guest_ns, event)
    }

    /// A request is done, and its lane is free.
    fn leave(&mut self, request: (u32, u64)) -> Option<Open> {
        let open = self.requests.remove(&request)?;
        let lanes = self.lanes.get_mut(&open.track.index)?;
        *lanes.get_mut(open.track.lane as usize)? = false;
        Some(open)
    }

    /// What the machine gave. Before the turn's own.
    pub fn effects(&mut self, at: At, effects: &[Effect], is_shown: bool) -> io::Result<()> {
        for effect in effects {
            // A request is kept from before what is shown: it may end there.
            match effect {
                Effect::Disk(request) => self.requested(at, request),
                _ if !is_shown => {}
                Effect::Console(bytes) => self.instant(Track::only(Kind::Printed), at, text("printed", bytes))?,
                Effect::Frame { nic, data } => {
                    let event = Event {
                        answers: self.answers.sent(*nic, data),
                        ..Event::named("frame out")
                    };
                    let event = event.with("bytes", data.len() as u64);
                    self.instant(Track::of(Kind::FramesOut, *nic), at, event)?;
                }
                Effect::Entropy { bytes } => {
                    let event = Event::named("entropy wanted").with("bytes", u64::from(*bytes));
                    self.instant(Track::only(Kind::Entropy), at, event)?;
                }
                Effect::Reset => self.note(at, "the guest resets the machine")?,
                Effect::PowerOff => self.note(at, "the guest powers the machine off")?,
            }
        }
        Ok(())
    }

    fn requested(&mut self, since: At, request: &DiskRequest) {
        if self.requests.len() == MOST_REQUESTS {
            return;
        }
        let lanes = self.lanes.entry(request.disk).or_default();
        let lane = lanes.iter().position(|taken| !taken).unwrap_or(lanes.len());
        if lane == lanes.len() {
            lanes.push(true);
        }
        lanes[lane] = true;
        let (name, range) = match &request.op {
            DiskOp::Read { sector, bytes } => ("read", Some((*sector, u64::from(*bytes)))),
            DiskOp::Write { sector, data } => ("write", Some((*sector, data.len() as u64))),
            DiskOp::Flush => ("flush", None),
            DiskOp::Discard { sector, sectors } => ("discard", Some((*sector, u64::from(*sectors) * 512))),
            DiskOp::WriteZeroes { sector, sectors, .. } => ("write zeroes", Some((*sector, u64::from(*sectors) * 512))),
        };
        let mut event = Event::named(name).with("request", request.request);
        if let Some((sector, bytes)) = range {
            event = event.with("sector", sector).with("bytes", bytes);
        }
        let track = Track {
            lane: lane as u32,
            ..Track::of(Kind::Disk, request.disk)
        };
        self.requests
            .insert((request.disk, request.request), Open { since, track, event });
    }

    /// An interrupt enters.
    pub fn interrupt(&mut self, at: At, vector: u8) -> io::Result<()> {
        let event = Event::named(format!("vector {vector:#04x}"));
        self.instant(Track::only(Kind::Interrupts), at, event)
    }

    /// The guest waits in HLT, from here on if it did not yet.
    pub fn halts(&mut self, at: At) {
        self.halted.get_or_insert(at);
    }

    /// It does so no more.
    pub fn wakes(&mut self, at: At) -> io::Result<()> {
        let Some(since) = self.halted.take() else { return Ok(()) };
        self.slice(Track::only(Kind::Processor), since, at.guest_ns, Event::named("halted"))
    }

    /// The task that is on the CPU from here on, where it is known.
    pub fn task(&mut self, at: At, task: Option<&str>) -> io::Result<()> {
        if self.task.as_ref().map(|(name, _)| name.as_str()) == task {
            return Ok(());
        }
        let next = task.map(|task| (task.to_owned(), at));
        if let Some((name, since)) = std::mem::replace(&mut self.task, next) {
            self.slice(
                Track::only(Kind::Task),
                since,
                at.guest_ns,
                Event::named(one_line(&name)),
            )?;
        }
        Ok(())
    }

    /// The trace ends here, and what is not over is cut off. Returns how many events there are.
    pub fn end(mut self, at: At) -> io::Result<Counts> {
        self.task(at, None)?;
        self.wakes(at)?;
        let mut open: Vec<_> = std::mem::take(&mut self.requests).into_values().collect();
        open.sort_by_key(|open| (open.since.guest_ns, open.track.number()));
        for Open { since, track, event } in open {
            self.slice(track, since, at.guest_ns, event.with("unfinished", 1))?;
        }
        self.sink.finish()?;
        Ok(self.counts)
    }
}

/// An event with what a console had, of which no more than a line's worth is kept.
fn text(name: &str, bytes: &[u8]) -> Event {
    let shown = &bytes[..bytes.len().min(MOST_TEXT)];
    Event::named(name)
        .with("bytes", bytes.len() as u64)
        .with("text", one_line(&String::from_utf8_lossy(shown)).to_string())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use lockstep_proto::{DiskCompletion, Epoch};

    use super::*;

    /// A slice: its row, from and to, and its event. Of an instant, from is to.
    type Written = Rc<RefCell<Vec<(Track, u64, u64, Event)>>>;

    struct Memory(Written);

    impl Sink for Memory {
        fn machine(&mut self, _: &str, _: u64, _: Option<u64>) -> io::Result<()> {
            Ok(())
        }

        fn track(&mut self, _: Track) -> io::Result<()> {
            Ok(())
        }

        fn slice(&mut self, track: Track, from_ns: u64, to_ns: u64, event: &Event) -> io::Result<()> {
            assert!(from_ns <= to_ns);
            self.0.borrow_mut().push((track, from_ns, to_ns, event.clone()));
            Ok(())
        }

        fn instant(&mut self, track: Track, at_ns: u64, event: &Event) -> io::Result<()> {
            self.slice(track, at_ns, at_ns, event)
        }

        fn finish(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn story() -> (Story, Written) {
        let written = Written::default();
        let sink = Box::new(Memory(written.clone()));
        (Story::begin(sink, at(0), true), written)
    }

    fn at(guest_ns: u64) -> At {
        At {
            stop: StopNumber::new(guest_ns / 10),
            guest_ns,
        }
    }

    fn read(request: u64) -> Effect {
        Effect::Disk(DiskRequest {
            disk: 3,
            request,
            op: DiskOp::Read { sector: 8, bytes: 512 },
        })
    }

    fn done(requests: &[u64]) -> Turn {
        let done = |&request| DiskCompletion {
            disk: 3,
            request,
            status: 0,
        };
        Turn {
            disks: requests.iter().map(done).collect(),
            ..Turn::default()
        }
    }

    /// From, to and lane of what is on the rows of a kind.
    fn rows(written: &Written, kind: Kind) -> Vec<(u64, u64, u32, String)> {
        let of_kind = |(track, from, to, event): &(Track, u64, u64, Event)| {
            (track.kind == kind).then(|| (*from, *to, track.lane, event.name.clone()))
        };
        written.borrow().iter().filter_map(of_kind).collect()
    }

    #[test]
    fn a_request_lasts_until_it_is_done_on_a_row_of_its_own() -> io::Result<()> {
        let (mut story, written) = story();
        // The first one is made and done before what is shown, and the second is made before it.
        story.effects(at(10), &[read(1), read(2)], false)?;
        story.turn(at(20), &done(&[1]), false)?;
        story.effects(at(30), &[read(3), Effect::Console(b"x".into())], true)?;
        story.turn(at(40), &done(&[2]), true)?;
        story.effects(at(50), &[read(4)], true)?;
        story.turn(at(60), &done(&[4, 9]), true)?;
        let counts = story.end(at(70))?;
        let name = || "read".to_owned();
        let wanted = [
            (10, 40, 1, name()),
            (50, 60, 1, name()),
            (60, 60, 0, "completed".into()),
            (30, 70, 0, name()),
        ];
        assert_eq!(rows(&written, Kind::Disk), wanted);
        assert_eq!((counts["disk"], counts["console"]), (4, 1));
        let unfinished = written
            .borrow()
            .last()
            .map(|(.., event)| event.values.contains(&("unfinished", 1.into())));
        assert_eq!(unfinished, Some(true));
        Ok(())
    }

    #[test]
    fn tasks_and_halts_last_until_they_change() -> io::Result<()> {
        let (mut story, written) = story();
        for (ns, task) in [
            (10, None),
            (20, Some("a (1)")),
            (30, Some("a (1)")),
            (40, Some("b\u{1b} (2)")),
            (50, None),
        ] {
            story.task(at(ns), task)?;
        }
        story.wakes(at(10))?;
        story.halts(at(20));
        story.halts(at(30));
        story.wakes(at(40))?;
        story.halts(at(50));
        story.end(at(60))?;
        assert_eq!(
            rows(&written, Kind::Task),
            [(20, 40, 0, "a (1)".into()), (40, 50, 0, "b\\u001b (2)".into())]
        );
        let halted = || "halted".to_owned();
        assert_eq!(
            rows(&written, Kind::Processor),
            [(20, 40, 0, halted()), (50, 60, 0, halted())]
        );
        Ok(())
    }

    #[test]
    fn an_epoch_begins_where_the_last_one_ended_shown_or_not() -> io::Result<()> {
        let (mut story, written) = story();
        let end = Turn {
            epoch: Some(Epoch::default()),
            ..Turn::default()
        };
        story.turn(at(10), &end, false)?;
        story.turn(at(30), &end, true)?;
        story.end(at(40))?;
        assert_eq!(rows(&written, Kind::Epochs), [(10, 30, 0, "epoch".into())]);
        Ok(())
    }
}
