//! Timelines: who can follow whom, and which numbers promotions take.

use super::{
    in_time,
    support::{self, Peer, chain, commit, primary, signal, standby},
};
use adapters::postgres::{Divergence, PgCause, Settings, StopMode};
use cluster::{Counts, Gate, Generation, Lsn, PgConfig};
use rustix::process::Signal;
use std::{fs, time::Duration};

/// A standby that has WAL which its new upstream, promoted from an earlier position, never had, can
/// follow it no further; one that has not, can. Only the first is told that it has diverged.
#[tokio::test]
async fn a_standby_ahead_of_its_new_upstream_has_diverged() {
    let (b, c, d) = (Peer::new("b"), Peer::new("c"), Peer::new("d"));
    let a = Peer::new("a").primary(Counts::Sync(b.id()), &[&b, &c, &d]).await;
    let b = b.standby_of(&a).await;
    let c = c.standby_of(&a).await;
    let d = d.standby_of(&a).await;
    a.wait_sync(&b).await;
    // `c` and `d` stop following; `b` goes on.
    let detached = c.apply(&standby(None, &[])).await.position;
    d.apply(&standby(None, &[])).await;
    assert!(commit(&a, "create table t as select generate_series(1, 1000)").await.expect("a task"));
    a.postgres.stop(StopMode::Fast).await.expect("a stop");
    c.apply(&primary(Counts::Sync(d.id()), &[&b, &d])).await;
    b.apply(&standby(Some(&c), &[])).await;
    d.apply(&standby(Some(&c), &[])).await;
    c.wait_sync(&d).await;

    let port = c.settings.port;
    let judge = async |peer: &Peer| {
        let probe = peer.postgres.probe().await.expect("a probe");
        peer.postgres.divergence(&probe, "127.0.0.1", port, 0).await.expect("an answer")
    };
    let why = in_time("b to be refused", async {
        loop {
            if let Divergence::CannotFollow(why) = judge(&b).await {
                return why;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    assert!(why.contains("left timeline 1"), "{why}; c was detached at {detached}");
    assert_eq!(judge(&d).await, Divergence::None, "the one that follows");
    // Another database tells nothing about the data here, whatever the log says.
    let mut probe = b.postgres.probe().await.expect("a probe");
    probe.system_identifier ^= 1;
    let judged = b.postgres.divergence(&probe, "127.0.0.1", port, 0).await.expect("an answer");
    assert!(matches!(&judged, Divergence::Foreign(why) if why.contains("another database")));

    // Started again, it does not even come up, as it knows of the new timeline by now.
    b.postgres.stop(StopMode::Fast).await.expect("a stop");
    let refused = b.postgres.apply(&standby(Some(&c), &[])).await.expect_err("it has diverged");
    let PgCause::CannotRecover { refusal, .. } = refused.cause else {
        panic!("{}", chain(&refused))
    };
    let judged = b.postgres.divergence_at_rest(refusal, "127.0.0.1", port).await;
    let judged = judged.expect("an answer");
    assert!(matches!(&judged, Divergence::CannotFollow(why) if why.contains("left timeline 1")));
    // It could follow one that is still on the old timeline.
    a.apply(&primary(Counts::Alone, &[&b])).await;
    let judged = b.postgres.divergence_at_rest(refusal, "127.0.0.1", a.settings.port).await;
    assert_eq!(judged.expect("an answer"), Divergence::None);
}

/// After a crash a standby still knows the timeline that it has received WAL of, though its control
/// file may not have come to say so.
#[tokio::test]
async fn a_crashed_standby_knows_its_timeline() {
    let (b, c) = (Peer::new("b"), Peer::new("c"));
    let a = Peer::new("a").primary(Counts::Sync(b.id()), &[&b, &c]).await;
    let b = b.standby_of(&a).await;
    let c = c.standby_of(&a).await;
    a.wait_sync(&b).await;
    c.wait("exists (select from pg_stat_wal_receiver where status = 'streaming')").await;
    a.postgres.stop(StopMode::Fast).await.expect("a stop");
    b.apply(&standby(None, &[])).await;
    // What is promoted has a number of its own, which the control file of `c` says nothing of yet.
    b.apply(&primary(Counts::Sync(c.id()), &[&c])).await;
    c.apply(&standby(Some(&b), &[])).await;
    b.wait_sync(&c).await;
    // Acknowledged: so some WAL of the new timeline is on the disk of `c`, which no state says of the
    // sender that may still be sending the old one.
    assert!(commit(&b, "create table t (i int)").await.expect("a task"));
    assert_eq!(c.postgres.probe().await.expect("a probe").timeline, 2);
    for peer in [&b, &c] {
        let mut exits = peer.postgres.exits();
        signal(peer.pid(), Signal::KILL);
        in_time("the exit", exits.wait_for(Option::is_some)).await.expect("an exit");
    }
    c.apply(&standby(None, &[])).await;
    assert_eq!(c.postgres.probe().await.expect("a probe").timeline, 2);
    // The history of a timeline alone proves nothing, nor does a file that is no whole segment.
    for name in ["00000009.history", "000000090000000000000001.partial"] {
        fs::write(c.postgres.data().join("pg_wal").join(name), "").expect("a file");
    }
    assert_eq!(c.postgres.probe().await.expect("a probe").timeline, 2);
}

/// A sitter that ends while it detaches its standby leaves nothing that says that this still follows: the next one
/// would leave it as it is.
#[tokio::test]
async fn a_standby_that_was_being_detached_is_not_known_to_follow() {
    let b = Peer::new("b");
    let a = Peer::new("a").primary(Counts::Sync(b.id()), &[&b]).await;
    let mut b = b.standby_of(&a).await;
    a.wait_sync(&b).await;
    assert_eq!(b.found().await.applied, Some(standby(Some(&a), &[])));
    let activity = "from pg_stat_activity where backend_type =";
    let startup = b.value(&format!("select pid::text {activity} 'startup'")).await;
    let startup = startup.parse().expect("a process");
    // It has to say that it has replayed all.
    signal(startup, Signal::STOP);
    let detached = standby(None, &[]);
    let gone = format!("not exists (select {activity} 'walreceiver')");
    tokio::select! {
        done = b.postgres.apply(&detached) => panic!("{done:?}"),
        () = b.wait(&gone) => {}
    }
    let found = b.restart_sitter().await;
    signal(startup, Signal::CONT);
    assert_eq!((found.running, found.applied), (true, None));
    b.apply(&standby(Some(&a), &[])).await;
    a.wait_sync(&b).await;
}

/// Rule D7. PostgreSQL removes `standby.signal` before it names the new timeline: a promotion that ended in between
/// is begun again, and takes the same number. Rule D3: only where all is there that the generation began with.
#[tokio::test]
async fn a_promotion_that_was_cut_off_is_begun_again() {
    let b = Peer::new("b");
    let a = Peer::new("a").primary(Counts::Sync(b.id()), &[&b]).await;
    let b = b.standby_of(&a).await;
    a.wait_sync(&b).await;
    assert!(commit(&a, "create table t (i int)").await.expect("a task"));
    b.wait("to_regclass('t') is not null").await;
    let end = b.apply(&standby(None, &[])).await.position;
    a.postgres.stop(StopMode::Immediate).await.expect("a stop");
    let fourth = |init_wal| PgConfig::Primary {
        generation: Generation(2),
        timeline: Some(4),
        init_wal,
        counts: Counts::Nobody,
        gate: Gate::Open,
        downstream: Vec::new(),
    };
    let further = Lsn::new(end.byte() + 1);
    for _ in 0..2 {
        let refused = b.postgres.apply(&fourth(further)).await.expect_err("it has less");
        assert!(matches!(refused.cause, PgCause::Behind { .. }), "{}", chain(&refused));
        assert!(b.postgres.probe().await.expect("a probe").in_recovery);
        b.postgres.stop(StopMode::Fast).await.expect("a stop");
    }
    // As it is when the power goes then, and a moment later.
    let data = b.postgres.data();
    fs::remove_file(data.join("standby.signal")).expect("a standby");
    for history in [None, Some("1\t0/3000000\tno recovery target specified\n")] {
        if let Some(history) = history {
            fs::write(data.join("pg_wal/00000004.history"), history).expect("a file");
        }
        let refused = b.postgres.apply(&fourth(further)).await.expect_err("it has less");
        assert!(matches!(refused.cause, PgCause::Behind { .. }), "{}", chain(&refused));
        b.postgres.stop(StopMode::Immediate).await.expect("a stop");
        fs::remove_file(data.join("standby.signal")).expect("a standby again");
    }
    fs::write(data.join("pg_wal/00000004.history"), "1\t0/3000000\tno recovery target specified\n")
        .expect("a file");
    b.apply(&fourth(end)).await;
    assert_eq!(b.postgres.probe().await.expect("a probe").timeline, 4);
    // One that runs on the old timeline is stopped before anybody counts there.
    a.apply(&primary(Counts::Nobody, &[])).await;
    let refused = a.postgres.apply(&fourth(Lsn::ZERO)).await.expect_err("it is not promoted");
    assert!(matches!(refused.cause, PgCause::OldTimeline { .. }), "{}", chain(&refused));
    assert!(!a.found().await.running);
    a.apply(&fourth(Lsn::ZERO)).await;
    assert_eq!(a.postgres.probe().await.expect("a probe").timeline, 4);
    // Once it is done, it is not begun again.
    for how in [StopMode::Immediate, StopMode::Fast] {
        b.postgres.stop(how).await.expect("a stop");
        b.apply(&fourth(end)).await;
        assert_eq!(b.postgres.probe().await.expect("a probe").timeline, 4);
    }
}

/// Rule D7. A promotion begins the timeline that it is to, whatever number PostgreSQL would have taken; those
/// who follow from timeline 1 find their way, a fresh copy too, and an interrupted promotion does no
/// harm.
#[tokio::test]
async fn a_promotion_takes_a_number_of_its_own() {
    let (b, c, d, f) = (Peer::new("b"), Peer::new("c"), Peer::new("d"), Peer::new("f"));
    let a = Peer::new("a").primary(Counts::Sync(b.id()), &[&b, &c, &f]).await;
    let b = b.standby_of(&a).await;
    let c = c.standby_of(&a).await;
    let f = f.standby_of(&a).await;
    a.wait_sync(&b).await;
    assert!(commit(&a, "create table t (i int)").await.expect("a task"));
    // Those who follow later have no more than the one that is promoted.
    for standby_of_a in [&f, &c, &b] {
        standby_of_a.wait("to_regclass('t') is not null").await;
        standby_of_a.apply(&standby(None, &[])).await;
    }
    a.postgres.stop(StopMode::Immediate).await.expect("a stop");

    // As if it had been interrupted: reserved, and not promoted.
    let reserved = "# reserved by Manatee: no timeline of this shard has this number\n";
    for number in 2..5 {
        let file = b.settings.dataset.join(format!("data/pg_wal/{number:08X}.history"));
        fs::write(file, reserved).expect("a reservation");
    }
    b.postgres.stop(StopMode::Fast).await.expect("a stop");
    b.apply(&standby(None, &[])).await;

    let fifth = |counts, downstream: &[&Peer]| PgConfig::Primary {
        generation: Generation(3),
        timeline: Some(5),
        init_wal: Lsn::ZERO,
        counts,
        gate: Gate::Open,
        downstream: support::ids(downstream),
    };
    b.apply(&fifth(Counts::Sync(c.id()), &[&c])).await;
    assert_eq!(b.postgres.probe().await.expect("a probe").timeline, 5);
    c.apply(&standby(Some(&b), &[])).await;
    b.wait_sync(&c).await;
    assert!(commit(&b, "insert into t values (1)").await.expect("a task"));
    assert_eq!(c.postgres.probe().await.expect("a probe").timeline, 5);

    // A fresh copy comes with the history of timeline 5 alone, and would serve those who ask it for
    // the others; one that is older than what it has kept cannot follow it, and is told so.
    b.apply(&fifth(Counts::Sync(c.id()), &[&c, &d, &f])).await;
    b.value("select pg_switch_wal()::text").await;
    let d = d.standby_of(&b).await;
    d.wait("(select count(*) = 1 from t)").await;
    for number in 2..=5 {
        let file = d.settings.dataset.join(format!("data/pg_wal/{number:08X}.history"));
        assert!(file.exists(), "{}", file.display());
    }
    d.apply(&standby(Some(&b), &[&f])).await;
    let mark = f.postgres.log_length();
    f.apply(&standby(Some(&d), &[])).await;
    let why = in_time("f to be refused", async {
        loop {
            let probe = f.postgres.probe().await.expect("a probe");
            let port = d.settings.port;
            let asked = f.postgres.divergence(&probe, "127.0.0.1", port, mark).await;
            if let Divergence::CannotFollow(why) = asked.expect("an answer") {
                return why;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    assert!(why.contains("no longer"), "{why}");
    f.apply(&standby(Some(&b), &[])).await;
    f.wait("(select count(*) = 1 from t)").await;
}

/// A slot may hold back only so much: a standby that was away for longer is told so, and one that is
/// copied anew follows again, by a slot that holds WAL back.
#[tokio::test]
async fn a_slot_that_has_lost_its_wal() {
    let b = Peer::new("b");
    let little =
        |settings: &mut Settings| (settings.slot_keep_size, settings.wal_keep_size) = (1, 0);
    let a = Peer::with("a", little).primary(Counts::Alone, &[&b]).await;
    let b = b.standby_of(&a).await;
    b.postgres.stop(StopMode::Fast).await.expect("a stop");
    for _ in 0..3 {
        let session = a.session().await;
        for sql in ["create table if not exists t (i int)", "select pg_switch_wal()", "checkpoint"]
        {
            session.batch_execute(sql).await.expect(sql);
        }
    }
    a.wait("exists (select from pg_replication_slots where wal_status = 'lost')").await;
    let renew = async || {
        let lost = a.postgres.probe().await.expect("a probe").lost_slots;
        if lost.is_some() {
            a.apply(&primary(Counts::Alone, &[&b])).await;
            assert_eq!(a.postgres.probe().await.expect("a probe").lost_slots, None);
        }
        lost
    };
    let lost = renew().await.expect("a slot");
    assert!(lost.starts_with("manatee_"), "{lost}");
    let mark = b.postgres.log_length();
    b.apply(&standby(Some(&a), &[])).await;
    let why = in_time("b to be refused", async {
        loop {
            let probe = b.postgres.probe().await.expect("a probe");
            let asked = b.postgres.divergence(&probe, "127.0.0.1", a.settings.port, mark).await;
            if let Divergence::CannotFollow(why) = asked.expect("an answer") {
                return why;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    assert!(why.contains("no longer"), "{why}");
    b.postgres.stop(StopMode::Fast).await.expect("a stop");
    fs::remove_dir_all(b.postgres.data()).expect("nothing is there");
    b.seed(&a).await;
    // The copy itself may have taken more WAL than is kept.
    renew().await;
    b.apply(&standby(Some(&a), &[])).await;
    a.wait("exists (select from pg_stat_replication where state = 'streaming')").await;
    let status = "select wal_status from pg_replication_slots";
    assert_ne!(a.value(status).await, "lost");
}
