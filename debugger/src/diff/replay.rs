//! A log and its replay on this host.

use std::path::Path;

use anyhow::Result;
use lockstep_replay::{Divergence, Mismatch};
use lockstep_vmm::machine::Part;

use super::{Difference, Differs, Found};
use crate::symbols::Symbols;
use crate::totals::describe_ending;
use crate::verify::{Wanted, verify};

/// Pages that are named one by one.
const NAMED_PAGES: usize = 64;

/// An epoch has the vCPU and the devices in its digest too.
const SAME_PAGES: &str = "The pages that the epoch dirtied are as recorded: the vCPU or a device differs.";

/// Replays the log in `directory`, and tells where the replay differs first.
pub fn compare(directory: &Path, vmlinux: Option<&Path>, quiet: bool) -> Result<Found> {
    let verified = verify(
        directory,
        &Wanted {
            vmlinux,
            kicks: None,
            quiet,
        },
    )?;
    let symbols = verified.symbols.as_ref();
    Ok(match &verified.divergence {
        None => Found::Same(format!(
            "{} stops were replayed as they were recorded; the log ends {}",
            verified.stops,
            describe_ending(&verified.ending)
        )),
        Some(divergence) => Found::Difference(Box::new(difference(divergence, symbols))),
    })
}

fn difference(divergence: &Divergence, symbols: Option<&Symbols>) -> Difference {
    let mut values = Vec::new();
    let mut notes = Vec::new();
    match &divergence.mismatch {
        Mismatch::Epoch {
            different,
            only_here,
            detail,
            parts,
            counts,
        } => {
            values.extend(
                parts
                    .iter()
                    .map(|part| Differs::new(part.to_string(), "as recorded", "another")),
            );
            let elsewhere = parts.first().is_some_and(|part| *part != Part::Memory);
            if !elsewhere && counts.0 != counts.1 {
                values.push(Differs::new(
                    "epoch's dirty pages",
                    counts.0.to_string(),
                    counts.1.to_string(),
                ));
            }
            if elsewhere || *detail && different.is_empty() && only_here.is_empty() {
                notes.push(SAME_PAGES.into());
            } else if *detail {
                for page in different.iter().take(NAMED_PAGES) {
                    let hash = |hash: u32| format!("hash {hash:08x}");
                    let name = format!("page {:#x}", page.frame.address());
                    values.push(Differs::new(name, hash(page.logged), hash(page.here)));
                    if let Some(byte) = page.byte {
                        let value = |byte: u8| format!("{byte:02x}");
                        let name = format!("byte {:#x}, one bit", byte.address);
                        values.push(Differs::new(name, value(byte.expected), value(byte.actual)));
                    }
                }
                let named = only_here.iter().take(NAMED_PAGES);
                values.extend(
                    named.map(|frame| Differs::new(format!("page {:#x}", frame.address()), "not written", "written")),
                );
                for (count, expected, actual) in [
                    (different.len(), "as recorded", "other content"),
                    (only_here.len(), "not written", "written"),
                ] {
                    if let Some(more) = count.checked_sub(NAMED_PAGES).filter(|more| *more > 0) {
                        values.push(Differs::new(format!("and {more} pages more"), expected, actual));
                    }
                }
            } else {
                let pages: Vec<_> = only_here
                    .iter()
                    .take(NAMED_PAGES)
                    .map(|frame| format!("{:#x}", frame.address()))
                    .collect();
                notes.push(format!(
                    "It is in a page that the epoch dirtied, in the vCPU or in a device; the replay dirtied {} pages: {}{}.",
                    only_here.len(),
                    pages.join(" "),
                    if pages.len() < only_here.len() { "..." } else { "" }
                ));
                notes.push("Record with --epoch-detail, and the pages that differ are named.".into());
            }
        }
        Mismatch::Stop { logged, here } => values.push(Differs::new("stop", *logged, here.to_string())),
        Mismatch::Chain => values.push(Differs::new(
            "digest chain",
            format!("{:x}", divergence.batch.digest),
            "another",
        )),
        Mismatch::Silent | Mismatch::Refused(_) | Mismatch::Memory | Mismatch::Ending => {}
    }
    notes.push(format!(
        "Registers, inputs and effects were as recorded up to stop {}; the batch that differs ends at stop {}.",
        divergence.batch.first_stop, divergence.batch.last_stop
    ));
    notes.push("Registers of the replay there:".into());
    notes.push(divergence.registers.to_string());
    if let Some(name) = symbols.and_then(|symbols| symbols.name(divergence.registers.rip())) {
        notes.push(format!("  rip is in {name}"));
    }
    notes.push("The log before it:".into());
    notes.extend(
        divergence
            .around
            .iter()
            .map(|(stop, turn)| format!("{stop:>10}  {turn}")),
    );
    Difference {
        what: divergence.mismatch.to_string(),
        stop: divergence.stop,
        guest_ns: Some(divergence.guest_time.ns()),
        batch: (Some(divergence.batch.batch), None),
        lines: None,
        values,
        notes,
    }
}
