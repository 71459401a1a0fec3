//! Hosts that are off for good: nothing is asked of them, on the way back, at the end, and, of the donor's side,
//! once the shard has opened (rule K8).

use crate::{
    Facts,
    steps::{LEVEL_DONOR, OPEN_RECIPIENT},
};
use anyhow::{Result, bail};
use saga::Journal;
use serde_json::Value;
use std::collections::BTreeSet;

/// Whose hosts are off for good.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Without {
    /// The donor's.
    pub(crate) donor: bool,
    peers: BTreeSet<String>,
    standbys: BTreeSet<String>,
}

/// Whether the donor was passed over, because its host was off, when it was to get what the shard wrote.
pub fn was_without_donor(journal: &Journal) -> bool {
    journal.outcome(&LEVEL_DONOR.into()) == Some(&Value::Null)
}

impl Without {
    /// Those that a person has named: `donor`, a peer of the shard by its zone, or one of `donor.standbys` by
    /// its name. Where two have a name, `recipient/NAME` and `donor/NAME` tell them apart.
    ///
    /// # Errors
    /// When there is none of a name, or more than one.
    pub fn parse(names: &[String], facts: &Facts) -> Result<Without> {
        let peers = || facts.peers.iter().map(|peer| peer.peer.zone_id.as_str());
        let standbys =
            || facts.inventory.donor.standbys.iter().map(|standby| standby.name.as_str());
        let mut without = Without::default();
        for asked in names {
            let (peer, standby) = match asked.split_once('/') {
                Some(("recipient", name)) => (Some(name), None),
                Some(("donor", name)) => (None, Some(name)),
                _ => (Some(asked.as_str()), Some(asked.as_str())),
            };
            let peer = peer.filter(|name| peers().any(|one| one == *name));
            let standby = standby.filter(|name| standbys().any(|one| one == *name));
            match (peer, standby) {
                (Some(_), Some(_)) => bail!(
                    "--without {asked}: there are two of that name; give recipient/{asked} or donor/{asked}"
                ),
                (Some(peer), None) => drop(without.peers.insert(peer.to_owned())),
                (None, Some(standby)) => drop(without.standbys.insert(standby.to_owned())),
                (None, None) if asked == "donor" => without.donor = true,
                (None, None) => {
                    let known: Vec<&str> = peers().chain(standbys()).chain(["donor"]).collect();
                    bail!(
                        "--without {asked}: there is no such host; there are {}",
                        known.join(", ")
                    )
                }
            }
        }
        Ok(without)
    }

    /// That it can be gone on with, not back, without them.
    ///
    /// # Errors
    /// When the move needs one of them yet.
    pub fn check_forward(&self, journal: &Journal) -> Result<()> {
        if *self == Without::default() {
            return Ok(());
        }
        if let Some(peer) = self.peers.first() {
            bail!(
                "--without {peer}: the shard is to grow to all of its peers: give {peer} another host, or undo \
                 the transplant with `rollback`"
            );
        }
        if journal.outcome(&OPEN_RECIPIENT.into()).is_none() {
            bail!(
                "the shard has not opened: what the donor and its standbys are is looked at until then; let \
                 their hosts answer, or undo the transplant with `rollback`"
            );
        }
        Ok(())
    }

    pub(crate) fn has_peer(&self, zone: &str) -> bool {
        self.peers.contains(zone)
    }

    pub(crate) fn has_standby(&self, name: &str) -> bool {
        self.standbys.contains(name)
    }

    pub(crate) fn lacks_standby(&self) -> bool {
        !self.standbys.is_empty()
    }

    /// Whether the donor is to be gone: then there is nothing to go back to.
    pub fn is_without_donor(&self) -> bool {
        self.donor
    }
}
