//! Replication slots: one for each peer that streams from here.

use super::{
    Inner, POLL, PgCause, render,
    server::Server,
    session::{Session, literal, within},
};
use cluster::PeerId;
use std::collections::BTreeSet;

impl Inner {
    /// Makes the slots of ours exactly those of `downstream`; others' are left alone.
    pub async fn set_slots(
        &self,
        server: &Server,
        session: &Session,
        downstream: &[PeerId],
    ) -> Result<(), PgCause> {
        let wanted: BTreeSet<String> = downstream.iter().map(render::slot_name).collect();
        let rows = session
            .rows(&format!(
                "select slot_name, active, wal_status = 'lost' from pg_replication_slots \
                 where slot_type = 'physical' and not temporary and starts_with(slot_name, {})",
                literal(render::SLOT_PREFIX)
            ))
            .await?;
        let mut present = BTreeSet::new();
        for row in rows {
            let mut fields = row.into_iter();
            let name = fields.next().flatten().unwrap_or_default();
            let active = fields.next().flatten().as_deref() == Some("t");
            let lost = fields.next().flatten().as_deref() == Some("t");
            // A slot that has lost its WAL serves nobody any more, and never will.
            let useless = lost && !active;
            if wanted.contains(&name) && !useless {
                present.insert(name);
                continue;
            }
            if wanted.contains(&name) {
                // Whoever ends before it is made anew leaves it to the next one, who finds this.
                self.note_change(server)?;
            }
            self.drop_slot(session, &name).await?;
        }
        for name in wanted.difference(&present) {
            // WAL is kept from now on, not only from the first connection: the peer may be about
            // to take a base backup.
            let sql =
                format!("select pg_create_physical_replication_slot({}, true)", literal(name));
            session.rows(&sql).await?;
        }
        Ok(())
    }

    /// Drops a slot, and disconnects whoever uses it: it follows another peer now, or is about to.
    async fn drop_slot(&self, session: &Session, name: &str) -> Result<(), PgCause> {
        let name = literal(name);
        let sql = format!(
            "select case when active_pid is null then pg_drop_replication_slot(slot_name)::text \
             else pg_terminate_backend(active_pid)::text end \
             from pg_replication_slots where slot_name = {name}"
        );
        let dropped = async {
            loop {
                match session.rows(&sql).await {
                    Ok(rows) if rows.is_empty() => return Ok(()),
                    Ok(_) => {}
                    // It reconnected in between.
                    Err(PgCause::Query(error))
                        if error.code()
                            == Some(&tokio_postgres::error::SqlState::OBJECT_IN_USE) => {}
                    Err(other) => return Err(other),
                }
                tokio::time::sleep(POLL).await;
            }
        };
        within(self.settings.query_timeout, "the end of a slot's use", dropped).await?
    }
}
