//! `adm restore`: what is in a backup, in a directory of its own.

use super::command::Json;
use crate::archive::{self, Broken, Manifest, Taken};
use crate::shard::SOCKET_PATH;
use adapters::{
    exec::{Exec, OsUser},
    postgres::{drop_reservations, programs},
    storage::{Expected, examine},
};
use anyhow::{Context, Result, bail};
use clap::Args;
use std::{
    fs::{self, File, Permissions},
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
};
use tokio::io::AsyncWriteExt;

/// What is to be restored, and where.
#[derive(Debug, Args)]
pub struct Restore {
    /// The backup
    #[arg(long, value_name = "FILE")]
    pub(crate) from: PathBuf,
    /// An empty directory, or one that does not exist: it becomes the data directory
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) at: PathBuf,
    /// The port that it is to have, which is part of the name of its socket
    #[arg(long, default_value_t = 5432)]
    pub(crate) port: u16,
    /// Where the programs of PostgreSQL are; looked for where it is not given
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) bin_dir: Option<PathBuf>,
    /// Who is to own it when root restores
    #[arg(long, value_name = "USER", default_value = "postgres")]
    pub(crate) os_user: String,
    #[command(flatten)]
    pub(crate) json: Json,
}

/// Restores it; what is to be printed.
///
/// # Errors
/// When the file is not what it was, the directory is not empty, or what was restored is not whole. What
/// was written is removed then.
pub async fn restore(options: &Restore) -> Result<String> {
    let from = options.from.display();
    let mut file = File::open(&options.from).with_context(|| format!("cannot open {from}"))?;
    let whole = |error: Broken| anyhow::Error::from(error).context(format!("backup {from}"));
    let manifest = archive::manifest(&mut file).map_err(whole)?;
    let (bin, major) = programs(options.bin_dir.as_deref())?;
    if major.to_string() != manifest.postgres_version {
        bail!(
            "the backup is of PostgreSQL {}, the programs in {} are of version {major}: give those \
             with --bin-dir",
            manifest.postgres_version,
            bin.display()
        );
    }
    let at = std::path::absolute(&options.at)?;
    if fs::read_dir(&at).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!(
            "{} is not empty: give a directory that is, or one that does not exist",
            at.display()
        );
    }
    let socket = at.join(format!(".s.PGSQL.{}", options.port));
    if socket.as_os_str().len() > SOCKET_PATH {
        bail!("{} is too long a path for a socket in it: give a shorter one", at.display());
    }
    eprintln!("verifying {} MiB", manifest.compressed_bytes >> 20);
    archive::unpack(&mut file, &manifest, |_| Ok(())).map_err(whole)?;
    let root = rustix::process::geteuid().is_root();
    let user = root.then(|| OsUser::find(&options.os_user)).transpose()?;
    let place = Place { at: &at, bin: &bin, user: user.as_ref() };
    fs::create_dir_all(&at).with_context(|| format!("cannot make {}", at.display()))?;
    if let Err(error) = place.fill(&mut file, &manifest, options.port).await {
        let left = place
            .empty()
            .err()
            .map(|error| format!(" (and {} is not empty: {error})", at.display()));
        return Err(error.context(format!("not restored{}", left.unwrap_or_default())));
    }
    let start = place.start();
    if options.json.json {
        let json = serde_json::json!({ "at": at, "manifest": manifest, "start": start });
        return Ok(format!("{json}\n"));
    }
    Ok(format!(
        "shard {} as {} had it at {}, timeline {} from {}, is in {}\nstart: {start}\nlook: psql -h {} -p {} -U postgres (or as postgres.superuser in that peer's file)\n",
        manifest.shard,
        manifest.zone,
        manifest.as_of(),
        manifest.timeline,
        manifest.lsn,
        at.display(),
        at.display(),
        options.port
    ))
}

/// A data directory of its own: one that is filled, or one that is looked at.
pub(crate) struct Place<'a> {
    /// Where it is.
    pub at: &'a Path,
    /// Where the programs are.
    pub bin: &'a Path,
    /// Who is to own it when we are root.
    pub user: Option<&'a OsUser>,
}

impl Place<'_> {
    async fn fill(&self, file: &mut File, manifest: &Manifest, port: u16) -> Result<()> {
        fs::set_permissions(self.at, Permissions::from_mode(0o700))?;
        self.give(self.at)?;
        self.extract(file, manifest).await?;
        let found = fs::read_to_string(self.at.join("PG_VERSION")).context("PG_VERSION")?;
        if found.trim() != manifest.postgres_version {
            bail!("it holds PostgreSQL {}, its manifest says otherwise", found.trim());
        }
        eprintln!("verifying what was restored");
        if manifest.taken == Taken::BaseBackup {
            let verify = Exec::new(self.bin.join("pg_verifybackup")).as_user(self.user);
            verify.arg("--exit-on-error").arg(self.at).run().await?;
        }
        let facts = examine(self.at, &self.bin.join("pg_controldata"), self.user).await?;
        let system_identifier = manifest.system_identifier.parse().ok();
        if let Some(problem) = facts.problem(&Expected { system_identifier, newest_timeline: None })
        {
            bail!("what was restored is another database: {problem}");
        }
        self.make_its_own(port, self.at)?;
        match manifest.taken {
            Taken::BaseBackup => {}
            Taken::Snapshot => self.recover().await?,
        }
        // Nobody is told that it is there before it outlives a loss of power.
        Ok(rustix::fs::syncfs(File::open(self.at)?)?)
    }

    async fn extract(&self, file: &mut File, manifest: &Manifest) -> Result<()> {
        let tar = Exec::new("tar").as_user(self.user).args(["--extract", "--file=-"]);
        let mut tar = tar.arg("--directory").arg(self.at).writer()?;
        let (sender, mut parts) = tokio::sync::mpsc::channel::<Vec<u8>>(4);
        let (mut file, manifest) = (file.try_clone()?, manifest.clone());
        let reading = tokio::task::spawn_blocking(move || {
            archive::unpack(&mut file, &manifest, |part| {
                let taken = sender.blocking_send(part.to_vec());
                taken.map_err(|_| Broken::Read(std::io::ErrorKind::BrokenPipe.into()))
            })
        });
        while let Some(part) = parts.recv().await {
            tar.write_all(&part).await.context("unpacking")?;
        }
        reading.await??;
        tar.shutdown().await.context("unpacking")
    }

    /// Takes from it what made it a member of the shard: what it follows, who may connect, and its
    /// settings, which stay beside for whoever wants to read them. Its own user alone can reach its server, and
    /// that reaches nobody: a subscription would take from its publisher what the original still needs.
    pub fn make_its_own(&self, port: u16, socket_dir: &Path) -> Result<()> {
        for name in ["standby.signal", "recovery.signal", "postmaster.pid", "postmaster.opts"] {
            match fs::remove_file(self.at.join(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error.into());
                }
                _ => {}
            }
        }
        for name in ["postgresql.conf", "postgresql.auto.conf", "pg_hba.conf"] {
            let path = self.at.join(name);
            // A link that leads nowhere here is none to write through.
            if path.symlink_metadata().is_ok() {
                fs::rename(&path, self.at.join(format!("{name}.of-the-peer")))?;
            }
        }
        let socket_dir = socket_dir.to_str().context("the path of the socket is not UTF-8")?;
        let socket_dir = socket_dir.replace('\'', "''");
        let conf = format!(
            "# A copy, to look inside: it follows nobody, and nobody follows it.\n\
             port = {port}\nlisten_addresses = ''\nunix_socket_directories = '{socket_dir}'\n\
             unix_socket_permissions = 0700\narchive_mode = off\nmax_wal_senders = 0\nmax_prepared_transactions = 1000\n\
             max_logical_replication_workers = 0\n"
        );
        let hba = "local all all trust\n";
        for (name, text) in
            [("postgresql.conf", conf.as_str()), ("postgresql.auto.conf", ""), ("pg_hba.conf", hba)]
        {
            let path = self.at.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            self.give(&path)?;
        }
        Ok(())
    }

    /// Recovers what is as after a crash, to the end of all WAL that is there, and leaves it shut down in an
    /// orderly way. By itself it would stay on the timeline of its last checkpoint, and a standby's may be
    /// from before its upstream's promotion.
    async fn recover(&self) -> Result<()> {
        eprintln!("recovering it");
        drop_reservations(self.at)?;
        let signal = self.at.join("recovery.signal");
        fs::write(&signal, "")?;
        self.give(&signal)?;
        let postgres = Exec::new(self.bin.join("postgres")).as_user(self.user);
        let postgres = postgres.args(["--single", "-c", "restore_command=false"]);
        let postgres = postgres.args(["-c", "recovery_target_timeline=latest"]);
        // Else it would want what the peer had of everything.
        let postgres = postgres.args(["-c", "hot_standby=off"]);
        let ended = postgres.arg("-D").arg(self.at).arg("postgres").run().await;
        ended.map(drop).context("it does not recover")
    }

    fn give(&self, path: &Path) -> Result<()> {
        let Some(user) = self.user else { return Ok(()) };
        chown(path, Some(user.uid), Some(user.gid))
            .with_context(|| format!("cannot give {} to {}", path.display(), user.name))
    }

    /// Removes what was written.
    fn empty(&self) -> std::io::Result<()> {
        for entry in fs::read_dir(self.at)? {
            let path = entry?.path();
            if path.is_dir() && !path.is_symlink() {
                fs::remove_dir_all(path)?;
            } else {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// How it is started.
    fn start(&self) -> String {
        let at = self.at.display();
        let start = format!("{}/pg_ctl -D {at} -l {at}/log -w start", self.bin.display());
        match self.user {
            Some(user) => format!("runuser -u {} -- {start}", user.name),
            None => start,
        }
    }
}
