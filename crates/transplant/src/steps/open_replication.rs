//! On the donor: the role, the slot and the lines of `pg_hba.conf` by which the recipient streams from it.

use super::Scene;
use crate::{
    Facts,
    donor::{literal, with_block, without_block},
    manatee,
};
use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use saga::{Check, Outcome, Step, StepError, Tell, Undo};
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;

/// The comment by which a role is known as made by this transplant, as a literal. An earlier one's came with the
/// database, and is the donor's own by now.
fn made(id: &str) -> String {
    literal(&format!("made by manatee transplant {id}"))
}

/// What `peer secret` prints.
#[derive(Deserialize)]
pub(super) struct Secret {
    pub password: String,
}

pub(super) struct OpenReplication(pub Arc<Scene>);

fn quoted(role: &str) -> String {
    format!("\"{}\"", role.replace('"', "\"\""))
}

/// Makes the role by which the shard streams, if it is not there, for the transplant of this id; the password
/// is given as a literal.
pub(crate) fn make_role_sql(role: &str, password: &str, id: &str) -> String {
    let (name, quoted, made) = (literal(role), quoted(role), made(id));
    format!(
        "do $do$ begin if not exists (select from pg_roles where rolname = {name}) then \
         create role {quoted} with login replication password {password}; \
         comment on role {quoted} is {made}; end if; end $do$"
    )
}

/// Makes a slot, which is given as a literal, if it is not there.
pub(crate) fn make_slot_sql(slot: &str) -> String {
    format!(
        "select pg_create_physical_replication_slot({slot}, true) where not exists \
         (select from pg_replication_slots where slot_name = {slot})"
    )
}

/// The lines of `pg_hba.conf` by which the peers may stream.
pub(crate) fn hba_lines(facts: &Facts) -> String {
    let lines = facts.peers.iter().map(|peer| {
        let ip = &peer.peer.ip;
        let bits = if ip.contains(':') { 128 } else { 32 };
        format!(
            "host replication {} {ip}/{bits} scram-sha-256\n",
            quoted(&facts.peers[0].replication_user)
        )
    });
    lines.collect()
}

/// Drops the slot, which is given as a literal, and the role if the transplant of this id made it.
pub(crate) fn drop_sql(role: &str, slot: &str, id: &str) -> String {
    let (name, quoted, made) = (literal(role), quoted(role), made(id));
    format!(
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
         and shobj_description(oid, 'pg_authid') = {made}) then \
         drop owned by {quoted}; drop role {quoted}; end if; end $do$"
    )
}

impl OpenReplication {
    async fn open(&self) -> Result<()> {
        let (donor, first) = (&self.0.donor, self.0.first());
        let Secret { password } = first.verb("secret", &[]).await?;
        let (role, slot) = (&first.facts.replication_user, literal(self.0.slot()));
        donor.sql(&make_role_sql(role, &literal(&password), &self.0.facts.id)).await?;
        if self.0.by_snapshots() {
            // Nobody streams from the donor: a slot would keep all its WAL.
            return Ok(());
        }
        donor.sql(&make_slot_sql(&slot)).await?;
        let lines = hba_lines(&self.0.facts);
        self.rewrite(|text| with_block(text, &lines)).await
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
        donor.sql(&drop_sql(role, &slot, &self.0.facts.id)).await?;
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
