//! A pair: the primary dies, the backup goes on, and the client on its one connection sees nothing but a pause.

use std::time::Duration;

use anyhow::{Result, ensure};
use lockstep_integration::gate::require_root_net;
use lockstep_integration::load::redis_cli;
use lockstep_integration::pair::{Arbiter, Counter, Pair};
use lockstep_integration::{Booted, Kind, work_dir};

const LIMIT: Duration = Duration::from_secs(60);
const HEARTBEAT: Duration = Duration::from_millis(100);
const DEADLINE: Duration = Duration::from_secs(1);

#[test]
fn a_pair_survives_both_its_hosts_one_after_the_other() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let machine = Booted::get(Kind::Memory)?;
    let pair = Pair::create(&work_dir("pair")?, Arbiter::File, HEARTBEAT, DEADLINE)?;
    let backup = pair.start_backup(1, |run| run)?;
    let primary = pair.start_primary(0, |run| run.restore(&machine.snapshot()))?;
    primary.wait_for_state("protected", LIMIT)?;
    let counter = Counter::start(&pair.network.client, "counter")?;
    counter.wait_for(20, LIMIT)?;

    primary.run.kill()?;
    counter.wait_for(20, LIMIT)?;
    let newcomer = pair.start_backup(0, |run| run)?;
    backup.wait_for_state("protected", LIMIT)?;
    counter.wait_for(20, LIMIT)?;

    backup.run.kill()?;
    counter.wait_for(20, LIMIT)?;
    let tally = counter.finish()?;
    println!("{tally:?}");
    ensure!(tally.broken == 0 && tally.jumps == 0, "{tally:?}");
    let value = redis_cli(&pair.network.client, &["get", "counter"])?;
    ensure!(value == tally.last.to_string(), "the guest has {value}: {tally:?}");
    ensure!(tally.last == tally.acknowledged, "{tally:?}");
    newcomer.run.terminate()?.report()?;
    Ok(())
}
