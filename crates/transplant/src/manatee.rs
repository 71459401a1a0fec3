//! A donor that is a shard of Manatee: what its coordination says of it, and its sitters' files.

pub(crate) mod preflight;

use crate::{DonorConfig, DonorKind, DonorShard, Facts, Inventory, inventory::DonorStandby};
use adapters::{
    coord::{self, AccessTables, Coordination, Registration},
    service::Host,
};
use anyhow::{Context, Result, bail};
use cluster::{ClusterState, Generation, Millis, PeerIdent, v1};
use serde::{Deserialize, Serialize};
use std::{path::Path, sync::Arc};

/// How long a call to the coordination may take.
const CALL_LIMIT: Millis = Millis(10_000);
/// What the name of a sitter's file that is kept aside ends with.
pub(crate) const ASIDE: &str = ".fenced-by-transplant";
/// What stands in its place begins so.
pub(crate) const NOTICE: &str = "moved away by manatee transplant:";

/// What a shard is by its coordination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShardFacts {
    /// The generation of its cluster state; `None` where it has none, as in the first version.
    pub generation: Option<Generation>,
    /// Who takes writes.
    pub primary: Option<PeerIdent>,
    /// The number of its registration. In the first version another one was first, if it is not the same
    /// any more.
    pub registration: Option<u64>,
    /// The rest of the chain, in order, and whoever is registered beside it.
    pub others: Vec<PeerIdent>,
    /// Who has to be rebuilt.
    pub deposed: Vec<PeerIdent>,
    /// Who is there.
    pub registered: Vec<PeerIdent>,
    /// Whether it is frozen.
    pub frozen: bool,
    /// Whether an operator has asked for another order.
    pub promote: bool,
    /// Whether its primary serves alone, as far as a cluster state says so.
    #[serde(default)]
    pub one_node_write_mode: bool,
}

impl ShardFacts {
    pub(crate) fn has(&self, peer: &PeerIdent) -> bool {
        self.registered.iter().any(|one| one.id == peer.id)
    }

    /// What a shard is by these.
    fn of(state: Option<ClusterState>, active: Vec<Registration>) -> ShardFacts {
        let all: Vec<PeerIdent> = active.iter().map(|one| one.peer.clone()).collect();
        let registered: Vec<PeerIdent> =
            v1::roles(&all).into_iter().map(|(_, peer)| peer.clone()).collect();
        let mut chain: Vec<PeerIdent> = match &state {
            Some(state) => state.chain().cloned().collect(),
            None => Vec::new(),
        };
        let deposed = state.as_ref().map_or(Vec::new(), |state| state.deposed.clone());
        let stands = |chain: &[PeerIdent], peer: &PeerIdent| {
            chain.iter().chain(&deposed).any(|other| other.id == peer.id)
        };
        for peer in &registered {
            if !stands(&chain, peer) {
                chain.push(peer.clone());
            }
        }
        let mut chain = chain.into_iter();
        let primary = chain.next();
        let of_primary =
            |one: &&Registration| primary.as_ref().is_some_and(|primary| primary.id == one.peer.id);
        ShardFacts {
            generation: state.as_ref().map(|state| state.generation),
            registration: active.iter().find(of_primary).map(|one| one.sequence),
            primary,
            others: chain.collect(),
            deposed,
            registered,
            frozen: state.as_ref().is_some_and(ClusterState::is_frozen),
            one_node_write_mode: state.as_ref().is_some_and(ClusterState::is_one_node_write_mode),
            promote: state.is_some_and(|state| state.promote.is_some()),
        }
    }
}

/// A peer as people know it.
pub(crate) fn named(peer: &PeerIdent) -> String {
    format!("{} ({})", peer.zone_id, peer.id)
}

/// The coordination of a donor.
pub(crate) fn open(donor: &DonorConfig) -> Result<Arc<dyn Coordination>> {
    meet(donor.manatee.as_ref().context("donor.manatee is missing")?)
}

/// Where the peers of a shard meet.
fn meet(shard: &DonorShard) -> Result<Arc<dyn Coordination>> {
    // A mistyped path must not be made.
    if let Some(path) = shard.coordination.strip_prefix("sqlite:") {
        let path = Path::new(path.strip_prefix("//").unwrap_or(path));
        if !path.exists() {
            bail!("coordination {}: there is no such file", shard.coordination);
        }
    }
    let mut options = coord::Options::new(CALL_LIMIT);
    if let Some(file) = &shard.access {
        let tables = AccessTables::load(Path::new(file)).context("donor.manatee.access")?;
        options.access = tables.access(&shard.coordination)?;
    }
    Ok(coord::open(&shard.coordination, &shard.shard, &options)?)
}

/// Looks at a donor by its coordination.
pub(crate) async fn look(donor: &DonorConfig) -> Result<ShardFacts> {
    look_at(donor.manatee.as_ref().context("donor.manatee is missing")?).await
}

/// Looks at a shard by its coordination.
pub(crate) async fn look_at(shard: &DonorShard) -> Result<ShardFacts> {
    let view = meet(shard)?.read().await?;
    let state = view.state.map(|stored| ClusterState::parse(&stored.json)).transpose()?;
    Ok(ShardFacts::of(state, view.active))
}

/// The entry of the inventory for this peer of the donor.
pub(crate) fn entry<'a>(donor: &'a DonorConfig, peer: &PeerIdent) -> Option<&'a DonorStandby> {
    donor.standbys.iter().find(|standby| is_named(peer, standby))
}

pub(crate) fn is_named(peer: &PeerIdent, standby: &DonorStandby) -> bool {
    standby.name == peer.id.as_str() || standby.name == peer.zone_id
}

/// Whether this `pg_hba.conf` is written anew by a sitter of ours whenever it likes.
pub(crate) fn is_rendered(hba_file: &str) -> bool {
    hba_file.ends_with("/manatee-hba.conf")
}

/// The sitters' files of a donor, its primary's first.
pub(crate) fn sitters(inventory: &Inventory) -> Vec<(&Host, &str)> {
    let donor = &inventory.donor;
    let primary = donor.manatee.iter().map(|shard| (&donor.host, shard.sitter.as_str()));
    let others = donor.standbys.iter();
    let others = others.filter_map(|one| Some((&one.host, one.sitter.as_deref()?)));
    primary.chain(others).collect()
}

/// How a sitter's file is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SitterFile {
    /// As its sitter wants it.
    InPlace,
    /// Kept aside, with our notice or nothing in its place.
    Aside,
}

/// How a sitter's file is.
pub(crate) async fn file(host: &Host, path: &str) -> Result<SitterFile> {
    let aside = format!("{path}{ASIDE}");
    let there = host.read(None, path).await?;
    let there = there.map(|text| text.starts_with(NOTICE));
    match (there, host.read(None, &aside).await?.is_some()) {
        (Some(false), false) => Ok(SitterFile::InPlace),
        (Some(true) | None, true) => Ok(SitterFile::Aside),
        (Some(false), true) => bail!(
            "{host}: somebody put back {path}, which a transplant keeps aside in {aside}: its sitter \
             could start; remove the one that is not wanted"
        ),
        (_, false) => bail!("{host}: there is no sitter's file {path}"),
    }
}

/// Keeps a sitter's file aside, so that its sitter cannot be started, and says so in its place.
pub(crate) async fn fence(host: &Host, path: &str, shard: &str) -> Result<()> {
    let aside = format!("{path}{ASIDE}");
    let script = "[ -e \"$2\" ] || mv -- \"$1\" \"$2\" && cat > \"$1.new\" && \
        chmod --reference=\"$2\" -- \"$1.new\" && chown --reference=\"$2\" -- \"$1.new\" && \
        mv -- \"$1.new\" \"$1\" && sync -- \"$(dirname -- \"$1\")\"";
    // Fails where both are there: neither is overwritten.
    file(host, path).await?;
    let text = format!(
        "{NOTICE} its database is in shard {shard:?} now. Its file is kept as {aside}; \
         `manatee transplant rollback` puts it back.\n"
    );
    let done = host.shell(None, script, &[path, &aside])?.stdin(text).run().await;
    done.map(drop).with_context(|| format!("{host}: {path} cannot be kept aside"))
}

/// Puts a sitter's file back.
pub(crate) async fn unfence(host: &Host, path: &str) -> Result<()> {
    if file(host, path).await? == SitterFile::InPlace {
        return Ok(());
    }
    let script = "mv -f -- \"$2\" \"$1\" && sync -- \"$(dirname -- \"$1\")\"";
    let done = host.shell(None, script, &[path, &format!("{path}{ASIDE}")])?.run().await;
    done.map(drop).with_context(|| format!("{host}: {path} cannot be put back"))
}

/// Another primary than the plan's, or another generation, if the shard has one now. By the order of
/// registrations, as in the first version, there is a primary only while it `serves`.
pub(crate) fn failover(
    kind: DonorKind,
    planned: &ShardFacts,
    now: &ShardFacts,
    serves: bool,
) -> Option<String> {
    if now.generation != planned.generation {
        let told = |generation: Option<Generation>| {
            generation.map_or("no cluster state".to_owned(), |g| format!("generation {g}"))
        };
        let (now, planned) = (told(now.generation), told(planned.generation));
        return Some(format!("it has {now}, {planned} was planned with"));
    }
    let id = |shard: &ShardFacts| shard.primary.as_ref().map(|peer| peer.id.clone());
    if (kind == DonorKind::ManateeV2 || serves) && id(now) != id(planned) {
        let name = |shard: &ShardFacts| shard.primary.as_ref().map_or("nobody".to_owned(), named);
        return Some(format!("its primary is {}, it was {}", name(now), name(planned)));
    }
    None
}

/// That the shard is what it was when the plan was made, as far as it could take writes: no failover, and
/// nobody there whom the plan does not know.
pub(crate) fn unchanged(
    kind: DonorKind,
    planned: &ShardFacts,
    now: &ShardFacts,
    serves: bool,
) -> Result<()> {
    let mut what = failover(kind, planned, now, serves);
    if kind == DonorKind::ManateeV1 && serves && now.registration != planned.registration {
        what = what.or(Some(
            "its primary has registered anew: another one was the first meanwhile, and may have \
             taken writes"
                .to_owned(),
        ));
    }
    if let Some(what) = what {
        bail!(
            "the donor has failed over: {what}; undo the transplant with `rollback`, and begin again"
        );
    }
    let known = |peer: &PeerIdent| {
        let mut peers = planned.primary.iter().chain(&planned.others).chain(&planned.deposed);
        peers.any(|one| one.id == peer.id)
    };
    if let Some(new) = now.registered.iter().find(|peer| !known(peer)) {
        bail!(
            "{} has joined the donor, and the plan does not know it: stop it, or undo the transplant \
             with `rollback`, name it among donor.standbys, and begin again",
            named(new)
        );
    }
    Ok(())
}

/// That no peer of a donor's shard can open it: none is there, none has its sitter's file, and it is what
/// it was. Of other donors nothing is asked.
pub(crate) async fn check_closed(facts: &Facts) -> Result<()> {
    let Some(planned) = &facts.shard else { return Ok(()) };
    for (host, path) in sitters(&facts.inventory) {
        if file(host, path).await? == SitterFile::InPlace {
            bail!("{host}: {path} is in its place: the donor's sitter could start with it");
        }
    }
    let donor = &facts.inventory.donor;
    let now = look(donor).await?;
    unchanged(donor.kind, planned, &now, false)?;
    if let Some(peer) = now.registered.first() {
        bail!("{} is registered: stop its sitter", named(peer));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u8) -> PeerIdent {
        PeerIdent::new(&format!("10.0.0.{number}"), 5432, 12345, &format!("zone{number}"))
    }

    fn first_version(numbers: &[u8]) -> ShardFacts {
        registered(&(0..).zip(numbers.iter().copied()).collect::<Vec<_>>())
    }

    /// With these numbers of their registrations.
    fn registered(peers: &[(u64, u8)]) -> ShardFacts {
        let registration =
            |&(sequence, number): &(u64, u8)| Registration { sequence, peer: peer(number) };
        ShardFacts::of(None, peers.iter().map(registration).collect())
    }

    #[test]
    fn the_first_version_is_told_by_its_order() {
        // The second one has an old registration, too.
        let shard = first_version(&[1, 2, 3, 2]);
        assert_eq!(shard.primary, Some(peer(1)));
        assert_eq!(shard.others, [peer(2), peer(3)]);
        assert_eq!(shard.registered.len(), 3);
        assert_eq!(first_version(&[]).primary, None);
    }

    fn refused(planned: &[u8], now: &[u8], serves: bool, expected: &str) {
        let (planned, now) = (first_version(planned), first_version(now));
        let result = unchanged(DonorKind::ManateeV1, &planned, &now, serves);
        match result {
            Ok(()) => assert_eq!(expected, ""),
            Err(error) => {
                let told = error.to_string();
                assert!(!expected.is_empty() && told.contains(expected), "{told}");
            }
        }
    }

    #[test]
    fn a_failover_and_a_newcomer_are_seen() {
        refused(&[1, 2, 3], &[1, 2, 3], true, "");
        refused(&[1, 2, 3], &[1, 3, 2], true, "");
        refused(
            &[1, 2, 3],
            &[2, 3],
            true,
            "its primary is zone2 (10.0.0.2:5432:12345), it was zone1",
        );
        refused(&[1, 2, 3], &[], true, "its primary is nobody");
        refused(&[1, 2, 3], &[], false, "");
        let anew = registered(&[(7, 1), (8, 2)]);
        let told = unchanged(DonorKind::ManateeV1, &first_version(&[1, 2]), &anew, true);
        assert!(told.is_err_and(|told| told.to_string().contains("registered anew")));
        refused(&[1, 2, 3], &[1, 2, 3, 4], true, "zone4 (10.0.0.4:5432:12345) has joined");
    }
}
