use super::*;
use crate::adm::fixture::{peer, state};
use cluster::{FreezeInfo, Generation, Promote, PromoteRole};

/// What the history says of a write that made this change to the usual state.
fn check(change: impl FnOnce(&mut ClusterState), expected: &str) {
    let before = state();
    let mut after = before.clone();
    change(&mut after);
    assert_eq!(summary(&known(&before), &after), expected);
}

fn known(state: &ClusterState) -> Before {
    Before::State(Box::new(state.clone()))
}

fn frozen(reason: &str) -> Option<Freeze> {
    let date = "2026-05-04T10:00:00Z".parse().expect("a time");
    let extra = serde_json::Map::new();
    Some(Freeze::Since(FreezeInfo { date, reason: reason.to_owned(), extra }))
}

#[test]
fn setup() {
    let mut alone = state();
    assert_eq!(summary(&Before::Nothing, &alone), "cluster setup for normal (multi-peer) mode");
    alone.one_node_write_mode = Some(true);
    assert_eq!(
        summary(&Before::Nothing, &alone),
        "cluster setup for singleton (one-node-write) mode"
    );
}

#[test]
fn changes_of_the_pair() {
    check(
        |state| {
            state.generation = Generation(4);
            state.deposed = vec![state.primary.clone()];
            state.primary = peer(2);
            state.sync = Some(state.asyncs.remove(0));
        },
        r#"sync "22222222" took over as primary from "11111111", "11111111" deposed"#,
    );
    check(
        |state| {
            state.generation = Generation(4);
            state.sync = Some(state.asyncs.remove(0));
        },
        r#"primary "11111111" selected new sync "33333333" in place of "22222222""#,
    );
    check(|state| state.primary = peer(9), r#""99999999" took over as primary from "11111111""#);
    check(|state| state.generation = Generation(4), "generation 4 declared");
    check(
        |state| {
            state.sync = None;
            state.asyncs.clear();
            state.one_node_write_mode = Some(true);
        },
        r#"sync "22222222" left, mode is now singleton (one-node-write), async "33333333" left, async "44444444" left"#,
    );
}

#[test]
fn changes_of_the_asyncs() {
    check(|state| state.asyncs.push(peer(5)), r#"async "55555555" added"#);
    check(|state| drop(state.asyncs.remove(0)), r#"async "33333333" left"#);
    check(|state| state.asyncs.reverse(), "asyncs reordered to 44444444,33333333");
    let mut before = state();
    before.deposed = before.asyncs.split_off(1);
    assert_eq!(
        summary(&known(&before), &state()),
        r#"async "44444444" added, "44444444" no longer deposed"#
    );
}

#[test]
fn requests_of_operators() {
    check(|state| state.freeze = frozen("new switch"), "frozen: new switch");
    check(|state| state.freeze = Some(Freeze::Bare(true)), "frozen, for no stated reason");
    let request = Promote {
        id: peer(2).id,
        role: PromoteRole::Sync,
        async_index: None,
        generation: Generation(3),
        expire_time: "2026-05-04T10:00:00Z".parse().expect("a time"),
        extra: serde_json::Map::new(),
    };
    check(
        |state| state.promote = Some(request.clone()),
        "promotion of 10.0.0.2:5432:12345 requested",
    );
    let mut before = state();
    before.freeze = frozen("new switch");
    before.promote = Some(request);
    assert_eq!(
        summary(&known(&before), &state()),
        "unfrozen, request to promote 10.0.0.2:5432:12345 settled"
    );
    before = state();
    before.freeze = frozen("a");
    let mut after = state();
    after.freeze = frozen("b");
    assert_eq!(summary(&known(&before), &after), "reason or date of the freeze changed");
}

#[test]
fn writes_that_change_nothing_that_we_know() {
    check(|_| {}, "no change");
    check(
        |state| {
            state.extra.insert("note".to_owned(), "x".into());
        },
        "other fields changed",
    );
}

fn entry(sequence: u64, time: &str, json: String) -> HistoryEntry {
    let time = time.parse().expect("a time");
    HistoryEntry { sequence, time, generation: Generation(3), json }
}

fn entries() -> Vec<HistoryEntry> {
    let mut larger = state();
    larger.asyncs.push(peer(5));
    vec![
        entry(2, "2026-05-04T09:59:00.5Z", larger.to_json()),
        entry(1, "2026-05-04T10:00:00Z", state().to_json()),
        entry(3, "2026-05-04T10:01:00Z", "{".to_owned()),
    ]
}

#[test]
fn the_table() {
    let table = render(&events(entries(), Vec::new(), Sort::Sequence), true);
    let expected = r#"
TIME                     G# MODE  FRZ PRIMARY  SYNC     ASYNC                      DEPOSED  SUMMARY
2026-05-04T10:00:00.000Z  3 multi -   11111111 22222222 33333333,44444444          -        cluster setup for normal (multi-peer) mode
2026-05-04T09:59:00.500Z  3 multi -   11111111 22222222 33333333,44444444,55555555 -        async "55555555" added
2026-05-04T10:01:00.000Z  3 ?     ?   ?        ?        ?                          ?        cannot be read: cluster state: JSON: EOF while parsing an object at line 1 column 1
"#;
    assert_eq!(format!("\n{table}"), expected);
}

#[test]
fn sorted_by_time_the_summaries_stay_those_of_the_writes() {
    let events = events(entries(), Vec::new(), Sort::Time);
    let got: Vec<_> = events.iter().map(|event| event.sequence).collect();
    assert_eq!(got, [2, 1, 3]);
    assert_eq!(events[0].summary, r#"async "55555555" added"#);
}

#[test]
fn one_json_object_a_line() {
    let text = render_json(&events(entries(), Vec::new(), Sort::Sequence), false);
    let lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[0]["time"], "2026-05-04T10:00:00.000Z");
    assert_eq!(lines[0]["zkSeq"], 1);
    assert_eq!(lines[0]["state"]["sync"]["zoneId"], "22222222-zone");
    assert_eq!(lines[2]["state"], Value::Null);
    assert_eq!(lines[2]["raw"], "{");
}

/// A shard that began as one of the first version and was brought over.
#[test]
fn events_of_the_first_version_beside_the_writes() {
    let old = [
        "1417543665280-10.77.77.47:5432-AssumeLeader-Leader---0000000000",
        "1417543693514-10.77.77.47:5432-NewStandby-leader--10.77.77.48:5432-0000000001",
        "1417543693593-10.77.77.48:5432-NewLeader-Standby-10.77.77.47:5432--0000000002",
    ]
    .map(|name| V1Event::parse(name).expect("an event"));
    let mut entries = entries();
    entries.retain(|entry| entry.sequence == 2);
    entries[0].sequence = 3;
    let events = events(entries, old.to_vec(), Sort::Sequence);
    let table = render(&events, true);
    let expected = r#"
TIME                     G# MODE  FRZ PRIMARY          SYNC             ASYNC                      DEPOSED  SUMMARY
2014-12-02T18:07:45.280Z  - v1    -   10.77.77.47:5432 -                -                          -        10.77.77.47:5432 became primary
2014-12-02T18:08:13.514Z  - v1    -   10.77.77.47:5432 10.77.77.48:5432 -                          -        10.77.77.47:5432 (leader) is followed by 10.77.77.48:5432
2014-12-02T18:08:13.593Z  - v1    -   -                -                -                          -        10.77.77.48:5432 (Standby) follows 10.77.77.47:5432
2026-05-04T09:59:00.500Z  3 multi -   11111111         22222222         33333333,44444444,55555555 -        brought over from the first version, for normal (multi-peer) mode
"#;
    assert_eq!(format!("\n{table}"), expected);
    let json = render_json(&events, false);
    let first: Value = serde_json::from_str(json.lines().next().expect("a line")).expect("JSON");
    assert_eq!(
        first,
        json!({"time": "2014-12-02T18:07:45.280Z", "state": null, "zkSeq": 0, "v1": {
            "ip": "10.77.77.47:5432", "action": "AssumeLeader", "role": "Leader",
            "master": "", "slave": "",
        }})
    );
}
