//! Proof that a configuration is in force. SIGHUP only asks for a reload; each process reads the
//! files when it comes to it. What is proven here, and how:
//!
//! *The postmaster has read the files.* It reads them before it passes SIGHUP on to its children,
//! and a session inherits its values. So when a fresh session sees our nonce, the postmaster has
//! read these files and every older process has been sent its SIGHUP.
//!
//! *No walsender counts that should not.* Waiting commits are released by walsenders whose
//! `sync_priority` in shared memory is not zero. A walsender sets it when it starts streaming and
//! when it has read the files again, in its own loop, and releases only from that loop: once the
//! view shows zero, it releases nobody. One that is not shown yet had its SIGHUP before our
//! session was forked, or was forked after it; either way it reads the new names before it reads
//! the first answer of its standby, which is what releases.
//!
//! *Commits wait at all.* Backends wait only once the checkpointer has set a flag in shared memory;
//! until then they acknowledge alone, whatever the names. It sets the flag before its main loop,
//! from the names at its start, and again when it has read new ones. So either the server was
//! started with names, and its checkpointer has been seen inside its main loop
//! ([`Inner::checkpointer_runs`]); or a commit of ours, at a time when nobody counts, has been seen
//! waiting ([`Inner::canary`]). The flag falls only with empty names or a restart of the
//! processes, which we allow only by ourselves (`restart_after_crash = off`).

use super::{
    Inner, POLL, PgCause, guard,
    render::{self, Files},
    session::{COMMIT, Session, literal, parse, within},
};
use cluster::{Counts, Lsn, Millis};
use rustix::process::{Pid, Signal, kill_process};
use std::{collections::BTreeSet, time::Duration};

impl Inner {
    /// Writes the files, asks for a reload if need be, and waits until the server has read them.
    pub async fn reload(&self, files: &Files) -> Result<Session, PgCause> {
        let changed = self.write_files(files)?;
        let session = self.first_session().await?;
        let removed = self.reset_altered(&session).await?;
        if changed || removed || !self.has_read(&session, files).await? {
            session.value("select pg_reload_conf()").await?;
        }
        drop(session);
        self.confirm(files).await
    }

    /// Waits until the server has read these files, and checks that nothing overrides them.
    pub async fn confirm(&self, files: &Files) -> Result<Session, PgCause> {
        let limit = self.settings.query_timeout;
        let read = async {
            loop {
                let session = self.first_session().await?;
                if self.has_read(&session, files).await? {
                    return Ok::<_, PgCause>(session);
                }
                tokio::time::sleep(POLL).await;
            }
        };
        let session = match within(limit, "a reload of the configuration", read).await {
            Ok(session) => session?,
            // The postmaster says in its view of the files why it did not take them.
            Err(timeout) => {
                let session = self.session().await?;
                self.check_files(&session, files).await?;
                return Err(timeout);
            }
        };
        self.check_files(&session, files).await?;
        Ok(session)
    }

    async fn has_read(&self, session: &Session, files: &Files) -> Result<bool, PgCause> {
        let sql = format!("select current_setting('{}', true)", render::NONCE);
        Ok(session.value(&sql).await? == files.nonce)
    }

    /// Takes what ALTER SYSTEM said of our settings back; whether there was anything.
    async fn reset_altered(&self, session: &Session) -> Result<bool, PgCause> {
        let altered = session
            .rows(
                "select distinct name, setting from pg_file_settings \
                 where sourcefile like '%/postgresql.auto.conf' and name is not null",
            )
            .await?;
        let forbidden = |row: &Vec<Option<String>>| {
            let field = |index: usize| row.get(index)?.as_deref();
            let name = field(0)?;
            guard::is_forbidden(name, field(1).unwrap_or_default()).then(|| name.to_owned())
        };
        let ours: BTreeSet<String> = altered.iter().filter_map(forbidden).collect();
        if ours.is_empty() {
            return Ok(false);
        }
        tracing::warn!(settings = ?ours, "ALTER SYSTEM RESET: the shard rests on them");
        if self.bin.major >= 17 {
            // Forbidden to everybody, us included; the file is ours to write then.
            let path = self.data.join("postgresql.auto.conf");
            if let Some((text, _)) =
                super::files::read(&path)?.and_then(|text| guard::stripped(&text))
            {
                super::files::write(&path, &text, self.user.as_ref())?;
            }
            return Ok(true);
        }
        for name in &ours {
            session.rows(&format!("alter system reset {name}")).await?;
        }
        Ok(true)
    }

    /// Checks that the server could read its files, and that what our safety rests on is as ours.
    async fn check_files(&self, session: &Session, files: &Files) -> Result<(), PgCause> {
        let errors = session
            .rows(
                "select coalesce(name, sourcefile) || ': ' || error from pg_file_settings f \
                 where error is not null and not exists \
                   (select from pg_settings s where s.name = f.name and s.pending_restart) \
                 union all select 'line ' || line_number || ' of the hba file: ' || error \
                 from pg_hba_file_rules where error is not null",
            )
            .await?;
        if let Some(error) = errors.into_iter().flatten().flatten().next() {
            return Err(PgCause::Rejected(error));
        }
        let overridden = session
            .rows(
                "select name, setting, sourcefile from (select distinct on (name) name, setting, \
                 sourcefile from pg_file_settings order by name, seqno desc) last \
                 where sourcefile not like '%/manatee.conf'",
            )
            .await?;
        for row in overridden {
            let [name, setting, from] = row.as_slice() else {
                continue;
            };
            let (name, found) =
                (name.clone().unwrap_or_default(), setting.clone().unwrap_or_default());
            if guard::is_forbidden(&name, &found) {
                return Err(PgCause::Overridden {
                    setting: name,
                    found,
                    wanted: format!(
                        "manatee.conf's, not that of {}",
                        from.as_deref().unwrap_or("?")
                    ),
                });
            }
        }
        // Also when it was given on the command line, which no file changes.
        let commit = self.plain_session().await?.value(COMMIT).await?;
        if guard::weakens("synchronous_commit", &commit) {
            return Err(PgCause::Overridden {
                setting: "synchronous_commit".to_owned(),
                found: commit,
                wanted: "on".to_owned(),
            });
        }
        let found = session.value("select current_setting('synchronous_standby_names')").await?;
        if found == files.names {
            return Ok(());
        }
        Err(PgCause::Overridden {
            setting: "synchronous_standby_names".to_owned(),
            found,
            wanted: files.names.clone(),
        })
    }

    /// Whether a setting of ours or of the operator waits for a restart.
    pub async fn needs_restart(&self, session: &Session) -> Result<bool, PgCause> {
        let waiting = session.rows("select name from pg_settings where pending_restart").await?;
        let mut names = waiting.iter().filter_map(|row| row.first()?.as_deref());
        let rendered = |name: &str| {
            let operators = self.settings.user_settings.keys();
            guard::is_guarded(name)
                || ["max_wal_senders", "max_replication_slots", "wal_level"].contains(&name)
                || operators.into_iter().any(|key| key.eq_ignore_ascii_case(name))
        };
        Ok(names.any(rendered))
    }

    /// Waits until no walsender counts but that of `counts`.
    pub async fn senders_agree(&self, session: &Session, counts: &Counts) -> Result<(), PgCause> {
        let other = match counts {
            // PostgreSQL compares names without regard to case.
            Counts::Sync(peer) => {
                format!("and lower(application_name) <> lower({})", literal(peer.as_str()))
            }
            Counts::Nobody | Counts::Alone => String::new(),
        };
        let sql = format!(
            "select not exists (select from pg_stat_replication where sync_priority > 0 {other})"
        );
        let agree = async {
            while session.value(&sql).await? != "t" {
                tokio::time::sleep(POLL).await;
            }
            Ok(())
        };
        let what = "the walsenders' taking of synchronous_standby_names";
        within(self.settings.query_timeout, what, agree).await?
    }

    /// Waits until the checkpointer is seen in its main loop: it has taken the names that the
    /// server was started with.
    pub async fn checkpointer_runs(&self, session: &Session) -> Result<(), PgCause> {
        let sql = "select exists (select from pg_stat_activity where backend_type = 'checkpointer' \
                   and wait_event in ('CheckpointerMain', 'CheckpointWriteDelay'))";
        let runs = async {
            while session.value(sql).await? != "t" {
                tokio::time::sleep(POLL).await;
            }
            Ok(())
        };
        within(self.settings.start_timeout, "the checkpointer's first round", runs).await?
    }

    /// Waits until a commit of our own is seen waiting, while nobody counts. It writes one WAL
    /// record that means nothing.
    pub async fn canary(&self, session: &Session) -> Result<(), PgCause> {
        let attempts = async {
            loop {
                if self.commit_waits(session).await? {
                    return Ok(());
                }
                tokio::time::sleep(POLL).await;
            }
        };
        within(self.settings.query_timeout, "a commit's waiting for a standby", attempts).await?
    }

    async fn commit_waits(&self, session: &Session) -> Result<bool, PgCause> {
        let canary = self.session_with(Some("on"), Millis(0)).await?.patient();
        let pid = canary.value("select pg_backend_pid()").await?;
        let waits = format!(
            "select exists (select from pg_stat_activity where pid = {pid} and wait_event = 'SyncRep')"
        );
        let commit = canary.value("select pg_logical_emit_message(true, 'manatee', 'canary')");
        tokio::pin!(commit);
        loop {
            tokio::select! {
                biased;
                done = &mut commit => return done.map(|_| false),
                () = tokio::time::sleep(POLL) => {}
            }
            if session.value(&waits).await? == "t" {
                session.value(&format!("select pg_cancel_backend({pid})")).await?;
                // The commit stands; only its waiting is over.
                commit.await?;
                return Ok(true);
            }
        }
    }

    /// Waits until a detached standby has in place all that it ever received, and gives the end of
    /// it: the end of the last complete record on its disk, replayed.
    ///
    /// `pg_last_wal_receive_lsn()` would not do: it is null after a restart although the WAL is
    /// there, and it may lie in the middle of a record, which no commit was acknowledged for and
    /// which a promotion discards. Replay has reached the end when there is no WAL receiver any
    /// more and the startup process waits to look for more WAL — having looked, which is certain
    /// when nothing was received beyond the replayed. With half a record at the end that cannot be
    /// seen, and the startup process must be seen idle for some more of its rounds; that it is no more
    /// than that must show, as WAL that is damaged is not replayed either.
    pub async fn drain(&self, session: &Session) -> Result<Lsn, PgCause> {
        const STATE: &str = "select \
            (select pid from pg_stat_activity where backend_type = 'walreceiver'), \
            (select wait_event from pg_stat_activity where backend_type = 'startup'), \
            pg_last_wal_replay_lsn(), pg_last_wal_receive_lsn(), pg_is_wal_replay_paused()";
        /// Ten rounds of the startup process of a detached standby.
        const IDLE: Millis = Millis(1000);
        let mut replayed = None;
        let mut moved = crate::clock::now();
        let mut idle_since = None;
        loop {
            let row = session.row(STATE).await?;
            let field = |index: usize| row.get(index).and_then(Option::as_deref);
            if field(4) == Some("t") {
                session.value("select pg_wal_replay_resume()").await?;
            }
            let replay: Option<Lsn> = parse(field(2))?;
            let received: Option<Lsn> = parse(field(3))?;
            let now = crate::clock::now();
            if replay != replayed {
                (replayed, moved, idle_since) = (replay, now, None);
            }
            let receiver: Option<u32> = parse(field(0))?;
            if let Some(pid) = receiver {
                // The startup process would stop it, but only when it has replayed what is there;
                // until then it would go on receiving and acknowledging.
                terminate(pid)?;
            }
            if receiver.is_some() || field(1) != Some("RecoveryRetrieveRetryInterval") {
                idle_since = None;
            } else if let Some(replay) = replay {
                let since = *idle_since.get_or_insert(now);
                let complete = received.is_none_or(|received| replay >= received);
                // Seen twice, so that the receiver was gone before the startup process was idle.
                if complete && since != now {
                    return Ok(replay);
                }
                if now - since >= IDLE {
                    if let Some(received) = received.filter(|received| *received > replay) {
                        self.is_half_a_record(session, replay, received).await?;
                    }
                    return Ok(replay);
                }
            }
            if now - moved > self.settings.start_timeout {
                return Err(PgCause::Timeout {
                    what: format!("the replay of all WAL received (it stands at {replay:?})"),
                    limit: self.settings.start_timeout,
                });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Promotes a standby and waits until it is a primary. PostgreSQL's own waiting looks ten times a
    /// second only, and clients wait for this.
    pub async fn promote(&self) -> Result<(), PgCause> {
        let limit = self.settings.start_timeout;
        let session = self.session_with(Some("local"), Millis(0)).await?.patient();
        if session.is("pg_is_wal_replay_paused()").await? {
            session.value("select pg_wal_replay_resume()").await?;
        }
        let promoted = async {
            session.value("select pg_promote(false)").await?;
            while session.is("pg_is_in_recovery()").await? {
                tokio::time::sleep(POLL).await;
            }
            Ok(())
        };
        within(limit, "a promotion", promoted).await?
    }
}

fn terminate(pid: u32) -> Result<(), PgCause> {
    let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Ok(());
    };
    match kill_process(raw, Signal::TERM) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(PgCause::Process { pid, source: error.into() }),
    }
}

impl Session {
    /// With no limit of its own: the caller has one.
    fn patient(mut self) -> Session {
        self.set_limit(Millis(Duration::MAX.as_secs() / 4000));
        self
    }
}
