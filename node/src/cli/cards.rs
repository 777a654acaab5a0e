//! Addresses of network cards: no two machines of one host may have the same where they are in one network. They differ by
//! themselves, as they follow from the machines' names; `mac=` and snapshots give them by hand.

use std::path::Path;

use anyhow::{Context, Result};
use lockstep_vmm::snapshot::Restore;

use super::boot::BootArgs;
use super::{config, sockets};
use crate::api;
use crate::host::interface::Interfaces;
use crate::sandbox::{self, Kind};
use crate::start::{self, NicOption, mac_text};
use crate::status::Card;

/// The cards that the machine with this name is made with: a snapshot has their addresses.
pub fn of(boot: &BootArgs, nics: &[NicOption], name: &str) -> Result<Vec<Card>> {
    let macs = match &boot.snapshot {
        None => start::macs(nics, Some(name))?,
        Some(path) => {
            let snapshot = Restore::open(path)?;
            let config = snapshot.config().context("the snapshot names no machine")?;
            let macs = config.nics.iter().map(|nic| nic.mac.as_ref().try_into());
            macs.collect::<Result<_, _>>().context("the snapshot's addresses")?
        }
    };
    let cards = macs.iter().zip(nics).map(|(mac, nic)| Card {
        tap: nic.tap.clone(),
        mac: mac_text(*mac),
    });
    Ok(cards.collect())
}

/// A card of ours, and one of another machine with the same address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clash {
    /// Which machine, and how it is known.
    pub other: String,
    /// Ours.
    pub card: Card,
    /// Its tap device.
    pub their_tap: String,
}

impl Clash {
    /// For people.
    pub fn describe(&self) -> String {
        format!(
            "the card on {} has the address {}, and so has that on {} of {}",
            self.card.tap, self.card.mac, self.their_tap, self.other
        )
    }

    /// Both tap devices are ports of bridges, and not of the same one: equal addresses do no harm there.
    pub fn is_apart(&self) -> bool {
        let mut masters = Interfaces::open().ok().into_iter().flat_map(|mut interfaces| {
            let mut master = |tap: &str| interfaces.by_name(tap).ok()??.master;
            [master(&self.card.tap), master(&self.their_tap)]
        });
        matches!((masters.next().flatten(), masters.next().flatten()), (Some(ours), Some(theirs)) if ours != theirs)
    }
}

fn between<'a>(ours: &'a [Card], other: &'a str, theirs: &'a [Card]) -> impl Iterator<Item = Clash> + 'a {
    ours.iter().flat_map(move |card| {
        let same = theirs.iter().filter(|their| their.mac == card.mac);
        same.map(move |their| Clash {
            other: other.to_owned(),
            card: card.clone(),
            their_tap: their.tap.clone(),
        })
    })
}

/// What the machines that run or stand by on this host have of `cards`, which are those of the machine `name`.
pub fn of_others_here(name: &str, cards: &[Card]) -> Vec<Clash> {
    let mut found = Vec::new();
    // Whom this process may not ask it does not know.
    for socket in sockets::all().unwrap_or_default() {
        if sockets::name_of(&socket) == name {
            continue;
        }
        if let Ok(report) = api::client::status(&socket) {
            let other = format!("machine `{}`, which is on this host", report.machine);
            found.extend(between(cards, &other, &report.cards));
        }
    }
    found
}

/// The same of the machines whose configuration files lie beside `file`. One that does not run is wrong only once it does.
pub fn of_files_beside(file: &Path, name: &str, cards: &[Card]) -> Vec<Clash> {
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    let entries = std::fs::read_dir(directory.unwrap_or(Path::new(".")));
    let mut paths: Vec<_> = entries
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    let mut found = Vec::new();
    for path in paths {
        if path.extension() != file.extension() || path.file_name() == file.file_name() {
            continue;
        }
        // What is no machine's file, or cannot be read, names none.
        let node = config::file::read(&path)
            .ok()
            .and_then(|content| config::check(&content).node);
        let Some(node) = node.filter(|node| node.pair.name != name) else {
            continue;
        };
        if let Ok(theirs) = of(&node.boot, &node.devices.net, &node.pair.name) {
            let other = format!("machine `{}` ({})", node.pair.name, path.display());
            found.extend(between(cards, &other, &theirs));
        }
    }
    found
}

/// Warns of machines that are on this host and have addresses of these cards. Nobody waits for what they answer.
pub fn warn_of_others(name: &str, cards: Vec<Card>) {
    let name = name.to_owned();
    let work = move || {
        for clash in of_others_here(&name, &cards) {
            tracing::warn!(
                "{}: where both are in one network, neither is reached as it should. Give each card of `net` a mac= of its \
                 own, or none",
                clash.describe()
            );
        }
    };
    if let Err(error) = sandbox::spawn(Kind::Network, "cards", work) {
        tracing::warn!("cannot look for machines with the same addresses: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_addresses_are_found() {
        let card = |tap: &str, mac: &str| Card {
            tap: tap.into(),
            mac: mac.into(),
        };
        let ours = [card("t0", "52:00:00:00:00:01"), card("t1", "52:00:00:00:00:02")];
        let theirs = [card("u0", "52:00:00:00:00:03"), card("u1", "52:00:00:00:00:02")];
        let found: Vec<_> = between(&ours, "them", &theirs).collect();
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((&found[0].card, found[0].their_tap.as_str()), (&ours[1], "u1"));
        // Tap devices that are not there are in no bridge.
        assert!(!found[0].is_apart());
        assert_eq!(between(&ours, "them", &[]).count(), 0);
    }
}
