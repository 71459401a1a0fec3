//! A client that writes one numbered row after another and keeps a ledger of those that were
//! acknowledged, through every change of primary.
//!
//! It is what a well-behaved client is: it waits a bounded time for each commit, connects anew after
//! any error, and takes a row that was not acknowledged for one whose outcome it does not know: it
//! never tries that number again. It asks all peers at once for who takes writes, where libpq asks
//! one after the other: a frozen host would else be part of what is measured.

use super::{Gap, Ledger, Shard, gaps::Gaps, locked};
use adapters::clock;
use anyhow::{Context, Result, anyhow, bail};
use cluster::{Millis, Monotonic};
use std::{
    fs::{File, OpenOptions},
    io::Write,
    net::IpAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage, Statement};

/// Between the starts of two rows.
const PACE: Duration = Duration::from_millis(10);
/// How long one peer may take to let the writer in, and to answer it.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// How long is looked for whoever takes writes before the writer says that nobody does.
const SEARCH_LIMIT: Duration = Duration::from_secs(3);
/// Before a peer that does not take writes is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(20);
/// How long one commit may take. A longer limit would not shorten an outage; a shorter one leaves
/// more rows of unknown outcome behind. For others, see [`Writer::wait_for_commits`].
const COMMIT_LIMIT: Millis = Millis(2_000);
/// How long the making of the table may take, a change of primary included.
const SETUP_LIMIT: Millis = Millis(30_000);

/// How far a writer is.
#[derive(Debug, Clone)]
pub struct Progress {
    /// Rows acknowledged.
    pub acknowledged: u64,
    /// Rows that were tried and not acknowledged.
    pub unacknowledged: u64,
    /// The number and the moment of the newest acknowledgement.
    pub newest: Option<(i64, Monotonic)>,
    /// The zone that it is of.
    pub newest_of: Option<String>,
    /// The zone that it writes to.
    pub connected_to: Option<String>,
    /// The newest error, while nothing has been acknowledged since.
    pub error: Option<String>,
    /// The newest error, whatever has been acknowledged since.
    pub last_error: Option<String>,
}

/// A running writer. Dropping it stops it.
#[derive(Debug)]
pub struct Writer {
    handle: WriterHandle,
    thread: Option<JoinHandle<Result<()>>>,
}

/// What others may look at while it runs.
#[derive(Debug, Clone)]
pub struct WriterHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    /// What all that goes by time is multiplied with.
    slowness: u32,
    /// How long one commit may take, in milliseconds.
    commit_limit: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    ledger: Ledger,
    gaps: Gaps,
    /// The newest acknowledgement, or number 0 at the start.
    newest: (i64, Monotonic),
    newest_of: Option<String>,
    unacknowledged: u64,
    connected_to: Option<String>,
    error: Option<String>,
    last_error: Option<String>,
}

impl Writer {
    /// Makes the role and the table on the primary, and starts to write to `ledger` in the shard's
    /// directory and to the database.
    ///
    /// # Errors
    /// When there is no primary that takes writes, or the file cannot be written.
    pub fn start(shard: &Shard) -> Result<Writer> {
        let setup = setup(shard.client());
        let slowness = shard.slowness;
        let limit = Millis(SETUP_LIMIT.0 * u64::from(slowness));
        shard.wait_until(limit, "the ledger's table to be made", |view| {
            let primary = view.primary().ok_or("no primary is open for writes")?;
            let made = shard.peer_of(&primary.zone).psql(&setup);
            made.map(drop).map_err(|error| format!("{error:#}"))
        })?;
        Self::to(routes(shard), &shard.directory().join("ledger"), slowness)
    }

    /// Starts to write to `ledger` in this file, and to whichever of these takes writes: each with its name.
    /// What [`setup`] makes must be there.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn to(routes: Vec<(String, Config)>, path: &Path, slowness: u32) -> Result<Writer> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        let state = State {
            ledger: Ledger::default(),
            gaps: Gaps::default(),
            newest: (0, clock::now()),
            newest_of: None,
            unacknowledged: 0,
            connected_to: None,
            error: None,
            last_error: None,
        };
        let shared = Arc::new(Shared {
            stop: false.into(),
            slowness,
            commit_limit: COMMIT_LIMIT.0.into(),
            state: Mutex::new(state),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let inner = shared.clone();
        let thread = std::thread::spawn(move || {
            let result = runtime.block_on(inner.write(&routes, file));
            result.inspect_err(|error| inner.failed(error))
        });
        Ok(Writer { handle: WriterHandle { shared }, thread: Some(thread) })
    }

    /// What others may look at.
    pub fn handle(&self) -> &WriterHandle {
        &self.handle
    }

    /// Whether it ended by itself: it could not keep its ledger; the error is in its progress.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// How many rows were acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.handle.ledger().acknowledged()
    }

    /// From the next row on, waits so long for each commit: for who counts the rows that are refused, and not
    /// those that a busy machine was slow to commit.
    pub fn wait_for_commits(&self, limit: Millis) {
        self.handle.shared.commit_limit.store(limit.0, Ordering::Relaxed);
    }

    /// See [`WriterHandle::longest_gap_since`].
    pub fn longest_gap_since(&self, mark: Monotonic) -> Gap {
        self.handle.longest_gap_since(mark)
    }

    /// Stops it, and returns its ledger.
    ///
    /// # Errors
    /// When it had ended before: the ledger's file could not be written.
    pub fn stop(mut self) -> Result<Ledger> {
        self.end()?;
        Ok(self.handle.ledger())
    }

    fn end(&mut self) -> Result<()> {
        self.handle.shared.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(result)) => result.context("the writer ended"),
            Some(Err(_)) => bail!("the writer panicked"),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("manatee: {error:#}");
        }
    }
}

impl WriterHandle {
    /// What was acknowledged so far.
    pub fn ledger(&self) -> Ledger {
        locked(&self.shared.state).ledger.clone()
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        let state = locked(&self.shared.state);
        Progress {
            acknowledged: state.ledger.acknowledged(),
            unacknowledged: state.unacknowledged,
            newest: (state.newest.0 > 0).then_some(state.newest),
            newest_of: state.newest_of.clone(),
            connected_to: state.connected_to.clone(),
            error: state.error.clone(),
            last_error: state.last_error.clone(),
        }
    }

    /// The longest time without an acknowledgement that ended after `mark`; the one that goes on now
    /// counts, too.
    pub fn longest_gap_since(&self, mark: Monotonic) -> Gap {
        let state = locked(&self.shared.state);
        let (before, from) = state.newest;
        let open = Gap { before, from, after: 0, to: clock::now() };
        let ended = state.gaps.longest_since(mark);
        ended.filter(|gap| gap.length() >= open.length()).unwrap_or(open)
    }
}

/// The statements that make what a writer needs; harmless a second time.
pub(super) fn setup((role, password): (&str, &str)) -> String {
    format!(
        "set password_encryption = 'scram-sha-256';
         do $$ begin
             if not exists (select from pg_roles where rolname = '{role}') then
                 create role {role} login password '{password}';
             end if;
         end $$;
         create table if not exists ledger (
             n bigint primary key, peer text not null, at timestamptz not null default now());
         grant all on ledger to {role};
         grant create on schema public to {role};"
    )
}

/// How to reach each peer, by its zone.
fn routes(shard: &Shard) -> Vec<(String, Config)> {
    shard.peers().iter().map(|peer| route(peer.zone(), peer.host(), shard.client())).collect()
}

/// How to reach one server.
pub(super) fn route(
    name: &str,
    (ip, port): (IpAddr, u16),
    (role, password): (&str, &str),
) -> (String, Config) {
    let mut config = Config::new();
    config.host(ip.to_string()).port(port).user(role).password(password).dbname("postgres");
    config.application_name("manatee demo writer");
    (name.to_owned(), config)
}

/// An open way to the primary.
struct Session {
    zone: String,
    client: Client,
    insert: Statement,
}

impl Shared {
    async fn write(&self, routes: &[(String, Config)], mut file: File) -> Result<()> {
        let mut pace = interval(PACE * self.slowness);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut session = None;
        while !self.stop.load(Ordering::Relaxed) {
            pace.tick().await;
            let open = match session.take() {
                Some(open) => open,
                None => match connect(routes, self.slowness).await {
                    Ok(open) => self.connected(open),
                    Err(error) => {
                        self.failed(&error);
                        continue;
                    }
                },
            };
            let number = locked(&self.state).ledger.try_next();
            let limit = Duration::from_millis(self.commit_limit.load(Ordering::Relaxed));
            match insert(&open, number, limit * self.slowness).await {
                Ok(()) => {
                    let at = clock::now();
                    writeln!(file, "{number}").context("cannot write the ledger's file")?;
                    self.acknowledged(number, at, &open.zone);
                    session = Some(open);
                }
                Err(error) => {
                    self.gave_up();
                    self.failed(&error);
                }
            }
        }
        Ok(())
    }

    fn connected(&self, session: Session) -> Session {
        locked(&self.state).connected_to = Some(session.zone.clone());
        session
    }

    fn acknowledged(&self, number: i64, at: Monotonic, zone: &str) {
        let mut state = locked(&self.state);
        state.ledger.acknowledge();
        let (before, from) = state.newest;
        state.gaps.push(Gap { before, from, after: number, to: at });
        state.newest = (number, at);
        state.newest_of = Some(zone.to_owned());
        state.error = None;
    }

    fn gave_up(&self) {
        let mut state = locked(&self.state);
        state.ledger.give_up();
        state.unacknowledged += 1;
    }

    fn failed(&self, error: &anyhow::Error) {
        let mut state = locked(&self.state);
        state.connected_to = None;
        let text = format!("{error:#}");
        state.last_error = Some(text.clone());
        state.error = Some(text);
    }
}

/// Finds whoever first says that it takes writes. Each peer is asked again and again by itself: a host
/// that is silent does not keep the others waiting.
async fn connect(routes: &[(String, Config)], slowness: u32) -> Result<Session> {
    let limit = CONNECT_LIMIT * slowness;
    let mut attempts = JoinSet::new();
    for (zone, config) in routes.iter().cloned() {
        attempts.spawn(async move {
            let mut problem = anyhow!("no answer");
            let persist = async {
                loop {
                    match timeout(limit, open(&config)).await {
                        Err(_) => problem = anyhow!("no answer"),
                        Ok(Err(error)) => problem = error,
                        Ok(Ok(client)) => match wait_open(&client, limit).await {
                            Ok(insert) => return (client, insert),
                            Err(error) => problem = error,
                        },
                    }
                    sleep(ASK_AGAIN).await;
                }
            };
            match timeout(SEARCH_LIMIT * slowness, persist).await {
                Ok((client, insert)) => Ok(Session { zone, client, insert }),
                Err(_) => Err(problem.context(zone)),
            }
        });
    }
    let mut problems = Vec::new();
    while let Some(attempt) = attempts.join_next().await {
        // The others are dropped, and closed with that.
        match attempt.context("a connection attempt panicked")? {
            Ok(session) => return Ok(session),
            Err(error) => problems.push(format!("{error:#}")),
        }
    }
    bail!("nobody takes writes: {}", problems.join("; "))
}

async fn open(config: &Config) -> Result<Client> {
    let (client, connection) = config.connect(NoTls).await?;
    // How it ends is told to whoever uses the client.
    tokio::spawn(async move { drop(connection.await) });
    Ok(client)
}

/// Asks on an open connection until the peer takes writes: to log in each time would cost both sides
/// more than the answer.
async fn wait_open(client: &Client, limit: Duration) -> Result<Statement> {
    loop {
        let answer = timeout(limit, client.simple_query("show transaction_read_only")).await;
        let answer = answer.context("no answer")??;
        let value = answer.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        if value == Some("off") {
            let insert = "insert into ledger (n, peer) values ($1, $2)";
            return Ok(timeout(limit, client.prepare(insert)).await.context("no answer")??);
        }
        sleep(ASK_AGAIN).await;
    }
}

/// One row, its commit acknowledged.
///
/// A timeout only gives up the connection. To cancel the statement would be wrong: PostgreSQL answers
/// a cancelled wait for the sync with a warning and success.
async fn insert(session: &Session, number: i64, limit: Duration) -> Result<()> {
    let Session { zone, client, insert } = session;
    let done = timeout(limit, client.execute(insert, &[&number, zone])).await;
    done.with_context(|| format!("{zone}: row {number}: not acknowledged in time"))?
        .with_context(|| format!("{zone}: row {number}"))?;
    Ok(())
}
