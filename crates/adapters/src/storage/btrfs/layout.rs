//! Where what lies, and what the file system says of a subvolume.
//!
//! ```text
//! PARENT/DATASET/current             the dataset: a subvolume; bound to where it is mounted
//!                origin              the snapshot that it was cloned from: its UUID, its name
//!                origin.next         while it is promoted: what `origin` will be then; empty for none
//!                snapshots/NAME/NAME          a read-only subvolume, called so in streams
//!                               hold-TAG      an empty file: TAG holds it
//! PARENT/.new-DATASET, .old-DATASET           one that is being made or destroyed
//! snapshots/.taking-NAME, .going-NAME, .arriving    likewise
//! ```
//!
//! Each snapshot has a directory of its own, because a read-only subvolume cannot be moved into
//! another directory, and a directory around it can, with the holds. What has its final name is
//! complete: it got that by one rename.

use crate::{
    exec::Exec,
    postgres::files,
    storage::{DatasetName, Guid, SnapshotName, StorageCause, error::at, mounts},
};
use cluster::Millis;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// How long a command that sends no data may take. Measuring a large snapshot reads all that
/// describes it.
const LIMIT: Millis = Millis(600_000);
/// The start of the name of a file that says that a snapshot is held.
pub(super) const HOLD: &str = "hold-";

/// The places of one dataset.
#[derive(Debug, Clone)]
pub(super) struct Place(pub PathBuf);

impl Place {
    pub fn of(parent: &Path, dataset: &DatasetName) -> Place {
        Place(parent.join(dataset.as_str()))
    }

    /// Where a dataset is made that is to have this name.
    pub fn new(parent: &Path, dataset: &DatasetName) -> Place {
        Place(parent.join(format!(".new-{dataset}")))
    }

    /// Where what is left of a dataset of this name waits to be destroyed.
    pub fn old(parent: &Path, dataset: &DatasetName) -> Place {
        Place(parent.join(format!(".old-{dataset}")))
    }

    pub fn current(&self) -> PathBuf {
        self.0.join("current")
    }

    pub fn next(&self) -> PathBuf {
        self.0.join("current.new")
    }

    pub fn origin(&self) -> PathBuf {
        self.0.join("origin")
    }

    fn next_origin(&self) -> PathBuf {
        self.0.join("origin.next")
    }

    pub fn snapshots(&self) -> PathBuf {
        self.0.join("snapshots")
    }

    pub fn arriving(&self) -> PathBuf {
        self.snapshots().join(".arriving")
    }

    pub fn wrapper(&self, snapshot: &SnapshotName) -> PathBuf {
        self.snapshots().join(snapshot.as_str())
    }

    pub fn snapshot(&self, snapshot: &SnapshotName) -> PathBuf {
        self.wrapper(snapshot).join(snapshot.as_str())
    }

    /// Where it is mounted: `current` and what is mounted there are the same.
    pub fn mounted(&self) -> Result<Option<PathBuf>, StorageCause> {
        let current = self.current();
        let identity =
            |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
        let Some(wanted) = identity(&current) else {
            return Ok(None);
        };
        let mounts = mounts::mounts()?.into_iter().rev();
        let same = mounts.filter(|(on, kind, _)| kind == "btrfs" && identity(on) == Some(wanted));
        Ok(same.map(|(on, _, _)| on).next())
    }

    /// The snapshot that it was cloned from: its UUID, its name.
    pub fn cloned_from(&self) -> Result<Option<(String, String)>, StorageCause> {
        let text = files::read(&self.origin())?;
        Ok(text.map(|text| {
            let (uuid, name) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
            (uuid.to_owned(), name.to_owned())
        }))
    }

    /// Notes the snapshot that it was cloned from.
    pub fn set_origin(&self, origin: Option<(&str, &str)>) -> Result<(), StorageCause> {
        match origin {
            Some(origin) => note(&self.origin(), Some(origin)),
            None => Ok(files::remove(&self.origin()).map(drop)?),
        }
    }

    /// Notes what its origin will be when its promotion is over, unless one that was cut off has.
    pub fn begin_promotion(&self, next: Option<(&str, &str)>) -> Result<(), StorageCause> {
        if self.next_origin().exists() {
            return Ok(());
        }
        note(&self.next_origin(), next)
    }

    /// Gives it the origin that was noted. Nothing of that is left which a later promotion would take for
    /// its own, wherever this is cut off.
    pub fn end_promotion(&self) -> Result<(), StorageCause> {
        let next = self.next_origin();
        match files::read(&next)? {
            Some(text) if !text.trim().is_empty() => {
                fs::rename(&next, self.origin()).map_err(at(&next))?;
                files::sync_parent(&next).map_err(at(&next))
            }
            _ => {
                files::remove(&next)?;
                self.set_origin(None)
            }
        }
    }

    /// Destroys all of it, whatever of it is there.
    pub async fn remove(&self) -> Result<(), StorageCause> {
        for subvolume in [self.current(), self.next()] {
            delete(&subvolume).await?;
        }
        for wrapper in entries(&self.snapshots())? {
            remove_wrapper(&wrapper).await?;
        }
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(&self.0)(error)),
            _ => Ok(()),
        }
    }

    /// Removes what interrupted operations on snapshots left, as much of it as can be; what was wrong with
    /// the last of the rest.
    pub async fn sweep(&self) -> Result<(), StorageCause> {
        let mut swept = Ok(());
        for path in entries(&self.snapshots())? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(".taking-") || name.starts_with(".going-") {
                swept = remove_wrapper(&path).await.and(swept);
            }
        }
        swept
    }

    /// Puts a writable copy of a subvolume in place of `current`.
    pub async fn replace_current(&self, with: &Path) -> Result<(), StorageCause> {
        let (current, next) = (self.current(), self.next());
        delete(&next).await?;
        btrfs(["subvolume", "snapshot"], &[with, &next]).await?;
        if current.exists() {
            exchange(&next, &current)?;
            delete(&next).await
        } else {
            rename(&next, &current)
        }
    }
}

/// Writes down a snapshot: its UUID, its name.
fn note(path: &Path, snapshot: Option<(&str, &str)>) -> Result<(), StorageCause> {
    let text = snapshot.map(|(uuid, name)| format!("{uuid} {name}\n"));
    Ok(files::write(path, &text.unwrap_or_default(), None)?)
}

/// What the file system says of a subvolume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Subvolume {
    pub uuid: String,
    /// What it was made of, here.
    pub parent: Option<String>,
    /// What it was where it was sent from.
    pub received: Option<String>,
    pub created: jiff::Timestamp,
    /// When it was last changed, and when it was made, in transactions.
    pub generation: u64,
    pub made_at: u64,
    pub read_only: bool,
}

impl Subvolume {
    /// Looks at the one at this path.
    pub async fn at(path: &Path) -> Result<Subvolume, StorageCause> {
        let text = btrfs(["subvolume", "show"], &[path]).await?;
        Subvolume::parse(&text).ok_or_else(|| StorageCause::Answer {
            command: format!("btrfs subvolume show {}", path.display()),
            answer: text,
        })
    }

    fn parse(text: &str) -> Option<Subvolume> {
        let field = |name: &str| {
            let mut lines = text.lines().filter_map(|line| line.trim().split_once(':'));
            lines.find(|(found, _)| *found == name).map(|(_, value)| value.trim())
        };
        let uuid = |name: &str| field(name).filter(|uuid| *uuid != "-").map(str::to_owned);
        let created = jiff::fmt::strtime::parse("%Y-%m-%d %H:%M:%S %z", field("Creation time")?);
        Some(Subvolume {
            uuid: uuid("UUID")?,
            parent: uuid("Parent UUID"),
            received: uuid("Received UUID"),
            created: created.ok()?.to_timestamp().ok()?,
            generation: field("Generation")?.parse().ok()?,
            made_at: field("Gen at creation")?.parse().ok()?,
            read_only: field("Flags")?.contains("readonly"),
        })
    }

    /// Which it is, everywhere: what it was where it was first sent from.
    pub fn guid(&self) -> Guid {
        Guid::new(self.received.as_ref().unwrap_or(&self.uuid))
    }
}

/// Runs a command that sends no data.
pub(super) async fn btrfs<const N: usize>(
    command: [&str; N],
    paths: &[&Path],
) -> Result<String, StorageCause> {
    let output = Exec::new("btrfs").args(command).args(paths).limit(LIMIT).run().await?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Deletes a subvolume that may not be there.
pub(super) async fn delete(path: &Path) -> Result<(), StorageCause> {
    if path.exists() {
        btrfs(["subvolume", "delete"], &[path]).await?;
    }
    Ok(())
}

/// Removes a snapshot with the directory that it is in, complete or not.
pub(super) async fn remove_wrapper(wrapper: &Path) -> Result<(), StorageCause> {
    for path in entries(wrapper)? {
        if path.is_dir() {
            delete(&path).await?;
        } else {
            fs::remove_file(&path).map_err(at(&path))?;
        }
    }
    match fs::remove_dir(wrapper) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(wrapper)(error)),
        _ => Ok(()),
    }
}

/// What lies in a directory; nothing when there is none.
pub(super) fn entries(directory: &Path) -> Result<Vec<PathBuf>, StorageCause> {
    let found = match fs::read_dir(directory) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(at(directory)(error)),
    };
    let mut paths = found
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<Vec<_>>>()
        .map_err(at(directory))?;
    paths.sort();
    Ok(paths)
}

pub(super) fn make_directory(path: &Path) -> Result<(), StorageCause> {
    fs::create_dir_all(path).map_err(at(path))
}

/// Renames, durably, and never over anything.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), StorageCause> {
    move_with(from, to, RenameFlags::NOREPLACE).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => StorageCause::Exists(to.display().to_string()),
        _ => at(from)(error),
    })
}

/// Swaps two, at once.
fn exchange(one: &Path, other: &Path) -> Result<(), StorageCause> {
    move_with(one, other, RenameFlags::EXCHANGE).map_err(at(one))
}

fn move_with(from: &Path, to: &Path, flags: RenameFlags) -> io::Result<()> {
    renameat_with(CWD, from, CWD, to, flags)?;
    for path in [from, to] {
        let parent = path.parent().unwrap_or(path);
        // The directory that it came from may have been a part of what was moved.
        if parent.exists() {
            File::open(parent)?.sync_all()?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: &str = "e/snapshots/s1/s1\n\tName: \t\t\ts1\n\
        \tUUID: \t\t\t383f9e28-c774-b841-81c8-b80f2427ae5f\n\tParent UUID: \t\t-\n\
        \tReceived UUID: \t\t8eeda71c-0201-b642-9326-6ef87f2a4719\n\
        \tCreation time: \t\t2026-11-22 11:13:06 +0000\n\tSubvolume ID: \t\t259\n\
        \tGeneration: \t\t12\n\tGen at creation: \t10\n\tFlags: \t\t\treadonly\n";

    #[test]
    fn what_is_said_of_a_subvolume_is_read() {
        let found = Subvolume::parse(SHOWN).expect("understood");
        assert_eq!(found.uuid, "383f9e28-c774-b841-81c8-b80f2427ae5f");
        assert_eq!(found.parent, None);
        assert_eq!(found.guid().as_str(), "8eeda71c-0201-b642-9326-6ef87f2a4719");
        assert_eq!(found.created.to_string(), "2026-11-22T11:13:06Z");
        assert_eq!((found.generation, found.made_at, found.read_only), (12, 10, true));
        let own = Subvolume::parse(&SHOWN.replace("8eeda71c-0201-b642-9326-6ef87f2a4719", "-"));
        assert_eq!(own.expect("understood").guid().as_str(), found.uuid);
        assert_eq!(Subvolume::parse("ERROR: Not a Btrfs subvolume"), None);
    }
}
