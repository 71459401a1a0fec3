//! `adm snapshot`: what an operator does with the snapshots of this peer's database.
//!
//! Each command is one operation of the file system, so that the sitter need not be asked: it looks at
//! what is there each time that it makes or removes one. Those that it must not remove are held.

use super::backup::BACKUP;
use super::command::Json;
use super::table::{self, Column};
use crate::backup::SEED;
use crate::sitter::config::{Backend, Config};
use adapters::storage::{
    HoldTag, KEPT, Purpose, Size, Snapshot, SnapshotName, Snapshots, Storage, Volume,
};
use anyhow::{Context, Result, bail};
use clap::Subcommand;
use serde_json::{Value, json};
use std::{path::Path, sync::Arc};

/// What snapshots are made for that go by themselves.
const RESERVED: [&str; 3] = [SEED, KEPT, BACKUP];

/// What can be done with them.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Make one now
    Create {
        /// A word that becomes part of its name; what has one of an operator's is never removed by itself
        #[arg(short, long, default_value = "manual")]
        purpose: String,
        /// Also hold it, under this tag
        #[arg(long, value_name = "TAG")]
        hold: Option<String>,
        #[command(flatten)]
        json: Json,
    },
    /// List them, oldest first
    List {
        /// Also measure those whose size is not known at once, which may take long
        #[arg(short, long)]
        measure: bool,
        #[command(flatten)]
        json: Json,
    },
    /// Destroy some; refuses for one that is held or cloned from
    Destroy {
        /// Their names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        #[command(flatten)]
        json: Json,
    },
    /// Hold one, so that nobody destroys it
    Hold {
        /// Its name
        name: String,
        /// Who holds it, or why
        #[arg(short, long, default_value = "operator")]
        tag: String,
        #[command(flatten)]
        json: Json,
    },
    /// Let go of one that is held
    Release {
        /// Its name
        name: String,
        /// The tag that it is held under
        #[arg(short, long, default_value = "operator")]
        tag: String,
        #[command(flatten)]
        json: Json,
    },
}

/// Does it on the dataset of the peer whose sitter has this file; what is to be printed.
///
/// # Errors
/// When the storage has no snapshots, or refuses.
pub async fn run(file: &Path, command: SnapshotCommand) -> Result<String> {
    let config = Config::load(file)?;
    if config.storage.backend == Backend::Dir {
        bail!(
            "the database of this peer lies in a plain directory ({}), which has no snapshots: \
             `[storage]` in {} puts it on btrfs or ZFS; a copy for other hosts is made by pg_basebackup",
            config.dataset.display(),
            file.display()
        );
    }
    let storage = config.open_storage()?;
    let volume = storage.volume().context("this storage has no snapshots")?;
    let one = One { snapshots: volume.snapshots().await?, volume };
    match command {
        SnapshotCommand::Create { purpose, hold, json } => one.create(&purpose, hold, json).await,
        SnapshotCommand::List { measure, json } => one.list(measure, json).await,
        SnapshotCommand::Destroy { names, json } => one.destroy(&names, json).await,
        SnapshotCommand::Hold { name, tag, json } => one.hold(&name, &tag, json).await,
        SnapshotCommand::Release { name, tag, json } => one.release(&name, &tag, json).await,
    }
}

/// The dataset of one peer.
struct One<'a> {
    volume: &'a Volume,
    snapshots: Arc<dyn Snapshots>,
}

/// A snapshot with what is shown of it.
struct Row {
    snapshot: Snapshot,
    tags: Vec<HoldTag>,
}

impl One<'_> {
    async fn create(&self, purpose: &str, hold: Option<String>, json: Json) -> Result<String> {
        let tag = hold.as_deref().map(HoldTag::new).transpose()?;
        if RESERVED.contains(&purpose) {
            bail!(
                "the purpose {purpose:?} is our own, and what has it is removed by itself: give another word"
            );
        }
        let name = SnapshotName::now(purpose)?;
        if !self.volume.dataset().join("data/PG_VERSION").exists() {
            bail!("there is no database in {}: nothing to keep", self.volume.dataset().display());
        }
        let made = self.snapshots.snapshot(self.volume.name(), &name).await;
        let made = made.context("no snapshot was made")?;
        if let Some(tag) = &tag {
            let held = self.snapshots.hold(self.volume.name(), &made.name, tag).await;
            held.with_context(|| format!("snapshot {name} was made, but is not held"))?;
        }
        let tags = tag.into_iter().collect();
        Ok(match json.json {
            true => format!("{}\n", Row { snapshot: made, tags }.json()),
            false => format!("{}\n", made.name),
        })
    }

    async fn list(&self, measure: bool, json: Json) -> Result<String> {
        let mut rows = Vec::new();
        for mut snapshot in self.snapshots.list(self.volume.name()).await? {
            if measure && snapshot.size.is_none() {
                let size = self.snapshots.measure(self.volume.name(), &snapshot.name).await?;
                snapshot.size = Some(size);
            }
            let tags = match snapshot.holds {
                0 => Vec::new(),
                _ => self.snapshots.holds(self.volume.name(), &snapshot.name).await?,
            };
            rows.push(Row { snapshot, tags });
        }
        if json.json {
            let rows: Vec<Value> = rows.iter().map(Row::json).collect();
            return Ok(format!("{}\n", Value::from(rows)));
        }
        Ok(render(&rows))
    }

    /// All names are looked at before the first snapshot is destroyed.
    async fn destroy(&self, names: &[String], json: Json) -> Result<String> {
        let mut found = Vec::new();
        for name in names {
            found.push(self.find(name).await?);
        }
        let mut said = String::new();
        for name in &found {
            let destroyed = self.snapshots.destroy_snapshot(self.volume.name(), name).await;
            destroyed.with_context(|| match said.as_str() {
                "" => "nothing was destroyed".to_owned(),
                said => format!("only these were destroyed: {}", said.trim_end()),
            })?;
            said += &format!("{name} destroyed\n");
        }
        if json.json {
            let names: Vec<_> = found.iter().map(SnapshotName::as_str).collect();
            return Ok(format!("{}\n", json!({ "destroyed": names })));
        }
        Ok(said)
    }

    async fn hold(&self, name: &str, tag: &str, json: Json) -> Result<String> {
        let (name, tag) = (self.find(name).await?, HoldTag::new(tag)?);
        self.snapshots.hold(self.volume.name(), &name, &tag).await?;
        if json.json {
            let tags = self.snapshots.holds(self.volume.name(), &name).await?;
            return Ok(held_json(&name, &tags));
        }
        Ok(format!("{name} is held ({tag})\n"))
    }

    async fn release(&self, name: &str, tag: &str, json: Json) -> Result<String> {
        let (name, tag) = (self.find(name).await?, HoldTag::new(tag)?);
        let tags = self.snapshots.holds(self.volume.name(), &name).await?;
        if !tags.contains(&tag) {
            let held = if tags.is_empty() { "is not held".to_owned() } else { held_by(&tags) };
            bail!("snapshot {name} is not held under the tag {tag}: it {held}");
        }
        self.snapshots.release(self.volume.name(), &name, &tag).await?;
        let rest: Vec<_> = tags.into_iter().filter(|other| *other != tag).collect();
        if json.json {
            return Ok(held_json(&name, &rest));
        }
        let held = if rest.is_empty() { "is held no more".to_owned() } else { held_by(&rest) };
        Ok(format!("{name} {held}\n"))
    }

    async fn find(&self, name: &str) -> Result<SnapshotName> {
        let name = SnapshotName::new(name)?;
        let list = self.snapshots.list(self.volume.name()).await?;
        if list.iter().any(|one| one.name == name) {
            return Ok(name);
        }
        let dataset = self.snapshots.full_name(self.volume.name());
        bail!("{dataset} has no snapshot {name}: see `manatee adm snapshot list`")
    }
}

fn held_json(name: &SnapshotName, tags: &[HoldTag]) -> String {
    let tags: Vec<_> = tags.iter().map(HoldTag::as_str).collect();
    format!("{}\n", json!({ "name": name.as_str(), "holds": tags }))
}

fn held_by(tags: &[HoldTag]) -> String {
    let tags: Vec<_> = tags.iter().map(HoldTag::as_str).collect();
    format!("is held ({})", tags.join(", "))
}

impl Row {
    fn purpose(&self) -> &str {
        match self.snapshot.name.purpose() {
            Purpose::Periodic => "periodic",
            Purpose::For(word) => word,
            Purpose::Foreign => "foreign",
        }
    }

    fn json(&self) -> Value {
        let Snapshot { name, guid, created, size, clones, .. } = &self.snapshot;
        json!({
            "name": name.as_str(),
            "guid": guid.as_str(),
            "created": created,
            "purpose": self.purpose(),
            "referenced": size.map(|size| size.referenced),
            "unique": size.map(|size| size.unique),
            "holds": self.tags.iter().map(HoldTag::as_str).collect::<Vec<_>>(),
            "clones": clones.iter().map(|clone| clone.as_str()).collect::<Vec<_>>(),
        })
    }

    fn cells(&self) -> Vec<String> {
        let size = |of: fn(Size) -> u64| {
            let mib = self.snapshot.size.map(|size| of(size) / (1 << 20));
            mib.map_or_else(|| "-".to_owned(), |mib| mib.to_string())
        };
        let names = |names: Vec<&str>| match names.as_slice() {
            [] => "-".to_owned(),
            names => names.join(","),
        };
        vec![
            self.snapshot.name.to_string(),
            self.snapshot.created.to_string(),
            self.purpose().to_owned(),
            size(|size| size.referenced),
            size(|size| size.unique),
            names(self.tags.iter().map(HoldTag::as_str).collect()),
            names(self.snapshot.clones.iter().map(|clone| clone.as_str()).collect()),
        ]
    }
}

fn render(rows: &[Row]) -> String {
    let columns = [
        Column::left("NAME", 20),
        Column::left("CREATED", 20),
        Column::left("PURPOSE", 8),
        Column::right("MIB", 6),
        Column::right("UNIQUE", 6),
        Column::left("HOLDS", 5),
        Column::left("CLONES", 6),
    ];
    let cells: Vec<_> = rows.iter().map(Row::cells).collect();
    table::render(&columns, &cells, true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use adapters::storage::{DatasetName, Guid};

    #[test]
    fn what_is_listed() {
        let row = |name: &str, size, tags: &[&str], clones: &[&str]| Row {
            snapshot: Snapshot {
                name: SnapshotName::new(name).expect("a name"),
                guid: Guid::new("7"),
                created: "2026-05-04T10:00:00Z".parse().expect("a time"),
                size,
                holds: tags.len() as u64,
                clones: clones.iter().map(|one| DatasetName::new(one).expect("a name")).collect(),
            },
            tags: tags.iter().map(|tag| HoldTag::new(tag).expect("a tag")).collect(),
        };
        let size = Size { referenced: 5 << 30, unique: 3 << 20 };
        let rows = [
            row("1777888800000", None, &[], &[]),
            row("1777888800001-manual", Some(size), &["operator", "why"], &["test"]),
            row("daily", None, &[], &[]),
        ];
        let expected = "
NAME                 CREATED              PURPOSE     MIB UNIQUE HOLDS        CLONES
1777888800000        2026-05-04T10:00:00Z periodic      -      - -            -
1777888800001-manual 2026-05-04T10:00:00Z manual     5120      3 operator,why test
daily                2026-05-04T10:00:00Z foreign       -      - -            -
";
        assert_eq!(format!("\n{}", render(&rows)), expected);
        let json = rows[1].json();
        assert_eq!((&json["unique"], &json["holds"][1]), (&json!(3 << 20), &json!("why")));
    }
}
