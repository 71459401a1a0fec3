//! Dropping a deposed peer that is gone for good.
//!
//! Nothing depends on a peer's being in `deposed`: should one that was dropped come back all the same,
//! the primary takes it for a newcomer, and what went its own way there cannot be followed, so that it is
//! replaced by a copy (rule X4 of SPEC.md).

use super::Shard;
use super::change::{Step, change_among};
use adapters::coord::Registration;
use anyhow::{Result, bail};
use clap::Args;
use cluster::{ClusterState, PeerIdent};

/// Which peer is meant.
#[derive(Debug, Clone, Default, Args)]
#[group(multiple = false)]
pub struct Which {
    /// By its address, or its whole name ip:port:port where several peers have that address
    #[arg(short, long)]
    pub ip: Option<String>,
    /// By its zone, or its first eight characters as tables show them
    #[arg(short = 'n', long = "zonename", visible_alias = "zone", value_name = "ZONE")]
    pub zone: Option<String>,
}

impl Which {
    fn matches(&self, peer: &PeerIdent) -> bool {
        let ip = self.ip.as_ref().is_none_or(|ip| *ip == peer.ip || *ip == peer.id.as_str());
        let zone = self.zone.as_ref();
        ip && zone.is_none_or(|zone| *zone == peer.zone_id || *zone == peer.abbreviation())
    }

    fn shown(&self) -> String {
        match (&self.ip, &self.zone) {
            (Some(ip), _) => format!("a peer at {ip}"),
            (None, Some(zone)) => format!("a peer in zone {zone:?}"),
            (None, None) => "a peer".to_owned(),
        }
    }
}

/// Takes the peer that is meant out of `deposed`; without a word of which, the only one in it.
///
/// # Errors
/// When it is not deposed, or active, or several are meant; otherwise as [`super::change::change`].
pub async fn reap(shard: &Shard, which: &Which) -> Result<PeerIdent> {
    let chosen = std::sync::Mutex::new(None::<PeerIdent>);
    change_among(shard, |state, active, unsure| {
        let mut chosen = chosen.lock().expect("no holder panics");
        let gone = |peer: &PeerIdent| state.deposed.iter().all(|other| other.id != peer.id);
        if unsure && chosen.as_ref().is_some_and(gone) {
            return Ok(Step::Arrived);
        }
        let peer = choose(state, active, which)?;
        let mut next = state.clone();
        next.deposed.retain(|other| other.id != peer.id);
        *chosen = Some(peer);
        Ok(Step::Write(Box::new(next)))
    })
    .await?;
    let chosen = chosen.into_inner().expect("no holder panics");
    Ok(chosen.expect("chosen before it was written"))
}

/// The one deposed peer that is meant, if it may be dropped.
fn choose(state: &ClusterState, active: &[Registration], which: &Which) -> Result<PeerIdent> {
    let meant: Vec<_> = state.deposed.iter().filter(|peer| which.matches(peer)).collect();
    let peer = match (meant.as_slice(), state.chain().find(|peer| which.matches(peer))) {
        ([peer], _) => *peer,
        ([], _) if state.deposed.is_empty() => bail!("not changed: no peer is deposed"),
        ([], Some(peer)) => bail!(
            "not changed: {} ({}) is not deposed but a member of the shard; the primary drops an \
             async that is gone by itself",
            peer.id,
            peer.zone_id
        ),
        ([], None) => bail!(
            "not changed: {} is not among the deposed, which are: {}",
            which.shown(),
            listed(&state.deposed.iter().collect::<Vec<_>>())
        ),
        (several, _) => bail!(
            "not changed: {} may be any of these, say which with -i or -n: {}",
            which.shown(),
            listed(several)
        ),
    };
    if active.iter().any(|registration| registration.peer.id == peer.id) {
        bail!(
            "not changed: {} ({}) is deposed but active, so it is not gone: its sitter brings it back by \
             itself, or, with `deposed = \"manual\"`, `manatee adm rebuild` there does; stop its sitter \
             first if it is to leave the shard",
            peer.id,
            peer.zone_id
        );
    }
    Ok(peer.clone())
}

fn listed(peers: &[&PeerIdent]) -> String {
    let names = peers.iter().map(|peer| format!("{} ({})", peer.id, peer.zone_id));
    names.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adm::fixture::{peer, state};

    fn by(ip: &str, zone: &str) -> Which {
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Which { ip: given(ip), zone: given(zone) }
    }

    /// Peers 5 and 6 are deposed, and 6 is active.
    fn check(which: &Which, expected: Result<usize, &str>) {
        let state = ClusterState { deposed: vec![peer(5), peer(6)], ..state() };
        let active = [Registration { sequence: 1, peer: peer(6) }];
        match (choose(&state, &active, which), expected) {
            (Ok(chosen), Ok(n)) => assert_eq!(chosen, peer(n)),
            (Err(error), Err(part)) => {
                let text = error.to_string();
                assert!(text.contains(part), "{text:?} without {part:?}");
            }
            (got, expected) => panic!("{which:?}: {got:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn only_one_that_is_deposed_and_gone_is_dropped() {
        check(&by("10.0.0.5", ""), Ok(5));
        check(&by("10.0.0.5:5432:12345", ""), Ok(5));
        check(&by("", "55555555-zone"), Ok(5));
        check(&by("", "55555555"), Ok(5));
        check(&by("", "5555555"), Err("is not among the deposed"));
        check(&by("10.0.0.9", ""), Err("a peer at 10.0.0.9 is not among the deposed"));
        check(&by("10.0.0.3", ""), Err("is not deposed but a member"));
        check(&by("10.0.0.6", ""), Err("is deposed but active"));
        check(&by("", ""), Err("say which with -i or -n: 10.0.0.5:5432:12345 (55555555-zone), 10"));
    }

    #[test]
    fn the_only_one_needs_no_name() {
        let one = ClusterState { deposed: vec![peer(5)], ..state() };
        assert_eq!(choose(&one, &[], &Which::default()).expect("the only one"), peer(5));
        let error = choose(&state(), &[], &Which::default()).expect_err("nobody").to_string();
        assert_eq!(error, "not changed: no peer is deposed");
    }
}
