//! A shard under a writer, and what a test asks of it.

use super::{
    diary::Diary,
    filesystems::own_place,
    network,
    service::{Away, Service},
};
use adapters::clock;
use anyhow::{Context, Result, ensure};
use cluster::{Generation, Millis, Role};
use manatee::shard::{Peer, Shard, ShardOptions, ShardView, Writer};
use std::{
    net::{IpAddr, Ipv4Addr},
    process::{Command, Output},
};
use tempfile::TempDir;

/// Says how many times slower than usual the machine is: an emulated one is several times.
const SLOWNESS: &str = "MANATEE_TEST_SLOWNESS";

fn slowness() -> u32 {
    let given = std::env::var(SLOWNESS).unwrap_or("1".to_owned());
    given.parse().unwrap_or_else(|_| panic!("{SLOWNESS} is {given:?}: give a whole number"))
}

/// How long anything that the shard does by itself may take. Generous: what takes longer than this
/// does not happen at all.
pub fn limit() -> Millis {
    slowly(Millis(180_000))
}

/// So much longer as everything takes on this machine.
pub fn slowly(time: Millis) -> Millis {
    Millis(time.0 * u64::from(slowness()))
}

/// How long the writer waits for a commit while failures are counted: a busy machine is slow, but refuses nobody.
const PATIENCE: Millis = Millis(10_000);

fn start_service(directory: &TempDir, ip: impl Into<IpAddr>) -> Result<Service> {
    let own = directory.path().join("service");
    std::fs::create_dir(&own)?;
    Service::start(&own, ip.into())
}

/// A shard that is whole, with a writer at work. Fields are dropped in this order.
pub struct World {
    pub writer: Writer,
    pub shard: Shard,
    service: Service,
    diary: Diary,
    _directory: TempDir,
}

impl World {
    pub fn start() -> Result<World> {
        World::start_with("")
    }

    /// Like [`World::start`], with fields of the sitters' files that are other than usual.
    pub fn start_with(overrides: &str) -> Result<World> {
        World::start_as(overrides, |_| {})
    }

    /// Like [`World::start_with`], with more that is other than usual.
    pub fn start_as(overrides: &str, change: impl FnOnce(&mut ShardOptions)) -> Result<World> {
        // Where file systems are mounted, nobody may walk through them to delete them.
        let (mut builder, own) = (tempfile::Builder::new(), own_place());
        builder.prefix("manatee-test-").disable_cleanup(own.is_some());
        let directory = builder.tempdir_in(own.unwrap_or_else(std::env::temp_dir))?;
        let binary = env!("CARGO_BIN_EXE_manatee");
        let mut options = ShardOptions::new(binary, directory.path().join("shard"));
        options.slowness = slowness();
        options.overrides = overrides.parse().context("overrides")?;
        change(&mut options);
        let service = match &options.coordination {
            Some(_) => Service::Foreign,
            // Hosts of their own reach the test by the address that it has on their network.
            None if options.hosts.is_empty() => start_service(&directory, Ipv4Addr::LOCALHOST)?,
            None => start_service(&directory, network::outside())?,
        };
        options.coordination = options.coordination.or_else(|| service.url());
        let shard = Shard::start(&options)?;
        shard.wait_whole(limit())?;
        let writer = Writer::start(&shard)?;
        let diary = Diary::of(shard.peers());
        let world = World { writer, shard, service, diary, _directory: directory };
        world.wait_for_writes()?;
        Ok(world)
    }

    /// Like [`World::start_with`], at this coordination, in sessions of four seconds.
    pub fn start_at(coordination: String, overrides: &str) -> Result<World> {
        World::start_as(overrides, |options| {
            options.coordination = Some(coordination);
            options.session_timeout = 4.0;
        })
    }

    /// The primary's host is lost: the sync takes over, once, and the old one comes back as async.
    pub fn survive_the_primary(&self) -> Result<()> {
        let (generation, mark) = (self.generation()?, clock::now());
        let old = self.lose_primary()?;
        println!("writes were out for {} ms", self.writer.longest_gap_since(mark).length().0);
        ensure!(self.generation()? == generation.next(), "one takeover, one generation");
        old.start_sitter()?;
        self.wait_back(old)
    }

    /// Takes the coordination away: every session runs out.
    pub fn take_coordination_away(&self) -> Result<Away<'_>> {
        self.service.take_away(self.shard.coordination())
    }

    /// The peer that has this place, once one says so: a sitter that was just started knows it only when it has
    /// looked around, while its PostgreSQL serves on.
    pub fn in_role(&self, role: Role) -> Result<&Peer> {
        let has = |view: &ShardView| {
            let mut peers = view.peers.iter();
            peers.find(|peer| peer.role() == Some(role)).map(|peer| peer.zone.clone())
        };
        let what = format!("somebody to be {role}");
        let view = self.shard.wait_for(limit(), &what, |view| has(view).is_some())?;
        Ok(self.shard.peer_of(&has(&view).context(what)?))
    }

    /// Kills the primary's host and waits until another peer takes writes; which it was.
    pub fn lose_primary(&self) -> Result<&Peer> {
        let old = self.in_role(Role::Primary)?;
        old.kill_host()?;
        self.wait("a takeover", |view| {
            view.primary().is_some_and(|primary| primary.zone != old.zone())
        })?;
        self.wait_for_writes()?;
        Ok(old)
    }

    /// Waits until this former primary is at the end of the chain.
    pub fn wait_back(&self, old: &Peer) -> Result<()> {
        self.wait("the old primary to come back as async", |view| {
            view.peer(old.zone()).role() == Some(Role::Async)
        })
    }

    pub fn generation(&self) -> Result<Generation> {
        self.shard.view().generation().context("nobody knows a generation")
    }

    /// Waits until writes that began after this call are acknowledged.
    pub fn wait_for_writes(&self) -> Result<()> {
        let before = self.writer.acknowledged();
        self.wait("writes to be acknowledged", |_| self.writer.acknowledged() >= before + 20)
    }

    /// How many writes have failed until now, for [`World::ensure_unnoticed`]. From now on, one that is only slow
    /// is none of them.
    pub fn count_failures(&self) -> u64 {
        self.writer.wait_for_commits(PATIENCE);
        self.failed_writes()
    }

    /// How many writes have failed.
    pub fn failed_writes(&self) -> u64 {
        self.writer.handle().progress().unacknowledged
    }

    /// That no write has failed since there were so many ([`World::count_failures`]).
    pub fn ensure_unnoticed(&self, failed_before: u64) -> Result<()> {
        let progress = self.writer.handle().progress();
        let failed = progress.unacknowledged - failed_before;
        ensure!(failed == 0, "{failed} writes failed, the last one by {:?}", progress.last_error);
        Ok(())
    }

    pub fn wait(&self, what: &str, condition: impl FnMut(&ShardView) -> bool) -> Result<()> {
        self.shard.wait_for(limit(), what, condition).map(drop)
    }

    pub fn adm(&self, arguments: &[&str]) -> Result<Output> {
        let output = Command::new(env!("CARGO_BIN_EXE_manatee"))
            .args(["adm", "--coordination", self.shard.coordination()])
            .args(["--shard", self.shard.name()])
            .args(arguments)
            .output()?;
        ensure!(output.status.success(), "adm {arguments:?}: {output:?}");
        Ok(output)
    }

    /// Waits until the shard is whole and takes writes, and checks the ledger on every peer.
    pub fn finish(mut self) -> Result<()> {
        self.shard.wait_whole(limit())?;
        self.wait_for_writes()?;
        let ledger = self.writer.stop()?;
        let primary = self.shard.primary()?;
        let end = primary.psql("select pg_current_wal_flush_lsn()::text")?;
        let end = end[0][0].clone().context("no position")?;
        let report = ledger.check(primary)?;
        ensure!(report.is_good(), "on the primary {}: {report}", primary.zone());
        for peer in self.shard.peers() {
            let replayed = format!(
                "select (not pg_is_in_recovery() or pg_last_wal_replay_lsn() >= '{end}')::text"
            );
            self.shard.wait_for(limit(), "all to be replayed everywhere", |_| {
                peer.psql(&replayed).is_ok_and(|rows| rows[0][0].as_deref() == Some("true"))
            })?;
            let report = ledger.check(peer)?;
            ensure!(report.is_good(), "on {}: {report}", peer.zone());
        }
        self.diary.forget();
        Ok(())
    }
}
