//! Real servers in directories of their own, gone when a test ends, however it ends.

#![allow(dead_code, reason = "each test binary uses a part of this")]

use adapters::{
    postgres::{Found, Postgres, Settings},
    storage::{Dir, SeedProgress, SeedSource, Storage},
    testing::{free_ports, quit_servers},
};
use cluster::{Counts, Gate, Generation, Lsn, Millis, PeerId, PeerIdent, PgConfig, StandbyRole};
use rustix::process::{Pid, Signal, kill_process};
use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_postgres::{Client, NoTls};

/// How long a condition may take to come true.
pub const LIMIT: Duration = Duration::from_secs(20);

/// A peer: a dataset, a port, and what runs there.
pub struct Peer {
    pub directory: TempDir,
    pub ident: PeerIdent,
    pub settings: Settings,
    pub postgres: Postgres,
}

impl Drop for Peer {
    fn drop(&mut self) {
        kill_servers(self.directory.path());
    }
}

/// Ends every server that runs below this directory, and waits for the end of each.
pub fn kill_servers(directory: &Path) {
    // What is left is killed.
    quit_servers(directory).ok();
    let deadline = adapters::clock::now() + Millis(20_000);
    while adapters::clock::now() < deadline {
        let pids = servers_below(directory);
        if pids.is_empty() {
            return;
        }
        for pid in pids {
            signal(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The processes that work in a directory below this one.
pub fn servers_below(directory: &Path) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let cwd = fs::read_link(entry.path().join("cwd")).ok()?;
            cwd.starts_with(directory).then_some(pid)
        })
        .collect()
}

pub fn signal(pid: u32, signal: Signal) {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
    // It may be gone already.
    kill_process(raw.expect("a process id"), signal).ok();
}

pub fn free_port() -> u16 {
    free_ports(1).expect("a free port")[0]
}

impl Peer {
    pub fn new(name: &str) -> Peer {
        Peer::with(name, |_| {})
    }

    pub fn with(name: &str, change: impl FnOnce(&mut Settings)) -> Peer {
        let directory = tempfile::Builder::new().prefix("manatee-").tempdir();
        Peer::within(directory.expect("a directory"), name, change)
    }

    /// A peer whose dataset is a mount point in this place, which is deleted by somebody else: nobody
    /// may walk through what is mounted.
    #[allow(dead_code, reason = "not every test that uses this module mounts")]
    pub fn to_mount(place: &Path, name: &str) -> Peer {
        let mut builder = tempfile::Builder::new();
        let directory = builder.prefix("manatee-").disable_cleanup(true).tempdir_in(place);
        Peer::within(directory.expect("a directory"), name, |settings| {
            settings.home = settings.dataset.with_file_name("home");
            fs::create_dir(&settings.home).expect("a home");
        })
    }

    fn within(directory: TempDir, name: &str, change: impl FnOnce(&mut Settings)) -> Peer {
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("its mode");
        let dataset = directory.path().join("set");
        fs::create_dir(&dataset).expect("a dataset");
        let port = free_port();
        let ident = PeerIdent::new("127.0.0.1", port, 1, name);
        let mut settings = Settings {
            bin_dir: None,
            home: dataset.clone(),
            dataset,
            socket_dir: directory.path().join("socket"),
            me: ident.id.clone(),
            listen: "127.0.0.1".to_owned(),
            port,
            os_user: None,
            superuser: "postgres".to_owned(),
            superuser_password: None,
            replication_user: "replication".to_owned(),
            replication_password: "it's \\secret\"".to_owned(),
            upstream_slot: None,
            client_hba: vec!["host all app all trust".to_owned()],
            user_settings: BTreeMap::from(
                [("shared_buffers", "16MB"), ("max_connections", "40")]
                    .map(|(name, value)| (name.to_owned(), value.to_owned())),
            ),
            slot_keep_size: 256,
            wal_keep_size: 64,
            status_interval: Millis(1000),
            start_timeout: Millis(20_000),
            stop_timeout: Millis(10_000),
            query_timeout: Millis(5000),
        };
        change(&mut settings);
        let postgres = Postgres::open(settings.clone()).expect("a PostgreSQL");
        Peer { directory, ident, settings, postgres }
    }

    pub fn id(&self) -> PeerId {
        self.ident.id.clone()
    }

    pub fn storage(&self) -> Dir {
        Dir::new(&self.settings.dataset)
    }

    pub fn source(&self) -> SeedSource {
        SeedSource { peer: self.id(), host: "127.0.0.1".to_owned(), port: self.settings.port }
    }

    /// A primary with a new database.
    pub async fn primary(self, counts: Counts, downstream: &[&Peer]) -> Peer {
        self.postgres.create_database().await.expect("a database");
        self.apply(&primary(counts, downstream)).await;
        self
    }

    /// A standby seeded from `source`, following it.
    pub async fn standby_of(self, source: &Peer) -> Peer {
        self.seed(source).await;
        self.apply(&standby(Some(source), &[])).await;
        self
    }

    pub async fn seed(&self, source: &Peer) {
        let request = self.postgres.seed_request(vec![source.source()]);
        let progress = watch::Sender::new(SeedProgress::default());
        let seeded = self.storage().seed(&request, &progress).await;
        seeded.expect("a base backup");
    }

    pub async fn apply(&self, config: &PgConfig) -> adapters::postgres::Applied {
        match self.postgres.apply(config).await {
            Ok(applied) => applied,
            Err(error) => panic!("{config:?}: {}", chain(&error)),
        }
    }

    pub async fn found(&self) -> Found {
        self.postgres.inspect().await.expect("a look")
    }

    pub fn pid(&self) -> u32 {
        let text = fs::read_to_string(self.postgres.data().join("postmaster.pid"));
        let text = text.expect("a running server");
        text.lines().next().expect("a pid").parse().expect("a pid")
    }

    /// As a sitter that was killed and started again: the server is another's child then.
    pub async fn restart_sitter(&mut self) -> Found {
        self.postgres = Postgres::open(self.settings.clone()).expect("a PostgreSQL");
        self.found().await
    }

    /// A session as the superuser, over the Unix socket.
    pub async fn session(&self) -> Client {
        let mut config = tokio_postgres::Config::new();
        config
            .host_path(&self.settings.socket_dir)
            .port(self.settings.port)
            .user("postgres")
            .dbname("postgres");
        let (client, connection) = config.connect(NoTls).await.expect("a session");
        tokio::spawn(connection);
        client
    }

    pub async fn value(&self, sql: &str) -> String {
        let row = self.session().await.query_one(sql, &[]).await;
        row.expect(sql).get::<_, Option<String>>(0).unwrap_or_default()
    }

    /// Waits until `select <condition>` is true.
    pub async fn wait(&self, condition: &str) {
        let client = self.session().await;
        let sql = format!("select ({condition})::bool");
        let wait = async {
            while !client
                .query_one(&sql, &[])
                .await
                .expect(&sql)
                .get::<_, Option<bool>>(0)
                .unwrap_or(false)
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let waited = tokio::time::timeout(LIMIT, wait).await;
        waited.unwrap_or_else(|_| panic!("never: {condition}"));
    }

    /// Waits until this peer's standby counts and streams.
    pub async fn wait_sync(&self, standby: &Peer) {
        self.wait(&format!(
            "exists (select from pg_stat_replication where application_name = '{}' \
             and sync_state = 'sync' and state = 'streaming')",
            standby.id()
        ))
        .await;
    }
}

pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

pub fn ids(peers: &[&Peer]) -> Vec<PeerId> {
    peers.iter().map(|peer| peer.id()).collect()
}

pub fn primary(counts: Counts, downstream: &[&Peer]) -> PgConfig {
    let generation = Generation(1);
    let (timeline, init_wal) = (None, Lsn::ZERO);
    let (gate, downstream) = (Gate::Open, ids(downstream));
    PgConfig::Primary { generation, timeline, init_wal, counts, gate, downstream }
}

pub fn standby(upstream: Option<&Peer>, downstream: &[&Peer]) -> PgConfig {
    PgConfig::Standby {
        place: StandbyRole::Sync,
        upstream: upstream.map(|peer| peer.ident.clone()),
        downstream: ids(downstream),
    }
}

/// A commit in a session of its own: finished when it was acknowledged.
pub fn commit(peer: &Peer, sql: &str) -> tokio::task::JoinHandle<bool> {
    let (socket, port, sql) =
        (peer.settings.socket_dir.clone(), peer.settings.port, sql.to_owned());
    tokio::spawn(async move {
        let mut config = tokio_postgres::Config::new();
        config.host_path(&socket).port(port).user("postgres").dbname("postgres");
        let Ok((client, connection)) = config.connect(NoTls).await else {
            return false;
        };
        tokio::spawn(connection);
        client.batch_execute(&sql).await.is_ok()
    })
}

/// Waits until that many commits wait for a standby.
pub async fn wait_waiting(peer: &Peer, count: usize) {
    peer.wait(&format!(
        "(select count(*) from pg_stat_activity where wait_event = 'SyncRep') = {count}"
    ))
    .await;
}
