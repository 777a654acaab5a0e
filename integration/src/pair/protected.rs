//! A machine that is protected, or alone, with a client; and how one becomes the other.

use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::{Counter, Journal, Node, Scene, check_equal};
use crate::load::redis_cli;

/// What happens in seconds on an idle machine has happened after this on a busy one.
pub const LIMIT: Duration = Duration::from_secs(240);
/// Answers that the client gets between two events.
pub const SOME: u64 = 15;

/// Answers in which whoever is to be silent would have said something.
pub const LONG: u64 = 3 * SOME;

/// A protected machine, its backup and a client.
pub struct Protected {
    // Dropped in this order: first the programs, then their hosts.
    /// The client.
    pub counter: Counter,
    /// Who runs the machine.
    pub primary: Node,
    /// Who stands by.
    pub backup: Node,
    /// The hosts.
    pub scene: Scene,
    /// Frames that the backup's host had sent when it began to stand by.
    quiet: u64,
}

/// A machine without a backup, and a client.
pub struct Alone {
    /// The client.
    pub counter: Counter,
    /// Who runs the machine.
    pub live: Node,
    /// The hosts.
    pub scene: Scene,
}

impl Protected {
    /// Of programs that run.
    pub fn new(scene: Scene, primary: Node, backup: Node, counter: Counter) -> Result<Self> {
        let quiet = scene.pair.network.frames(backup.host)?;
        Ok(Self {
            counter,
            primary,
            backup,
            scene,
            quiet,
        })
    }

    /// Whether the primary's host alone sends for the guest.
    pub fn check_one_live(&self) -> Result<()> {
        let network = &self.scene.pair.network;
        let before = network.frames(self.primary.host)?;
        self.counter.wait_for(SOME, LIMIT)?;
        ensure!(network.frames(self.primary.host)? > before, "the primary sends nothing");
        let frames = network.frames(self.backup.host)?;
        ensure!(frames == self.quiet, "the backup sent {} frames", frames - self.quiet);
        Ok(())
    }

    /// Kills the primary as a power failure would; the backup goes on with the machine.
    pub fn kill_primary(self) -> Result<Alone> {
        self.check_one_live()?;
        self.kill_primary_now()
    }

    /// The same without a look before.
    pub fn kill_primary_now(mut self) -> Result<Alone> {
        self.scene.kill(self.primary)?;
        Alone::new(self.scene, self.backup, self.counter)
    }

    /// Kills the backup; the primary goes on alone.
    pub fn kill_backup(self) -> Result<Alone> {
        self.check_one_live()?;
        self.kill_backup_now()
    }

    /// The same without a look before.
    pub fn kill_backup_now(mut self) -> Result<Alone> {
        self.scene.kill(self.backup)?;
        Alone::new(self.scene, self.primary, self.counter)
    }

    /// Ends the count: every answer is in the guest's counter, once.
    pub fn settle(self) -> Result<()> {
        self.check_one_live()?;
        settle(&self.scene, self.counter)
    }

    /// The same, and then both hosts' disks are equal, byte for byte, with all that the guest's journal acknowledged.
    pub fn settle_with_disks(mut self) -> Result<()> {
        self.check_one_live()?;
        settle(&self.scene, self.counter)?;
        // From here on nothing is written.
        Journal::stop(&mut self.primary)?;
        self.scene.kill(self.primary)?;
        // Going live ends with the last of the log, and what it wrote is on the disk.
        self.backup.wait_for_state("not-protected", LIMIT)?;
        self.scene.kill(self.backup)?;
        let Some([first, second]) = &self.scene.disks else {
            bail!("the machine has no disk");
        };
        check_equal(first, second)?;
        let records = Journal::check(first, &self.scene.consoles)?;
        println!("{records} records, and both disks have them");
        Ok(())
    }
}

impl Alone {
    /// Of a node that has lost the other one.
    pub fn new(scene: Scene, live: Node, counter: Counter) -> Result<Self> {
        live.wait_for_state("not-protected (lost-connection)", LIMIT)?;
        counter.wait_for(SOME, LIMIT)?;
        Ok(Self { counter, live, scene })
    }

    /// Whether a host sends nothing for the guest while the client gets its answers from the other one.
    pub fn check_silent(&self, host: usize) -> Result<()> {
        let frames = self.scene.pair.network.frames(host)?;
        self.counter.wait_for(LONG, LIMIT)?;
        ensure!(
            self.scene.pair.network.frames(host)? == frames,
            "host {host} sent frames of a machine that is not its own"
        );
        Ok(())
    }

    /// The dead host comes back, and stands by.
    pub fn protect(self) -> Result<Protected> {
        let newcomer = self.scene.start_backup(1 - self.live.host)?;
        self.protect_with(newcomer)
    }

    /// The same with a standby that runs already.
    pub fn protect_with(self, newcomer: Node) -> Result<Protected> {
        self.live.wait_for_state("protected", LIMIT)?;
        newcomer.wait_for_state("standby: protected", LIMIT)?;
        self.counter.wait_for(SOME, LIMIT)?;
        Protected::new(self.scene, self.live, newcomer, self.counter)
    }

    /// Ends the count: every answer is in the guest's counter, once.
    pub fn settle(self) -> Result<()> {
        settle(&self.scene, self.counter)
    }

    /// The same, and then the machine is ended as an operator would.
    pub fn settle_in_order(self) -> Result<()> {
        settle(&self.scene, self.counter)?;
        self.live.run.terminate()?.report()?;
        Ok(())
    }
}

fn settle(scene: &Scene, counter: Counter) -> Result<()> {
    counter.wait_for(SOME, LIMIT)?;
    let tally = counter.finish()?;
    println!("{tally:?}");
    let value = redis_cli(&scene.pair.network.client, &["get", "counter"])?;
    ensure!(value == tally.last.to_string(), "the guest has {value}: {tally:?}");
    ensure!(tally.last == tally.acknowledged, "{tally:?}");
    ensure!(tally.broken == 0 && tally.jumps == 0, "{tally:?}");
    Ok(())
}
