//! A donor on a file system with snapshots is moved by them.

use super::{
    filesystems::isolated,
    ground::Ground,
    harness::{Move, wait},
    ssh::Sshd,
    verify::find_damage,
};
use adapters::exec::Exec;
use anyhow::{Context, Result, ensure};
use manatee::shard::{DONOR, Volumes};
use saga::Mode;
use std::{fs, path::Path, process::Command};

/// Size of the file systems, in MiB.
const SIZE: u64 = 4096;

fn alone(test: &str, body: impl FnOnce(&Path) -> Result<()>) {
    isolated(test, |place| body(place).expect(test));
}

fn prepare(ground: &Ground) -> Result<Move> {
    let moved = Move::on(ground, |_| {})?;
    moved.ask_for_snapshots(ground)?;
    Ok(moved)
}

/// What is left of ours on the donor's file system: files beside it on btrfs, snapshots on ZFS.
fn left(moved: &Move, ground: &Ground) -> Result<Vec<String>> {
    if let Some(pool) = ground.pool() {
        let list = Exec::new("zfs").args(["list", "-H", "-o", "name", "-t", "snapshot", "-r"]);
        let list = list.arg(format!("{pool}/donor")).run_briefly()?;
        return Ok(String::from_utf8_lossy(&list).lines().map(str::to_owned).collect());
    }
    let data = moved.stage.data();
    let beside = ground.beside(data.parent().context("a directory above it")?);
    let names =
        fs::read_dir(beside)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let names = names.collect::<Result<Vec<_>, std::io::Error>>()?;
    Ok(names.into_iter().filter(|name| name.ends_with(".manatee")).collect())
}

/// To the end, and for good; the shard is what the donor was, and what the donor had is not touched
/// (rules K2, K4 and K5).
fn for_good(ground: &Ground) -> Result<()> {
    let moved = prepare(ground)?;
    let begun = adapters::clock::now();
    let told = moved.stage.transplant(&["run", "--yes"])?;
    ensure!(told.contains("send the last that has changed"), "{told}");
    moved.wait_for_writes_to("amber")?;
    println!("cut-over: {} ms", moved.writer.longest_gap_since(begun).length().0);
    for peer in moved.stage.peers() {
        moved.check_peer(peer)?;
    }
    moved.stage.transplant(&["verify"])?;
    ensure!(!left(&moved, ground)?.is_empty(), "the donor's snapshots are kept until the commit");
    moved.stage.transplant(&["commit", "--yes"])?;
    ensure!(left(&moved, ground)?.is_empty(), "{:?}", left(&moved, ground)?);
    ensure!(moved.stage.data().join("PG_VERSION").exists(), "the donor is still there");
    moved.primary().kill_host()?;
    moved.wait_for_writes_to("birch")?;
    moved.check_peer(&moved.stage.peers()[1])
}

/// Whoever moves it is killed again and again, both ways.
fn through_kills(ground: &Ground) -> Result<()> {
    let moved = prepare(ground)?;
    let backups = moved.ask_for_backup(&["select count(*) from pg_roles"])?;
    moved.ask_to_verify()?;
    let kills = moved.run_through_kills(&["run", "--yes"])?;
    moved.wait_for_writes_to("amber")?;
    moved.check_peer(moved.primary())?;
    let back = moved.run_through_kills(&["rollback"])?;
    ensure!(moved.read_journal()?.mode() == Mode::RolledBack, "it was undone");
    moved.wait_for_writes_to("donor")?;
    println!("{kills} kills forward, {back} back");
    // Where a step takes no time, its end and the beginning of the next one come before the kill.
    ensure!(kills > 10 && back > 8, "{kills} kills forward, {back} back");
    ensure!(left(&moved, ground)?.is_empty(), "{:?}", left(&moved, ground)?);
    ensure!(fs::read_dir(backups)?.count() == 1, "one backup, and nothing beside it");
    moved.check_donor()
}

/// Undone, nothing is left of it on the donor's side, and it can be begun again.
fn back_and_again(ground: &Ground) -> Result<()> {
    let moved = prepare(ground)?;
    moved.ask_to_verify()?;
    for until in
        ["receive", "amcheck", "fence-donor", "receive-last", "compare-answers", "open-recipient"]
    {
        moved.stage.transplant(&["run", "--yes", "--until", until])?;
        if until == "open-recipient" {
            moved.wait_for_writes_to("amber")?;
        }
        let told = moved.stage.transplant(&["rollback"])?;
        ensure!(told.contains("everything is undone"), "{until}: {told}");
        moved.wait_for_writes_to("donor")?;
        ensure!(left(&moved, ground)?.is_empty(), "{until}: {:?}", left(&moved, ground)?);
    }
    moved.check_donor()
}

#[test]
fn a_server_on_btrfs_moves_for_good() {
    alone("snapshots::a_server_on_btrfs_moves_for_good", |place| {
        for_good(&Ground::btrfs(place, SIZE)?)
    });
}

#[test]
#[ignore = "takes a while: make test-transplant"]
fn a_server_on_zfs_moves_for_good() {
    alone("snapshots::a_server_on_zfs_moves_for_good", |place| {
        for_good(&Ground::zfs(place, SIZE)?)
    });
}

#[test]
#[ignore = "takes a while: make test-transplant"]
fn a_runner_on_btrfs_ends_anywhere() {
    alone("snapshots::a_runner_on_btrfs_ends_anywhere", |place| {
        through_kills(&Ground::btrfs(place, SIZE)?)
    });
}

#[test]
#[ignore = "takes minutes: make test-transplant"]
fn a_runner_on_zfs_ends_anywhere() {
    alone("snapshots::a_runner_on_zfs_ends_anywhere", |place| {
        through_kills(&Ground::zfs(place, SIZE)?)
    });
}

/// What has come is looked at in a clone, and of that nothing stays.
#[test]
#[ignore = "takes a while: make test-transplant"]
fn damage_in_a_snapshot_is_found() {
    alone("snapshots::damage_in_a_snapshot_is_found", |place| {
        let ground = Ground::btrfs(place, SIZE)?;
        let moved = prepare(&ground)?;
        find_damage(&moved, || {
            let dataset = moved.primary().data().with_file_name("");
            let beside = dataset.parent().context("a directory above it")?;
            for entry in fs::read_dir(beside)? {
                let name = entry?.file_name();
                ensure!(!name.to_string_lossy().contains("looked-at"), "{name:?} is left");
            }
            Ok(())
        })
    });
}

/// A shard of ours, whose sitters make snapshots as well: for good, and the donor's own ones are not touched
/// (rule K5).
#[test]
#[ignore = "takes a while: make test-transplant"]
fn a_shard_moves_by_snapshots() {
    alone("snapshots::a_shard_moves_by_snapshots", |place| {
        let ground = Ground::btrfs(place, SIZE)?;
        let moved = Move::of_ours_on(&ground)?;
        moved.stage.donor().snapshot(&["create"])?;
        let own = || -> Result<Vec<String>> {
            let list = moved.stage.donor().snapshot(&["list"])?;
            let names = list.lines().filter_map(|line| line.split_whitespace().next());
            Ok(names.filter(|name| name.contains("manual")).map(str::to_owned).collect())
        };
        let before = own()?;
        ensure!(before.len() == 1, "{before:?}");
        let begun = adapters::clock::now();
        let told = moved.stage.transplant(&["run", "--yes"])?;
        ensure!(told.contains("send the last that has changed"), "{told}");
        moved.wait_for_writes_to("amber")?;
        println!("cut-over: {} ms", moved.writer.longest_gap_since(begun).length().0);
        for peer in moved.stage.peers() {
            moved.check_peer(peer)?;
        }
        let told = moved.stage.transplant(&["rollback"])?;
        ensure!(told.contains("everything is undone"), "{told}");
        moved.wait_for_writes_to(DONOR)?;
        moved.check_ours()?;
        ensure!(own()? == before, "{:?}, not {before:?}", own()?);
        Ok(())
    });
}

/// As most of the original's shards are: of its first version, on ZFS.
#[test]
#[ignore = "takes minutes: make test-transplant"]
fn a_shard_of_the_first_version_moves_by_snapshots() {
    alone("snapshots::a_shard_of_the_first_version_moves_by_snapshots", |place| {
        let ground = Ground::zfs(place, SIZE)?;
        let moved = Move::of_first_version_on(&ground)?;
        for until in ["compare", "level-donor"] {
            let told = moved.stage.transplant(&["run", "--yes", "--until", until])?;
            ensure!(told.contains("send the last that has changed"), "{told}");
            if until == "level-donor" {
                moved.wait_for_writes_to("amber")?;
            }
            let told = moved.stage.transplant(&["rollback"])?;
            ensure!(told.contains("everything is undone"), "{until}: {told}");
            moved.wait_for_writes_to(DONOR)?;
            moved.check_first_version().context(until)?;
        }
        moved.stage.transplant(&["run", "--yes"])?;
        moved.wait_for_writes_to("amber")?;
        moved.stage.transplant(&["commit", "--yes"])?;
        for peer in moved.stage.peers() {
            moved.check_peer(peer)?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "takes a while: make test-transplant"]
fn on_btrfs_it_is_undone_and_begun_again() {
    alone("snapshots::on_btrfs_it_is_undone_and_begun_again", |place| {
        back_and_again(&Ground::flat_btrfs(place, SIZE)?)
    });
}

/// As a person does it who types what the runbook says.
fn by_hand(moved: &Move, ground: &Ground) -> Result<()> {
    let backups = moved.ask_for_backup(&["select count(*) from pg_roles"])?;
    moved.ask_to_verify()?;
    for until in ["receive-last", "end"] {
        moved.type_there_and_back(until)?;
        ensure!(left(moved, ground)?.is_empty(), "{until}: {:?}", left(moved, ground)?);
    }
    ensure!(fs::read_dir(backups)?.count() == 2, "one backup of each, and nothing beside them");
    moved.check_donor()
}

#[test]
#[ignore = "takes a while: make test-transplant"]
fn a_runbook_on_btrfs() {
    alone("snapshots::a_runbook_on_btrfs", |place| {
        let ground = Ground::btrfs(place, SIZE)?;
        by_hand(&prepare(&ground)?, &ground)
    });
}

#[test]
#[ignore = "takes minutes: make test-transplant"]
fn a_runbook_on_zfs() {
    alone("snapshots::a_runbook_on_zfs", |place| {
        let ground = Ground::zfs(place, SIZE)?;
        by_hand(&prepare(&ground)?, &ground)
    });
}

/// Killed in the middle of a snapshot, nothing of it counts; it is sent again (rule K3).
#[test]
#[ignore = "takes a while: make test-transplant"]
fn a_stream_that_is_cut_off_is_begun_again() {
    alone("snapshots::a_stream_that_is_cut_off_is_begun_again", |place| {
        let ground = Ground::btrfs(place, SIZE)?;
        let moved = prepare(&ground)?;
        let inventory = moved.stage.inventory();
        let text = fs::read_to_string(&inventory)?;
        fs::write(&inventory, format!("{text}\n[limits]\nrate_mib = 8\n"))?;
        let Volumes::Btrfs(parent) = &ground.volumes else { anyhow::bail!("no btrfs") };
        for _ in 0..2 {
            let mut runner = moved.spawn(&["run", "--yes"])?;
            wait("some of it to come", || {
                let mut du = Command::new("du");
                let size = du.arg("-sm").arg(parent.join(".new-amber.incoming")).output();
                let size = size.map_err(|error| error.to_string())?;
                let text = String::from_utf8_lossy(&size.stdout).into_owned();
                let size = text.split_whitespace().next().and_then(|size| size.parse::<u64>().ok());
                if size.is_some_and(|size| size > 5) { Ok(()) } else { Err(text) }
            })?;
            runner.kill()?;
            runner.wait()?;
            ensure!(!parent.join("amber.incoming").exists(), "it was all there already");
        }
        moved.stage.transplant(&["run", "--yes", "--until", "keep-way-back"])?;
        moved.wait_for_writes_to("amber")?;
        moved.check_peer(moved.primary())?;
        moved.stage.transplant(&["rollback"])?;
        moved.wait_for_writes_to("donor")?;
        moved.check_donor()
    });
}

/// Asks for the donor and the first peer to be reached by ssh.
fn reach_by_ssh(moved: &Move) -> Result<()> {
    let inventory = moved.stage.inventory();
    let mut table: toml::Table = toml::from_str(&fs::read_to_string(&inventory)?)?;
    let host = || ("host".to_owned(), toml::Value::from("ssh:root@host-here"));
    table["donor"].as_table_mut().context("a donor")?.extend([host()]);
    let peers = table["recipient"].as_array_mut().context("peers")?;
    peers[0].as_table_mut().context("a peer")?.extend([host()]);
    Ok(fs::write(&inventory, toml::to_string(&table)?)?)
}

#[test]
#[ignore = "takes minutes, and an sshd: make test-transplant"]
fn a_runbook_by_ssh() {
    alone("snapshots::a_runbook_by_ssh", |place| {
        let _server = Sshd::start(place)?;
        let ground = Ground::btrfs(place, SIZE)?;
        let moved = prepare(&ground)?;
        reach_by_ssh(&moved)?;
        by_hand(&moved, &ground)
    });
}

/// The donor and the first peer are reached by ssh: the streams come through it as they are.
#[test]
#[ignore = "takes minutes, and an sshd: make test-transplant"]
fn hosts_are_reached_by_ssh() {
    alone("snapshots::hosts_are_reached_by_ssh", |place| {
        let _server = Sshd::start(place)?;
        let ground = Ground::btrfs(place, SIZE)?;
        let moved = prepare(&ground)?;
        reach_by_ssh(&moved)?;
        moved.ask_for_backup(&["select 'it''s', 7"])?;
        moved.stage.transplant(&["run", "--yes", "--until", "keep-way-back"])?;
        moved.wait_for_writes_to("amber")?;
        moved.check_peer(moved.primary())?;
        moved.stage.transplant(&["rollback"])?;
        moved.wait_for_writes_to("donor")?;
        moved.check_donor()
    });
}

/// Killed while the snapshot is read for the backup, nothing of that is in the way of the rollback.
#[test]
#[ignore = "takes a while: make test-transplant"]
fn a_backup_that_is_cut_off_is_cleared_away() {
    alone("snapshots::a_backup_that_is_cut_off_is_cleared_away", |place| {
        let ground = Ground::btrfs(place, SIZE)?;
        let moved = prepare(&ground)?;
        let backups = moved.ask_for_backup(&["select pg_sleep(1)"])?;
        let noise =
            "create table noise as select gen_random_uuid() a from generate_series(1, 1000000)";
        moved.stage.donor_sql(noise)?;
        let Volumes::Btrfs(parent) = &ground.volumes else { anyhow::bail!("no btrfs") };
        let mut runner = moved.spawn(&["run", "--yes"])?;
        wait("the snapshot to be read", || {
            if parent.join("amber.backup").exists() { Ok(()) } else { Err(String::new()) }
        })?;
        runner.kill()?;
        runner.wait()?;
        let told = moved.stage.transplant(&["rollback"])?;
        ensure!(told.contains("everything is undone"), "{told}");
        ensure!(!parent.join("amber.incoming").exists(), "what came is still there");
        ensure!(!parent.join("amber.backup").exists(), "what was read is still there");
        ensure!(fs::read_dir(&backups)?.count() == 0, "what was not proven is still there");
        moved.check_donor()
    });
}

#[test]
fn what_cannot_go_by_snapshots_is_told_of_before() {
    alone("snapshots::what_cannot_go_by_snapshots_is_told_of_before", |place| {
        let ground = Ground::btrfs(place, SIZE)?;
        let moved = Move::on(&ground, |options| options.volumes = Volumes::None)?;
        moved.ask_for_snapshots(&ground)?;
        let told = moved.stage.transplant(&["run"]).unwrap_err().to_string();
        ensure!(told.contains("its storage is dir, the donor's dataset btrfs"), "{told}");
        // As where the WAL has a disk of its own.
        moved.stage.donor_service("stop")?;
        let data = moved.stage.data();
        let (wal, elsewhere) = (data.join("pg_wal"), data.with_file_name("wal"));
        fs::rename(&wal, &elsewhere)?;
        std::os::unix::fs::symlink(&elsewhere, &wal)?;
        moved.stage.donor_service("start")?;
        let told = moved.stage.transplant(&["run"]).unwrap_err().to_string();
        ensure!(told.contains("pg_wal is a link"), "{told}");
        ensure!(!moved.journal().exists(), "nothing was begun");
        Ok(())
    });
}
