//! What a recorder is made of.

use std::fs::File;
use std::sync::Arc;

use lockstep_node::host::disk::Disks;
use lockstep_node::host::inbox::Inbox;
use lockstep_node::host::tap::{Tap, TapKeeper};
use lockstep_node::policy::Policy;
use lockstep_node::status::Status;

use super::keeper::Keeper;
use super::kernel::HostKernel;
use super::outlet::Outlet;

/// The world around a machine.
pub struct World {
    /// Where inputs wait.
    pub inbox: Inbox,
    /// The disks' threads.
    pub disks: Disks,
    /// The disks' images once more, to read what a new backup needs.
    pub images: Arc<Vec<File>>,
    /// One for each NIC: they live as long as the machine.
    pub taps: Vec<Tap>,
    /// Keeps their devices bound.
    pub keeper: TapKeeper,
    /// Where effects go.
    pub outlet: Outlet,
    /// Its time and chance.
    pub kernel: Box<dyn HostKernel>,
}

/// What a recorder is told.
pub struct RecorderOptions {
    /// When it stops the guest by force, and how often memory is compared.
    pub policy: Policy,
    /// Who keeps the log; `None` for an unrecorded run.
    pub log: Option<Box<dyn Keeper>>,
    /// The class of this host, for what is saved here.
    pub host_class: String,
    /// Where it tells what it does.
    pub status: Status,
}
