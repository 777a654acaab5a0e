//! What protection costs, and how long a failover takes: a machine's vCPU alone on one core, everything else on another.

mod cores;
mod failover;
mod join;
mod load;
mod machine;
mod memory;
mod watch;

pub use failover::run as failover;
pub use join::run as join;
pub use load::{compute, redis};
pub use memory::run as memory;
