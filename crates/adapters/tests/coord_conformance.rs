//! What every coordination backend must do: each test runs against each of them.

mod common;

use adapters::clock;
use adapters::coord::memory::LostPut;
use adapters::coord::{CoordEvent, PutOutcome};
use cluster::{ClusterState, Generation, Millis};
use common::{
    Backend, LONG, Stream, join, peer, put, sequences, state, stored, timed, watch, within,
};

macro_rules! conformance {
    ($($name:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name::<super::common::Memory>().await;
            })*
        }
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name::<super::common::Sqlite>().await;
            })*
        }
        mod etcd {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name::<super::common::etcd::EtcdOf<1>>().await;
            })*
        }
        mod etcd_of_three {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name::<super::common::etcd::EtcdOf<3>>().await;
            })*
        }
        mod zookeeper_of_one {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name::<super::common::zookeeper::ZooKeeper<1>>().await;
            })*
        }
        mod zookeeper_of_three {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name::<super::common::zookeeper::ZooKeeper<3>>().await;
            })*
        }
    };
}

conformance!(
    registrations_stand_in_the_order_of_joining,
    two_sessions_of_one_peer_are_both_listed,
    a_put_needs_the_stored_version,
    history_has_one_entry_for_each_committed_put,
    of_racing_puts_one_wins,
    a_put_without_an_answer_is_settled_by_reading,
    state_and_active_come_before_the_first_confirmation,
    a_confirmation_vouches_for_every_change_before_it,
    a_dropped_membership_expires_and_not_before_its_timeout,
    an_expired_holder_is_told_and_nothing_after,
    a_short_cut_does_not_end_a_session,
    changes_during_a_cut_are_delivered_after_it,
    a_new_watch_begins_with_what_is_there,
    leaving_is_seen_at_once,
    a_slow_reader_gets_the_latest,
    changes_reach_a_watcher_soon,
    calls_fail_while_the_service_is_away,
    a_session_without_a_timeout_is_refused,
);

/// Who came first stands first, and a place that was left is not given out again.
async fn registrations_stand_in_the_order_of_joining<B: Backend>() {
    let backend = B::new();
    let coord = backend.client();
    let (first, one) = join(&coord, 3, LONG).await;
    let (_second, two) = join(&coord, 1, LONG).await;
    let (_third, three) = join(&backend.outside(), 2, LONG).await;
    assert!(one < two && two < three);
    let active = coord.read().await.expect("to read").active;
    assert_eq!(sequences(&active), [one, two, three]);
    let peers: Vec<_> = active.into_iter().map(|one| one.peer).collect();
    assert_eq!(peers, [peer(3), peer(1), peer(2)]);

    let Stream::Member(first) = first else { unreachable!("join gives a member") };
    first.leave().await.expect("to leave");
    let (_again, four) = join(&coord, 3, LONG).await;
    assert!(four > three);
    let active = coord.read().await.expect("to read").active;
    assert_eq!(sequences(&active), [two, three, four]);
}

/// A sitter that was restarted has a second session until its first one expires.
async fn two_sessions_of_one_peer_are_both_listed<B: Backend>() {
    let backend = B::new();
    let coord = backend.client();
    let (_first, one) = join(&coord, 1, LONG).await;
    let (mut second, two) = join(&coord, 1, LONG).await;
    second.until_active(&[one, two]).await;
}

/// The first put needs that there is nothing, each later one the version of the one before.
async fn a_put_needs_the_stored_version<B: Backend>() {
    let backend = B::new();
    let coord = backend.client();
    assert_eq!(stored(&coord).await, None);
    let one = put(&coord, None, 1).await;
    // The second of two that set up as well.
    for generation in [1, 2] {
        let conflict = coord.put(None, &state(generation)).await;
        assert!(matches!(conflict, PutOutcome::Conflict), "{conflict:?}");
    }
    let two = put(&coord, Some(one), 2).await;
    assert_ne!(one, two);
    let conflict = coord.put(Some(one), &state(3)).await;
    assert!(matches!(conflict, PutOutcome::Conflict), "{conflict:?}");
    let now = stored(&coord).await.expect("a state");
    assert_eq!((now.version, now.json), (two, state(2).to_json()));
}

/// Entries come with the puts, in their order, and keep what is not ours.
async fn history_has_one_entry_for_each_committed_put<B: Backend>() {
    let backend = B::new();
    let coord = backend.client();
    assert_eq!(coord.history().await.expect("history"), []);
    let mut version = put(&coord, None, 1).await;
    coord.put(None, &state(7)).await;
    for generation in [2, 2, 3] {
        version = put(&coord, Some(version), generation).await;
    }
    let history = coord.history().await.expect("history");
    let generations: Vec<_> = history.iter().map(|entry| entry.generation).collect();
    assert_eq!(generations, [1, 2, 2, 3].map(Generation));
    assert!(history.is_sorted_by(|a, b| a.sequence < b.sequence && a.time <= b.time));
    let last = ClusterState::parse(&history[3].json).expect("a state");
    assert_eq!(last, state(3));
    assert!(last.extra.contains_key("colour"));
    assert_eq!(history[3].json, stored(&coord).await.expect("a state").json);
}

/// Of those that name the same version, exactly one is stored.
async fn of_racing_puts_one_wins<B: Backend>() {
    let backend = B::new();
    let (here, there) = (backend.client(), backend.outside());
    let mut version = put(&here, None, 1).await;
    for generation in 2..12 {
        let state = state(generation);
        let (a, b) =
            tokio::join!(here.put(Some(version), &state), there.put(Some(version), &state));
        version = match (a, b) {
            (PutOutcome::Committed(version), PutOutcome::Conflict)
            | (PutOutcome::Conflict, PutOutcome::Committed(version)) => version,
            other => panic!("{other:?}"),
        };
    }
    assert_eq!(here.history().await.expect("history").len(), 11);
}

/// Whatever became of it, reading tells, and the next put can be made on that.
async fn a_put_without_an_answer_is_settled_by_reading<B: Backend>() {
    let backend = B::new();
    let coord = backend.client();
    let before = put(&coord, None, 1).await;
    let mut commits = 1;
    for fate in [LostPut::NotStored, LostPut::Stored] {
        let expected = stored(&coord).await.expect("a state").version;
        let Some(guard) = backend.lose_next_put(fate) else {
            continue;
        };
        let lost = coord.put(Some(expected), &state(2)).await;
        assert!(matches!(lost, PutOutcome::Unknown(_)), "{lost:?}");
        drop(guard);
        let now = stored(&coord).await.expect("a state");
        assert_eq!(now.version != expected, fate == LostPut::Stored);
        commits += usize::from(fate == LostPut::Stored);
        put(&coord, Some(now.version), 3).await;
        commits += 1;
        assert_eq!(coord.history().await.expect("history").len(), commits);
    }
    assert!(commits > 1, "nothing was lost after {before:?}");
}

/// Even when there is nothing to tell.
async fn state_and_active_come_before_the_first_confirmation<B: Backend>() {
    let backend = B::new();
    let coord = backend.client();
    let (mut empty, one) = join(&coord, 1, LONG).await;
    assert_eq!(empty.next().await, Some(CoordEvent::State(None)));
    let Some(CoordEvent::Active(active)) = empty.next().await else {
        panic!("active comes second");
    };
    assert_eq!(sequences(&active), [one]);
    let Some(CoordEvent::Confirmed { sent }) = empty.next().await else {
        panic!("a confirmation comes third");
    };
    assert!(sent <= clock::now());

    let version = put(&coord, None, 1).await;
    let (mut full, _) = join(&coord, 2, LONG).await;
    let Some(CoordEvent::State(Some(state))) = full.next().await else {
        panic!("the state comes first");
    };
    assert_eq!(state.version, version);
    assert!(matches!(full.next().await, Some(CoordEvent::Active(_))));
    full.until_confirmed().await;
}

/// Puts and joins of others, each followed by the first confirmation that was sent after it.
async fn a_confirmation_vouches_for_every_change_before_it<B: Backend>() {
    let backend = B::new();
    let (coord, other) = (backend.client(), backend.outside());
    let (mut member, _) = join(&coord, 1, B::STEADY).await;
    let (mut version, mut known_version, mut known_active) = (None, None, Vec::new());
    let mut guests = Vec::new();
    for generation in 1..=6 {
        version = Some(put(&other, version, generation).await);
        let (guest, sequence) = join(&other, 2, LONG).await;
        guests.push(guest);
        // The clock counts milliseconds: what is sent in this one may be sent before the change.
        let committed = clock::now() + Millis(1);
        member
            .until("a confirmation after the change", |event| {
                match event {
                    CoordEvent::State(state) => {
                        known_version = state.as_ref().map(|state| state.version);
                    }
                    CoordEvent::Active(active) => known_active = sequences(active),
                    CoordEvent::Confirmed { sent } if *sent >= committed => return Some(()),
                    _ => {}
                }
                None
            })
            .await;
        assert_eq!(known_version, version, "generation {generation}");
        assert_eq!(known_active.last(), Some(&sequence));
    }
}

/// As after a crash: the registration stands until the timeout, and goes without anybody asking.
async fn a_dropped_membership_expires_and_not_before_its_timeout<B: Backend>() {
    let backend = B::new();
    let coord = backend.client();
    let mut watcher = watch(&backend.outside()).await;
    let (mut member, sequence) = join(&coord, 1, B::SHORT).await;
    watcher.until_active(&[sequence]).await;
    let sent = member
        .until("confirmed", |event| match event {
            CoordEvent::Confirmed { sent } => Some(*sent),
            _ => None,
        })
        .await;
    drop(member);
    watcher.until_active(&[]).await;
    let after = clock::now() - sent;
    assert!(after >= B::SHORT, "gone {after:?} after the last heartbeat");
    assert_eq!(coord.read().await.expect("to read").active, []);
}

/// The holder learns of it although it is cut off, others by the clock; a new session comes last.
async fn an_expired_holder_is_told_and_nothing_after<B: Backend>() {
    let backend = B::new();
    let (coord, outside) = (backend.client(), backend.outside());
    let mut watcher = watch(&outside).await;
    let (_other, other) = join(&outside, 2, LONG).await;
    let (mut member, own) = join(&coord, 1, B::SHORT).await;
    watcher.until_active(&[other, own]).await;
    member.until_confirmed().await;
    backend.cut();
    member
        .until("the holder to be told", |event| matches!(event, CoordEvent::Expired).then_some(()))
        .await;
    assert_eq!(member.next().await, None);
    assert_eq!(member.next().await, None);
    watcher.until_active(&[other]).await;
    backend.heal();
    let (_again, again) =
        within("to come back", async { join(&backend.client(), 1, LONG).await }).await;
    assert!(again > own);
    watcher.until_active(&[other, again]).await;
}

/// It says so, goes on trying, and is confirmed again under the same registration.
async fn a_short_cut_does_not_end_a_session<B: Backend>() {
    let backend = B::new();
    let coord = backend.client();
    let (mut member, own) = join(&coord, 1, Millis(2 * B::STEADY.0)).await;
    member.until_confirmed().await;
    backend.cut();
    member.until_unreachable().await;
    backend.heal();
    let healed = clock::now();
    member
        .until("a confirmation after the cut", |event| match event {
            CoordEvent::Confirmed { sent } if *sent >= healed => Some(()),
            CoordEvent::Expired => panic!("expired"),
            _ => None,
        })
        .await;
    let active = backend.outside().read().await.expect("to read").active;
    assert_eq!(sequences(&active), [own]);
}

/// What others did meanwhile is not lost on a watcher that was cut off.
async fn changes_during_a_cut_are_delivered_after_it<B: Backend>() {
    let backend = B::new();
    let (coord, outside) = (backend.client(), backend.outside());
    let version = put(&outside, None, 1).await;
    let mut watcher = watch(&coord).await;
    watcher.until_version(version).await;
    backend.cut();
    watcher.until_unreachable().await;
    let version = put(&outside, Some(version), 2).await;
    let (_member, sequence) = join(&outside, 1, LONG).await;
    backend.heal();
    watcher.until_version(version).await;
    watcher.until_active(&[sequence]).await;
    // And it follows on.
    let version = put(&outside, Some(version), 3).await;
    watcher.until_version(version).await;
}

/// A watch that was dropped and opened again misses nothing in between.
async fn a_new_watch_begins_with_what_is_there<B: Backend>() {
    let backend = B::new();
    let (coord, outside) = (backend.client(), backend.outside());
    let mut watcher = watch(&coord).await;
    assert_eq!(watcher.next().await, Some(CoordEvent::State(None)));
    assert_eq!(watcher.next().await, Some(CoordEvent::Active(Vec::new())));
    drop(watcher);
    let version = put(&outside, None, 1).await;
    let (_member, sequence) = join(&outside, 1, LONG).await;
    let mut watcher = watch(&coord).await;
    watcher.until_version(version).await;
    watcher.until_active(&[sequence]).await;
}

/// Not only when its session would have expired.
async fn leaving_is_seen_at_once<B: Backend>() {
    let backend = B::new();
    let (coord, outside) = (backend.client(), backend.outside());
    let mut watcher = watch(&outside).await;
    let (member, sequence) = join(&coord, 1, LONG).await;
    watcher.until_active(&[sequence]).await;
    let Stream::Member(member) = member else { unreachable!("join gives a member") };
    member.leave().await.expect("to leave");
    assert_eq!(outside.read().await.expect("to read").active, []);
    let ((), time) = timed(watcher.until_active(&[])).await;
    assert!(time < Millis(LONG.0 / 2), "seen only after {time:?}");
}

/// Who does not read holds nobody up, and then gets little and the newest.
async fn a_slow_reader_gets_the_latest<B: Backend>() {
    let backend = B::new();
    let coord = backend.client();
    let (mut member, _) = join(&coord, 1, LONG).await;
    let mut watcher = watch(&coord).await;
    let mut witness = watch(&coord).await;
    let mut version = None;
    for generation in 1..=40 {
        let next = put(&coord, version, generation).await;
        witness.until_version(next).await;
        version = Some(next);
    }
    for (name, stream) in [("member", &mut member), ("watcher", &mut watcher)] {
        let mut states = 0;
        stream
            .until(name, |event| match event {
                CoordEvent::State(state) => {
                    states += 1;
                    (state.as_ref().map(|state| state.version) == version).then_some(())
                }
                _ => None,
            })
            .await;
        assert!(states <= 3, "the {name} was told of {states} states");
    }
}

/// Prints how soon; the bound is for a loaded machine, and below the one of the safety look.
async fn changes_reach_a_watcher_soon<B: Backend>() {
    let backend = B::new();
    let (coord, outside) = (backend.client(), backend.outside());
    let mut watcher = watch(&coord).await;
    let mut version = None;
    let mut times = Vec::new();
    for generation in 1..=30 {
        let next = put(&outside, version, generation).await;
        let ((), time) = timed(watcher.until_version(next)).await;
        times.push(time.0);
        version = Some(next);
    }
    times.sort_unstable();
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    let name = coord.target();
    println!("{name}: told after a put was answered: median {median} ms, worst {worst} ms");
    assert!(median < 500, "{times:?}");
}

/// With an error that names the service, and without hanging.
async fn calls_fail_while_the_service_is_away<B: Backend>() {
    let backend = B::new();
    let coord = backend.client();
    let (member, _) = join(&coord, 1, LONG).await;
    backend.cut();
    let (other, next) = (peer(2), state(1));
    let (read, history, watch, join, lost) = tokio::join!(
        coord.read(),
        coord.history(),
        coord.watch(),
        coord.join(&other, LONG),
        coord.put(None, &next)
    );
    let error = read.expect_err("a cut service");
    assert!(error.to_string().contains("1.example"), "{error}");
    assert!(history.is_err() && watch.is_err() && join.is_err());
    assert!(matches!(lost, PutOutcome::Unknown(_)), "{lost:?}");
    let Stream::Member(member) = member else { unreachable!("join gives a member") };
    assert!(member.leave().await.is_err());
    backend.heal();
    assert_eq!(within("to read", coord.read()).await.expect("to read").state, None);
}

/// It would be dead before it is known.
async fn a_session_without_a_timeout_is_refused<B: Backend>() {
    let backend = B::new();
    let coord = backend.client();
    assert!(coord.join(&peer(1), Millis(0)).await.is_err());
}
