//! What is there, and everything that is wrong with it, at once.

use crate::{
    BackupPlace, Donor, Facts, Inventory, Method, PatroniFacts, PeerFacts,
    donor::literal,
    manatee::{self, preflight::SeenShard},
    patroni,
    plan::{DonorFacts, ROLLED_BACK},
    recipient::{self, REPLICATED},
    snapshots,
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
    pub(crate) shard: Option<SeenShard>,
    /// Why the first peer cannot stream from it as things are, where that has to be so.
    pub(crate) login: Result<(), String>,
    pub(crate) peers: Vec<Result<PeerFacts, String>>,
    /// Standbys that are not where the inventory says, and why.
    pub(crate) misplaced: Vec<(String, String)>,
    pub(crate) patroni: Result<Option<PatroniFacts>, String>,
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
    let limit = Millis(inventory.limits.service_seconds * 1000);
    let server = Donor { config: inventory.donor.clone(), limit, config_file: None };
    let donor = look_at_donor(&server).await.map_err(|error| format!("{error:#}"));
    let patroni = patroni::look(&inventory.donor, &server).await;
    let patroni = patroni.map_err(|error| format!("{error:#}"));
    let mut peers = Vec::new();
    for (index, peer) in inventory.recipient.iter().enumerate() {
        let backup = inventory.backup.as_ref().filter(|_| index == 0);
        let backup = backup.map(|backup| backup.dir.as_str());
        peers.push(recipient::look(peer, backup).await.map_err(|error| format!("{error:#}")));
    }
    let shard = manatee::preflight::see(inventory).await;
    let login = match (&donor, peers.first()) {
        (Ok(donor), Some(Ok(first))) if manatee::is_rendered(&donor.hba_file) => {
            manatee::preflight::log_in(inventory, first).await
        }
        _ => Ok(()),
    };
    let mut misplaced = Vec::new();
    // Those of a shard are known by their registrations.
    let standbys = inventory.donor.standbys.iter();
    for standby in standbys.filter(|_| !inventory.donor.kind.has_sitter()) {
        let control = server.standby(standby).control().await;
        let problem = match (control, &donor) {
            (Err(error), _) => format!("{error:#}"),
            (Ok(control), Ok(donor)) if control.system_identifier != donor.system_identifier => {
                "the database there is another one".to_owned()
            }
            _ => continue,
        };
        misplaced.push((standby.name.clone(), problem));
    }
    Seen { donor, shard, login, peers, misplaced, patroni }
}

async fn look_at_donor(donor: &Donor) -> Result<DonorFacts> {
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
            dataset: None,
            replicated,
        })
    };
    let mut facts = parsed().with_context(unexpected)?;
    if donor.config.method == Method::Snapshots {
        facts.dataset = Some(snapshots::look(&donor.config).await?);
    }
    Ok(facts)
}

/// What is not wrong, and should be known.
pub fn notes(inventory: &Inventory) -> Vec<String> {
    let mut notes = Vec::new();
    if inventory.backup.is_none() {
        notes.push(
            "no backup is made before the donor is stopped: give [backup] to have one".into(),
        );
    }
    notes
}

/// One thing that may be wrong: whether it is, what, and what to do.
pub(crate) type Doubt = (bool, String, &'static str);

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
    if let Some(shard) = &seen.shard {
        tell("donor", manatee::preflight::doubts(inventory, shard));
    }
    if let Err(problem) = &seen.login {
        let remedy = "its sitter writes its own pg_hba.conf, which lets in the replication role of its \
                      shard: give the recipient's sitters the same [replication] user and password";
        tell(
            "recipient",
            vec![(true, format!("it cannot stream from the donor: {problem}"), remedy)],
        );
    }
    for (name, problem) in &seen.misplaced {
        let remedy =
            "set host and data_dir of this one of donor.standbys: its files are changed there";
        tell(&format!("standby {name}"), vec![(true, problem.clone(), remedy)]);
    }
    match &seen.patroni {
        Err(problem) => {
            let remedy = "name the REST API of a running member as donor.patroni.url, with user, \
                          password_file and ca where it asks for them";
            tell("donor's Patroni", vec![(true, problem.clone(), remedy)]);
        }
        Ok(None) => {}
        Ok(Some(patroni)) => tell("donor's Patroni", patroni_doubts(inventory, patroni)),
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
                let donor = seen.donor.as_ref().ok();
                tell(&at, peer_doubts(facts, index == 0, donor));
                tell(&at, manatee::preflight::peer_doubts(inventory, facts, donor));
                let method = &inventory.donor;
                let kind = method.dataset.as_ref().map_or("", |dataset| dataset.kind.name());
                let other = method.method == Method::Snapshots && facts.storage != kind;
                let problem =
                    format!("its storage is {}, the donor's dataset {kind}", facts.storage);
                let remedy = "give its sitter a dataset of that kind, or move by streaming";
                tell(&at, vec![(index == 0 && other, problem, remedy)]);
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
    let streams = inventory.donor.method == Method::Streaming;
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
            streams && donor.free_wal_senders < 2,
            format!("it has {} free WAL senders, 2 are needed", donor.free_wal_senders),
            "raise max_wal_senders there and restart it",
        ),
        (
            streams && donor.free_slots < 1,
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

fn patroni_doubts(inventory: &Inventory, patroni: &PatroniFacts) -> Vec<Doubt> {
    let standbys = inventory.donor.standbys.iter();
    let standbys: Vec<&str> = standbys.map(|standby| standby.name.as_str()).collect();
    let members = patroni.members.keys().map(String::as_str);
    let others: Vec<&str> = members.filter(|&name| name != patroni.leader).collect();
    let mut doubts = vec![
        (
            !patroni.is_donor,
            format!("the leader is {}, which is not the donor", patroni.leader),
            "name the leader's server as the donor, or switch over to the donor first",
        ),
        (
            patroni.switchover,
            "a switchover is scheduled".to_owned(),
            "cancel it (`patronictl flush CLUSTER switchover`), or wait until it is over",
        ),
    ];
    for name in others.iter().filter(|name| !standbys.contains(name)) {
        doubts.push((
            true,
            format!("its member {name} is not among donor.standbys"),
            "add it, under its name in Patroni: it has to be stopped, too",
        ));
    }
    for name in standbys.iter().filter(|name| !others.contains(name)) {
        doubts.push((
            true,
            format!("it has no standby {name}"),
            "start it, or take it out of donor.standbys; its name is the one in Patroni",
        ));
    }
    for (name, problem) in &patroni.silent {
        doubts.push((
            true,
            format!("{name}: {problem}"),
            "start its Patroni, and let this host reach its REST API: each member must say that it \
             is paused",
        ));
    }
    doubts
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
    if let Some(place) = &facts.backup {
        doubts.extend(backup_doubts(place, donor));
    }
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

/// What is wrong with the place for the backup.
fn backup_doubts(place: &BackupPlace, donor: Option<&DonorFacts>) -> Vec<Doubt> {
    if let Some(problem) = &place.problem {
        let remedy = "make it a directory that the user of the server can get into";
        return vec![(true, format!("backup.dir: {problem}"), remedy)];
    }
    let Some(donor) = donor else { return Vec::new() };
    // The file, and what is restored from it; and the copy, where that takes from the same space.
    let times = if place.beside_database { 3 } else { 2 };
    let needed = donor.bytes * times + donor.bytes / 10;
    vec![(
        place.free_bytes < needed,
        format!(
            "backup.dir: {} MiB are free, {} MiB are needed to make and to prove a backup",
            place.free_bytes >> 20,
            needed >> 20
        ),
        "make room for it, or name a directory elsewhere",
    )]
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
            shard: self.shard.map(|shard| shard.facts).transpose().map_err(anyhow::Error::msg)?,
            donor: self.donor.map_err(anyhow::Error::msg)?,
            peers: peers.map_err(anyhow::Error::msg)?,
            patroni: self.patroni.map_err(anyhow::Error::msg)?,
        })
    }
}
