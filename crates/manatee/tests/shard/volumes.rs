//! Shards whose databases lie on real file systems with snapshots.

use super::{
    backup_certificates, files,
    filesystems::{BtrfsFile, ZfsFile, isolated},
    rebuild::rebuilt,
    world::{World, limit},
};
use adapters::{
    clock,
    storage::{Btrfs, Dataset, DatasetName, KEPT, Purpose, SnapshotName, Snapshots, Zfs},
};
use anyhow::{Context, Result, ensure};
use cluster::Role;
use manatee::{
    backup::Remote,
    shard::{Peer, ShardView, Volumes},
    sitter::config::Config,
};
use std::{fs, io::Read, path::Path, process::Command};

/// Runs a test in namespaces of its own.
fn alone(test: &str, body: impl FnOnce(&Path) -> Result<()>) {
    isolated(test, |place| body(place).expect(test));
}

#[test]
fn a_shard_on_btrfs() {
    alone("volumes::a_shard_on_btrfs", |place| {
        let file = BtrfsFile::new(place, 4096);
        let parent = file.parent("manatee");
        life(Volumes::Btrfs(parent.clone()), &Btrfs::open(&parent)?)
    });
}

#[test]
fn a_shard_on_zfs() {
    alone("volumes::a_shard_on_zfs", |place| {
        let pool = ZfsFile::new(place, 4096);
        let parent = pool.parent("manatee");
        let opened = block_on(Zfs::open(&parent))?;
        life(Volumes::Zfs(parent), &opened)
    });
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(future)
}

/// A shard is set up by snapshots, its primary's host dies, and what it had is kept in a snapshot when it
/// comes back and is rewound; twice. A sitter that dies finds its dataset mounted. One that dies while it
/// is seeded goes on with that. One whose database cannot be rewound is rebuilt from a snapshot. Nothing
/// that was acknowledged is lost.
fn life(volumes: Volumes, snapshots: &dyn Snapshots) -> Result<()> {
    let overrides = "keep_aside = 1\n[backup]\nrate_mib = 8";
    let world = World::start_as(overrides, |options| options.volumes = volumes)?;
    let datasets = || -> Result<Vec<Dataset>> { Ok(block_on(snapshots.datasets())?) };
    let zones: Vec<String> = datasets()?.iter().map(|one| one.name.to_string()).collect();
    let expected: Vec<_> = world.shard.peers().iter().map(|peer| peer.zone()).collect();
    ensure!(zones == expected, "one dataset each: {zones:?}");
    let sync = world.in_role(Role::Sync)?;
    sync.kill_sitter()?;
    sync.start_sitter()?;
    world.wait_for_writes()?;

    for peer in world.shard.peers() {
        let log = fs::read_to_string(peer.log_file())?;
        let seeded = log.contains("a snapshot of the database came");
        let created = log.contains("creating a database");
        ensure!(seeded || created, "{} was seeded otherwise: {log}", peer.zone());
    }
    for _ in 0..2 {
        let old = world.lose_primary()?;
        // The last checkpoint that the new sync has replayed was on the timeline before.
        archived(&world, snapshots, Role::Sync)?;
        let mark = clock::now();
        old.start_sitter()?;
        world.wait_back(old)?;
        world.shard.wait_whole(limit())?;
        println!("whole again {} ms after its host was back", (clock::now() - mark).0);
        let log = fs::read_to_string(old.log_file())?;
        ensure!(log.contains("the database was rewound"), "{} was not: {log}", old.zone());
        let name = DatasetName::new(old.zone())?;
        let list = block_on(snapshots.list(&name))?;
        let kept = list.iter().filter(|one| one.name.purpose() == Purpose::For(KEPT)).count();
        ensure!(kept == 1, "what it had is kept once: {list:?}");
        let found = datasets()?;
        ensure!(found.len() == 3, "nothing else is left: {found:?}");
        let mounted = found.iter().filter(|one| one.mounted.is_some()).count();
        ensure!(mounted == 3, "one is mounted for each peer: {found:?}");
    }
    seeded_in_two_goes(&world, snapshots)?;
    let failed = world.count_failures();
    for role in [Role::Primary, Role::Async] {
        archived(&world, snapshots, role)?;
    }
    world.ensure_unnoticed(failed)?;
    rebuilt_from_a_snapshot(&world, snapshots)?;
    rebuilt_as_asked(&world, snapshots)?;
    rolled_back_by_hand(&world, snapshots)?;
    by_an_operator(&world, snapshots)?;
    world.finish()
}

/// A peer that lost its disk dies again in the middle of what it is sent. It goes on there, where the file
/// system can, and else begins anew.
fn seeded_in_two_goes(world: &World, snapshots: &dyn Snapshots) -> Result<()> {
    let peer = world.in_role(Role::Async)?;
    let beside = |peer: &Peer| peer.data().with_file_name("noise");
    // Nothing makes it smaller, so that there is a middle.
    let mut noise = vec![0; 16 << 20];
    fs::File::open("/dev/urandom")?.read_exact(&mut noise)?;
    for source in world.shard.peers().iter().filter(|source| source.zone() != peer.zone()) {
        fs::write(beside(source), &noise)?;
    }
    lose_disk(peer, snapshots)?;
    peer.start_sitter()?;
    world.wait("a part of it to be there", |view| received(view, peer) > Some(4 << 20))?;
    peer.kill_host()?;
    let mark = fs::metadata(peer.log_file())?.len();
    peer.start_sitter()?;
    world.shard.wait_whole(limit())?;
    let log = fs::read_to_string(peer.log_file())?;
    let later = log.get(mark.try_into()?..).unwrap_or_default();
    ensure!(later.contains("a snapshot of the database came"), "it was seeded otherwise: {log}");
    let went_on = later.contains("going on where the last transfer broke off");
    ensure!(went_on == snapshots.capabilities().resume, "it went on: {went_on}; {log}");
    ensure!(fs::read(beside(peer))? == noise, "what came is not what was sent");
    Ok(())
}

/// Kills a peer's host and destroys its dataset.
fn lose_disk(peer: &Peer, snapshots: &dyn Snapshots) -> Result<()> {
    peer.kill_host()?;
    let name = DatasetName::new(peer.zone())?;
    block_on(async {
        snapshots.unmount(&name).await?;
        snapshots.destroy(&name).await
    })?;
    Ok(())
}

/// The bytes that have come, while a snapshot is coming in.
fn received(view: &ShardView, peer: &Peer) -> Option<u64> {
    let status = view.peer(peer.zone()).status.as_ref().ok()?;
    let copying = status.copying.as_ref()?;
    (copying.phase == "receiving").then_some(copying.bytes_done)
}

/// A backup of this peer is one of a snapshot, of which nothing is left, nor of one that was killed, and is
/// restored on another file system.
fn archived(world: &World, snapshots: &dyn Snapshots, role: Role) -> Result<()> {
    let peer = world.in_role(role)?;
    let dataset = DatasetName::new(peer.zone())?;
    block_on(async {
        let name = SnapshotName::now("backup")?;
        let clone = DatasetName::new(&format!("{dataset}.backup"))?;
        snapshots.snapshot(&dataset, &name).await?;
        snapshots.clone_snapshot(&dataset, &name, &clone).await?;
        anyhow::Ok(snapshots.mount(&clone, &peer.dataset().join(".store.backup")).await?)
    })?;
    files::restored(world, role, "snapshot")?;
    let left = block_on(snapshots.list(&dataset))?;
    ensure!(left.iter().all(|one| one.name.purpose() != Purpose::For("backup")), "{left:?}");
    let clones = block_on(snapshots.datasets())?;
    ensure!(clones.iter().all(|one| one.origin.is_none()), "no clone is left: {clones:?}");
    let beside = fs::read_dir(peer.dataset())?.flatten().map(|entry| entry.file_name());
    let beside: Vec<_> = beside.filter(|name| name == ".store.backup").collect();
    ensure!(beside.is_empty(), "nor where it was mounted");
    Ok(())
}

/// An operator makes a snapshot, holds it, and can destroy it only when nobody needs it any more.
fn by_an_operator(world: &World, snapshots: &dyn Snapshots) -> Result<()> {
    let peer = world.in_role(Role::Primary)?;
    let run = |arguments: &[&str]| -> Result<(bool, String)> {
        let mut program = Command::new(env!("CARGO_BIN_EXE_manatee"));
        program.args(["adm", "snapshot", "-c"]).arg(peer.config_file()).args(arguments);
        let output = program.output()?;
        let said = if output.status.success() { output.stdout } else { output.stderr };
        Ok((output.status.success(), String::from_utf8(said)?))
    };
    let done = |arguments: &[&str]| -> Result<String> {
        let (good, said) = run(arguments)?;
        ensure!(good, "{arguments:?}: {said}");
        Ok(said)
    };
    let refused = |arguments: &[&str], expected: &str| -> Result<()> {
        let (good, said) = run(arguments)?;
        ensure!(!good && said.contains(expected), "{arguments:?}: {said:?}, not {expected:?}");
        Ok(())
    };
    refused(&["create", "-p", "backup"], "is our own")?;
    let name = done(&["create", "--hold", "audit"])?;
    let name = name.trim_end();
    let list = || -> Result<serde_json::Value> {
        let all: Vec<serde_json::Value> = serde_json::from_str(&done(&["list", "-m", "--json"])?)?;
        Ok(all.into_iter().find(|one| one["name"] == name).unwrap_or_default())
    };
    let one = list()?;
    ensure!(one["purpose"] == "manual" && one["holds"][0] == "audit", "{one}");
    ensure!(one["referenced"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "measured: {one}");
    ensure!(done(&["list"])?.contains(name), "it is listed");
    done(&["hold", name])?;
    refused(&["destroy", name], "is held (")?;
    refused(&["release", name, "-t", "x"], "is not held under the tag x")?;
    ensure!(done(&["release", name])?.contains("is held (audit)"), "one hold is left");
    let told: serde_json::Value =
        serde_json::from_str(&done(&["release", name, "-t", "audit", "--json"])?)?;
    ensure!(told == serde_json::json!({ "name": name, "holds": [] }), "{told}");
    let (dataset, clone) = (DatasetName::new(peer.zone())?, DatasetName::new("clone")?);
    block_on(snapshots.clone_snapshot(&dataset, &SnapshotName::new(name)?, &clone))?;
    refused(&["destroy", name], "cloned from")?;
    ensure!(list()?["clones"][0] == "clone", "{}", list()?);
    block_on(snapshots.destroy(&clone))?;
    refused(&["destroy", name, "1-x"], "has no snapshot 1-x")?;
    ensure!(list()? != serde_json::Value::Null, "all or nothing, as far as that is known before");
    done(&["destroy", name])?;
    ensure!(list()? == serde_json::Value::Null, "it is gone");
    Ok(())
}

/// A host dies with the primary's database damaged, so that nothing can be rewound: the difference to the
/// snapshot that both have is fetched, or all of one, and the damaged one is kept as a dataset.
fn rebuilt_from_a_snapshot(world: &World, snapshots: &dyn Snapshots) -> Result<()> {
    let old = world.lose_primary()?;
    let wal = old.data().join("pg_wal");
    for entry in fs::read_dir(&wal)? {
        let path = entry?.path();
        if path.is_file() {
            fs::remove_file(path)?;
        }
    }
    old.start_sitter()?;
    world.wait_back(old)?;
    world.shard.wait_whole(limit())?;
    let log = fs::read_to_string(old.log_file())?;
    let last = log.rsplit("cannot be rewound").next().unwrap_or_default();
    ensure!(last.contains("a snapshot of the database came"), "{} was not: {log}", old.zone());
    kept_once(snapshots, old)
}

/// Of what was replaced, the newest is kept, as a dataset of its own.
fn kept_once(snapshots: &dyn Snapshots, peer: &Peer) -> Result<()> {
    let found = block_on(snapshots.datasets())?;
    let aside = format!("{}.{KEPT}-", peer.zone());
    let kept = found.iter().filter(|one| one.name.as_str().starts_with(&aside)).count();
    ensure!(kept == 1, "what it had is kept once: {found:?}");
    Ok(())
}

/// An async is rebuilt from a whole snapshot of its upstream, and then from what has changed since that:
/// it goes back to the snapshot that both have, and takes the difference. What another try, which broke
/// off, had begun there is in nobody's way.
fn rebuilt_as_asked(world: &World, snapshots: &dyn Snapshots) -> Result<()> {
    let peer = world.in_role(Role::Async)?;
    let mark = peer.data().join("only-before");
    for (more, incremental) in [(&["--full"][..], false), (&[], true), (&[], true)] {
        if incremental {
            let dataset = DatasetName::new(peer.zone())?;
            let list = block_on(snapshots.list(&dataset))?;
            let newest = &list.last().context("a snapshot")?.name;
            let incoming = DatasetName::new(&format!("{dataset}.incoming"))?;
            block_on(snapshots.branch(&dataset, newest, &incoming))?;
        }
        fs::write(&mark, "")?;
        rebuilt(peer, more)?;
        ensure!(!mark.exists(), "the database is another one");
        let log = fs::read_to_string(peer.log_file())?;
        let came = log.lines().rfind(|line| line.contains("a snapshot of the database came"));
        let expected = format!("incremental={incremental}");
        ensure!(came.is_some_and(|line| line.contains(&expected)), "not {expected}: {log}");
        kept_once(snapshots, peer)?;
    }
    world.shard.wait_whole(limit())?;
    Ok(())
}

/// The dataset of an async goes back to a snapshot by hand, while nothing runs on it. That it has had more
/// already is nothing that it could find out; it gets the rest again.
fn rolled_back_by_hand(world: &World, snapshots: &dyn Snapshots) -> Result<()> {
    let peer = world.in_role(Role::Async)?;
    let (dataset, name) = (DatasetName::new(peer.zone())?, SnapshotName::now("by-hand")?);
    block_on(snapshots.snapshot(&dataset, &name))?;
    world.wait_for_writes()?;
    peer.kill_host()?;
    block_on(async {
        snapshots.unmount(&dataset).await?;
        snapshots.rollback(&dataset, &name).await
    })?;
    peer.start_sitter()?;
    world.wait("it to follow again", |view| {
        let view = view.peer(peer.zone());
        view.role() == Some(Role::Async) && view.postgres() == "streaming"
    })?;
    world.shard.wait_whole(limit())?;
    Ok(())
}

/// A shard whose backup services speak TLS: peers are seeded, and rebuilt when an operator asks, by those
/// who show a certificate of its authority, and by nobody else.
#[test]
fn peers_show_their_certificates() {
    alone("volumes::peers_show_their_certificates", |place| {
        let file = BtrfsFile::new(place, 4096);
        let parent = file.parent("manatee");
        let snapshots = Btrfs::open(&parent)?;
        let (ours, theirs) = (
            backup_certificates::make(place, "ours")?,
            backup_certificates::make(place, "theirs")?,
        );
        let tls = format!(
            "[tls]\nca_file = {:?}\ncertificate_file = {:?}\nkey_file = {:?}",
            ours.authority, ours.certificate, ours.key
        );
        let world = World::start_as(&tls, |options| options.volumes = Volumes::Btrfs(parent))?;
        let peer = world.in_role(Role::Async)?;
        let came = "a snapshot of the database came";
        ensure!(fs::read_to_string(peer.log_file())?.contains(came), "it was seeded otherwise");
        rebuilt(peer, &["--full"])?;
        let log = fs::read_to_string(peer.log_file())?;
        ensure!(log.matches(came).count() == 2, "it was rebuilt otherwise: {log}");
        let config = Config::load(&peer.config_file())?;
        let address = config.backup_address().to_string();
        for (tls, good) in [(Some(&ours), true), (Some(&theirs), false), (None, false)] {
            let offer = block_on(Remote::new(&address, config.secret(), tls)?.offer());
            ensure!(offer.is_ok() == good, "{offer:?}");
        }

        // It loses its disk in the middle of a transfer, and comes back with a certificate of another
        // authority: a base backup is all that it can have, and nothing is left of what had come.
        lose_disk(peer, &snapshots)?;
        let incoming = DatasetName::new(&format!("{}.incoming", peer.zone()))?;
        block_on(snapshots.create(&incoming))?;
        let written = fs::read_to_string(peer.config_file())?;
        let here = place.display();
        let stranger = written.replace(&format!("{here}/ours-"), &format!("{here}/theirs-"));
        ensure!(stranger != written, "no certificates in {written}");
        fs::write(peer.config_file(), stranger)?;
        peer.start_sitter()?;
        world.shard.wait_whole(limit())?;
        let log = fs::read_to_string(peer.log_file())?;
        ensure!(log.matches(came).count() == 2, "a stranger was given a snapshot: {log}");
        ensure!(log.contains("no snapshot from this peer"), "it did not ask: {log}");
        let known = block_on(snapshots.datasets())?;
        ensure!(known.iter().all(|one| one.name != incoming), "it is still there: {known:?}");
        world.finish()
    });
}

/// How often something is killed while one peer is seeded; `make test-kills` does it more often.
const KILLS: u64 = 8;
/// Of some 75 bytes each.
const ROWS: u64 = 1_400_000;

/// A peer that lost its disk is seeded with 100 MiB, and again and again either end of the transfer is
/// killed somewhere in the middle. It never starts what is not complete, and follows in the end.
#[test]
fn a_seeding_outlives_both_of_its_ends() {
    alone("volumes::a_seeding_outlives_both_of_its_ends", |place| {
        let file = BtrfsFile::new(place, 6144);
        let parent = file.parent("manatee");
        let snapshots = Btrfs::open(&parent)?;
        let overrides = "[backup]\nrate_mib = 60";
        let world = World::start_as(overrides, |options| options.volumes = Volumes::Btrfs(parent))?;
        let primary = world.in_role(Role::Primary)?;
        primary.psql("create table noise (a uuid, b uuid, c uuid)")?;
        let noise = "insert into noise select gen_random_uuid(), gen_random_uuid(), gen_random_uuid() \
            from generate_series(1, 100000)";
        for _ in 0..ROWS / 100_000 {
            primary.psql(noise)?;
        }
        let (peer, source) = (world.in_role(Role::Async)?, world.in_role(Role::Sync)?);
        lose_disk(peer, &snapshots)?;
        let kills =
            std::env::var("MANATEE_TEST_KILLS").ok().map(|text| text.parse()).transpose()?;
        let (mut state, mut middle) = (0x9E37_79B9_7F4A_7C15_u64, 0);
        peer.start_sitter()?;
        for turn in 0..kills.unwrap_or(KILLS) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let bytes = state % (100 << 20);
            world.wait("the transfer to be that far, or over", |view| {
                let there = received(view, peer).is_some_and(|done| done >= bytes);
                there || view.peer(peer.zone()).postgres() == "streaming"
            })?;
            middle += u64::from(received(&world.shard.view(), peer).is_some());
            if turn % 2 == 0 {
                peer.kill_host()?;
                peer.start_sitter()?;
            } else {
                source.kill_sitter()?;
                source.start_sitter()?;
            }
        }
        println!("{middle} kills came in the middle of a transfer");
        ensure!(middle > 0, "no kill came in the middle of a transfer");
        world.shard.wait_whole(limit())?;
        let rows = peer.psql("select count(*)::text from noise")?;
        ensure!(rows[0][0] == Some(ROWS.to_string()), "{rows:?}");
        world.finish()
    });
}
