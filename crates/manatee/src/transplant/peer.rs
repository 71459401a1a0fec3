//! `manatee transplant peer …`: what a transplant has done on the host of a peer, by its sitter's file. Not
//! for people: it prints JSON, and the runner of the transplant calls it, here or by ssh.

use super::{
    backup::{self, BackupCommand},
    incoming::{self, IncomingCommand},
    place,
};
use crate::sitter::{config::Config, executor, lock_dataset};
use adapters::{
    clock,
    coord::{self, Coordination, PutOutcome},
    postgres::{self, Database, Postgres, Settings, StopMode},
    storage::{SeedProgress, SeedRequest, SeedSource, Storage, examine},
};
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use cluster::{
    ClusterState, Freeze, FreezeInfo, Generation, Lsn, Millis, Monotonic, PeerIdent, PgConfig,
    StandbyRole,
};
use jiff::Timestamp;
use rustix::{
    fs::{FlockOperation, flock, statvfs},
    process::{Signal, set_parent_process_death_signal},
};
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;
use transplant::{Control, MADE_BY, PeerFacts, Progress, REPLICATED, ROLLED_BACK};

/// How long the verb of a runner that has ended may take to end, too.
const LOCK_PATIENCE: Millis = Millis(60_000);
/// Between two lines of progress.
const PERIOD: Duration = Duration::from_secs(1);

/// Which peer.
#[derive(Debug, Args)]
pub struct Which {
    /// Its sitter's file.
    #[arg(long)]
    pub(super) config: PathBuf,
}

/// What is done there.
#[derive(Debug, Subcommand)]
pub enum PeerCommand {
    /// Say what there is.
    Facts {
        #[command(flatten)]
        which: Which,
        /// Where the backup is to lie.
        #[arg(long)]
        backup_dir: Option<PathBuf>,
        /// Say what would keep its server from running, too; of a peer of which nothing runs.
        #[arg(long)]
        hindrances: bool,
    },
    /// What is done for the backup.
    #[command(subcommand)]
    Backup(BackupCommand),
    /// What is done with the donor's dataset as it comes in.
    #[command(subcommand)]
    Incoming(IncomingCommand),
    /// Say the password of the shard's replication role.
    Secret {
        #[command(flatten)]
        which: Which,
        /// Print it as it is, not as JSON.
        #[arg(long)]
        raw: bool,
    },
    /// Copy the database of a server outside the shard, and follow it.
    Receive {
        #[command(flatten)]
        which: Which,
        /// Where it is.
        #[arg(long)]
        host: String,
        /// Its port.
        #[arg(long)]
        port: u16,
        /// Which database it is.
        #[arg(long)]
        system_identifier: u64,
        /// Its replication slot there, where that is not the one of its name.
        #[arg(long)]
        slot: Option<String>,
        /// MiB a second that the copy is not to exceed.
        #[arg(long)]
        rate_mib: Option<u64>,
    },
    /// Start the server as a standby of nobody, to be asked.
    Stand(Which),
    /// Stop it again.
    Rest(Which),
    /// Say what the control file says.
    Control(Which),
    /// Stop the server and keep its database aside.
    Discard(Which),
    /// Declare this peer the primary of its shard, alone.
    Declare {
        #[command(flatten)]
        which: Which,
        /// Which transplant this is.
        #[arg(long)]
        id: String,
        /// Up to where the database goes.
        #[arg(long)]
        wal: Lsn,
        /// Its timeline.
        #[arg(long)]
        timeline: u32,
    },
    /// Say in the cluster state that the transplant which made it was rolled back.
    Retract {
        #[command(flatten)]
        which: Which,
        /// Which transplant this was.
        #[arg(long)]
        id: String,
    },
}

/// Does it; what is to be printed.
pub(super) async fn run(command: PeerCommand) -> Result<Value> {
    die_with_the_runner()?;
    match command {
        PeerCommand::Facts { which, backup_dir, hindrances } => {
            facts(&which.config, backup_dir.as_deref(), hindrances).await
        }
        PeerCommand::Backup(command) => backup::run(command).await,
        PeerCommand::Incoming(command) => incoming::run(command).await,
        PeerCommand::Secret { which, raw } => {
            let password = Config::load(&which.config)?.replication.password;
            if !raw {
                return Ok(json!({ "password": password }));
            }
            let missing = || format!("{} has no password for replication", which.config.display());
            password.map(Value::String).with_context(missing)
        }
        PeerCommand::Receive { which, host, port, system_identifier, slot, rate_mib } => {
            receive(&which.config, &host, port, system_identifier, slot, rate_mib).await
        }
        PeerCommand::Stand(which) => {
            let peer = Peer::open(&Config::load(&which.config)?, None).await?;
            peer.follow(None).await
        }
        PeerCommand::Rest(which) => {
            let stopped = Peer::at_rest(&Config::load(&which.config)?).await?;
            Ok(json!({ "hasDatabase": stopped.is_some() }))
        }
        PeerCommand::Control(which) => {
            let config = Config::load(&which.config)?;
            let postgres = Postgres::open(executor::settings(&config, &config.ident()?)?)?;
            let program = postgres.bin_dir().join("pg_controldata");
            let facts = examine(postgres.data(), &program, postgres.os_user()).await?;
            Ok(serde_json::to_value(Control::from(facts))?)
        }
        PeerCommand::Discard(which) => discard(&which.config).await,
        PeerCommand::Declare { which, id, wal, timeline } => {
            declare(&which.config, &id, wal, timeline).await
        }
        PeerCommand::Retract { which, id } => retract(&which.config, &id).await,
    }
}

/// A runner that ends must not leave behind what the next one would do beside it.
pub(super) fn die_with_the_runner() -> Result<()> {
    #[cfg(target_os = "linux")]
    set_parent_process_death_signal(Some(Signal::TERM))?;
    Ok(())
}

/// A peer that no sitter acts on meanwhile.
struct Peer {
    storage: Arc<dyn Storage>,
    postgres: Postgres,
    _lock: File,
}

impl Peer {
    async fn open(config: &Config, upstream_slot: Option<String>) -> Result<Peer> {
        let lock = lock(config).await?;
        let storage = config.open_storage()?;
        storage.prepare().await?;
        let settings = executor::settings(config, &config.ident()?)?;
        let postgres = Postgres::open(Settings { upstream_slot, ..settings })?;
        Ok(Peer { storage, postgres, _lock: lock })
    }

    /// One whose server is stopped; none where there is no database.
    async fn at_rest(config: &Config) -> Result<Option<Peer>> {
        if !config.dataset.exists() {
            return Ok(None);
        }
        let peer = Peer::open(config, None).await?;
        if !peer.postgres.data().exists() {
            return Ok(None);
        }
        peer.postgres.inspect().await?;
        peer.postgres.stop(StopMode::Fast).await?;
        Ok(Some(peer))
    }

    async fn follow(&self, upstream: Option<PeerIdent>) -> Result<Value> {
        let (place, downstream) = (StandbyRole::Async, Vec::new());
        self.postgres.apply(&PgConfig::Standby { place, upstream, downstream }).await?;
        Ok(json!({}))
    }
}

pub(super) async fn lock(config: &Config) -> Result<File> {
    let begun = clock::now();
    loop {
        match lock_dataset(config) {
            Ok(lock) => return Ok(lock),
            Err(error) if clock::now() - begun > LOCK_PATIENCE => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

fn coordination(config: &Config, file: &Path) -> Result<Arc<dyn Coordination>> {
    let options = coord::Options {
        call_timeout: config.coordination_timeout.millis(),
        access: config.access(file)?,
        session_file: None,
    };
    Ok(coord::open(&config.coordination, &config.shard, &options)?)
}

async fn facts(file: &Path, backup_dir: Option<&Path>, hindrances: bool) -> Result<Value> {
    let config = Config::load(file)?;
    let me = config.ident()?;
    let settings = executor::settings(&config, &me)?;
    let data_dir = settings.dataset.join("data");
    let (bin_dir, version) = postgres::programs_for(settings.bin_dir.as_deref(), &data_dir)?;
    // A file that no sitter has made yet holds no state, and is not made by looking.
    let nothing_yet = config
        .coordination
        .strip_prefix("sqlite:")
        .is_some_and(|path| !Path::new(path.strip_prefix("//").unwrap_or(path)).exists());
    let state = if nothing_yet { None } else { coordination(&config, file)?.read().await?.state };
    let state = state.map(|stored| serde_json::from_str(&stored.json)).transpose();
    // Ours before PostgreSQL's defaults, the operator's before ours.
    let replicated = REPLICATED.iter().map(|&(name, default)| {
        let ours = postgres::default_of(name).and_then(|value| value.parse().ok());
        let own = settings.user_settings.get(name).and_then(|value| value.parse().ok());
        (name.to_owned(), own.or(ours).unwrap_or(default))
    });
    let replicated = replicated.collect();
    let library_settings = place::library_settings(&settings);
    let mut place = settings.dataset.as_path();
    while !place.exists() {
        place = place.parent().context("the dataset has no directory above it")?;
    }
    let space = statvfs(place)?;
    let hindrances =
        if hindrances { place::hindrances(&config, &settings, place)? } else { Vec::new() };
    let backup = backup_dir.map(|dir| backup::facts(dir, place, settings.os_user.as_deref()));
    let facts = PeerFacts {
        slot: postgres::slot_of(&me.id),
        peer: me,
        shard: config.shard.clone(),
        coordination: config.coordination.clone(),
        storage: format!("{:?}", config.storage.backend).to_lowercase(),
        version,
        has_database: data_dir.join("PG_VERSION").exists(),
        sitter_runs: sitter_runs(&config)?,
        data_dir: data_dir.display().to_string(),
        bin_dir: bin_dir.display().to_string(),
        socket_dir: settings.socket_dir.display().to_string(),
        port: settings.port,
        os_user: settings.os_user,
        superuser: settings.superuser,
        replication_user: settings.replication_user,
        replicated,
        library_settings,
        hindrances,
        free_bytes: space.f_bavail * space.f_frsize,
        backup: backup.transpose()?,
        state: state.context("the cluster state is no JSON")?,
    };
    Ok(serde_json::to_value(facts)?)
}

/// Whether somebody holds the lock of the dataset. Makes nothing.
fn sitter_runs(config: &Config) -> Result<bool> {
    let path = config.dataset.join("sitter.lock");
    if !path.exists() {
        return Ok(false);
    }
    let lock = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    Ok(flock(&lock, FlockOperation::NonBlockingLockShared).is_err())
}

async fn receive(
    file: &Path,
    host: &str,
    port: u16,
    identifier: u64,
    slot: Option<String>,
    rate_mib: Option<u64>,
) -> Result<Value> {
    let peer = Peer::open(&Config::load(file)?, slot).await?;
    let donor = PeerIdent::new(host, port, 0, "donor");
    let found = peer.postgres.inspect().await?;
    if found.database == Database::None {
        let source = SeedSource { peer: donor.id.clone(), host: host.to_owned(), port };
        let request = SeedRequest { rate_mib, ..peer.postgres.seed_request(vec![source]) };
        let (progress, watched) = watch::channel(SeedProgress::default());
        let told = tokio::spawn(tell(watched));
        let seeded = peer.storage.seed(&request, &progress).await;
        told.abort();
        seeded?;
    }
    let data = peer.postgres.data();
    match peer.postgres.identity()? {
        Some(found) if found == identifier => {}
        found => bail!(
            "{} holds another database ({found:?}) than the donor's ({identifier}): it is left as it is",
            data.display()
        ),
    }
    if !data.join("standby.signal").exists() {
        bail!("{} holds the donor's database, but follows nobody: it has served", data.display());
    }
    // Patroni, for one, leaves there what is for us alone to set. A copy that has started has ours.
    let settings = data.join("postgresql.conf");
    if settings.exists() && !fs::read_to_string(&settings)?.contains("include 'manatee.conf'") {
        fs::rename(&settings, data.join("postgresql.conf.donor"))?;
    }
    peer.follow(Some(donor)).await
}

/// Prints how far a copy is.
async fn tell(watched: watch::Receiver<SeedProgress>) {
    let begun: Monotonic = clock::now();
    loop {
        tokio::time::sleep(PERIOD).await;
        let seen = watched.borrow().clone();
        progress(seen.bytes_done, seen.bytes_total, clock::now() - begun);
    }
}

/// Prints how far something is.
pub(super) fn progress(bytes_done: u64, bytes_total: Option<u64>, took: Millis) {
    let progress = Progress::after(took, bytes_done, bytes_total);
    match serde_json::to_string(&progress) {
        Ok(line) => eprintln!("{line}"),
        Err(error) => eprintln!("no progress: {error}"),
    }
}

/// Prints what is done now.
pub(super) fn say(what: &str) {
    eprintln!("{}", Value::from(what));
}

async fn discard(file: &Path) -> Result<Value> {
    let kept = match Peer::at_rest(&Config::load(file)?).await? {
        Some(peer) => Some(peer.storage.set_aside("transplant").await?),
        None => None,
    };
    Ok(json!({ "kept": kept }))
}

async fn declare(file: &Path, id: &str, wal: Lsn, timeline: u32) -> Result<Value> {
    let config = Config::load(file)?;
    let me = config.ident()?;
    fs::create_dir_all(&config.dataset)?;
    let coordination = coordination(&config, file)?;
    // A write whose answer was lost is looked for, and written again where it did not arrive.
    for _ in 0..3 {
        let stored = coordination.read().await?.state;
        let old = stored.as_ref().map(|stored| ClusterState::parse(&stored.json)).transpose()?;
        if let Some(old) = &old {
            let mine = old.extra.get(MADE_BY).and_then(Value::as_str) == Some(id);
            match (mine, old.extra.contains_key(ROLLED_BACK)) {
                (true, false) => return Ok(json!({ "generation": old.generation })),
                (_, true) => {}
                (false, false) => bail!(
                    "shard {:?} has a cluster state that this transplant did not make: nothing is \
                     written over it",
                    config.shard
                ),
            }
        }
        let now = Timestamp::from_millisecond(Timestamp::now().as_millisecond())?;
        let freeze = FreezeInfo {
            date: now,
            reason: "a transplant: one peer serves alone until the shard grows".to_owned(),
            extra: serde_json::Map::new(),
        };
        let promoted_before = old.as_ref().and_then(|old| old.primary_timeline);
        let newest = timeline.max(promoted_before.unwrap_or_default());
        let state = ClusterState {
            generation: old.map_or(Generation(1), |old| old.generation.next()),
            primary: me.clone(),
            sync: None,
            asyncs: Vec::new(),
            deposed: Vec::new(),
            init_wal: wal,
            init_timeline: Some(timeline),
            primary_timeline: newest.checked_add(1),
            freeze: Some(Freeze::Since(freeze)),
            one_node_write_mode: Some(true),
            promote: None,
            extra: serde_json::Map::from_iter([(MADE_BY.to_owned(), id.into())]),
        };
        state.validate()?;
        let generation = state.generation;
        let expected = stored.map(|stored| stored.version);
        match coordination.put(expected, &state.without_words_of_registrations()).await {
            PutOutcome::Committed(_) => return Ok(json!({ "generation": generation })),
            PutOutcome::Refused(error) => return Err(error.into()),
            PutOutcome::Conflict | PutOutcome::Unknown(_) => {}
        }
    }
    bail!("the cluster state of shard {:?} could not be written", config.shard)
}

async fn retract(file: &Path, id: &str) -> Result<Value> {
    let config = Config::load(file)?;
    let coordination = coordination(&config, file)?;
    for _ in 0..3 {
        let Some(stored) = coordination.read().await?.state else { return Ok(json!({})) };
        let mut state = ClusterState::parse(&stored.json)?;
        let mine = state.extra.get(MADE_BY).and_then(Value::as_str) == Some(id);
        if !mine || state.extra.contains_key(ROLLED_BACK) {
            return Ok(json!({}));
        }
        state.extra.insert(ROLLED_BACK.to_owned(), Timestamp::now().to_string().into());
        match coordination.put(Some(stored.version), &state).await {
            PutOutcome::Committed(_) => return Ok(json!({})),
            PutOutcome::Refused(error) => return Err(error.into()),
            PutOutcome::Conflict | PutOutcome::Unknown(_) => {}
        }
    }
    bail!("the cluster state of shard {:?} could not be written", config.shard)
}
