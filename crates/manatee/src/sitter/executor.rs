//! The executor: performs the machine's actions, each in a task of its own, and answers every
//! operation with exactly one event. It chooses nothing.

use super::{
    config::Config,
    driver::{Control, Reloaded},
    probe,
    refill::Backups,
    server::Shared,
    sources::{hold_session, seen, send, watch_exits, whole},
};
use crate::backup::Secret;
use adapters::{
    coord::{self, Coordination},
    postgres::{self, Epoch, PgCause, PgError, Postgres, Settings, StopMode},
    storage::Storage,
};
use anyhow::{Context, Result};
use cluster::{
    Action, Applied, ApplyError, ClusterState, Database, Event, Lsn, Millis, PeerIdent, PgCommand,
    PgConfig, PgOutcome, PutOutcome, Version,
};
use std::{
    convert::Infallible,
    sync::{Arc, RwLock},
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::{Mutex, mpsc, oneshot, watch},
    task::JoinHandle,
    time::timeout,
};

/// How long an orderly stop waits for an operation in flight before it stops the server at once.
const STOP_PATIENCE: Duration = Duration::from_secs(30);

/// How long a look at what is here may take before it counts as one that failed.
const LONGEST_LOOK: Duration = Duration::from_secs(20);

/// How PostgreSQL is to be run, from the sitter's file.
pub(crate) fn settings(config: &Config, me: &PeerIdent) -> Result<Settings> {
    let postgres = &config.postgres;
    let password = config.replication.password.clone().context("replication has no password")?;
    Ok(Settings {
        bin_dir: postgres.bin_dir.clone(),
        dataset: config.mountpoint(),
        home: config.dataset.clone(),
        socket_dir: postgres.socket_dir.clone().unwrap_or_else(|| config.dataset.join("run")),
        me: me.id.clone(),
        listen: postgres.listen.clone().unwrap_or_else(|| config.ip.to_string()),
        port: postgres.port,
        os_user: rustix::process::geteuid().is_root().then(|| postgres.os_user.clone()),
        superuser: postgres.superuser.clone(),
        superuser_password: postgres.superuser_password.clone(),
        replication_user: config.replication.user.clone(),
        replication_password: password,
        upstream_slot: None,
        client_hba: postgres.client_access.clone(),
        user_settings: config.user_settings()?,
        slot_keep_size: postgres.slot_keep_mib,
        wal_keep_size: postgres.wal_keep_mib,
        // Often enough that an answer of the sync is always younger than a third of the lease.
        status_interval: Millis(config.lease().0 / 3),
        start_timeout: postgres.start_timeout.millis(),
        stop_timeout: postgres.stop_timeout.millis(),
        query_timeout: postgres.query_timeout.millis(),
    })
}

/// What the tasks share.
pub(super) struct World {
    /// Where everything runs that may wait for the file system of the database.
    disk: Handle,
    coordination: Arc<dyn Coordination>,
    pub(super) storage: Arc<dyn Storage>,
    settings: RwLock<Settings>,
    /// Opened when the machine first looks, so that programs that are missing now may come later.
    postgres: watch::Sender<Option<Arc<Postgres>>>,
    /// Held by the one command to PostgreSQL in flight.
    busy: Mutex<()>,
    /// The look that has not ended.
    looking: Mutex<Option<JoinHandle<Result<Event>>>>,
    events: mpsc::Sender<Event>,
    pub(super) shared: Arc<Shared>,
    pub(super) keep_aside: usize,
    /// How to reach the backup services of other peers.
    pub(super) backups: Backups,
    lease: Millis,
    interval: Millis,
}

pub(super) struct Executor {
    world: Arc<World>,
    me: PeerIdent,
    session_timeout: Millis,
    session: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
    /// Gives up the command to PostgreSQL in flight.
    cancel: Option<oneshot::Sender<()>>,
}

impl Executor {
    /// # Errors
    /// When the file gives no password for replication.
    pub(super) fn new(
        disk: Handle,
        storage: Arc<dyn Storage>,
        coordination: Arc<dyn Coordination>,
        events: mpsc::Sender<Event>,
        shared: Arc<Shared>,
        config: &Config,
        (me, secret): (PeerIdent, Secret),
    ) -> Result<Self> {
        let world = Arc::new(World {
            disk,
            coordination,
            storage,
            settings: RwLock::new(settings(config, &me)?),
            postgres: watch::channel(None).0,
            busy: Mutex::new(()),
            looking: Mutex::new(None),
            events,
            shared,
            keep_aside: config.keep_aside,
            backups: Backups::of(config, &me, secret),
            lease: config.lease(),
            interval: config.health.interval.millis(),
        });
        let session_timeout = config.session_timeout.get_ref().millis();
        Ok(Executor { world, me, session_timeout, session: None, cancel: None })
    }

    /// Starts an action. Returns at once.
    pub(super) fn start(&mut self, action: Action) {
        let world = self.world.clone();
        match action {
            Action::Inspect => drop(tokio::spawn(async move { world.inspect().await })),
            Action::Join { database } => self.join(database),
            Action::Leave => {
                let told = self.session.take().is_some_and(|(leave, _)| leave.send(()).is_ok());
                if !told {
                    // It ended by itself in the meantime.
                    drop(tokio::spawn(async move { send(&world.events, Event::Left).await }));
                }
            }
            Action::Put { expected, state } => {
                drop(tokio::spawn(async move { world.put(expected, &state).await }));
            }
            Action::Read => drop(tokio::spawn(async move { world.read().await })),
            Action::Postgres(command) => {
                let (cancel, cancelled) = oneshot::channel();
                self.cancel = Some(cancel);
                let running = world.watch_the_disk_during(&command);
                // Before it is begun there may be a fence.
                let ordered = world.postgres.borrow().clone().map(|postgres| {
                    let epoch = postgres.epoch();
                    (postgres, epoch)
                });
                let command = async move {
                    let _running = running;
                    world.command(command, cancelled, ordered).await;
                };
                drop(self.world.disk.spawn(command));
            }
            Action::CancelPostgres => self.cancel(),
            Action::Fence => fence(world),
            Action::WakeAt(_) => unreachable!("the driver keeps the alarm"),
        }
    }

    fn cancel(&mut self) {
        // One that has ended is not to be given up any more.
        let _ = self.cancel.take().map(|cancel| cancel.send(()));
    }

    fn join(&mut self, database: Database) {
        let (leave, left) = oneshot::channel();
        let world = &self.world;
        let (coordination, events) = (world.coordination.clone(), world.events.clone());
        let me = self.me.clone().with_database(database);
        let session = hold_session(coordination, me, self.session_timeout, events, left);
        self.session = Some((leave, tokio::spawn(session)));
    }

    /// Takes new settings of PostgreSQL in a task of its own; what is running is adopted under them.
    /// Says so by `control` when that is done.
    pub(super) fn reload(&self, reloaded: Reloaded, control: mpsc::Sender<Control>) {
        let world = self.world.clone();
        self.world.disk.spawn(async move {
            let Reloaded { machine, settings, secret } = reloaded;
            match world.take_settings(settings).await {
                Ok(()) => {
                    world.backups.secret.replace(&secret);
                    if control.send(Control::Reloaded(Box::new(machine))).await.is_err() {
                        tracing::debug!("the file was read again while the driver ended");
                    }
                }
                Err(error) => tracing::error!("the file was not taken: {error:#}"),
            }
        });
    }

    /// Stops PostgreSQL, in an orderly way unless an operation on it does not end, then ends the session.
    pub(super) async fn shut_down(mut self) -> Result<()> {
        self.cancel();
        let world = self.world.clone();
        let looked = world.postgres.borrow().is_some();
        let stopped = self.world.disk.spawn(async move { world.stop().await });
        // Where nobody has come to look, the disk may hang.
        let limit = if looked { Duration::MAX } else { 2 * STOP_PATIENCE };
        let stopped = timeout(limit, stopped).await.with_context(|| {
            format!("PostgreSQL was not stopped within {} s: does its disk hang?", limit.as_secs())
        });
        let stopped = stopped?.context("the task that stops PostgreSQL failed")?;
        if let Some((leave, session)) = self.session.take()
            && leave.send(()).is_ok()
        {
            session.await.context("the session's task failed")?;
        }
        stopped.context("PostgreSQL could not be stopped")
    }
}

/// Nothing comes before this: a server that is known has been told to end when this returns, whatever its disk
/// does; only waiting for its processes to be gone comes later.
fn fence(world: Arc<World>) {
    let postgres = world.postgres.borrow().clone();
    let dataset = world.storage.dataset().to_owned();
    let fenced = postgres.map(|postgres| postgres.fence());
    world.disk.clone().spawn(async move {
        let result = match fenced {
            Some(fenced) => fenced.await,
            // Without a `Postgres`, because its programs or settings are wrong, what runs is stopped too.
            None => postgres::fence_dataset(&dataset).await.map(drop),
        };
        let result = result.map_err(|error| whole(&error));
        send(&world.events, Event::Fenced(result)).await;
    });
}

impl World {
    async fn stop(&self) -> Result<(), PgError> {
        let busy = timeout(STOP_PATIENCE, self.busy.lock()).await;
        let postgres = self.postgres.borrow().clone();
        match (postgres, &busy) {
            // Its programs or settings are wrong, or nobody has looked yet: what runs is stopped too.
            (None, _) => self.stop_unopened().await,
            (Some(postgres), Ok(_idle)) => postgres.stop(StopMode::Fast).await,
            (Some(postgres), Err(_)) => {
                // An orderly stop would wait for its end as well, while nobody fences any more.
                tracing::warn!(
                    waited_s = STOP_PATIENCE.as_secs(),
                    "an operation on PostgreSQL does not end: giving it up and stopping the server at once"
                );
                postgres.fence().await
            }
        }
    }

    /// Stops what runs in the dataset: in an orderly way where there are programs for it.
    async fn stop_unopened(&self) -> Result<(), PgError> {
        let settings = self.settings.read().expect("no holder panics").clone();
        let dataset = settings.dataset.clone();
        match Postgres::open(settings) {
            Ok(postgres) => postgres.stop(StopMode::Fast).await,
            Err(error) => {
                if postgres::fence_dataset(&dataset).await? {
                    tracing::warn!(
                        "PostgreSQL was stopped at once, as in a crash: {}",
                        whole(&error)
                    );
                }
                Ok(())
            }
        }
    }

    async fn take_settings(self: &Arc<Self>, settings: Settings) -> Result<()> {
        let _busy = timeout(STOP_PATIENCE, self.busy.lock())
            .await
            .context("an operation on PostgreSQL is in flight: try again when it has ended")?;
        let postgres = Postgres::open(settings.clone())?;
        postgres.check_settings(&settings.user_settings).await?;
        postgres.inspect().await?;
        *self.settings.write().expect("no holder panics") = settings;
        self.adopt(Arc::new(postgres));
        Ok(())
    }

    fn adopt(self: &Arc<Self>, postgres: Arc<Postgres>) {
        self.postgres.send_replace(Some(postgres.clone()));
        let current = self.postgres.subscribe();
        tokio::spawn(watch_exits(postgres.clone(), current, self.events.clone()));
        let (events, shared) = (self.events.clone(), self.shared.clone());
        let timing = probe::Timing { interval: self.interval, lease: self.lease };
        let current = self.postgres.subscribe();
        tokio::spawn(probe::watch(postgres, current, events, shared, timing));
    }

    /// Looks what is here; one look that takes long is waited for again.
    async fn inspect(self: Arc<Self>) {
        let mut looking = self.looking.lock().await;
        // What one has found that ended while nobody waited for it may be so no longer.
        if looking.as_ref().is_some_and(JoinHandle::is_finished) {
            *looking = None;
        }
        let look = looking.get_or_insert_with(|| {
            let world = self.clone();
            self.disk.spawn(async move { world.look().await })
        });
        let event = match timeout(LONGEST_LOOK, look).await {
            Ok(looked) => {
                *looking = None;
                let looked = looked.unwrap_or_else(|failed| Err(failed.into()));
                looked.unwrap_or_else(|error| Event::InspectFailed(format!("{error:#}")))
            }
            Err(_) => Event::InspectFailed(format!(
                "what is in {} could not be looked at for {} s: does its disk hang?",
                self.storage.dataset().display(),
                LONGEST_LOOK.as_secs()
            )),
        };
        send(&self.events, event).await;
    }

    async fn look(self: &Arc<Self>) -> Result<Event> {
        // Not while a command is at work: it may have the dataset unmounted on purpose.
        if let Ok(_idle) = self.busy.try_lock() {
            self.storage.prepare().await?;
        }
        let postgres = match self.postgres.borrow().clone() {
            Some(postgres) => postgres,
            None => {
                let settings = self.settings.read().expect("no holder panics").clone();
                Arc::new(Postgres::open(settings)?)
            }
        };
        let found = postgres.inspect().await?;
        if self.postgres.borrow().is_none() {
            self.adopt(postgres);
        }
        // The position that a quiesced configuration proved is not known any more: without it the
        // machine quiesces again. For every other configuration it says nothing.
        let applied = found
            .applied
            .filter(|config| !config.is_quiesced())
            .map(|config| Applied { config, position: Lsn::ZERO });
        let (database, running) = (database(found.database), found.running);
        Ok(Event::Inspected { database, running, applied })
    }

    async fn put(&self, expected: Option<Version>, state: &ClusterState) {
        let outcome = match self.coordination.put(expected, state).await {
            coord::PutOutcome::Committed(version) => PutOutcome::Committed(version),
            coord::PutOutcome::Conflict => PutOutcome::Conflict,
            coord::PutOutcome::Refused(error) => PutOutcome::Refused(whole(&error)),
            coord::PutOutcome::Unknown(error) => PutOutcome::Unknown(whole(&error)),
        };
        send(&self.events, Event::PutDone(outcome)).await;
    }

    async fn read(&self) {
        let result = self.coordination.read().await;
        let result =
            result.map(|view| view.state.as_ref().map(seen)).map_err(|error| whole(&error));
        send(&self.events, Event::ReadDone(result)).await;
    }

    /// Looks whether the disk hangs for as long as what is returned lives: while a command is in flight that waits
    /// for nothing but PostgreSQL and its disk.
    fn watch_the_disk_during(&self, command: &PgCommand) -> Option<oneshot::Sender<Infallible>> {
        if !matches!(command, PgCommand::Apply(_) | PgCommand::Stop) {
            return None;
        }
        let postgres = self.postgres.borrow().clone()?;
        let (running, ended) = oneshot::channel();
        let (events, disk) = (self.events.clone(), self.disk.clone());
        drop(tokio::spawn(probe::watch_the_disk(postgres, events, disk, ended)));
        Some(running)
    }

    async fn command(
        &self,
        command: PgCommand,
        cancelled: oneshot::Receiver<()>,
        ordered: Option<(Arc<Postgres>, Epoch)>,
    ) {
        let _busy = self.busy.lock().await;
        let postgres = self.postgres.borrow().clone().expect("looked at before it is commanded");
        // New settings may have come in between, with another one, which knows nothing of the fences before.
        let ordered = ordered.filter(|(of, _)| Arc::ptr_eq(of, &postgres)).map(|(_, epoch)| epoch);
        let result = match &command {
            PgCommand::Seed(_) | PgCommand::Rebuild(..) => tokio::select! {
                result = self.perform(&postgres, &command, ordered) => result,
                Ok(()) = cancelled => Err(anyhow::anyhow!("given up: {command}")),
            },
            _ => self.perform(&postgres, &command, ordered).await,
        };
        if let (PgCommand::Apply(config), Err(error)) = (&command, &result) {
            self.judge(&postgres, config, error).await;
        }
        let event = match result {
            Ok(outcome) => Event::PgDone(outcome),
            Err(error) => Event::PgFailed(self.explain(&postgres, &command, &error).await),
        };
        send(&self.events, event).await;
    }

    /// Tells the machine if a standby that does not come up never will.
    async fn judge(&self, postgres: &Postgres, config: &PgConfig, error: &anyhow::Error) {
        let cause = error.downcast_ref().map(|PgError { cause, .. }| cause);
        if let Some(PgCause::CannotRecover { refusal, .. }) = cause
            && let PgConfig::Standby { upstream: Some(upstream), .. } = config
            && let Ok((host, port)) = upstream.pg_address()
        {
            let judged = postgres.divergence_at_rest(*refusal, &host, port).await;
            if let Err(error) = &judged {
                // Nothing else will tell why it is neither up nor copied.
                tracing::warn!(
                    "whether the database here can ever follow that of {} is not known: {}",
                    upstream.id,
                    whole(error)
                );
            }
            if let Some(judged) = probe::report(judged, &upstream.id, &self.events).await {
                probe::report_foreign(None, &(upstream.id.clone(), judged));
            }
        }
    }

    async fn perform(
        &self,
        postgres: &Postgres,
        command: &PgCommand,
        ordered: Option<Epoch>,
    ) -> Result<PgOutcome> {
        Ok(match command {
            PgCommand::Prepare => {
                postgres.create_database().await?;
                PgOutcome::Prepared
            }
            PgCommand::Apply(config) => {
                let ordered = ordered.context("new settings were taken before it was begun")?;
                let postgres::Applied { position, timeline } =
                    postgres.apply_since(ordered, config).await?;
                PgOutcome::Applied { position, timeline: Some(timeline) }
            }
            PgCommand::Stop => {
                postgres.stop(StopMode::Fast).await?;
                PgOutcome::Stopped
            }
            PgCommand::Seed(sources) => {
                self.seed(postgres, sources).await?;
                self.shared.count_copy();
                PgOutcome::Copied
            }
            PgCommand::Rebuild(sources, way) => {
                self.rebuild(postgres, sources, *way).await?;
                self.shared.count_copy();
                PgOutcome::Copied
            }
        })
    }

    /// A failure with what is true after it: whatever cannot be told counts as running.
    async fn explain(
        &self,
        postgres: &Postgres,
        command: &PgCommand,
        error: &anyhow::Error,
    ) -> ApplyError {
        let problem = format!("{command}: {error:#}");
        let look = async {
            // A dataset that is not mounted would look like a database that is lost.
            self.storage.prepare().await?;
            anyhow::Ok(postgres.inspect().await?)
        };
        match look.await {
            Ok(found) => {
                let database = Some(database(found.database));
                ApplyError { problem, running: found.running, database }
            }
            Err(_) => ApplyError { problem, running: true, database: None },
        }
    }
}

fn database(found: postgres::Database) -> Database {
    match found {
        postgres::Database::None => Database::None,
        postgres::Database::Prepared => Database::Prepared,
        postgres::Database::Established => Database::Established,
    }
}

/// Whether this configuration is a primary's that waits for something, so that it is looked at more
/// often.
pub(super) fn is_waiting(config: Option<&PgConfig>) -> bool {
    matches!(config, Some(PgConfig::Primary { gate: cluster::Gate::Closed, .. }))
}
