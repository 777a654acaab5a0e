//! A pair on one machine: two hosts, a witness and a client in network namespaces of their own, joined by a bridge.

mod client;
mod network;
mod node;

pub use client::{Counter, Tally};
pub use network::{Host, Network};
pub use node::{Arbiter, Node, PORT, Pair};
