//! The steps, one file each.

mod amcheck;
mod backup;
mod catch_up;
mod check_clients;
mod compare;
mod compare_answers;
pub(crate) mod copy_back;
mod fence_donor;
mod grow;
mod hold_donor;
mod keep_way_back;
mod level_donor;
mod open_recipient;
mod open_replication;
pub(crate) mod opened;
mod receive;
mod receive_last;
mod stop_donor;
mod stop_peers;
mod stop_standbys;

pub use amcheck::PORT_BESIDE;
pub use backup::Proof;
pub use fence_donor::FENCE_FILES;
pub(crate) use fence_donor::{HBA, IDENT};
pub(crate) use keep_way_back::{SLOT, drop_slot_sql, least_sql};
pub(crate) use open_replication::{drop_sql, hba_lines, make_role_sql, make_slot_sql};
pub(crate) use stop_standbys::raised;
pub(crate) use {
    amcheck::NAMES,
    backup::DATABASES,
    compare_answers::{ALONE, all_counts},
};

use crate::{Donor, Facts, Method, Without, patroni::Patroni, recipient::Recipient};
use adapters::clock;
use anyhow::{Context, Result, bail};
use cluster::{ClusterState, Lsn, Millis, PeerIdent};
use saga::{Journal, Step, StepId, Tell};
use serde::de::DeserializeOwned;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

pub(crate) const HOLD_DONOR: &str = "hold-donor";
pub(crate) const OPEN_REPLICATION: &str = "open-replication";
pub(crate) const RECEIVE: &str = "receive";
pub(crate) const CATCH_UP: &str = "catch-up";
pub(crate) const AMCHECK: &str = "amcheck";
pub(crate) const BACKUP: &str = "backup";
pub(crate) const STOP_STANDBYS: &str = "stop-standbys";
pub(crate) const STOP_DONOR: &str = "stop-donor";
pub(crate) const FENCE_DONOR: &str = "fence-donor";
pub(crate) const RECEIVE_LAST: &str = "receive-last";
pub(crate) const COMPARE: &str = "compare";
pub(crate) const COMPARE_ANSWERS: &str = "compare-answers";
pub(crate) const OPEN_RECIPIENT: &str = "open-recipient";
pub(crate) const KEEP_WAY_BACK: &str = "keep-way-back";
pub(crate) const CHECK_CLIENTS: &str = "check-clients";
pub(crate) const GROW: &str = "grow";
pub(crate) const LEVEL_DONOR: &str = "level-donor";

/// Between two looks at what has no event.
const POLL: Duration = Duration::from_millis(200);

/// What comes of two things that were both to be done: where both failed, both are told.
fn both<T>(one: Result<T>, other: Result<()>) -> Result<T> {
    match (one, other) {
        (Err(one), Err(other)) => bail!("{one:#}; and besides: {other:#}"),
        (one, other) => one.and_then(|one| other.map(|()| one)),
    }
}

/// The recipient's slot at a donor that is a shard.
pub(crate) const DONORS_SLOT: &str = "transplant_recipient";

/// What the steps share.
#[derive(Debug)]
pub(crate) struct Scene {
    pub facts: Facts,
    pub donor: Donor,
    /// The donor's cluster, where that is Patroni.
    pub patroni: Option<Patroni>,
    pub peers: Vec<Recipient>,
    /// Whose hosts are off for good: they are asked nothing.
    without: Without,
    /// What the steps before found.
    outcomes: BTreeMap<StepId, serde_json::Value>,
}

impl Scene {
    /// What is told by a journal.
    pub fn of(journal: &Journal, without: &Without) -> Result<Scene> {
        let mut facts: Facts = serde_json::from_value(journal.plan().facts.clone())
            .context("the plan in the journal is none of a transplant")?;
        facts.inventory.donor.standbys.retain(|standby| !without.has_standby(&standby.name));
        if let Some(patroni) = &mut facts.patroni {
            patroni.members.retain(|name, _| !without.has_standby(name));
        }
        let limit = Millis(facts.inventory.limits.service_seconds * 1000);
        let patroni = Patroni::of(&facts);
        let config_file = patroni.as_ref().map(|patroni| patroni.facts.config_file.clone());
        let donor = Donor { config: facts.inventory.donor.clone(), limit, config_file };
        let peers = facts.inventory.recipient.iter().zip(&facts.peers);
        let peers = peers.map(|(config, facts)| Recipient {
            config: config.clone(),
            facts: facts.clone(),
            limit,
        });
        let steps = journal.plan().steps.iter();
        let outcomes =
            steps.filter_map(|step| Some((step.id.clone(), journal.outcome(&step.id)?.clone())));
        let (peers, outcomes) = (peers.collect(), outcomes.collect());
        Ok(Scene { facts, donor, patroni, peers, without: without.clone(), outcomes })
    }

    /// Whether this peer's host is off for good.
    pub fn is_gone(&self, peer: &Recipient) -> bool {
        self.without.has_peer(peer.zone())
    }

    /// Whether the donor's host is.
    pub fn is_donor_gone(&self) -> bool {
        self.without.donor
    }

    /// Whether one of the donor's standbys is gone, which may have been its sync.
    pub fn lacks_standby(&self) -> bool {
        self.without.lacks_standby()
    }

    /// The peers of the shard whose hosts are there.
    pub fn here(&self) -> impl Iterator<Item = &Recipient> {
        self.peers.iter().filter(|peer| !self.is_gone(peer))
    }

    /// What to do where the primary of the shard is gone, with what only it has.
    pub fn without_primary(&self, zone: &str) -> anyhow::Error {
        anyhow::anyhow!(
            "{zone} is the primary of the shard: if its host is off for good, what only it has is lost. \
             If it has a sync, let that take over (`manatee adm unfreeze`, then wait until \
             `manatee adm show` names another primary) and roll back then; if not, give up what the \
             shard took, with --discard-writes"
        )
    }

    /// The peer that receives the database from the donor.
    pub fn first(&self) -> &Recipient {
        &self.peers[0]
    }

    /// The recipient's slot at the donor.
    pub fn slot(&self) -> &str {
        self.facts.slot()
    }

    /// Whether this is the donor's primary, as it was planned.
    pub fn is_donor(&self, peer: &PeerIdent) -> bool {
        let planned = self.facts.shard.as_ref().and_then(|shard| shard.primary.as_ref());
        planned.is_some_and(|planned| planned.id == peer.id)
    }

    /// Waits until the donor takes writes. Its sync may have to be copied first.
    pub async fn donor_open(&self, tell: &dyn Tell) -> Result<()> {
        until(self.facts.inventory.limits.catch_up_seconds, tell, async || {
            let asked =
                "select pg_is_in_recovery(), current_setting('default_transaction_read_only')";
            Ok(match self.donor.sql(asked).await.as_deref() {
                Ok("f|off") => Ok(()),
                Ok("f|on") => Err("the donor waits for its sync".to_owned()),
                Ok(_) => Err("the donor is a standby yet".to_owned()),
                // It is just starting.
                Err(error) => Err(format!("{error:#}")),
            })
        })
        .await
    }

    /// Whether the database comes by snapshots, not by streaming.
    pub fn by_snapshots(&self) -> bool {
        self.facts.inventory.donor.method == Method::Snapshots
    }

    /// What a step found.
    pub fn outcome<T: DeserializeOwned>(&self, step: &str) -> Result<T> {
        let outcome = self.outcomes.get(&step.into());
        let outcome = outcome.with_context(|| format!("{step} has not been done yet"))?;
        serde_json::from_value(outcome.clone())
            .with_context(|| format!("the journal says something unexpected of {step}"))
    }

    /// The cluster state of the shard, as the first peer has it whose host answers.
    pub async fn state(&self) -> Result<Option<ClusterState>> {
        let mut result = Ok(None);
        for peer in self.here() {
            result = peer.state().await;
            if result.is_ok() {
                break;
            }
        }
        result
    }

    /// The primary of a shard that has one.
    pub async fn serving(&self) -> Result<&Recipient> {
        let state = self.state().await?.context("the shard has no cluster state")?;
        self.primary_of(&state)
    }

    /// The peer that is primary by this state.
    pub fn primary_of(&self, state: &ClusterState) -> Result<&Recipient> {
        let primary = self.peers.iter().find(|peer| peer.facts.peer.id == state.primary.id);
        primary.with_context(|| {
            format!(
                "the primary of the shard is {}, which the plan does not know",
                state.primary.id
            )
        })
    }

    /// How many bytes of WAL the recipient has not replayed yet.
    pub async fn lag(&self) -> Result<u64> {
        let written = position(&self.donor.sql("select pg_current_wal_lsn()").await?)?;
        let replayed = self.first().replayed().await?;
        Ok(written.byte().saturating_sub(replayed.byte()))
    }
}

/// A WAL position that a server has told.
pub(crate) fn position(text: &str) -> Result<Lsn> {
    text.trim().parse().map_err(|_| anyhow::anyhow!("no WAL position: {text:?}"))
}

/// Waits until `look` says nothing any more of what is missing.
pub(crate) async fn until(
    seconds: u64,
    tell: &dyn Tell,
    mut look: impl AsyncFnMut() -> Result<Result<(), String>>,
) -> Result<()> {
    let begun = clock::now();
    loop {
        let missing = match look().await? {
            Ok(()) => return Ok(()),
            Err(missing) => missing,
        };
        if clock::now() - begun > Millis(seconds * 1000) {
            bail!("waited {seconds} s: {missing}");
        }
        tell.tell(&missing);
        tokio::time::sleep(POLL).await;
    }
}

/// The step of this name.
pub(crate) fn step(id: &StepId, journal: &Journal, without: &Without) -> Result<Box<dyn Step>> {
    let scene = Arc::new(Scene::of(journal, without)?);
    Ok(match id.0.as_str() {
        HOLD_DONOR => Box::new(hold_donor::HoldDonor(scene)),
        OPEN_REPLICATION => Box::new(open_replication::OpenReplication(scene)),
        RECEIVE => Box::new(receive::Receive(scene)),
        CATCH_UP => Box::new(catch_up::CatchUp(scene)),
        AMCHECK => Box::new(amcheck::Amcheck(scene)),
        BACKUP => Box::new(backup::Backup(scene)),
        STOP_STANDBYS => Box::new(stop_standbys::StopStandbys(scene)),
        STOP_DONOR => Box::new(stop_donor::StopDonor(scene)),
        FENCE_DONOR => Box::new(fence_donor::FenceDonor(scene)),
        RECEIVE_LAST => Box::new(receive_last::ReceiveLast(scene)),
        COMPARE => Box::new(compare::Compare(scene)),
        COMPARE_ANSWERS => Box::new(compare_answers::CompareAnswers(scene)),
        OPEN_RECIPIENT => Box::new(open_recipient::OpenRecipient(scene)),
        KEEP_WAY_BACK => Box::new(keep_way_back::KeepWayBack(scene)),
        CHECK_CLIENTS => Box::new(check_clients::CheckClients(scene)),
        GROW => Box::new(grow::Grow(scene)),
        LEVEL_DONOR => Box::new(level_donor::LevelDonor(scene)),
        other => bail!("this program knows no step {other:?}: another version made the plan"),
    })
}
