//! The host side of a machine's world: clock, disks, tap devices, console, and the inbox where inputs wait.

pub mod chunks;
pub mod clock;
pub mod console;
pub mod copy;
pub mod digests;
pub mod disk;
pub mod format;
pub mod holes;
pub mod image;
pub mod inbox;
pub mod interface;
pub mod mark;
pub mod outputs;
pub mod random;
pub mod size;
pub mod tap;
