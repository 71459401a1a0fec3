//! Whether the shard has opened, on the way back. Its cluster state says so (rule T4); that there is none says
//! nothing: one that was lost lets its peers serve on (rule G2).

use super::{COMPARE, OPEN_RECIPIENT, Scene};
use crate::{donor::Control, plan::MADE_BY, recipient::Recipient};
use anyhow::{Context, Result, bail};
use cluster::{ClusterState, PeerIdent};
use saga::Undo;
use serde_json::Value;

/// The states that a database may be left in that has never served. Of one that has served and ended without
/// order the last checkpoint may still be the one of before: only this tells.
const NEVER_SERVED: [&str; 3] = ["shut down", "shut down in recovery", "in archive recovery"];

/// The number of the next transaction that writes.
pub(super) const NEXT_TRANSACTION: &str = "select txid_snapshot_xmax(txid_current_snapshot())";

/// Whether a control file says that what was proven to be the donor's (rule T3) has not served since.
pub(super) fn never_served(proven: &Control, now: &Control) -> bool {
    let what = |control: &Control| {
        (control.system_identifier.clone(), control.timeline, control.checkpoint)
    };
    what(proven) == what(now) && NEVER_SERVED.contains(&now.state.as_str())
}

/// Whether a cluster state is the one that opened the shard: nobody has taken over since, nor could have.
pub(super) fn is_as_declared(state: &ClusterState, first: &PeerIdent, proven: &Control) -> bool {
    state.primary.id == first.id
        && state.is_one_node_write_mode()
        && state.sync.is_none()
        && (state.init_wal, state.init_timeline) == (proven.checkpoint, Some(proven.timeline))
}

impl Scene {
    /// The cluster state that this transplant made, in whatever generation it is now.
    pub async fn made(&self) -> Result<Option<ClusterState>> {
        let mine = |state: &ClusterState| {
            state.extra.get(MADE_BY).and_then(Value::as_str) == Some(self.facts.id.as_str())
        };
        Ok(self.state().await?.filter(mine))
    }

    /// The primary of a shard that has opened, to be undone; `None` when its cluster state is gone, and with it
    /// what the shard took is given up.
    pub async fn opened(&self, how: Undo) -> Result<Option<&Recipient>> {
        match self.made().await? {
            Some(state) => self.primary_of(&state).map(Some),
            None if how.discard_writes => Ok(None),
            None => Err(self.without_state()),
        }
    }

    /// That what the primary has can be known, before anybody is stopped who could take over from it.
    ///
    /// # Errors
    /// When its host does not answer, or it took over and has not served yet.
    pub async fn check_serves(&self, primary: &Recipient, state: &ClusterState) -> Result<()> {
        let zone = primary.zone();
        let control = primary.control().await.with_context(|| self.without_primary(zone))?;
        let proven: Control = self.outcome(COMPARE)?;
        let is_first = is_as_declared(state, &self.first().facts.peer, &proven);
        let recovers = control.state.ends_with("recovery") && control.state != "in crash recovery";
        if recovers && !is_first {
            bail!(
                "{zone} took over and has not served yet (\"{}\"): it may have what was acknowledged before \
                 and the donor lacks. The shard is frozen meanwhile: wait until {zone} takes writes \
                 (`manatee adm show`), start its sitter if it does not run, and roll back again",
                control.state
            );
        }
        Ok(())
    }

    /// That the shard has no cluster state, or another one's, and may serve.
    pub fn without_state(&self) -> anyhow::Error {
        let Some(asked) = self.here().next() else {
            return self.without_primary(self.first().zone());
        };
        let facts = &asked.facts;
        anyhow::anyhow!(
            "the shard may have opened, and {} finds no cluster state of this transplant: whoever serves there \
             goes on without it, and what it took would be lost. Restore the cluster state (of shard {:?} in \
             {}, when this was planned), or put back what was changed in the sitters' files, and roll back \
             again; or give up what the shard took, with --discard-writes",
            asked.zone(),
            facts.shard,
            facts.coordination
        )
    }

    /// That the first peer, whose opening was begun, never served: no sitter runs there, and its database is
    /// what was proven.
    ///
    /// # Errors
    /// When it may have served, and when it cannot be asked.
    pub async fn never_opened(&self) -> Result<()> {
        let first = self.first();
        let proven: Control = self.outcome(COMPARE)?;
        if self.outcome::<Value>(OPEN_RECIPIENT).is_ok()
            || first.sitter_runs().await?
            || !never_served(&proven, &first.control().await?)
        {
            return Err(self.without_state());
        }
        Ok(())
    }
}

/// What a rollback that sends nothing back loses, as far as it can be counted: transactions that wrote since
/// the recipient opened, of which step is begun. `None` when it never opened.
///
/// # Errors
/// When that cannot be told.
pub(crate) async fn lost(scene: &Scene) -> Result<Option<u64>> {
    let Some(state) = scene.made().await? else {
        if scene.is_gone(scene.first()) {
            bail!("{} is gone, and there is no cluster state", scene.first().zone());
        }
        return scene.never_opened().await.map(|()| None);
    };
    let primary = scene.primary_of(&state)?;
    if scene.is_gone(primary) {
        bail!("{} is gone", primary.zone());
    }
    let number = |text: &str| text.parse::<u64>().context("no number of a transaction");
    let opened: Value = scene.outcome(OPEN_RECIPIENT)?;
    let opened = number(opened["nextTransaction"].as_str().unwrap_or_default())?;
    let now = number(&primary.sql(NEXT_TRANSACTION).await?)?;
    Ok(Some(now.checked_sub(opened).context("its primary counts them anew")?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::{Generation, Lsn};

    fn control(timeline: u32, checkpoint: u64, state: &str) -> Control {
        Control {
            system_identifier: "7".to_owned(),
            timeline,
            checkpoint: Lsn::new(checkpoint),
            state: state.to_owned(),
        }
    }

    #[test]
    fn only_what_was_proven_and_is_in_recovery_never_served() {
        let proven = control(1, 100, "in archive recovery");
        for (timeline, checkpoint, state, never) in [
            (1, 100, "in archive recovery", true),
            (1, 100, "shut down in recovery", true),
            // What came by snapshots, as its donor ended.
            (1, 100, "shut down", true),
            // Promoted, and ended before its first checkpoint.
            (1, 100, "in production", false),
            (1, 100, "in crash recovery", false),
            (1, 101, "shut down", false),
            (2, 100, "shut down", false),
        ] {
            let now = control(timeline, checkpoint, state);
            assert_eq!(never_served(&proven, &now), never, "{now:?}");
        }
        let other = Control { system_identifier: "8".to_owned(), ..proven.clone() };
        assert!(!never_served(&proven, &other));
    }

    #[test]
    fn the_state_of_the_opening_is_told_from_every_later_one() {
        let peer = |number: u8| PeerIdent::new(&format!("10.0.0.{number}"), 5432, 12345, "zone");
        let (first, second) = (peer(1), peer(2));
        let proven = control(1, 100, "shut down in recovery");
        let declared = ClusterState {
            generation: Generation(4),
            primary: first.clone(),
            sync: None,
            asyncs: Vec::new(),
            deposed: Vec::new(),
            init_wal: proven.checkpoint,
            init_timeline: Some(proven.timeline),
            primary_timeline: Some(2),
            freeze: None,
            one_node_write_mode: Some(true),
            promote: None,
            extra: serde_json::Map::new(),
        };
        assert!(is_as_declared(&declared, &first, &proven));
        let grown = ClusterState {
            sync: Some(second.clone()),
            one_node_write_mode: None,
            ..declared.clone()
        };
        let later = [
            // The sync took over, and holds what was acknowledged, but is not promoted yet.
            ClusterState { primary: second.clone(), sync: Some(first.clone()), ..grown.clone() },
            ClusterState { primary: second, ..declared.clone() },
            ClusterState { one_node_write_mode: None, ..declared.clone() },
            ClusterState { init_wal: Lsn::new(101), ..declared.clone() },
            ClusterState { init_timeline: Some(2), ..declared },
            grown,
        ];
        for state in later {
            assert!(!is_as_declared(&state, &first, &proven), "{state:?}");
        }
    }
}
