//! A donor of the original's first version: stand-ins for its peers, in a real ZooKeeper.

use super::{
    ground::Ground,
    harness::{Move, wait},
    ours::os_user,
    v1_peer::{FILE, V1Config},
};
use adapters::{
    coord,
    exec::OsUser,
    postgres,
    service::quote,
    testing::{Ensemble, free_ports},
};
use anyhow::{Context, Result, ensure};
use cluster::Millis;
use manatee::shard::{DONOR, Donor, Ledger, ShardOptions, commands, sh};
use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
};

/// What the donor is called in ZooKeeper.
const SHARD: &str = "v1.example";

/// A shard of the first version. Fields are dropped in this order.
pub struct FirstVersion {
    peers: Vec<V1Config>,
    ensemble: Ensemble,
}

impl Move<FirstVersion> {
    pub fn of_first_version() -> Result<Move<FirstVersion>> {
        let moved = Move::with(as_the_donor, |directory, setup| {
            FirstVersion::make(directory, setup, None)
        })?;
        moved.wait_for_writes_to(DONOR)?;
        Ok(moved)
    }

    /// Of one whose primary has a dataset of this ground, by snapshots.
    pub fn of_first_version_on(ground: &Ground) -> Result<Move<FirstVersion>> {
        let place = |options: &mut ShardOptions| {
            as_the_donor(options);
            ground.place(options);
        };
        let moved = Move::with(place, |directory, setup| {
            FirstVersion::make(directory, setup, Some(ground))
        })?;
        moved.wait_for_writes_to(DONOR)?;
        let dataset = ground.dataset(&moved.stage.donor().peers[0].home);
        moved.ask_for_snapshots_of(dataset.context("a ground with snapshots")?)?;
        Ok(moved)
    }

    /// The donor's peers stand in the order of before, and each has all that was acknowledged.
    pub fn check_first_version(&self) -> Result<()> {
        let donor = self.stage.donor();
        let order: Vec<String> =
            donor.peers.iter().map(|peer| peer.ident().id.to_string()).collect();
        ensure!(donor.order()? == order, "{:?}", donor.order()?);
        let ledger = self.writer.handle().ledger();
        for (index, peer) in donor.peers.iter().enumerate() {
            donor.check_peer(index, &ledger)?;
            ensure!(!peer.home.join("data-0").exists(), "{} was copied anew", peer.port);
        }
        Ok(())
    }
}

/// On the way back the donor's standbys replay what the recipient wrote, and that it had more of these.
fn as_the_donor(options: &mut ShardOptions) {
    let settings = toml::toml! {
        [settings]
        max_wal_senders = 10
    };
    options.overrides.insert("postgres".to_owned(), settings.into());
}

fn file(peer: &V1Config) -> PathBuf {
    peer.home.join("sitter.toml")
}

fn pid_file(peer: &V1Config) -> PathBuf {
    peer.home.join("pid")
}

/// What starts and what stops a peer, for a shell.
fn service(peer: &V1Config) -> Result<(String, String)> {
    let word = |path: &Path| quote(&path.display().to_string());
    let this = word(&std::env::current_exe()?);
    let (file, pid) = (word(&file(peer)), word(&pid_file(peer)));
    let log = word(&peer.home.join("sitter.log"));
    let runs = format!("[ -e {pid} ] && kill -0 \"$(cat {pid})\" 2>/dev/null");
    let start = format!(
        "{runs} || {{ {FILE}={file} setsid {this} --exact v1_peer::process --ignored --nocapture \
         >>{log} 2>&1 </dev/null & echo $! >{pid}; }}"
    );
    let stop = format!(
        "[ -e {pid} ] || exit 0; kill -TERM \"$(cat {pid})\" 2>/dev/null; n=0; \
         while {runs}; do sleep 0.05; n=$((n+1)); [ $n -lt 1200 ] || exit 1; done; rm -f {pid}"
    );
    Ok((start, stop))
}

impl FirstVersion {
    fn make(directory: &Path, setup: &str, ground: Option<&Ground>) -> Result<FirstVersion> {
        let ensemble = Ensemble::start(&directory.join("zookeeper"), 1)?;
        let user =
            rustix::process::geteuid().is_root().then(|| OsUser::find("postgres")).transpose()?;
        let mut donor = FirstVersion { peers: Vec::new(), ensemble };
        for (index, ports) in free_ports(6)?.chunks(2).enumerate() {
            let home = directory.join(format!("{DONOR}{index}"));
            if let Some(ground) = ground.filter(|_| index == 0) {
                ground.make_home(&home)?;
            }
            // A dataset may be there, for it.
            fs::create_dir_all(&home)?;
            fs::set_permissions(&home, fs::Permissions::from_mode(0o755))?;
            if let Some(user) = &user {
                chown(&home, Some(user.uid), Some(user.gid))?;
            }
            let config = V1Config {
                coordination: donor.ensemble.url(),
                shard: SHARD.to_owned(),
                port: ports[0],
                backup_port: ports[1],
                home,
                bin_dir: postgres::programs(None)?.0,
                os_user: user.as_ref().map(|user| user.name.clone()),
                one_node_write_mode: false,
            };
            fs::write(file(&config), toml::to_string(&config)?)?;
            sh(&service(&config)?.0)?;
            donor.peers.push(config);
            // So that the order is known.
            wait("it to register", || match donor.order() {
                Ok(order) if order.len() == index + 1 => Ok(()),
                other => Err(format!("{other:?}")),
            })?;
        }
        wait("the donor to take writes", || {
            match donor.peers[0].sql("show default_transaction_read_only") {
                Ok(closed) if closed == "off" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })?;
        donor.sql(setup)?;
        // The last one has it all.
        wait("the donor to be whole", || {
            donor.peers[2].sql("select 1 from ledger limit 0").map(drop).map_err(|e| e.to_string())
        })?;
        Ok(donor)
    }

    /// Who is registered, in order.
    pub fn order(&self) -> Result<Vec<String>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (url, options) = (self.ensemble.url(), coord::Options::new(Millis(5000)));
        let view = runtime.block_on(async { coord::open(&url, SHARD, &options)?.read().await })?;
        Ok(view.active.into_iter().map(|one| one.peer.id.to_string()).collect())
    }

    /// Nothing that was acknowledged is lost, as this peer has it.
    pub fn check_peer(&self, index: usize, ledger: &Ledger) -> Result<()> {
        let peer = &self.peers[index];
        wait("the ledger to be there", || {
            let rows = peer.sql("select n from ledger order by n");
            let rows = rows.map_err(|error| format!("{error:#}"))?;
            let rows: Result<Vec<i64>, _> = rows.lines().map(str::parse).collect();
            let report = ledger.compare(&rows.map_err(|error| error.to_string())?);
            if report.is_good() { Ok(()) } else { Err(format!("{}: {report}", peer.port)) }
        })
    }

    /// Starts each peer by mistake, and waits until it has ended; what they said.
    pub fn start_by_mistake(&self) -> Result<Vec<String>> {
        let mut told = Vec::new();
        for peer in &self.peers {
            let log = peer.home.join("sitter.log");
            let before = fs::read_to_string(&log)?.len();
            sh(&service(peer)?.0)?;
            let process = Path::new("/proc").join(fs::read_to_string(pid_file(peer))?.trim());
            wait("the peer to end", || {
                if process.exists() { Err("it runs".to_owned()) } else { Ok(()) }
            })?;
            ensure!(!peer.runs(), "its server runs");
            told.push(fs::read_to_string(&log)?[before..].to_owned());
        }
        Ok(told)
    }

    /// Ends a peer and its server without order, and waits until others know.
    pub fn kill(&self, index: usize) -> Result<()> {
        let id = self.peers[index].ident().id.to_string();
        kill(&self.peers[index])?;
        wait("its session to end", || match self.order() {
            Ok(order) if !order.contains(&id) => Ok(()),
            other => Err(format!("{other:?}")),
        })
    }
}

fn kill(peer: &V1Config) -> Result<()> {
    let pid = fs::read_to_string(pid_file(peer)).unwrap_or_default();
    // The file may outlive the process, and its number may be somebody else's.
    let there = fs::read(Path::new("/proc").join(pid.trim()).join("cmdline")).unwrap_or_default();
    if !pid.trim().is_empty() && String::from_utf8_lossy(&there).contains("v1_peer::process") {
        sh(&format!("kill -KILL {}", pid.trim()))?;
    }
    if peer.runs() {
        peer.pg_ctl(&["stop", "-m", "immediate"])?;
    }
    Ok(())
}

impl Drop for FirstVersion {
    fn drop(&mut self) {
        for peer in &self.peers {
            if let Err(error) = kill(peer) {
                eprintln!("something of {} may still be running: {error:#}", peer.home.display());
            }
        }
    }
}

impl Donor for FirstVersion {
    fn inventory(&self) -> Result<toml::Table> {
        let sitter = |peer: &V1Config| -> Result<(String, toml::Value)> {
            let (start, stop) = service(peer)?;
            Ok((file(peer).display().to_string(), commands(start, stop).into()))
        };
        let (primary, others) = self.peers.split_first().context("a primary")?;
        let (port, data_dir) = (i64::from(primary.port), primary.data().display().to_string());
        let socket_dir = primary.home.display().to_string();
        let bin_dir = primary.bin_dir.display().to_string();
        let (os_user, (file, service)) = (os_user()?, sitter(primary)?);
        let coordination = self.ensemble.url();
        let mut standbys: Vec<toml::Value> = Vec::new();
        for peer in others {
            let (name, (file, service)) = (peer.ident().id.to_string(), sitter(peer)?);
            standbys.push(toml::toml! { name = name sitter = file service = service }.into());
        }
        Ok(toml::toml! {
            kind = "manatee-v1"
            address = "127.0.0.1"
            port = port
            data_dir = data_dir
            bin_dir = bin_dir
            socket_dir = socket_dir
            os_user = os_user
            superuser = "postgres"
            service = service
            standbys = standbys
            [manatee]
            coordination = coordination
            shard = SHARD
            sitter = file
        })
    }

    fn servers(&self) -> Vec<(String, (IpAddr, u16))> {
        let name = |n| if n == 0 { DONOR.to_owned() } else { format!("{DONOR}-{n}") };
        let at = |peer: &V1Config| (Ipv4Addr::LOCALHOST.into(), peer.port);
        self.peers.iter().enumerate().map(|(n, peer)| (name(n), at(peer))).collect()
    }

    fn sql(&self, sql: &str) -> Result<String> {
        self.peers[0].sql(sql)
    }
}
