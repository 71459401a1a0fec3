//! Filling a peer's dataset with another peer's, by snapshots.
//!
//! Contract: what comes in has a name of its own until it is complete, is the snapshot that was asked
//! for, and holds the right database. What is broken off is gone on with where the file system can;
//! otherwise it is removed, and begun anew.

use super::{
    FetchError, Offer, Part, Progress, Remote, SnapshotInfo, SnapshotRequest, StreamRequest,
    StreamStarted,
};
use adapters::{
    exec::OsUser,
    storage::{
        BadName, Base, DatabaseFacts, DatasetName, Expected, Guid, Incoming, Mark, Receivable,
        SendConflict, SendPlan, Sendable, Snapshot, SnapshotName, Snapshots, Storage, StorageCause,
        StorageError, Unfinished, Volume, plan_send,
    },
};
use axum::http::StatusCode;
use std::{io, path::PathBuf, sync::Arc};
use tokio::sync::watch;

/// What new snapshots at the sender are made for.
pub const SEED: &str = "seed";

/// Why a dataset could not be filled this way.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// It does not come.
    #[error("the snapshot does not come")]
    Fetch(#[from] FetchError),
    /// The dataset cannot be prepared for it, or it cannot be put in place.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// It cannot be taken.
    #[error("the snapshot cannot be taken")]
    Cause(#[from] StorageCause),
    /// The two cannot exchange streams.
    #[error("that peer sends {theirs} streams, this one takes {ours}")]
    Format {
        /// Of the sender.
        theirs: String,
        /// Of the receiver.
        ours: &'static str,
    },
    /// There is no stream that would help.
    #[error(transparent)]
    Conflict(#[from] SendConflict),
    /// The sender names something impossibly.
    #[error(transparent)]
    Name(#[from] BadName),
    /// Another snapshot came than the one that was asked for.
    #[error("snapshot {wanted} was asked for, and {came} came")]
    Another {
        /// Its GUID.
        wanted: Guid,
        /// Its GUID.
        came: Guid,
    },
}

impl ReceiveError {
    /// Whether the sender sends as much as it may, and is to be asked again.
    pub fn is_busy(&self) -> bool {
        matches!(self, ReceiveError::Fetch(error) if is_busy(error))
    }
}

/// What is to be filled, and with what.
pub struct Reception<'a> {
    /// The dataset.
    pub volume: &'a Volume,
    /// The sender.
    pub remote: &'a Remote,
    /// Who we are, for the sender's list.
    pub receiver: String,
    /// Bytes a second that the stream is not to exceed.
    pub rate: Option<u64>,
    /// Whether what an earlier transfer left may be gone on with, and this one later: it brings the
    /// snapshot of then, not one of now. Only where there is no database.
    pub resume: bool,
    /// Whether all of the snapshot is to come, whatever both sides have.
    pub whole: bool,
    /// What the database has to be.
    pub expected: Expected,
    /// The program of the right version.
    pub pg_controldata: PathBuf,
    /// Who owns the database; `None` for our own user.
    pub os_user: Option<OsUser>,
}

/// What came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// The snapshot.
    pub snapshot: SnapshotInfo,
    /// Whether only a difference had to come.
    pub incremental: bool,
    /// Bytes of the stream.
    pub bytes: u64,
    /// What the database is.
    pub facts: DatabaseFacts,
}

/// A stream that the sender has begun.
struct Begun {
    started: StreamStarted,
    wanted: Guid,
    incremental: bool,
}

impl Reception<'_> {
    /// Fetches a new snapshot of the sender and puts it in place as a standby's database. The dataset's
    /// own name must be free by the time that all has come: `make_way` is called then.
    ///
    /// A difference to a snapshot that both have is fetched where there is one, into a branch of what is
    /// there; what is there stays as it is. `estimated` is told about how many bytes will come.
    ///
    /// # Errors
    /// When it does not come, or cannot be taken; the dataset is as it was, unless `make_way` has been
    /// called.
    pub async fn run(
        &self,
        progress: &watch::Sender<Progress>,
        estimated: impl FnOnce(u64),
        make_way: impl AsyncFnOnce() -> Result<(), StorageError>,
    ) -> Result<Received, ReceiveError> {
        let snapshots = self.volume.snapshots().await?;
        let ours = snapshots.capabilities().backend;
        let offer = self.remote.offer().await?;
        if offer.format != ours {
            return Err(ReceiveError::Format { theirs: offer.format, ours });
        }
        let into = self.volume.incoming()?;
        let Begun { started, wanted, incremental } = self.begin(&snapshots, &into, offer).await?;
        if let Some(estimate) = started.estimate {
            estimated(estimate);
        }
        if let Err(error) = self.make_ready(started.estimate, &wanted).await {
            if let Err(error) = self.remote.end(&started).await {
                tracing::debug!("the stream was not let go of, and ends by itself: {error}");
            }
            return Err(error.into());
        }
        let taken = take(self.remote, &*snapshots, &into, &started, progress).await?;
        let (snapshot, Progress { bytes, .. }) = taken;
        if snapshot.guid != wanted {
            return Err(ReceiveError::Another { wanted, came: snapshot.guid.clone() });
        }
        make_way().await?;
        let incoming = Incoming {
            from: into,
            to: self.volume.name().clone(),
            mountpoint: self.volume.dataset().to_owned(),
            beside: beside(self.volume.dataset()),
            expected: self.expected.clone(),
            pg_controldata: self.pg_controldata.clone(),
            os_user: self.os_user.clone(),
        };
        let facts = incoming.put_in_place(&*snapshots).await?;
        let snapshot = SnapshotInfo {
            name: snapshot.name.to_string(),
            guid: snapshot.guid.to_string(),
            created: Some(snapshot.created),
            bytes: None,
        };
        Ok(Received { snapshot, incremental, bytes, facts })
    }

    /// Sees to it that there is room, and that what comes can be gone on with where it may be.
    async fn make_ready(&self, estimate: Option<u64>, wanted: &Guid) -> Result<(), StorageError> {
        if let Some(estimate) = estimate {
            self.volume.refuse_shortage(estimate)?;
        }
        match self.resume {
            true => self.volume.expect(wanted).await,
            false => Ok(()),
        }
    }

    /// Begins what is to come, and makes the dataset that it comes into fit for it.
    async fn begin(
        &self,
        snapshots: &Arc<dyn Snapshots>,
        into: &DatasetName,
        offer: Offer,
    ) -> Result<Begun, ReceiveError> {
        let sendable =
            Sendable { snapshots: marks(&offer.snapshots)?, bookmarks: marks(&offer.bookmarks)? };
        let unfinished = if self.resume { self.volume.unfinished().await? } else { None };
        if let Some(part) = unfinished.and_then(|unfinished| rest(&sendable, unfinished)) {
            match self.ask(snapshots, part, true).await {
                Err(error) if is_in_vain(&error) => {
                    tracing::info!("the last transfer is not gone on with: {error}");
                }
                begun => return Ok(begun?),
            }
        }
        let (part, incremental) = self.prepare(snapshots, into, sendable).await?;
        Ok(self.ask(snapshots, part, incremental).await?)
    }

    async fn ask(
        &self,
        snapshots: &Arc<dyn Snapshots>,
        part: Part,
        incremental: bool,
    ) -> Result<Begun, FetchError> {
        let wanted = Guid::new(part.to());
        let request = StreamRequest {
            receiver: self.receiver.clone(),
            part,
            accepted: snapshots.features(),
            rate: self.rate,
        };
        let started = self.remote.begin(&request).await?;
        Ok(Begun { started, wanted, incremental })
    }

    /// Removes what is left of an earlier transfer, and decides what is to come.
    async fn prepare(
        &self,
        snapshots: &Arc<dyn Snapshots>,
        into: &DatasetName,
        mut sendable: Sendable,
    ) -> Result<(Part, bool), ReceiveError> {
        self.volume.discard_incoming().await?;
        let request = SnapshotRequest { purpose: SEED.to_owned() };
        let to = mark(&self.remote.snapshot(&request).await?)?;
        sendable.snapshots.push(to.clone());
        let common = match self.whole {
            true => None,
            false => self.newest_common(&**snapshots, &sendable).await?,
        };
        let Some(common) = common else {
            return Ok((Part::Full { to: to.guid.to_string() }, false));
        };
        snapshots.branch(self.volume.name(), &common.name, into).await?;
        let receivable = Receivable {
            snapshots: snapshots.list(into).await?.iter().map(|one| one.mark()).collect(),
            unfinished: None,
        };
        match plan_send(&sendable, &receivable, Some(&to.guid))? {
            SendPlan::Incremental { from: Base::Snapshot(from) | Base::Bookmark(from), .. } => {
                let (from, to) = (from.guid.to_string(), to.guid.to_string());
                Ok((Part::Difference { from, to }, true))
            }
            // The branch is of no use; without it everything comes.
            _ => {
                self.volume.discard_incoming().await?;
                Ok((Part::Full { to: to.guid.to_string() }, false))
            }
        }
    }

    /// The newest snapshot of ours from which the sender can send a difference.
    async fn newest_common(
        &self,
        snapshots: &dyn Snapshots,
        sendable: &Sendable,
    ) -> Result<Option<Mark>, ReceiveError> {
        let known = snapshots.datasets().await?;
        if !known.iter().any(|dataset| dataset.name == *self.volume.name()) {
            return Ok(None);
        }
        let ours = snapshots.list(self.volume.name()).await?;
        let theirs = |guid: &Guid| {
            let mut all = sendable.snapshots.iter().chain(&sendable.bookmarks);
            all.any(|mark| mark.guid == *guid)
        };
        Ok(ours.iter().rev().find(|one| theirs(&one.guid)).map(|one| one.mark()))
    }
}

/// Takes a stream that the sender has begun into a dataset; what came, and bytes of the stream.
///
/// # Errors
/// When it does not come, or the file system does not take it.
pub async fn take(
    remote: &Remote,
    snapshots: &dyn Snapshots,
    into: &DatasetName,
    started: &StreamStarted,
    progress: &watch::Sender<Progress>,
) -> Result<(Snapshot, Progress), ReceiveError> {
    let mut stream = snapshots.receive(into).await?;
    match remote.pull(started, &mut stream, progress).await {
        Ok(done) => Ok((snapshots.finish(stream).await?, done)),
        // The file system takes no more, and says why at its end.
        Err(FetchError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            snapshots.finish(stream).await?;
            Err(FetchError::Write(error).into())
        }
        Err(error) => {
            stream.abort().await;
            Err(error.into())
        }
    }
}

/// The rest of a transfer that broke off, if the sender still has what it was of.
fn rest(sendable: &Sendable, unfinished: Unfinished) -> Option<Part> {
    let receivable = Receivable { snapshots: Vec::new(), unfinished: Some(unfinished) };
    // A sender that has nothing to send now may make a new snapshot.
    let Ok(SendPlan::Resume { token, to }) = plan_send(sendable, &receivable, None) else {
        return None;
    };
    tracing::info!(snapshot = %to.name, "going on where the last transfer broke off");
    Some(Part::Rest { token: token.as_str().to_owned(), to: to.guid.to_string() })
}

/// Whether the sender will not give the rest of a transfer later, either: its file system may not be
/// able to, or not know any more what the token is of. One that sends as much as it may will.
fn is_in_vain(error: &FetchError) -> bool {
    matches!(error, FetchError::Refused { .. }) && !is_busy(error)
}

/// Whether the sender sends as much as it may.
fn is_busy(error: &FetchError) -> bool {
    let busy = StatusCode::SERVICE_UNAVAILABLE.as_u16();
    matches!(error, FetchError::Refused { status, .. } if *status == busy)
}

/// Where what came in is looked at.
fn beside(mountpoint: &std::path::Path) -> PathBuf {
    let name = mountpoint.file_name().unwrap_or_default().to_string_lossy();
    mountpoint.with_file_name(format!(".{name}.incoming"))
}

fn mark(info: &SnapshotInfo) -> Result<Mark, BadName> {
    Ok(Mark { name: SnapshotName::new(&info.name)?, guid: Guid::new(&info.guid) })
}

fn marks(infos: &[SnapshotInfo]) -> Result<Vec<Mark>, BadName> {
    infos.iter().map(mark).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use adapters::storage::ResumeToken;

    fn snapshots(guids: &[&str]) -> Sendable {
        let mark = |guid: &&str| Mark {
            name: SnapshotName::new(&format!("snapshot-{guid}")).expect("a name"),
            guid: Guid::new(*guid),
        };
        Sendable { snapshots: guids.iter().map(mark).collect(), bookmarks: Vec::new() }
    }

    #[test]
    fn what_broke_off_is_gone_on_with_only_where_the_sender_has_it() {
        let rest = |guids: &[&str]| {
            let unfinished = Unfinished { token: ResumeToken::new("1-x"), to: Guid::new("7") };
            rest(&snapshots(guids), unfinished)
        };
        let (token, to) = ("1-x".to_owned(), "7".to_owned());
        assert_eq!(rest(&["6", "7", "8"]), Some(Part::Rest { token, to }));
        assert_eq!(rest(&["8"]), None, "it is gone there");
        assert_eq!(rest(&[]), None, "nothing is left there");
    }

    #[test]
    fn a_sender_that_is_busy_is_asked_again() {
        let refused = |status| FetchError::Refused {
            url: String::new(),
            status,
            problem: "zfs cannot resume a stream here".to_owned(),
        };
        assert!(is_in_vain(&refused(500)) && is_in_vain(&refused(404)));
        assert!(!is_in_vain(&refused(503)));
        let unreachable = FetchError::Unreachable { url: String::new(), cause: String::new() };
        assert!(!is_in_vain(&unreachable));
    }
}
