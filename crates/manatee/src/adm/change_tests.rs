//! Against the model of a coordination service that can lose answers and be cut off.

use super::*;
use crate::adm::fixture::{peer, state};
use crate::adm::reach::Target;
use crate::adm::reap::{Which, reap};
use adapters::coord::memory::{LostPut, MemoryService};
use adapters::coord::{Coordination, HistoryEntry, Membership, Version, View, Watch};
use async_trait::async_trait;
use cluster::{Generation, Millis, PeerIdent};
use std::sync::{Arc, Mutex};

const NOW: &str = "2026-05-04T10:00:00.123456Z";

fn now() -> Timestamp {
    NOW.parse().expect("a time")
}

fn shard(coord: Arc<dyn Coordination>) -> Shard {
    let target = Target { url: "memory:".to_owned(), shard: "1.example".to_owned(), access: None };
    Shard { coord, target }
}

async fn service(state: Option<&ClusterState>) -> (MemoryService, Shard) {
    let service = MemoryService::new("1.example");
    let client = service.client();
    if let Some(state) = state {
        assert!(matches!(client.put(None, state).await, PutOutcome::Committed(_)));
    }
    (service, shard(Arc::new(client)))
}

async fn stored(shard: &Shard) -> ClusterState {
    let read = shard.coord.read().await.expect("reachable");
    ClusterState::parse(&read.state.expect("stored").json).expect("legal")
}

async fn writes(shard: &Shard) -> usize {
    shard.coord.history().await.expect("reachable").len()
}

#[tokio::test]
async fn freezes_and_unfreezes() {
    let (_, shard) = service(Some(&state())).await;
    let said = freeze(&shard, "new switch", now()).await.expect("frozen");
    assert_eq!(said, "frozen since 2026-05-04T10:00:00.123Z: new switch\n");
    let json: serde_json::Value =
        serde_json::from_str(&stored(&shard).await.to_json()).expect("JSON");
    assert_eq!(
        json["freeze"],
        serde_json::json!({"date": "2026-05-04T10:00:00.123Z", "reason": "new switch"})
    );
    let again = freeze(&shard, "other", now()).await.expect_err("frozen already");
    assert_eq!(
        again.to_string(),
        "shard \"1.example\" is frozen already, since 2026-05-04T10:00:00.123Z: new switch"
    );
    assert_eq!(unfreeze(&shard).await.expect("unfrozen"), "unfrozen\n");
    assert_eq!(stored(&shard).await, state());
    let again = unfreeze(&shard).await.expect_err("not frozen");
    assert_eq!(again.to_string(), "shard \"1.example\" is not frozen");
    assert_eq!(writes(&shard).await, 3);
}

#[tokio::test]
async fn nothing_is_written_where_there_is_no_state_or_an_illegal_one() {
    let (_, empty) = service(None).await;
    let error = freeze(&empty, "x", now()).await.expect_err("no state").to_string();
    assert!(error.contains("has no cluster state yet"), "{error}");
    let mut illegal = state();
    illegal.sync = None;
    let (_, shard) = service(Some(&illegal)).await;
    let error = freeze(&shard, "x", now()).await.expect_err("illegal").to_string();
    assert!(error.contains("sync: is null outside one-node-write mode"), "{error}");
    assert_eq!(writes(&shard).await, 1);
}

#[tokio::test]
async fn a_lost_answer_is_settled_by_reading_again() {
    for (fate, expected) in [(LostPut::Stored, 2), (LostPut::NotStored, 2)] {
        let (service, shard) = service(Some(&state())).await;
        service.lose_next_put(fate);
        freeze(&shard, "new switch", now()).await.expect("frozen");
        assert!(stored(&shard).await.is_frozen());
        assert_eq!(writes(&shard).await, expected, "{fate:?}: written once");
        service.lose_next_put(fate);
        unfreeze(&shard).await.expect("unfrozen");
        assert_eq!(writes(&shard).await, expected + 1, "{fate:?}: written once");
    }
}

/// Something that happens just before a put.
type Before = Box<dyn Fn() + Send + Sync>;

/// A client before whose every put something happens.
struct Interrupted {
    client: Arc<dyn Coordination>,
    meanwhile: Meanwhile,
}

enum Meanwhile {
    /// Somebody else writes this, this many times more.
    Writes(Mutex<usize>, fn(&mut ClusterState)),
    Happens(Before),
}

#[async_trait]
impl Coordination for Interrupted {
    fn target(&self) -> String {
        self.client.target()
    }
    async fn join(
        &self,
        peer: &PeerIdent,
        timeout: Millis,
    ) -> Result<Box<dyn Membership>, CoordError> {
        self.client.join(peer, timeout).await
    }
    async fn watch(&self) -> Result<Watch, CoordError> {
        self.client.watch().await
    }
    async fn read(&self) -> Result<View, CoordError> {
        self.client.read().await
    }
    async fn put(&self, expected: Option<Version>, state: &ClusterState) -> PutOutcome {
        match &self.meanwhile {
            Meanwhile::Happens(happens) => happens(),
            Meanwhile::Writes(left, edit) => {
                let again = {
                    let mut left = left.lock().expect("not poisoned");
                    let again = *left > 0;
                    *left = left.saturating_sub(1);
                    again
                };
                if again {
                    let read = self.client.read().await.expect("reachable");
                    let stored = read.state.expect("stored");
                    let mut other = ClusterState::parse(&stored.json).expect("legal");
                    edit(&mut other);
                    let put = self.client.put(Some(stored.version), &other).await;
                    assert!(matches!(put, PutOutcome::Committed(_)));
                }
            }
        }
        self.client.put(expected, state).await
    }
    async fn history(&self) -> Result<Vec<HistoryEntry>, CoordError> {
        self.client.history().await
    }
}

fn next_generation(state: &mut ClusterState) {
    state.generation = Generation(state.generation.0 + 1);
}

#[tokio::test]
async fn writes_of_others_are_kept() {
    let (_, plain) = service(Some(&state())).await;
    let meanwhile = Meanwhile::Writes(Mutex::new(2), next_generation);
    let shard = shard(Arc::new(Interrupted { client: plain.coord, meanwhile }));
    freeze(&shard, "new switch", now()).await.expect("frozen");
    let stored = stored(&shard).await;
    assert!(stored.is_frozen());
    assert_eq!(stored.generation, Generation(5));
}

#[tokio::test]
async fn gives_up_when_others_write_all_the_time() {
    let (_, plain) = service(Some(&state())).await;
    let meanwhile = Meanwhile::Writes(Mutex::new(usize::MAX), next_generation);
    let shard = shard(Arc::new(Interrupted { client: plain.coord, meanwhile }));
    let error = freeze(&shard, "x", now()).await.expect_err("conflicts").to_string();
    assert!(error.contains("written by others 5 times in a row"), "{error}");
    assert!(!stored(&shard).await.is_frozen());
}

#[tokio::test]
async fn an_outcome_that_stays_unknown_is_said_to_be() {
    let (service, plain) = service(Some(&state())).await;
    let meanwhile = Meanwhile::Happens(Box::new(move || service.set_reachable(false)));
    let shard = shard(Arc::new(Interrupted { client: plain.coord, meanwhile }));
    let error = format!("{:#}", freeze(&shard, "x", now()).await.expect_err("unknown"));
    assert!(error.contains("it is not known whether the change was stored"), "{error}");
    assert!(error.contains("cannot read it again"), "{error}");
}

/// What somebody else froze since is not unfrozen with what was found first.
#[tokio::test]
async fn a_freeze_that_came_meanwhile_is_kept() {
    let (_, plain) = service(Some(&state())).await;
    freeze(&plain, "new switch", now()).await.expect("frozen");
    let anew: fn(&mut ClusterState) = |state| state.freeze = Some(Freeze::Bare(true));
    let meanwhile = Meanwhile::Writes(Mutex::new(1), anew);
    let shard = shard(Arc::new(Interrupted { client: plain.coord, meanwhile }));
    let error = unfreeze(&shard).await.expect_err("frozen anew").to_string();
    assert!(error.contains("was frozen anew meanwhile"), "{error}");
    assert_eq!(stored(&shard).await.freeze, Some(Freeze::Bare(true)));
}

/// A refusal after a lost answer says that the write may come yet, as long as what it replaces stands.
#[tokio::test]
async fn a_refusal_after_a_lost_answer_does_not_say_that_nothing_was_written() {
    for (fate, may_come) in [(LostPut::NotStored, true), (LostPut::Stored, false)] {
        let (service, shard) = service(Some(&state())).await;
        service.lose_next_put(fate);
        let refused = change(&shard, |state, unsure| match unsure {
            true => bail!("not asked for: it is not active"),
            false => Ok(Step::Write(Box::new(state.clone()))),
        });
        let error = format!("{:#}", refused.await.expect_err("refused"));
        assert!(error.contains("it is not active"), "{error}");
        assert_eq!(error.contains("it may even arrive later"), may_come, "{fate:?}: {error}");
    }
}

#[tokio::test]
async fn a_reap_whose_answer_was_lost_is_settled() {
    for fate in [LostPut::Stored, LostPut::NotStored] {
        let deposed = ClusterState { deposed: vec![peer(5)], ..state() };
        let (service, shard) = service(Some(&deposed)).await;
        service.lose_next_put(fate);
        let gone = reap(&shard, &Which::default()).await.expect("dropped");
        assert_eq!((gone, stored(&shard).await), (peer(5), state()), "{fate:?}");
        assert_eq!(writes(&shard).await, 2, "{fate:?}: written once");
    }
}
