//! What comes in for a volume, until it is in its place: the dataset `NAME.incoming`.
//!
//! What is left of a transfer brings the database of the moment at which that was begun. It may be gone
//! on with only as long as there has been no database here since, which could have acknowledged what came
//! later. So the snapshot that is to come is noted in the volume's own dataset: that has no database
//! then, it is another one when what came is in place, and the note goes before any other database comes.

use super::{
    DatasetName, Guid, Snapshot, Snapshots, StorageCause, StorageError, Unfinished, Volume, aside,
    basebackup, error::at,
};
use crate::postgres::files;
use std::path::PathBuf;

/// What is called so beside the dataset.
const INCOMING: &str = "incoming";
/// The file that names the snapshot which is to come.
pub(super) const NOTE: &str = "manatee.incoming";

impl Volume {
    /// The name of what comes in.
    ///
    /// # Errors
    /// When its own name is too long for that.
    pub fn incoming(&self) -> Result<DatasetName, StorageError> {
        let name = DatasetName::new(&format!("{}.{INCOMING}", self.name()));
        name.map_err(|error| self.error("name what comes in")(error.into()))
    }

    /// Notes that this snapshot is to come, into a dataset that has no database: what comes of it may be
    /// gone on with.
    ///
    /// # Errors
    /// When the dataset cannot be mounted or written to.
    pub async fn expect(&self, snapshot: &Guid) -> Result<(), StorageError> {
        let noted = async {
            self.make_ready().await?;
            Ok(files::write(&self.note(), snapshot.as_str(), None)?)
        };
        noted.await.map_err(self.error("note what comes in"))
    }

    /// Takes the note back: what has come is not gone on with.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn expect_nothing(&self) -> Result<(), StorageError> {
        let removed = files::remove(&self.note()).map(drop);
        removed.map_err(|error| self.error("forget what was to come in")(error.into()))
    }

    /// What is left of a transfer that may be gone on with: one that was noted, and no database came since.
    ///
    /// # Errors
    /// When the file system cannot be asked.
    pub async fn unfinished(&self) -> Result<Option<Unfinished>, StorageError> {
        let into = self.incoming()?;
        let found = async {
            let unfinished = self.open().await?.unfinished(&into).await?;
            let noted = files::read(&self.note())?;
            Ok(unfinished.filter(|left| goes_on(left, noted.as_deref(), self.data().exists())))
        };
        found.await.map_err(self.error("look at what comes in"))
    }

    /// Removes what transfers left: half of a snapshot, one that came in completely and was never put in
    /// place, or the branch that a difference was to come into. That has snapshots of what it was split off
    /// from, which gets them back.
    ///
    /// # Errors
    /// When the file system refuses.
    pub async fn discard_incoming(&self) -> Result<(), StorageError> {
        let into = self.incoming()?;
        self.discard(&into).await.map_err(self.error("remove what came in"))
    }

    async fn discard(&self, into: &DatasetName) -> Result<(), StorageCause> {
        files::remove(&self.note())?;
        let snapshots = self.open().await?;
        snapshots.abandon(into).await?;
        let known = snapshots.datasets().await?;
        let Some(found) = known.into_iter().find(|dataset| dataset.name == *into) else {
            return Ok(());
        };
        snapshots.unmount(into).await?;
        if found.origin.is_some() {
            // The split was cut off: done to its end, it can be undone as a whole.
            snapshots.promote(into).await?;
        }
        self.give_back(&**snapshots, into, |_| true).await?;
        snapshots.destroy(into).await
    }

    /// Gives the snapshots of a dataset to what was cloned from them, as far as that may have them.
    pub(super) async fn give_back(
        &self,
        snapshots: &dyn Snapshots,
        of: &DatasetName,
        may: impl Fn(&DatasetName) -> bool,
    ) -> Result<(), StorageCause> {
        // Each time it has fewer of them.
        while let Some(heir) = heir(&snapshots.list(of).await?, self.name(), &may) {
            snapshots.promote(&heir).await?;
        }
        Ok(())
    }

    /// Refuses a transfer of about so many bytes, for which there is no room.
    ///
    /// # Errors
    /// [`StorageCause::NoSpace`].
    pub fn refuse_shortage(&self, needed: u64) -> Result<(), StorageError> {
        let short = basebackup::shortage(&self.mountpoint, needed);
        short.map_or(Ok(()), |cause| Err(self.error("take a snapshot in")(cause)))
    }

    /// Whether the dataset, which is mounted, holds nothing but what transfers into it left.
    pub(super) fn is_empty(&self) -> Result<bool, StorageCause> {
        let mut entries = std::fs::read_dir(&self.mountpoint).map_err(at(&self.mountpoint))?;
        let left = |name: &str| {
            [NOTE, files::MARKER].contains(&name) || name.starts_with(basebackup::INCOMING)
        };
        Ok(entries
            .all(|entry| entry.is_ok_and(|entry| entry.file_name().to_str().is_some_and(left))))
    }

    fn note(&self) -> PathBuf {
        self.mountpoint.join(NOTE)
    }
}

/// Whether what is left of a transfer may be gone on with, by what is noted, and whether there is a
/// database.
fn goes_on(left: &Unfinished, noted: Option<&str>, database: bool) -> bool {
    !database && noted == Some(left.to.as_str())
}

/// Who gets the snapshots of a dataset first, of those that were cloned from them: the database that is in
/// use, or else the one that was kept last. It has all that the others were cloned from then, and outlives
/// them.
fn heir(
    list: &[Snapshot],
    own: &DatasetName,
    may: impl Fn(&DatasetName) -> bool,
) -> Option<DatasetName> {
    let kept = |name: &DatasetName| Some(aside::of(own, name)?.to_owned());
    let clones = list.iter().enumerate().flat_map(|(at, one)| {
        one.clones.iter().map(move |clone| ((clone == own, kept(clone), at), clone))
    });
    let found = clones.filter(|(_, clone)| may(clone)).max_by(|(a, _), (b, _)| a.cmp(b));
    found.map(|(_, clone)| clone.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{ResumeToken, SnapshotName};

    #[test]
    fn only_what_was_begun_since_there_was_a_database_goes_on() {
        let left = Unfinished { token: ResumeToken::new("1-x"), to: Guid::new("7") };
        for (noted, database, expected) in [
            (Some("7"), false, true),
            (Some("7"), true, false),
            (Some("8"), false, false),
            (None, false, false),
            (None, true, false),
        ] {
            assert_eq!(goes_on(&left, noted, database), expected, "{noted:?} {database}");
        }
    }

    #[test]
    fn snapshots_go_to_what_outlives_the_others() {
        let name = |text: &str| DatasetName::new(text).expect(text);
        let kept = |second: u8| format!("a.replaced-20260102T0304{second:02}.000000Z");
        let check = |clones: &[&[&str]], expected: Option<&str>| {
            let snapshot = |(at, clones): (usize, &&[&str])| Snapshot {
                name: SnapshotName::periodic(at as u64),
                guid: Guid::new(at.to_string()),
                created: jiff::Timestamp::UNIX_EPOCH,
                size: None,
                holds: 0,
                clones: clones.iter().map(|clone| name(clone)).collect(),
            };
            let list: Vec<_> = clones.iter().enumerate().map(snapshot).collect();
            assert_eq!(heir(&list, &name("a"), |one| one.as_str() != "no"), expected.map(name));
        };
        let (old, new) = (kept(1), kept(2));
        let deposed = "a.deposed-20260102T030403.000000Z";
        check(&[&[], &[]], None);
        check(&[&["no"]], None);
        check(&[&[&old], &["a"], &[&new]], Some("a"));
        check(&[&[&old], &[&new]], Some(&new));
        check(&[&[&new], &[&old]], Some(&new));
        check(&[&[deposed, &new], &["mine"]], Some(deposed));
        check(&[&["mine"], &["yours"]], Some("yours"));
    }
}
