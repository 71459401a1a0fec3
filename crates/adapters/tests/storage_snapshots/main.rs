//! The conformance suite of file systems with snapshots: what every backend does, on real ones.

mod datasets;
#[path = "../filesystems/mod.rs"]
mod filesystems;
mod interrupted;
mod promotion;
mod streams;
mod volumes;

use adapters::{
    exec::Exec,
    storage::{
        Btrfs, DatasetName, HoldTag, SendFrom, Snapshot, SnapshotName, Snapshots, StorageCause,
        Volume, Zfs,
    },
};
use cluster::Millis;
use filesystems::{BtrfsFile, ZfsFile, isolated};
use futures_util::future::join_all;
use std::{
    fs,
    path::{Path, PathBuf},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Two parents of datasets, as on two hosts, and a place for directories.
struct Bench {
    here: Box<dyn Snapshots>,
    there: Box<dyn Snapshots>,
    place: PathBuf,
}

#[test]
fn btrfs_conforms() {
    isolated("btrfs_conforms", |place| {
        let (one, other) = (place.join("one"), place.join("other"));
        for place in [&one, &other] {
            fs::create_dir(place).expect("a directory");
        }
        let (one, other) = (BtrfsFile::new(&one, 512), BtrfsFile::new(&other, 512));
        let open = |parent: PathBuf| Box::new(Btrfs::open(&parent).expect("a btrfs"));
        check_all(Bench {
            here: open(one.parent("here")),
            there: open(other.parent("there")),
            place: place.to_owned(),
        });
    });
}

#[test]
fn zfs_conforms() {
    isolated("zfs_conforms", |place| {
        let pool = ZfsFile::new(place, 1024);
        let runtime = runtime();
        let open = |name: &str| {
            let parent = pool.parent(name);
            Box::new(runtime.block_on(Zfs::open(&parent)).expect("a pool"))
        };
        let (here, there) = (open("here"), open("there"));
        let found = here.capabilities();
        println!("{found:?}, {:?}", here.features());
        assert_eq!(pool.is_fuse(), !found.resume && !found.bookmarks && here.features().is_empty());
        check_all(Bench { here, there, place: place.to_owned() });
    });
}

#[test]
fn btrfs_goes_on_where_it_was_cut_off() {
    isolated("btrfs_goes_on_where_it_was_cut_off", |place| {
        let file = BtrfsFile::new(place, 512);
        runtime().block_on(promotion::a_split_that_was_cut_off_loses_nothing(&file, place));
        runtime().block_on(promotion::what_cannot_be_swept_is_in_nobodys_way(&file));
    });
}

#[test]
fn btrfs_volumes() {
    isolated("btrfs_volumes", |place| {
        let file = BtrfsFile::new(place, 512);
        let parent = file.parent("manatee").display().to_string();
        let volume = |on: &Path| Volume::btrfs(&format!("{parent}/a"), on).expect("a name");
        runtime().block_on(volumes::check_all(place, &volume));
    });
}

#[test]
fn zfs_volumes() {
    isolated("zfs_volumes", |place| {
        let pool = ZfsFile::new(place, 512);
        let parent = pool.parent("manatee");
        let volume = |on: &Path| Volume::zfs(&format!("{parent}/a"), on).expect("a name");
        runtime().block_on(volumes::check_all(place, &volume));
    });
}

/// As several sitters of one host do when they start. The daemon of `zfs-fuse` takes each mount in two pieces,
/// and hangs for ever when one comes between those of another.
#[test]
fn zfs_is_mounted_at_the_same_time() {
    isolated("zfs_is_mounted_at_the_same_time", |place| {
        let pool = ZfsFile::new(place, 512);
        let parent = pool.parent("manatee");
        let datasets: Vec<_> = (0..8).map(|index| name(&format!("a{index}"))).collect();
        let file = |dataset: &DatasetName| place.join(dataset.as_str()).join("file");
        runtime().block_on(async {
            let zfs = Zfs::open(&parent).await.good("a pool");
            for dataset in &datasets {
                zfs.create(dataset).await.good("create");
            }
            let mount = async |dataset: &DatasetName| {
                zfs.mount(dataset, &place.join(dataset.as_str())).await.good("mount");
            };
            for _ in 0..4 {
                join_all(datasets.iter().map(mount)).await;
                for dataset in &datasets {
                    // Not by a thread of ours: nobody could give up one that hangs.
                    let touch = Exec::new("touch").arg(file(dataset)).limit(Millis(20_000)).run();
                    touch.await.unwrap_or_else(|error| panic!("{error}: {}", error.cause));
                    zfs.unmount(dataset).await.good("unmount");
                }
            }
        });
    });
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn check_all(bench: Bench) {
    runtime().block_on(async {
        datasets::datasets_are_mounted_only_where_they_belong(&bench).await;
        datasets::snapshots_are_listed_held_and_destroyed(&bench).await;
        datasets::going_back_never_destroys(&bench).await;
        streams::streams_carry_all_and_differences(&bench).await;
        interrupted::what_is_cut_off_never_counts(&bench).await;
        streams::nothing_is_received_over_what_is_there(&bench).await;
        streams::a_branch_takes_a_difference(&bench).await;
        streams::a_bookmark_is_sent_from_where_there_are_any(&bench).await;
        interrupted::a_receive_that_broke_off_goes_on_where_it_can(&bench).await;
    });
}

fn name(text: &str) -> DatasetName {
    DatasetName::new(text).expect(text)
}

fn tag(text: &str) -> HoldTag {
    HoldTag::new(text).expect(text)
}

/// A snapshot's name: the time stands for a real one.
fn at(time: u64) -> SnapshotName {
    SnapshotName::periodic(time)
}

fn told(cause: &StorageCause) -> String {
    let mut text = cause.to_string();
    let mut source = std::error::Error::source(cause);
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}

/// The result, or a panic that says what went wrong as an operator would be told.
trait Told<T> {
    fn good(self, what: &str) -> T;
}

impl<T> Told<T> for Result<T, StorageCause> {
    #[track_caller]
    fn good(self, what: &str) -> T {
        self.unwrap_or_else(|cause| panic!("{what}: {}", told(&cause)))
    }
}

impl Bench {
    fn directory(&self, name: &str) -> PathBuf {
        self.place.join(name)
    }

    /// A new dataset, mounted.
    async fn dataset(&self, text: &str) -> (DatasetName, PathBuf) {
        let (dataset, on) = (name(text), self.directory(text));
        self.here.create(&dataset).await.good("create");
        self.here.mount(&dataset, &on).await.good("mount");
        (dataset, on)
    }
}

async fn names(snapshots: &dyn Snapshots, dataset: &DatasetName) -> Vec<String> {
    let list = snapshots.list(dataset).await.good("list");
    list.iter().map(|snapshot| snapshot.name.to_string()).collect()
}

async fn names_if_any(fs: &dyn Snapshots, dataset: &DatasetName) -> Vec<String> {
    match fs.list(dataset).await {
        Ok(list) => list.iter().map(|snapshot| snapshot.name.to_string()).collect(),
        Err(StorageCause::NoDataset(_)) => Vec::new(),
        Err(cause) => panic!("{}", told(&cause)),
    }
}

/// Reads all of a stream.
async fn read(from: &dyn Snapshots, dataset: &DatasetName, to: u64, base: &SendFrom) -> Vec<u8> {
    let accepted = from.features();
    let mut stream = from.send(dataset, &at(to), base, &accepted).await.good("send");
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.expect("all of the stream");
    bytes
}

/// Writes what is given of a stream, and ends it.
async fn write(
    into: &dyn Snapshots,
    dataset: &DatasetName,
    bytes: &[u8],
) -> Result<Snapshot, StorageCause> {
    let mut stream = into.receive(dataset).await?;
    // When the receiver takes no more, `finish` says why.
    stream.write_all(bytes).await.ok();
    into.finish(stream).await
}

/// Some data that nothing makes smaller.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}
