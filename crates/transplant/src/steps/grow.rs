//! The other peers join, and the shard leaves one-node-write mode by itself.

use super::{Scene, open_recipient::freeze, until};
use crate::recipient::Recipient;
use adapters::service::Order;
use anyhow::Result;
use async_trait::async_trait;
use saga::{Check, Outcome, Step, StepError, Tell, Undo};
use serde_json::{Value, json};
use std::sync::Arc;

pub(super) struct Grow(pub Arc<Scene>);

impl Grow {
    /// Copies the database from the primary to a peer whose sitter does not run yet.
    async fn seed(&self, peer: &Recipient, tell: &dyn Tell) -> Result<()> {
        let from = &self.0.serving().await?.facts;
        let (port, expected) = (from.port.to_string(), &self.0.facts.donor.system_identifier);
        let args = ["--host", &from.peer.ip, "--port", &port, "--system-identifier", expected];
        let _: Value = peer.long_verb("receive", &args, tell).await?;
        Ok(())
    }

    /// What is missing until the shard is whole.
    async fn missing(&self) -> Result<Option<String>> {
        let Some(state) = self.0.state().await? else {
            return Ok(Some("the shard has no cluster state".to_owned()));
        };
        let lacks = self.0.peers.iter().find(|peer| !state.names(&peer.facts.peer.id));
        if let Some(peer) = lacks {
            return Ok(Some(format!("{} is not in the chain yet", peer.zone())));
        }
        if state.sync.is_none() {
            return Ok(Some("there is no sync yet".to_owned()));
        }
        for peer in &self.0.peers {
            let state = match peer
                .sql(
                    "select case when pg_is_in_recovery() then \
                (select count(*) from pg_stat_wal_receiver where status = 'streaming') else 1 end",
                )
                .await
            {
                Ok(streams) if streams == "1" => continue,
                Ok(_) => "does not stream yet".to_owned(),
                Err(error) => format!("{error:#}"),
            };
            return Ok(Some(format!("{}: {state}", peer.zone())));
        }
        Ok(None)
    }
}

#[async_trait(?Send)]
impl Step for Grow {
    async fn check(&self) -> Result<Check, StepError> {
        Ok(Check::Ready)
    }

    async fn apply(&self, tell: &dyn Tell) -> Result<(), StepError> {
        let seconds = self.0.facts.inventory.limits.catch_up_seconds;
        // One after the other: they stand in the chain in the order in which they come.
        for peer in &self.0.peers[1..] {
            let frozen = self.0.state().await?.is_some_and(|state| state.is_frozen());
            if frozen && !peer.sitter_runs().await? {
                // It becomes the sync, and nothing is acknowledged until it streams: what it can have
                // before, it has.
                self.seed(peer, tell).await?;
            }
            peer.tell(Order::Enable).await?;
            peer.tell(Order::Start).await?;
            if frozen {
                self.0.serving().await?.adm(&["unfreeze"]).await?;
            }
            until(seconds, tell, async || {
                let state = self.0.state().await?;
                Ok(if state.is_some_and(|state| state.names(&peer.facts.peer.id)) {
                    Ok(())
                } else {
                    Err(format!("{} is not in the chain yet", peer.zone()))
                })
            })
            .await?;
        }
        until(seconds, tell, async || Ok(self.missing().await?.map_or(Ok(()), Err))).await?;
        Ok(())
    }

    async fn verify(&self) -> Result<Outcome, StepError> {
        if let Some(missing) = self.missing().await? {
            return Err(missing.into());
        }
        let state = self.0.state().await?;
        Ok(json!({ "generation": state.map(|state| state.generation) }))
    }

    async fn undo(&self, how: Undo, _: &dyn Tell) -> Result<(), StepError> {
        let primary = self.0.opened(how).await?;
        // Frozen, nobody could take over in its place.
        if let Some(primary) = primary.filter(|primary| self.0.is_gone(primary))
            && !how.discard_writes
        {
            return Err(self.0.without_primary(primary.zone()).into());
        }
        Ok(freeze(&self.0).await?)
    }
}
