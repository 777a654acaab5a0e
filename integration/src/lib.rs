//! What end-to-end tests and the demo stand on: processes, networks, disks and recordings, each of which cleans up after
//! itself when it is dropped, after a panic too.

pub mod cpu;
pub mod debug;
pub mod disk;
pub mod etcd;
pub mod gate;
pub mod hosts;
pub mod http;
pub mod load;
pub mod net;
pub mod notify;
pub mod pair;
pub mod paths;
pub mod process;
pub mod prometheus;
pub mod random;
pub mod ring;
pub mod run;
pub mod screen;
pub mod signals;
pub mod snapshot;
pub mod stopped;
pub mod tamper;
pub mod tiny;
pub mod transcript;
pub mod verify;

pub use debug::Debug;
pub use net::Namespace;
pub use paths::{Guest, work_dir};
pub use run::{Outcome, Run, Running};
pub use snapshot::{Booted, Kind};
pub use verify::Verify;
