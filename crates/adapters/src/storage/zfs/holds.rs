//! Who holds a snapshot.

use super::{Zfs, run, zfs};
use crate::storage::{DatasetName, HoldTag, SnapshotName, StorageCause};

/// Where the old dialect, which does not list holds, notes who holds a snapshot.
const HOLD: &str = "manatee:hold:";

impl Zfs {
    pub(super) async fn holders(
        &self,
        dataset: &DatasetName,
        name: &SnapshotName,
    ) -> Result<Vec<HoldTag>, StorageCause> {
        let of = self.of(dataset, name);
        let tags: Vec<String> = if self.dialect.holds {
            let output = run(zfs().args(["holds", "-H"]).arg(&of)).await?;
            output.lines().filter_map(|line| Some(line.split('\t').nth(1)?.to_owned())).collect()
        } else {
            let lines = self.get(&of, "all", &["-s", "local"]).await?;
            let tags = lines.iter().filter_map(|[_, name, _]| name.strip_prefix(HOLD));
            tags.map(str::to_owned).collect()
        };
        // Others' may be called as ours cannot be; they still count.
        Ok(tags.iter().filter_map(|tag| HoldTag::new(tag).ok()).collect())
    }

    pub(super) async fn hold_by(
        &self,
        dataset: &DatasetName,
        name: &SnapshotName,
        tag: &HoldTag,
    ) -> Result<(), StorageCause> {
        self.one(dataset, name).await?;
        if self.holders(dataset, name).await?.contains(tag) {
            return Ok(());
        }
        let of = self.of(dataset, name);
        match run(zfs().arg("hold").arg(tag.as_str()).arg(&of)).await {
            // Held by one who died before it was noted.
            Err(StorageCause::Command(error)) if error.says("tag already exists") => {}
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        if !self.dialect.holds {
            run(zfs().arg("set").arg(format!("{HOLD}{tag}=1")).arg(&of)).await?;
        }
        Ok(())
    }

    pub(super) async fn release_by(
        &self,
        dataset: &DatasetName,
        name: &SnapshotName,
        tag: &HoldTag,
    ) -> Result<(), StorageCause> {
        self.one(dataset, name).await?;
        let of = self.of(dataset, name);
        match run(zfs().arg("release").arg(tag.as_str()).arg(&of)).await {
            Err(StorageCause::Command(error)) if error.says("no such tag") => {}
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        if !self.dialect.holds {
            run(zfs().arg("inherit").arg(format!("{HOLD}{tag}")).arg(&of)).await?;
        }
        Ok(())
    }
}
