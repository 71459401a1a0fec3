//! A database that went its own way comes back to the present primary's, by copying what differs.

mod support;

use adapters::postgres::{Divergence, PgCause, Refusal, StopMode};
use cluster::{Counts, Gate, Generation, Lsn, PgConfig};
use support::{Peer, chain, ids, primary, standby};

/// A primary that waits for nobody, and a standby that follows it.
async fn pair() -> (Peer, Peer) {
    let new = Peer::new("new");
    let old = Peer::new("old").primary(Counts::Alone, &[&new]).await;
    let new = new.standby_of(&old).await;
    (old, new)
}

/// Two peers that both wrote after they parted: the second was promoted, the first went on.
async fn parted() -> (Peer, Peer) {
    let (old, new) = pair().await;
    let session = old.session().await;
    let sql = "create table t (n int primary key); insert into t select generate_series(1, 1000)";
    session.batch_execute(sql).await.expect("rows");
    let end = old.value("select pg_current_wal_flush_lsn()::text").await;
    new.wait(&format!("pg_last_wal_replay_lsn() >= '{end}'")).await;
    new.apply(&promoted(&[])).await;
    new.session().await.batch_execute("insert into t values (2001)").await.expect("a row");
    session.batch_execute("insert into t values (3001)").await.expect("a row that is lost");
    (old, new)
}

/// A primary of generation 2, so that it is promoted to timeline 2.
fn promoted(downstream: &[&Peer]) -> PgConfig {
    let (generation, counts) = (Generation(2), Counts::Alone);
    let (timeline, init_wal) = (None, Lsn::ZERO);
    let (gate, downstream) = (Gate::Open, ids(downstream));
    PgConfig::Primary { generation, timeline, init_wal, counts, gate, downstream }
}

async fn follows(old: &Peer, new: &Peer) {
    new.apply(&promoted(&[old])).await;
    old.apply(&standby(Some(new), &[])).await;
    new.session().await.batch_execute("insert into t values (2002)").await.expect("a row");
    old.wait("(select count(*) from t where n in (2001, 2002)) = 2").await;
    assert_eq!(old.value("select count(*)::text from t").await, "1002");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_diverged_primary_becomes_a_standby_again() {
    let (old, new) = parted().await;
    old.postgres.stop(StopMode::Fast).await.expect("a stop");
    let is_ancestor = old.postgres.follow_if_ancestor(&new.source()).await;
    assert!(!is_ancestor.expect("a comparison"), "it wrote what the other has not");
    let mut told = Vec::new();
    let rewound = old.postgres.rewind(&new.source(), |done, total| told.push((done, total))).await;
    rewound.expect("a rewind");
    let (done, total) = *told.last().expect("some progress");
    assert!(done == total && total > 0, "{told:?}");
    follows(&old, &new).await;
}

/// The one that was fenced or lost its power: its WAL ends in the middle.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_crashed_becomes_a_standby_again() {
    let (old, new) = parted().await;
    old.postgres.stop(StopMode::Immediate).await.expect("a stop");
    old.postgres.follow_if_ancestor(&new.source()).await.expect_err("where it ends is not known");
    old.postgres.rewind(&new.source(), |_, _| {}).await.expect("a rewind");
    follows(&old, &new).await;
}

/// Much WAL lies between its last checkpoint and where the two parted: more than its recovery would keep.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_crashed_long_after_a_checkpoint_becomes_a_standby_again() {
    let (old, new) = pair().await;
    let session = old.session().await;
    let sql = "create table t (n int primary key); insert into t select generate_series(1, 1000)";
    session.batch_execute(sql).await.expect("rows");
    session.batch_execute("checkpoint").await.expect("a checkpoint");
    for n in 1..10 {
        let sql = format!("insert into t values ({n}); delete from t where n = {n}", n = 4000 + n);
        session.batch_execute(&sql).await.expect("a row");
        session.batch_execute("select pg_switch_wal()").await.expect("another file");
    }
    let end = old.value("select pg_current_wal_flush_lsn()::text").await;
    new.wait(&format!("pg_last_wal_replay_lsn() >= '{end}'")).await;
    new.apply(&promoted(&[])).await;
    new.session().await.batch_execute("insert into t values (2001)").await.expect("a row");
    session.batch_execute("insert into t values (3001)").await.expect("a row that is lost");
    old.wait("not exists (select from pg_replication_slots where active)").await;
    let sql = "select pg_drop_replication_slot(slot_name) from pg_replication_slots";
    session.batch_execute(sql).await.expect("nothing else keeps WAL");
    old.postgres.stop(StopMode::Immediate).await.expect("a stop");
    old.postgres.rewind(&new.source(), |_, _| {}).await.expect("a rewind");
    if adapters::postgres::programs(None).expect("programs").1 == 13 {
        // It asks for the WAL of the old timeline on the new one, where it never was.
        new.apply(&promoted(&[&old])).await;
        let refused = old.postgres.apply(&standby(Some(&new), &[])).await.expect_err("13 cannot");
        assert!(matches!(refused.cause, PgCause::CannotRecover { .. }), "{}", chain(&refused));
        return;
    }
    follows(&old, &new).await;
}

/// The source has let go of the WAL since the last checkpoint that both have: the database that was rewound
/// never becomes whole, and this is said rather than waited for.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_never_becomes_whole_is_told_so() {
    let new = Peer::with("new", |settings| settings.wal_keep_size = 0);
    let keeper = Peer::new("keeper");
    let old = Peer::new("old").primary(Counts::Alone, &[&new, &keeper]).await;
    let (new, keeper) = (new.standby_of(&old).await, keeper.standby_of(&old).await);
    let session = old.session().await;
    session.batch_execute("create table t (n int)").await.expect("a table");
    let end = old.value("select pg_current_wal_flush_lsn()::text").await;
    for peer in [&new, &keeper] {
        peer.wait(&format!("pg_last_wal_replay_lsn() >= '{end}'")).await;
        peer.apply(&standby(None, &[])).await;
    }
    new.apply(&promoted(&[&keeper])).await;
    keeper.apply(&standby(Some(&new), &[])).await;
    session.batch_execute("insert into t values (3001)").await.expect("a row that is lost");
    let theirs = new.session().await;
    for _ in 0..3 {
        for sql in ["insert into t values (2001)", "select pg_switch_wal()", "checkpoint"] {
            theirs.batch_execute(sql).await.expect(sql);
        }
    }
    keeper.wait("(select count(*) from t where n = 2001) = 3").await;
    new.wait("(select pg_current_wal_lsn() - restart_lsn < 1 << 24 from pg_replication_slots)")
        .await;
    theirs.batch_execute("checkpoint").await.expect("the last that the slot held is gone");
    old.postgres.stop(StopMode::Fast).await.expect("a stop");
    old.postgres.rewind(&new.source(), |_, _| {}).await.expect("a rewind");
    new.apply(&promoted(&[&old])).await;
    let refused = old.postgres.apply(&standby(Some(&new), &[])).await.expect_err("never whole");
    let PgCause::CannotRecover { refusal, .. } = refused.cause else {
        panic!("{}", chain(&refused))
    };
    assert!(matches!(refusal, Refusal::Removed(_)), "{refusal:?}");
    let judge = async |upstream: &Peer| {
        old.postgres.divergence_at_rest(refusal, "127.0.0.1", upstream.settings.port).await
    };
    let judged = judge(&new).await.expect("an answer");
    assert!(matches!(judged, Divergence::CannotFollow(_)), "{judged:?}");
    // This one has it.
    assert_eq!(judge(&keeper).await.expect("an answer"), Divergence::None);
    // The next try finds it running, and says the same.
    let refused = old.postgres.apply(&standby(Some(&new), &[])).await.expect_err("never whole");
    assert!(matches!(refused.cause, PgCause::CannotRecover { .. }), "{}", chain(&refused));
    // Nothing is concluded of one that cannot be asked; nor of one that was not asked yet: this one has it.
    new.postgres.stop(StopMode::Fast).await.expect("a stop");
    judge(&new).await.expect_err("nobody is there");
    keeper.apply(&standby(None, &[&old])).await;
    old.apply(&standby(Some(&keeper), &[])).await;
    old.wait("(select count(*) from t where n = 2001) = 3").await;
    assert_eq!(old.value("select count(*)::text from t").await, "3");
}

/// What it was rewound to was superseded in its turn, by one that left before the position that it must come to.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_must_come_to_what_its_upstream_never_had_is_told_so() {
    let (old, new) = parted().await;
    let third = Peer::new("third");
    new.apply(&promoted(&[&third])).await;
    let third = third.standby_of(&new).await;
    third.apply(&standby(None, &[])).await;
    let theirs = new.session().await;
    for sql in
        ["insert into t values (2002)", "select pg_switch_wal()", "insert into t values (2003)"]
    {
        theirs.batch_execute(sql).await.expect(sql);
    }
    let last = new.value("select pg_walfile_name(pg_current_wal_insert_lsn())").await;
    old.postgres.stop(StopMode::Fast).await.expect("a stop");
    old.postgres.rewind(&new.source(), |_, _| {}).await.expect("a rewind");
    // As if it had been written while the rest was copied.
    std::fs::remove_file(old.postgres.data().join("pg_wal").join(&last)).expect("the last file");
    let (generation, counts) = (Generation(3), Counts::Alone);
    let downstream = ids(&[&old]);
    let (timeline, init_wal, gate) = (Some(3), Lsn::ZERO, Gate::Open);
    let third_promoted =
        PgConfig::Primary { generation, timeline, init_wal, counts, gate, downstream };
    third.apply(&third_promoted).await;

    let refused = old.postgres.apply(&standby(Some(&third), &[])).await.expect_err("never whole");
    let PgCause::CannotRecover { refusal, .. } = refused.cause else {
        panic!("{}", chain(&refused))
    };
    assert_eq!(refusal, Refusal::History);
    let judge = async |upstream: &Peer| {
        let port = upstream.settings.port;
        let judged = old.postgres.divergence_at_rest(refusal, "127.0.0.1", port).await;
        judged.expect("an answer")
    };
    let judged = judge(&third).await;
    assert!(
        matches!(&judged, Divergence::CannotFollow(why) if why.contains("left timeline 2")),
        "{judged:?}"
    );
    // The log says the same whoever is asked; this one has what is needed.
    assert_eq!(judge(&new).await, Divergence::None);
    new.apply(&promoted(&[&old])).await;
    old.apply(&standby(Some(&new), &[])).await;
    old.wait("(select count(*) from t where n in (2001, 2002, 2003)) = 3").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_did_not_diverge_only_follows() {
    let (old, new) = pair().await;
    old.session().await.batch_execute("create table t (n int)").await.expect("a table");
    let sql = "insert into t select generate_series(1, 1000)";
    old.session().await.batch_execute(sql).await.expect("rows");
    new.wait("exists (select from pg_stat_wal_receiver where status = 'streaming')").await;
    // An orderly stop sends the last WAL to the standby.
    old.postgres.stop(StopMode::Fast).await.expect("a stop");
    new.apply(&promoted(&[])).await;
    new.session().await.batch_execute("insert into t values (2001)").await.expect("a row");
    let is_ancestor = old.postgres.follow_if_ancestor(&new.source()).await;
    assert!(is_ancestor.expect("a comparison"), "all that it has, the other has");
    follows(&old, &new).await;
}

/// Whoever was superseded may hear of it before the other has been promoted.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_being_promoted_is_waited_for() {
    let (old, new) = pair().await;
    old.session().await.batch_execute("create table t (n int)").await.expect("a table");
    new.wait("exists (select from pg_stat_wal_receiver where status = 'streaming')").await;
    old.postgres.stop(StopMode::Fast).await.expect("a stop");
    new.apply(&standby(None, &[])).await;
    let source = new.source();
    let promotion = async {
        // Asked once, in vain.
        let asked =
            "exists (select from pg_stat_activity where application_name = 'manatee rewind')";
        new.wait(asked).await;
        new.wait(&format!("not {asked}")).await;
        new.apply(&promoted(&[])).await;
    };
    let (is_ancestor, ()) = tokio::join!(old.postgres.follow_if_ancestor(&source), promotion);
    assert!(is_ancestor.expect("a comparison"), "all that it has, the other has");
}

/// A standby received what the new primary never had, and did not replay it. Its control file looks like
/// that of one which did not diverge: `pg_rewind` itself sees nothing wrong.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_received_a_diverged_tail_is_refused() {
    let (old, new) = pair().await;
    old.session().await.batch_execute("create table t (n int)").await.expect("a table");
    let third = Peer::new("third");
    old.apply(&primary(Counts::Alone, &[&new, &third])).await;
    let third = third.standby_of(&old).await;
    let end = old.value("select pg_current_wal_flush_lsn()::text").await;
    for standby in [&new, &third] {
        standby.wait(&format!("pg_last_wal_replay_lsn() >= '{end}'")).await;
    }
    third.session().await.batch_execute("select pg_wal_replay_pause()").await.expect("a pause");
    // PostgreSQL 13 does not tell whether it has paused from whether it is to.
    let paused = match adapters::postgres::programs(None).expect("programs").1 {
        ..14 => "pg_is_wal_replay_paused()",
        _ => "pg_get_wal_replay_pause_state() = 'paused'",
    };
    third.wait(paused).await;
    new.apply(&standby(None, &[])).await;
    old.session().await.batch_execute("insert into t values (3001)").await.expect("a row");
    let end = old.value("select pg_current_wal_flush_lsn()::text").await;
    third.wait(&format!("pg_last_wal_receive_lsn() >= '{end}'")).await;
    assert_eq!(third.value("select count(*)::text from t").await, "0", "it was not replayed");
    third.postgres.stop(StopMode::Fast).await.expect("a stop");
    new.apply(&promoted(&[])).await;

    let refused = third.postgres.follow_if_ancestor(&new.source()).await.expect_err("not known");
    assert!(matches!(refused.cause, PgCause::Standby), "{}", chain(&refused));
    let refused = third.postgres.rewind(&new.source(), |_, _| {}).await.expect_err("not known");
    assert!(chain(&refused).contains("copy the database instead"), "{}", chain(&refused));
    third.apply(&standby(None, &[])).await;
    third.wait("(select count(*) from t where n = 3001) = 1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_rewound_to_is_refused_and_nothing_is_touched() {
    let (old, new) = parted().await;
    let refused = async |source: &Peer| -> PgCause {
        old.postgres.rewind(&source.source(), |_, _| {}).await.expect_err("refused").cause
    };
    assert!(matches!(refused(&new).await, PgCause::StillRunning { .. }));
    old.postgres.stop(StopMode::Fast).await.expect("a stop");
    let other = Peer::new("other").primary(Counts::Alone, &[]).await;
    assert!(matches!(refused(&other).await, PgCause::AnotherDatabase { .. }));
    let third = Peer::new("third").standby_of(&new).await;
    assert!(matches!(refused(&third).await, PgCause::NotAPrimary { .. }));
    let nobody = Peer::new("nobody");
    let cause = refused(&nobody).await;
    assert!(matches!(cause, PgCause::Query(_)), "{}", chain(&cause));
    old.apply(&primary(Counts::Alone, &[])).await;
    assert_eq!(old.value("select count(*)::text from t where n = 3001").await, "1");
}

/// What a crash in the middle leaves is no database, and is cleared away by the next try, or before another
/// database comes in its place.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_half_rewound_is_never_started() {
    let (old, new) = parted().await;
    old.postgres.stop(StopMode::Fast).await.expect("a stop");
    let data = old.postgres.data();
    let kept = data.with_file_name("kept");
    let copied = std::process::Command::new("cp").arg("-a").arg(data).arg(&kept).status();
    assert!(copied.expect("cp").success());
    let half = data.with_file_name("data.rewinding-8c5ff0cb-4b4f-4c9b-8a0e-0a3f1e6b2d11");
    std::fs::rename(data, &half).expect("as after a crash");
    let found = old.found().await;
    assert_eq!(found.database, adapters::postgres::Database::None);
    std::fs::rename(&kept, data).expect("the copy that was kept");
    old.postgres.rewind(&new.source(), |_, _| {}).await.expect("a rewind");
    assert!(!half.exists());
    let mine = data.with_file_name("data.rewinding-mine");
    for directory in [&half, &mine] {
        std::fs::create_dir_all(directory.join("base")).expect("a directory");
    }
    old.postgres.remove_half_rewound().await.expect("room");
    assert!(!half.exists() && mine.exists());
    follows(&old, &new).await;
}
