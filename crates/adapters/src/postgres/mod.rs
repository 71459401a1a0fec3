//! PostgreSQL of one dataset: create, configure, start, watch, promote, stop, fence.
//!
//! Contract: [`Postgres::apply`] brings the server to exactly one configuration, and when it
//! returns that configuration is *in force*, not merely written. At no moment, outside
//! [`cluster::Counts::Alone`], can a commit be acknowledged by this server by itself.
//! [`Postgres::fence`] waits for nothing and nobody.

mod apply;
mod binaries;
pub(crate) mod connection;
mod create;
mod error;
pub(crate) mod files;
mod force;
mod guard;
mod history;
mod look;
mod preview;
mod probe;
pub(crate) mod process;
mod render;
#[cfg(test)]
mod render_tests;
mod rewind;
mod rewound;
mod server;
mod session;
mod settings;
mod slots;
mod tail;
mod timelines;

pub use binaries::{programs, programs_for};
pub use error::{PgCause, PgError};
pub use guard::{RefusedSetting, check_names};
pub use history::{Divergence, Refusal, WalFile};
pub use look::{Database, Found};
pub use probe::{Probe, Receiver, Sender};
pub use rewound::Rewound;
pub use server::{fence_data, fence_dataset};
pub use settings::Settings;
pub use timelines::{drop_reservations, segment_of};

use crate::exec::OsUser;
use crate::storage::{SeedRequest, SeedSource};
use binaries::Binaries;
use cluster::{Lsn, PeerId, PgConfig};
use server::Server;
use session::Session;
use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::watch;

/// How often a condition is looked at for which PostgreSQL has no event.
const POLL: Duration = Duration::from_millis(10);

/// How to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Sessions are cut, the last WAL goes to the standbys, no recovery at the next start.
    Fast,
    /// At once, as in a crash.
    Immediate,
}

/// How many fences there had been.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epoch(u64);

/// A configuration that is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// The WAL position, read after the configuration was in force.
    pub position: Lsn,
    /// The timeline that the database is known to be on.
    pub timeline: u32,
}

/// The server ended, and nobody here had asked it to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerExit {
    /// The process that ended.
    pub pid: u32,
    /// How it ended; not known of a server that an earlier sitter started.
    pub status: Option<String>,
    /// The end of its log.
    pub log: String,
}

/// The PostgreSQL of one dataset. Dropping it leaves the server running.
pub struct Postgres {
    inner: Arc<Inner>,
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Postgres({})", self.inner.data.display())
    }
}

/// What the operations share.
struct Inner {
    settings: Settings,
    bin: Binaries,
    /// Who runs the server, when that is not us.
    user: Option<OsUser>,
    data: PathBuf,
    /// Raised by each fence; what began under an earlier one starts no server.
    epoch: watch::Sender<u64>,
    process: Mutex<Option<Arc<Server>>>,
    exits: watch::Sender<Option<ServerExit>>,
    /// The session of `probe`.
    kept: tokio::sync::Mutex<Option<Session>>,
    /// `synchronous_standby_names` as we made it.
    names: Mutex<Option<String>>,
    /// Held while the server is being changed.
    changing: tokio::sync::Mutex<()>,
}

/// What this setting is where the operator has not set it, if that is not PostgreSQL's own default.
pub fn default_of(name: &str) -> Option<&'static str> {
    render::DEFAULTS.iter().find(|(found, _)| *found == name).map(|(_, value)| *value)
}

/// The replication slot of a peer at its upstream.
pub fn slot_of(peer: &PeerId) -> String {
    render::slot_name(peer)
}

impl Postgres {
    /// Finds the server programs and checks all that can be checked without a database.
    ///
    /// # Errors
    /// When there are no programs of version 13 or later, no such user, no dataset, or a setting
    /// would break a rule of the shard.
    pub fn open(settings: Settings) -> Result<Postgres, PgError> {
        let data = settings.dataset.join("data");
        Inner::open(settings).map(|inner| Postgres { inner }).map_err(|cause| PgError {
            data,
            operation: "use it as configured",
            cause,
        })
    }

    /// As given to [`Postgres::open`].
    pub fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        &self.inner.data
    }

    /// The directory of the server programs.
    pub fn bin_dir(&self) -> &Path {
        self.inner.bin.directory()
    }

    /// Who runs the server, when that is not us.
    pub fn os_user(&self) -> Option<&OsUser> {
        self.inner.user.as_ref()
    }

    /// The log of the server.
    pub fn log_path(&self) -> PathBuf {
        self.inner.log_path()
    }

    /// Shows these settings of the operator to the server program, without a database: whether they
    /// exist and can have these values. Those of extensions are not known to it and pass.
    ///
    /// # Errors
    /// [`PgCause::Settings`] for what is not the operator's to set, [`PgCause::Rejected`] with the
    /// program's own words, or when it does not answer within `query_timeout`.
    pub async fn check_settings(
        &self,
        user_settings: &BTreeMap<String, String>,
    ) -> Result<(), PgError> {
        let inner = &self.inner;
        let checked = inner.preview(user_settings).await;
        checked.map_err(|cause| inner.error("use these settings", cause))
    }

    /// Looks at the dataset, and takes a server that runs in it for ours, whoever started it.
    ///
    /// # Errors
    /// When the dataset or its files cannot be read.
    pub async fn inspect(&self) -> Result<Found, PgError> {
        let inner = &self.inner;
        inner.guarded("look at it", inner.epoch(), async { inner.look() }).await
    }

    /// Makes an empty database.
    ///
    /// # Errors
    /// When there is one already, or anything else in its place; when a program fails.
    pub async fn create_database(&self) -> Result<(), PgError> {
        let inner = &self.inner;
        inner.guarded("create a database", inner.epoch(), Box::pin(inner.create())).await
    }

    /// Brings the server to this configuration, from whatever it is; when this returns, it is in
    /// force. Doing it again changes nothing and disturbs nobody.
    ///
    /// A primary is started with its clients kept out until it is certain that commits wait.
    /// A configuration that cannot be had by a reload is had by a restart.
    ///
    /// # Errors
    /// When the server cannot be started, does not take the configuration in time, or
    /// [`PgCause::Fenced`]. Nothing unsafe is left in force then; try again.
    pub async fn apply(&self, config: &PgConfig) -> Result<Applied, PgError> {
        self.apply_since(self.epoch(), config).await
    }

    /// When an operation was ordered that is begun later: a fence in between is one of it, too.
    pub fn epoch(&self) -> Epoch {
        Epoch(self.inner.epoch())
    }

    /// [`Postgres::apply`], ordered then.
    ///
    /// # Errors
    /// The same.
    pub async fn apply_since(&self, ordered: Epoch, config: &PgConfig) -> Result<Applied, PgError> {
        let (inner, Epoch(epoch)) = (&self.inner, ordered);
        inner.guarded("apply a configuration", epoch, Box::pin(inner.bring(config, epoch))).await
    }

    /// Stops the server and waits for its end. Not running is no error. An orderly stop that takes
    /// longer than `stop_timeout` becomes an immediate one, and what has not ended a second after an
    /// immediate one was asked for is killed: whatever was wrong with it, no server is left.
    ///
    /// # Errors
    /// When the operating system refuses to signal or list processes, or a fence comes.
    pub async fn stop(&self, mode: StopMode) -> Result<(), PgError> {
        let inner = &self.inner;
        inner.guarded("stop the server", inner.epoch(), inner.halt(mode)).await
    }

    /// Ends the server at once, whatever else is going on, and whatever its disk does. When this function has
    /// returned, every operation in progress fails with [`PgCause::Fenced`] and starts nothing any more, and the
    /// server that is known has been told to end; the future tells one that is not known,
    /// kills what has not ended after a second, and resolves when no process of the server is left. Operations
    /// ordered later are not affected.
    ///
    /// # Errors
    /// When the operating system refuses to signal or list processes.
    #[must_use = "the server may be running until the future has resolved"]
    pub fn fence(&self) -> impl Future<Output = Result<(), PgError>> + Send + use<> {
        let told = self.inner.fence_now();
        let inner = self.inner.clone();
        async move {
            let told = match told {
                Ok(None) => inner.fence_unknown().map(|()| None),
                told => told,
            };
            // Even when it could not be told: killing may succeed.
            let known = told.as_ref().ok().cloned().flatten();
            let through = inner.fence_through(known).await;
            through.and(told.map(drop)).map_err(|cause| inner.error("fence the server", cause))
        }
    }

    /// Whether anything of a server runs in the data directory, whoever started it.
    ///
    /// # Errors
    /// When its files, or the processes of this host, cannot be read.
    pub fn is_running(&self) -> Result<bool, PgError> {
        let inner = &self.inner;
        inner.anything_runs().map_err(|cause| inner.error("look for its server", cause))
    }

    /// What the server says of itself, over one kept connection, within `query_timeout`.
    ///
    /// # Errors
    /// When it does not run or does not answer in time.
    pub async fn probe(&self) -> Result<Probe, PgError> {
        let inner = &self.inner;
        inner.ask().await.map_err(|cause| inner.error("ask the server", cause))
    }

    /// Writes something to the disk of the database and waits until it is there; to a disk that hangs, for ever.
    /// Nothing changes but the time of one file, and nothing at all where there is no database. Blocks.
    ///
    /// # Errors
    /// When the disk refuses it: it does not hang then.
    pub fn write_through(&self) -> io::Result<()> {
        for path in
            [self.inner.settings.dataset.join(files::MARKER), self.data().join("PG_VERSION")]
        {
            match fs::File::open(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                file => {
                    let file = file?;
                    file.set_modified(std::time::SystemTime::now())?;
                    return file.sync_all();
                }
            }
        }
        Ok(())
    }

    /// How long the server's log is, in bytes.
    pub fn log_length(&self) -> u64 {
        // No log is an empty one.
        std::fs::metadata(self.inner.log_path()).map_or(0, |log| log.len())
    }

    /// Whether this standby can never stream from the server at this address, because that has
    /// another history, or no longer the WAL that comes next here; [`Divergence::None`] as long as
    /// that is not certain. Of our own log only what stands after `log_from` counts.
    ///
    /// # Errors
    /// When that server cannot be asked.
    pub async fn divergence(
        &self,
        ours: &Probe,
        host: &str,
        port: u16,
        log_from: u64,
    ) -> Result<Divergence, PgError> {
        let inner = &self.inner;
        let asked = inner.divergence(ours, host, port, log_from).await;
        asked.map_err(|cause| inner.error("compare its history with its upstream's", cause))
    }

    /// The same of a standby that does not come up, because of this refusal ([`PgCause::CannotRecover`]).
    ///
    /// # Errors
    /// When that server cannot be asked, or the control file here not be read.
    pub async fn divergence_at_rest(
        &self,
        refusal: Refusal,
        host: &str,
        port: u16,
    ) -> Result<Divergence, PgError> {
        let inner = &self.inner;
        let asked = async { inner.diverged(&inner.position().await?, refusal, host, port).await };
        asked.await.map_err(|cause| inner.error("compare its history with its upstream's", cause))
    }

    /// Tells of each end of the server that nobody asked for here, the latest. An end during a
    /// start is an error of [`Postgres::apply`] instead. A server that was started elsewhere is
    /// watched from the first `inspect`, `apply` or `stop` on.
    pub fn exits(&self) -> watch::Receiver<Option<ServerExit>> {
        self.inner.exits.subscribe()
    }

    /// Whether that server lets the replication role in: it has started, and is not only going to.
    pub async fn answers(&self, source: &SeedSource) -> bool {
        self.inner.answers(source).await
    }

    /// Which database is here, if it is one that has served.
    ///
    /// # Errors
    /// When its files cannot be read.
    pub fn identity(&self) -> Result<Option<u64>, PgError> {
        let inner = &self.inner;
        let identity = match inner.database() {
            Ok(Database::Established) => files::system_identifier(&inner.data).map(Some),
            Ok(Database::None | Database::Prepared) => Ok(None),
            Err(cause) => Err(cause),
        };
        identity.map_err(|cause| inner.error("find out which database it is", cause))
    }

    /// Makes the database here a standby's of this primary if its whole history is a part of that
    /// primary's, so that nothing has to be copied; whether it was. It must have been a primary's, and
    /// stopped in an orderly way.
    ///
    /// # Errors
    /// When that cannot be found out; nothing is changed then. [`PgCause::Command`] is all that a rewind
    /// may still help against.
    pub async fn follow_if_ancestor(&self, source: &SeedSource) -> Result<bool, PgError> {
        let inner = &self.inner;
        let work = Box::pin(inner.follow_if_ancestor(source));
        inner.guarded("compare it with the present primary's", inner.epoch(), work).await
    }

    /// Makes the database here, whatever became of it, what a base backup of this primary would be,
    /// by copying only what differs. It must have been a primary's, and stopped. What was written here and
    /// not there is lost from it: keep a copy first. Tells bytes done and to do, and what it consisted of.
    ///
    /// # Errors
    /// When that is not possible: it was a standby's, the source is no primary or another database, or no
    /// longer has the WAL since the two parted. When it fails halfway, there is no database afterwards.
    pub async fn rewind(
        &self,
        source: &SeedSource,
        mut progress: impl FnMut(u64, u64) + Send,
    ) -> Result<Rewound, PgError> {
        let inner = &self.inner;
        let work = Box::pin(inner.rewind(source, &mut progress));
        inner.guarded("rewind it to the present primary's", inner.epoch(), work).await
    }

    /// Removes what a rewind that was interrupted left: it is no database, and takes the room of one. What it
    /// was before was kept by whoever asked for the rewind. None may be going on.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub async fn remove_half_rewound(&self) -> Result<(), PgError> {
        let inner = &self.inner;
        let work = inner.remove_half_rewound();
        inner.guarded("remove what an interrupted rewind left", inner.epoch(), work).await
    }

    /// Makes the directory of the socket, where there is none.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make_socket_dir(&self) -> Result<(), PgError> {
        let inner = &self.inner;
        inner.socket_dir().map_err(|cause| inner.error("make the directory of its socket", cause))
    }

    /// What a storage backend needs to fill this dataset from these.
    pub fn seed_request(&self, sources: Vec<SeedSource>) -> SeedRequest {
        let settings = &self.inner.settings;
        SeedRequest {
            sources,
            user: settings.replication_user.clone(),
            password: settings.replication_password.clone(),
            rate_mib: None,
            pg_basebackup: self.inner.bin.path("pg_basebackup"),
            os_user: self.inner.user.clone(),
        }
    }
}

impl Inner {
    fn open(mut settings: Settings) -> Result<Arc<Inner>, PgCause> {
        guard::check(&settings)?;
        settings.dataset =
            fs::canonicalize(&settings.dataset).map_err(PgCause::file(&settings.dataset))?;
        let data = settings.dataset.join("data");
        let database = binaries::database_version(&data)?;
        let bin = Binaries::find(settings.bin_dir.as_deref(), database)?;
        let user = if rustix::process::geteuid().is_root() {
            let name = settings.os_user.get_or_insert_with(|| "postgres".to_owned());
            let user = OsUser::find(name)?;
            if user.uid == 0 {
                let remedy = "PostgreSQL refuses to run as root: name another user";
                return Err(PgCause::settings(format!("user {name:?} is root"), remedy));
            }
            Some(user)
        } else {
            // The server runs as we do, and lets us in by that name.
            settings.os_user = Some(OsUser::own_name()?);
            None
        };
        Ok(Arc::new(Inner {
            settings,
            bin,
            user,
            data,
            epoch: watch::Sender::new(0),
            process: Mutex::default(),
            exits: watch::Sender::new(None),
            kept: tokio::sync::Mutex::default(),
            names: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
        }))
    }

    fn error(&self, operation: &'static str, cause: PgCause) -> PgError {
        PgError { data: self.data.clone(), operation, cause }
    }

    fn epoch(&self) -> u64 {
        *self.epoch.borrow()
    }

    /// Does one thing at a time, and gives it up when a fence comes after `epoch`.
    async fn guarded<T>(
        &self,
        operation: &'static str,
        epoch: u64,
        work: impl Future<Output = Result<T, PgCause>>,
    ) -> Result<T, PgError> {
        let mut epochs = self.epoch.subscribe();
        // The operations are long and nested: on the heap they burden no caller's future.
        let alone = Box::pin(async {
            let _changing = self.changing.lock().await;
            work.await
        });
        let outcome = tokio::select! {
            biased;
            // The sender lives in `self`: this ends only with a fence.
            _ = epochs.wait_for(|now| *now != epoch) => Err(PgCause::Fenced),
            outcome = alone => outcome,
        };
        outcome.map_err(|cause| self.error(operation, cause))
    }
}
