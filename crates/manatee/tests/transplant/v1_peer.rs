//! A stand-in for a peer of the original's first version: one process, real PostgreSQL, real ZooKeeper.
//!
//! It keeps what the rules of a transplant rest on: it registers by an ephemeral sequential node of
//! `election`; whoever is first of these is primary, the next one its sync, each later one follows the one
//! before it; a primary without a sync takes no writes, unless it is in one-node-write mode; there is no
//! cluster state, and nothing that holds a takeover back. As in the original, a standby becomes primary by
//! a restart without recovery, on the timeline that it is on.
//!
//! Left out: snapshots and their service (a peer that cannot follow takes a base backup of its upstream and
//! keeps what it had), health checks of PostgreSQL, the history, and versions of PostgreSQL before 13.

use adapters::{
    coord::{self, CoordEvent, Membership, Registration},
    exec::{Exec, OsUser},
};
use anyhow::{Context, Result, bail};
use cluster::{Millis, PeerIdent, v1};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::signal::unix::{SignalKind, signal};

/// Names the file of the peer that this process is to be.
pub const FILE: &str = "MANATEE_V1_PEER";
/// Long enough that none expires that is not killed, however busy the machine is.
const SESSION: Millis = Millis(10_000);
/// Between two looks.
const PERIOD: Duration = Duration::from_millis(100);
/// How many looks a standby may not stream before it is copied anew.
const PATIENCE: u32 = 200;

/// What stands in its file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct V1Config {
    pub coordination: String,
    pub shard: String,
    pub port: u16,
    pub backup_port: u16,
    /// Everything of its own; the database is in `data` in it.
    pub home: PathBuf,
    pub bin_dir: PathBuf,
    pub os_user: Option<String>,
    pub one_node_write_mode: bool,
}

/// Not a test but what the processes of the donor's peers run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "not a test but what tests start"]
async fn process() -> Result<()> {
    let file = std::env::var_os(FILE).map(PathBuf::from).context(FILE)?;
    let text = fs::read_to_string(&file).with_context(|| format!("{}", file.display()))?;
    let config: V1Config = toml::from_str(&text).with_context(|| format!("{}", file.display()))?;
    serve(V1Peer { shape: None, closed: true, lost: 0, config }).await
}

impl V1Config {
    pub fn ident(&self) -> PeerIdent {
        PeerIdent::new("127.0.0.1", self.port, self.backup_port, &format!("v1-{}", self.port))
    }

    pub fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    fn exec(&self, program: &str) -> Result<Exec> {
        let user = self.os_user.as_deref().map(OsUser::find).transpose()?;
        Ok(Exec::new(self.bin_dir.join(program)).as_user(user.as_ref()).directory(&self.home))
    }

    /// What these statements give, by the superuser.
    pub fn sql(&self, sql: &str) -> Result<String> {
        let port = self.port.to_string();
        let psql = self.exec("psql")?.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "postgres"]);
        let psql = psql.args(["-U", "postgres", "-p", &port, "-c", sql, "-h"]).arg(&self.home);
        Ok(String::from_utf8_lossy(&psql.run_briefly()?).trim_end().to_owned())
    }

    pub fn pg_ctl(&self, order: &[&str]) -> Result<()> {
        let pg_ctl = self.exec("pg_ctl")?.args(order).args(["-w", "-D"]).arg(self.data());
        pg_ctl.arg("-l").arg(self.home.join("log")).run_briefly()?;
        Ok(())
    }

    /// Whether its server runs. One that was killed may wait to be reaped, and its file is left.
    pub fn runs(&self) -> bool {
        let file = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        let pid = file.lines().next().unwrap_or_default().trim();
        let process = Path::new("/proc").join(pid).join("cmdline");
        let command = fs::read(process).unwrap_or_default();
        let data = self.data();
        !pid.is_empty() && String::from_utf8_lossy(&command).contains(&*data.to_string_lossy())
    }
}

/// What its server is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Shape {
    Primary { sync: Option<PeerIdent> },
    Standby { upstream: PeerIdent },
}

struct V1Peer {
    config: V1Config,
    /// What its server was last brought to.
    shape: Option<Shape>,
    /// Whether, as a primary, it takes no writes.
    closed: bool,
    /// Looks in which it did not stream.
    lost: u32,
}

async fn serve(mut peer: V1Peer) -> Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let options = coord::Options::new(Millis(5000));
    let coord = coord::open(&peer.config.coordination, &peer.config.shard, &options)?;
    let mut member: Box<dyn Membership> = coord.join(&peer.config.ident(), SESSION).await?;
    let mut chain: Vec<PeerIdent> = Vec::new();
    loop {
        tokio::select! {
            _ = term.recv() => {
                if peer.config.runs() {
                    peer.config.pg_ctl(&["stop", "-m", "fast"])?;
                }
                return Ok(member.leave().await?);
            }
            event = member.next() => match event {
                Some(CoordEvent::Active(active)) => chain = in_order(active),
                Some(CoordEvent::Expired) | None => bail!("its session has expired"),
                Some(_) => {}
            },
            () = tokio::time::sleep(PERIOD) => {}
        }
        if let Err(error) = peer.reconcile(&chain) {
            eprintln!("v1 peer {}: {error:#}", peer.config.port);
        }
    }
}

fn in_order(active: Vec<Registration>) -> Vec<PeerIdent> {
    let active: Vec<PeerIdent> = active.into_iter().map(|one| one.peer).collect();
    v1::roles(&active).into_iter().map(|(_, peer)| peer.clone()).collect()
}

impl V1Peer {
    fn reconcile(&mut self, chain: &[PeerIdent]) -> Result<()> {
        let me = self.config.ident().id;
        let Some(place) = chain.iter().position(|peer| peer.id == me) else { return Ok(()) };
        let wanted = match place.checked_sub(1) {
            None => Shape::Primary { sync: chain.get(1).cloned() },
            Some(before) => Shape::Standby { upstream: chain[before].clone() },
        };
        if self.shape.as_ref() != Some(&wanted) {
            self.bring_to(&wanted)?;
            self.shape = Some(wanted.clone());
        }
        match wanted {
            Shape::Primary { sync: Some(sync) } if self.closed => {
                let streams = self.config.sql(&format!(
                    "select count(*) from pg_stat_replication where application_name = '{}' \
                     and state = 'streaming' and sync_state = 'sync'",
                    sync.id
                ))?;
                if streams == "1" {
                    self.closed = false;
                    self.write_conf(&Shape::Primary { sync: Some(sync) })?;
                    self.config.pg_ctl(&["reload"])?;
                }
                Ok(())
            }
            Shape::Primary { .. } => Ok(()),
            Shape::Standby { upstream } => {
                let streams =
                    "select count(*) from pg_stat_wal_receiver where status = 'streaming'";
                let streams = self.config.sql(streams).is_ok_and(|count| count == "1");
                self.lost = if streams { 0 } else { self.lost + 1 };
                if self.lost < PATIENCE {
                    return Ok(());
                }
                eprintln!("v1 peer {}: it cannot follow, and is copied anew", self.config.port);
                (self.lost, self.shape) = (0, None);
                self.copy(&upstream)
            }
        }
    }

    /// Brings the server to this, by a restart.
    fn bring_to(&mut self, shape: &Shape) -> Result<()> {
        let config = &self.config;
        let data = config.data();
        if !data.join("PG_VERSION").exists() {
            match shape {
                Shape::Primary { .. } => self.create()?,
                Shape::Standby { upstream } => self.copy(upstream)?,
            }
        }
        let config = &self.config;
        if config.runs() {
            config.pg_ctl(&["stop", "-m", "fast"])?;
        }
        let signal = data.join("standby.signal");
        match shape {
            Shape::Standby { .. } => self.write(&signal, "")?,
            Shape::Primary { .. } if signal.exists() => fs::remove_file(&signal)?,
            Shape::Primary { .. } => {}
        }
        let alone = matches!(shape, Shape::Primary { sync: None });
        self.closed = !(alone && config.one_node_write_mode);
        self.write_conf(shape)?;
        self.config.pg_ctl(&["start"])
    }

    fn write(&self, path: &Path, text: &str) -> Result<()> {
        fs::write(path, text)?;
        if let Some(user) = self.config.os_user.as_deref().map(OsUser::find).transpose()? {
            chown(path, Some(user.uid), Some(user.gid))?;
        }
        Ok(())
    }

    fn write_conf(&self, shape: &Shape) -> Result<()> {
        let config = &self.config;
        let (names, closed, upstream) = match shape {
            Shape::Primary { sync } => {
                let names = sync.iter().map(|sync| format!("\"{}\"", sync.id)).collect::<String>();
                (names, self.closed, String::new())
            }
            Shape::Standby { upstream } => (String::new(), false, self.conninfo(upstream)?),
        };
        let text = format!(
            "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = '{}'\n\
             max_connections = 50\nwal_keep_size = 256MB\nwal_retrieve_retry_interval = 200ms\n\
             synchronous_standby_names = '{names}'\ndefault_transaction_read_only = {}\n\
             primary_conninfo = '{upstream}'\nrecovery_target_timeline = latest\n",
            config.port,
            config.home.display(),
            if closed { "on" } else { "off" },
        );
        self.write(&config.data().join("v1.conf"), &text)
    }

    fn conninfo(&self, upstream: &PeerIdent) -> Result<String> {
        let (host, port) = upstream.pg_address()?;
        let name = self.config.ident().id;
        Ok(format!("host={host} port={port} user=postgres application_name={name}"))
    }

    fn create(&self) -> Result<()> {
        let initdb = self.config.exec("initdb")?.args(["-U", "postgres", "-D"]);
        initdb.arg(self.config.data()).run_briefly()?;
        let settings = self.config.data().join("postgresql.conf");
        self.write(&settings, &(fs::read_to_string(&settings)? + "include 'v1.conf'\n"))?;
        self.write(
            &self.config.data().join("pg_hba.conf"),
            "local all all trust\nhost replication postgres 127.0.0.1/32 trust\n\
             host all all 127.0.0.1/32 scram-sha-256\n",
        )
    }

    /// Copies the database of the upstream, and keeps what is there.
    fn copy(&self, upstream: &PeerIdent) -> Result<()> {
        let config = &self.config;
        if config.runs() {
            config.pg_ctl(&["stop", "-m", "fast"])?;
        }
        let data = config.data();
        if data.exists() {
            let kept = (0..).map(|n| config.home.join(format!("data-{n}")));
            let kept = kept.into_iter().find(|path| !path.exists()).context("a free name")?;
            fs::rename(&data, kept)?;
        }
        let conninfo = self.conninfo(upstream)?;
        let backup = config.exec("pg_basebackup")?.args(["-c", "fast", "-d", &conninfo, "-D"]);
        let copied = backup.arg(&data).run_briefly();
        if copied.is_err() && data.exists() {
            // A part of one would be taken for a database.
            fs::remove_dir_all(&data)?;
        }
        copied.map(drop).context("its upstream cannot be copied yet")
    }
}
