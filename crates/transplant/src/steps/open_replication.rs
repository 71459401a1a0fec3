//! On the donor: the role, the slot and the lines of `pg_hba.conf` by which the recipient streams from it.

use super::Scene;
use crate::donor::{literal, with_block, without_block};
use crate::manatee;
use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use saga::{Check, Outcome, Step, StepError, Tell, Undo};
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;

/// By this comment a role is known as made here.
const MADE: &str = "made by manatee transplant";

/// What `peer secret` prints.
#[derive(Deserialize)]
pub(super) struct Secret {
    pub password: String,
}

pub(super) struct OpenReplication(pub Arc<Scene>);

impl OpenReplication {
    async fn open(&self) -> Result<()> {
        let (donor, first) = (&self.0.donor, self.0.first());
        let Secret { password } = first.verb("secret", &[]).await?;
        let (role, slot) = (&first.facts.replication_user, literal(self.0.slot()));
        let name = literal(role);
        let quoted = format!("\"{}\"", role.replace('"', "\"\""));
        donor
            .sql(&format!(
                "do $do$ begin if not exists (select from pg_roles where rolname = {name}) then \
                 create role {quoted} with login replication password {}; \
                 comment on role {quoted} is '{MADE}'; end if; end $do$",
                literal(&password),
            ))
            .await?;
        if self.0.by_snapshots() {
            // Nobody streams from the donor: a slot would keep all its WAL.
            return Ok(());
        }
        donor
            .sql(&format!(
                "select pg_create_physical_replication_slot({slot}, true) where not exists \
                 (select from pg_replication_slots where slot_name = {slot})"
            ))
            .await?;
        let lines = self.0.peers.iter().map(|peer| {
            let ip = &peer.facts.peer.ip;
            let bits = if ip.contains(':') { 128 } else { 32 };
            format!("host replication {quoted} {ip}/{bits} scram-sha-256\n")
        });
        self.rewrite(|text| with_block(text, &lines.collect::<String>())).await
    }

    async fn rewrite(&self, change: impl FnOnce(&str) -> String) -> Result<()> {
        let (donor, path) = (&self.0.donor, &self.0.facts.donor.hba_file);
        if manatee::is_rendered(path) {
            // It lets in whoever has the role, and what is written there is lost.
            return Ok(());
        }
        let text = donor.read(path).await?.with_context(|| format!("there is no {path}"))?;
        let changed = change(&text);
        if changed != text {
            donor.write(path, &changed).await?;
        }
        donor.sql("select pg_reload_conf()").await?;
        let wrong =
            donor.sql("select line_number, error from pg_hba_file_rules where error is not null");
        let wrong = wrong.await?;
        if !wrong.is_empty() {
            bail!("{path} has lines that the server does not take: {wrong}");
        }
        Ok(())
    }

    async fn close(&self, tell: &dyn Tell) -> Result<()> {
        let (donor, first) = (&self.0.donor, self.0.first());
        if let Some(planned) = &self.0.facts.shard {
            let now = manatee::look(&donor.config).await?;
            if manatee::failover(donor.config.kind, planned, &now, true).is_some() {
                // It is no primary any more: what it has that is not the new one's goes when it is rebuilt.
                let slot = self.0.slot();
                tell.tell(&format!("the donor has failed over: slot {slot} is left where it was"));
                return Ok(());
            }
        }
        let slot = literal(self.0.slot());
        let role = &first.facts.replication_user;
        if donor.sql("select pg_is_in_recovery()").await? == "t" {
            bail!("the donor is a standby now: make it the primary again, then roll back");
        }
        let (name, quoted) = (literal(role), format!("\"{}\"", role.replace('"', "\"\"")));
        donor
            .sql(&format!(
                // Its synchronous standby may be gone.
                "set synchronous_commit = local; \
                 select pg_terminate_backend(active_pid) from pg_replication_slots \
                 where slot_name = {slot} and active; \
                 do $do$ begin for tenth in 1..100 loop exit when not exists \
                 (select from pg_replication_slots where slot_name = {slot} and active); \
                 perform pg_sleep(0.1); end loop; end $do$; \
                 select pg_drop_replication_slot(slot_name) from pg_replication_slots \
                 where slot_name = {slot}; \
                 do $do$ begin if exists (select from pg_roles where rolname = {name} \
                 and shobj_description(oid, 'pg_authid') = '{MADE}') then \
                 drop owned by {quoted}; drop role {quoted}; end if; end $do$"
            ))
            .await?;
        self.rewrite(without_block).await
    }
}

#[async_trait(?Send)]
impl Step for OpenReplication {
    async fn check(&self) -> Result<Check, StepError> {
        Ok(Check::Ready)
    }

    async fn apply(&self, _: &dyn Tell) -> Result<(), StepError> {
        Ok(self.open().await?)
    }

    async fn verify(&self) -> Result<Outcome, StepError> {
        let (donor, first) = (&self.0.donor, self.0.first());
        let role = literal(&first.facts.replication_user);
        let ready = donor
            .sql(&format!(
                "select exists (select from pg_roles where rolname = {role} and rolreplication) \
                 and ({} or exists (select from pg_replication_slots where slot_name = {}))",
                self.0.by_snapshots(),
                literal(self.0.slot())
            ))
            .await?;
        if ready != "t" {
            return Err(format!("the donor has no role {role} for replication, or no slot").into());
        }
        Ok(json!({ "slot": self.0.slot() }))
    }

    async fn undo(&self, _: Undo, tell: &dyn Tell) -> Result<(), StepError> {
        Ok(self.close(tell).await?)
    }
}
