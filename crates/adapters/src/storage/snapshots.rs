//! What a file system with snapshots can do: datasets, snapshots, holds, and streams of them.
//!
//! Contract, kept by every backend and shown by one conformance suite:
//!
//! - A dataset is mounted only by [`Snapshots::mount`], never over anything, never by itself at boot.
//! - Nothing is destroyed but by `destroy…`, and that refuses what is mounted, held or cloned from.
//!   Nothing is overwritten, and no receive is ever forced.
//! - A stream carries data alone. Properties of a dataset (where it is mounted, how it stores) are this
//!   host's, set anew for what came in.
//! - A dataset that is coming in has a name of its own, is not mounted, and has no snapshot before it is
//!   complete. What an interruption leaves is found by `unfinished`, or removed by `abandon`.
//!
//! What is left out: which snapshots are kept ([`super::superfluous`]), what is sent
//! ([`super::plan_send`]), and whether it is the right database ([`super::Incoming`]).

use super::{
    Capabilities, DatasetName, Guid, HoldTag, Mark, SnapshotName, StorageCause, Unfinished, error,
};
use crate::exec::{Reader, Writer};
use async_trait::async_trait;
use std::{
    collections::BTreeSet,
    fmt, io,
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// Its name.
    pub name: DatasetName,
    /// Where it is mounted.
    pub mounted: Option<PathBuf>,
    /// The snapshot that it was cloned from, as the backend names it.
    pub origin: Option<String>,
}

/// A snapshot of a dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its name.
    pub name: SnapshotName,
    /// Which it is, everywhere.
    pub guid: Guid,
    /// When it was made, or came, here; in whole seconds.
    pub created: jiff::Timestamp,
    /// How large it is, where that is known without reading all of it; else ask
    /// [`Snapshots::measure`].
    pub size: Option<Size>,
    /// How many hold it.
    pub holds: u64,
    /// The datasets that were cloned from it.
    pub clones: Vec<DatasetName>,
}

impl Snapshot {
    /// What [`super::plan_send`] needs of it.
    pub fn mark(&self) -> Mark {
        Mark { name: self.name.clone(), guid: self.guid.clone() }
    }
}

/// How large a snapshot is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// All that it refers to.
    pub referenced: u64,
    /// What would be free without it.
    pub unique: u64,
}

/// Where an interrupted receive goes on, as the receiving side says. Opaque.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResumeToken(String);

impl ResumeToken {
    /// As the backend, or a peer, has it.
    pub fn new(text: impl Into<String>) -> Self {
        ResumeToken(text.into())
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a stream of a snapshot begins at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SendFrom {
    /// Nothing: all of it is sent.
    Nothing,
    /// The difference from an earlier snapshot of the dataset.
    Snapshot(SnapshotName),
    /// The difference from a snapshot that is gone, by its bookmark.
    Bookmark(SnapshotName),
}

/// A stream of a snapshot. It ends only when it is complete; whatever goes wrong is an error of
/// reading it. Dropping it stops the sending.
#[derive(Debug)]
pub struct SendStream {
    pub(super) reader: Reader,
    /// An estimate of its length in bytes, where there is one.
    pub estimate: Option<u64>,
}

impl SendStream {
    /// See [`Reader::part`].
    ///
    /// # Errors
    /// As there.
    pub async fn part(&mut self, length: usize) -> io::Result<Vec<u8>> {
        self.reader.part(length).await
    }
}

impl AsyncRead for SendStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.reader).poll_read(cx, buffer)
    }
}

/// Takes a stream into a dataset. Write all of it, then hand it to [`Snapshots::finish`]. Dropping it
/// before stops the receiving, and nothing that came counts, but for what can be resumed.
pub struct ReceiveStream {
    pub(super) writer: Writer,
    pub(super) into: DatasetName,
    /// Where the backend lets it come in, if that is not where it will be.
    pub(super) arriving: Option<PathBuf>,
}

impl fmt::Debug for ReceiveStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReceiveStream({})", self.into)
    }
}

impl ReceiveStream {
    /// Where it goes.
    pub fn into_dataset(&self) -> &DatasetName {
        &self.into
    }

    /// See [`Writer::put`].
    ///
    /// # Errors
    /// As there.
    pub async fn put(&mut self, part: Vec<u8>) -> io::Result<Vec<u8>> {
        self.writer.put(part).await
    }

    /// Stops the receiving and waits until it has; better than dropping it before the dataset is
    /// looked at again.
    pub async fn abort(self) {
        self.writer.abort().await;
    }
}

impl AsyncWrite for ReceiveStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    /// Does nothing: only [`Snapshots::finish`] ends a stream, so that nobody ends it by habit who
    /// has not seen all of it.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A file system with snapshots, below one parent.
#[async_trait]
pub trait Snapshots: Send + Sync {
    /// What this backend can do, as it was found on this host.
    fn capabilities(&self) -> Capabilities;

    /// What streams may contain beyond the format that all versions share, for this host to send or to
    /// take. A sender is given those of the receiver.
    fn features(&self) -> BTreeSet<String>;

    /// How the backend itself calls a dataset: for operators, and for its own commands.
    fn full_name(&self, dataset: &DatasetName) -> String;

    /// All datasets directly below the parent.
    async fn datasets(&self) -> Result<Vec<Dataset>, StorageCause>;

    /// Makes an empty dataset that suits PostgreSQL. It is not mounted.
    async fn create(&self, dataset: &DatasetName) -> Result<(), StorageCause>;

    /// Mounts it at this directory, which is made where there is none, and must be empty. Mounted
    /// there already is no error.
    async fn mount(&self, dataset: &DatasetName, at: &Path) -> Result<(), StorageCause>;

    /// Unmounts it. Not mounted is no error; in use is one.
    async fn unmount(&self, dataset: &DatasetName) -> Result<(), StorageCause>;

    /// Renames it with its snapshots. It must not be mounted, and `to` must not exist.
    async fn rename(&self, dataset: &DatasetName, to: &DatasetName) -> Result<(), StorageCause>;

    /// Destroys it with its snapshots. Refused, before anything is destroyed, when it is mounted or one
    /// of them is held or cloned from.
    async fn destroy(&self, dataset: &DatasetName) -> Result<(), StorageCause>;

    /// Takes a snapshot: what was written when this was called is in it, durably, when it returns.
    async fn snapshot(
        &self,
        dataset: &DatasetName,
        name: &SnapshotName,
    ) -> Result<Snapshot, StorageCause>;

    /// Its snapshots, oldest first.
    async fn list(&self, dataset: &DatasetName) -> Result<Vec<Snapshot>, StorageCause>;

    /// How large a snapshot is. May read all that describes it, and take long.
    async fn measure(
        &self,
        dataset: &DatasetName,
        snapshot: &SnapshotName,
    ) -> Result<Size, StorageCause>;

    /// Destroys a snapshot. Refused, with the reason, while it is held or cloned from.
    async fn destroy_snapshot(
        &self,
        dataset: &DatasetName,
        snapshot: &SnapshotName,
    ) -> Result<(), StorageCause>;

    /// Holds a snapshot: it cannot be destroyed before this is released. Held so already is no error.
    async fn hold(
        &self,
        dataset: &DatasetName,
        snapshot: &SnapshotName,
        tag: &HoldTag,
    ) -> Result<(), StorageCause>;

    /// Lets go of a snapshot. Not held so is no error.
    async fn release(
        &self,
        dataset: &DatasetName,
        snapshot: &SnapshotName,
        tag: &HoldTag,
    ) -> Result<(), StorageCause>;

    /// Who holds a snapshot.
    async fn holds(
        &self,
        dataset: &DatasetName,
        snapshot: &SnapshotName,
    ) -> Result<Vec<HoldTag>, StorageCause>;

    /// Makes a bookmark of a snapshot, under its name: it can be sent from when the snapshot is gone.
    async fn bookmark(
        &self,
        dataset: &DatasetName,
        snapshot: &SnapshotName,
    ) -> Result<(), StorageCause>;

    /// Its bookmarks, oldest first; none where there is no such thing.
    async fn bookmarks(&self, dataset: &DatasetName) -> Result<Vec<Mark>, StorageCause>;

    /// Makes an unmounted dataset what it was at its newest snapshot. Refused when that is not
    /// `snapshot`: what came later would be destroyed. [`Snapshots::branch`] keeps it.
    async fn rollback(
        &self,
        dataset: &DatasetName,
        snapshot: &SnapshotName,
    ) -> Result<(), StorageCause>;

    /// Makes a new dataset of what is in a snapshot. It is not mounted.
    async fn clone_snapshot(
        &self,
        dataset: &DatasetName,
        snapshot: &SnapshotName,
        new: &DatasetName,
    ) -> Result<(), StorageCause>;

    /// Gives a clone the snapshot that it was cloned from, and the earlier ones; what they were of is
    /// its clone from then on. No clone is no error.
    async fn promote(&self, dataset: &DatasetName) -> Result<(), StorageCause>;

    /// Splits a dataset at a snapshot: `new` is what it was then, with that and all earlier snapshots,
    /// and can take a difference from there; the dataset stays as it is, with the later ones. This is
    /// how to go back without losing what came after.
    async fn branch(
        &self,
        dataset: &DatasetName,
        snapshot: &SnapshotName,
        new: &DatasetName,
    ) -> Result<(), StorageCause> {
        self.clone_snapshot(dataset, snapshot, new).await?;
        self.promote(new).await
    }

    /// Sends a snapshot. `accepted` is what [`Snapshots::features`] says at the receiver.
    async fn send(
        &self,
        dataset: &DatasetName,
        snapshot: &SnapshotName,
        from: &SendFrom,
        accepted: &BTreeSet<String>,
    ) -> Result<SendStream, StorageCause>;

    /// Sends the rest of a stream that broke off.
    async fn send_rest(&self, token: &ResumeToken) -> Result<SendStream, StorageCause>;

    /// Takes a stream in: all of a snapshot into a dataset that does not exist, a difference or a rest
    /// into one that is unchanged and not mounted.
    async fn receive(&self, into: &DatasetName) -> Result<ReceiveStream, StorageCause>;

    /// Ends a stream of which all was written; the snapshot that came. Without this there is none.
    async fn finish(&self, stream: ReceiveStream) -> Result<Snapshot, StorageCause>;

    /// What of an interrupted receive into this dataset can go on.
    async fn unfinished(&self, into: &DatasetName) -> Result<Option<Unfinished>, StorageCause>;

    /// Removes what interrupted receives into this dataset left: all of it, where nothing was complete.
    async fn abandon(&self, into: &DatasetName) -> Result<(), StorageCause>;
}

/// What a broken stream was broken by: the command itself where that is what failed.
pub(super) fn broken(error: io::Error) -> StorageCause {
    match error.downcast() {
        Ok(error) => StorageCause::Command(error),
        Err(error) => StorageCause::Stream(error),
    }
}

/// Makes the directory that something is to be mounted on, or sees that it is empty.
pub(super) fn mountpoint(at: &Path) -> Result<(), StorageCause> {
    std::fs::create_dir_all(at).map_err(error::at(at))?;
    if std::fs::read_dir(at).map_err(error::at(at))?.next().is_some() {
        return Err(StorageCause::MountpointNotEmpty(at.to_owned()));
    }
    Ok(())
}

/// Refuses to destroy a snapshot that somebody needs.
pub(super) fn expendable(
    snapshot: &Snapshot,
    full_name: String,
    tags: &[HoldTag],
) -> Result<(), StorageCause> {
    if snapshot.holds > 0 {
        let tags = match tags {
            [] => "by whom is not known".to_owned(),
            tags => tags.iter().map(HoldTag::as_str).collect::<Vec<_>>().join(", "),
        };
        return Err(StorageCause::Held { snapshot: full_name, tags });
    }
    if !snapshot.clones.is_empty() {
        let clones = snapshot.clones.iter().map(ToString::to_string).collect();
        return Err(StorageCause::ClonedFrom { snapshot: full_name, clones });
    }
    Ok(())
}

/// Refuses to go back to a snapshot that is not the newest, or not there.
pub(super) fn newest(
    snapshots: &[Snapshot],
    wanted: &SnapshotName,
    full_name: String,
) -> Result<(), StorageCause> {
    let Some(at) = snapshots.iter().position(|snapshot| snapshot.name == *wanted) else {
        return Err(StorageCause::NoSnapshot(full_name));
    };
    let later: Vec<_> = snapshots[at + 1..].iter().map(|one| one.name.to_string()).collect();
    if later.is_empty() {
        return Ok(());
    }
    Err(StorageCause::LaterSnapshots { snapshot: full_name, later })
}
