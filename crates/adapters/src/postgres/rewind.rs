//! Making a database that went its own way a standby's of another again, by `pg_rewind`: only what
//! differs is copied.
//!
//! Contract: what is in `data` afterwards is what a base backup of the source would have given, taken
//! at this time, or `data` is not there at all. While it is neither the one nor the other, it has
//! another name, under which nobody starts it.
//!
//! The source is asked first whether its control file knows the timeline that it writes: until the
//! first checkpoint after a promotion it does not, and `pg_rewind` would find that nothing has to be
//! done.
//!
//! A standby's database is refused. Where a primary's ends, its last checkpoint or the WAL after it
//! tells; of a standby's, `pg_rewind` looks at what was replayed alone. WAL that was received beyond that,
//! on a branch that the source is not on, would be overlooked: nothing would seem to have diverged.

use super::{
    Inner, POLL, PgCause, PgError, Postgres,
    connection::to_copy_from,
    files::{self, MARKER, Marker, STANDBY_SIGNAL, Served},
    process,
    rewound::{Account, Rewound},
    session::within,
    timelines::segment_of,
};
use crate::{clock, exec::Exec, storage::SeedSource};
use cluster::{Lsn, Millis};
use std::{
    ffi::OsStr,
    fs::{self, OpenOptions},
    io::Write,
    path::Path,
};
use tokio_postgres::{Client, Config, NoTls};

/// The start of the name of a database while it is being rewound.
const REWINDING: &str = "data.rewinding-";

/// How long the first checkpoint after a promotion may take until it is given up. It is asked for at
/// once (see `checkpoint_soon`), so that this is the time to write out what is in memory.
const CHECKPOINT: Millis = Millis(120_000);

/// How long the source may take to become a primary, or to answer, until it is given up.
const PROMOTION: Millis = Millis(10_000);

/// What `pg_rewind` says when the target's history is a part of the source's.
const NOTHING_TO_DO: &str = "no rewind required";

/// What `pg_rewind` calls on the source; by the second one it is asked, too, which WAL an upstream has.
const FUNCTIONS: [&str; 4] = [
    "pg_ls_dir(text, boolean, boolean)",
    "pg_stat_file(text, boolean)",
    "pg_read_binary_file(text)",
    "pg_read_binary_file(text, bigint, bigint, boolean)",
];

/// What a source says of itself.
struct State {
    system_identifier: Option<u64>,
    /// Whether its control file names the timeline that it writes; `None` while it writes none.
    knows_its_timeline: Option<bool>,
}

impl Postgres {
    /// The names of that server's tablespaces which lie outside its data directory.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn tablespaces_of(&self, source: &SeedSource) -> Result<Vec<String>, PgError> {
        let asked = self.inner.tablespaces_of(source).await;
        asked.map_err(|cause| self.inner.error("ask another server for its tablespaces", cause))
    }
}

impl Inner {
    async fn tablespaces_of(&self, source: &SeedSource) -> Result<Vec<String>, PgCause> {
        let client = self.client_at(&source.host, source.port).await?;
        let sql = "select spcname::text from pg_tablespace where pg_tablespace_location(oid) like '/%' order by 1";
        let asked = client.query(sql, &[]);
        let rows = within(self.settings.query_timeout, "an answer of the source", asked).await??;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// See [`super::Postgres::answers`].
    pub async fn answers(&self, source: &SeedSource) -> bool {
        self.client_at(&source.host, source.port).await.is_ok()
    }

    /// See [`super::Postgres::follow_if_ancestor`].
    pub async fn follow_if_ancestor(&self, source: &SeedSource) -> Result<bool, PgCause> {
        let ours = self.at_rest()?;
        self.wait_for(source, ours).await?;
        // Of a database that was not shut down in an orderly way it says nothing: that is an error.
        let command = self.pg_rewind(source, &self.data).arg("--dry-run");
        let output = command.limit(CHECKPOINT).run().await?;
        let said = [output.stdout, output.stderr].concat();
        let is_ancestor = String::from_utf8_lossy(&said).contains(NOTHING_TO_DO);
        if is_ancestor {
            self.make_standby(&self.data, ours)?;
        }
        Ok(is_ancestor)
    }

    /// See [`super::Postgres::rewind`].
    pub async fn rewind(
        &self,
        source: &SeedSource,
        progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<Rewound, PgCause> {
        self.remove_half_rewound().await?;
        let ours = self.at_rest()?;
        self.wait_for(source, ours).await?;
        let left = self.timelines_left(&source.host, source.port).await?;
        let name = format!("{REWINDING}{}", uuid::Uuid::new_v4());
        let aside = self.settings.dataset.join(name);
        fs::rename(&self.data, &aside)
            .and_then(|()| files::sync_parent(&aside))
            .map_err(PgCause::file(&aside))?;
        keep_wal(&aside).map_err(PgCause::file(&aside))?;
        let mut account = Account::new(clock::now());
        let on_line = |line: &str| {
            if let Some((done, total)) = account.hear(clock::now(), line) {
                progress(done, total);
            }
        };
        let command = self.pg_rewind(source, &aside).arg("--progress");
        let done = async {
            command.run_with(on_line).await?;
            self.remove_what_was_left(&left, &aside).await
        };
        if let Err(error) = done.await {
            self.remove_half_rewound().await?;
            return Err(error);
        }
        let rewound = account.end(clock::now());
        // Before it has its name back: without it a start would go on writing the old timeline.
        self.make_standby(&aside, ours)?;
        fs::rename(&aside, &self.data)
            .and_then(|()| files::sync_parent(&self.data))
            .map_err(PgCause::file(&self.data))?;
        Ok(rewound)
    }

    /// Removes the WAL of the timelines that the source has left, from where it left each. Recovery prefers the file
    /// of the later timeline; but if the source has that no more, recovery would go on along the earlier one,
    /// past the point, with what is not the source's.
    async fn remove_what_was_left(&self, left: &[(u32, Lsn)], data: &Path) -> Result<(), PgCause> {
        let bytes = self.facts(data).await?.wal_segment;
        let directory = data.join("pg_wal");
        for entry in fs::read_dir(&directory).map_err(PgCause::file(&directory))? {
            let path = entry.map_err(PgCause::file(&directory))?.path();
            let name = path.file_name().and_then(OsStr::to_str);
            let segment = name.and_then(|name| segment_of(name, bytes));
            let is_left = segment.is_some_and(|(timeline, begin)| {
                left.iter()
                    .any(|(other, at)| timeline == *other && begin.byte() + bytes > at.byte())
            });
            if is_left {
                fs::remove_file(&path).map_err(PgCause::file(&path))?;
            }
        }
        files::sync_parent(&directory.join("any")).map_err(PgCause::file(&directory))
    }

    /// The identity of the database here, which must have been a primary's, and whose server must not
    /// run.
    fn at_rest(&self) -> Result<u64, PgCause> {
        if files::read(&self.data.join("PG_VERSION"))?.is_none() {
            return Err(PgCause::NoDatabase);
        }
        let running = process::of_server(&self.data).map_err(PgCause::file(&self.data))?;
        match running.first() {
            Some(&pid) => Err(PgCause::StillRunning { pid }),
            None if self.data.join(STANDBY_SIGNAL).exists() => Err(PgCause::Standby),
            None => files::system_identifier(&self.data),
        }
    }

    fn make_standby(&self, data: &Path, system_identifier: u64) -> Result<(), PgCause> {
        let owner = self.user.as_ref();
        files::write(&data.join(STANDBY_SIGNAL), "", owner)?;
        let marker = Marker { database: Served::Established, system_identifier };
        files::write_json(&self.settings.dataset.join(MARKER), &marker, owner)
    }

    fn pg_rewind(&self, source: &SeedSource, target: &Path) -> Exec {
        let settings = &self.settings;
        let server = to_copy_from(&source.host, source.port, &settings.replication_user);
        let server = format!("{server} dbname=postgres");
        self.bin
            .exec("pg_rewind", self.user.as_ref())
            .env("PGPASSWORD", &settings.replication_password)
            .env("PGAPPNAME", "manatee rewind")
            .redact(settings.replication_password.as_str())
            .arg("--target-pgdata")
            .arg(target)
            .args(["--source-server", &server])
    }

    /// See [`super::Postgres::remove_half_rewound`].
    pub async fn remove_half_rewound(&self) -> Result<(), PgCause> {
        let dataset = &self.settings.dataset;
        let entries = match fs::read_dir(dataset) {
            Ok(entries) => entries,
            // A volume that is not mounted, and has no place for it yet.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(PgCause::file(dataset)(error)),
        };
        for entry in entries {
            let path = entry.map_err(PgCause::file(dataset))?.path();
            if path.file_name().and_then(OsStr::to_str).is_some_and(is_half_rewound) {
                let target = path.clone();
                tokio::task::spawn_blocking(move || fs::remove_dir_all(target))
                    .await
                    .map_err(std::io::Error::other)
                    .flatten()
                    .map_err(PgCause::file(&path))?;
            }
        }
        Ok(())
    }

    /// Waits until the source is a primary whose control file knows the timeline that it writes. One that
    /// has just been declared so is being promoted, and may be started again for that.
    async fn wait_for(&self, source: &SeedSource, ours: u64) -> Result<(), PgCause> {
        let since = clock::now();
        loop {
            let peer = source.peer.clone();
            let (missing, limit) = match self.state_of(source).await {
                Ok(State { system_identifier, .. }) if system_identifier != Some(ours) => {
                    return Err(PgCause::AnotherDatabase { peer });
                }
                Ok(State { knows_its_timeline: Some(true), .. }) => return Ok(()),
                Ok(State { knows_its_timeline: Some(false), .. }) => {
                    let what = "a checkpoint of the source after its promotion".to_owned();
                    (PgCause::Timeout { what, limit: CHECKPOINT }, CHECKPOINT)
                }
                Ok(State { knows_its_timeline: None, .. }) => {
                    (PgCause::NotAPrimary { peer }, PROMOTION)
                }
                Err(error) => (error, PROMOTION),
            };
            if clock::now() - since > limit {
                return Err(missing);
            }
            tokio::time::sleep(10 * POLL).await;
        }
    }

    async fn state_of(&self, source: &SeedSource) -> Result<State, PgCause> {
        let client = self.client_at(&source.host, source.port).await?;
        let sql = "select (select system_identifier::text from pg_control_system()), \
            (select timeline_id = ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)) \
              ::bit(32)::int from pg_control_checkpoint() where not pg_is_in_recovery())";
        let asked = client.query_one(sql, &[]);
        let row = within(self.settings.query_timeout, "an answer of the source", asked).await??;
        let identifier: Option<i64> =
            row.get::<_, Option<&str>>(0).and_then(|text| text.parse().ok());
        Ok(State {
            system_identifier: identifier.map(i64::cast_unsigned),
            knows_its_timeline: row.get(1),
        })
    }

    /// A session at another peer, as the replication role, which may call [`FUNCTIONS`] there.
    pub async fn client_at(&self, host: &str, port: u16) -> Result<Client, PgCause> {
        let settings = &self.settings;
        let mut config = Config::new();
        config
            .host(host)
            .port(port)
            .user(&settings.replication_user)
            .password(&settings.replication_password)
            .dbname("postgres")
            .application_name("manatee rewind");
        let (client, connection) =
            within(settings.query_timeout, "a connection", config.connect(NoTls)).await??;
        tokio::spawn(async move {
            // How it ended is told to whoever asks something of the client.
            connection.await.ok();
        });
        Ok(client)
    }

    /// Lets the replication role call what `pg_rewind` calls. It can read every file by a base backup
    /// anyway.
    pub fn rewind_grants(&self) -> String {
        let role = super::session::identifier(&self.settings.replication_user);
        let grants = FUNCTIONS
            .map(|function| format!("grant execute on function pg_catalog.{function} to {role};"));
        grants.join(" ")
    }

    /// Has the database written out soon, in the background: until then its control file names the
    /// timeline before its promotion, and nobody can be rewound to it.
    pub async fn checkpoint_soon(&self) -> Result<(), PgCause> {
        let session = self.session_with(Some("local"), self.settings.start_timeout).await?;
        tokio::spawn(async move {
            if let Err(error) = session.rows("checkpoint").await {
                tracing::info!("no checkpoint after the promotion, it comes later: {error}");
            }
        });
        Ok(())
    }
}

/// Whether it is the name of a database that is being rewound. Nothing else has one: what is kept or set aside
/// ends with a time.
fn is_half_rewound(name: &str) -> bool {
    let id = name.strip_prefix(REWINDING);
    id.is_some_and(|id| uuid::Uuid::try_parse(id).is_ok())
}

/// Has the recovery from a crash, which `pg_rewind` begins with, remove no WAL at its end: `pg_rewind` reads it
/// from the last checkpoint before the two parted. What the source has takes the place of this file.
fn keep_wal(data: &Path) -> std::io::Result<()> {
    let mut settings = OpenOptions::new().append(true).open(data.join("postgresql.auto.conf"))?;
    // In MiB; the greatest that there is.
    writeln!(settings, "wal_keep_size = {}", i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_rewind_left_is_taken_for_such() {
        for (name, is) in [
            (format!("{REWINDING}{}", uuid::Uuid::new_v4()), true),
            ("data.rewinding-20260102T030405.123456Z".to_owned(), false),
            ("data.rewinding-".to_owned(), false),
            ("data.rewinding-mine".to_owned(), false),
            ("data.replaced-20260102T030405.123456Z".to_owned(), false),
            ("data".to_owned(), false),
        ] {
            assert_eq!(is_half_rewound(&name), is, "{name}");
        }
    }
}
