//! `manatee adm reap`.

use crate::shard::Shard;
use cluster::PeerIdent;

#[test]
fn a_peer_that_is_gone_is_dropped_from_the_deposed() {
    let mut shard = Shard::healthy();
    let peer = |n: usize| PeerIdent::new(&format!("10.0.0.{n}"), 5432, 12345, &format!("zone-{n}"));
    let mut state = shard.state();
    state.deposed = vec![peer(8), peer(9)];
    shard.put(&state);
    shard.peers.push(peer(8));
    shard.join(3);

    shard.run(&["reap"]).fails_with(&["say which with -i or -n", "zone-8", "zone-9"]);
    shard.run(&["reap", "-i", "10.0.0.8"]).fails_with(&["is deposed but active", "adm rebuild"]);
    shard.run(&["reap", "-n", "peer-1-of-shard"]).fails_with(&["is not deposed but a member"]);
    shard.run(&["reap", "-n", "zone-7"]).fails_with(&["a peer in zone \"zone-7\" is not among"]);
    assert_eq!(shard.run(&["reap", "-n", "a", "-i", "b"]).code, Some(2));
    let stored = || shard.run(&["zk-state"]).json(0);
    assert_eq!(stored()["deposed"].as_array().map(Vec::len), Some(2), "nothing was written");

    let said = "10.0.0.9:5432:12345 (zone-9) is no longer among the deposed\n";
    shard.run(&["reap", "-n", "zone-9"]).prints(0, said);
    assert_eq!(stored()["deposed"], serde_json::json!([peer(8)]));
    shard.run(&["reap", "-n", "zone-9"]).fails_with(&["is not among the deposed, which are: 10"]);

    let left = shard.sessions.remove(3);
    shard.runtime.block_on(left.leave()).expect("left");
    let reaped = shard.run(&["reap", "--json"]).json(0);
    assert_eq!(reaped["reaped"]["zoneId"], "zone-8");
    assert_eq!(shard.run(&["history"]).out.lines().count(), 5, "each write has its entry");
}
