//! The snapshots of one dataset, to be sent.

use super::{
    Input, LegacyOutlet, Offer, Outgoing, Outlet, Part, Refusal, SnapshotInfo, SnapshotRequest,
    StreamRequest,
};
use adapters::storage::{
    DatasetName, HoldTag, Mark, Purpose, ResumeToken, SendFrom, Snapshot, SnapshotName, Snapshots,
    Storage, StorageCause, Volume,
};
use async_trait::async_trait;
use std::{collections::BTreeSet, sync::Arc};

/// What a sitter serves: its own dataset, where that has snapshots.
pub struct StorageOutlet {
    storage: Arc<dyn Storage>,
}

impl StorageOutlet {
    /// Of this dataset.
    pub fn new(storage: Arc<dyn Storage>) -> StorageOutlet {
        StorageOutlet { storage }
    }

    fn volume(&self) -> Result<&Volume, Refusal> {
        self.storage.volume().ok_or_else(|| {
            let backend = self.storage.capabilities().backend;
            let text = format!(
                "this peer's storage ({backend}) has no snapshots: take a base backup of its PostgreSQL"
            );
            Refusal::Conflict(text)
        })
    }

    async fn snapshots(&self) -> Result<(Arc<dyn Snapshots>, &DatasetName), Refusal> {
        let volume = self.volume()?;
        if !volume.dataset().join("data/PG_VERSION").exists() {
            return Err(Refusal::Conflict("this peer has no database itself yet".to_owned()));
        }
        Ok((volume.snapshots().await.map_err(failed)?, volume.name()))
    }

    async fn send(&self, snapshot: Snapshot, how: How<'_>) -> Result<Outgoing, Refusal> {
        let (snapshots, dataset) = self.snapshots().await?;
        let hold = self.hold(&snapshot.name).await?;
        let base = match &how {
            How::From(SendFrom::Snapshot(base), _) => Some(self.hold(base).await?),
            How::From(SendFrom::Nothing | SendFrom::Bookmark(_), _) | How::Rest(_) => None,
        };
        let stream = match how {
            How::From(from, accepted) => {
                snapshots.send(dataset, &snapshot.name, &from, accepted).await
            }
            How::Rest(token) => snapshots.send_rest(&token).await,
        };
        let stream = stream.map_err(failed)?;
        Ok(Outgoing {
            snapshot: info(&snapshot),
            estimate: stream.estimate,
            input: Input::of(stream),
            guard: Box::new((hold, base)),
        })
    }

    /// Holds a snapshot. It is let go of however this ends.
    async fn hold(&self, snapshot: &SnapshotName) -> Result<Hold, Refusal> {
        let (snapshots, dataset) = self.snapshots().await?;
        let tag = HoldTag::new(&format!("{STREAM}{}", uuid::Uuid::new_v4())).map_err(failed)?;
        snapshots.hold(dataset, snapshot, &tag).await.map_err(failed)?;
        Ok(Hold(Held { storage: self.storage.clone(), snapshot: snapshot.clone(), tag }))
    }
}

/// How the tags of our holds begin.
const STREAM: &str = "stream-";

/// What of a snapshot is sent.
enum How<'a> {
    /// From there on, with nothing but these features.
    From(SendFrom, &'a BTreeSet<String>),
    /// The rest of a stream.
    Rest(ResumeToken),
}

/// Lets go of a snapshot when it is dropped. A sitter that dies leaves a hold behind; the next one takes
/// it away when it starts.
struct Hold(Held);

#[derive(Clone)]
struct Held {
    storage: Arc<dyn Storage>,
    snapshot: SnapshotName,
    tag: HoldTag,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let held = self.0.clone();
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            if let Err(error) = held.release().await {
                tracing::warn!(snapshot = %held.snapshot, "a snapshot is still held: {error:#}");
            }
        });
    }
}

impl Held {
    /// Wherever the snapshot is by now: its dataset may have been set aside, or split.
    async fn release(&self) -> anyhow::Result<()> {
        let Some(volume) = self.storage.volume() else { return Ok(()) };
        let snapshots = volume.snapshots().await?;
        for dataset in volume.datasets().await? {
            match snapshots.release(&dataset, &self.snapshot, &self.tag).await {
                Ok(()) | Err(StorageCause::NoSnapshot(_) | StorageCause::NoDataset(_)) => {}
                Err(cause) => return Err(cause.into()),
            }
        }
        Ok(())
    }
}

/// With all its causes: the other side sees nothing else of it.
fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Refusal {
    Refusal::Failed(format!("{:#}", anyhow::Error::from(error)))
}

fn info(snapshot: &Snapshot) -> SnapshotInfo {
    SnapshotInfo {
        name: snapshot.name.to_string(),
        guid: snapshot.guid.to_string(),
        created: Some(snapshot.created),
        bytes: snapshot.size.map(|size| size.referenced),
    }
}

fn mark_info(mark: &Mark) -> SnapshotInfo {
    let (name, guid) = (mark.name.to_string(), mark.guid.to_string());
    SnapshotInfo { name, guid, created: None, bytes: None }
}

#[async_trait]
impl Outlet for StorageOutlet {
    async fn offer(&self) -> Result<Offer, Refusal> {
        let (snapshots, dataset) = self.snapshots().await?;
        let list = snapshots.list(dataset).await.map_err(failed)?;
        let bookmarks = snapshots.bookmarks(dataset).await.map_err(failed)?;
        Ok(Offer {
            format: snapshots.capabilities().backend.to_owned(),
            features: snapshots.features(),
            snapshots: list.iter().map(info).collect(),
            bookmarks: bookmarks.iter().map(mark_info).collect(),
        })
    }

    async fn snapshot(&self, request: &SnapshotRequest) -> Result<SnapshotInfo, Refusal> {
        let (snapshots, dataset) = self.snapshots().await?;
        let name = SnapshotName::now(&request.purpose).map_err(failed)?;
        Ok(info(&snapshots.snapshot(dataset, &name).await.map_err(failed)?))
    }

    async fn open(&self, request: &StreamRequest) -> Result<Outgoing, Refusal> {
        let (snapshots, dataset) = self.snapshots().await?;
        let list = snapshots.list(dataset).await.map_err(failed)?;
        let wanted = request.part.to();
        let Some(to) = list.iter().find(|one| one.guid.to_string() == wanted).cloned() else {
            return Err(Refusal::NotFound(format!("there is no snapshot {wanted} here any more")));
        };
        let from = match &request.part {
            Part::Rest { token, .. } => {
                return self.send(to, How::Rest(ResumeToken::new(token))).await;
            }
            Part::Full { .. } => SendFrom::Nothing,
            Part::Difference { from, .. } => {
                match list.iter().find(|one| one.guid.to_string() == *from) {
                    Some(snapshot) => SendFrom::Snapshot(snapshot.name.clone()),
                    None => {
                        let bookmarks = snapshots.bookmarks(dataset).await.map_err(failed)?;
                        let found = bookmarks.iter().find(|one| one.guid.to_string() == *from);
                        let gone = || format!("there is no snapshot {from} here any more");
                        let mark = found.ok_or_else(|| Refusal::NotFound(gone()))?;
                        SendFrom::Bookmark(mark.name.clone())
                    }
                }
            }
        };
        self.send(to, How::From(from, &request.accepted)).await
    }
}

#[async_trait]
impl LegacyOutlet for StorageOutlet {
    async fn open_newest(&self) -> Result<Outgoing, Refusal> {
        let (snapshots, dataset) = self.snapshots().await?;
        let list = snapshots.list(dataset).await.map_err(failed)?;
        let periodic = |one: &&Snapshot| one.name.purpose() == Purpose::Periodic;
        let Some(newest) = list.iter().rfind(periodic).cloned() else {
            let text = "there is no periodic snapshot yet: wait for the first, or create one";
            return Err(Refusal::NotFound(text.to_owned()));
        };
        self.send(newest, How::From(SendFrom::Nothing, &BTreeSet::new())).await
    }
}

/// Takes away the holds that an earlier sitter left because it died while it sent. One that stays is
/// told of, and keeps no other one from going.
///
/// # Errors
/// When the file system cannot be asked.
pub async fn release_leftovers(volume: &Volume) -> anyhow::Result<()> {
    let snapshots = volume.snapshots().await?;
    for dataset in volume.datasets().await? {
        for snapshot in snapshots.list(&dataset).await? {
            if snapshot.holds == 0 {
                continue;
            }
            for tag in snapshots.holds(&dataset, &snapshot.name).await? {
                if tag.as_str().starts_with(STREAM)
                    && let Err(error) = snapshots.release(&dataset, &snapshot.name, &tag).await
                {
                    let error = anyhow::Error::from(error);
                    tracing::warn!(%dataset, snapshot = %snapshot.name, "it is still held: {error:#}");
                }
            }
        }
    }
    Ok(())
}
