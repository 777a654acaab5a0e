//! A pair on one machine: two hosts, a witness and a client in network namespaces of their own, joined by a bridge.

mod client;
mod clocks;
mod debian;
mod disks;
mod faulty;
mod flip;
mod network;
mod node;
mod protected;
mod proxy;
mod scene;
mod slow;
mod status;
mod stock;

pub use client::{BUSY, CALM, Counter, Tally};
pub use clocks::{FAKETIME, HostCalendar, TimeWatch, set_clocks};
pub use debian::{boot_debian, copy_debian, require_debian, rounds};
pub use disks::{FailingDisk, Journal, check_equal};
pub use faulty::{Fault, FaultyDisk};
pub use flip::{Tick, until_found};
pub use network::{Host, Network, Place};
pub use node::{Arbiter, Node, PORT, Pair};
pub use protected::{Alone, LIMIT, LONG, Protected, SOME};
pub use proxy::{Proxy, Weather};
pub use scene::{Scene, Setup, blank_like};
pub use slow::{SlowVcpu, stop_vcpu};
pub use status::{number, status, wait_for_status};
pub use stock::{ask, boot_stock, copy_stock, newer_kernel, postgres, repository, ssh};
