//! The command line that the programs share.
//!
//! Groups of options: [`args`], [`boot`], [`pair`], [`sandbox`], [`serve`], [`leave`], [`messages`], all of them together in
//! [`node`], and [`config`], by which they stand in a file. What operators type: [`ops`], [`promote`], [`fleet`]
//! (of [`arbiter`]). A node's life: [`role`],
//! [`again`], [`restart`], [`span`], [`service`].

pub mod again;
pub mod arbiter;
pub mod args;
pub mod boot;
pub mod cards;
pub mod config;
pub mod fleet;
pub mod leave;
pub mod messages;
pub mod node;
pub mod ops;
pub mod packaging;
pub mod pair;
pub mod promote;
pub mod restart;
pub mod role;
pub mod sandbox;
pub mod serve;
pub mod service;
mod signals;
pub mod sockets;
pub mod span;
mod table;
