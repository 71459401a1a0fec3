//! The donor, and its cluster where that is Patroni.

use super::Doubt;
use crate::{
    Donor, DonorKind, Inventory, Method, PatroniFacts,
    donor::{TIMELINE, literal},
    manatee::is_rendered,
    plan::DonorFacts,
    recipient::REPLICATED,
    snapshots,
};
use anyhow::{Context, Result};
use std::collections::BTreeMap;

const DONOR: &str = "select current_setting('server_version_num'), \
    (select system_identifier from pg_control_system()), \
    $timeline, pg_is_in_recovery(), \
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

pub(super) async fn look(donor: &Donor) -> Result<DonorFacts> {
    let answer = donor.sql(&DONOR.replace("$timeline", TIMELINE)).await?;
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

pub(super) fn doubts(inventory: &Inventory, donor: &DonorFacts) -> Vec<Doubt> {
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
            inventory.donor.kind == DonorKind::Postgres && is_rendered(&donor.hba_file),
            "a sitter of Manatee has it, which would start it again and write its own files over"
                .to_owned(),
            "move it as the shard that it is, kind = \"manatee-v2\": `manatee transplant discover --shard NAME \
             --coordination URL` drafts that",
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

pub(super) fn patroni_doubts(inventory: &Inventory, patroni: &PatroniFacts) -> Vec<Doubt> {
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
