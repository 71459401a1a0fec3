//! What a donor and the peers that it is moved to lie on.

use super::filesystems::{BtrfsFile, ZfsFile};
use adapters::exec::Exec;
use anyhow::Result;
use manatee::shard::{ShardOptions, Volumes};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A ground; it is taken away when this is dropped.
pub struct Ground {
    /// Where everything goes.
    pub directory: PathBuf,
    /// What the peers have.
    pub volumes: Volumes,
    kind: Kind,
}

enum Kind {
    Directory,
    Btrfs {
        root: PathBuf,
        /// The data directory is a subvolume itself, and not in one.
        flat: bool,
    },
    Zfs(ZfsFile),
}

impl Ground {
    /// A directory.
    pub fn directory(place: &Path) -> Result<Ground> {
        let directory = place.join("ground");
        fs::create_dir(&directory)?;
        Ok(Ground { directory, volumes: Volumes::None, kind: Kind::Directory })
    }

    /// A btrfs of that many MiB.
    pub fn btrfs(place: &Path, mebibytes: u64) -> Result<Ground> {
        let ground = place.join("ground");
        fs::create_dir(&ground)?;
        let file = BtrfsFile::new(&ground, mebibytes);
        let volumes = Volumes::Btrfs(file.parent("manatee"));
        let kind = Kind::Btrfs { root: file.root.clone(), flat: false };
        Ok(Ground { directory: file.root, volumes, kind })
    }

    /// Another btrfs: the donor's data directory is the dataset itself.
    pub fn flat_btrfs(place: &Path, mebibytes: u64) -> Result<Ground> {
        let mut ground = Ground::btrfs(place, mebibytes)?;
        if let Kind::Btrfs { flat, .. } = &mut ground.kind {
            *flat = true;
        }
        Ok(ground)
    }

    /// Puts the peers on it.
    pub fn place(&self, options: &mut ShardOptions) {
        options.directory = self.directory.join("move");
        options.volumes = self.volumes.clone();
    }

    /// Where the donor's subvolume is, below its home.
    fn subvolume(&self, home: &Path) -> PathBuf {
        match self.kind {
            Kind::Btrfs { flat: true, .. } => home.join("data"),
            _ => home.to_owned(),
        }
    }

    /// Where what is made beside it is.
    pub fn beside(&self, home: &Path) -> PathBuf {
        self.subvolume(home).parent().unwrap_or(home).to_owned()
    }

    /// A ZFS pool of that many MiB.
    pub fn zfs(place: &Path, mebibytes: u64) -> Result<Ground> {
        let directory = place.join("ground");
        fs::create_dir(&directory)?;
        let pool = ZfsFile::new(place, mebibytes);
        let volumes = Volumes::Zfs(pool.parent("manatee"));
        Ok(Ground { directory, volumes, kind: Kind::Zfs(pool) })
    }

    /// More of what the peers have, apart from it.
    pub fn more(&self, name: &str) -> Result<Volumes> {
        Ok(match &self.kind {
            Kind::Directory => Volumes::None,
            Kind::Btrfs { root, .. } => {
                let parent = root.join(name);
                fs::create_dir(&parent)?;
                Volumes::Btrfs(parent)
            }
            Kind::Zfs(pool) => Volumes::Zfs(pool.parent(name)),
        })
    }

    /// Makes a dataset where the donor is to be; none where there are none.
    pub fn make_home(&self, home: &Path) -> Result<()> {
        match &self.kind {
            Kind::Directory => {}
            Kind::Btrfs { .. } => {
                let subvolume = self.subvolume(home);
                fs::create_dir_all(self.beside(home))?;
                Exec::new("btrfs").args(["subvolume", "create"]).arg(&subvolume).run_briefly()?;
                Exec::new("chown").arg("postgres:").arg(&subvolume).run_briefly()?;
            }
            Kind::Zfs(pool) => {
                let mountpoint = format!("mountpoint={}", home.display());
                let dataset = format!("{}/donor", pool.pool);
                Exec::new("zfs").args(["create", "-o", &mountpoint, &dataset]).run_briefly()?;
            }
        }
        Ok(())
    }

    /// The ZFS pool, where it is one.
    pub fn pool(&self) -> Option<&str> {
        match &self.kind {
            Kind::Zfs(pool) => Some(&pool.pool),
            _ => None,
        }
    }

    /// What the inventory says of the donor's dataset, which is a peer's in these volumes.
    pub fn dataset_of(volumes: &Volumes, peer: &str) -> Option<toml::Table> {
        let (kind, name) = match volumes {
            Volumes::None => return None,
            Volumes::Btrfs(parent) => {
                ("btrfs", parent.join(peer).join("current").display().to_string())
            }
            Volumes::Zfs(parent) => ("zfs", format!("{parent}/{peer}")),
        };
        Some(toml::toml! { kind = kind name = name })
    }

    /// What the inventory says of the donor's dataset, whose home this is.
    pub fn dataset(&self, home: &Path) -> Option<toml::Table> {
        let (kind, name) = match &self.kind {
            Kind::Directory => return None,
            Kind::Btrfs { .. } => ("btrfs", self.subvolume(home).display().to_string()),
            Kind::Zfs(pool) => ("zfs", format!("{}/donor", pool.pool)),
        };
        Some(toml::toml! { kind = kind name = name })
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let ground = match &self.kind {
            Kind::Btrfs { root, .. } => {
                let umount = Exec::new("umount").args(["--recursive", "--lazy"]).arg(root);
                if let Err(error) = umount.run_briefly() {
                    eprintln!("{}: {error}", root.display());
                }
                root.parent()
            }
            Kind::Directory => Some(self.directory.as_path()),
            Kind::Zfs(_) => None,
        };
        // The rest goes with the place of the test.
        ground.and_then(|ground| fs::remove_dir_all(ground).err()).inspect(|error| {
            eprintln!("the ground is not removed: {error}");
        });
    }
}
