//! The hosts of donor and peers, beside what the donor's databases need of them.

use super::{
    Doubt, collation,
    hosts::{self, HostFacts},
    libraries::{self, Lack},
    needs::{self, Needs},
};
use crate::{Donor, Inventory, PeerFacts, plan::DonorFacts};
use anyhow::Result;

/// What was found, or why it was not.
#[derive(Debug, Clone)]
pub(crate) struct Grounds {
    donor: Result<HostFacts, String>,
    needs: Result<Needs, String>,
    /// What is not there is told of by the peers' own facts.
    peers: Vec<Result<Option<PeerGround>, String>>,
}

/// The host of a peer.
#[derive(Debug, Clone)]
struct PeerGround {
    host: HostFacts,
    lacks: Vec<Lack>,
}

/// Looks at all of it.
pub(super) async fn see(
    inventory: &Inventory,
    server: &Donor,
    facts: &DonorFacts,
    peers: &[Result<PeerFacts, String>],
) -> Grounds {
    let told = |error: anyhow::Error| format!("{error:#}");
    let config = &server.config;
    let donor = hosts::see(&config.host, Some(&config.os_user), &config.bin_dir).await;
    let needs = needs::look(server, facts).await.map_err(told);
    let mut grounds = Vec::new();
    for (index, (peer, facts)) in inventory.recipient.iter().zip(peers).enumerate() {
        let (Ok(facts), Ok(needs)) = (facts, &needs) else {
            grounds.push(Ok(None));
            continue;
        };
        let ground: Result<PeerGround> = async {
            let host = hosts::see(&peer.host, facts.os_user.as_deref(), &facts.bin_dir).await?;
            let amcheck = index == 0 && inventory.verify.amcheck;
            Ok(PeerGround { host, lacks: libraries::look(peer, facts, needs, amcheck).await? })
        }
        .await;
        grounds.push(ground.map(Some).map_err(told));
    }
    Grounds { donor: donor.map_err(told), needs, peers: grounds }
}

impl Grounds {
    /// The donor's host, what its databases need, and a peer's host, where all of it is known.
    fn all(&self, index: usize) -> Option<(&HostFacts, &Needs, &PeerGround)> {
        let peer = self.peers.get(index)?.as_ref().ok()?.as_ref()?;
        Some((self.donor.as_ref().ok()?, self.needs.as_ref().ok()?, peer))
    }

    /// What is wrong with the donor's host, and with what is in its databases.
    pub fn donor_doubts(&self, inventory: &Inventory, facts: Option<&DonorFacts>) -> Vec<Doubt> {
        let mut doubts = Vec::new();
        match &self.donor {
            Ok(host) => doubts.push(hosts::clock_doubt(host.clock)),
            Err(problem) => doubts.push((
                true,
                format!("its host cannot be looked at: {problem}"),
                "let a shell be run there by the user of its server, and compare donor.bin_dir",
            )),
        }
        match &self.needs {
            Ok(needs) if inventory.verify.amcheck => {
                doubts.extend(amcheck_doubts(needs, facts.map_or(0, |facts| facts.version)));
            }
            Ok(_) => {}
            Err(problem) => doubts.push((
                true,
                format!("its databases cannot all be looked at: {problem}"),
                "its superuser must be let into every database, over the socket without a password",
            )),
        }
        doubts
    }

    /// What is wrong with the host of a peer, for this donor.
    pub fn peer_doubts(
        &self,
        inventory: &Inventory,
        index: usize,
        facts: &PeerFacts,
    ) -> Vec<Doubt> {
        if let Some(Err(problem)) = self.peers.get(index) {
            let remedy = "let a shell be run there by the user of its server";
            return vec![(true, format!("its host cannot be looked at: {problem}"), remedy)];
        }
        let Some((donor, needs, peer)) = self.all(index) else { return Vec::new() };
        let mut doubts = hosts::doubts(donor, &peer.host);
        doubts.push(hosts::clock_doubt(peer.host.clock));
        let accepted = inventory.limits.accept_collation_change;
        doubts.extend(match self.all(0) {
            Some((_, _, first)) if index > 0 => {
                collation::doubts_among(needs, &first.host, &peer.host)
            }
            _ => collation::doubts(needs, donor, &peer.host, accepted),
        });
        doubts.extend(libraries::doubts(needs, facts, &peer.lacks));
        doubts
    }

    /// What should be known.
    pub fn notes(&self, inventory: &Inventory, peers: &[Result<PeerFacts, String>]) -> Vec<String> {
        let mut notes = Vec::new();
        if let Ok(needs) = &self.needs
            && !needs.closed.is_empty()
        {
            notes.push(format!(
                "nobody is let into the databases {}: what they need was not looked at",
                needs.closed.join(", ")
            ));
        }
        if let Ok(needs) = &self.needs {
            notes.extend(left_behind(needs));
        }
        if let Some((donor, needs, first)) = self.all(0) {
            let accepted = inventory.limits.accept_collation_change;
            notes.extend(collation::notes(needs, donor, &first.host, accepted));
        }
        for (index, facts) in peers.iter().enumerate() {
            if let (Some((_, needs, _)), Ok(facts)) = (self.all(index), facts) {
                notes.extend(libraries::notes(needs, facts));
            }
        }
        notes
    }

    /// What a person has to do as soon as the recipient is open.
    pub fn after_opening(&self, first: Option<&PeerFacts>) -> Vec<String> {
        let (Some((donor, needs, ground)), Some(first)) = (self.all(0), first) else {
            return Vec::new();
        };
        collation::commands(needs, donor, &ground.host, first)
    }
}

/// How many these are, and some of them.
fn some(names: &[String]) -> String {
    const SOME: usize = 5;
    let more = if names.len() > SOME { ", …" } else { "" };
    format!("{} ({}{more})", names.len(), names[..names.len().min(SOME)].join(", "))
}

/// What no copy has that is made by WAL, and what belongs to one server.
fn left_behind(needs: &Needs) -> Vec<String> {
    let mut notes = Vec::new();
    for database in needs.databases.iter().filter(|database| !database.unlogged.is_empty()) {
        notes.push(format!(
            "unlogged tables of database {}: {}: they will be empty in the shard, and after a rollback in the \
             donor, too; make them logged (alter table … set logged), or fill them again",
            database.name,
            some(&database.unlogged)
        ));
    }
    if !needs.logical_slots.is_empty() {
        notes.push(format!(
            "slots of logical replication: {}: they stay with the donor; whoever streams by one needs a new \
             one in the shard, and what was written before that by other means",
            some(&needs.logical_slots)
        ));
    }
    notes
}

/// What keeps pg_amcheck from looking at all.
fn amcheck_doubts(needs: &Needs, version: u32) -> Vec<Doubt> {
    let mut doubts = vec![(
        version < 140_000,
        "verify.amcheck is asked for: its PostgreSQL has no pg_amcheck before version 14"
            .to_owned(),
        "leave verify.amcheck out",
    )];
    for database in needs.databases.iter().filter(|database| !database.template) {
        doubts.push((
            !database.extensions.contains_key("amcheck"),
            format!("verify.amcheck is asked for: database {} lacks it", database.name),
            "create extension amcheck in that database, or leave verify.amcheck out",
        ));
    }
    doubts
}

#[cfg(test)]
#[path = "grounds_tests.rs"]
mod tests;
