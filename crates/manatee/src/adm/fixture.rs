//! A healthy shard to break, for the tests of everything that is computed from a [`ShardView`].

use super::view::{PeerView, ShardView, Stored, roles};
use crate::status::{PeerStatus, PgStatus, ReasonText, SenderStatus};
use adapters::coord::{Registration, StoredState, Version};
use cluster::{ClusterState, Database, Generation, Lsn, PeerIdent, Role};

/// Peer `n`: `10.0.0.n`, zone `nnnnnnnn-zone`.
pub fn peer(n: usize) -> PeerIdent {
    PeerIdent::new(
        &format!("10.0.0.{n}"),
        5432,
        12345,
        &format!("{}-zone", n.to_string().repeat(8)),
    )
}

/// Peer 1 is primary, 2 sync, 3 and 4 asyncs.
pub fn state() -> ClusterState {
    ClusterState {
        generation: Generation(3),
        primary: peer(1),
        sync: Some(peer(2)),
        asyncs: vec![peer(3), peer(4)],
        deposed: Vec::new(),
        init_wal: "0/17B7188".parse().expect("an LSN"),
        init_timeline: None,
        primary_timeline: None,
        freeze: None,
        one_node_write_mode: None,
        promote: None,
        extra: serde_json::Map::new(),
    }
}

/// A shard with this state in which all is well: everybody is active and streams.
pub fn healthy(state: &ClusterState) -> ShardView {
    let raw = StoredState { version: Version(7), json: state.to_json() };
    let active = state.chain().chain(&state.deposed).zip(1..);
    let active = active.map(|(peer, sequence)| Registration { sequence, peer: peer.clone() });
    let peers = roles(state).map(|(role, ident)| {
        let senders = state.downstream_of(&ident.id).map(|downstream| {
            let sync_state = if role == Role::Primary { "sync" } else { "async" };
            sender(downstream, sync_state)
        });
        let status = status(role, ident, senders.into_iter().collect());
        PeerView { role, ident: ident.clone(), status: Ok(Box::new(status)) }
    });
    ShardView {
        coordination: "sqlite:/run/shard.db".to_owned(),
        shard: "1.example".to_owned(),
        active: active.collect(),
        peers: peers.collect(),
        stored: Some(Stored::new(raw)),
    }
}

/// A stream to `downstream` that is as it should be.
pub fn sender(downstream: &PeerIdent, sync_state: &str) -> SenderStatus {
    let at = |byte| Some(Lsn::new(byte));
    SenderStatus {
        peer: downstream.id.to_string(),
        state: "streaming".to_owned(),
        sync_state: sync_state.to_owned(),
        sent: at(0x1_2000_00A0),
        write: at(0x1_2000_0090),
        flush: at(0x1_2000_0080),
        replay: at(0x1_2000_0070),
    }
}

/// What a healthy sitter says.
pub fn status(role: Role, ident: &PeerIdent, senders: Vec<SenderStatus>) -> PeerStatus {
    let standby = matches!(role, Role::Sync | Role::Async);
    PeerStatus {
        version: "3.0.0".to_owned(),
        shard: "1.example".to_owned(),
        peer: ident.clone(),
        role,
        reason: ReasonText {
            kind: "following".to_owned(),
            rule: "C1".to_owned(),
            text: format!("being {role}"),
        },
        generation: Some(Generation(3)),
        in_session: true,
        database: Some(Database::Established),
        pending: Vec::new(),
        fenced: false,
        rebuild_asked: false,
        may_serve_ms: None,
        failure: None,
        copying: None,
        copies: 0,
        sending: Vec::new(),
        postgres: PgStatus {
            online: role != Role::Deposed,
            age_ms: Some(300),
            writable: role == Role::Primary,
            in_recovery: Some(standby),
            streaming: standby.then_some(true),
            wal: Some(Lsn::new(0x1_2000_0080)),
            replay: standby.then_some(Lsn::new(0x1_2000_0080)),
            senders,
            ..PgStatus::default()
        },
    }
}
