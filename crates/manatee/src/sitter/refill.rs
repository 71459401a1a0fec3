//! How a peer comes by its database: the cheapest way that is proven right, and the next one when that
//! fails.
//!
//! - Seeding: a snapshot of the source, where both sides have the same kind of file system; else a base
//!   backup. Neither from a source that does not answer.
//! - Rebuilding: nothing where nothing has diverged; `pg_rewind`, with what was there kept; the difference
//!   to a snapshot that both have, or all of one; a base backup. What was there stays until what replaces
//!   it is complete.
//!
//! Rebuilding goes by the first source alone wherever it does not copy everything: that is the primary of
//! the generation (rule X2), or the upstream that cannot be followed (rule X4).

use super::{config::Config, executor::World};
use crate::backup::{Progress, ReceiveError, Received, Reception, Remote, Secret, TlsFiles};
use adapters::{
    postgres::{PgCause, Postgres},
    storage::{Expected, KEPT, Pruned, SeedPhase, SeedProgress, SeedSource, Volume},
};
use anyhow::{Context, Result, ensure};
use cluster::{PeerIdent, Way};
use std::{sync::atomic::Ordering, time::Duration};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

/// How long a copy waits for a source that is still starting before it is tried, and fails, for real.
const STARTING: Duration = Duration::from_secs(5);

/// How the backup services of the shard are reached.
#[derive(Debug, Clone)]
pub(super) struct Backups {
    pub(super) secret: Secret,
    tls: Option<TlsFiles>,
    receiver: String,
}

impl Backups {
    pub(super) fn of(config: &Config, me: &PeerIdent, secret: Secret) -> Backups {
        Backups { secret, tls: config.tls.clone().map(TlsFiles::from), receiver: me.id.to_string() }
    }

    /// That of this peer.
    fn remote(&self, peer: &PeerIdent) -> Result<Remote> {
        let url = peer.backup_url.as_deref().context("it has no backup service")?;
        let address = url.split_once("://").map_or(url, |(_, rest)| rest).trim_end_matches('/');
        Ok(Remote::new(address, self.secret.clone(), self.tls.as_ref())?)
    }
}

/// A source that nothing can come from, whichever way, before it has started.
#[derive(Debug, thiserror::Error)]
#[error("its PostgreSQL does not answer yet")]
struct Silent;

/// What becomes of an unfinished transfer that an earlier try left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leftover {
    /// It is gone on with.
    Resume,
    /// It is removed: only what is of now will do.
    Discard,
    /// As well, and no snapshot that is here counts: everything comes.
    Ignore,
}

impl World {
    /// Fills the dataset, which has no database.
    pub(super) async fn seed(&self, postgres: &Postgres, sources: &[PeerIdent]) -> Result<()> {
        // Where one was being rewound, there is none now, and this may be all that is done about it.
        postgres.remove_half_rewound().await?;
        let (progress, watched) = watch::channel(SeedProgress::default());
        let _shown = self.shared.show_copy(watched);
        let addresses = addresses(sources)?;
        wait_for_any(postgres, &addresses).await;
        refuse_tablespaces(postgres, &addresses).await?;
        if let Some(volume) = self.storage.volume() {
            let mut silent = 0;
            for source in sources {
                match self.receive(postgres, volume, source, &progress, Leftover::Resume).await {
                    Ok(()) => return Ok(()),
                    // What has come is worth waiting for.
                    Err(error) if is_busy(&error) && volume.unfinished().await?.is_some() => {
                        return Err(error);
                    }
                    Err(error) => {
                        silent += usize::from(error.is::<Silent>());
                        not_this_way("no snapshot from this peer", source, &error);
                    }
                }
            }
            // One that answers only now has snapshots to send as well: they are for the next try. And what
            // has come of one is not given up for nobody's base backup.
            if silent > 0 && silent == sources.len() || !any_answers(postgres, &addresses).await {
                return Err(Silent.into());
            }
            self.storage.prepare().await?;
        }
        self.base_backup(postgres, sources, &progress).await
    }

    /// Makes what is there, if anything, a copy of the first source's database, and keeps what was.
    pub(super) async fn rebuild(
        &self,
        postgres: &Postgres,
        sources: &[PeerIdent],
        way: Way,
    ) -> Result<()> {
        postgres.remove_half_rewound().await?;
        let (progress, watched) = watch::channel(SeedProgress::default());
        let _shown = self.shared.show_copy(watched);
        let addresses = addresses(sources)?;
        wait_for_any(postgres, &addresses).await;
        // One that streamed since would have had the chance to go its own way again.
        let again = self.shared.rewound.swap(false, Ordering::Relaxed);
        if postgres.data().exists() && !again && way == Way::Cheapest {
            let (source, address) =
                sources.first().zip(addresses.first()).context("there is nobody to copy from")?;
            match self.repair(postgres, address, &progress).await {
                Ok(()) => {
                    self.shared.rewound.store(true, Ordering::Relaxed);
                    self.prune().await;
                    return Ok(());
                }
                Err(error) => not_this_way("what is here cannot be rewound", source, &error),
            }
        }
        refuse_tablespaces(postgres, &addresses).await?;
        if let (Some(volume), Some(source)) = (self.storage.volume(), sources.first()) {
            let leftover = if way == Way::Whole { Leftover::Ignore } else { Leftover::Discard };
            match self.receive(postgres, volume, source, &progress, leftover).await {
                Ok(()) => {
                    self.prune().await;
                    return Ok(());
                }
                Err(error) => not_this_way("no snapshot from this peer", source, &error),
            }
            self.storage.prepare().await?;
        }
        if postgres.data().exists() {
            let kept = self.storage.set_aside(KEPT).await?;
            tracing::info!("the old database is kept in {}", kept.display());
        }
        self.base_backup(postgres, sources, &progress).await?;
        self.prune().await;
        Ok(())
    }

    /// Changes what is here as little as possible.
    async fn repair(
        &self,
        postgres: &Postgres,
        source: &SeedSource,
        progress: &watch::Sender<SeedProgress>,
    ) -> Result<()> {
        progress.send_modify(|progress| progress.source = Some(source.peer.clone()));
        match postgres.follow_if_ancestor(source).await {
            Ok(true) => {
                tracing::info!(source = %source.peer, "nothing has diverged: the database is kept");
                return Ok(());
            }
            Ok(false) => {}
            // After a crash it is not known where the database ends: rewinding finds out.
            Err(error) if matches!(error.cause, PgCause::Command(_)) => {
                tracing::debug!("not known to be an ancestor: {:#}", anyhow::Error::from(error));
            }
            // Rewinding would be refused as well, after what is here was kept.
            Err(error) => return Err(error.into()),
        }
        refuse_tablespaces(postgres, std::slice::from_ref(source)).await?;
        let kept = self.storage.keep(KEPT).await?;
        tracing::info!("the old database is kept in {}", kept.display());
        let told = |done, total| {
            progress.send_modify(|progress| {
                progress.phase = SeedPhase::Receiving;
                (progress.bytes_done, progress.bytes_total) = (done, Some(total));
            });
        };
        let rewound = postgres.rewind(source, told).await?;
        progress.send_modify(|progress| progress.phase = SeedPhase::Done);
        tracing::info!(
            source = %source.peer, recovery_ms = rewound.recovering.0, comparing_ms = rewound.comparing.0,
            copying_ms = rewound.copying.0, copied_mib = rewound.copied >> 20,
            syncing_ms = rewound.syncing.0, "the database was rewound to the present primary's"
        );
        Ok(())
    }

    /// Takes a new snapshot of the source.
    async fn receive(
        &self,
        postgres: &Postgres,
        volume: &Volume,
        source: &PeerIdent,
        progress: &watch::Sender<SeedProgress>,
        leftover: Leftover,
    ) -> Result<()> {
        progress.send_replace(SeedProgress {
            source: Some(source.id.clone()),
            ..SeedProgress::default()
        });
        let (host, port) = source.pg_address()?;
        let address = SeedSource { peer: source.id.clone(), host, port };
        // What a snapshot holds of a server that is still starting is less than it needs.
        ensure!(postgres.answers(&address).await, Silent);
        let remote = self.backups.remote(source)?;
        let reception = Reception {
            volume,
            remote: &remote,
            receiver: self.backups.receiver.clone(),
            rate: None,
            resume: leftover == Leftover::Resume,
            whole: leftover == Leftover::Ignore,
            expected: Expected { system_identifier: postgres.identity()?, newest_timeline: None },
            pg_controldata: postgres.bin_dir().join("pg_controldata"),
            os_user: postgres.os_user().cloned(),
        };
        let (sender, mut receiver) = watch::channel(Progress::default());
        let shown = async {
            while receiver.changed().await.is_ok() {
                let bytes = receiver.borrow_and_update().bytes;
                progress.send_modify(|progress| {
                    progress.phase = SeedPhase::Receiving;
                    progress.bytes_done = bytes;
                });
            }
            std::future::pending().await
        };
        let make_way = async || {
            progress.send_modify(|progress| progress.phase = SeedPhase::Finishing);
            if let Some(kept) = volume.make_way(KEPT).await? {
                tracing::info!("the old database is kept in {}", kept.display());
            }
            Ok(())
        };
        let told = |bytes: u64| {
            progress.send_modify(|progress| progress.bytes_total = Some(bytes));
        };
        let came: Result<Received, ReceiveError> = tokio::select! {
            came = reception.run(&sender, told, make_way) => came,
            never = shown => never,
        };
        let Received { snapshot, incremental, bytes, facts } = came?;
        progress.send_modify(|progress| progress.phase = SeedPhase::Done);
        tracing::info!(
            source = %source.id, snapshot = snapshot.name, incremental, bytes,
            timeline = facts.timeline, "a snapshot of the database came"
        );
        Ok(())
    }

    async fn base_backup(
        &self,
        postgres: &Postgres,
        sources: &[PeerIdent],
        progress: &watch::Sender<SeedProgress>,
    ) -> Result<()> {
        if let Some(volume) = self.storage.volume() {
            // Never gone on with, once there was another database here; and it needs the room.
            volume.expect_nothing()?;
            if let Err(error) = volume.discard_incoming().await {
                let error = anyhow::Error::from(error);
                tracing::warn!("what came of a snapshot could not be removed: {error:#}");
            }
        }
        let request = postgres.seed_request(addresses(sources)?);
        let seeded = self.storage.seed(&request, progress).await?;
        tracing::info!(source = %seeded.source, timeline = seeded.timeline, "the database is copied");
        Ok(())
    }

    /// Removes what is kept beyond the configured number. That this fails spoils no copy.
    async fn prune(&self) {
        match self.storage.prune_aside(self.keep_aside).await {
            Ok(Pruned { gone, left }) => {
                for path in gone {
                    tracing::info!(
                        "an older database that was kept is removed: {}",
                        path.display()
                    );
                }
                for (path, cause) in left {
                    let error = anyhow::Error::from(cause);
                    let path = path.display();
                    tracing::warn!(
                        "an older database stays, as it cannot be removed: {path}: {error:#}"
                    );
                }
            }
            Err(error) => {
                let error = anyhow::Error::from(error);
                tracing::warn!("older databases could not be removed: {error:#}");
            }
        }
    }
}

/// Whether the source sends as many snapshots as it may.
fn is_busy(error: &anyhow::Error) -> bool {
    error.downcast_ref::<ReceiveError>().is_some_and(ReceiveError::is_busy)
}

async fn any_answers(postgres: &Postgres, sources: &[SeedSource]) -> bool {
    for source in sources {
        if postgres.answers(source).await {
            return true;
        }
    }
    false
}

/// Refuses to copy, or to keep a copy of, a database of which a part lies outside its data directory. One
/// that does not answer is not copied, either.
async fn refuse_tablespaces(postgres: &Postgres, sources: &[SeedSource]) -> Result<()> {
    for source in sources {
        let Ok(found) = postgres.tablespaces_of(source).await else { continue };
        ensure!(
            found.is_empty(),
            "{} has tablespaces outside its data directory ({}), which no copy would hold: move what is \
             in them to pg_default (ALTER TABLE, INDEX and DATABASE … SET TABLESPACE) and drop them on \
             the primary; then the copy is made by itself",
            source.peer,
            found.join(", ")
        );
    }
    Ok(())
}

fn not_this_way(what: &str, source: &PeerIdent, error: &anyhow::Error) {
    tracing::warn!(source = %source.id, "{what}, trying the next way: {error:#}");
}

fn addresses(sources: &[PeerIdent]) -> Result<Vec<SeedSource>> {
    let address = |peer: &PeerIdent| {
        let (host, port) = peer.pg_address()?;
        Ok(SeedSource { peer: peer.id.clone(), host, port })
    };
    sources.iter().map(address).collect()
}

/// Waits a little until one of these takes connections: at setup all peers begin at once, and the one
/// to copy from is often still starting. Whether one does is for the copy to find out.
async fn wait_for_any(postgres: &Postgres, sources: &[SeedSource]) {
    let connected = async {
        while !any_answers(postgres, sources).await {
            sleep(Duration::from_millis(100)).await;
        }
    };
    if timeout(STARTING, connected).await.is_err() {
        tracing::debug!("nobody to copy from takes connections yet");
    }
}
