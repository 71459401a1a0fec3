//! What was kept of a volume, and how the oldest of it goes.
//!
//! What is held, or what somebody else's dataset was cloned from, stays, and keeps nothing else from going.

use super::{DatasetName, KEPT, Pruned, Purpose, StorageCause, StorageError, Volume, aside};
use std::path::PathBuf;

impl Volume {
    /// All datasets that are this volume's: its own, what comes in, and what was set aside.
    ///
    /// # Errors
    /// When the file system cannot be asked.
    pub async fn datasets(&self) -> Result<Vec<DatasetName>, StorageError> {
        let incoming = self.incoming()?;
        let ours = |name: &DatasetName| {
            name == self.name() || *name == incoming || aside::of(self.name(), name).is_some()
        };
        let found = async {
            let known = self.open().await?.datasets().await?.into_iter().map(|one| one.name);
            Ok(known.filter(ours).collect())
        };
        found.await.map_err(self.error("look for what was set aside"))
    }

    pub(super) async fn prune(&self, keep: usize) -> Result<Pruned, StorageCause> {
        let snapshots = self.open().await?;
        let known = |name: DatasetName| Some((aside::of(self.name(), &name)?.to_owned(), name));
        let datasets = snapshots.datasets().await?.into_iter();
        let found = datasets.filter_map(|dataset| known(dataset.name)).collect();
        let mut pruned = Pruned::default();
        for name in aside::beyond(found, keep) {
            let path = PathBuf::from(snapshots.full_name(&name));
            pruned.note(path, self.destroy_kept(&name).await);
        }
        let kept = snapshots.list(self.name()).await?.into_iter().filter_map(|snapshot| {
            let kept = snapshot.name.purpose() == Purpose::For(KEPT);
            let free = snapshot.holds == 0 && snapshot.clones.is_empty();
            (kept && free).then(|| (snapshot.name.to_string(), snapshot.name))
        });
        let full_name = snapshots.full_name(self.name());
        for name in aside::beyond(kept.collect(), keep) {
            let path = PathBuf::from(format!("{full_name}@{name}"));
            pruned.note(path, snapshots.destroy_snapshot(self.name(), &name).await);
        }
        Ok(pruned)
    }

    /// Destroys what was set aside. What else is ours and was cloned from a snapshot of it gets that.
    async fn destroy_kept(&self, name: &DatasetName) -> Result<(), StorageCause> {
        let snapshots = self.open().await?;
        let ours = |clone: &DatasetName| {
            clone == self.name() || (clone != name && aside::of(self.name(), clone).is_some())
        };
        self.give_back(&**snapshots, name, ours).await?;
        snapshots.destroy(name).await
    }
}
