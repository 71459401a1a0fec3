use super::*;
use crate::adm::fixture::{healthy, peer, state};
use crate::adm::reach::Target;
use adapters::coord::memory::{LostPut, MemoryService};
use adapters::coord::{Coordination, PutOutcome};
use cluster::{Freeze, Generation};
use std::sync::Arc;

fn now() -> Timestamp {
    "2026-05-04T10:00:00.123456Z".parse().expect("a time")
}

fn wish(zone: &str) -> Promotion {
    Promotion { zone: zone.to_owned(), role: None, index: None, lag: 5, expire: 60, yes: true }
}

fn check(state: &ClusterState, wish: &Promotion, expected: Result<(usize, Place), &str>) {
    let active = healthy(state).active;
    match (wish.choose(state, &active), expected) {
        (Ok((chosen, place)), Ok((n, expected))) => {
            assert_eq!((chosen, place), (&peer(n), expected), "{wish:?}");
        }
        (Err(error), Err(part)) => {
            let text = error.to_string();
            assert!(
                text.starts_with("not asked for: ") && text.contains(part),
                "{text:?}: {part:?}"
            );
        }
        (got, expected) => panic!("{wish:?}: {got:?} instead of {expected:?}"),
    }
}

#[test]
fn who_stands_below_somebody_may_move_up() {
    let state = state();
    check(&state, &wish("22222222-zone"), Ok((2, Place::Sync)));
    check(&state, &wish("33333333"), Ok((3, Place::Async(0))));
    check(&state, &wish("10.0.0.4:5432:12345"), Ok((4, Place::Async(1))));
    check(&state, &wish("11111111"), Err("is the primary"));
    check(
        &state,
        &wish("10.0.0.4"),
        Err("no peer of the shard is \"10.0.0.4\"; there are: 10.0.0.1:"),
    );
    let said = |zone, role, index| Promotion { role, index, ..wish(zone) };
    let (sync, asynchronous) = (Some(Asked::Sync), Some(Asked::Async));
    check(&state, &said("22222222", sync, None), Ok((2, Place::Sync)));
    check(&state, &said("44444444", asynchronous, Some(1)), Ok((4, Place::Async(1))));
    check(&state, &said("22222222", asynchronous, None), Err("is the sync, which is not what"));
    check(&state, &said("22222222", sync, Some(0)), Err("is the sync, which is not what"));
    check(&state, &said("33333333", sync, None), Err("is async 0, which is not what"));
    check(&state, &said("33333333", None, Some(1)), Err("is async 0, which is not what"));
}

#[test]
fn what_no_peer_would_grant_is_not_asked_for() {
    let frozen = ClusterState { freeze: Some(Freeze::Bare(true)), ..state() };
    check(&frozen, &wish("22222222"), Err("the shard is frozen"));
    check(&frozen, &wish("33333333"), Err("the shard is frozen"));
    check(&frozen, &wish("44444444"), Ok((4, Place::Async(1))));
    let pair = ClusterState { asyncs: Vec::new(), ..state() };
    check(&pair, &wish("22222222"), Err("no async is active"));
    let deposed = ClusterState { deposed: vec![peer(5)], ..state() };
    check(&deposed, &wish("55555555"), Err("is deposed"));
    let alone = ClusterState { sync: None, one_node_write_mode: Some(true), ..state() };
    check(&alone, &wish("33333333"), Err("one-node-write mode"));
    let twin = PeerIdent { zone_id: peer(4).zone_id, ..peer(3) };
    let twins = ClusterState { asyncs: vec![twin, peer(4)], ..state() };
    check(&twins, &wish("44444444"), Err("may be any of these"));
    let mut active = healthy(&state()).active;
    active.retain(|registration| registration.peer.id != peer(2).id);
    let error = wish("22222222").choose(&state(), &active).expect_err("gone").to_string();
    assert!(error.contains("is not active"), "{error}");
}

#[test]
fn a_second_request_waits_for_the_first() {
    let active = healthy(&state()).active;
    let ask = |state: &ClusterState, now| wish("33333333").request(state, &active, now);
    let (first, place) = ask(&state(), now()).expect("asked for");
    assert_eq!(place, Place::Async(0));
    assert_eq!(
        serde_json::to_value(&first).expect("JSON"),
        json!({"id": "10.0.0.3:5432:12345", "role": "async", "asyncIndex": 0, "generation": 3,
               "expireTime": "2026-05-04T10:01:00.123Z"})
    );
    let asked = ClusterState { promote: Some(first.clone()), ..state() };
    let error = ask(&asked, now()).expect_err("one stands").to_string();
    assert!(error.contains("was asked for already, until 2026-05-04T10:01:00.123Z"), "{error}");
    ask(&asked, now() + SignedDuration::from_secs(61)).expect("it has expired");
    let later = ClusterState { generation: Generation(4), ..asked };
    ask(&later, now()).expect("it was for another generation");
}

#[test]
fn what_becomes_of_a_request() {
    let active = healthy(&state()).active;
    let ask = |zone| wish(zone).request(&state(), &active, now()).expect("asked for").0;
    let after = |seconds| now() + SignedDuration::from_secs(seconds);
    for zone in ["22222222", "33333333", "44444444"] {
        let request = ask(zone);
        let asked = ClusterState { promote: Some(request.clone()), ..state() };
        assert_eq!(fate(&asked, &request, after(1)), Fate::Stands, "{zone}");
        assert_eq!(fate(&asked, &request, after(65)), Fate::Stands, "{zone}");
        assert_eq!(fate(&asked, &request, after(75)), Fate::Expired, "{zone}");
        assert_eq!(fate(&state(), &request, after(1)), Fate::Void, "{zone}");
    }
    let one_up = |primary, sync, asyncs: [usize; 2]| ClusterState {
        primary: peer(primary),
        sync: Some(peer(sync)),
        asyncs: asyncs.map(peer).to_vec(),
        ..state()
    };
    let taken_over = ClusterState { deposed: vec![peer(1)], ..one_up(2, 3, [4, 5]) };
    assert_eq!(fate(&taken_over, &ask("22222222"), after(1)), Fate::Granted);
    assert_eq!(fate(&one_up(1, 3, [2, 4]), &ask("33333333"), after(1)), Fate::Granted);
    assert_eq!(fate(&one_up(1, 2, [4, 3]), &ask("44444444"), after(1)), Fate::Granted);
}

#[test]
fn what_speaks_against_it_is_told() {
    let mut view = healthy(&state());
    let doubts = |view: &ShardView| wish("22222222").doubts(view, &peer(2).id, now());
    assert_eq!(doubts(&view), Vec::<String>::new());
    let says = view.peers[1].status.as_mut().expect("it answers");
    says.postgres.lag_ms = Some(5_000);
    assert_eq!(doubts(&view), Vec::<String>::new());
    let says = view.peers[1].status.as_mut().expect("it answers");
    says.postgres.lag_ms = Some(7_000);
    assert_eq!(doubts(&view), ["warning: its replay is 7 s behind"]);
    view.peers[1].status = Err("no answer".to_owned());
    let told = doubts(&view).join("\n");
    assert!(told.contains("cannot query postgres on sync"), "{told}");
    assert!(told.ends_with("how far its replay is behind is not known"), "{told}");
}

#[tokio::test]
async fn a_request_is_taken_back() {
    for fate in [None, Some(LostPut::Stored), Some(LostPut::NotStored)] {
        let active = healthy(&state()).active;
        let (request, _) = wish("22222222").request(&state(), &active, now()).expect("asked for");
        let asked = ClusterState { promote: Some(request.clone()), ..state() };
        let service = MemoryService::new("1.example");
        let coord: Arc<dyn Coordination> = Arc::new(service.client());
        assert!(matches!(coord.put(None, &asked).await, PutOutcome::Committed(_)));
        let target =
            Target { url: "memory:".to_owned(), shard: "1.example".to_owned(), access: None };
        let shard = Shard { coord, target };
        if let Some(fate) = fate {
            service.lose_next_put(fate);
        }
        assert_eq!(clear(&shard).await.expect("taken back"), request, "{fate:?}");
        let error = clear(&shard).await.expect_err("there is none").to_string();
        assert_eq!(error, "nobody has asked for a promotion in shard \"1.example\"");
        assert_eq!(shard.coord.history().await.expect("reachable").len(), 2, "{fate:?}: once");
    }
}
