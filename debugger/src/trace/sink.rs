//! What a trace is made of, whatever format it is written in: tracks, with slices and instants on them.

use std::io;

/// A number or a text that stands beside an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number.
    Number(u64),
    /// A text: escaped already, where a guest or a recording brought it.
    Text(String),
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

/// Something that happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// What, in a few words.
    pub name: String,
    /// More of it, by names.
    pub values: Vec<(&'static str, Value)>,
    /// An arrow begins here, with this number.
    pub asks: Option<u64>,
    /// Arrows end here, with these numbers.
    pub answers: Vec<u64>,
}

impl Event {
    /// With no more than a name.
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }

    /// With a value more.
    pub fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.values.push((name, value.into()));
        self
    }
}

/// A row of the trace. Its slices do not overlap. Rows of one kind have one name, and a viewer may draw them as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Track {
    /// What it has.
    pub kind: Kind,
    /// Of which disk or network card; 0 where there is but one.
    pub index: u32,
    /// Of several that have what overlaps, which one.
    pub lane: u32,
}

/// What a track has. The order is that of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Recording,
    Task,
    Processor,
    Interrupts,
    FramesIn,
    FramesOut,
    Disk,
    Typed,
    Printed,
    Keyboard,
    PowerButton,
    Random,
    Entropy,
    Forced,
    Epochs,
}

impl Track {
    /// The only one of its kind.
    pub fn only(kind: Kind) -> Self {
        Self::of(kind, 0)
    }

    /// Of a disk or network card.
    pub fn of(kind: Kind, index: u32) -> Self {
        Self { kind, index, lane: 0 }
    }

    /// Its number in the file, from 2; the machine has 1.
    pub fn number(self) -> u64 {
        2 + self.kind as u64 + ((u64::from(self.index) & 0xffff) << 8) + (u64::from(self.lane) << 24)
    }

    /// What a viewer calls it.
    pub fn name(self) -> String {
        let index = self.index;
        match self.kind {
            Kind::Recording => "recording".into(),
            Kind::Task => "task on the CPU".into(),
            Kind::Processor => "CPU".into(),
            Kind::Interrupts => "interrupts".into(),
            Kind::FramesIn => format!("nic{index} received"),
            Kind::FramesOut => format!("nic{index} sent"),
            Kind::Disk => format!("disk {index}"),
            Kind::Typed => "console, typed".into(),
            Kind::Printed => "console, printed".into(),
            Kind::Keyboard => "keyboard".into(),
            Kind::PowerButton => "power button".into(),
            Kind::Random => "random values".into(),
            Kind::Entropy => "entropy".into(),
            Kind::Forced => "forced stops".into(),
            Kind::Epochs => "epochs".into(),
        }
    }

    /// The word by which a viewer filters.
    pub fn category(self) -> &'static str {
        match self.kind {
            Kind::Recording => "recording",
            Kind::Task | Kind::Processor => "cpu",
            Kind::Interrupts => "interrupt",
            Kind::FramesIn | Kind::FramesOut => "frame",
            Kind::Disk => "disk",
            Kind::Typed | Kind::Printed => "console",
            Kind::Keyboard => "keyboard",
            Kind::PowerButton => "power-button",
            Kind::Random => "random",
            Kind::Entropy => "entropy",
            Kind::Forced => "forced",
            Kind::Epochs => "epoch",
        }
    }
}

/// A file that is being written. Times are guest time in nanoseconds, in any order.
pub trait Sink {
    /// The machine's name, and what a clock on the wall showed at a guest time, in nanoseconds since 1970.
    fn machine(&mut self, name: &str, guest_ns: u64, unix_ns: Option<u64>) -> io::Result<()>;

    /// A track, before anything on it.
    fn track(&mut self, track: Track) -> io::Result<()>;

    /// Something that took its time.
    fn slice(&mut self, track: Track, from_ns: u64, to_ns: u64, event: &Event) -> io::Result<()>;

    /// Something that happened at one moment.
    fn instant(&mut self, track: Track, at_ns: u64, event: &Event) -> io::Result<()>;

    /// The end of the file.
    fn finish(&mut self) -> io::Result<()>;
}
