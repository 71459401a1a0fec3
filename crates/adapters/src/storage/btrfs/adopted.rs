//! A subvolume that somebody else made and uses, as a dataset: its snapshots are ours, beside it, and it
//! stays where it is.
//!
//! ```text
//! DIRECTORY/NAME                         the subvolume
//! DIRECTORY/.NAME.manatee/adopted/       a dataset, whose `current` is a link to it
//! ```

use super::{
    super::{DatasetName, StorageCause, error::at, mounts::mounts},
    Btrfs,
};
use std::{
    fs, io,
    os::unix::fs::{MetadataExt, symlink},
    path::{Path, PathBuf},
};

/// What every subvolume's own directory is numbered.
const ROOT: u64 = 256;
/// The dataset.
const NAME: &str = "adopted";

/// A subvolume of somebody else.
#[derive(Debug, Clone)]
pub struct Adopted {
    subvolume: PathBuf,
    beside: PathBuf,
}

impl Adopted {
    /// The one at this path. Changes nothing.
    ///
    /// # Errors
    /// When it is no subvolume, or snapshots of it cannot be beside it.
    pub fn find(subvolume: &Path) -> Result<Adopted, StorageCause> {
        let wrong = |what: &str| {
            let what = format!("make snapshots of {}: {what}", subvolume.display());
            StorageCause::Unsupported { backend: "btrfs", what }
        };
        let subvolume = fs::canonicalize(subvolume).map_err(at(subvolume))?;
        let (Some(directory), Some(name)) = (subvolume.parent(), subvolume.file_name()) else {
            return Err(wrong("it has no directory around it"));
        };
        Btrfs::open(&subvolume)?;
        if fs::metadata(&subvolume).map_err(at(&subvolume))?.ino() != ROOT {
            return Err(wrong("it is no subvolume"));
        }
        if source(&subvolume)? != source(directory)? {
            return Err(wrong(
                "it is mounted by itself; name it where the file system that it is in is mounted",
            ));
        }
        let beside = directory.join(format!(".{}.manatee", name.to_string_lossy()));
        Ok(Adopted { subvolume: subvolume.clone(), beside })
    }

    /// It as a dataset, which is made for that; it itself is not changed.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn open(&self) -> Result<(Btrfs, DatasetName), StorageCause> {
        let dataset = self.beside.join(NAME);
        let (current, snapshots) = (dataset.join("current"), dataset.join("snapshots"));
        fs::create_dir_all(&snapshots).map_err(at(&snapshots))?;
        match symlink(&self.subvolume, &current) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(at(&current)(error));
            }
            _ => {}
        }
        Ok((Btrfs::open(&self.beside)?, DatasetName::new(NAME)?))
    }

    /// Whether it was opened and not let go of.
    pub fn is_open(&self) -> bool {
        self.beside.exists()
    }

    /// Removes what was made beside it; its snapshots must be gone.
    ///
    /// # Errors
    /// When something is left there.
    pub fn let_go(&self) -> Result<(), StorageCause> {
        let dataset = self.beside.join(NAME);
        let current = dataset.join("current");
        let gone = |removed: io::Result<()>, path: &Path| match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path)(error)),
            _ => Ok(()),
        };
        let snapshots = dataset.join("snapshots");
        gone(fs::remove_dir(&snapshots), &snapshots)?;
        gone(fs::remove_file(&current), &current)?;
        gone(fs::remove_dir(&dataset), &dataset)?;
        gone(fs::remove_dir(&self.beside), &self.beside)
    }
}

/// What file system a path is on: the source of the mount that it is seen through.
fn source(path: &Path) -> Result<Option<String>, StorageCause> {
    let mounts = mounts()?.into_iter().rev();
    let around = mounts.filter(|(on, _, _)| path.starts_with(on));
    Ok(around.max_by_key(|(on, _, _)| on.components().count()).map(|(_, _, source)| source))
}
