//! From any state to one configuration.

use super::{
    Applied, Inner, PgCause, StopMode,
    files::{self, AppliedRecord, Marker, Served},
    guard,
    render::{self, Files, Shape},
    server::Server,
    session::{Session, parse},
    timelines::drop_reservations,
};
use cluster::{Counts, Gate, Lsn, PeerId, PgConfig};
use std::sync::{Arc, PoisonError};

/// A primary's configuration.
struct Primary<'a> {
    /// The generation that it is for.
    generation: u32,
    /// The timeline that a promotion for it begins, where one is known to have been needed.
    timeline: Option<u32>,
    /// The position that a promotion must have come to.
    init_wal: Lsn,
    counts: &'a Counts,
    gate: Gate,
    downstream: &'a [PeerId],
}

impl Primary<'_> {
    fn shape(&self) -> Shape {
        Shape::Primary { names: render::names(self.counts), read_only: self.gate == Gate::Closed }
    }

    /// The same while nobody counts.
    fn quiesced(&self) -> Shape {
        Shape::Primary {
            names: render::names(&Counts::Nobody),
            read_only: self.gate == Gate::Closed,
        }
    }
}

impl Inner {
    /// Brings the server to this configuration.
    pub async fn bring(&self, config: &PgConfig, epoch: u64) -> Result<Applied, PgCause> {
        self.check_database()?;
        match config {
            PgConfig::Primary { generation, timeline, init_wal, counts, gate, downstream } => {
                if let Counts::Sync(peer) = counts {
                    guard::check_name(peer)?;
                }
                let generation = u32::try_from(generation.0).unwrap_or(u32::MAX);
                let (timeline, init_wal, gate) = (*timeline, *init_wal, *gate);
                let primary = Primary { generation, timeline, init_wal, counts, gate, downstream };
                self.be_primary(config, &primary, epoch).await
            }
            PgConfig::Standby { upstream, downstream, .. } => {
                let upstream = match upstream {
                    Some(peer) => Some(peer.pg_address().map_err(|error| {
                        PgCause::settings(error.to_string(), "correct that peer's registration")
                    })?),
                    None => None,
                };
                let shape = Shape::Standby { upstream };
                self.be_standby(config, &shape, downstream, epoch).await
            }
        }
    }

    /// That there is a database, and of our version.
    fn check_database(&self) -> Result<(), PgCause> {
        let Some(version) = files::read(&self.data.join("PG_VERSION"))? else {
            return Err(PgCause::NoDatabase);
        };
        if version.trim().parse() == Ok(self.bin.major) {
            return Ok(());
        }
        Err(PgCause::ForeignVersion {
            found: version.trim().to_owned(),
            binaries: self.bin.major,
            bin: self.bin.directory().to_owned(),
        })
    }

    fn render(&self, shape: &Shape, clients: bool) -> Files {
        let data = self.data.display().to_string();
        render::files(&self.settings, &data, self.bin.major, shape, clients)
    }

    /// The running server, ready.
    async fn running(&self) -> Result<Option<Arc<Server>>, PgCause> {
        let Some(server) = self.find()? else {
            return Ok(None);
        };
        self.ready(&server, u64::MAX).await?;
        Ok(Some(server))
    }

    /// Starts the server with clients kept out, and proves that commits wait if they are to.
    async fn start_closed(&self, shape: &Shape, epoch: u64) -> Result<Arc<Server>, PgCause> {
        let files = self.render(shape, false);
        let server = self.start(&files, epoch).await?;
        let session = self.confirm(&files).await?;
        let waits = !files.names.is_empty();
        if waits {
            self.checkpointer_runs(&session).await?;
        }
        self.note(&server, None, waits, &files.names)?;
        Ok(server)
    }

    /// Brings a running server to this shape by a reload, clients let in.
    async fn reshape(&self, server: &Server, shape: &Shape) -> Result<Session, PgCause> {
        let files = self.render(shape, true);
        let before = self.record_of(server)?;
        let waits = before.as_ref().is_some_and(|record| record.waits);
        // Before the names can be empty, nothing must say that commits wait.
        let settled = before.as_ref().is_some_and(|record| record.names == files.names);
        if !settled {
            self.note(server, None, waits && !files.names.is_empty(), &files.names)?;
        }
        self.reload(&files).await
    }

    async fn be_primary(
        &self,
        config: &PgConfig,
        primary: &Primary<'_>,
        epoch: u64,
    ) -> Result<Applied, PgCause> {
        let mut server = match self.running().await? {
            Some(server) => {
                self.note_leaving(&server, config)?;
                server
            }
            None if self.is_to_be_promoted(primary).await? => {
                // Only a promotion begins a timeline of its own. Without the file the server would
                // go on writing the one that another peer may be writing.
                let detached = Shape::Standby { upstream: None };
                self.start_as_standby(&detached, epoch).await?
            }
            None => self.start_closed(&primary.shape(), epoch).await?,
        };
        let promoted = self.first_session().await?.is("pg_is_in_recovery()").await?;
        if promoted {
            self.has_come_to(primary.init_wal).await?;
            server = self.promote_with_names(server, primary, epoch).await?;
        }
        // Before anybody counts, or is let in.
        let timeline = self.fill_timelines().await?;
        if let Some(needed) = primary.timeline.filter(|needed| timeline < *needed) {
            self.halt(StopMode::Fast).await?;
            return Err(PgCause::OldTimeline { timeline, needed });
        }
        self.count(&server, primary).await?;
        // Clients may have been kept out until here: it must be on disk that this database may
        // hold their data before they can write any.
        self.mark_established()?;
        let mut session = self.reshape(&server, &primary.shape()).await?;
        if self.needs_restart(&session).await? {
            drop(session);
            self.halt(StopMode::Fast).await?;
            server = self.start_closed(&primary.shape(), epoch).await?;
            session = self.reshape(&server, &primary.shape()).await?;
        }
        self.senders_agree(&session, primary.counts).await?;
        self.ensure_roles(&session).await?;
        self.set_slots(&server, &session, primary.downstream).await?;
        // An acknowledged commit is flushed here first, and after the proofs above no commit is
        // acknowledged that the old names would have let through. So no such commit lies beyond.
        let position = self.lsn(&session, "pg_current_wal_flush_lsn()").await?;
        let waits = *primary.counts != Counts::Alone;
        self.note(&server, Some(config), waits, &render::names(primary.counts))?;
        if promoted {
            self.checkpoint_soon().await?;
        }
        Ok(Applied { position, timeline })
    }

    /// Whether the database, whose server does not run, has still to be promoted: PostgreSQL removes
    /// `standby.signal` before the new timeline is in the control file, and goes on along the old one when it ends
    /// in between. Takes away what such an attempt has left: nothing was written on its timeline, and the next
    /// attempt is to take the same number.
    async fn is_to_be_promoted(&self, primary: &Primary<'_>) -> Result<bool, PgCause> {
        let standby = self.data.join(files::STANDBY_SIGNAL).exists();
        let Some(needed) = primary.timeline else { return Ok(standby) };
        let facts = self.facts(&self.data).await?;
        let is_promoted = facts.timeline.max(facts.recovered_at_least.0) >= needed;
        if !standby && !is_promoted {
            tracing::warn!(
                needed,
                "the promotion to this timeline was cut off: promoting it again"
            );
        }
        if !is_promoted {
            self.forget_timeline(needed)?;
        }
        Ok(standby || !is_promoted)
    }

    /// That the running standby has all that its generation began with (rule D3), also when it was started again
    /// since that was found.
    async fn has_come_to(&self, needed: Lsn) -> Result<(), PgCause> {
        let session = self.first_session().await?;
        let replayed = "coalesce(pg_last_wal_replay_lsn(), '0/0')";
        if self.lsn(&session, replayed).await? >= needed {
            return Ok(());
        }
        drop(session);
        let detached = self.render(&Shape::Standby { upstream: None }, self.clients_are_in()?);
        let session = self.reload(&detached).await?;
        let position = self.drain(&session).await?;
        if position < needed {
            return Err(PgCause::Behind { position, needed });
        }
        Ok(())
    }

    /// Promotes the running standby; the new names are in force before, and commits wait from the
    /// first one on.
    async fn promote_with_names(
        &self,
        mut server: Arc<Server>,
        primary: &Primary<'_>,
        epoch: u64,
    ) -> Result<Arc<Server>, PgCause> {
        let waits = self.record_of(&server)?.is_some_and(|record| record.waits);
        if !waits && *primary.counts != Counts::Alone {
            // A standby that we did not start, or started with no names: a commit that shows that
            // it waits can be had only after the promotion, when others could commit as well.
            self.halt(StopMode::Fast).await?;
            server = self.start_as_standby(&Shape::Standby { upstream: None }, epoch).await?;
        }
        // Clients are not let in yet where they have been kept out.
        let clients = self.clients_are_in()?;
        let files = self.render(&primary.shape(), clients);
        self.note(&server, None, !files.names.is_empty(), &files.names)?;
        drop(self.reload(&files).await?);
        self.reserve_timelines(primary.timeline.unwrap_or(primary.generation))?;
        self.promote().await?;
        Ok(server)
    }

    /// Whether the files on disk let clients in.
    fn clients_are_in(&self) -> Result<bool, PgCause> {
        let open = self.render(&Shape::Standby { upstream: None }, true).hba;
        Ok(files::read(&self.data.join(render::HBA))?.as_ref() == Some(&open))
    }

    /// Makes sure that commits wait on a running primary where they are to.
    async fn count(&self, server: &Server, primary: &Primary<'_>) -> Result<(), PgCause> {
        if *primary.counts == Counts::Alone {
            return Ok(());
        }
        if let Some(record) = self.record_of(server)?.filter(|record| record.waits) {
            // With other names in between, nobody knows whether commits still wait.
            let sql = format!("select current_setting('{}')", render::NAMES);
            if self.first_session().await?.value(&sql).await? == record.names {
                return Ok(());
            }
        }
        let clients = self.clients_are_in()?;
        let files = self.render(&primary.quiesced(), clients);
        self.note(server, None, false, &files.names)?;
        let session = self.reload(&files).await?;
        self.senders_agree(&session, &Counts::Nobody).await?;
        self.canary(&session).await?;
        self.note(server, None, true, &files.names)
    }

    async fn be_standby(
        &self,
        config: &PgConfig,
        shape: &Shape,
        downstream: &[PeerId],
        epoch: u64,
    ) -> Result<Applied, PgCause> {
        self.repoint(shape)?;
        let running = match self.running().await? {
            Some(_) if !self.first_session().await?.is("pg_is_in_recovery()").await? => {
                self.halt(StopMode::Fast).await?;
                None
            }
            other => other,
        };
        let mut server = match running {
            Some(server) => {
                self.note_leaving(&server, config)?;
                server
            }
            None => self.start_as_standby(shape, epoch).await?,
        };
        let mut session = self.reshape(&server, shape).await?;
        if self.needs_restart(&session).await? {
            drop(session);
            self.halt(StopMode::Fast).await?;
            server = self.start_as_standby(shape, epoch).await?;
            session = self.reshape(&server, shape).await?;
        }
        let position = if config.is_quiesced() {
            self.drain(&session).await?
        } else {
            let sql = "greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())";
            self.lsn(&session, sql).await?
        };
        self.set_slots(&server, &session, downstream).await?;
        let timeline = self.fill_timelines().await?;
        let waits = self.record_of(&server)?.is_some_and(|record| record.waits);
        self.note(&server, Some(config), waits, &shape.names())?;
        Ok(Applied { position, timeline })
    }

    /// Tells a standby that has not come up yet whom it is to follow now: it may be waiting for what the one
    /// before has not, or for that one itself. Nothing else of its configuration changes by this. Each time, as
    /// whoever wrote it there before may have ended before the server was told.
    fn repoint(&self, shape: &Shape) -> Result<(), PgCause> {
        let Some(server) = self.find()? else { return Ok(()) };
        let found = files::read(&self.data.join(render::CONF))?.unwrap_or_default();
        let wanted = self.render(shape, self.clients_are_in()?);
        let names = |conf| render::setting(conf, render::NAMES);
        if self.is_up(&server)? || names(&found) != names(&wanted.conf) {
            return Ok(());
        }
        self.write_files(&wanted)?;
        server.reread()
    }

    async fn start_as_standby(&self, shape: &Shape, epoch: u64) -> Result<Arc<Server>, PgCause> {
        let signal = self.data.join(files::STANDBY_SIGNAL);
        if !signal.exists() {
            files::write(&signal, "", self.user.as_ref())?;
        }
        drop_reservations(&self.data)?;
        self.start_closed(shape, epoch).await
    }

    async fn lsn(&self, session: &Session, expression: &str) -> Result<Lsn, PgCause> {
        let text = session.value(&format!("select {expression}")).await?;
        parse(Some(&text))?.ok_or(PgCause::Answer(text))
    }

    /// What is known of this very server.
    pub fn record_of(&self, server: &Server) -> Result<Option<AppliedRecord>, PgCause> {
        let path = self.settings.home.join(files::APPLIED);
        let record: Option<AppliedRecord> = files::read_json(&path)?;
        Ok(record.filter(|record| record.server == server.id()))
    }

    /// Writes down that the server is no longer as it was configured, until that is noted again.
    pub fn note_change(&self, server: &Server) -> Result<(), PgCause> {
        match self.record_of(server)? {
            Some(record) => self.note(server, None, record.waits, &record.names),
            None => Ok(()),
        }
    }

    /// The same, where it is to be another one.
    fn note_leaving(&self, server: &Server, to: &PgConfig) -> Result<(), PgCause> {
        let before = self.record_of(server)?.and_then(|record| record.config);
        if before.is_some_and(|config| config != *to) { self.note_change(server) } else { Ok(()) }
    }

    fn note(
        &self,
        server: &Server,
        config: Option<&PgConfig>,
        waits: bool,
        names: &str,
    ) -> Result<(), PgCause> {
        let record = AppliedRecord {
            server: server.id(),
            config: config.cloned(),
            waits,
            names: names.to_owned(),
        };
        if self.record_of(server)?.as_ref() != Some(&record) {
            let path = self.settings.home.join(files::APPLIED);
            files::write_json(&path, &record, self.user.as_ref())?;
        }
        *self.names.lock().unwrap_or_else(PoisonError::into_inner) = Some(names.to_owned());
        Ok(())
    }

    fn mark_established(&self) -> Result<(), PgCause> {
        let path = self.settings.dataset.join(files::MARKER);
        let marker = Marker {
            database: Served::Established,
            system_identifier: files::system_identifier(&self.data)?,
        };
        if files::read_json::<Marker>(&path)? != Some(marker) {
            files::write_json(&path, &marker, self.user.as_ref())?;
        }
        Ok(())
    }
}
