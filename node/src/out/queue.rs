//! Standard error and the journal behind a queue, where a machine is run: who tells something never waits for its reader. A
//! terminal that is held, a supervisor or a journal that stands still would hold the thread that runs the guest, or that of
//! the link, and a machine would change hosts for a message.
//!
//! Invariants: messages leave in the order in which they were told. They take bounded room: what finds none is dropped and
//! counted, and the count is told.

use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, sendmsg_addr};

/// Messages that wait, at most.
const MOST: usize = 4096;
/// Their bytes.
const MOST_BYTES: usize = 1 << 20;
/// How long the last ones are waited for at the end. They are lost where nobody reads them.
const LAST: Duration = Duration::from_secs(5);
/// Where the journal listens.
pub const JOURNAL: &str = "/run/systemd/journal/socket";

enum Item {
    Text(Vec<u8>),
    Entry(Vec<u8>),
    /// Answered when all before it has left.
    Mark(Sender<()>),
}

struct Queue {
    sender: Sender<Item>,
    bytes: AtomicUsize,
    dropped: AtomicU64,
}

static QUEUE: OnceLock<Queue> = OnceLock::new();

/// A socket to send entries by, if the journal is there.
pub fn journal_socket() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    // One that stands still is there, too.
    socket.set_nonblocking(true)?;
    // The journal takes no notice of an entry without fields.
    match socket.send_to(&[], JOURNAL) {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
        _ => socket.set_nonblocking(false)?,
    }
    Ok(socket)
}

/// Begins to queue, on a thread that `spawn` starts; `journal`: to send entries by.
pub fn start(
    journal: Option<UnixDatagram>,
    spawn: impl FnOnce(Box<dyn FnOnce() + Send>) -> io::Result<()>,
) -> io::Result<()> {
    let (sender, items) = bounded(MOST);
    let queue = Queue {
        sender,
        bytes: AtomicUsize::new(0),
        dropped: AtomicU64::new(0),
    };
    // Without it, who tells something waits for who reads it.
    spawn(Box::new(move || serve(&items, journal.as_ref())))?;
    let _ = QUEUE.set(queue);
    Ok(())
}

/// For standard error.
pub fn text(bytes: Vec<u8>) {
    match QUEUE.get() {
        Some(queue) => queue.put(bytes, Item::Text),
        // Whom that holds up runs no machine. Where standard error takes nothing, nobody can be told.
        None => drop(io::stderr().write_all(&bytes)),
    }
}

/// An entry in the journal's own form. Only after [`start`] with a socket.
pub fn entry(bytes: Vec<u8>) {
    if let Some(queue) = QUEUE.get() {
        queue.put(bytes, Item::Entry);
    }
}

/// Waits for what was told until now, before the process ends: a few seconds, where nobody reads it.
pub fn settle() {
    let Some(queue) = QUEUE.get() else { return };
    let (tell, told) = bounded(1);
    if queue.sender.send_timeout(Item::Mark(tell), LAST).is_ok() {
        let _ = told.recv_timeout(LAST);
    }
}

impl Queue {
    fn put(&self, bytes: Vec<u8>, item: impl FnOnce(Vec<u8>) -> Item) {
        let length = bytes.len();
        let fits = self.bytes.fetch_add(length, Ordering::Relaxed) + length <= MOST_BYTES;
        let sent = fits
            && !matches!(
                self.sender.try_send(item(bytes)),
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_))
            );
        if !sent {
            self.bytes.fetch_sub(length, Ordering::Relaxed);
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn serve(items: &Receiver<Item>, journal: Option<&UnixDatagram>) {
    for item in items {
        // It was there before the item.
        let Some(queue) = QUEUE.get() else { return };
        let length = match &item {
            Item::Text(bytes) | Item::Entry(bytes) => bytes.len(),
            Item::Mark(_) => 0,
        };
        match (item, journal) {
            // A reader that has gone, or a full disk: there is nobody to tell.
            (Item::Text(bytes), _) => drop(io::stderr().write_all(&bytes)),
            (Item::Entry(bytes), Some(journal)) => {
                if send(journal, &bytes).is_err() {
                    queue.dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
            (Item::Entry(_), None) => {}
            (Item::Mark(tell), _) => drop(tell.try_send(())),
        }
        queue.bytes.fetch_sub(length, Ordering::Relaxed);
        let dropped = queue.dropped.load(Ordering::Relaxed);
        // They read again: what there was in between they did not get.
        if dropped > 0 && items.is_empty() && tell_dropped(journal, dropped) {
            queue.dropped.fetch_sub(dropped, Ordering::Relaxed);
        }
    }
}

fn tell_dropped(journal: Option<&UnixDatagram>, dropped: u64) -> bool {
    let text = format!("{dropped} messages were dropped: nobody took them in time");
    match journal {
        // Priority 4: a warning.
        Some(journal) => send(journal, format!("PRIORITY=4\nMESSAGE={text}\n").as_bytes()).is_ok(),
        None => io::stderr()
            .write_all(format!(" WARN lockstep::messages: {text}\n").as_bytes())
            .is_ok(),
    }
}

/// Sends an entry; a long one as a sealed file, as systemd's journal wants it ("Native Journal Protocol").
fn send(journal: &UnixDatagram, entry: &[u8]) -> io::Result<()> {
    match journal.send_to(entry, JOURNAL) {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::MSGSIZE.raw_os_error()) => {}
        sent => return sent.map(drop),
    }
    let file = memfd_create("lockstep-entry", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = std::fs::File::from(file);
    file.write_all(entry)?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
    fcntl_add_seals(&file, seals)?;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = [std::os::fd::AsFd::as_fd(&file)];
    control.push(SendAncillaryMessage::ScmRights(&files));
    let address = SocketAddrUnix::new(JOURNAL)?;
    sendmsg_addr(journal, &address, &[], &mut control, SendFlags::empty())?;
    Ok(())
}
