//! One peer: its sitter, its PostgreSQL, and what can be done to them.

use super::{Host, Volumes, locked, processes, processes::Usage, view::SitterState};
use crate::status::PeerStatus;
use adapters::{clock, service::quote};
use anyhow::{Context, Result, bail};
use cluster::{Monotonic, PeerId};
use rustix::process::Signal;
use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom},
    net::IpAddr,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
    time::Duration,
};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// How long a sitter may take to say how it is. It answers from memory.
const STATUS_LIMIT: Duration = Duration::from_secs(1);
/// How long a query of [`Peer::psql`] may take.
const QUERY_LIMIT: Duration = Duration::from_secs(30);
/// How much of a log is shown, in lines, and read, in bytes.
const TAIL: (usize, u64) = (12, 4096);

/// Where a peer is.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub zone: String,
    pub directory: PathBuf,
    pub host: Host,
    pub postgres_port: u16,
    pub backup_port: u16,
    pub status_port: u16,
    /// What the dataset with the database lies in, where that is not the directory.
    pub volumes: Volumes,
}

impl Place {
    pub fn config_file(&self) -> PathBuf {
        self.directory.join("sitter.toml")
    }

    pub fn dataset(&self) -> PathBuf {
        self.directory.join("dataset")
    }

    /// What a dataset with snapshots is called below its parent.
    pub fn volume(&self) -> &str {
        &self.zone
    }
}

/// The sitter's process, as far as we started it.
#[derive(Debug, Default)]
enum Sitter {
    /// Not started, or ended by us.
    #[default]
    Stopped,
    Running(Child),
    /// It ended, and nobody here had asked it to.
    Ended(String),
}

/// One peer of a [`super::Shard`].
#[derive(Debug)]
pub struct Peer {
    place: Place,
    binary: PathBuf,
    sitter: Mutex<Sitter>,
}

impl Peer {
    pub(super) fn new(place: Place, binary: PathBuf) -> Self {
        Peer { place, binary, sitter: Mutex::default() }
    }

    /// Its zone: what people call it.
    pub fn zone(&self) -> &str {
        &self.place.zone
    }

    /// Its name in the shard.
    pub fn id(&self) -> PeerId {
        let Place { host: Host { ip, .. }, postgres_port, backup_port, .. } = &self.place;
        PeerId::new(format!("{ip}:{postgres_port}:{backup_port}"))
    }

    /// Where its PostgreSQL listens, as `host:port`.
    pub fn address(&self) -> String {
        format!("{}:{}", self.place.host.ip, self.place.postgres_port)
    }

    /// The address of its PostgreSQL, and the port.
    pub fn host(&self) -> (IpAddr, u16) {
        (self.place.host.ip, self.place.postgres_port)
    }

    /// Its dataset: the socket is in `run`, the database in `data` where nothing else was asked for.
    pub fn dataset(&self) -> PathBuf {
        self.place.dataset()
    }

    /// Its database.
    pub fn data(&self) -> PathBuf {
        match self.place.volumes {
            Volumes::None => self.dataset().join("data"),
            Volumes::Btrfs(_) | Volumes::Zfs(_) => self.dataset().join("store/data"),
        }
    }

    /// The sitter's file.
    pub fn config_file(&self) -> PathBuf {
        self.place.config_file()
    }

    /// What its sitters printed, one after the other.
    pub fn log_file(&self) -> PathBuf {
        self.place.directory.join("sitter.log")
    }

    /// What starts and what stops its sitter as a service does, for a shell: one that is started so is nobody's
    /// child, and [`Peer::sitter_state`] knows nothing of it.
    pub fn service(&self) -> (String, String) {
        let word = |path: &Path| quote(&path.display().to_string());
        let binary = word(&self.binary);
        let file = word(&self.config_file());
        let (log, pid) = (word(&self.log_file()), word(&self.config_file().with_extension("pid")));
        // One that has ended and whose end nobody has asked for is in state Z, and still has its number.
        let runs =
            format!("[ -e {pid} ] && grep -qs '^State:.[^ZX]' \"/proc/$(cat {pid})/status\"");
        let start = format!(
            "{runs} || {{ setsid {binary} sitter --config {file} >>{log} 2>&1 </dev/null & echo $! >{pid}; }}"
        );
        let stop = format!(
            "[ -e {pid} ] || exit 0; kill -TERM \"$(cat {pid})\" 2>/dev/null; n=0; \
             while {runs}; do sleep 0.05; n=$((n+1)); [ $n -lt 1200 ] || exit 1; done; rm -f {pid}"
        );
        (start, stop)
    }

    /// Starts its sitter.
    ///
    /// # Errors
    /// When it runs already, or cannot be started.
    pub fn start_sitter(&self) -> Result<()> {
        let mut sitter = locked(&self.sitter);
        if matches!(*sitter, Sitter::Running(_)) {
            bail!("{}: its sitter runs already", self.zone());
        }
        let file = self.log_file();
        let log = OpenOptions::new().create(true).append(true).open(&file);
        let log = log.with_context(|| format!("cannot write {}", file.display()))?;
        let mut command = self.command();
        let child = command
            .args(["sitter", "--config"])
            .arg(self.config_file())
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("cannot share the sitter's log")?)
            .stderr(log)
            // Ctrl-C in our terminal is for us; we stop the sitters in our own way.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", self.binary.display()))?;
        *sitter = Sitter::Running(child);
        Ok(())
    }

    /// The `manatee` binary, to be started on the peer's host.
    fn command(&self) -> Command {
        match self.place.host.enter.split_first() {
            None => Command::new(&self.binary),
            Some((program, arguments)) => {
                let mut command = Command::new(program);
                command.args(arguments).arg(&self.binary);
                command
            }
        }
    }

    /// What its sitter says of itself.
    ///
    /// # Errors
    /// When it does not answer within a second.
    pub fn status(&self) -> Result<PeerStatus> {
        let url = format!("http://{}:{}/state", self.place.host.ip, self.place.status_port);
        let request = ureq::get(&url).config().timeout_global(Some(STATUS_LIMIT)).build();
        let mut answer = request.call().with_context(|| format!("{url} does not answer"))?;
        answer.body_mut().read_json().with_context(|| format!("{url}: not what was expected"))
    }

    /// What `/ping` of its sitter finds wrong; nothing when it is healthy.
    ///
    /// # Errors
    /// When it does not answer within a second, or not what it should.
    pub fn ping(&self) -> Result<Option<String>> {
        let url = format!("http://{}:{}/ping", self.place.host.ip, self.place.status_port);
        let request = ureq::get(&url).config().timeout_global(Some(STATUS_LIMIT));
        let mut answer = request.http_status_as_error(false).build().call()?;
        let told: serde_json::Value = answer.body_mut().read_json()?;
        match (answer.status().as_u16(), told["healthy"].as_bool(), told["problem"].as_str()) {
            (200, Some(true), None) => Ok(None),
            (503, Some(false), Some(problem)) => Ok(Some(problem.to_owned())),
            _ => bail!("{url}: {} and {told}", answer.status()),
        }
    }

    /// Kills everything of this peer at once, as if its host had lost its power: the sitter, all of
    /// its PostgreSQL, what else they run. Says how many processes that were; none is left.
    ///
    /// # Errors
    /// When something cannot be killed.
    pub fn kill_host(&self) -> Result<usize> {
        let mut sitter = locked(&self.sitter);
        let killed = processes::kill(&self.place.directory, &self.binary)
            .with_context(|| format!("cannot kill {}", self.zone()))?;
        reap(&mut sitter)?;
        Ok(killed)
    }

    /// Kills the sitter alone; PostgreSQL goes on.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_sitter(&self) -> Result<()> {
        let mut sitter = locked(&self.sitter);
        let Sitter::Running(child) = &mut *sitter else {
            bail!("{}: its sitter does not run", self.zone());
        };
        child.kill().with_context(|| format!("cannot kill the sitter of {}", self.zone()))?;
        reap(&mut sitter)
    }

    /// Asks the sitter to stop in an orderly way, and waits until it has.
    ///
    /// # Errors
    /// When it does not run, or does not stop by itself.
    pub fn stop_sitter(&self) -> Result<()> {
        self.tell_sitter_to_stop()?;
        match self.wait_stopped(clock::now() + super::STOP_LIMIT)? {
            None => Ok(()),
            Some(how) => bail!("{}: {how}", self.zone()),
        }
    }

    /// Has the sitter read its file again.
    ///
    /// # Errors
    /// When it does not run.
    pub fn reload_sitter(&self) -> Result<()> {
        match &*locked(&self.sitter) {
            Sitter::Running(child) => {
                processes::signal(child.id().cast_signed(), Signal::HUP).map(drop)
            }
            _ => bail!("{}: its sitter does not run", self.zone()),
        }
    }

    /// What its sitter has cost since its start.
    ///
    /// # Errors
    /// When it does not run.
    pub fn sitter_usage(&self) -> Result<Usage> {
        match &*locked(&self.sitter) {
            Sitter::Running(child) => processes::usage(child.id()),
            _ => bail!("{}: its sitter does not run", self.zone()),
        }
    }

    /// Kills the postmaster alone; its children end when they notice.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_postgres(&self) -> Result<()> {
        let pid = self.postmaster()?;
        if !processes::signal(pid, Signal::KILL)? {
            bail!("{}: its PostgreSQL (process {pid}) does not run", self.zone());
        }
        Ok(())
    }

    /// The process id of its PostgreSQL, from the file that PostgreSQL keeps.
    fn postmaster(&self) -> Result<i32> {
        let file = self.data().join("postmaster.pid");
        let text = fs::read_to_string(&file)
            .with_context(|| format!("no PostgreSQL runs: cannot read {}", file.display()))?;
        let pid = text.lines().next().and_then(|line| line.trim().parse().ok());
        let pid = pid.with_context(|| format!("{} names no process", file.display()))?;
        // The file outlives a crash, and the number may be somebody else's by now.
        if !processes::of(&self.place.directory, &self.binary)?.contains(&pid) {
            bail!("{}: its PostgreSQL (process {pid}) does not run", self.zone());
        }
        Ok(pid)
    }

    /// Freezes everything of this peer, as if its host had stopped. Says how many processes.
    ///
    /// # Errors
    /// When something cannot be frozen.
    pub fn pause(&self) -> Result<usize> {
        let frozen = processes::freeze(&self.place.directory, &self.binary);
        Ok(frozen.with_context(|| format!("cannot freeze {}", self.zone()))?.len())
    }

    /// Freezes PostgreSQL alone, as if its disk hung; the sitter goes on.
    ///
    /// # Errors
    /// When something cannot be frozen.
    pub fn pause_postgres(&self) -> Result<()> {
        let sitter = match &*locked(&self.sitter) {
            Sitter::Running(child) => i32::try_from(child.id())?,
            _ => bail!("{}: its sitter does not run", self.zone()),
        };
        for pid in processes::of(&self.place.directory, &self.binary)? {
            if pid != sitter {
                processes::signal(pid, Signal::STOP)?;
            }
        }
        Ok(())
    }

    /// Lets go on what [`Peer::pause`] froze. Says how many processes.
    ///
    /// # Errors
    /// When something cannot be told so.
    pub fn resume(&self) -> Result<usize> {
        let frozen = processes::of(&self.place.directory, &self.binary)?;
        for pid in &frozen {
            processes::signal(*pid, Signal::CONT)?;
        }
        Ok(frozen.len())
    }

    /// Runs one or more statements as the superuser, by the Unix socket; returns the rows of all of
    /// them as text.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached, refuses, or takes longer than half a minute.
    pub fn psql(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
        let context = || format!("{}: {sql}", self.zone());
        let messages = self.with_database(async |client| Ok(client.simple_query(sql).await?));
        let mut rows = Vec::new();
        for message in messages.with_context(context)? {
            if let SimpleQueryMessage::Row(row) = message {
                rows.push((0..row.len()).map(|field| row.get(field).map(str::to_owned)).collect());
            }
        }
        Ok(rows)
    }

    /// Does something with a connection as the superuser, by the Unix socket.
    pub(super) fn with_database<T>(
        &self,
        work: impl AsyncFnOnce(&Client) -> Result<T>,
    ) -> Result<T> {
        let mut config = tokio_postgres::Config::new();
        config.host_path(self.dataset().join("run")).port(self.place.postgres_port);
        config.user("postgres").dbname("postgres").application_name("manatee demo");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let all = async {
            let (client, connection) = config.connect(NoTls).await?;
            // Its errors come back by the client, too.
            let connection = tokio::spawn(connection);
            let result = work(&client).await;
            drop(client);
            connection.abort();
            result
        };
        runtime
            .block_on(async { tokio::time::timeout(QUERY_LIMIT, all).await })
            .with_context(|| format!("no answer within {} s", QUERY_LIMIT.as_secs()))?
    }

    /// Whether its sitter runs.
    pub fn sitter_state(&self) -> SitterState {
        let mut sitter = locked(&self.sitter);
        if let Sitter::Running(child) = &mut *sitter {
            match child.try_wait() {
                Ok(None) => {}
                Ok(Some(status)) => *sitter = Sitter::Ended(status.to_string()),
                Err(error) => *sitter = Sitter::Ended(format!("cannot be asked for: {error}")),
            }
        }
        match &*sitter {
            Sitter::Stopped => SitterState::Stopped,
            Sitter::Running(_) => SitterState::Running,
            Sitter::Ended(how) => SitterState::Ended(how.clone()),
        }
    }

    /// What to say of a sitter that ended by itself: how, and the end of its log.
    pub fn obituary(&self) -> String {
        let how = match self.sitter_state() {
            SitterState::Ended(how) => how,
            SitterState::Stopped => "it was stopped".to_owned(),
            SitterState::Running => "it runs".to_owned(),
        };
        format!("the sitter of {} ended by itself: {how}; {}", self.zone(), self.end_of_log())
    }

    /// Where the sitter's log is, and its last lines.
    pub(super) fn end_of_log(&self) -> String {
        let log = self.log_file();
        let tail = match tail(&log) {
            Ok(text) if text.is_empty() => "    (empty)".to_owned(),
            Ok(text) => text,
            Err(error) => format!("    (cannot be read: {error})"),
        };
        format!("the end of {}:\n{tail}", log.display())
    }

    /// Asks the sitter to stop in an orderly way.
    pub(super) fn tell_sitter_to_stop(&self) -> Result<()> {
        if let Sitter::Running(child) = &mut *locked(&self.sitter) {
            processes::signal(i32::try_from(child.id())?, Signal::TERM)?;
        }
        Ok(())
    }

    /// Waits for the sitter that was told to stop, and ends what is left of the peer after it, its server's shared
    /// memory included. Says what had to be ended.
    pub(super) fn wait_stopped(&self, deadline: Monotonic) -> Result<Option<String>> {
        let mut sitter = locked(&self.sitter);
        let mut orderly = true;
        if let Sitter::Running(child) = &mut *sitter {
            orderly =
                processes::wait_until(deadline, "it to end", || Ok(child.try_wait()?.is_some()))
                    .is_ok();
        }
        let killed = processes::end(&self.place.directory, &self.binary)?;
        reap(&mut sitter)?;
        Ok(match (orderly, killed) {
            (true, 0) => None,
            (true, left) => Some(format!("{left} processes outlived the sitter and were ended")),
            (false, left) => Some(format!("did not stop in time; {left} processes were ended")),
        })
    }
}

/// Takes leave of a sitter that has ended or been killed.
fn reap(sitter: &mut Sitter) -> Result<()> {
    if let Sitter::Running(child) = sitter {
        child.wait().context("cannot wait for the sitter's end")?;
    }
    *sitter = Sitter::Stopped;
    Ok(())
}

/// The last lines of a file, indented.
fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL.1)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(TAIL.0)..];
    Ok(last.iter().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n"))
}
