//! What `zfs get -Hp` prints, read.

use crate::storage::{Dataset, DatasetName, Guid, Mark, Size, Snapshot, SnapshotName};
use std::{collections::BTreeMap, path::PathBuf};

/// Lines of three fields.
pub(super) fn triples(output: &str) -> Vec<[String; 3]> {
    let fields = |line: &str| {
        let mut fields = line.splitn(3, '\t').map(str::to_owned);
        Some([fields.next()?, fields.next()?, fields.next()?])
    };
    output.lines().filter_map(fields).collect()
}

/// The properties of each thing, by its name.
fn by_name(lines: &[[String; 3]]) -> BTreeMap<&str, BTreeMap<&str, &str>> {
    let mut found: BTreeMap<&str, BTreeMap<&str, &str>> = BTreeMap::new();
    for [name, property, value] in lines {
        found.entry(name).or_default().insert(property, value);
    }
    found
}

/// The file systems directly below `parent` whose names could be ours.
pub(super) fn datasets(parent: &str, lines: &[[String; 3]]) -> Vec<Dataset> {
    let dataset = |(name, properties): (&str, BTreeMap<&str, &str>)| {
        let name = DatasetName::new(name.strip_prefix(parent)?.strip_prefix('/')?).ok()?;
        if properties.get("type") != Some(&"filesystem") {
            return None;
        }
        let mounted = properties.get("mounted") == Some(&"yes");
        let at = properties.get("mountpoint").map(PathBuf::from);
        let origin = properties.get("origin").filter(|origin| !["", "-"].contains(*origin));
        Some(Dataset {
            name,
            mounted: at.filter(|_| mounted),
            origin: origin.map(|origin| (*origin).to_owned()),
        })
    };
    by_name(lines).into_iter().filter_map(dataset).collect()
}

/// The snapshots of `dataset`, oldest first; those with names that ours could not have are left out.
/// `None` when a property is not what it should be.
pub(super) fn snapshots(
    dataset: &str,
    lines: &[[String; 3]],
    datasets: &[Dataset],
) -> Option<Vec<Snapshot>> {
    let mut found = Vec::new();
    for (full, properties) in by_name(lines) {
        let Some(name) = full.strip_prefix(dataset).and_then(|rest| rest.strip_prefix('@')) else {
            continue;
        };
        let Ok(name) = SnapshotName::new(name) else {
            continue;
        };
        let number = |property: &str| properties.get(property)?.parse::<u64>().ok();
        let created = i64::try_from(number("creation")?).ok()?;
        let clones = datasets.iter().filter(|one| one.origin.as_deref() == Some(full));
        let snapshot = Snapshot {
            name,
            guid: Guid::new(*properties.get("guid")?),
            created: jiff::Timestamp::from_second(created).ok()?,
            size: Some(Size { referenced: number("referenced")?, unique: number("used")? }),
            // Versions of pools without holds have none.
            holds: number("userrefs").unwrap_or(0),
            clones: clones.map(|one| one.name.clone()).collect(),
        };
        found.push((number("createtxg")?, snapshot));
    }
    found.sort_by(|(a, one), (b, other)| (a, &one.name).cmp(&(b, &other.name)));
    Some(found.into_iter().map(|(_, snapshot)| snapshot).collect())
}

/// The bookmarks of `dataset`, oldest first.
pub(super) fn bookmarks(dataset: &str, lines: &[[String; 3]]) -> Vec<Mark> {
    let mut found: Vec<(u64, Mark)> = by_name(lines)
        .into_iter()
        .filter_map(|(full, properties)| {
            let name = full.strip_prefix(dataset)?.strip_prefix('#')?;
            let guid = Guid::new(*properties.get("guid")?);
            let order = properties.get("createtxg")?.parse().ok()?;
            Some((order, Mark { name: SnapshotName::new(name).ok()?, guid }))
        })
        .collect();
    found.sort();
    found.into_iter().map(|(_, mark)| mark).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn snapshots_come_in_the_order_of_their_making() {
        let text = "p/m/a\tguid\t1\np/m/a\tcreation\t5\np/m/a@2\tguid\t12\np/m/a@2\tcreation\t100\n\
            p/m/a@2\tcreatetxg\t7\np/m/a@2\tused\t1\np/m/a@2\treferenced\t10\np/m/a@2\tuserrefs\t1\n\
            p/m/a@10\tguid\t11\np/m/a@10\tcreation\t100\np/m/a@10\tcreatetxg\t6\n\
            p/m/a@10\tused\t0\np/m/a@10\treferenced\t10\np/m/a@10\tuserrefs\t-\n\
            p/m/a/child\tguid\t4\n";
        let origins = "p/m\ttype\tfilesystem\np/m/c\ttype\tfilesystem\np/m/c\torigin\tp/m/a@10\n\
            p/m/c\tmounted\tno\np/m/c\tmountpoint\tnone\np/m@x\ttype\tsnapshot\n\
            p/m/d\ttype\tfilesystem\np/m/d\torigin\t-\np/m/d\tmounted\tyes\np/m/d\tmountpoint\t/x\n";
        let datasets = datasets("p/m", &triples(origins));
        assert_eq!(datasets.len(), 2);
        assert_eq!(datasets[1].mounted.as_deref(), Some(Path::new("/x")));
        let found = snapshots("p/m/a", &triples(text), &datasets).expect("understood");
        let told: Vec<_> = found
            .iter()
            .map(|s| (s.name.as_str(), s.guid.as_str(), s.holds, s.clones.len()))
            .collect();
        assert_eq!(told, [("10", "11", 0, 1), ("2", "12", 1, 0)]);
        let broken = text.replace("guid\t11", "other\t11");
        assert!(snapshots("p/m/a", &triples(&broken), &[]).is_none());
    }
}
