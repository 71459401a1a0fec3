//! `manatee transplant donor …`: what a transplant by snapshots has done on the host of the donor, with the
//! dataset that its data directory is in. Not for people: it prints JSON, or a stream, and the runner of the
//! transplant calls it, here or by ssh.
//!
//! Nothing of the donor is changed: it gets snapshots, which are known by their names, and loses none but
//! those.

use super::frames;
use crate::backup::Input;
use adapters::storage::{
    Adopted, DatasetName, Purpose, ResumeToken, SendFrom, Snapshot, SnapshotName, Snapshots, Zfs,
};
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};
use transplant::{DatasetFacts, DatasetKind, SnapshotFacts};

/// Which dataset.
#[derive(Debug, Args)]
pub struct Which {
    /// Its kind, and its name.
    #[arg(long)]
    kind: String,
    #[arg(long)]
    name: String,
}

/// Whose snapshots.
#[derive(Debug, Args)]
pub struct Whose {
    #[command(flatten)]
    which: Which,
    /// Which transplant this is.
    #[arg(long)]
    id: String,
}

/// What is done there.
#[derive(Debug, Subcommand)]
pub enum DonorCommand {
    /// Say where in the dataset the data directory is.
    Look {
        #[command(flatten)]
        which: Which,
        /// The data directory.
        #[arg(long)]
        data_dir: PathBuf,
    },
    /// Make a snapshot.
    Snapshot(Whose),
    /// Say which snapshots there are of this transplant.
    List(Whose),
    /// Destroy those.
    Drop(Whose),
    /// Send one.
    Send {
        #[command(flatten)]
        whose: Whose,
        /// Its name.
        #[arg(long)]
        to: String,
        /// The one that the receiver has.
        #[arg(long)]
        from: Option<String>,
        /// Where the receiver goes on.
        #[arg(long)]
        token: Option<String>,
        /// What the receiver takes.
        #[arg(long)]
        accept: Vec<String>,
        /// Bytes a second.
        #[arg(long)]
        rate: Option<u64>,
    },
}

/// What snapshots of this transplant are made for.
pub(super) fn purpose(id: &str) -> String {
    let id: String = id.chars().take(8).collect();
    format!("transplant-{id}")
}

/// Does it; what is to be printed, where it prints no stream.
pub(super) async fn run(command: DonorCommand) -> Result<Option<Value>> {
    super::peer::die_with_the_runner()?;
    Ok(Some(match command {
        DonorCommand::Look { which, data_dir } => look(&which, &data_dir).await?,
        DonorCommand::Snapshot(whose) => {
            let dataset = Dataset::open(&whose.which).await?;
            let name = SnapshotName::now(&purpose(&whose.id))?;
            let made = dataset.snapshots.snapshot(&dataset.name, &name).await?;
            serde_json::to_value(facts(&made))?
        }
        DonorCommand::List(whose) => {
            let ours = Dataset::open(&whose.which).await?.ours(&whose.id).await?;
            serde_json::to_value(ours.iter().map(facts).collect::<Vec<_>>())?
        }
        DonorCommand::Drop(whose) => drop_all(&whose).await?,
        DonorCommand::Send { whose, to, from, token, accept, rate } => {
            let Dataset { snapshots, name } = Dataset::open(&whose.which).await?;
            let to = SnapshotName::new(&to)?;
            let accepted = accept.into_iter().collect();
            let stream = match (token, from) {
                (Some(token), _) => snapshots.send_rest(&ResumeToken::new(token)).await?,
                (None, from) => {
                    let from = from.map(|from| SnapshotName::new(&from)).transpose()?;
                    let from = from.map_or(SendFrom::Nothing, SendFrom::Snapshot);
                    snapshots.send(&name, &to, &from, &accepted).await?
                }
            };
            frames::send(Input::of(stream), &mut frames::own(std::io::stdout())?, rate).await?;
            return Ok(None);
        }
    }))
}

/// A snapshot as the runner knows it.
pub(super) fn facts(snapshot: &Snapshot) -> SnapshotFacts {
    SnapshotFacts { name: snapshot.name.to_string(), guid: snapshot.guid.to_string() }
}

/// A dataset of the donor.
struct Dataset {
    snapshots: Arc<dyn Snapshots>,
    name: DatasetName,
}

fn kind(which: &Which) -> Result<DatasetKind> {
    serde_json::from_value(which.kind.as_str().into()).context("no kind of dataset")
}

async fn zfs(name: &str) -> Result<(Zfs, DatasetName)> {
    let (parent, last) = name.rsplit_once('/').with_context(|| {
        format!("{name} is a whole pool: a dataset below it can be sent, it itself cannot")
    })?;
    Ok((Zfs::open(parent).await?, DatasetName::new(last)?))
}

impl Dataset {
    async fn open(which: &Which) -> Result<Dataset> {
        Ok(match kind(which)? {
            DatasetKind::Zfs => {
                let (zfs, name) = zfs(&which.name).await?;
                Dataset { snapshots: Arc::new(zfs), name }
            }
            DatasetKind::Btrfs => {
                let (btrfs, name) = Adopted::find(Path::new(&which.name))?.open()?;
                Dataset { snapshots: Arc::new(btrfs), name }
            }
        })
    }

    async fn ours(&self, id: &str) -> Result<Vec<Snapshot>> {
        let purpose = purpose(id);
        let all = self.snapshots.list(&self.name).await?.into_iter();
        Ok(all.filter(|one| one.name.purpose() == Purpose::For(&purpose)).collect())
    }
}

/// Where in the dataset the data directory is, all of which must be in it.
async fn look(which: &Which, data_dir: &Path) -> Result<Value> {
    let data = fs::canonicalize(data_dir).with_context(|| data_dir.display().to_string())?;
    let root = match kind(which)? {
        DatasetKind::Btrfs => {
            Adopted::find(Path::new(&which.name))?;
            // It may be seen under another path than it is named by.
            let identity = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino()));
            let wanted = identity(Path::new(&which.name))?;
            let around = data.ancestors().find(|path| identity(path).is_ok_and(|it| it == wanted));
            around.map(Path::to_owned)
        }
        DatasetKind::Zfs => {
            let (zfs, name) = zfs(&which.name).await?;
            let known = zfs.datasets().await?.into_iter().find(|one| one.name == name);
            known.with_context(|| format!("there is no dataset {}", which.name))?.mounted
        }
    };
    let inside = root.as_ref().and_then(|root| data.strip_prefix(root).ok());
    let inside = inside.with_context(|| format!("{} is not in {}", data.display(), which.name))?;
    all_on_one(&data)?;
    let inside = inside.to_str().context("a path that is not UTF-8")?;
    let inside = if inside.is_empty() { "." } else { inside }.to_owned();
    Ok(serde_json::to_value(DatasetFacts { inside })?)
}

/// Refuses a data directory of which a snapshot would lack something.
fn all_on_one(data: &Path) -> Result<()> {
    let device = fs::metadata(data)?.dev();
    let mut open = vec![(data.to_owned(), 0)];
    while let Some((directory, depth)) = open.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            let found = match fs::symlink_metadata(&path) {
                // What comes and goes while the server runs.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                found => found?,
            };
            let shown = path.display();
            // Such as to a certificate: the peers have their own.
            let harmless = depth == 0 && path.is_file();
            let link = found.is_symlink() && !harmless;
            ensure!(!link, "{shown} is a link: what it leads to is in no snapshot");
            if found.is_dir() {
                ensure!(found.dev() == device, "{shown} is another file system, in no snapshot");
                if depth < 2 {
                    open.push((path, depth + 1));
                }
            }
        }
    }
    Ok(())
}

/// Destroys the snapshots of this transplant, and what was made for them.
async fn drop_all(whose: &Whose) -> Result<Value> {
    let adopted = match kind(&whose.which)? {
        DatasetKind::Zfs => None,
        DatasetKind::Btrfs => Some(Adopted::find(Path::new(&whose.which.name))?),
    };
    if adopted.as_ref().is_some_and(|adopted| !adopted.is_open()) {
        return Ok(json!({}));
    }
    let dataset = Dataset::open(&whose.which).await?;
    for snapshot in dataset.ours(&whose.id).await? {
        dataset.snapshots.destroy_snapshot(&dataset.name, &snapshot.name).await?;
    }
    if let Some(adopted) = adopted {
        let left = dataset.snapshots.list(&dataset.name).await?;
        if let Some(other) = left.first() {
            bail!("there is a snapshot of another transplant: {}", other.name);
        }
        adopted.let_go()?;
    }
    Ok(json!({}))
}
