//! A limit for messages that come again and again, each place in the code by itself: a guest, or a peer, that brings them
//! about can neither fill the log nor push others out of it.
//!
//! Invariant: what was suppressed is counted, and the count is told when its window is over.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::sandbox::{self, Kind};

/// So many messages of one place are told in a window.
const MOST: u64 = 30;
/// From the first of them on.
const WINDOW: Duration = Duration::from_secs(10);
/// Target of what is told about suppressed messages; it is not limited itself.
const TARGET: &str = "lockstep::limit";

/// One place's messages since its window began.
struct Site {
    name: &'static str,
    since: Instant,
    count: u64,
}

/// All places that have told something of late.
#[derive(Default)]
struct Sites(HashMap<Identifier, Site>);

impl Sites {
    /// Whether a message of this place is told. The second value: it is the first of its window that is not.
    fn admit(&mut self, place: Identifier, name: &'static str, now: Instant) -> (bool, bool) {
        let site = self.0.entry(place).or_insert(Site {
            name,
            since: now,
            count: 0,
        });
        // A window with something suppressed is ended by who tells of it.
        if site.count <= MOST && now >= site.since + WINDOW {
            site.since = now;
            site.count = 0;
        }
        site.count += 1;
        (site.count <= MOST, site.count == MOST + 1)
    }

    /// Ends the windows that are over: how many messages of which place were suppressed.
    fn end(&mut self, now: Instant) -> Vec<(u64, &'static str)> {
        let over = self.0.extract_if(|_, site| now >= site.since + WINDOW);
        over.filter(|(_, site)| site.count > MOST)
            .map(|(_, site)| (site.count - MOST, site.name))
            .collect()
    }

    /// When the next window ends in which something was suppressed.
    fn next(&self) -> Option<Instant> {
        let suppressing = self.0.values().filter(|site| site.count > MOST);
        suppressing.map(|site| site.since + WINDOW).min()
    }
}

#[derive(Default)]
struct Shared {
    sites: Mutex<Sites>,
    suppressing: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Sites> {
        // Plain values: whole whenever the lock is free.
        self.sites.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets through what is not too much, for all layers.
pub struct Limit(Arc<Shared>);

/// Tells what was suppressed.
pub struct Suppressed(Arc<Shared>);

/// Both ends of a limit.
pub fn limit() -> (Limit, Suppressed) {
    let shared = Arc::<Shared>::default();
    (Limit(shared.clone()), Suppressed(shared))
}

impl<S: Subscriber> Layer<S> for Limit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        // Who asks for more than `info` wants all of it.
        if *metadata.level() > Level::INFO || metadata.target() == TARGET {
            return true;
        }
        let (is_told, is_first) = self
            .0
            .lock()
            .admit(metadata.callsite(), metadata.name(), Instant::now());
        if is_first {
            self.0.suppressing.notify_one();
        }
        is_told
    }
}

impl Suppressed {
    /// Tells it from a thread of its own.
    pub fn report(self) -> std::io::Result<()> {
        sandbox::spawn(Kind::Waits, "messages", move || self.watch()).map(drop)
    }

    fn watch(&self) {
        let mut sites = self.0.lock();
        loop {
            sites = match sites.next() {
                None => self.0.suppressing.wait(sites).unwrap_or_else(PoisonError::into_inner),
                Some(at) => {
                    let left = at.saturating_duration_since(Instant::now());
                    let waited = self.0.suppressing.wait_timeout(sites, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
            let told = sites.end(Instant::now());
            drop(sites);
            for (count, name) in told {
                tracing::warn!(target: TARGET, "{count} more suppressed in {} s: {name}", WINDOW.as_secs());
            }
            sites = self.0.lock();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// Counts what reaches it.
    #[derive(Clone, Default)]
    struct Count(Arc<AtomicU64>);

    impl<S: Subscriber> Layer<S> for Count {
        fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn flood(times: u64) {
        for _ in 0..times {
            tracing::error!("the guest does it again");
        }
    }

    #[test]
    fn a_flood_is_cut_off_and_other_messages_are_not() {
        let (limit, suppressed) = limit();
        let count = Count::default();
        let subscriber = tracing_subscriber::registry().with(count.clone()).with(limit);
        tracing::subscriber::with_default(subscriber, || {
            flood(100 * MOST);
            assert_eq!(count.0.load(Ordering::Relaxed), MOST);
            tracing::info!("something else");
            assert_eq!(count.0.load(Ordering::Relaxed), MOST + 1);
            for _ in 0..2 * MOST {
                tracing::debug!("all of it is wanted");
            }
            assert_eq!(count.0.load(Ordering::Relaxed), 3 * MOST + 1);
        });
        let mut sites = suppressed.0.lock();
        let at = sites.next().unwrap();
        assert_eq!(sites.end(at.checked_sub(Duration::from_nanos(1)).unwrap()), []);
        let told = sites.end(at);
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].0, 99 * MOST);
        assert!(told[0].1.contains("limit.rs"), "{}", told[0].1);
        assert_eq!(sites.next(), None);
        drop(sites);
    }

    #[test]
    fn each_window_begins_anew() {
        let mut sites = Sites::default();
        let place = tracing::metadata::Metadata::callsite(first_place());
        let begin = Instant::now();
        let admit = |sites: &mut Sites, at| sites.admit(place.clone(), "place", at);
        for number in 1..=MOST {
            assert_eq!(admit(&mut sites, begin), (true, false), "{number}");
        }
        assert_eq!(admit(&mut sites, begin), (false, true));
        assert_eq!(admit(&mut sites, begin), (false, false));
        // Nobody has told of it yet: the count goes on.
        assert_eq!(admit(&mut sites, begin + WINDOW), (false, false));
        assert_eq!(sites.end(begin + WINDOW), [(3, "place")]);
        assert_eq!(admit(&mut sites, begin + WINDOW), (true, false));
        // A window without anything suppressed ends by itself, untold.
        assert_eq!(admit(&mut sites, begin + 2 * WINDOW), (true, false));
        assert_eq!(sites.end(begin + 3 * WINDOW), []);
    }

    fn first_place() -> &'static tracing::Metadata<'static> {
        /// Keeps the metadata of the event that reaches it.
        #[derive(Clone, Default)]
        struct Keep(Arc<Mutex<Option<&'static tracing::Metadata<'static>>>>);
        impl<S: Subscriber> Layer<S> for Keep {
            fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
                *self.0.lock().unwrap() = Some(event.metadata());
            }
        }
        let keep = Keep::default();
        let subscriber = tracing_subscriber::registry().with(keep.clone());
        tracing::subscriber::with_default(subscriber, || tracing::error!("here"));
        let kept = *keep.0.lock().unwrap();
        kept.unwrap()
    }
}
