//! The conformance suite of file systems with snapshots: what every backend does, on real ones.

mod filesystems;

use adapters::storage::{
    Btrfs, DatasetName, Guid, HoldTag, Purpose, Receivable, ResumeToken, SendFrom, SendPlan,
    Sendable, Snapshot, SnapshotName, Snapshots, StorageCause, Zfs, plan_send,
};
use filesystems::{BtrfsFile, ZfsFile, isolated};
use std::{collections::BTreeSet, fs, path::PathBuf};
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

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn check_all(bench: Bench) {
    runtime().block_on(async {
        datasets_are_mounted_only_where_they_belong(&bench).await;
        snapshots_are_listed_held_and_destroyed(&bench).await;
        going_back_never_destroys(&bench).await;
        streams_carry_all_and_differences(&bench).await;
        what_is_cut_off_never_counts(&bench).await;
        nothing_is_received_over_what_is_there(&bench).await;
        a_branch_takes_a_difference(&bench).await;
        a_bookmark_is_sent_from_where_there_are_any(&bench).await;
        a_receive_that_broke_off_goes_on_where_it_can(&bench).await;
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

/// Datasets are made, mounted, renamed and destroyed, and never over anything.
async fn datasets_are_mounted_only_where_they_belong(bench: &Bench) {
    let fs = &bench.here;
    let (a, b) = (name("mounted"), name("other"));
    fs.create(&a).await.good("create");
    let error = fs.create(&a).await.expect_err("it exists");
    assert!(matches!(error, StorageCause::Exists(_)), "{}", told(&error));
    let listed = fs.datasets().await.good("datasets");
    let found = listed.iter().find(|dataset| dataset.name == a).expect("it is listed");
    assert_eq!((&found.mounted, &found.origin), (&None, &None));

    let full = bench.directory("full");
    fs::create_dir(&full).expect("a directory");
    fs::write(full.join("file"), "mine").expect("a file");
    let error = fs.mount(&a, &full).await.expect_err("something is there");
    assert!(matches!(error, StorageCause::MountpointNotEmpty(_)), "{}", told(&error));
    assert_eq!(fs::read(full.join("file")).expect("the file"), b"mine");

    let on = bench.directory("on it");
    for _ in 0..2 {
        fs.mount(&a, &on).await.good("mount, and again");
    }
    fs::write(on.join("file"), "data").expect("a file");
    let listed = fs.datasets().await.good("datasets");
    let found = listed.iter().find(|dataset| dataset.name == a).expect("it is listed");
    assert_eq!(found.mounted.as_ref(), Some(&on));
    fs.create(&b).await.good("create");
    let error = fs.mount(&b, &on).await.expect_err("another is there");
    assert!(matches!(error, StorageCause::MountpointTaken { .. }), "{}", told(&error));
    let error = fs.mount(&a, &bench.directory("elsewhere")).await.expect_err("mounted");
    assert!(matches!(error, StorageCause::Mounted { .. }), "{}", told(&error));
    for refused in [fs.rename(&a, &name("x")).await, fs.destroy(&a).await] {
        let error = refused.expect_err("mounted");
        assert!(matches!(error, StorageCause::Mounted { .. }), "{}", told(&error));
    }

    // In use: refused, and nothing is forced.
    let held = fs::File::open(on.join("file")).expect("the file");
    let error = fs.unmount(&a).await.expect_err("in use");
    assert!(told(&error).contains("busy"), "{}", told(&error));
    drop(held);
    for _ in 0..2 {
        fs.unmount(&a).await.good("unmount, and again");
    }
    assert_eq!(fs::read_dir(&on).expect("the directory").count(), 0);

    let error = fs.rename(&a, &b).await.expect_err("it exists");
    assert!(matches!(error, StorageCause::Exists(_)), "{}", told(&error));
    let c = name("renamed");
    fs.rename(&a, &c).await.good("rename");
    fs.mount(&c, &on).await.good("mount");
    assert_eq!(fs::read(on.join("file")).expect("the file"), b"data");
    fs.unmount(&c).await.good("unmount");
    for dataset in [&b, &c] {
        fs.destroy(dataset).await.good("destroy");
    }
    for refused in [fs.mount(&c, &on).await, fs.destroy(&c).await, fs.unmount(&c).await] {
        let error = refused.expect_err("it is gone");
        assert!(matches!(error, StorageCause::NoDataset(_)), "{}", told(&error));
    }
    let left = fs.datasets().await.good("datasets");
    assert!(left.is_empty(), "{left:?}");
}

/// Snapshots are listed by age with what is known of each, and what is needed is not destroyed.
async fn snapshots_are_listed_held_and_destroyed(bench: &Bench) {
    let fs = &bench.here;
    let (a, on) = bench.dataset("kept").await;
    let before = jiff::Timestamp::now().as_second();
    fs::write(on.join("file"), noise(3 << 20)).expect("a file");
    let diverged = SnapshotName::for_purpose(3, "diverged").expect("a name");
    // Older names later: the order is that of their making.
    for snapshot in [&at(5), &at(4), &diverged] {
        fs.snapshot(&a, snapshot).await.good("snapshot");
        fs::write(on.join(snapshot.as_str()), noise(1 << 20)).expect("a file");
    }
    let list = fs.list(&a).await.good("list");
    assert_eq!(
        names(&**fs, &a).await,
        ["0000000000005", "0000000000004", "0000000000003-diverged"]
    );
    assert_eq!(list[2].name.purpose(), Purpose::For("diverged"));
    let guids: BTreeSet<&Guid> = list.iter().map(|snapshot| &snapshot.guid).collect();
    assert_eq!(guids.len(), 3);
    assert!(list.iter().all(|one| (before - 1..before + 60).contains(&one.created.as_second())));
    let size = fs.measure(&a, &at(5)).await.good("measure");
    assert!((3 << 20..4 << 20).contains(&size.referenced), "{size:?}");
    let error = fs.snapshot(&a, &at(4)).await.expect_err("it exists");
    assert!(told(&error).contains("exist"), "{}", told(&error));

    // Held twice by one, and by another.
    for holder in ["seed-1", "seed-1", "operator"] {
        fs.hold(&a, &at(5), &tag(holder)).await.good("hold");
    }
    let mut holders = fs.holds(&a, &at(5)).await.good("holds");
    holders.sort();
    assert_eq!(holders, [tag("operator"), tag("seed-1")]);
    assert_eq!(fs.list(&a).await.good("list")[0].holds, 2);
    let error = fs.destroy_snapshot(&a, &at(5)).await.expect_err("held");
    let text = told(&error);
    assert!(matches!(error, StorageCause::Held { .. }), "{text}");
    assert!(text.contains("operator") && text.contains("seed-1"), "{text}");
    fs.unmount(&a).await.good("unmount");
    let error = fs.destroy(&a).await.expect_err("held");
    assert!(matches!(error, StorageCause::Held { .. }), "{}", told(&error));
    assert_eq!(names(&**fs, &a).await.len(), 3, "nothing of it was destroyed");
    for holder in ["seed-1", "operator", "operator", "nobody"] {
        fs.release(&a, &at(5), &tag(holder)).await.good("release");
    }
    assert_eq!(fs.holds(&a, &at(5)).await.good("holds"), []);

    // Cloned from.
    let clone = name("clone");
    fs.clone_snapshot(&a, &at(5), &clone).await.good("clone");
    assert_eq!(fs.list(&a).await.good("list")[0].clones, std::slice::from_ref(&clone));
    let refused = [fs.destroy_snapshot(&a, &at(5)).await, fs.destroy(&a).await];
    for refused in refused {
        let error = refused.expect_err("cloned from");
        assert!(matches!(error, StorageCause::ClonedFrom { .. }), "{}", told(&error));
        assert!(told(&error).contains("clone"), "{}", told(&error));
    }
    let look = bench.directory("look");
    fs.mount(&clone, &look).await.good("mount");
    assert_eq!(fs::read(look.join("file")).expect("the file"), noise(3 << 20));
    assert!(!look.join("0000000000005").exists(), "what was written later is not in it");
    fs::write(look.join("new"), "x").expect("it can be written to");
    fs.unmount(&clone).await.good("unmount");
    fs.destroy(&clone).await.good("destroy");
    fs.destroy_snapshot(&a, &at(5)).await.good("destroy");
    let error = fs.destroy_snapshot(&a, &at(5)).await.expect_err("it is gone");
    assert!(matches!(error, StorageCause::NoSnapshot(_)), "{}", told(&error));
    fs.destroy(&a).await.good("destroy");
}

/// A dataset goes back to its newest snapshot; to an earlier one only by way of a branch, which loses
/// nothing.
async fn going_back_never_destroys(bench: &Bench) {
    let fs = &bench.here;
    let (a, on) = bench.dataset("back").await;
    for time in 1..=3 {
        fs::write(on.join("file"), time.to_string()).expect("a file");
        fs.snapshot(&a, &at(time)).await.good("snapshot");
    }
    fs::write(on.join("file"), "changed").expect("a file");
    let error = fs.rollback(&a, &at(3)).await.expect_err("mounted");
    assert!(matches!(error, StorageCause::Mounted { .. }), "{}", told(&error));
    fs.unmount(&a).await.good("unmount");
    let error = fs.rollback(&a, &at(1)).await.expect_err("later ones");
    let text = told(&error);
    assert!(matches!(error, StorageCause::LaterSnapshots { .. }), "{text}");
    assert!(text.contains("0000000000002, 0000000000003"), "{text}");
    fs.rollback(&a, &at(3)).await.good("rollback");
    let content = async |dataset: &DatasetName| {
        fs.mount(dataset, &on).await.good("mount");
        let text = fs::read_to_string(on.join("file")).expect("the file");
        fs.unmount(dataset).await.good("unmount");
        text
    };
    assert_eq!(content(&a).await, "3");

    let branch = name("branch");
    fs.hold(&a, &at(1), &tag("keep")).await.good("hold");
    let guids: Vec<Guid> =
        fs.list(&a).await.good("list").into_iter().map(|snapshot| snapshot.guid).collect();
    fs.branch(&a, &at(2), &branch).await.good("branch");
    assert_eq!(names(&**fs, &branch).await, ["0000000000001", "0000000000002"]);
    assert_eq!(names(&**fs, &a).await, ["0000000000003"]);
    let moved = fs.list(&branch).await.good("list");
    assert_eq!([&moved[0].guid, &moved[1].guid], [&guids[0], &guids[1]], "they are the same");
    assert_eq!(moved[0].holds, 1, "held as before");
    assert_eq!(moved[1].clones, std::slice::from_ref(&a), "what is left was cloned from it now");
    assert_eq!((content(&branch).await, content(&a).await), ("2".to_owned(), "3".to_owned()));
    let error = fs.destroy(&branch).await.expect_err("held and cloned from");
    assert!(matches!(error, StorageCause::Held { .. }), "{}", told(&error));
    fs.release(&branch, &at(1), &tag("keep")).await.good("release");
    fs.destroy(&a).await.good("destroy");
    fs.destroy(&branch).await.good("destroy");
}

/// All of a snapshot, then differences, arrive elsewhere as they were, and nothing but the data does.
async fn streams_carry_all_and_differences(bench: &Bench) {
    let (here, there) = (&bench.here, &bench.there);
    let (a, on) = bench.dataset("source").await;
    let b = name("target");
    let content = noise(5 << 20);
    fs::write(on.join("file"), &content).expect("a file");
    here.snapshot(&a, &at(1)).await.good("snapshot");
    let all = read(&**here, &a, 1, &SendFrom::Nothing).await;
    assert!(all.len() > 5 << 20);
    let came = write(&**there, &b, &all).await.good("receive");
    let sent = here.list(&a).await.good("list");
    assert_eq!((&came.name, &came.guid), (&sent[0].name, &sent[0].guid));
    let listed = there.datasets().await.good("datasets");
    let found = listed.iter().find(|dataset| dataset.name == b).expect("it is listed");
    assert_eq!((&found.mounted, &found.origin), (&None, &None));

    let marks = async |fs: &dyn Snapshots, dataset: &DatasetName| {
        fs.list(dataset).await.good("list").iter().map(Snapshot::mark).collect::<Vec<_>>()
    };
    for time in [2, 3] {
        fs::write(on.join(format!("file {time}")), &content[..100_000]).expect("a file");
        here.snapshot(&a, &at(time)).await.good("snapshot");
    }
    fs::remove_file(on.join("file 2")).expect("removed");
    here.snapshot(&a, &at(4)).await.good("snapshot");
    let sender = Sendable { snapshots: marks(&**here, &a).await, bookmarks: Vec::new() };
    let receiver = Receivable { snapshots: marks(&**there, &b).await, unfinished: None };
    let plan = plan_send(&sender, &receiver, None).expect("a difference");
    assert!(matches!(&plan, SendPlan::Incremental { to, .. } if to.name == at(4)), "{plan:?}");
    let difference = read(&**here, &a, 4, &SendFrom::Snapshot(at(1))).await;
    assert!((100_000..400_000).contains(&difference.len()), "{} bytes", difference.len());
    write(&**there, &b, &difference).await.good("receive");
    assert_eq!(names(&**there, &b).await, ["0000000000001", "0000000000004"]);

    let look = bench.directory("target");
    there.mount(&b, &look).await.good("mount");
    assert_eq!(fs::read(look.join("file")).expect("the file"), content);
    assert!(look.join("file 3").exists() && !look.join("file 2").exists());
    there.unmount(&b).await.good("unmount");

    // From there it goes on elsewhere, as the same.
    let again = read(&**there, &b, 4, &SendFrom::Nothing).await;
    let c = name("third");
    let third = write(&**here, &c, &again).await.good("receive");
    assert_eq!(third.guid, sent_guid(&marks(&**here, &a).await, 4));
    here.unmount(&a).await.good("unmount");
    for dataset in [&a, &c] {
        here.destroy(dataset).await.good("destroy");
    }
    there.destroy(&b).await.good("destroy");
}

fn sent_guid(marks: &[adapters::storage::Mark], time: u64) -> Guid {
    let mark = marks.iter().find(|mark| mark.name == at(time));
    mark.expect("it was sent").guid.clone()
}

/// A stream that ends too early, anywhere, gives no snapshot and no dataset that could be used.
async fn what_is_cut_off_never_counts(bench: &Bench) {
    let (here, there) = (&bench.here, &bench.there);
    let (a, on) = bench.dataset("cut").await;
    let b = name("cut");
    for number in 0..20 {
        fs::write(on.join(number.to_string()), noise(20_000)).expect("a file");
    }
    here.snapshot(&a, &at(1)).await.good("snapshot");
    let all = read(&**here, &a, 1, &SendFrom::Nothing).await;
    let lengths = [0, 1, 100, all.len() / 2, all.len() - 400, all.len() - 10, all.len() - 1];
    let ends = lengths.into_iter().chain(command_ends(&all));
    for length in ends {
        let result = write(&**there, &b, &all[..length]).await;
        assert!(result.is_err(), "{length} of {} bytes were taken for all", all.len());
        let usable = names_if_any(&**there, &b).await;
        assert_eq!(usable, Vec::<String>::new(), "after {length} bytes");
        there.abandon(&b).await.good("abandon");
    }
    // Dropped in the middle, and told to stop in the middle.
    for told_to in [true, false] {
        let mut stream = there.receive(&b).await.good("receive");
        stream.write_all(&all[..all.len() / 2]).await.expect("written");
        // Ending it by habit does not end it.
        stream.shutdown().await.expect("nothing");
        if told_to {
            stream.abort().await
        } else {
            drop(stream)
        }
        there.abandon(&b).await.good("abandon");
        assert_eq!(names_if_any(&**there, &b).await, Vec::<String>::new());
    }
    // And a reader that stops early stops the sender.
    let mut stream = here.send(&a, &at(1), &SendFrom::Nothing, &BTreeSet::new()).await.good("send");
    stream.read_exact(&mut [0; 10]).await.expect("its beginning");
    drop(stream);
    write(&**there, &b, &all).await.good("all of it, afterwards");
    there.destroy(&b).await.good("destroy");
    here.unmount(&a).await.good("unmount");
    here.destroy(&a).await.good("destroy");
}

async fn names_if_any(fs: &dyn Snapshots, dataset: &DatasetName) -> Vec<String> {
    match fs.list(dataset).await {
        Ok(list) => list.iter().map(|snapshot| snapshot.name.to_string()).collect(),
        Err(StorageCause::NoDataset(_)) => Vec::new(),
        Err(cause) => panic!("{}", told(&cause)),
    }
}

/// Where the commands of a btrfs stream end: cut off there, only its last command is missing to make it
/// whole.
fn command_ends(stream: &[u8]) -> Vec<usize> {
    let mut ends = Vec::new();
    if !stream.starts_with(b"btrfs-stream\0") {
        return ends;
    }
    let mut offset = 17;
    while offset + 10 < stream.len() {
        let length = u32::from_le_bytes(stream[offset..offset + 4].try_into().expect("four bytes"));
        offset += 10 + length as usize;
        ends.push(offset);
    }
    assert_eq!(ends.last(), Some(&(stream.len() - 10)), "where the last one begins");
    // A few of them, the last ones all.
    let few = ends.len().saturating_sub(4);
    ends.into_iter()
        .enumerate()
        .filter(|(at, _)| at % 40 == 0 || *at >= few)
        .map(|(_, end)| end)
        .collect()
}

/// A stream goes into nothing that is mounted, changed, of another line, or not empty.
async fn nothing_is_received_over_what_is_there(bench: &Bench) {
    let (here, there) = (&bench.here, &bench.there);
    let (a, on) = bench.dataset("line").await;
    let b = name("line");
    for time in 1..=3 {
        fs::write(on.join("file"), time.to_string()).expect("a file");
        here.snapshot(&a, &at(time)).await.good("snapshot");
    }
    let all = read(&**here, &a, 1, &SendFrom::Nothing).await;
    let later = read(&**here, &a, 3, &SendFrom::Snapshot(at(2))).await;
    let next = read(&**here, &a, 2, &SendFrom::Snapshot(at(1))).await;
    write(&**there, &b, &next).await.expect_err("a difference from what is not there");
    assert_eq!(names_if_any(&**there, &b).await, Vec::<String>::new());
    there.abandon(&b).await.good("abandon");
    write(&**there, &b, &all).await.good("receive");
    let look = bench.directory("line there");
    there.mount(&b, &look).await.good("mount");
    let error = there.receive(&b).await.expect_err("mounted");
    assert!(matches!(error, StorageCause::Mounted { .. }), "{}", told(&error));
    there.unmount(&b).await.good("unmount");
    write(&**there, &b, &all).await.expect_err("all of it, over what is there");
    write(&**there, &b, &later).await.expect_err("a difference from what is not there");
    there.abandon(&b).await.good("abandon");

    there.mount(&b, &look).await.good("mount");
    fs::write(look.join("file"), "mine").expect("a file");
    there.unmount(&b).await.good("unmount");
    let error = write(&**there, &b, &next).await.expect_err("changed");
    assert!(matches!(error, StorageCause::Modified { .. }), "{}", told(&error));
    there.mount(&b, &look).await.good("mount");
    assert_eq!(fs::read(look.join("file")).expect("the file"), b"mine", "it is as it was left");
    there.unmount(&b).await.good("unmount");
    there.rollback(&b, &at(1)).await.good("rollback");
    write(&**there, &b, &next).await.good("unchanged again");
    let skipping = read(&**here, &a, 3, &SendFrom::Snapshot(at(1))).await;
    let error =
        write(&**there, &b, &skipping).await.expect_err("from an older one than the newest");
    assert!(matches!(error, StorageCause::WrongBase { .. }), "{}", told(&error));
    there.abandon(&b).await.good("abandon");
    write(&**there, &b, &later).await.good("and the one after it");
    assert_eq!(names(&**there, &b).await.len(), 3);
    there.destroy(&b).await.good("destroy");
    here.unmount(&a).await.good("unmount");
    here.destroy(&a).await.good("destroy");
}

/// How a deposed peer is repaired by a difference: what it alone has stays, and what is common takes
/// what it missed.
async fn a_branch_takes_a_difference(bench: &Bench) {
    let (here, there) = (&bench.here, &bench.there);
    let (a, on) = bench.dataset("new-primary").await;
    let b = name("deposed");
    fs::write(on.join("file"), noise(1 << 20)).expect("a file");
    here.snapshot(&a, &at(1)).await.good("snapshot");
    write(&**there, &b, &read(&**here, &a, 1, &SendFrom::Nothing).await).await.good("receive");
    let look = bench.directory("deposed");
    there.mount(&b, &look).await.good("mount");
    fs::write(look.join("diverged"), "only here").expect("a file");
    there.snapshot(&b, &at(2)).await.good("snapshot");
    there.unmount(&b).await.good("unmount");
    fs::write(on.join("missed"), "only there").expect("a file");
    here.snapshot(&a, &at(3)).await.good("snapshot");

    let incoming = name("deposed.incoming");
    there.branch(&b, &at(1), &incoming).await.good("branch");
    let difference = read(&**here, &a, 3, &SendFrom::Snapshot(at(1))).await;
    write(&**there, &incoming, &difference).await.good("receive");
    there.rename(&b, &name("deposed.aside")).await.good("rename");
    there.rename(&incoming, &b).await.good("rename");
    there.mount(&b, &look).await.good("mount");
    assert!(look.join("missed").exists() && !look.join("diverged").exists());
    assert_eq!(fs::read(look.join("file")).expect("the file"), noise(1 << 20));
    there.unmount(&b).await.good("unmount");
    there.mount(&name("deposed.aside"), &look).await.good("mount");
    assert!(look.join("diverged").exists() && !look.join("missed").exists());
    there.unmount(&name("deposed.aside")).await.good("unmount");
    for dataset in [name("deposed.aside"), b] {
        there.destroy(&dataset).await.good("destroy");
    }
    here.unmount(&a).await.good("unmount");
    here.destroy(&a).await.good("destroy");
}

async fn a_bookmark_is_sent_from_where_there_are_any(bench: &Bench) {
    let (here, there) = (&bench.here, &bench.there);
    let (a, on) = bench.dataset("marked").await;
    let b = name("marked");
    fs::write(on.join("file"), "1").expect("a file");
    here.snapshot(&a, &at(1)).await.good("snapshot");
    let marked = here.bookmark(&a, &at(1)).await;
    if here.capabilities().bookmarks {
        marked.good("bookmark");
        write(&**there, &b, &read(&**here, &a, 1, &SendFrom::Nothing).await).await.good("receive");
        here.destroy_snapshot(&a, &at(1)).await.good("destroy");
        fs::write(on.join("file"), "2").expect("a file");
        here.snapshot(&a, &at(2)).await.good("snapshot");
        let marks = here.bookmarks(&a).await.good("bookmarks");
        assert_eq!(marks.iter().map(|mark| mark.name.clone()).collect::<Vec<_>>(), [at(1)]);
        let difference = read(&**here, &a, 2, &SendFrom::Bookmark(at(1))).await;
        write(&**there, &b, &difference).await.good("receive");
        there.destroy(&b).await.good("destroy");
    } else {
        let error = marked.expect_err("there are none");
        assert!(matches!(error, StorageCause::Unsupported { .. }), "{}", told(&error));
        assert_eq!(here.bookmarks(&a).await.good("bookmarks"), []);
    }
    here.unmount(&a).await.good("unmount");
    here.destroy(&a).await.good("destroy");
}

async fn a_receive_that_broke_off_goes_on_where_it_can(bench: &Bench) {
    let (here, there) = (&bench.here, &bench.there);
    let (a, on) = bench.dataset("resumed").await;
    let b = name("resumed");
    fs::write(on.join("file"), noise(8 << 20)).expect("a file");
    let sent = here.snapshot(&a, &at(1)).await.good("snapshot");
    let all = read(&**here, &a, 1, &SendFrom::Nothing).await;
    assert_eq!(there.unfinished(&b).await.good("unfinished"), None);
    write(&**there, &b, &all[..all.len() / 2]).await.expect_err("half of it");
    let unfinished = there.unfinished(&b).await.good("unfinished");
    if there.capabilities().resume {
        let unfinished = unfinished.expect("it can go on");
        assert_eq!(unfinished.to, sent.guid);
        let mut rest = Vec::new();
        let mut stream = here.send_rest(&unfinished.token).await.good("the rest");
        stream.read_to_end(&mut rest).await.expect("all of it");
        assert!(rest.len() < all.len(), "{} of {} bytes", rest.len(), all.len());
        write(&**there, &b, &rest).await.good("receive");
        here.send_rest(&ResumeToken::new("-x")).await.expect_err("no token");
        // And one that is given up leaves nothing.
        let c = name("given-up");
        write(&**there, &c, &all[..all.len() / 2]).await.expect_err("half of it");
        there.abandon(&c).await.good("abandon");
        assert_eq!(there.unfinished(&c).await.good("unfinished"), None);
        write(&**there, &c, &all).await.good("from the start");
        there.destroy(&c).await.good("destroy");
    } else {
        assert_eq!(unfinished, None);
        let error = here.send_rest(&ResumeToken::new("x")).await.expect_err("it cannot");
        assert!(matches!(error, StorageCause::Unsupported { .. }), "{}", told(&error));
        there.abandon(&b).await.good("abandon");
        write(&**there, &b, &all).await.good("from the start");
    }
    assert_eq!(names(&**there, &b).await, ["0000000000001"]);
    there.destroy(&b).await.good("destroy");
    here.unmount(&a).await.good("unmount");
    here.destroy(&a).await.good("destroy");
}
