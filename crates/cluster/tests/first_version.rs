//! A peer of ours among those of a shard of the original's first version, which has no cluster state.

use cluster::{
    Database, DeposedPolicy, PeerIdent, PgTarget, Reason, Role, View, decide, v1::RegistrationName,
};

/// It waits, whatever its place in the order, and neither declares anything nor runs PostgreSQL.
#[test]
fn a_peer_with_a_database_and_without_a_state_waits() {
    let me = PeerIdent::new("10.0.0.1", 5432, 12345, "me");
    let old = |name: &str| {
        let name = RegistrationName::parse(name).expect("a name");
        name.peer(b"{}").expect("a peer")
    };
    let (two, three) = (old("10.0.0.2-0000000000"), old("10.0.0.3:1:2:3-0000000001"));
    for active in [
        vec![me.clone(), two.clone(), three.clone()],
        vec![two.clone(), three, me.clone()],
        vec![me.clone(), two],
        vec![me.clone()],
    ] {
        let decision = decide(&View {
            me: &me,
            one_node_write_mode: false,
            deposed_policy: DeposedPolicy::Auto,
            now: "2026-05-04T10:00:00Z".parse().expect("a time"),
            state: None,
            active: &active,
            database: Database::Established,
            applied: None,
            wal: None,
            timeline: None,
            caught_up: None,
            rebuilt: false,
        });
        assert_eq!(decision.reason, Reason::DatabaseWithoutState, "among {active:?}");
        assert_eq!((decision.role, decision.postgres), (Role::Unassigned, PgTarget::Offline));
        assert!(decision.write.is_none());
    }
}
