//! `manatee transplant peer incoming …`: the donor's dataset as it comes in, snapshot by snapshot. It has a
//! name of its own and is not mounted until the last one is there; then it is looked at, and put in place.
//! No server is started on it before; to look inside, one is started on a clone.

use super::{
    beside::Clone,
    donor::{facts, purpose},
    frames,
    peer::{Which, lock},
};
use crate::sitter::{config::Config, executor};
use adapters::{
    postgres::Postgres,
    storage::{DatasetName, Expected, Incoming, Purpose, Snapshots, Storage, Volume, examine},
};
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use cluster::Lsn;
use serde_json::{Value, json};
use std::{
    fs, io,
    os::unix::fs::{MetadataExt, chown},
    path::{Path, PathBuf},
    sync::Arc,
};
use transplant::{Arrived, Control, FENCE_FILES, Rest, without_block};

/// What is done with it.
#[derive(Debug, Subcommand)]
pub enum IncomingCommand {
    /// Say what has come.
    Look(Which),
    /// Take a stream.
    Take(Which),
    /// Put it in place: all has come.
    Place {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        donor: Ended,
    },
    /// Start a server on a clone of what has come, to look at it.
    Open(Inside),
    /// End that server, and remove the clone.
    Shut(Inside),
    /// Let go of what broke off.
    Abandon(Which),
    /// Destroy what has come and is not in place.
    Clear(Which),
    /// Destroy the snapshots that came with what is in place.
    Forget {
        #[command(flatten)]
        which: Which,
        /// Which transplant this was.
        #[arg(long)]
        id: String,
    },
}

/// What has come.
#[derive(Debug, Args)]
pub struct Inside {
    #[command(flatten)]
    which: Which,
    /// Where in its dataset the donor's data directory is.
    #[arg(long)]
    inside: PathBuf,
}

/// What the donor ended as.
#[derive(Debug, Args)]
pub struct Ended {
    /// Where in its dataset its data directory is.
    #[arg(long)]
    inside: PathBuf,
    /// Which database it is.
    #[arg(long)]
    system_identifier: u64,
    /// Its timeline.
    #[arg(long)]
    timeline: u32,
    /// Its last checkpoint.
    #[arg(long)]
    checkpoint: Lsn,
}

/// Does it; what is to be printed.
pub(super) async fn run(command: IncomingCommand) -> Result<Value> {
    let (IncomingCommand::Look(which)
    | IncomingCommand::Take(which)
    | IncomingCommand::Open(Inside { which, .. })
    | IncomingCommand::Shut(Inside { which, .. })
    | IncomingCommand::Abandon(which)
    | IncomingCommand::Clear(which)
    | IncomingCommand::Place { which, .. }
    | IncomingCommand::Forget { which, .. }) = &command;
    let config = Config::load(&which.config)?;
    // The sitter has it when the snapshots are let go of.
    let in_use = matches!(command, IncomingCommand::Forget { .. });
    let _lock = if in_use { None } else { Some(lock(&config).await?) };
    let storage = config.open_storage()?;
    let Some(volume) = storage.volume() else {
        bail!("this peer's storage has no snapshots");
    };
    let snapshots = volume.snapshots().await?;
    let into = dataset(volume)?;
    let place = Place { config: &config, volume, snapshots, into };
    match command {
        IncomingCommand::Look(_) => Ok(serde_json::to_value(place.look().await?)?),
        IncomingCommand::Take(_) => place.take().await,
        IncomingCommand::Place { donor, .. } => place.put(&donor).await,
        IncomingCommand::Open(Inside { inside, .. }) => {
            // The peer's own dataset, empty: what asks for a server's programs wants it to be there.
            volume.prepare().await?;
            let postgres = Postgres::open(executor::settings(&config, &config.ident()?)?)?;
            Clone::of(volume, &inside).await?.open(&place.into, &postgres).await
        }
        IncomingCommand::Shut(Inside { inside, .. }) => {
            Clone::of(volume, &inside).await?.shut().await
        }
        IncomingCommand::Abandon(_) => {
            place.snapshots.abandon(&place.into).await?;
            Ok(json!({}))
        }
        IncomingCommand::Clear(_) => {
            place.snapshots.abandon(&place.into).await?;
            if place.is_there().await? {
                place.snapshots.unmount(&place.into).await?;
                place.snapshots.destroy(&place.into).await?;
            }
            Ok(json!({}))
        }
        IncomingCommand::Forget { id, .. } => {
            let (name, purpose) = (place.volume.name(), purpose(&id));
            for snapshot in place.snapshots.list(name).await? {
                if snapshot.name.purpose() == Purpose::For(&purpose) {
                    place.snapshots.destroy_snapshot(name, &snapshot.name).await?;
                }
            }
            Ok(json!({}))
        }
    }
}

/// What it is called until it is in place.
pub(super) fn dataset(volume: &Volume) -> Result<DatasetName> {
    Ok(DatasetName::new(&format!("{}.incoming", volume.name()))?)
}

/// Where it comes in.
struct Place<'a> {
    config: &'a Config,
    volume: &'a Volume,
    snapshots: Arc<dyn Snapshots>,
    into: DatasetName,
}

impl Place<'_> {
    async fn is_there(&self) -> Result<bool> {
        Ok(self.snapshots.datasets().await?.iter().any(|dataset| dataset.name == self.into))
    }

    async fn look(&self) -> Result<Arrived> {
        let mut list = Vec::new();
        if self.is_there().await? {
            list = self.snapshots.list(&self.into).await?;
        }
        let rest = self.snapshots.unfinished(&self.into).await?;
        Ok(Arrived {
            snapshots: list.iter().map(facts).collect(),
            rest: rest.map(|rest| Rest {
                token: rest.token.as_str().to_owned(),
                to: rest.to.to_string(),
            }),
            features: self.snapshots.features(),
        })
    }

    async fn take(&self) -> Result<Value> {
        let mut stream = self.snapshots.receive(&self.into).await?;
        if let Err(error) = frames::take(&mut frames::own(std::io::stdin())?, &mut stream).await {
            let broken = error.downcast_ref::<io::Error>();
            if broken.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
                // The file system takes no more, and says why at its end.
                self.snapshots.finish(stream).await?;
            } else {
                stream.abort().await;
            }
            return Err(error);
        }
        let came = self.snapshots.finish(stream).await?;
        Ok(serde_json::to_value(facts(&came))?)
    }

    async fn put(&self, donor: &Ended) -> Result<Value> {
        // The peer's own dataset, empty, or what an earlier attempt put in place.
        self.volume.prepare().await?;
        let postgres = Postgres::open(executor::settings(self.config, &self.config.ident()?)?)?;
        let program = postgres.bin_dir().join("pg_controldata");
        let user = postgres.os_user();
        if !self.is_there().await? {
            let found = examine(postgres.data(), &program, user).await?;
            return same(&found.into(), donor).map(|()| json!({}));
        }
        let mountpoint = self.volume.dataset();
        let name = mountpoint.file_name().unwrap_or_default().to_string_lossy();
        let beside = mountpoint.with_file_name(format!(".{name}.incoming"));
        self.snapshots.mount(&self.into, &beside).await?;
        let ready = self.make_ready(&beside, donor, &postgres).await;
        self.snapshots.unmount(&self.into).await?;
        ready?;
        self.volume.make_way("transplant").await?;
        let incoming = Incoming {
            from: self.into.clone(),
            to: self.volume.name().clone(),
            mountpoint: mountpoint.to_owned(),
            beside,
            expected: Expected {
                system_identifier: Some(donor.system_identifier),
                newest_timeline: Some(donor.timeline),
            },
            pg_controldata: program,
            os_user: user.cloned(),
        };
        incoming.put_in_place(&*self.snapshots).await?;
        Ok(json!({}))
    }

    /// Proves that it is what the donor ended as, and gives it the shape of a peer's dataset.
    async fn make_ready(&self, root: &Path, donor: &Ended, postgres: &Postgres) -> Result<()> {
        let data = root.join("data");
        let as_sent = root.join(&donor.inside);
        let found = if data.join("PG_VERSION").exists() { &data } else { &as_sent };
        let program = postgres.bin_dir().join("pg_controldata");
        if found.join("PG_VERSION").exists() {
            let facts = examine(found, &program, postgres.os_user()).await?;
            same(&facts.into(), donor)?;
        }
        if donor.inside == Path::new(".") {
            gather(root, &data)?;
        } else if !data.join("PG_VERSION").exists() {
            fs::rename(&as_sent, &data)
                .with_context(|| format!("{} to data", donor.inside.display()))?;
        }
        // What closes the donor is no business of the peer.
        for file in FENCE_FILES {
            match fs::remove_file(data.join(file)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        let path = data.join("postgresql.auto.conf");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let kept = without_block(&text);
        if kept != text {
            fs::write(&path, kept)?;
        }
        // What was moved about outlives a loss of power from here on.
        rustix::fs::syncfs(fs::File::open(root)?)?;
        let facts = examine(&data, &program, postgres.os_user()).await?;
        same(&facts.into(), donor)
    }
}

/// Whether a database is what the donor ended as.
fn same(found: &Control, donor: &Ended) -> Result<()> {
    let Ended { system_identifier, timeline, checkpoint, .. } = donor;
    if found.system_identifier != system_identifier.to_string()
        || found.timeline != *timeline
        || found.checkpoint != *checkpoint
        || found.state != "shut down"
    {
        bail!(
            "what came is not what the donor ended as: {found:?}, the donor is {system_identifier} on \
             timeline {timeline} and ended after {checkpoint}"
        );
    }
    Ok(())
}

/// Moves all that is in a dataset, the database itself, into a directory of it.
fn gather(root: &Path, data: &Path) -> Result<()> {
    let moving = root.join("data.moving");
    if data.exists() && !moving.exists() {
        return Ok(());
    }
    fs::create_dir_all(&moving)?;
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if entry.path() != moving {
            fs::rename(entry.path(), moving.join(entry.file_name()))?;
        }
    }
    let of = fs::metadata(root)?;
    chown(&moving, Some(of.uid()), Some(of.gid()))?;
    fs::set_permissions(&moving, of.permissions())?;
    Ok(fs::rename(&moving, data)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_donor_ended_as_is_put_in_place() {
        let donor = Ended {
            inside: ".".into(),
            system_identifier: 7,
            timeline: 2,
            checkpoint: "0/5000028".parse().expect("a position"),
        };
        let check = |change: &dyn Fn(&mut Control), good: bool| {
            let mut found = Control {
                system_identifier: "7".to_owned(),
                timeline: 2,
                checkpoint: donor.checkpoint,
                state: "shut down".to_owned(),
            };
            change(&mut found);
            assert_eq!(same(&found, &donor).is_ok(), good, "{found:?}");
        };
        check(&|_| {}, true);
        check(&|found| found.system_identifier = "8".to_owned(), false);
        check(&|found| found.timeline = 1, false);
        check(&|found| found.checkpoint = "0/5000000".parse().expect("a position"), false);
        // As in every snapshot before the last.
        check(&|found| found.state = "in production".to_owned(), false);
        // As when a server was started on it.
        check(&|found| found.state = "in archive recovery".to_owned(), false);
    }

    #[test]
    fn a_dataset_that_is_the_database_gets_it_into_a_directory() {
        let place = tempfile::tempdir().expect("a directory");
        let (root, data) = (place.path(), place.path().join("data"));
        for name in ["PG_VERSION", "postgresql.conf"] {
            fs::write(root.join(name), name).expect("a file");
        }
        // As far as an earlier attempt came.
        fs::create_dir(root.join("data.moving")).expect("a directory");
        fs::rename(root.join("PG_VERSION"), root.join("data.moving/PG_VERSION")).expect("moved");
        for _ in 0..2 {
            gather(root, &data).expect("gathered");
            let names = |at: &Path| fs::read_dir(at).expect("a directory").count();
            assert_eq!((names(root), names(&data)), (1, 2));
        }
    }
}
