//! Room for what waits for the replica: where there is none, the link stops reading, and so the primary slows down.
//!
//! The log and a join's pages have a room each: the log waits until all pages are here, so it must not keep them out.

use std::sync::Arc;

use tokio::sync::{AcquireError, Semaphore};

/// Of the log, in KiB.
const LOG_KIB: u32 = 24 << 10;
/// Of pages and chunks of disks, in KiB.
const BULK_KIB: u32 = 8 << 10;

/// The rooms of one connection.
#[derive(Clone)]
pub struct Rooms {
    /// For the log.
    pub log: Arc<Room>,
    /// For pages and chunks of disks.
    pub bulk: Arc<Room>,
}

impl Default for Rooms {
    fn default() -> Self {
        Self {
            log: Arc::new(Room::new(LOG_KIB)),
            bulk: Arc::new(Room::new(BULK_KIB)),
        }
    }
}

/// A bounded number of KiB.
pub struct Room {
    free: Semaphore,
    kib: u32,
}

impl Room {
    fn new(kib: u32) -> Self {
        Self {
            free: Semaphore::new(kib as usize),
            kib,
        }
    }

    /// Waits until there is room for so many bytes, and takes it. Returns their weight, which is to be given back; what is
    /// heavier than all of the room waits until it is alone.
    pub async fn take(&self, bytes: usize) -> Result<u32, AcquireError> {
        let weight = u32::try_from(bytes / 1024 + 1).unwrap_or(self.kib).min(self.kib);
        self.free.acquire_many(weight).await?.forget();
        Ok(weight)
    }

    /// What was taken is free again.
    pub fn give_back(&self, weight: u32) {
        self.free.add_permits(weight as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_heavier_than_all_room_waits_until_it_is_alone() {
        let room = Room::new(100);
        assert_eq!(room.take(5000).await.unwrap(), 5);
        room.give_back(5);
        assert_eq!(room.take(usize::MAX).await.unwrap(), 100);
        assert_eq!(room.free.available_permits(), 0);
    }

    #[tokio::test]
    async fn a_full_log_keeps_no_pages_out() {
        let rooms = Rooms::default();
        rooms.log.take(usize::MAX).await.unwrap();
        assert_eq!(rooms.bulk.take(1 << 20).await.unwrap(), 1025);
    }
}
