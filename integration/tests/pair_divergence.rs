//! What cannot be controlled is found and healed: replicas that went different ways are equal again, and nobody outside
//! notices.

use anyhow::{Context, Result, ensure};
use lockstep_integration::gate::require_root_net;
use lockstep_integration::pair::{LIMIT, Protected, SOME, Setup, flip_tick};

/// Pages of the machine's memory.
const PAGES: u64 = 64 << 8;

/// Waits until the pair has found a divergence and is protected again; most of memory did not have to travel.
fn is_healed(protected: &Protected) -> Result<()> {
    let primary = &protected.primary;
    primary.run.messages.wait_for("the backup diverged", LIMIT)?;
    // The program differs in what it prints, or in memory before.
    primary.run.messages.wait_for("registers ", LIMIT)?;
    primary.wait_for_state("protected term=2", LIMIT)?;
    let sent = primary.number("sent_pages").context("nothing was said of a join")?;
    let same = primary.number("same_pages").context("nothing was said of a join")?;
    println!("{sent} pages healed it, {same} were the same");
    ensure!(
        sent < PAGES / 8 && same > PAGES / 2,
        "{sent} pages were sent, {same} were the same"
    );
    protected.counter.wait_for(SOME, LIMIT)
}

/// Where the host cannot trap RDTSC in ring 3, each side stores its own.
#[test]
fn a_program_that_reads_the_tsc_is_healed() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let mut protected = Setup::new("pair-tsc").open()?;
    protected.primary.run.type_text("rdtsc3 1\n")?;
    protected.primary.run.wait_for("RDTSC3 rounds=1", LIMIT)?;
    is_healed(&protected)?;
    protected.kill_primary()?.settle()
}

#[test]
fn a_flipped_bit_of_the_backup_is_healed() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let protected = Setup::new("pair-flip").open()?;
    flip_tick(&protected.backup, PAGES << 12)?;
    is_healed(&protected)?;
    protected.kill_primary()?.settle()
}
