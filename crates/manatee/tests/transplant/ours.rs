//! A donor that is a shard of ours: three peers whose sitters are started as services are.

use super::{
    ground::Ground,
    harness::{LIMIT, Move, wait},
};
use adapters::{exec::OsUser, postgres};
use anyhow::{Context, Result, ensure};
use cluster::ClusterState;
use manatee::shard::{DONOR, Donor, Peer, Shard, ShardOptions, commands, sh};
use std::{fs, net::IpAddr, path::Path, process::Command};

/// A shard that is moved away.
pub struct Ours {
    shard: Shard,
    /// Which of its peers was primary at first.
    primary: usize,
    /// The file that says who we are to its coordination.
    access: Option<String>,
}

/// Who runs PostgreSQL.
pub fn os_user() -> Result<String> {
    let root = rustix::process::geteuid().is_root();
    Ok(if root { "postgres".to_owned() } else { OsUser::own_name()? })
}

/// What both shards say of their replication role: the recipient streams as a peer of the donor would.
fn replication(options: &mut ShardOptions) {
    options
        .overrides
        .insert("replication".to_owned(), toml::toml! { password = "known to both shards" }.into());
}

impl Move<Ours> {
    /// Of a shard that meets in this ZooKeeper, or etcd, or in a file of its own.
    pub fn of_ours(coordination: Option<String>) -> Result<Move<Ours>> {
        Move::of_ours_for(coordination, None)
    }

    /// Of one that meets where one has to say who one is, as this file does.
    pub fn of_ours_for(coordination: Option<String>, access: Option<String>) -> Result<Move<Ours>> {
        let tables = match &access {
            Some(file) => toml::from_str(&fs::read_to_string(file)?)?,
            None => toml::Table::new(),
        };
        let change = |options: &mut ShardOptions| {
            options.coordination = coordination;
            options.overrides.extend(tables);
        };
        let make = |directory: &Path, setup: &str| {
            Ok(Ours { access, ..Ours::make(directory, setup, change)? })
        };
        let moved = Move::with(replication, make)?;
        moved.wait_for_writes_to(DONOR)?;
        Ok(moved)
    }

    /// Of a shard whose datasets are on this ground, by snapshots.
    pub fn of_ours_on(ground: &Ground) -> Result<Move<Ours>> {
        let volumes = ground.more("donors")?;
        let place = |options: &mut ShardOptions| {
            replication(options);
            ground.place(options);
        };
        let change = |options: &mut ShardOptions| options.volumes = volumes.clone();
        let moved = Move::with(place, |directory, setup| Ours::make(directory, setup, change))?;
        moved.wait_for_writes_to(DONOR)?;
        let zone = moved.stage.donor().primary().zone();
        let dataset = Ground::dataset_of(&volumes, zone).context("a ground with snapshots")?;
        moved.ask_for_snapshots_of(dataset)?;
        Ok(moved)
    }

    /// The donor is whole, and each of its peers has all that was acknowledged.
    pub fn check_ours(&self) -> Result<()> {
        let donor = self.stage.donor();
        donor.shard.wait_whole(LIMIT)?;
        for peer in donor.shard.peers() {
            self.check_peer(peer).with_context(|| format!("the donor's {}", peer.zone()))?;
            for entry in fs::read_dir(peer.dataset())? {
                let name = entry?.file_name().into_string().unwrap_or_default();
                ensure!(!name.starts_with("data."), "{} was copied anew: {name}", peer.zone());
            }
        }
        Ok(())
    }
}

impl Ours {
    fn make(directory: &Path, setup: &str, change: impl FnOnce(&mut ShardOptions)) -> Result<Ours> {
        let mut options = ShardOptions::new(env!("CARGO_BIN_EXE_manatee"), directory.join(DONOR));
        change(&mut options);
        replication(&mut options);
        let shard = Shard::prepare(&options)?;
        for peer in shard.peers() {
            sh(&peer.service().0)?;
        }
        shard.wait_whole(LIMIT)?;
        let zone = shard.primary()?.zone().to_owned();
        let primary = shard.peers().iter().position(|peer| peer.zone() == zone);
        let donor = Ours { shard, primary: primary.context("a primary")?, access: None };
        donor.primary().psql(setup)?;
        Ok(donor)
    }

    pub fn shard(&self) -> &Shard {
        &self.shard
    }

    pub fn primary(&self) -> &Peer {
        self.shard.peer(self.primary)
    }

    pub fn others(&self) -> impl Iterator<Item = &Peer> {
        let primary = self.primary;
        self.shard.peers().iter().enumerate().filter(move |(n, _)| *n != primary).map(|(_, p)| p)
    }

    /// `manatee adm …` about it.
    pub fn adm(&self, args: &[&str]) -> Result<String> {
        let which = ["--coordination", self.shard.coordination(), "--shard", self.shard.name()];
        let access = self.access.iter().flat_map(|file| ["--config", file]);
        adm(&[&which, &access.collect::<Vec<_>>()[..], args].concat())
    }

    /// `manatee adm snapshot …` on its primary.
    pub fn snapshot(&self, args: &[&str]) -> Result<String> {
        let file = self.primary().config_file().display().to_string();
        adm(&[&["snapshot", "-c", &file], args].concat())
    }

    pub fn state(&self) -> Result<ClusterState> {
        Ok(ClusterState::parse(&self.adm(&["zk-state"])?)?)
    }

    /// Starts the sitter of a peer by mistake, and waits until it has ended; what it said.
    pub fn start_by_mistake(&self, peer: &Peer) -> Result<String> {
        let before = fs::read_to_string(peer.log_file())?.len();
        sh(&peer.service().0)?;
        let pid = fs::read_to_string(peer.config_file().with_extension("pid"))?;
        let process = Path::new("/proc").join(pid.trim());
        wait("the sitter to end", || {
            if process.exists() { Err("it runs".to_owned()) } else { Ok(()) }
        })?;
        Ok(fs::read_to_string(peer.log_file())?[before..].to_owned())
    }
}

/// `manatee adm …`.
fn adm(args: &[&str]) -> Result<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_manatee")).arg("adm").args(args).output()?;
    let told = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    ensure!(output.status.success(), "manatee adm {args:?}: {told}");
    Ok(told)
}

/// What the inventory says of a peer's sitter.
fn sitter(peer: &Peer) -> (String, toml::Value) {
    let (start, stop) = peer.service();
    (peer.config_file().display().to_string(), commands(start, stop).into())
}

impl Donor for Ours {
    fn inventory(&self) -> Result<toml::Table> {
        let primary = self.primary();
        let (address, port) = primary.host();
        let (address, port) = (address.to_string(), i64::from(port));
        let data_dir = primary.data().display().to_string();
        let socket_dir = primary.dataset().join("run").display().to_string();
        let bin_dir = postgres::programs(None)?.0.display().to_string();
        let (os_user, (file, service)) = (os_user()?, sitter(primary));
        let (coordination, shard) = (self.shard.coordination(), self.shard.name());
        let standbys: Vec<toml::Value> = self
            .others()
            .map(|peer| {
                let (name, (file, service)) = (peer.id().to_string(), sitter(peer));
                toml::toml! { name = name sitter = file service = service }.into()
            })
            .collect();
        let mut table = toml::toml! {
            kind = "manatee-v2"
            address = address
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
            shard = shard
            sitter = file
        };
        if let Some(file) = &self.access {
            let shard = table["manatee"].as_table_mut().context("a shard")?;
            shard.insert("access".to_owned(), file.as_str().into());
        }
        Ok(table)
    }

    fn servers(&self) -> Vec<(String, (IpAddr, u16))> {
        let others = self.others().map(|peer| (format!("{DONOR}-{}", peer.zone()), peer.host()));
        std::iter::once((DONOR.to_owned(), self.primary().host())).chain(others).collect()
    }

    fn sql(&self, sql: &str) -> Result<String> {
        let rows = self.primary().psql(sql)?;
        let line = |row: &Vec<Option<String>>| {
            row.iter()
                .map(|field| field.as_deref().unwrap_or_default())
                .collect::<Vec<_>>()
                .join("|")
        };
        Ok(rows.iter().map(line).collect::<Vec<_>>().join("\n"))
    }
}
