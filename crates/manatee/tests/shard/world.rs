//! A shard under a writer, and what a test asks of it.

use super::{
    filesystems::own_place,
    network,
    service::{Away, Service},
};
use anyhow::{Context, Result, ensure};
use cluster::{Generation, Millis, Role};
use manatee::shard::{Peer, Shard, ShardOptions, ShardView, Writer};
use std::{
    net::{IpAddr, Ipv4Addr},
    process::{Command, Output},
    sync::{Mutex, MutexGuard, PoisonError},
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
    Millis(60_000 * u64::from(slowness()))
}

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Held by whoever has a shard: the others of this program wait.
pub fn turn() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

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
    _directory: TempDir,
    _turn: MutexGuard<'static, ()>,
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
        let turn = turn();
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
        let world = World { writer, shard, service, _directory: directory, _turn: turn };
        world.wait_for_writes()?;
        Ok(world)
    }

    /// Takes the coordination away: every session runs out.
    pub fn take_coordination_away(&self) -> Result<Away<'_>> {
        self.service.take_away(self.shard.coordination())
    }

    /// The peer that has this place.
    pub fn in_role(&self, role: Role) -> Result<&Peer> {
        let view = self.shard.view();
        let peer = view.peers.iter().find(|peer| peer.role() == Some(role));
        Ok(self.shard.peer_of(&peer.with_context(|| format!("nobody is {role}"))?.zone))
    }

    pub fn generation(&self) -> Result<Generation> {
        self.shard.view().generation().context("nobody knows a generation")
    }

    /// Waits until writes that began after this call are acknowledged.
    pub fn wait_for_writes(&self) -> Result<()> {
        let before = self.writer.acknowledged();
        self.wait("writes to be acknowledged", |_| self.writer.acknowledged() >= before + 20)
    }

    /// How many writes have failed.
    pub fn failed_writes(&self) -> u64 {
        self.writer.handle().progress().unacknowledged
    }

    /// That no write has failed since there were so many.
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
    pub fn finish(self) -> Result<()> {
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
        Ok(())
    }
}
