//! What is there, and everything that is wrong with it, at once.

use crate::{
    Donor, Facts, Inventory, PeerFacts,
    donor::literal,
    plan::{DonorFacts, ROLLED_BACK},
    recipient::{self, REPLICATED},
};
use anyhow::{Context, Result};
use cluster::Millis;
use serde::Serialize;
use std::{collections::BTreeMap, fmt};

/// What stands in the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Where: the donor, or a peer.
    pub at: String,
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}\n    {}", self.at, self.problem, self.remedy)
    }
}

/// What was found, or why it was not.
#[derive(Debug, Clone)]
pub struct Seen {
    pub(crate) donor: Result<DonorFacts, String>,
    pub(crate) peers: Vec<Result<PeerFacts, String>>,
}

const DONOR: &str = "select current_setting('server_version_num'), \
    (select system_identifier from pg_control_system()), \
    (select timeline_id from pg_control_checkpoint()), pg_is_in_recovery(), \
    current_setting('wal_level'), current_setting('max_wal_senders')::int - \
    (select count(*) from pg_stat_replication), \
    current_setting('max_replication_slots')::int - (select count(*) from pg_replication_slots), \
    (select count(*) from pg_tablespace where spcname not in ('pg_default', 'pg_global')), \
    (select sum(pg_database_size(oid)) from pg_database), current_setting('data_directory'), \
    current_setting('hba_file'), current_setting('data_checksums'), \
    (select count(*) from pg_prepared_xacts)";

/// What the server has of these settings, a line each.
fn replicated() -> String {
    let names: Vec<String> = REPLICATED.iter().map(|(name, _)| literal(name)).collect();
    format!("select name, setting from pg_settings where name in ({})", names.join(", "))
}

/// Looks at everything that the inventory names.
pub async fn look(inventory: &Inventory) -> Seen {
    let donor = look_at_donor(inventory).await.map_err(|error| format!("{error:#}"));
    let mut peers = Vec::new();
    for peer in &inventory.recipient {
        peers.push(recipient::look(peer).await.map_err(|error| format!("{error:#}")));
    }
    Seen { donor, peers }
}

async fn look_at_donor(inventory: &Inventory) -> Result<DonorFacts> {
    let limit = Millis(inventory.limits.service_seconds * 1000);
    let donor = Donor { config: inventory.donor.clone(), limit };
    let answer = donor.sql(DONOR).await?;
    let settings = donor.sql(&replicated()).await?;
    let replicated = settings.lines().filter_map(|line| {
        let (name, value) = line.split_once('|')?;
        Some((name.to_owned(), value.parse().ok()?))
    });
    let replicated: BTreeMap<String, u64> = replicated.collect();
    let field: Vec<&str> = answer.split('|').collect();
    let unexpected = || format!("the donor answers something unexpected: {answer}");
    let parsed = || {
        let [
            version,
            id,
            timeline,
            recovery,
            level,
            senders,
            slots,
            spaces,
            size,
            data,
            hba,
            sums,
            xacts,
        ] = field[..]
        else {
            return None;
        };
        Some(DonorFacts {
            version: version.parse().ok()?,
            system_identifier: id.to_owned(),
            timeline: timeline.parse().ok()?,
            in_recovery: recovery == "t",
            wal_level: level.to_owned(),
            free_wal_senders: senders.parse().ok()?,
            free_slots: slots.parse().ok()?,
            tablespaces: spaces.parse().ok()?,
            bytes: size.parse().ok()?,
            data_dir: data.to_owned(),
            hba_file: hba.to_owned(),
            checksums: sums == "on",
            prepared_transactions: xacts.parse().ok()?,
            replicated,
        })
    };
    parsed().with_context(unexpected)
}

/// One thing that may be wrong: whether it is, what, and what to do.
type Doubt = (bool, String, &'static str);

/// What is wrong, all of it; empty when a plan can be made.
pub fn problems(inventory: &Inventory, seen: &Seen) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut tell = |at: &str, doubts: Vec<Doubt>| {
        for (_, problem, remedy) in doubts.into_iter().filter(|(wrong, ..)| *wrong) {
            problems.push(Problem { at: at.to_owned(), problem, remedy: remedy.to_owned() });
        }
    };
    match &seen.donor {
        Err(problem) => {
            let remedy = "start it, and compare [donor] of the inventory with where it is; its superuser \
                          must be let in over the socket without a password";
            tell("donor", vec![(true, problem.clone(), remedy)]);
        }
        Ok(donor) => tell("donor", donor_doubts(inventory, donor)),
    }
    for (index, (peer, facts)) in inventory.recipient.iter().zip(&seen.peers).enumerate() {
        match facts {
            Err(problem) => {
                let remedy = "install the program there, write the sitter's file, and name both in the \
                              inventory";
                let at = format!("recipient {} on {}", peer.config, peer.host);
                tell(&at, vec![(true, problem.clone(), remedy)]);
            }
            Ok(facts) => {
                let at = format!("recipient {}", facts.peer.zone_id);
                tell(&at, peer_doubts(facts, index == 0, seen.donor.as_ref().ok()));
            }
        }
    }
    let shards = seen.peers.iter().flatten().map(|facts| facts.shard.as_str());
    let shards: std::collections::BTreeSet<&str> = shards.collect();
    if shards.len() > 1 {
        let remedy = "name the peers of one shard";
        let problem = format!("its peers are of different shards: {shards:?}");
        tell("recipient", vec![(true, problem, remedy)]);
    }
    problems
}

fn donor_doubts(inventory: &Inventory, donor: &DonorFacts) -> Vec<Doubt> {
    vec![
        (
            donor.version < 130_000,
            format!("its PostgreSQL is {}", donor.version / 10_000),
            "bring it to version 13 or later first: the shard needs that",
        ),
        (
            donor.in_recovery,
            "it is a standby".to_owned(),
            "name its primary as the donor, and this one among donor.standbys",
        ),
        (
            donor.wal_level == "minimal",
            "its wal_level is minimal: nothing can follow it".to_owned(),
            "set wal_level = replica there and restart it",
        ),
        (
            donor.free_wal_senders < 2,
            format!("it has {} free WAL senders, 2 are needed", donor.free_wal_senders),
            "raise max_wal_senders there and restart it",
        ),
        (
            donor.free_slots < 1,
            "it has no free replication slot".to_owned(),
            "raise max_replication_slots there and restart it, or drop a slot that nobody uses",
        ),
        (
            donor.tablespaces > 0,
            format!("it has {} tablespaces outside its data directory", donor.tablespaces),
            "move what is in them to pg_default and drop them: peers have one directory for all",
        ),
        (
            donor.prepared_transactions > 0,
            format!("it has {} prepared transactions", donor.prepared_transactions),
            "commit them or roll them back: nobody would after the cut-over",
        ),
        (
            donor.data_dir.trim_end_matches('/') != inventory.donor.data_dir.trim_end_matches('/'),
            format!("its data directory is {}, not {}", donor.data_dir, inventory.donor.data_dir),
            "correct donor.data_dir, or the socket and port that it was asked at",
        ),
    ]
}

fn peer_doubts(facts: &PeerFacts, first: bool, donor: Option<&DonorFacts>) -> Vec<Doubt> {
    let rolled_back = facts.state.as_ref().is_some_and(|state| state.get(ROLLED_BACK).is_some());
    let mut doubts = vec![
        (
            facts.has_database,
            format!("there is a database in {}", facts.data_dir),
            "move it away, or name a peer that has none: nothing is written over what is there",
        ),
        (
            facts.sitter_runs,
            "its sitter runs: it would set the shard up with an empty database".to_owned(),
            "stop it; the transplant starts it when its database is there",
        ),
        (
            facts.state.is_some() && !rolled_back,
            format!("shard {:?} has a cluster state: it is, or was, in use", facts.shard),
            "give the shard another name in its sitters' files",
        ),
    ];
    if let Some(donor) = donor {
        doubts.push((
            facts.version != donor.version / 10_000,
            format!(
                "its PostgreSQL is {}, the donor's is {}",
                facts.version,
                donor.version / 10_000
            ),
            "install the donor's version there: the database is moved as it is",
        ));
        doubts.push((
            facts.free_bytes < donor.bytes + donor.bytes / 10,
            format!(
                "{} MiB are free, the database has {} MiB",
                facts.free_bytes >> 20,
                donor.bytes >> 20
            ),
            "make room for it and a tenth more",
        ));
        for (name, least) in &donor.replicated {
            let has = facts.replicated.get(name).copied().unwrap_or_default();
            doubts.push((
                has < *least,
                format!("its {name} is {has}, the donor's is {least}: it could not follow"),
                "set at least as much in [postgres.settings] of its sitter's file",
            ));
        }
        doubts.push((
            first && facts.data_dir == donor.data_dir,
            "its data directory is the donor's".to_owned(),
            "give its sitter a dataset of its own",
        ));
    }
    doubts
}

impl Seen {
    /// What a plan is made from.
    ///
    /// # Errors
    /// When something was not found; [`problems`] tells all of it.
    pub fn facts(self, inventory: Inventory, id: String) -> Result<Facts> {
        let peers: Result<Vec<PeerFacts>, String> = self.peers.into_iter().collect();
        Ok(Facts {
            id,
            inventory,
            donor: self.donor.map_err(anyhow::Error::msg)?,
            peers: peers.map_err(anyhow::Error::msg)?,
        })
    }
}
