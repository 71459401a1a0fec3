//! A shard of real sitters and real PostgreSQL on this machine, for the demonstration and for tests.
//!
//! Contract: [`Shard`] owns everything that it starts and leaves no process behind when it is
//! dropped, a panic included; only its directory stays. What is waited for is waited for with a
//! limit, and what was missing stands in the error. All of it blocks: not to be called from within
//! a runtime.
//!
//! Peers that share one address share one kernel: a killed peer's connections are closed by it,
//! where those of a host that lost its power would stay silent. Peers can be given [`Host`]s of
//! their own, such as network namespaces, where that matters.

mod files;
mod gaps;
mod ledger;
mod peer;
mod processes;
mod stage;
mod view;
mod writer;

pub use adapters::testing::Host;
pub(crate) use files::SOCKET_PATH;
pub use gaps::Gap;
pub use ledger::{Ledger, LedgerReport};
pub use peer::Peer;
pub use processes::Usage;
pub use stage::{DONOR, Donor, Stage, Standalone, commands, sh};
pub use view::{PeerView, ShardView, SitterState};
pub use writer::{Progress, Writer, WriterHandle};

use adapters::clock;
use anyhow::{Context, Result, bail};
use cluster::{Millis, Monotonic};
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};
use view::Answer;

/// Between two questions to one sitter. Far below what a change of the shard takes, far above what an
/// answer costs.
const POLL: Duration = Duration::from_millis(100);
/// How long sitters may take to stop in an orderly way.
const STOP_LIMIT: Millis = Millis(20_000);
/// The role that writers log in as.
const CLIENT: &str = "demo";

/// What a shard is to be like.
#[derive(Debug, Clone)]
pub struct ShardOptions {
    /// The `manatee` binary.
    pub binary: PathBuf,
    /// Where everything goes; made where it does not exist, refused where it is not empty.
    pub directory: PathBuf,
    /// How many peers.
    pub peers: usize,
    /// In seconds.
    pub session_timeout: f64,
    /// How many times slower than usual the machine is, such as one that is emulated: everything is
    /// given so much longer, and done so much less often.
    pub slowness: u32,
    /// What the databases lie on.
    pub volumes: Volumes,
    /// Where its peers meet; a file in the directory where it is not given.
    pub coordination: Option<String>,
    /// Where each peer lives; all on the loopback address where there are none.
    pub hosts: Vec<Host>,
    /// Fields of every sitter's file that are to be other than they would be, as in the file.
    pub overrides: toml::Table,
    /// Set from elsewhere to make every wait fail with [`Interrupted`].
    pub interrupt: Arc<AtomicBool>,
}

impl ShardOptions {
    /// Three peers in this directory, with a session timeout of three seconds.
    pub fn new(binary: impl Into<PathBuf>, directory: impl Into<PathBuf>) -> Self {
        ShardOptions {
            binary: binary.into(),
            directory: directory.into(),
            peers: 3,
            session_timeout: 3.0,
            slowness: 1,
            volumes: Volumes::None,
            coordination: None,
            hosts: Vec::new(),
            overrides: toml::Table::new(),
            interrupt: Arc::default(),
        }
    }
}

/// What the databases of a shard lie on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Volumes {
    /// The directory of each peer.
    #[default]
    None,
    /// A subvolume each, in this directory of a btrfs.
    Btrfs(PathBuf),
    /// A file system each, below this one of a ZFS pool.
    Zfs(String),
}

/// A wait ended because [`ShardOptions::interrupt`] was set.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// A shard on this machine. Dropping it stops it.
#[derive(Debug)]
pub struct Shard {
    directory: PathBuf,
    coordination: String,
    interrupt: Arc<AtomicBool>,
    slowness: u32,
    client_password: String,
    shared: Arc<Shared>,
    pollers: Vec<JoinHandle<()>>,
}

/// What the threads share that ask the sitters.
#[derive(Debug)]
struct Shared {
    peers: Vec<Peer>,
    answers: Mutex<Vec<Option<Answer>>>,
    changed: Condvar,
    stop: AtomicBool,
}

/// No holder leaves what it guards half-changed, so that a panic elsewhere does not spoil it; and
/// cleaning up after that panic needs it.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shard {
    /// Writes the peers' files and starts their sitters; does not wait for anything.
    ///
    /// # Errors
    /// When the directory is no place for a shard, or a sitter cannot be started.
    pub fn start(options: &ShardOptions) -> Result<Shard> {
        let shard = Shard::prepare(options)?;
        for peer in shard.peers() {
            peer.start_sitter()?;
        }
        Ok(shard)
    }

    /// As [`Shard::start`], without starting a sitter.
    ///
    /// # Errors
    /// When the directory is no place for a shard.
    pub fn prepare(options: &ShardOptions) -> Result<Shard> {
        let directory = files::make_directory(&options.directory)?;
        let in_directory = || files::coordination(&directory);
        let coordination = options.coordination.clone().unwrap_or_else(in_directory);
        let peers = files::make_peers(options, &directory, &coordination)?;
        let answers = Mutex::new(peers.iter().map(|_| None).collect());
        let shared = Shared { peers, answers, changed: Condvar::new(), stop: false.into() };
        let mut shard = Shard {
            directory,
            coordination,
            interrupt: options.interrupt.clone(),
            slowness: options.slowness,
            client_password: uuid::Uuid::new_v4().simple().to_string(),
            shared: Arc::new(shared),
            pollers: Vec::new(),
        };
        for index in 0..shard.shared.peers.len() {
            let (shared, pause) = (shard.shared.clone(), POLL * options.slowness);
            shard.pollers.push(std::thread::spawn(move || poll(&shared, index, pause)));
        }
        Ok(shard)
    }

    /// Where everything is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The address of its coordination.
    pub fn coordination(&self) -> &str {
        &self.coordination
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        files::SHARD
    }

    /// The peers, in the order of their making.
    pub fn peers(&self) -> &[Peer] {
        &self.shared.peers
    }

    /// The peer of this index.
    pub fn peer(&self, index: usize) -> &Peer {
        &self.shared.peers[index]
    }

    /// The peer of this zone.
    ///
    /// # Panics
    /// When there is none.
    pub fn peer_of(&self, zone: &str) -> &Peer {
        let found = self.shared.peers.iter().find(|peer| peer.zone() == zone);
        found.unwrap_or_else(|| panic!("no peer has the zone {zone}"))
    }

    /// The peer that says it is primary and open for writes.
    ///
    /// # Errors
    /// When none does.
    pub fn primary(&self) -> Result<&Peer> {
        let view = self.view();
        let primary = view.primary().context("no peer is primary and open for writes")?;
        Ok(self.peer_of(&primary.zone))
    }

    /// How a client reaches whichever peer is primary: all of them, for one who may write.
    pub fn url(&self) -> String {
        let hosts: Vec<_> = self.peers().iter().map(Peer::address).collect();
        format!(
            "postgresql://{CLIENT}:{}@{}/postgres?target_session_attrs=read-write",
            self.client_password,
            hosts.join(",")
        )
    }

    /// The role and the password of clients.
    fn client(&self) -> (&str, &str) {
        (CLIENT, &self.client_password)
    }

    /// What every peer last said.
    pub fn view(&self) -> ShardView {
        let answers = locked(&self.shared.answers).clone();
        let peers = self.peers().iter().zip(answers);
        ShardView { peers: peers.map(|(peer, answer)| PeerView::new(peer, answer)).collect() }
    }

    /// Waits until `condition` holds of what every peer said after this call.
    ///
    /// # Errors
    /// When it does not within `limit`, when a sitter ends that nobody ended, or when interrupted.
    pub fn wait_for(
        &self,
        limit: Millis,
        what: &str,
        mut condition: impl FnMut(&ShardView) -> bool,
    ) -> Result<ShardView> {
        self.wait_until(limit, what, |view| {
            if condition(view) { Ok(()) } else { Err("it is not so yet".to_owned()) }
        })
    }

    /// Waits until the shard is whole by what every peer found out after this call: a primary open
    /// for writes, its sync streaming, everybody else following.
    ///
    /// # Errors
    /// As [`Shard::wait_for`]; says what was missing last.
    pub fn wait_whole(&self, limit: Millis) -> Result<ShardView> {
        let start = clock::now();
        self.wait_until(limit, "the shard to be whole", |view| view.whole_since(start))
    }

    /// Waits until `condition` says nothing any more of what is missing.
    pub(crate) fn wait_until(
        &self,
        limit: Millis,
        what: &str,
        mut condition: impl FnMut(&ShardView) -> Result<(), String>,
    ) -> Result<ShardView> {
        let start = clock::now();
        let mut missing = "no answer of a sitter yet".to_owned();
        loop {
            if self.interrupt.load(Ordering::Relaxed) {
                return Err(Interrupted.into());
            }
            let view = self.view();
            if let Some(peer) = view.peers.iter().find(|peer| peer.ended_by_itself().is_some()) {
                bail!(self.peer_of(&peer.zone).obituary());
            }
            if view.heard_since(start) {
                match condition(&view) {
                    Ok(()) => return Ok(view),
                    Err(problem) => missing = problem,
                }
            }
            if clock::now() - start > limit {
                bail!(self.too_long(limit, what, &missing, &view));
            }
            self.pause_for_news();
        }
    }

    /// Returns when a sitter has answered, or after [`POLL`].
    pub(crate) fn pause_for_news(&self) {
        let answers = locked(&self.shared.answers);
        // Why it ended does not matter: the caller looks again.
        drop(self.shared.changed.wait_timeout(answers, POLL));
    }

    fn too_long(&self, limit: Millis, what: &str, missing: &str, view: &ShardView) -> String {
        let seconds = limit.0 / 1000;
        let mut text = format!("waited {seconds} s for {what}: {missing}");
        for peer in &view.peers {
            text.push_str(&format!("\n  {}", peer.summary()));
            text.push_str(&format!("; {}", self.peer_of(&peer.zone).end_of_log()));
        }
        text
    }

    /// Stops every sitter in an orderly way, and with force what does not stop. Says what had to be
    /// forced.
    ///
    /// # Errors
    /// When something is still there afterwards.
    pub fn stop(&self) -> Result<Vec<String>> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.changed.notify_all();
        let mut problems = Vec::new();
        for peer in self.peers() {
            // Whoever was frozen could not stop by itself; and one failure must not keep the
            // others running.
            let told = peer.resume().and_then(|_| peer.tell_sitter_to_stop());
            problems.extend(told.err().map(|error| format!("{}: {error:#}", peer.zone())));
        }
        let deadline = clock::now() + STOP_LIMIT;
        let mut forced = Vec::new();
        for peer in self.peers() {
            match peer.wait_stopped(deadline) {
                Ok(None) => {}
                Ok(Some(how)) => forced.push(format!("{}: {how}", peer.zone())),
                Err(error) => problems.push(format!("{}: {error:#}", peer.zone())),
            }
        }
        if problems.is_empty() { Ok(forced) } else { bail!(problems.join("; ")) }
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("manatee: something of the shard may still be running: {error:#}");
        }
        for poller in self.pollers.drain(..) {
            if poller.join().is_err() {
                eprintln!("manatee: a thread that asks a sitter panicked");
            }
        }
    }
}

/// Asks one sitter, over and over, until the shard stops.
fn poll(shared: &Shared, index: usize, pause: Duration) {
    while !shared.stop.load(Ordering::Relaxed) {
        let asked: Monotonic = clock::now();
        let status = shared.peers[index].status().map_err(|error| format!("{error:#}"));
        locked(&shared.answers)[index] = Some(Answer { asked, status });
        shared.changed.notify_all();
        std::thread::sleep(pause);
    }
}
