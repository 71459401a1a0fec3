//! A server on a copy that is only looked at: what was restored from a backup, or a clone of what has come.

use super::peer::say;
use crate::adm::restore::Place;
use adapters::{
    exec::Exec,
    postgres::{Postgres, fence_data},
    storage::{DatasetName, Snapshots, Storage, Volume},
};
use anyhow::{Context, Result, ensure};
use cluster::Millis;
use serde_json::{Value, json};
use std::{
    fs,
    io::ErrorKind,
    path::{Component, Path, PathBuf},
    sync::Arc,
};
use transplant::PORT_BESIDE;

/// How long a question may take: a count over a large table reads all of it.
const QUERY_LIMIT: Millis = Millis(3_600_000);

/// The server.
pub(super) struct Beside<'a> {
    /// Whose programs and user it has.
    pub postgres: &'a Postgres,
    /// Its data directory.
    pub data: &'a Path,
    /// Where its socket is.
    pub socket_dir: &'a Path,
}

impl Beside<'_> {
    fn exec(&self, program: &str) -> Exec {
        Exec::new(self.postgres.bin_dir().join(program)).as_user(self.postgres.os_user())
    }

    /// Starts or stops it, and waits.
    pub async fn tell(&self, verb: &str) -> Result<()> {
        let limit = self.postgres.settings().start_timeout.0 / 1000;
        let command = self.exec("pg_ctl").args([verb, "-w", "-t", &limit.to_string(), "-D"]);
        // Not `log`: a directory of that name may have come.
        let file = self.data.join("looked-at.log");
        if let Err(error) = command.arg(self.data).arg("-l").arg(&file).run().await {
            let log = fs::read_to_string(&file).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(5).collect();
            let last = last.into_iter().rev().collect::<Vec<_>>().join("; ");
            return Err(error).with_context(|| format!("{verb} the copy: {last}"));
        }
        Ok(())
    }

    /// What the last of these statements gives.
    pub async fn sql(&self, database: &str, sql: &str) -> Result<String> {
        let command = self
            .exec("psql")
            .env("PGDATABASE", database)
            .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-h"])
            .arg(self.socket_dir)
            .args(["-p", &PORT_BESIDE.to_string()])
            .args(["-U", &self.postgres.settings().superuser, "-f", "-"]);
        let output = command.stdin(sql).limit(QUERY_LIMIT).run().await;
        let output = output.with_context(|| format!("database {database:?} of the copy"))?;
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }
}

/// A clone of the newest snapshot that has come: what is done to it changes nothing of that.
pub(super) struct Clone {
    snapshots: Arc<dyn Snapshots>,
    name: DatasetName,
    at: PathBuf,
    data: PathBuf,
}

impl Clone {
    /// That of this volume, whether or not there is one; the data directory is `inside` it.
    pub async fn of(volume: &Volume, inside: &Path) -> Result<Clone> {
        let within = inside
            .components()
            .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        ensure!(within, "--inside {}: give a path within the dataset", inside.display());
        let mountpoint = volume.dataset();
        let name = mountpoint.file_name().unwrap_or_default().to_string_lossy();
        let at = mountpoint.with_file_name(format!(".{name}.looked-at"));
        Ok(Clone {
            snapshots: volume.snapshots().await?,
            name: DatasetName::new(&format!("{}.looked-at", volume.name()))?,
            data: at.join(inside),
            at,
        })
    }

    /// Makes it, and starts a server on it, which its own user can ask.
    pub async fn open(&self, from: &DatasetName, postgres: &Postgres) -> Result<Value> {
        self.shut().await?;
        let opened = self.try_open(from, postgres).await;
        if opened.is_err()
            && let Err(error) = self.shut().await
        {
            say(&format!("the clone is still there: {error:#}"));
        }
        opened
    }

    async fn try_open(&self, from: &DatasetName, postgres: &Postgres) -> Result<Value> {
        let newest = self.snapshots.list(from).await?.pop().context("nothing has come")?;
        self.snapshots.clone_snapshot(from, &newest.name, &self.name).await?;
        self.snapshots.mount(&self.name, &self.at).await?;
        let data = self.data.as_path();
        let user = postgres.os_user();
        let socket_dir = postgres.settings().socket_dir.as_path();
        postgres.make_socket_dir()?;
        Place { at: data, bin: postgres.bin_dir(), user }.make_its_own(PORT_BESIDE, socket_dir)?;
        Beside { postgres, data, socket_dir }.tell("start").await?;
        Ok(json!({}))
    }

    /// Ends the server, if there is one, and removes the clone, if there is one.
    pub async fn shut(&self) -> Result<Value> {
        fence_data(self.data.clone()).await?;
        if self.snapshots.datasets().await?.iter().any(|dataset| dataset.name == self.name) {
            self.snapshots.unmount(&self.name).await?;
            self.snapshots.destroy(&self.name).await?;
        }
        match fs::remove_dir(&self.at) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.at.display()))
            }
            _ => Ok(json!({})),
        }
    }
}
