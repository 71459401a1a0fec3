//! `manatee transplant peer backup …`: a backup of what this peer has of the donor, proven before it has its
//! name: restored beside, started, and asked.
//!
//! Until then all of it is in files and directories of names that say so; whatever of them is found belongs
//! to a runner that ended, and goes.

use super::{
    beside::Beside,
    incoming,
    peer::{Which, lock, progress, say},
};
use crate::{
    adm::{
        backup::{self, Came, Watch},
        command::Json,
        restore::{Restore, restore},
    },
    archive,
    sitter::{config::Config, executor},
};
use adapters::{
    exec::Exec,
    postgres::{Postgres, fence_dataset},
};
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use cluster::Millis;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
};
use transplant::{BackupPlace, PORT_BESIDE, Proof};

/// Between two lines of progress.
const PERIOD: Millis = Millis(1_000);

/// What is done for the backup.
#[derive(Debug, Subcommand)]
pub enum BackupCommand {
    /// Make it, and ask what is restored from it.
    Make {
        #[command(flatten)]
        whose: Whose,
        /// About how many bytes the database has.
        #[arg(long)]
        bytes: u64,
        /// Of what has come and is not in place: where in its dataset the database is.
        #[arg(long)]
        incoming: Option<PathBuf>,
        /// Statements whose answers are wanted.
        #[arg(long)]
        sql: Vec<String>,
    },
    /// Give it its name: it is proven.
    Keep(Whose),
    /// Remove what is not proven, and say what is.
    Settle(Whose),
    /// Say what is proven.
    Look(Whose),
}

/// Which backup.
#[derive(Debug, Args)]
pub struct Whose {
    #[command(flatten)]
    which: Which,
    /// Where it lies.
    #[arg(long)]
    dir: PathBuf,
    /// Which transplant this is.
    #[arg(long)]
    id: String,
}

/// Does it; what is to be printed.
pub(super) async fn run(command: BackupCommand) -> Result<Value> {
    match command {
        BackupCommand::Make { whose, bytes, incoming, sql } => {
            let place = Place::of(&whose)?;
            let _lock = lock(&place.config).await?;
            place.clear().await?;
            if place.kept.exists() {
                return Ok(Value::Null);
            }
            let came = match incoming {
                Some(inside) => Some(newest_came(&place.config, inside).await?),
                None => None,
            };
            Ok(serde_json::to_value(place.make(bytes, came.as_ref(), &sql).await?)?)
        }
        BackupCommand::Keep(whose) => {
            let place = Place::of(&whose)?;
            let _lock = lock(&place.config).await?;
            place.keep()?;
            place.look()
        }
        BackupCommand::Settle(whose) => {
            let place = Place::of(&whose)?;
            let _lock = lock(&place.config).await?;
            place.clear().await?;
            backup::clear(&place.config).await?;
            place.look()
        }
        BackupCommand::Look(whose) => Place::of(&whose)?.look(),
    }
}

/// What there is of a place for backups, for the user that runs the server.
pub(super) fn facts(dir: &Path, dataset: &Path, user: Option<&str>) -> Result<BackupPlace> {
    let user = user.map(adapters::exec::OsUser::find).transpose()?;
    let entered = Exec::new("sh").as_user(user.as_ref()).args(["-c", "cd -- \"$1\"", "sh"]);
    let problem = match fs::metadata(dir) {
        Err(error) => Some(error.to_string()),
        Ok(found) if !found.is_dir() => Some("it is no directory".to_owned()),
        Ok(_) if entered.arg(dir).run_briefly().is_err() => {
            Some("the user of the server cannot get into it".to_owned())
        }
        Ok(_) => None,
    };
    if problem.is_some() {
        return Ok(BackupPlace { problem, free_bytes: 0, beside_database: false });
    }
    let space = rustix::fs::statvfs(dir)?;
    Ok(BackupPlace {
        problem,
        free_bytes: space.f_bavail * space.f_frsize,
        beside_database: rustix::fs::statvfs(dataset)?.f_fsid == space.f_fsid,
    })
}

/// The newest snapshot of the donor's that has come.
async fn newest_came(config: &Config, inside: PathBuf) -> Result<Came> {
    let storage = config.open_storage()?;
    let volume = storage.volume().context("this peer's storage has no snapshots")?;
    // The peer's own dataset, empty: what asks for a server's programs wants it to be there.
    storage.prepare().await?;
    let dataset = incoming::dataset(volume)?;
    let newest = volume.snapshots().await?.list(&dataset).await?.pop();
    let snapshot = newest.context("nothing has come")?.name;
    Ok(Came { dataset, snapshot, inside })
}

/// Where the backup of one transplant is.
struct Place {
    config: Config,
    dir: PathBuf,
    /// What the names of all begin with that is not proven.
    unproven: String,
    made: PathBuf,
    restored: PathBuf,
    kept: PathBuf,
}

impl Place {
    fn of(whose: &Whose) -> Result<Place> {
        let config = Config::load(&whose.which.config)?;
        let id: String = whose.id.chars().take(8).collect();
        let plain = |c: char| if c.is_alphanumeric() || "._-".contains(c) { c } else { '_' };
        let shard: String = config.shard.chars().map(plain).collect();
        let unproven = format!(".unproven-{id}");
        Ok(Place {
            made: whose.dir.join(format!("{unproven}.tar.zst")),
            // A socket's path is short.
            restored: whose.dir.join(&unproven),
            kept: whose.dir.join(format!("{shard}-donor-{id}.tar.zst")),
            dir: whose.dir.clone(),
            unproven,
            config,
        })
    }

    /// Ends and removes what is not proven.
    async fn clear(&self) -> Result<()> {
        if self.restored.exists() {
            fence_dataset(&self.restored).await?;
        }
        let entries = match fs::read_dir(&self.dir) {
            // Its disk is gone, and all with it.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            entries => entries.with_context(|| format!("cannot read {}", self.dir.display()))?,
        };
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // One that was being written has another dot before its name.
            if name.trim_start_matches('.').starts_with(&self.unproven[1..]) {
                let directory = path.is_dir();
                let removed =
                    if directory { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        Ok(())
    }

    async fn make(&self, bytes: u64, came: Option<&Came>, sql: &[String]) -> Result<Proof> {
        let tell = |done, _, took| progress(done, Some(bytes), took);
        let watch = Watch { period: PERIOD, tell: &tell };
        let manifest = backup::make(&self.config, &self.made, came, &watch).await?;
        say("restoring it beside");
        let postgres = Postgres::open(executor::settings(&self.config, &self.config.ident()?)?)?;
        fs::create_dir(&self.restored)?;
        let data = self.restored.join("data");
        fs::set_permissions(&self.restored, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let options = Restore {
            from: self.made.clone(),
            at: data.clone(),
            port: PORT_BESIDE,
            bin_dir: Some(postgres.bin_dir().to_owned()),
            os_user: self.config.postgres.os_user.clone(),
            json: Json { json: true },
        };
        restore(&options).await.context("the backup cannot be restored")?;
        say("starting and asking what was restored");
        let restored = Restored(Beside { postgres: &postgres, data: &data, socket_dir: &data });
        restored.0.tell("start").await?;
        let asked = restored.ask(sql).await;
        // Whatever it answered.
        restored.0.tell("stop").await?;
        let mut proof = asked?;
        fs::remove_dir_all(&self.restored)?;
        proof.manifest = serde_json::to_value(manifest)?;
        Ok(proof)
    }

    fn keep(&self) -> Result<()> {
        match fs::hard_link(&self.made, &self.kept) {
            // It was given its name before.
            Err(error) if error.kind() == ErrorKind::NotFound && self.kept.exists() => {
                return Ok(());
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            linked => linked.with_context(|| format!("cannot make {}", self.kept.display()))?,
        }
        fs::remove_file(&self.made)?;
        Ok(File::open(&self.dir)?.sync_all()?)
    }

    fn look(&self) -> Result<Value> {
        let mut file = match File::open(&self.kept) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Value::Null),
            opened => opened.with_context(|| format!("cannot open {}", self.kept.display()))?,
        };
        let manifest = archive::manifest(&mut file)
            .with_context(|| format!("backup {}", self.kept.display()))?;
        Ok(json!({ "file": self.kept, "manifest": manifest }))
    }
}

/// What was restored.
struct Restored<'a>(Beside<'a>);

impl Restored<'_> {
    async fn ask(&self, sql: &[String]) -> Result<Proof> {
        let control = "select system_identifier from pg_control_system()";
        let timeline = "select timeline_id from pg_control_checkpoint()";
        let timeline = self.0.sql("postgres", timeline).await?.parse().context("a timeline")?;
        let position = self.0.sql("postgres", "select pg_current_wal_lsn()").await?;
        let mut databases = BTreeMap::new();
        let names = "select datname from pg_database where datallowconn";
        for name in self.0.sql("postgres", names).await?.lines() {
            let count = self.0.sql(name, "select count(*) from pg_class").await?;
            databases.insert(name.to_owned(), count.parse().context("a number")?);
        }
        let mut answers = Vec::new();
        for statement in sql {
            answers.push(self.0.sql("postgres", statement).await?);
        }
        Ok(Proof {
            system_identifier: self.0.sql("postgres", control).await?,
            timeline,
            position: position.parse().map_err(|_| anyhow::anyhow!("no position: {position}"))?,
            branched_from: self.branched_from(timeline)?,
            databases,
            answers,
            manifest: Value::Null,
        })
    }

    /// The timeline before this one.
    fn branched_from(&self, timeline: u32) -> Result<Option<u32>> {
        let path = self.0.data.join(format!("pg_wal/{timeline:08X}.history"));
        match fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
            Ok(text) => {
                let last = text.lines().rfind(|line| !line.trim().is_empty());
                let number = last.and_then(|line| line.split_whitespace().next());
                Ok(number.and_then(|number| number.parse().ok()))
            }
        }
    }
}
