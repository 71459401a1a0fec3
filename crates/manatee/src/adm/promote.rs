//! `adm promote` and `adm clear-promote`: an operator asks for a peer to move one place up (rule P1 of
//! SPEC.md). The peers do it, or find that it cannot be; what is asked for here stands in the cluster state.

use super::Shard;
use super::backfill::confirmed;
use super::change::{Step, change, change_among};
use super::gather::{Ask, gather};
use super::history::instant;
use super::problems;
use super::view::{PeerView, ShardView};
use adapters::clock;
use adapters::coord::Registration;
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use cluster::{ClusterState, Millis, PeerId, PeerIdent, Promote, PromoteRole};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use std::{fmt, io, time::Duration};
use tokio::time::sleep;

/// Between two looks at what becomes of a request.
const POLL: Duration = Duration::from_millis(300);
/// How long after its end a request may still stand in the state: clocks differ, and the primary has to write.
const GRACE: SignedDuration = SignedDuration::from_secs(10);
/// How long one that was granted may take to serve.
const TO_SERVE: Millis = Millis(60_000);

/// Who is asked for.
#[derive(Debug, Args)]
pub struct Promotion {
    /// Its zone, the first eight characters of that as tables show them, or its whole name ip:port:port
    #[arg(short = 'n', long = "zonename", visible_alias = "zone", value_name = "ZONE")]
    pub zone: String,
    /// The role that it has now; refused where it has another
    #[arg(short, long, value_enum)]
    pub role: Option<Asked>,
    /// Its place among the asyncs now, the first being 0; refused where it has another
    #[arg(short = 'i', long = "asyncIndex", visible_alias = "async-index", value_name = "INDEX")]
    pub index: Option<usize>,
    /// How many seconds its replay may be behind before that counts as a problem
    #[arg(short, long, value_name = "SECONDS", default_value_t = 5)]
    pub lag: u32,
    /// For how many seconds the request stands, by the clocks of the peers; then it is void
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub expire: u32,
    /// Ask for it without a question, also where problems are found
    #[arg(short, long)]
    pub yes: bool,
}

/// A role that a peer is promoted from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Asked {
    Sync,
    Async,
}

/// A place in the chain below the primary's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Sync,
    Async(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Sync => f.write_str("the sync"),
            Place::Async(index) => write!(f, "async {index}"),
        }
    }
}

impl Place {
    /// What a peer there becomes.
    fn above(self) -> &'static str {
        match self {
            Place::Sync => {
                "the primary; clients of the old one are cut off, and it comes back as an async"
            }
            Place::Async(0) => "the sync, and the sync the first async",
            Place::Async(_) => "one async further up",
        }
    }

    fn of(state: &ClusterState, id: &PeerId) -> Option<Place> {
        if state.sync.as_ref().is_some_and(|sync| sync.id == *id) {
            return Some(Place::Sync);
        }
        state.asyncs.iter().position(|peer| peer.id == *id).map(Place::Async)
    }
}

/// Whether this is who was meant.
fn is_meant(peer: &PeerIdent, zone: &str) -> bool {
    [peer.zone_id.as_str(), peer.abbreviation(), peer.id.as_str()].contains(&zone)
}

impl Promotion {
    /// The peer that is meant, and where it stands, if that may move up now.
    fn choose<'a>(
        &self,
        state: &'a ClusterState,
        active: &[Registration],
    ) -> Result<(&'a PeerIdent, Place)> {
        let meant =
            || state.chain().chain(&state.deposed).filter(|peer| is_meant(peer, &self.zone));
        let named = |peers: &mut dyn Iterator<Item = &PeerIdent>| {
            let names = peers.map(|peer| format!("{} ({})", peer.id, peer.zone_id));
            names.collect::<Vec<_>>().join(", ")
        };
        let Some(peer) = meant().next() else {
            bail!(
                "not asked for: no peer of the shard is {:?}; there are: {}",
                self.zone,
                named(&mut state.chain())
            );
        };
        if meant().count() > 1 {
            bail!(
                "not asked for: {:?} may be any of these, give the whole name of one: {}",
                self.zone,
                named(&mut meant())
            );
        }
        let name = format!("{} ({})", peer.id, peer.zone_id);
        if state.is_one_node_write_mode() {
            bail!("not asked for: the shard is in one-node-write mode, where nobody moves");
        }
        if state.primary.id == peer.id {
            bail!("not asked for: {name} is the primary");
        }
        let Some(place) = Place::of(state, &peer.id) else {
            bail!("not asked for: {name} is deposed; it has to come back first, as an async");
        };
        let as_said = match (self.role, place) {
            (Some(Asked::Sync), Place::Async(_)) | (Some(Asked::Async), Place::Sync) => false,
            (_, Place::Async(index)) => self.index.is_none_or(|given| given == index),
            (_, Place::Sync) => self.index.is_none(),
        };
        if !as_said {
            bail!("not asked for: {name} is {place}, which is not what -r and -i say");
        }
        let is_active = |id: &PeerId| active.iter().any(|registration| registration.peer.id == *id);
        if !is_active(&peer.id) {
            bail!("not asked for: {name} is not active, so it could not take another place");
        }
        if place == Place::Sync && !state.asyncs.iter().any(|peer| is_active(&peer.id)) {
            bail!(
                "not asked for: no async is active that would become the sync of {name}, and nobody \
                 serves without one"
            );
        }
        if state.is_frozen() && !matches!(place, Place::Async(1..)) {
            bail!(
                "not asked for: it would begin a generation, and the shard is frozen; `manatee adm show` \
                 says why, `manatee adm unfreeze` ends it"
            );
        }
        Ok((peer, place))
    }

    /// What is to be written into this state.
    fn request(
        &self,
        state: &ClusterState,
        active: &[Registration],
        now: Timestamp,
    ) -> Result<(Promote, Place)> {
        let (peer, place) = self.choose(state, active)?;
        if let Some(other) = &state.promote
            && other.generation == state.generation
            && now < other.expire_time
        {
            bail!(
                "not asked for: {} was asked for already, until {}; wait for that, or take it back with \
                 `manatee adm clear-promote`",
                other.id,
                instant(other.expire_time)
            );
        }
        let (role, async_index) = match place {
            Place::Sync => (PromoteRole::Sync, None),
            Place::Async(index) => (PromoteRole::Async, Some(index)),
        };
        let end = now + SignedDuration::from_secs(self.expire.into());
        let request = Promote {
            id: peer.id.clone(),
            role,
            async_index,
            generation: state.generation,
            // The original writes milliseconds.
            expire_time: Timestamp::from_millisecond(end.as_millisecond())?,
            extra: serde_json::Map::new(),
        };
        Ok((request, place))
    }

    /// What speaks against it: whatever is wrong with the shard, and what this peer has yet to replay.
    fn doubts(&self, view: &ShardView, id: &PeerId, now: Timestamp) -> Vec<String> {
        let problems = problems::find(view, now);
        let mut doubts: Vec<_> = problems.iter().map(ToString::to_string).collect();
        let lag = view.peers.iter().find(|peer| peer.ident.id == *id).and_then(PeerView::lag_ms);
        match lag {
            Some(ms) if ms > u64::from(self.lag) * 1000 => {
                doubts.push(format!("warning: its replay is {} s behind", ms / 1000));
            }
            Some(_) => {}
            None => doubts.push("warning: how far its replay is behind is not known".to_owned()),
        }
        doubts
    }
}

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Stands,
    Granted,
    /// It does not stand any more, and nothing came of it.
    Void,
    /// Its time is over, and it is still there.
    Expired,
}

fn fate(state: &ClusterState, request: &Promote, now: Timestamp) -> Fate {
    let granted = match request.async_index {
        None => state.primary.id == request.id,
        Some(0) => state.sync.as_ref().is_some_and(|sync| sync.id == request.id),
        Some(index) => {
            matches!(Place::of(state, &request.id), Some(Place::Async(now)) if now < index)
        }
    };
    match &state.promote {
        _ if granted => Fate::Granted,
        Some(standing) if standing == request && now > request.expire_time + GRACE => Fate::Expired,
        Some(standing) if standing == request => Fate::Stands,
        _ => Fate::Void,
    }
}

/// Asks for a promotion, and shows what becomes of it.
///
/// # Errors
/// When it could not be granted, was not confirmed, was not granted in its time, or the one who is
/// primary then does not come to take writes; otherwise as [`super::change::change`].
pub async fn promote(shard: &Shard, options: &Promotion, json: bool) -> Result<()> {
    let view = gather(shard, Ask::Sitters).await?;
    super::listable(&view)?;
    let Some(state) = view.state() else { bail!("not asked for: there is no cluster state") };
    let (request, place) = options.request(state, &view.active, Timestamp::now())?;
    let doubts = options.doubts(&view, &request.id, Timestamp::now());
    for doubt in &doubts {
        eprintln!("{doubt}");
    }
    if !options.yes {
        let against = if doubts.is_empty() { "" } else { "In spite of these problems: " };
        let question =
            format!("{against}{place}, {}, becomes {}; go on", request.id, place.above());
        if !confirmed(&question, &mut io::stdin().lock(), &mut io::stderr().lock())? {
            bail!("not asked for: it was not confirmed (`-y` confirms without asking)");
        }
    }
    // Anew: a question takes its time, and so does its answer.
    let (request, _) = options.request(state, &view.active, Timestamp::now())?;
    change_among(shard, |state, active, unsure| {
        if unsure && (fate(state, &request, Timestamp::now()) != Fate::Void) {
            return Ok(Step::Arrived);
        }
        let (again, _) = options.request(state, active, Timestamp::now())?;
        if (&again.id, again.async_index, again.generation)
            != (&request.id, request.async_index, request.generation)
        {
            bail!("not asked for: the shard has changed meanwhile; look again");
        }
        let promote = Some(request.clone());
        Ok(Step::Write(Box::new(ClusterState { promote, ..state.clone() })))
    })
    .await?;
    let state = watch(shard, &request, json).await?;
    super::print(&told(&state, &request, json))
}

fn told(state: &ClusterState, request: &Promote, json: bool) -> String {
    if json {
        let id = |peer: &PeerIdent| peer.id.clone();
        let asyncs: Vec<_> = state.asyncs.iter().map(id).collect();
        let told = json!({
            "promoted": request.id,
            "generation": state.generation,
            "primary": id(&state.primary),
            "sync": state.sync.as_ref().map(id),
            "async": asyncs,
        });
        return format!("{told}\n");
    }
    let place = match Place::of(state, &request.id) {
        None => "the primary, and takes writes".to_owned(),
        Some(place) => place.to_string(),
    };
    format!("{} is {place}, in generation {}\n", request.id, state.generation)
}

/// Waits for the end of a request, and then for the primary to take writes.
async fn watch(shard: &Shard, request: &Promote, json: bool) -> Result<ClusterState> {
    let (mut said, mut granted) = (String::new(), None);
    loop {
        let view = gather(shard, Ask::Sitters).await.context(
            "it was asked for, and what became of it is not known: look with `manatee adm show`",
        )?;
        let Some(state) = view.state() else { bail!("the cluster state is gone") };
        match fate(state, request, Timestamp::now()) {
            Fate::Granted if serves(&view) => return Ok(state.clone()),
            Fate::Granted => {
                let since = *granted.get_or_insert_with(clock::now);
                if clock::now() - since > TO_SERVE {
                    bail!(
                        "it was granted, and the primary does not take writes yet: see `manatee adm show -v`"
                    );
                }
            }
            Fate::Stands => {}
            Fate::Void => bail!(
                "it was not granted: the shard changed before, or somebody took the request back; see \
                 `manatee adm history -v`"
            ),
            Fate::Expired => bail!(
                "it was not granted before it expired, and still stands: see `manatee adm show -v` why \
                 nobody acts, and take it back with `manatee adm clear-promote`"
            ),
        }
        let doing = view
            .peers
            .iter()
            .filter(|peer| peer.ident.id == request.id || peer.ident.id == state.primary.id);
        let doing = doing.filter_map(|peer| Some((peer, peer.status.as_ref().ok()?)));
        let doing =
            doing.map(|(peer, says)| format!("{}: {}\n", peer.abbreviation(), says.reason.text));
        let doing: String = doing.collect();
        if !json && doing != said {
            eprint!("{doing}");
        }
        said = doing;
        sleep(POLL).await;
    }
}

/// Whether the primary says that it takes writes, in the generation that the state has.
fn serves(view: &ShardView) -> bool {
    let generation = view.state().map(|state| state.generation);
    let primary = view.peers.first().and_then(|peer| peer.status.as_ref().ok());
    primary.is_some_and(|says| says.postgres.writable && says.generation == generation)
}

/// Takes a request back; which it was.
///
/// # Errors
/// When there is none; otherwise as [`super::change::change`].
pub async fn clear(shard: &Shard) -> Result<Promote> {
    let taken = std::sync::Mutex::new(None::<Promote>);
    change(shard, |state, unsure| {
        let mut taken = taken.lock().expect("no holder panics");
        match &state.promote {
            None if unsure && taken.is_some() => Ok(Step::Arrived),
            // What was found first is gone: this was asked for since.
            Some(other) if unsure && taken.as_ref().is_some_and(|first| first != other) => {
                Ok(Step::Arrived)
            }
            None => bail!("nobody has asked for a promotion in shard {:?}", shard.target.shard),
            Some(request) => {
                *taken = Some(request.clone());
                Ok(Step::Write(Box::new(ClusterState { promote: None, ..state.clone() })))
            }
        }
    })
    .await?;
    let taken = taken.into_inner().expect("no holder panics");
    Ok(taken.expect("found before it was taken out"))
}

#[cfg(test)]
#[path = "promote_tests.rs"]
mod tests;
