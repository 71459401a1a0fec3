//! Asks the coordination and then all sitters at once.

use super::view::{PeerView, ShardView, Stored, roles};
use super::{Shard, reach::Target};
use crate::status::PeerStatus;
use anyhow::Result;
use cluster::{PeerIdent, Role};
use std::{error::Error, time::Duration};
use tokio::task::JoinSet;

/// How long a sitter may take to answer, everything included.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);

/// More than any sitter has to say.
const STATUS_LIMIT: u64 = 1024 * 1024;

/// Whether the sitters are asked, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Only the coordination.
    Coordination,
    /// The sitter of each peer that the state names.
    Sitters,
}

/// The shard as it is now.
pub async fn gather(shard: &Shard, ask: Ask) -> Result<ShardView> {
    let Shard { coord, target } = shard;
    let read = coord.read().await?;
    let stored = read.state.map(Stored::new);
    let state = stored.as_ref().and_then(|stored| stored.state.as_ref());
    let named: Vec<(Role, PeerIdent)> = state
        .map(|state| roles(state).map(|(role, ident)| (role, ident.clone())).collect())
        .unwrap_or_default();
    let peers = match ask {
        Ask::Sitters => ask_all(target, named).await?,
        Ask::Coordination => named
            .into_iter()
            .map(|(role, ident)| {
                let status = Err("its sitter was not asked".to_owned());
                PeerView { role, ident, status }
            })
            .collect(),
    };
    Ok(ShardView {
        coordination: target.url.clone(),
        shard: target.shard.clone(),
        stored,
        active: read.active,
        peers,
    })
}

/// Asks the sitter of each of these, all at once.
pub async fn ask_all(target: &Target, named: Vec<(Role, PeerIdent)>) -> Result<Vec<PeerView>> {
    let mut asked = JoinSet::new();
    for (index, (role, ident)) in named.into_iter().enumerate() {
        let shard = target.shard.clone();
        asked.spawn_blocking(move || {
            let status = ask(&shard, &ident).map(Box::new);
            (index, PeerView { role, ident, status })
        });
    }
    let mut peers = Vec::with_capacity(asked.len());
    while let Some(answer) = asked.join_next().await {
        peers.push(answer?);
    }
    peers.sort_by_key(|(index, _)| *index);
    Ok(peers.into_iter().map(|(_, peer)| peer).collect())
}

/// Where a peer's status is to be had: as it says itself, or on the port after its PostgreSQL's.
fn status_url(peer: &PeerIdent) -> Result<String, String> {
    if let Some(url) = peer.extra.get("statusUrl").and_then(serde_json::Value::as_str) {
        return Ok(format!("{}/state", url.trim_end_matches('/')));
    }
    let (host, port) = peer.pg_address().map_err(|error| error.to_string())?;
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let port = port.checked_add(1).ok_or_else(|| {
        format!("it gives no statusUrl, and there is no port after {port} to derive one from")
    })?;
    Ok(format!("http://{host}:{port}/state"))
}

/// What the sitter of this peer says. An answer of somebody else counts as none.
pub fn ask(shard: &str, peer: &PeerIdent) -> Result<PeerStatus, String> {
    let url = status_url(peer)?;
    let status = fetch(&url).map_err(|error| format!("{url}: {}", reason(&error)))?;
    if status.peer.id != peer.id || status.shard != shard {
        return Err(format!(
            "{url}: answered by peer {} of shard {:?}",
            status.peer.id, status.shard
        ));
    }
    Ok(status)
}

fn fetch(url: &str) -> Result<PeerStatus, ureq::Error> {
    // Peers are reached as PostgreSQL reaches them: by no proxy.
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(STATUS_TIMEOUT))
        .proxy(None)
        .max_redirects(0)
        .build();
    let mut response = ureq::Agent::new_with_config(config).get(url).call()?;
    response.body_mut().with_config().limit(STATUS_LIMIT).read_json()
}

/// The cause, without the layers that it came through.
fn reason(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(_) => format!("no answer within {} s", STATUS_TIMEOUT.as_secs()),
        ureq::Error::StatusCode(code) => format!("HTTP status {code}"),
        ureq::Error::Io(error) => error.to_string(),
        ureq::Error::Json(error) => format!("not the status of a sitter: {error}"),
        other => {
            let mut text = other.to_string();
            let mut cause = other.source();
            while let Some(error) = cause {
                text = format!("{text}: {error}");
                cause = error.source();
            }
            text
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adm::fixture::peer;

    fn check(change: impl FnOnce(&mut PeerIdent), expected: Result<&str, &str>) {
        let mut peer = peer(1);
        change(&mut peer);
        match (status_url(&peer), expected) {
            (Ok(url), Ok(expected)) => assert_eq!(url, expected),
            (Err(error), Err(part)) => assert!(error.contains(part), "{error}"),
            (got, expected) => panic!("{got:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn where_the_status_is_to_be_had() {
        check(|_| {}, Ok("http://10.0.0.1:5433/state"));
        let give = |url: &'static str| {
            move |peer: &mut PeerIdent| {
                peer.extra.insert("statusUrl".to_owned(), url.into());
            }
        };
        check(give("http://h:7"), Ok("http://h:7/state"));
        check(give("http://h:7/"), Ok("http://h:7/state"));
        check(
            |peer| peer.pg_url = "tcp://postgres@[::1]:5432/postgres".to_owned(),
            Ok("http://[::1]:5433/state"),
        );
        check(
            |peer| peer.pg_url = "tcp://postgres@h:65535/postgres".to_owned(),
            Err("no port after 65535"),
        );
        check(|peer| peer.pg_url = "nonsense".to_owned(), Err("names no host and port"));
    }
}
