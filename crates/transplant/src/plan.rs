//! From what was asked for and what was found to the steps; nothing is looked at here.

use crate::{
    DatasetFacts, DonorKind, Inventory, Method, PatroniFacts, PeerFacts, ShardFacts, steps,
};
use saga::{Notice, Plan, Planned, WayBack};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The field of the cluster state of a shard that says which transplant made it, by its id.
pub const MADE_BY: &str = "transplant";
/// A field of the cluster state of a shard that a transplant was rolled back from: another one may use it.
pub const ROLLED_BACK: &str = "transplantRolledBack";

/// What a plan is made from; part of the plan, as its steps read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Facts {
    /// Which transplant this is.
    pub id: String,
    /// What was asked for.
    pub inventory: Inventory,
    /// What the donor is.
    pub donor: DonorFacts,
    /// What a donor is that is a shard of Manatee.
    #[serde(default)]
    pub shard: Option<ShardFacts>,
    /// What the peers are, in the order of the inventory.
    pub peers: Vec<PeerFacts>,
    /// What the cluster of the donor is, where that is Patroni.
    pub patroni: Option<PatroniFacts>,
    /// Commands that a person has to give as soon as the recipient is open: what is sorted there in another
    /// way than at the donor is to be made anew.
    #[serde(default)]
    pub after_opening: Vec<String>,
}

impl Facts {
    /// The recipient's slot at the donor. A sitter there drops those that begin with its own word.
    pub(crate) fn slot(&self) -> &str {
        if self.shard.is_some() { steps::DONORS_SLOT } else { &self.peers[0].slot }
    }
}

/// What a donor is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DonorFacts {
    /// `server_version_num`.
    pub version: u32,
    /// Which database it is; as text, because not every program keeps such numbers.
    pub system_identifier: String,
    /// Its timeline.
    pub timeline: u32,
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// `wal_level`.
    pub wal_level: String,
    /// How many more may stream from it.
    pub free_wal_senders: i64,
    /// How many more replication slots it may have.
    pub free_slots: i64,
    /// Tablespaces of its own.
    pub tablespaces: u32,
    /// Bytes of all databases.
    pub bytes: u64,
    /// Its data directory.
    pub data_dir: String,
    /// Its `pg_hba.conf`.
    pub hba_file: String,
    /// Whether its pages have checksums.
    pub checksums: bool,
    /// Prepared transactions.
    pub prepared_transactions: u32,
    /// Its dataset, where it is moved by snapshots.
    #[serde(default)]
    pub dataset: Option<DatasetFacts>,
    /// What it has of the settings of which a standby needs at least as much.
    pub replicated: BTreeMap<String, u64>,
}

/// The steps in their order. Nothing of it has been begun.
pub fn plan(facts: &Facts) -> Plan {
    let inventory = &facts.inventory;
    let donor = format!("donor {}:{}", inventory.donor.address, inventory.donor.port);
    let first = facts.peers.first().map_or("", |peer| peer.peer.zone_id.as_str()).to_owned();
    let shard = facts.peers.first().map_or("", |peer| peer.shard.as_str());
    // What a slow disk and network do: the estimate of a person who does not want to be wrong.
    let copy = facts.donor.bytes / (50 << 20) + 5;
    let step = |id: &str, title: String, touches: &[&str], clients, estimate, undo: &str| Planned {
        id: id.into(),
        title,
        touches: touches.iter().map(|&what| what.to_owned()).collect(),
        clients,
        estimate: Some(estimate),
        undo: undo.to_owned(),
        way_back: WayBack::Reversible,
        pause: None,
    };
    let (nothing, outage) = (Notice::Nothing, Notice::Outage);
    let mut plan = Vec::new();
    if inventory.donor.kind == DonorKind::ManateeV2 {
        plan.push(step(
            steps::HOLD_DONOR,
            "freeze the donor, so that none of its peers takes over".to_owned(),
            &["the donor's cluster state"],
            nothing,
            1,
            "unfreeze it, if it was not frozen before",
        ));
    }
    if inventory.donor.kind == DonorKind::Patroni {
        plan.push(step(
            steps::HOLD_DONOR,
            "pause Patroni: it starts, stops and promotes nothing from here on".to_owned(),
            &[&donor, "its cluster's configuration"],
            nothing,
            5,
            "resume it, if it was not paused before",
        ));
    }
    let by_snapshots = inventory.donor.method == Method::Snapshots;
    let dataset = inventory.donor.dataset.as_ref().map_or("", |dataset| dataset.name.as_str());
    plan.extend(match inventory.donor.method {
        Method::Streaming => vec![
            step(
                steps::OPEN_REPLICATION,
                format!("let {first} stream from the donor: role, slot, pg_hba.conf"),
                &[&donor],
                nothing,
                1,
                "drop role and slot, put pg_hba.conf back",
            ),
            step(
                steps::RECEIVE,
                format!("copy the database to {first}, and follow the donor there"),
                &[&first],
                nothing,
                copy,
                "stop the copy and keep it aside",
            ),
            step(
                steps::CATCH_UP,
                format!("wait until {first} is nearly level with the donor"),
                &[],
                nothing,
                5,
                "nothing to undo",
            ),
        ],
        Method::Snapshots => vec![
            step(
                steps::OPEN_REPLICATION,
                "make the role on the donor that the shard streams by".to_owned(),
                &[&donor],
                nothing,
                1,
                "drop the role",
            ),
            step(
                steps::RECEIVE,
                format!("send a snapshot of {dataset} to {first}"),
                &[&format!("snapshots of {dataset}"), &first],
                nothing,
                copy,
                "keep aside what was put in place, remove what was not, and drop the snapshots",
            ),
            step(
                steps::CATCH_UP,
                "send what has changed since, until that is little".to_owned(),
                &[&format!("snapshots of {dataset}"), &first],
                nothing,
                30,
                "nothing to undo",
            ),
        ],
    });
    if inventory.verify.amcheck {
        plan.push(step(
            steps::AMCHECK,
            format!("look {first}'s copy through for damage (pg_amcheck)"),
            &[],
            nothing,
            4 * copy,
            "nothing to undo",
        ));
    }
    if let Some(backup) = &inventory.backup {
        plan.push(step(
            steps::BACKUP,
            format!("back the donor up to {} on {first}'s host, and prove it", backup.dir),
            &[&backup.dir],
            nothing,
            4 * copy,
            "keep it",
        ));
    }
    let mut stop = vec![step(
        steps::STOP_DONOR,
        "stop the donor, with all that it wrote sent".to_owned(),
        &[&donor],
        outage,
        2,
        "start it",
    )];
    // Those of a shard could take over.
    if inventory.donor.kind.has_sitter() && !inventory.donor.standbys.is_empty() {
        let others = step(
            steps::STOP_STANDBYS,
            "stop the donor's other peers, and keep their sitters from being started".to_owned(),
            &inventory.donor.standbys.iter().map(|peer| peer.name.as_str()).collect::<Vec<_>>(),
            outage,
            5,
            "start them",
        );
        // Where nothing holds them, they take over as soon as the primary is gone.
        let first = inventory.donor.kind == DonorKind::ManateeV1;
        stop.insert(if first { 0 } else { 1 }, others);
    }
    stop[0].pause =
        Some("from here on clients have no database until open-recipient is done".to_owned());
    plan.extend(stop);
    plan.push(step(
        steps::FENCE_DONOR,
        "make sure that it takes no write even if somebody starts it".to_owned(),
        &[&donor],
        outage,
        1,
        "put its files back; what the recipient took since is in it",
    ));
    if by_snapshots {
        plan.push(step(
            steps::RECEIVE_LAST,
            format!("send the last that has changed, and put all of it in place on {first}"),
            &[&format!("snapshots of {dataset}"), &first],
            outage,
            5,
            "nothing to undo",
        ));
    }
    plan.push(step(
        steps::COMPARE,
        format!("prove that {first} has all that the donor had"),
        &[],
        outage,
        1,
        "nothing to undo",
    ));
    if inventory.verify.compares() {
        let copy = if inventory.verify.row_counts { copy } else { 5 };
        plan.push(step(
            steps::COMPARE_ANSWERS,
            format!("ask {first} and the donor, closed as it is, the same, and compare"),
            &[&donor],
            outage,
            copy,
            "nothing to undo",
        ));
    }
    plan.push(step(
        steps::OPEN_RECIPIENT,
        format!("make {first} the primary of shard {shard}, alone"),
        &[&first, "the shard's cluster state"],
        Notice::Reconnect,
        5,
        "stop the shard, with all that it wrote in the donor",
    ));
    plan.push(step(
        steps::KEEP_WAY_BACK,
        "keep the WAL that the donor would need".to_owned(),
        &[&first],
        nothing,
        1,
        "bring the donor level with the shard, while that goes on",
    ));
    // Not before: commits of the donor may wait for them.
    if !inventory.donor.kind.has_sitter() && !inventory.donor.standbys.is_empty() {
        plan.push(step(
            steps::STOP_STANDBYS,
            "stop the donor's standbys, and close them".to_owned(),
            &[&donor],
            Notice::FewerStandbys,
            10,
            "start them",
        ));
    }
    if !inventory.clients.is_empty() {
        plan.push(step(
            steps::CHECK_CLIENTS,
            "see that clients are well".to_owned(),
            &[],
            nothing,
            5,
            "nothing to undo",
        ));
    }
    if facts.peers.len() > 1 {
        let others: Vec<&str> =
            facts.peers[1..].iter().map(|peer| peer.peer.zone_id.as_str()).collect();
        plan.push(Planned {
            pause: Some("look at the shard, as it is alone, before it grows".to_owned()),
            ..step(
                steps::GROW,
                format!(
                    "add {} and leave one-node-write mode; writes wait for moments",
                    others.join(" and ")
                ),
                &others,
                nothing,
                copy + 10,
                "freeze the shard, so that it does not change while it is undone",
            )
        });
        let slots = "a slot on each peer";
        plan.push(step(
            steps::LEVEL_DONOR,
            "give the donor what the shard wrote, so that it can follow any peer".to_owned(),
            &[&donor, slots],
            nothing,
            10,
            "nothing to undo",
        ));
    }
    let title = format!("move {donor} into shard {shard}");
    let facts = serde_json::to_value(facts).expect("facts are JSON");
    Plan { title, facts, steps: plan }
}
