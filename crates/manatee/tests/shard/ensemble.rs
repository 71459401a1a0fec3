//! A shard on a ZooKeeper ensemble, each peer and each server on a host of its own: what befalls the
//! ensemble, and the wires between it and the peers.

use super::{
    World, limit,
    network::{Network, alone},
    slowly,
};
use adapters::{
    clock,
    testing::{Ensemble, EnsembleOptions, Mode},
};
use anyhow::{Context, Result, ensure};
use cluster::{Millis, Role};
use manatee::shard::Peer;
use tempfile::TempDir;

/// With it, a primary's host that died is to be replaced within six seconds.
pub const SESSION: Millis = Millis(4000);

/// Three peers on hosts 1 to 3, three servers on hosts 4 to 6. Fields are dropped in this order.
pub struct Stage {
    pub world: World,
    pub ensemble: Ensemble,
    pub network: Network,
    _directory: TempDir,
}

impl Stage {
    fn start() -> Result<Stage> {
        Stage::start_in(SESSION, EnsembleOptions::default(), |_, _| Ok(()))
    }

    /// With something that is done to servers and network before there are peers.
    pub fn start_with(
        options: EnsembleOptions,
        before: impl FnOnce(&Ensemble, &Network) -> Result<()>,
    ) -> Result<Stage> {
        Stage::start_in(SESSION, options, before)
    }

    /// The same in sessions of this length.
    fn start_in(
        session: Millis,
        options: EnsembleOptions,
        before: impl FnOnce(&Ensemble, &Network) -> Result<()>,
    ) -> Result<Stage> {
        let network = Network::make(6)?;
        let directory = tempfile::Builder::new().prefix("manatee-zk-").tempdir()?;
        let hosts = (4..=6).map(|number| network.host(number)).collect();
        let options = EnsembleOptions { hosts, ..options };
        let ensemble = Ensemble::start_with(directory.path(), 3, &options)?;
        before(&ensemble, &network)?;
        let world = World::start_as("", |options| {
            options.hosts = (1..=3).map(|number| network.host(number)).collect();
            options.coordination = Some(ensemble.url());
            options.session_timeout = session.0 as f64 / 1000.0;
        })?;
        Ok(Stage { world, ensemble, network, _directory: directory })
    }

    /// Cuts a peer from all servers.
    fn cut_from_ensemble(&self, peer: &Peer) -> Result<()> {
        (0..3).try_for_each(|index| {
            self.network.cut(peer.host().0, self.ensemble.address(index).ip())
        })
    }

    fn kill_all(&self) {
        (0..3).for_each(|index| self.ensemble.kill(index));
    }

    fn launch(&self, index: usize) -> Result<()> {
        Ok(self.ensemble.launch(index)?)
    }

    /// Waits until this much time has passed, by the measure of sessions, with the shard looked at all the while.
    pub fn let_pass(&self, time: Millis) -> Result<()> {
        let (start, time) = (clock::now(), slowly(time));
        self.world.wait("time to pass", |_| clock::now() - start >= time)
    }

    /// Waits for a leader.
    pub fn wait_for_leader(&self) -> Result<usize> {
        let mut leader = None;
        self.world.wait("a leader of the ensemble", |_| {
            leader = self.ensemble.leader();
            leader.is_some()
        })?;
        leader.context("a leader")
    }

    fn wait_open(&self, zone: &str) -> Result<()> {
        self.world.wait(&format!("{zone} to take writes as primary"), |view| {
            view.primary().is_some_and(|primary| primary.zone == zone)
        })
    }
}

/// The usual case, timed: the host of the primary is gone, without a word.
#[test]
fn the_sync_takes_over_when_the_host_of_the_primary_is_gone() -> Result<()> {
    alone("ensemble::the_sync_takes_over_when_the_host_of_the_primary_is_gone", || {
        let stage = Stage::start()?;
        let world = &stage.world;
        let old = world.in_role(Role::Primary)?;
        let sync = world.in_role(Role::Sync)?.zone().to_owned();
        let mark = clock::now();
        stage.network.isolate(old.host().0)?;
        old.kill_host()?;
        stage.wait_open(&sync)?;
        world.wait_for_writes()?;
        let gap = world.writer.longest_gap_since(mark);
        println!("writes were out for {} ms", gap.length().0);
        println!("by the clock of the traces from {} to {}", gap.from.0, gap.to.0);
        stage.network.heal()?;
        old.start_sitter()?;
        stage.world.finish()
    })
}

/// Clients notice nothing of elections.
#[test]
fn the_leader_is_killed_again_and_again() -> Result<()> {
    alone("ensemble::the_leader_is_killed_again_and_again", || {
        let stage = Stage::start()?;
        let (generation, failed) = (stage.world.generation()?, stage.world.count_failures());
        for _ in 0..3 {
            let leader = stage.wait_for_leader()?;
            stage.ensemble.kill(leader);
            stage.wait_for_leader()?;
            stage.world.wait_for_writes()?;
            stage.launch(leader)?;
            stage.ensemble.wait_serving(leader)?;
        }
        stage.world.ensure_unnoticed(failed)?;
        ensure!(stage.world.generation()? == generation, "the generation changed");
        stage.world.finish()
    })
}

/// Without any coordination, longer than every session: the primary and its sync prove to each other
/// that they are there, and writes go on.
#[test]
fn without_the_ensemble_writes_go_on() -> Result<()> {
    alone("ensemble::without_the_ensemble_writes_go_on", || {
        // As long as the lease: a sync on a busy machine answers within it.
        let session = Millis(6000);
        let stage = Stage::start_in(session, EnsembleOptions::default(), |_, _| Ok(()))?;
        let (generation, failed) = (stage.world.generation()?, stage.world.count_failures());
        stage.kill_all();
        stage.let_pass(Millis(2 * session.0))?;
        stage.world.wait_for_writes()?;
        for index in 0..3 {
            stage.launch(index)?;
        }
        stage.world.wait("every peer to be in a session", |view| {
            view.peers.iter().all(|peer| peer.status.as_ref().is_ok_and(|s| s.in_session))
        })?;
        stage.world.shard.wait_whole(limit())?;
        stage.world.ensure_unnoticed(failed)?;
        ensure!(stage.world.generation()? == generation, "the generation changed");
        stage.world.finish()
    })
}

/// The ensemble is gone, then the primary's host, then two of three servers are back.
#[test]
fn a_primary_that_died_without_the_ensemble_is_replaced_when_it_is_back() -> Result<()> {
    alone("ensemble::a_primary_that_died_without_the_ensemble_is_replaced_when_it_is_back", || {
        let stage = Stage::start()?;
        let world = &stage.world;
        let old = world.in_role(Role::Primary)?;
        let sync = world.in_role(Role::Sync)?.zone().to_owned();
        stage.kill_all();
        world.wait_for_writes()?;
        stage.network.isolate(old.host().0)?;
        old.kill_host()?;
        stage.let_pass(SESSION)?;
        ensure!(
            world.shard.view().primary().is_none(),
            "nobody may take over without the ensemble"
        );
        stage.launch(0)?;
        stage.launch(2)?;
        stage.wait_open(&sync)?;
        world.wait_for_writes()?;
        stage.launch(1)?;
        stage.network.heal()?;
        old.start_sitter()?;
        world.wait_back(old)?;
        stage.world.finish()
    })
}

/// The primary sees its sync, its clients, and not the ensemble: the sync takes over, and by then the
/// old primary serves nobody.
#[test]
fn a_primary_cut_from_the_ensemble_is_replaced() -> Result<()> {
    alone("ensemble::a_primary_cut_from_the_ensemble_is_replaced", || {
        let stage = Stage::start()?;
        let world = &stage.world;
        let old = world.in_role(Role::Primary)?;
        let sync = world.in_role(Role::Sync)?.zone().to_owned();
        let mark = clock::now();
        stage.cut_from_ensemble(old)?;
        stage.wait_open(&sync)?;
        world.wait_for_writes()?;
        println!("writes were out for {} ms", world.writer.longest_gap_since(mark).length().0);
        world.wait("the old primary to be fenced", |view| {
            view.peer(old.zone()).status.as_ref().is_ok_and(|status| !status.postgres.online)
        })?;
        stage.network.heal()?;
        world.wait_back(old)?;
        stage.world.finish()
    })
}

/// A sync that is cut from the ensemble is replaced by the async, and comes back after it.
#[test]
fn a_sync_cut_from_the_ensemble_is_replaced() -> Result<()> {
    alone("ensemble::a_sync_cut_from_the_ensemble_is_replaced", || {
        let stage = Stage::start()?;
        let world = &stage.world;
        let (primary, sync) = (world.in_role(Role::Primary)?, world.in_role(Role::Sync)?);
        let (primary, sync) = (primary.zone().to_owned(), sync.zone().to_owned());
        stage.cut_from_ensemble(world.shard.peer_of(&sync))?;
        world.wait("another sync", |view| {
            view.peers.iter().any(|peer| peer.role() == Some(Role::Sync) && peer.zone != sync)
        })?;
        world.wait_for_writes()?;
        ensure!(world.in_role(Role::Primary)?.zone() == primary, "the primary stays");
        stage.network.heal()?;
        world.wait("the old sync to follow at the end", |view| {
            view.peer(&sync).role() == Some(Role::Async)
        })?;
        stage.world.finish()
    })
}

/// An async that is cut from everybody comes back by itself, and nobody misses it.
#[test]
fn an_async_that_is_isolated_is_not_missed() -> Result<()> {
    alone("ensemble::an_async_that_is_isolated_is_not_missed", || {
        let stage = Stage::start()?;
        let (generation, failed) = (stage.world.generation()?, stage.world.count_failures());
        let last = stage.world.in_role(Role::Async)?;
        stage.network.isolate(last.host().0)?;
        let output = || -> Result<String> {
            Ok(String::from_utf8(stage.world.adm(&["zk-active"])?.stdout)?)
        };
        let id = last.id().to_string();
        stage.world.wait("its session to expire", |_| {
            output().is_ok_and(|active| !active.contains(&id))
        })?;
        stage.world.wait_for_writes()?;
        stage.world.ensure_unnoticed(failed)?;
        ensure!(stage.world.generation()? == generation, "the generation changed");
        stage.network.heal()?;
        stage.world.finish()
    })
}

/// Servers that take connections and answer nothing: one of three, the one that leads.
#[test]
fn a_server_that_never_answers_is_not_noticed_by_clients() -> Result<()> {
    alone("ensemble::a_server_that_never_answers_is_not_noticed_by_clients", || {
        let stage = Stage::start()?;
        let (generation, failed) = (stage.world.generation()?, stage.world.count_failures());
        let leader = stage.wait_for_leader()?;
        stage.ensemble.freeze(leader);
        stage.world.wait("another leader", |_| {
            (0..3).any(|index| index != leader && stage.ensemble.mode(index) == Some(Mode::Leader))
        })?;
        stage.let_pass(Millis(2 * SESSION.0))?;
        stage.world.wait_for_writes()?;
        stage.ensemble.thaw(leader);
        stage.ensemble.wait_serving(leader)?;
        stage.world.ensure_unnoticed(failed)?;
        ensure!(stage.world.generation()? == generation, "the generation changed");
        stage.world.finish()
    })
}
