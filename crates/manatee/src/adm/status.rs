//! `adm status`: the shard by role, as JSON, in the original's form.

use super::gather::{ask_all, gather};
use super::view::PeerView;
use super::{Shard, gather::Ask};
use anyhow::Result;
use cluster::{ClusterState, Freeze, PeerIdent, Role, v1};
use serde_json::{Map, Value, json};

/// The shard by role; with `legacy` from the order of registrations, as in the first version, whatever
/// the state says.
///
/// # Errors
/// When the coordination cannot be read, or what is stored there cannot be understood.
pub async fn status(shard: &Shard, legacy: bool) -> Result<Value> {
    let name = &shard.target.shard;
    let by_role = if legacy {
        let active = shard.coord.read().await?.active;
        let registered: Vec<PeerIdent> = active.into_iter().map(|one| one.peer).collect();
        let named = v1::roles(&registered).into_iter().map(|(role, peer)| (role, peer.clone()));
        by_role(None, &ask_all(&shard.target, named.collect()).await?)
    } else {
        let view = gather(shard, Ask::Sitters).await?;
        super::listable(&view)?;
        by_role(view.state(), &view.peers)
    };
    Ok(json!({ name: by_role }))
}

fn by_role(state: Option<&ClusterState>, peers: &[PeerView]) -> Map<String, Value> {
    let mut object = Map::new();
    if let Some(frozen) = state.and_then(|state| state.freeze.as_ref()).and_then(frozen) {
        object.insert("__FROZEN__".to_owned(), frozen.into());
    }
    for (index, peer) in peers.iter().enumerate() {
        let before = peers[..index].iter().filter(|other| other.role == peer.role).count();
        let number = if before == 0 { String::new() } else { before.to_string() };
        let chain = peers.iter().filter(|other| other.role != Role::Deposed);
        let downstream = chain.skip(index + 1).map(|next| &next.ident).next();
        object.insert(format!("{}{number}", peer.role.label()), entry(peer, downstream));
    }
    object
}

fn frozen(freeze: &Freeze) -> Option<String> {
    match freeze {
        Freeze::Since(info) => Some(format!("{}: {}", info.date, info.reason)),
        Freeze::Bare(true) => Some("since when and why is not known".to_owned()),
        Freeze::Bare(false) => None,
    }
}

/// A peer as it stands in the state, with what PostgreSQL says of itself.
fn entry(peer: &PeerView, downstream: Option<&PeerIdent>) -> Value {
    let mut entry = json!(peer.ident);
    match peer.postgres() {
        Err(error) => {
            entry["online"] = false.into();
            entry["error"] = error.into();
        }
        Ok(_) => {
            entry["online"] = true.into();
            let sender = downstream.and_then(|downstream| peer.sender_to(&downstream.id));
            entry["repl"] = sender.map_or_else(
                || json!({}),
                |sender| {
                    json!({
                        "application_name": sender.peer,
                        "state": sender.state,
                        "sync_state": sender.sync_state,
                        "sent_lsn": sender.sent,
                        "write_lsn": sender.write,
                        "flush_lsn": sender.flush,
                        "replay_lsn": sender.replay,
                    })
                },
            );
            if let (Role::Async, Some(lag)) = (peer.role, peer.lag_ms()) {
                let (minutes, seconds) = (lag / 60_000, lag / 1000 % 60);
                entry["lag"] = json!({ "time_lag": { "minutes": minutes, "seconds": seconds } });
            }
        }
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adm::fixture::{healthy, peer, state};

    #[test]
    fn by_role_and_number() {
        let mut state = state();
        state.deposed = vec![peer(5), peer(6)];
        state.freeze = Some(Freeze::Bare(true));
        let mut view = healthy(&state);
        view.peers[2].status = Err("refused".to_owned());
        let got = Value::Object(by_role(Some(&state), &view.peers));
        let keys: Vec<_> = got.as_object().expect("an object").keys().cloned().collect();
        let expected = ["__FROZEN__", "async", "async1", "deposed", "deposed1", "primary", "sync"];
        assert_eq!(keys, expected);
        assert_eq!(got["primary"]["zoneId"], "11111111-zone");
        assert_eq!(got["primary"]["online"], true);
        assert_eq!(got["primary"]["repl"]["sync_state"], "sync");
        assert_eq!(got["primary"]["repl"]["application_name"], peer(2).id.as_str());
        assert_eq!(got["primary"].get("lag"), None);
        assert_eq!(got["async"]["online"], false);
        assert_eq!(got["async"]["error"], "refused");
        assert_eq!(got["async1"]["repl"], json!({}));
        assert_eq!(got["async1"]["lag"], json!({"time_lag": {"minutes": 0, "seconds": 0}}));
        assert_eq!(got["deposed1"]["ip"], "10.0.0.6");
    }
}
