//! `manatee sitter`: the daemon of one peer.
//!
//! A coordination backend and PostgreSQL turn what happens into events ([`sources`]); the driver,
//! one task with one queue, hands each to the machine and its actions to the executor, which
//! answers every operation with exactly one event. Nobody here decides anything.
//!
//! There are two runtimes. Whatever may wait for the file system of the database runs in one, so that a disk
//! that hangs holds up neither the session nor the fence nor the status, which run in the other.

pub mod config;
mod driver;
pub(crate) mod executor;
mod probe;
mod rebuild;
mod refill;
mod server;
mod snapshotter;
mod sources;
mod trace;

use crate::backup::{self, Jobs, LegacyOutlet, Service, StorageOutlet, TlsFiles};
use adapters::coord;
use anyhow::{Context, Result, bail};
use cluster::{Machine, MachineConfig};
use config::Config;
use driver::{Control, Driver};
use executor::Executor;
use rustix::fs::{FlockOperation, flock};
use std::{
    fs::{self, File},
    io::IsTerminal,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::ExitCode,
    sync::Arc,
};
use tokio::{
    runtime::{Handle, Runtime},
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tracing_subscriber::EnvFilter;

/// Events waiting for the driver; whoever has more waits. Far above what a peer ever has in flight.
const QUEUE: usize = 256;

/// In the dataset, under its lock: the session that this peer registered with last.
const SESSION_FILE: &str = "coordination-session";

/// Runs the sitter until it is told to stop.
///
/// # Errors
/// When it cannot start: a bad file, a taken port, a dataset that another sitter uses.
pub fn run(path: &Path) -> Result<ExitCode> {
    let config = Config::load(path)?;
    let _log = log_to_stderr(&config)?;
    die_of_any_panic();
    let (own, disk) = (runtime("sitter")?, runtime("disk")?);
    let ended = own.block_on(serve(path, config, disk.handle()));
    // What hangs there is not waited for.
    disk.shutdown_background();
    ended
}

fn runtime(name: &str) -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .thread_name(name)
        .worker_threads(2)
        .max_blocking_threads(16)
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

/// The log is written by a thread of its own, and loses lines rather than making anybody wait: stderr
/// may be a pipe that nobody reads.
fn log_to_stderr(config: &Config) -> Result<tracing_appender::non_blocking::WorkerGuard> {
    // The client tells of each of its sessions, and there is one for each call. A level says nothing
    // of it; a filter may name it.
    let filter = EnvFilter::builder()
        .parse(format!("zookeeper_client=warn,{}", config.log.level))
        .with_context(|| format!("log.level {:?} is no level and no filter", config.log.level))?;
    let (writer, guard) = tracing_appender::non_blocking(std::io::stderr());
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(writer);
    if config.log.json {
        log.json().init()
    } else {
        log.with_target(false).init()
    }
    Ok(guard)
}

/// A task that panics would leave a sitter that looks alive and does not act: corrupt state ends the
/// process. PostgreSQL goes on and is adopted by the next sitter.
fn die_of_any_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        std::process::abort();
    }));
}

async fn serve(path: &Path, config: Config, disk: &Handle) -> Result<ExitCode> {
    config.doubts().iter().for_each(|doubt| tracing::warn!("{doubt}"));
    let me = config.ident()?;
    let _lock = lock_dataset(&config)?;
    let options = coord::Options {
        call_timeout: config.coordination_timeout.millis(),
        access: config.access(path)?,
        session_file: Some(config.dataset.join(SESSION_FILE)),
    };
    let coordination = coord::open(&config.coordination, &config.shard, &options)?;
    let (events, queue) = mpsc::channel(QUEUE);
    let machine_config = machine_config(&config)?;
    let (machine, first) = Machine::new(machine_config.clone());
    let storage = config.open_storage()?;
    let outlet = Arc::new(StorageOutlet::new(storage.clone()));
    let jobs = Jobs::new(outlet.clone(), config.backup_limits());
    let shared = server::Shared::new(&config, me.clone(), &machine, jobs.clone());
    let server = server::start(&config, shared.clone()).await?;
    let legacy = config.backup.original_protocol.then_some(outlet as Arc<dyn LegacyOutlet>);
    let tls = config.tls.clone().map(TlsFiles::from);
    let (control, controls) = mpsc::channel(4);
    let more = rebuild::router(control.clone());
    let secret = config.secret();
    let service = Service { jobs, secret: secret.clone(), tls, legacy, more };
    let backups = disk.spawn(backup::serve(config.backup_address(), service));
    let _backups = backups.await.context("the backup service failed")??;
    let snapshotter = disk.spawn(snapshotter::run(storage.clone(), config.snapshots.clone()));
    let looks =
        probe::watch_the_looks(shared.clone(), events.clone(), probe::longest_silence(&config));
    let looks = tokio::spawn(looks);
    let executor = Executor::new(
        disk.clone(),
        storage,
        coordination,
        events,
        shared.clone(),
        &config,
        (me.clone(), secret),
    )?;
    tracing::info!(peer = %me.id, shard = config.shard, "sitter {} starts", crate::VERSION);
    let trace = trace::Trace::open(&config, &machine_config)?;
    let channel = (control.clone(), controls);
    let driver = Driver::new(machine, executor, queue, channel, trace, shared);
    let driver = tokio::spawn(driver.run(first));
    tokio::pin!(driver);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let told_to_stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    tokio::pin!(told_to_stop);
    // Once: whoever stops takes no more controls.
    let mut stops = false;
    loop {
        tokio::select! {
            () = &mut told_to_stop, if !stops => {
                stops = true;
                control.send(Control::Stop).await?;
            }
            _ = hangup.recv(), if !stops => match reload(path, &config) {
                Ok(reloaded) => control.send(Control::Reload(Box::new(reloaded))).await?,
                Err(error) => tracing::error!("the file was not taken: {error:#}"),
            },
            ended = &mut driver => {
                server.abort();
                snapshotter.abort();
                looks.abort();
                ended.context("the driver failed")??;
                tracing::info!("sitter stopped");
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
}

/// What of a file that was read again may differ from the one that the sitter started with.
fn reload(path: &Path, old: &Config) -> Result<driver::Reloaded> {
    let new = Config::load(path)?;
    let me = new.ident()?;
    let fixed = [
        ("ip, postgres.port or backup.port", me.id != old.ident()?.id),
        ("zone", me.zone_id != old.ident()?.zone_id),
        ("shard", new.shard != old.shard),
        ("coordination", new.coordination != old.coordination),
        ("zookeeper", new.zookeeper != old.zookeeper),
        ("etcd", new.etcd != old.etcd),
        ("dataset", new.dataset != old.dataset),
        ("storage", new.storage != old.storage),
        ("backup", new.backup != old.backup),
        ("tls", new.tls != old.tls),
        ("snapshots", new.snapshots != old.snapshots),
        ("postgres.superuser", new.postgres.superuser != old.postgres.superuser),
        ("lease", new.lease() != old.lease()),
        ("keep_aside", new.keep_aside != old.keep_aside),
        ("coordination_timeout", new.coordination_timeout != old.coordination_timeout),
        ("health.interval", new.health.interval != old.health.interval),
        ("log", new.log != old.log),
        ("session_timeout", new.session_timeout.get_ref() != old.session_timeout.get_ref()),
        (
            "status",
            new.status_port() != old.status_port() || new.status.listen != old.status.listen,
        ),
    ];
    if let Some((field, _)) = fixed.iter().find(|(_, changed)| *changed) {
        bail!("{}: {field} differs from what this sitter runs with: restart it", path.display());
    }
    Ok(driver::Reloaded {
        machine: machine_config(&new)?,
        settings: executor::settings(&new, &me)?,
        secret: new.secret(),
    })
}

fn machine_config(config: &Config) -> Result<MachineConfig> {
    Ok(MachineConfig {
        me: config.ident()?,
        one_node_write_mode: config.one_node_write_mode,
        deposed: config.deposed_policy(),
        lease: config.lease(),
        retry_min: config.health.retry_min.millis(),
        retry_max: config.health.retry_max.millis(),
        give_up: config.health.give_up.millis(),
    })
}

/// One sitter a dataset: two would run two servers over one database.
pub(crate) fn lock_dataset(config: &Config) -> Result<File> {
    let dataset = &config.dataset;
    let name = dataset.display();
    if !dataset.exists() {
        fs::create_dir_all(dataset).with_context(|| format!("cannot create the dataset {name}"))?;
        fs::set_permissions(dataset, fs::Permissions::from_mode(0o755))?;
    }
    let path = dataset.join("sitter.lock");
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        anyhow::anyhow!("dataset {name}: another sitter runs on it: stop that first")
    })?;
    Ok(lock)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "shard = \"1.example\"\nip = \"127.0.0.1\"\ndataset = \"/d\"\n\
        coordination = \"sqlite:/x.db\"\nreplication.password = \"secret\"\n";

    /// What is taken of a file that is read again, and what needs a restart, by name.
    #[test]
    fn what_a_running_sitter_cannot_take_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("sitter.toml");
        fs::write(&path, FILE).expect("a file");
        let old = Config::load(&path).expect("a file of a sitter");
        let again = |text: &str| {
            fs::write(&path, text).expect("a file");
            reload(&path, &old).map(|taken| taken.machine)
        };
        for (text, field) in [
            (FILE.replace("1.example", "2.example"), "shard differs"),
            (FILE.replace("\"/d\"", "\"/e\""), "dataset differs"),
            (FILE.replace("x.db", "y.db"), "coordination differs"),
            (format!("session_timeout = 30\n{FILE}"), "lease differs"),
            (format!("session_timeout = 70\nlease = 60\n{FILE}"), "session_timeout differs"),
            (
                format!("{FILE}[postgres]\nport = 5433\n"),
                "ip, postgres.port or backup.port differs",
            ),
            (format!("{FILE}[postgres]\nsuperuser = \"root\"\n"), "postgres.superuser differs"),
            (format!("{FILE}[health]\ninterval = 2\n"), "health.interval differs"),
            (format!("{FILE}[status]\nport = 7000\n"), "status differs"),
        ] {
            let told = format!("{:#}", again(&text).expect_err(field));
            assert!(told.contains(field) && told.contains("restart it"), "{told}");
        }
        let told = format!("{:#}", again("shard = 1").expect_err("no file of a sitter"));
        assert!(told.contains("sitter.toml"), "{told}");
        let text = format!("one_node_write_mode = true\n{FILE}[health]\ngive_up = 7\n");
        let taken = again(&text).expect("it is taken");
        assert!(taken.one_node_write_mode);
        assert_eq!(taken.give_up.0, 7_000);
    }
}
