//! The server process: start, find, watch, stop, fence.

use super::{
    Inner, POLL, PgCause, PgError, Refusal, ServerExit, StopMode, files, guard,
    process::{self, Process, ProcessId},
    render::{self, Files},
    session::within,
};
use cluster::Millis;
use rustix::process::Signal;
use std::{
    fs::{self, File},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{process::Child, sync::watch};

/// How long an immediate stop may take before everything is killed. PostgreSQL itself would wait
/// five seconds for a backend that does not react.
const GRACE: Millis = Millis(1000);
/// How often the log of a server that starts is looked at.
const LOG_POLL: Duration = Duration::from_secs(1);
/// A log longer than this, in bytes, is put aside at the next start.
const LOG_LIMIT: u64 = 64 << 20;

/// A postmaster.
#[derive(Debug)]
pub(super) struct Server {
    pub process: Process,
    /// Somebody here asked it to end.
    expected: AtomicBool,
    /// It is not ready yet, and whoever starts it is told of its end.
    starting: AtomicBool,
    ended: watch::Sender<Option<String>>,
}

impl Server {
    pub fn id(&self) -> ProcessId {
        self.process.id
    }

    fn signal(&self, signal: Signal) -> Result<(), PgCause> {
        self.expected.store(true, Ordering::SeqCst);
        self.process.signal(signal).map_err(problem(self.id().pid))
    }

    /// Has it read its configuration again.
    pub fn reread(&self) -> Result<(), PgCause> {
        self.process.signal(Signal::HUP).map_err(problem(self.id().pid))
    }

    /// Waits for its end; how it ended.
    pub async fn ended(&self) -> String {
        let mut ended = self.ended.subscribe();
        // The sender lives in `self`, so this cannot fail.
        match ended.wait_for(Option::is_some).await {
            Ok(status) => status.clone().unwrap_or_default(),
            Err(_) => String::new(),
        }
    }

    fn has_ended(&self) -> bool {
        self.ended.borrow().is_some()
    }

    /// Whether it is there, even where the watcher has not come to tell of its end yet. A new
    /// process is not recognisable at first.
    fn lives(&self, data: &Path) -> bool {
        let new = self.starting.load(Ordering::SeqCst);
        !self.has_ended() && (new || process::is_of_server(self.id().pid, data))
    }
}

struct Starting<'a>(&'a Server);

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        self.0.starting.store(false, Ordering::SeqCst);
    }
}

fn problem(pid: u32) -> impl FnOnce(io::Error) -> PgCause {
    move |source| PgCause::Process { pid, source }
}

/// The postmaster that runs in this data directory.
fn postmaster(data: &Path) -> Result<Option<Process>, PgCause> {
    let path = data.join("postmaster.pid");
    let Some(text) = files::read(&path)? else {
        return Ok(None);
    };
    let Some(pid) = text.lines().next().and_then(|pid| pid.trim().parse().ok()) else {
        return Ok(None);
    };
    let process = Process::open(pid).map_err(problem(pid))?;
    // The file outlives a crash, and its number may be another process's by now.
    Ok(process.filter(|_| process::is_of_server(pid, data)))
}

/// Ends the server of this dataset at once, for one who knows nothing else of it: neither programs
/// nor settings nor a user are needed. When this function has returned, the server has been told to
/// end; the future kills what has not ended after a second, and resolves when nothing is left.
/// Nobody is kept from starting it again: where there is a [`super::Postgres`], its fence is meant.
/// `false` when nothing was running.
///
/// # Errors
/// When the operating system refuses to signal or list processes.
#[must_use = "the server may be running until the future has resolved"]
pub fn fence_dataset(dataset: &Path) -> impl Future<Output = Result<bool, PgError>> + Send + use<> {
    fence_data(dataset.join("data"))
}

/// The same for the server of this data directory.
///
/// # Errors
/// When the operating system refuses to signal or list processes.
#[must_use = "the server may be running until the future has resolved"]
pub fn fence_data(data: PathBuf) -> impl Future<Output = Result<bool, PgError>> + Send + use<> {
    // Also what outlived its postmaster. Looked for before anything can have ended.
    let runs = process::of_server(&data).map(|all| !all.is_empty()).map_err(problem(0));
    let told = postmaster(&data).and_then(|found| {
        found
            .map_or(Ok(()), |process| process.signal(Signal::QUIT).map_err(problem(process.id.pid)))
    });
    async move {
        // Even when it could not be told: killing may succeed.
        let through = end_all(&data, || true).await;
        let ended = through.and(told).and(runs);
        ended.map_err(|cause| PgError { data, operation: "fence the server", cause })
    }
}

/// Waits until no process of a server that was told to end is left and `ended` says so too. Kills
/// what is left after a second.
async fn end_all(data: &Path, ended: impl Fn() -> bool) -> Result<(), PgCause> {
    let ends = async {
        loop {
            let left = process::of_server(data).map_err(problem(0))?;
            if left.is_empty() && ended() {
                return Ok::<(), PgCause>(());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if let Ok(ended) = within(GRACE, "an immediate stop", ends).await {
        return ended;
    }
    tracing::warn!(data = %data.display(), "the server does not stop: killing it");
    process::kill_all(data).await.map_err(problem(0))
}

/// What `postmaster.pid` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LockFile {
    pub pid: u32,
    pub port: u16,
    pub socket_dir: PathBuf,
    /// `starting`, `ready`, `standby`, `stopping`.
    pub status: String,
}

impl Inner {
    /// Reads `postmaster.pid`; `None` when there is none, or when it is still being written.
    pub fn lock_file(&self) -> Result<Option<LockFile>, PgCause> {
        let Some(text) = files::read(&self.data.join("postmaster.pid"))? else {
            return Ok(None);
        };
        let lines: Vec<_> = text.lines().map(str::trim).collect();
        let line = |number: usize| lines.get(number - 1).copied().unwrap_or_default();
        let (Ok(pid), Ok(port)) = (line(1).parse(), line(4).parse()) else {
            return Ok(None);
        };
        Ok(Some(LockFile { pid, port, socket_dir: line(5).into(), status: line(8).to_owned() }))
    }

    pub fn log_path(&self) -> PathBuf {
        self.settings.home.join("log/postgresql.log")
    }

    /// The running postmaster, whoever started it.
    pub fn find(&self) -> Result<Option<Arc<Server>>, PgCause> {
        // Looked for without the lock: a fence waits for that, and must not wait for a disk.
        let before = self.process.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(server) = before.as_ref().filter(|server| server.lives(&self.data)) {
            return Ok(Some(server.clone()));
        }
        let found = self.find_unknown()?;
        let mut known = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let same = match (known.as_ref(), before.as_ref()) {
            (Some(known), Some(before)) => Arc::ptr_eq(known, before),
            (known, before) => known.is_none() && before.is_none(),
        };
        // Otherwise one was started, or found, meanwhile.
        if same {
            *known = found.map(|process| self.watch(process, None));
        }
        Ok(known.clone())
    }

    /// Whether there is a postmaster, or what outlived one.
    pub fn anything_runs(&self) -> Result<bool, PgCause> {
        let left = || process::of_server(&self.data).map(|all| !all.is_empty()).map_err(problem(0));
        Ok(self.find()?.is_some() || left()?)
    }

    /// A postmaster that this value did not start.
    fn find_unknown(&self) -> Result<Option<Process>, PgCause> {
        postmaster(&self.data)
    }

    fn watch(&self, process: Process, child: Option<Child>) -> Arc<Server> {
        let server = Arc::new(Server {
            process,
            expected: AtomicBool::new(false),
            starting: AtomicBool::new(child.is_some()),
            ended: watch::Sender::new(None),
        });
        let (watched, exits, log) = (server.clone(), self.exits.clone(), self.log_path());
        tokio::spawn(async move {
            let status = match child {
                Some(mut child) => child.wait().await.map(|status| Some(status.to_string())),
                None => watched.process.ended().await.map(|()| None),
            };
            let status = status.unwrap_or_else(|error| Some(format!("cannot be watched: {error}")));
            let told = status.clone().unwrap_or_else(|| "exit status unknown".to_owned());
            watched.ended.send_replace(Some(told));
            let told = [&watched.expected, &watched.starting];
            if !told.iter().any(|flag| flag.load(Ordering::SeqCst)) {
                exits.send_replace(Some(ServerExit {
                    pid: watched.id().pid,
                    status,
                    log: files::log_tail(&log, 0),
                }));
            }
        });
        server
    }

    /// Starts the server with these files and waits until it takes connections.
    pub async fn start(&self, files: &Files, epoch: u64) -> Result<Arc<Server>, PgCause> {
        // Backends that outlived their postmaster hold on to its shared memory.
        process::kill_all(&self.data).await.map_err(problem(0))?;
        files::remove(&self.data.join("postmaster.pid"))?;
        self.prepare(files)?;
        let (server, log_start) = self.spawn(epoch)?;
        self.ready(&server, log_start).await?;
        Ok(server)
    }

    /// Writes the files and takes out of `postgresql.auto.conf` what is ours to set.
    fn prepare(&self, files: &Files) -> Result<(), PgCause> {
        self.write_files(files)?;
        let auto_conf = self.data.join("postgresql.auto.conf");
        if let Some((text, names)) =
            files::read(&auto_conf)?.and_then(|text| guard::stripped(&text))
        {
            tracing::warn!(settings = ?names, "taken out of postgresql.auto.conf: Manatee sets them");
            files::write(&auto_conf, &text, self.user.as_ref())?;
        }
        self.socket_dir()
    }

    pub fn socket_dir(&self) -> Result<(), PgCause> {
        files::directory(&self.settings.socket_dir, 0o755, self.user.as_ref())
    }

    /// Writes the configuration files that differ; whether any did.
    pub fn write_files(&self, files: &Files) -> Result<bool, PgCause> {
        let user = self.user.as_ref();
        let mut changed = false;
        // What allows connections goes first: `manatee.conf` carries the nonce of all.
        for (name, text) in
            [(render::HBA, &files.hba), (render::IDENT, &files.ident), (render::CONF, &files.conf)]
        {
            let path = self.data.join(name);
            if files::read(&path)?.as_ref() != Some(text) {
                files::write(&path, text, user)?;
                changed = true;
            }
        }
        let path = self.data.join("postgresql.conf");
        if let Some(text) = render::included(&files::read(&path)?.unwrap_or_default()) {
            files::write(&path, &text, user)?;
            changed = true;
        }
        Ok(changed)
    }

    /// Starts the process, unless a fence came after `epoch`; where its log begins.
    fn spawn(&self, epoch: u64) -> Result<(Arc<Server>, u64), PgCause> {
        let (log, log_start) = self.open_log()?;
        let exec = self
            .bin
            .exec("postgres", self.user.as_ref())
            .arg("-D")
            .arg(&self.data)
            .directory(&self.data);
        if *self.epoch.borrow() != epoch {
            return Err(PgCause::Fenced);
        }
        // Without the lock: this may wait for the disk.
        let child = exec.daemon(&log)?;
        let pid = child.id().unwrap_or_default();
        let process = Process::open(pid)
            .and_then(|process| process.ok_or_else(|| io::Error::other("gone at once")))
            .map_err(problem(pid))?;
        let server = self.watch(process, Some(child));
        // The fence takes this lock to raise the epoch: it sees the server, or is seen here.
        let mut known = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        if *self.epoch.borrow() != epoch {
            server.expected.store(true, Ordering::SeqCst);
            server.signal(Signal::KILL)?;
            return Err(PgCause::Fenced);
        }
        // The end of one that was started anew since is no news any more.
        if let Some(before) = known.replace(server.clone()) {
            before.expected.store(true, Ordering::SeqCst);
            self.exits.send_replace(None);
        }
        Ok((server, log_start))
    }

    fn open_log(&self) -> Result<(File, u64), PgCause> {
        let path = self.log_path();
        let directory = self.settings.home.join("log");
        files::directory(&directory, 0o750, self.user.as_ref())?;
        let length = || match fs::metadata(&path) {
            Ok(found) => Ok(found.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        };
        let open = || -> io::Result<(File, u64)> {
            if length()? > LOG_LIMIT {
                fs::rename(&path, path.with_extension("log.old"))?;
            }
            let file = File::options().append(true).create(true).mode(0o640).open(&path)?;
            files::give(&path, self.user.as_ref())?;
            Ok((file, length()?))
        };
        open().map_err(PgCause::file(&path))
    }

    /// Whether it takes connections.
    pub fn is_up(&self, server: &Server) -> Result<bool, PgCause> {
        Ok(self.lock_file()?.is_some_and(|lock| {
            lock.pid == server.id().pid && matches!(&*lock.status, "ready" | "standby")
        }))
    }

    /// Waits until a server that starts takes connections. When that takes too long it is left to
    /// go on: recovery after a crash needs its time.
    pub async fn ready(&self, server: &Arc<Server>, log_start: u64) -> Result<(), PgCause> {
        let status = async {
            while !self.is_up(server)? {
                tokio::time::sleep(POLL).await;
            }
            Ok(())
        };
        let ready = async {
            tokio::select! {
                ready = status => ready,
                status = server.ended() => Err(self.start_failure(status, log_start)),
                refused = self.cannot_recover(log_start) => Err(refused),
            }
        };
        // From the end of this wait on, however it ends, its end is news.
        let _starting = Starting(server);
        within(self.settings.start_timeout, "a start of the server", ready).await?
    }

    /// Waits until a standby that starts has twice got no WAL from its upstream, which no longer has it or has
    /// another history, for without it it never comes to where it takes connections. In between it has looked
    /// for it here.
    ///
    /// This judges nothing. One that can follow its upstream also writes of a history that it has come to know
    /// of and does not go along with. What is decided by is what the upstream says of its history, held against
    /// the position that recovery must come to at least, by the control file: where the upstream left before it,
    /// nothing that comes later can make the database here whole. Everything else is taken for one that can
    /// follow; its server goes on meanwhile, and is waited for again.
    async fn cannot_recover(&self, log_start: u64) -> PgCause {
        if log_start == u64::MAX {
            // It may have been told just now to ask somebody else.
            tokio::time::sleep(LOG_POLL).await;
        }
        let mut log = files::LogReader::from(self.log_path(), log_start);
        let mut times = 0;
        loop {
            tokio::time::sleep(LOG_POLL).await;
            for refusal in log.new_lines().iter().filter_map(|line| Refusal::of_line(line)) {
                times += 1;
                if times == 2 {
                    let log = files::log_tail(&self.log_path(), log_start);
                    return PgCause::CannotRecover { refusal, log };
                }
            }
        }
    }

    fn start_failure(&self, status: String, log_start: u64) -> PgCause {
        let log = files::log_tail(&self.log_path(), log_start);
        if log.contains("Address already in use")
            || (log.contains("lock file") && log.contains(".s.PGSQL."))
        {
            let port = self.settings.port;
            PgCause::PortInUse { port, log }
        } else if log.contains("No space left on device") {
            PgCause::NoSpace { log }
        } else if let Some(refusal) = Refusal::of_start(&log) {
            PgCause::CannotRecover { refusal, log }
        } else {
            PgCause::CannotStart { status, log }
        }
    }

    /// Stops the server, if it runs, and whatever is left of it: at once, when an orderly stop takes
    /// too long, and by killing it when it does not even do that.
    pub async fn halt(&self, mode: StopMode) -> Result<(), PgCause> {
        let Some(server) = self.find()? else {
            return process::kill_all(&self.data).await.map_err(problem(0));
        };
        if mode == StopMode::Fast {
            server.signal(Signal::INT)?;
            let limit = self.settings.stop_timeout;
            if within(limit, "an orderly stop", server.ended()).await.is_ok() {
                return process::kill_all(&self.data).await.map_err(problem(0));
            }
            tracing::warn!(
                data = %self.data.display(),
                limit_ms = limit.0,
                "an orderly stop of the server takes too long: stopping it at once"
            );
        }
        server.signal(Signal::QUIT)?;
        self.fence_through(Some(server)).await
    }

    /// Forbids every start that was ordered before, and tells the server that is known to end at once. Waits for
    /// nothing but the shortest of locks.
    pub fn fence_now(&self) -> Result<Option<Arc<Server>>, PgCause> {
        let known = {
            let known = self.process.lock().unwrap_or_else(PoisonError::into_inner);
            self.epoch.send_modify(|epoch| *epoch += 1);
            known.clone().filter(|server| !server.has_ended())
        };
        if let Some(server) = &known {
            server.signal(Signal::QUIT)?;
        }
        Ok(known)
    }

    /// Tells a server to end at once that is not known. May wait for the disk.
    pub fn fence_unknown(&self) -> Result<(), PgCause> {
        match self.find_unknown()? {
            Some(process) => process.signal(Signal::QUIT).map_err(problem(process.id.pid)),
            None => Ok(()),
        }
    }

    /// Waits for the end of a server that was told to end at once, and kills what does not end.
    pub async fn fence_through(&self, known: Option<Arc<Server>>) -> Result<(), PgCause> {
        let ended = || known.as_ref().is_none_or(|server| server.has_ended());
        end_all(&self.data, ended).await?;
        if let Some(server) = known {
            // One that is too new to be recognised is not among those that were killed.
            server.signal(Signal::KILL)?;
            server.ended().await;
        }
        process::kill_all(&self.data).await.map_err(problem(0))
    }
}
