//! A bad network between the hosts: a UDP proxy that delays, reorders and repeats packets. (tc's netem is not in every
//! kernel.)

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::net::{Namespace, inside};
use crate::random::Random;

/// How often a thread that waits for packets looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);
/// Longer than any packet of QUIC here.
const MAX_PACKET: usize = 65_536;

/// What happens to packets, in each direction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// Each of them takes this long.
    pub delay: Duration,
    /// So many of a thousand take up to `Weather::LATE` longer, and so are overtaken.
    pub late: u64,
    /// So many of a thousand come twice.
    pub twice: u64,
}

impl Weather {
    /// What a late packet takes longer at most.
    const LATE: Duration = Duration::from_millis(15);
}

/// What a proxy has done.
#[derive(Debug, Default)]
struct Counts {
    overtaken: AtomicU64,
    repeated: AtomicU64,
}

/// A running proxy. Dropping it ends it.
pub struct Proxy {
    address: SocketAddr,
    counts: Arc<Counts>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// Where answers go: to whom the last packet came from.
type Client = Arc<Mutex<Option<SocketAddr>>>;

impl Proxy {
    /// Passes on to `to` what comes to [`Proxy::address`] in `namespace`, and what comes back.
    pub fn start(namespace: &Namespace, to: SocketAddr, weather: Weather, mut random: Random) -> Result<Self> {
        let (near, far) = inside(namespace.name(), || {
            let near = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            let far = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            far.connect(to)?;
            for socket in [&near, &far] {
                socket.set_read_timeout(Some(LOOK))?;
            }
            Ok((near, far))
        })?;
        let mut proxy = Self {
            address: near.local_addr()?,
            counts: Arc::default(),
            stop: Arc::default(),
            threads: Vec::new(),
        };
        let client = Client::default();
        let (known, out) = (client.clone(), far.try_clone()?);
        let seed = Random::new(random.next_number());
        proxy.relay(
            near.try_clone()?,
            weather,
            seed,
            move |from| *lock(&known) = Some(from),
            move |packet| {
                let _ = out.send(packet);
            },
        )?;
        proxy.relay(
            far,
            weather,
            random,
            |_| {},
            move |packet| {
                if let Some(to) = *lock(&client) {
                    let _ = near.send_to(packet, to);
                }
            },
        )?;
        Ok(proxy)
    }

    /// One direction: a thread that takes packets, and one that lets them go when their time has come.
    fn relay(
        &mut self,
        from: UdpSocket,
        weather: Weather,
        mut random: Random,
        came_from: impl Fn(SocketAddr) + Send + 'static,
        send: impl Fn(&[u8]) + Send + 'static,
    ) -> Result<()> {
        let waiting = Arc::new(Waiting::default());
        let queue = waiting.clone();
        let (stop, counts) = (self.stop.clone(), self.counts.clone());
        let spawn = |work: Box<dyn FnOnce() + Send>| std::thread::Builder::new().name("proxy".into()).spawn(work);
        self.threads.push(spawn(Box::new(move || {
            take(&from, weather, &mut random, &came_from, &queue, &stop, &counts);
        }))?);
        let (stop, counts) = (self.stop.clone(), self.counts.clone());
        self.threads
            .push(spawn(Box::new(move || let_go(&waiting, &send, &stop, &counts)))?);
        Ok(())
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Packets that were overtaken by later ones so far.
    pub fn overtaken(&self) -> u64 {
        self.counts.overtaken.load(Ordering::Relaxed)
    }

    /// Packets that were sent twice so far.
    pub fn repeated(&self) -> u64 {
        self.counts.repeated.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic there has been printed.
            let _ = thread.join();
        }
    }
}

/// When a packet goes on, its number in the order of coming, and what it is.
type Packet = Reverse<(Instant, u64, Vec<u8>)>;

/// Packets that wait for their time. Not a channel: one that yields before it sleeps, as crossbeam's does, gives up a whole time
/// slice for each packet where other threads keep the processor busy.
#[derive(Default)]
struct Waiting {
    packets: Mutex<BinaryHeap<Packet>>,
    came: Condvar,
}

impl Waiting {
    fn push(&self, packet: Packet) {
        lock(&self.packets).push(packet);
        self.came.notify_one();
    }

    /// The next packet when its time has come; `None` if that takes longer than [`LOOK`].
    fn next(&self) -> Option<(u64, Vec<u8>)> {
        let end = Instant::now() + LOOK;
        let mut packets = lock(&self.packets);
        loop {
            let now = Instant::now();
            let next = match packets.peek() {
                Some(Reverse((due, ..))) if *due <= now => {
                    return packets.pop().map(|Reverse((_, number, packet))| (number, packet));
                }
                Some(Reverse((due, ..))) => end.min(*due),
                None => end,
            };
            let left = next.checked_duration_since(now)?;
            let waited = self.came.wait_timeout(packets, left);
            packets = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// What is in it is whole whenever the lock is free.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn take(
    from: &UdpSocket,
    weather: Weather,
    random: &mut Random,
    came_from: &dyn Fn(SocketAddr),
    queue: &Waiting,
    stop: &AtomicBool,
    counts: &Counts,
) {
    let mut buffer = vec![0; MAX_PACKET];
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let length = match from.recv_from(&mut buffer) {
            Ok((length, source)) => {
                came_from(source);
                length
            }
            // Nothing yet; or, told by ICMP, nobody listens at the other end, which may change.
            Err(error) if error.kind() == ErrorKind::WouldBlock || error.kind() == ErrorKind::ConnectionRefused => {
                continue;
            }
            Err(_) => return,
        };
        number += 1;
        let twice = random.chance(weather.twice);
        counts.repeated.fetch_add(u64::from(twice), Ordering::Relaxed);
        for _ in 0..=u32::from(twice) {
            let late = if random.chance(weather.late) {
                random.moment(Weather::LATE)
            } else {
                Duration::ZERO
            };
            let due = Instant::now() + weather.delay + late;
            queue.push(Reverse((due, number, buffer[..length].to_vec())));
        }
    }
}

fn let_go(waiting: &Waiting, send: &dyn Fn(&[u8]), stop: &AtomicBool, counts: &Counts) {
    let mut latest = 0;
    while !stop.load(Ordering::Relaxed) {
        let Some((number, packet)) = waiting.next() else {
            continue;
        };
        counts
            .overtaken
            .fetch_add(u64::from(number < latest), Ordering::Relaxed);
        latest = latest.max(number);
        send(&packet);
    }
}
