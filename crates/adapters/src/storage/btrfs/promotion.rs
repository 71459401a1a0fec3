//! The promotion of a clone: it gets the snapshot that it was cloned from, and the earlier ones.
//!
//! They are moved one by one, so that it can be cut off between two of them; doing it again does the
//! rest. For that, what they are taken from is noted as the clone that it will be before the first of
//! them goes, and what the clone's own origin will be as well.

use super::{Btrfs, rename};
use crate::storage::{DatasetName, StorageCause};

impl Btrfs {
    pub(super) async fn hand_over_to(&self, dataset: &DatasetName) -> Result<(), StorageCause> {
        let _changing = self.changing.lock().await;
        let place = self.existing(dataset)?;
        let Some((origin, _)) = place.cloned_from()? else {
            return Ok(());
        };
        for (name, source) in self.find_datasets()? {
            if name == *dataset {
                continue;
            }
            let known = self.known(&source).await?;
            let Some(found) = known.iter().position(|(_, subvolume)| subvolume.uuid == origin)
            else {
                continue;
            };
            let before = source.cloned_from()?;
            place.begin_promotion(before.as_ref().map(|(uuid, name)| (&**uuid, &**name)))?;
            let new = self.of(dataset, &known[found].0.name);
            source.set_origin(Some((&origin, &new)))?;
            // The origin goes last: as long as it is there, it is known where the rest is.
            for (snapshot, _) in &known[..=found] {
                rename(&source.wrapper(&snapshot.name), &place.wrapper(&snapshot.name))?;
            }
            break;
        }
        // Where nobody else has what it was cloned from, it has that itself, or it is gone.
        place.end_promotion()
    }
}
