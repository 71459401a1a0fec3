//! The processes of a private service, whichever it is: started, killed, frozen, waited for.

use crate::clock;
use crate::exec::{Exec, ExecError};
use cluster::Millis;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Child;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long all servers may take to serve. On a quiet machine it is two seconds.
const START_LIMIT: Millis = Millis(60_000);
/// Between two questions whether a server serves.
const POLL: Duration = Duration::from_millis(50);
/// How long a server may take to answer such a question.
const ANSWER_LIMIT: Duration = Duration::from_millis(1000);

/// Servers that could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It is not installed.
    #[error("there is no {0}: install the package {1}")]
    Missing(&'static str, &'static str),
    /// A file of it.
    #[error("cannot prepare {path}")]
    Files {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No port.
    #[error("no ports for {0}")]
    Ports(&'static str, #[source] io::Error),
    /// Its program.
    #[error("cannot start {0}")]
    Start(&'static str, #[source] ExecError),
    /// It does not serve.
    #[error("{what} has ended, or does not serve after {limit} ms (is its package installed?); the log of server {server} ends: {log}", limit = START_LIMIT.0)]
    NotServing {
        /// What it is.
        what: &'static str,
        /// Which of them.
        server: usize,
        /// What it said last.
        log: String,
    },
}

/// The servers of one service; dropping them kills them.
#[derive(Debug)]
pub(super) struct Servers {
    what: &'static str,
    servers: Vec<Server>,
    keeper: Keeper,
}

/// One of them, up or down.
#[derive(Debug)]
struct Server {
    log: PathBuf,
    process: Mutex<Option<Child>>,
}

impl Server {
    fn process(&self) -> MutexGuard<'_, Option<Child>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Servers {
    /// As many as there are logs; none of them runs yet.
    pub(super) fn new(what: &'static str, logs: impl IntoIterator<Item = PathBuf>) -> Self {
        let server = |log| Server { log, process: Mutex::default() };
        Servers { what, servers: logs.into_iter().map(server).collect(), keeper: Keeper::start() }
    }

    pub(super) fn count(&self) -> usize {
        self.servers.len()
    }

    /// Starts one with the command that is appended here; it dies with this process.
    pub(super) fn launch(
        &self,
        index: usize,
        append: impl FnOnce(Exec) -> Exec,
    ) -> Result<(), StartError> {
        let server = &self.servers[index];
        let log = OpenOptions::new().create(true).append(true).open(&server.log);
        let files = |source| StartError::Files { path: server.log.clone(), source };
        let exec = append(Exec::new("setpriv").args(["--pdeathsig", "KILL"]));
        let child = self.keeper.launch(exec, log.map_err(files)?);
        *server.process() = Some(child.map_err(|error| StartError::Start(self.what, error))?);
        Ok(())
    }

    /// Waits until one serves.
    pub(super) fn wait(&self, index: usize, serves: impl Fn() -> bool) -> Result<(), StartError> {
        let (begin, server) = (clock::now(), &self.servers[index]);
        while !serves() {
            let ended = match &mut *server.process() {
                Some(child) => matches!(child.try_wait(), Ok(Some(_))),
                None => true,
            };
            if ended || clock::now() - begin >= START_LIMIT {
                let log = std::fs::read_to_string(&server.log);
                let log = log.unwrap_or_else(|error| error.to_string());
                let lines: Vec<_> = log.lines().rev().take(20).collect();
                let log = lines.into_iter().rev().collect::<Vec<_>>().join("\n");
                return Err(StartError::NotServing { what: self.what, server: index, log });
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Kills one, if it runs, as a power failure would.
    pub(super) fn kill(&self, index: usize) {
        if let Some(mut child) = self.servers[index].process().take() {
            // It is our child, not waited for yet: the id is its own. A frozen one dies as well.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Lets one stand still: it keeps its connections and answers nothing.
    pub(super) fn freeze(&self, index: usize) {
        self.signal(index, Signal::STOP);
    }

    /// Lets it go on.
    pub(super) fn thaw(&self, index: usize) {
        self.signal(index, Signal::CONT);
    }

    fn signal(&self, index: usize, signal: Signal) {
        if let Some(child) = &*self.servers[index].process() {
            // It is our child, not waited for yet: the id is its own.
            let _ = kill_process(Pid::from_child(child), signal);
        }
    }

    /// The process of one; `None` when it was killed.
    pub(super) fn process(&self, index: usize) -> Option<u32> {
        self.servers[index].process().as_ref().map(Child::id)
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for index in 0..self.count() {
            self.kill(index);
        }
    }
}

/// What this finds, which is looked for as long as servers may take to serve.
pub(super) fn find<T>(look: impl Fn() -> Option<T>) -> Option<T> {
    let begin = clock::now();
    loop {
        let found = look();
        if found.is_some() || clock::now() - begin >= START_LIMIT {
            return found;
        }
        std::thread::sleep(POLL);
    }
}

/// What a server answers to this, before it closes the connection.
pub(super) fn exchange(address: SocketAddr, text: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_LIMIT)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    stream.write_all(text.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// A thread that starts the servers and lives as long as they may: the kernel kills them when it
/// ends, also when this process is killed.
#[derive(Debug)]
struct Keeper(Sender<Order>);

/// What to start, where its output goes, and where to answer.
type Order = (Exec, File, Sender<Result<Child, ExecError>>);

impl Keeper {
    fn start() -> Self {
        let (orders, received) = channel::<Order>();
        std::thread::spawn(move || {
            for (exec, log, answer) in received {
                // Whoever ordered waits for the answer.
                let _ = answer.send(exec.child(&log));
            }
        });
        Keeper(orders)
    }

    fn launch(&self, exec: Exec, log: File) -> Result<Child, ExecError> {
        let (answer, answered) = channel();
        let sent = self.0.send((exec, log, answer)).ok();
        let child = sent.and_then(|()| answered.recv().ok());
        child.expect("the keeper lives as long as its servers")
    }
}
