//! What stands in the way of moving a shard of Manatee.

use super::{ShardFacts, SitterFile, entry, file, is_named, look, named, sitters};
use crate::{
    Donor, DonorKind, Inventory, PeerFacts, plan::DonorFacts, preflight::Doubt,
    recipient::Recipient,
};
use anyhow::{Result, bail};
use cluster::{Millis, PeerIdent};
use serde_json::Value;

/// How long a first connection to the donor may take.
const LOGIN_LIMIT: Millis = Millis(20_000);

/// What was found.
#[derive(Debug, Clone)]
pub(crate) struct SeenShard {
    pub facts: Result<ShardFacts, String>,
    /// What is wrong with the sitters' files.
    files: Vec<String>,
    /// Whether its primary takes no writes.
    read_only: bool,
}

/// Looks at a donor that is a shard; `None` when it is none.
pub(crate) async fn see(inventory: &Inventory) -> Option<SeenShard> {
    inventory.donor.manatee.as_ref()?;
    let facts = look(&inventory.donor).await.map_err(|error| format!("{error:#}"));
    let mut files = Vec::new();
    for (host, path) in sitters(inventory) {
        match file(host, path).await {
            Ok(SitterFile::InPlace) => {}
            Ok(SitterFile::Aside) => {
                files.push(format!("{host}: a transplant keeps {path} aside already"));
            }
            Err(error) => files.push(format!("{error:#}")),
        }
    }
    let limit = Millis(inventory.limits.service_seconds * 1000);
    let donor = Donor { config: inventory.donor.clone(), limit, config_file: None };
    // One that does not answer is told of elsewhere.
    let read_only = donor.sql("show default_transaction_read_only").await;
    let read_only = read_only.as_deref().ok() == Some("on");
    Some(SeenShard { facts, files, read_only })
}

/// Streams from the donor as a recipient would, where nothing is going to be changed for that.
pub(crate) async fn log_in(inventory: &Inventory, first: &PeerFacts) -> Result<(), String> {
    let recipient = Recipient {
        config: inventory.recipient[0].clone(),
        facts: first.clone(),
        limit: LOGIN_LIMIT,
    };
    let result: Result<()> = async {
        let secret: Value = recipient.verb("secret", &[]).await?;
        let Some(password) = secret["password"].as_str() else { bail!("it has no password") };
        let word = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
        let conninfo = format!(
            "host={} port={} user={} dbname=postgres replication=true connect_timeout=10",
            word(&inventory.donor.address),
            inventory.donor.port,
            word(&first.replication_user)
        );
        let script = "IFS= read -r PGPASSWORD; export PGPASSWORD; \
            exec \"$1\" -XAtqw -c IDENTIFY_SYSTEM \"$2\"";
        let psql = format!("{}/psql", first.bin_dir);
        let host = &recipient.config.host;
        let exec = host.shell(first.os_user.as_deref(), script, &[&psql, &conninfo])?;
        exec.stdin(format!("{password}\n")).redact(password).limit(LOGIN_LIMIT).run().await?;
        Ok(())
    }
    .await;
    result.map_err(|error| format!("{error:#}"))
}

/// What is wrong with it.
pub(crate) fn doubts(inventory: &Inventory, seen: &SeenShard) -> Vec<Doubt> {
    let files = seen.files.iter().map(|problem| {
        let remedy = "correct the `sitter` of the inventory, or end the transplant that did it";
        (true, problem.clone(), remedy)
    });
    let mut doubts: Vec<Doubt> = files.collect();
    doubts.push((
        seen.read_only,
        "it takes no writes now (default_transaction_read_only is on): it lacks its sync"
            .to_owned(),
        "bring its sync back first, or whatever it waits for",
    ));
    match &seen.facts {
        Err(problem) => doubts.push((
            true,
            problem.clone(),
            "compare [donor.manatee] of the inventory with its sitters' files",
        )),
        Ok(shard) => doubts.extend(shard_doubts(inventory, shard)),
    }
    doubts
}

/// What is wrong with a peer of the recipient, for a donor that is a shard.
pub(crate) fn peer_doubts(
    inventory: &Inventory,
    peer: &PeerFacts,
    donor: Option<&DonorFacts>,
) -> Vec<Doubt> {
    let Some(shard) = &inventory.donor.manatee else { return Vec::new() };
    let mut doubts: Vec<Doubt> = vec![(
        peer.shard == shard.shard && peer.coordination == shard.coordination,
        "its shard is the donor's".to_owned(),
        "give the shard another name in its sitters' files",
    )];
    let donor = donor.filter(|_| !inventory.donor.standbys.is_empty());
    for (name, most) in donor.iter().flat_map(|donor| &donor.replicated) {
        let has = peer.replicated.get(name).copied().unwrap_or_default();
        doubts.push((
            has > *most,
            format!(
                "its {name} is {has}, the donor's is {most}: on the way back the donor's other peers \
                 could not follow what it writes"
            ),
            "set as much as the donor has in [postgres.settings] of its sitter's file",
        ));
    }
    doubts
}

fn shard_doubts(inventory: &Inventory, shard: &ShardFacts) -> Vec<Doubt> {
    let donor = &inventory.donor;
    let second = donor.kind == DonorKind::ManateeV2;
    let mut doubts: Vec<Doubt> = vec![
        (
            second && shard.generation.is_none(),
            "it has no cluster state: it is a shard of the first version, or none at all"
                .to_owned(),
            "correct donor.manatee, or give kind = \"manatee-v1\"",
        ),
        (
            !second && shard.generation.is_some(),
            "it has a cluster state: it is no shard of the first version".to_owned(),
            "give kind = \"manatee-v2\"",
        ),
        (
            shard.promote,
            "an operator has asked for a promotion in it".to_owned(),
            "let that come to its end, or take it back (`manatee adm clear-promote`)",
        ),
    ];
    for peer in &shard.deposed {
        doubts.push((
            true,
            format!("its peer {} is deposed", named(peer)),
            "rebuild it, or drop it (`manatee adm reap`) and stop its sitter",
        ));
    }
    match &shard.primary {
        None => doubts.push((
            true,
            "nobody is registered there".to_owned(),
            "start its sitters, or correct donor.manatee",
        )),
        Some(primary) => doubts.extend(primary_doubts(inventory, shard, primary)),
    }
    for peer in &shard.others {
        doubts.push((
            entry(donor, peer).is_none(),
            format!("its peer {} is not in the inventory", named(peer)),
            "name it among donor.standbys: every sitter has to be stopped",
        ));
    }
    for standby in &donor.standbys {
        let known = shard.others.iter().chain(&shard.deposed);
        doubts.push((
            known.filter(|peer| is_named(peer, standby)).count() != 1,
            format!("{:?} is none of its standbys, or several", standby.name),
            "give the id of a standby, as `manatee adm peers` tells it",
        ));
    }
    doubts
}

fn primary_doubts(inventory: &Inventory, shard: &ShardFacts, primary: &PeerIdent) -> Vec<Doubt> {
    let donor = &inventory.donor;
    let address = primary.pg_address().ok();
    let told = address.as_ref().map_or(primary.pg_url.clone(), |(ip, port)| format!("{ip}:{port}"));
    vec![
        (
            address != Some((donor.address.clone(), donor.port)),
            format!(
                "its primary is {} at {told}, not {}:{}",
                named(primary),
                donor.address,
                donor.port
            ),
            "name its primary in [donor], by that address, and the others among donor.standbys",
        ),
        (
            !shard.has(primary),
            format!("its primary {} is not registered", named(primary)),
            "start the primary's sitter",
        ),
    ]
}
