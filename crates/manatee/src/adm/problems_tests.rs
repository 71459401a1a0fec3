//! Each test breaks one thing of a healthy shard and says what is reported then.

use super::*;
use crate::adm::fixture::{healthy, peer, sender, state};
use crate::adm::view::Stored;
use adapters::coord::{Registration, StoredState};
use cluster::{Freeze, Generation, Promote, PromoteRole};

const NOW: &str = "2026-05-04T10:00:00Z";

fn now() -> Timestamp {
    NOW.parse().expect("a time")
}

/// What is reported of a healthy shard with this state after `break_it`.
fn check_state(state: &ClusterState, break_it: impl FnOnce(&mut ShardView), expected: &[&str]) {
    let mut view = healthy(state);
    break_it(&mut view);
    let problems: Vec<_> = find(&view, now()).iter().map(ToString::to_string).collect();
    assert_eq!(problems, expected);
}

fn check(break_it: impl FnOnce(&mut ShardView), expected: &[&str]) {
    check_state(&state(), break_it, expected);
}

fn status(view: &mut ShardView, index: usize) -> &mut PeerStatus {
    view.peers[index].status.as_mut().expect("healthy")
}

#[test]
fn nothing_is_wrong() {
    check(|_| {}, &[]);
    let mut frozen = state();
    frozen.freeze = Some(Freeze::Bare(true));
    check_state(&frozen, |_| {}, &[]);
}

#[test]
fn one_node_write_mode_needs_nobody_else() {
    let mut alone = state();
    alone.one_node_write_mode = Some(true);
    alone.sync = None;
    alone.asyncs.clear();
    check_state(&alone, |_| {}, &[]);
}

#[test]
fn no_state_and_states_that_nobody_can_act_on() {
    let set = |view: &mut ShardView, json: &str| {
        let version = view.stored.as_ref().expect("stored").raw.version;
        view.stored = Some(Stored::new(StoredState { version, json: json.to_owned() }));
        view.peers.clear();
    };
    check(
        |view| {
            view.stored = None;
            view.peers.clear();
        },
        &["error: no cluster state is stored: shard \"1.example\" was not set up yet, or is not \
           its name"],
    );
    check(
        |view| set(view, "{\"generation\":\"three\"}"),
        &["error: no peer can act on what is stored: cluster state: generation: invalid type: \
           string \"three\", expected u64"],
    );
    let mut no_sync = state();
    no_sync.sync = None;
    check(
        |view| set(view, &no_sync.to_json()),
        &["error: no peer can act on what is stored: cluster state: sync: is null outside \
           one-node-write mode"],
    );
}

#[test]
fn postgres_that_cannot_be_queried() {
    let fail = |index: usize| {
        move |view: &mut ShardView| view.peers[index].status = Err("connection refused".to_owned())
    };
    check(
        fail(0),
        &["error: cannot query postgres on primary: peer \"11111111\": connection refused"],
    );
    check(
        fail(1),
        &["error: cannot query postgres on sync: peer \"22222222\": connection refused"],
    );
    check(
        fail(3),
        &["warning: cannot query postgres on async: peer \"44444444\": connection refused"],
    );
    check(
        |view| status(view, 1).postgres.online = false,
        &["error: cannot query postgres on sync: peer \"22222222\": it is not running (being \
           sync)"],
    );
    check(
        |view| status(view, 1).postgres.age_ms = Some(STALE),
        &["error: cannot query postgres on sync: peer \"22222222\": its sitter has had no answer \
           from it for 31 s"],
    );
}

const STALE: u64 = 31_999;

#[test]
fn peers_that_are_not_active() {
    let leave = |index: usize| {
        move |view: &mut ShardView| {
            view.active.remove(index);
        }
    };
    check(leave(0), &["error: primary \"11111111\" is not active: its sitter says: being primary"]);
    check(leave(1), &["error: sync \"22222222\" is not active: its sitter says: being sync"]);
    check(leave(2), &["warning: async \"33333333\" is not active: its sitter says: being async"]);
}

/// Rule H1.
#[test]
fn downstreams_that_are_not_as_they_should_be() {
    check(
        |view| status(view, 0).postgres.senders.clear(),
        &["error: peer \"11111111\": downstream replication peer \"22222222\" not connected"],
    );
    check(
        |view| status(view, 1).postgres.senders.clear(),
        &["warning: peer \"22222222\": downstream replication peer \"33333333\" not connected"],
    );
    check(
        |view| status(view, 0).postgres.senders = vec![sender(&peer(3), "sync")],
        &[
            "error: peer \"11111111\": downstream replication peer \"22222222\" not connected",
            "warning: peer \"11111111\": \"33333333\" streams from it, expected is \"22222222\"",
        ],
    );
    check(
        |view| status(view, 0).postgres.senders[0].state = "catchup".to_owned(),
        &["error: peer \"11111111\": downstream replication to \"22222222\" is in state \
           \"catchup\", not \"streaming\""],
    );
    check(
        |view| status(view, 0).postgres.senders[0].sync_state = "async".to_owned(),
        &["error: peer \"11111111\": downstream replication to \"22222222\" has sync_state \
           \"async\", not \"sync\""],
    );
    check(
        |view| status(view, 2).postgres.senders[0].sync_state = "potential".to_owned(),
        &["warning: peer \"33333333\": downstream replication to \"44444444\" has sync_state \
           \"potential\", not \"async\""],
    );
}

#[test]
fn standbys_of_others_are_none_of_our_business() {
    check(|view| status(view, 0).postgres.senders.push(sender(&peer(9), "async")), &[]);
}

#[test]
fn what_sitters_report() {
    check(
        |view| status(view, 0).postgres.writable = false,
        &["error: primary \"11111111\" takes no writes: being primary"],
    );
    check(
        |view| status(view, 2).failure = Some("cannot start PostgreSQL".to_owned()),
        &["warning: async \"33333333\": cannot start PostgreSQL"],
    );
    check(
        |view| {
            status(view, 0).fenced = true;
            status(view, 0).postgres.online = false;
            status(view, 0).postgres.error = Some("stopped".to_owned());
        },
        &[
            "error: cannot query postgres on primary: peer \"11111111\": stopped",
            "error: primary \"11111111\" is fenced: its sitter stopped PostgreSQL, because neither \
             the coordination nor the sync proved that it may serve",
        ],
    );
}

#[test]
fn too_few_peers_and_deposed_ones() {
    let mut small = state();
    small.asyncs.clear();
    check_state(
        &small,
        |_| {},
        &["warning: cluster has no async peers: nobody can replace the sync"],
    );
    let mut deposed = state();
    deposed.deposed.push(peer(5));
    check_state(
        &deposed,
        |view| {
            view.active.pop();
        },
        &["warning: cluster has a deposed peer: \"55555555\": its sitter says: being deposed"],
    );
    check_state(
        &deposed,
        |view| {
            status(view, 4).copying = Some(Copying {
                source: Some("10.0.0.2:5432:12345".to_owned()),
                phase: "receiving".to_owned(),
                bytes_done: 3 << 20,
                bytes_total: Some(12 << 20),
                rate: Some(2 << 20),
                remaining: Some(4),
            });
        },
        &["warning: cluster has a deposed peer: \"55555555\": is being rebuilt: receiving from \
           10.0.0.2:5432:12345, 3 of 12 MiB (25%), 2 MiB/s, 0m04s left"],
    );
}

#[test]
fn promote_requests_left_over() {
    let request = |generation, expires: &str| {
        let mut state = state();
        state.promote = Some(Promote {
            id: peer(2).id,
            role: PromoteRole::Sync,
            async_index: None,
            generation: Generation(generation),
            expire_time: expires.parse().expect("a time"),
            extra: serde_json::Map::new(),
        });
        state
    };
    check_state(&request(3, "2026-05-04T10:00:01Z"), |_| {}, &[]);
    check_state(
        &request(3, NOW),
        |_| {},
        &["warning: a promote request for 10.0.0.2:5432:12345 is left over: it expired at \
           2026-05-04T10:00:00Z, and the primary has not taken it out"],
    );
    check_state(
        &request(2, "2026-05-04T10:00:01Z"),
        |_| {},
        &["warning: a promote request for 10.0.0.2:5432:12345 is left over: it was made for \
           generation 2, and the primary has not taken it out"],
    );
}

#[test]
fn two_registrations_of_one_peer() {
    check(
        |view| view.active.push(Registration { sequence: 9, peer: peer(2) }),
        &["warning: peer 10.0.0.2:5432:12345 is registered 2 times: a session of before has not \
           expired yet, or two sitters run under one name"],
    );
}
