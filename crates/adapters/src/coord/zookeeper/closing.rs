//! Closing a shard that was made without credentials: an ACL is given to a node when it is made, and one
//! that everybody may change stays so until somebody gives it another.
//!
//! - *A peer without credentials is never locked out while it is registered*: while one is, nothing is
//!   closed, and the log says who. So peers get their credentials one at a time, and the last one closes.
//! - *The nodes come before what stands below them*, so that nobody adds an entry of the history that is
//!   not found here.
//! - What is given to somebody by name stays his; the nodes above the shard's are not ours to close.

use super::calls::AT_ONCE;
use super::failure::Failure;
use super::follow::Shard;
use super::layout::Layout;
use super::link::OWNED;
use crate::coord::follow::describe;
use std::time::Duration;
use zookeeper_client::{Acl, AuthId, Client, Error, Permission, Stat};

/// How soon what could not be closed is tried again. Each try is a session, and what it waits for is that
/// a session ends, or that a person does something.
const AGAIN: Duration = Duration::from_secs(10);

/// Tries until nobody but us can change anything of this shard; what is in the way is told once.
pub(super) async fn keep_trying(shard: Shard) {
    let Shard { link, layout, .. } = &shard;
    let mut told = None;
    loop {
        let work = |client| async move { close(&client, layout).await };
        match link.ask("closing", work).await {
            Ok(0) => return,
            Ok(nodes) => {
                tracing::info!(target = link.target, nodes, "closed to everybody but our user");
                return;
            }
            Err(error) => {
                let why = describe(&error);
                if told.as_ref() != Some(&why) {
                    let text = "whoever reaches the ensemble can still change this shard";
                    tracing::warn!(error = why, "{text}");
                    told = Some(why);
                }
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Takes from everybody what is more than reading. How many nodes were open.
async fn close(client: &Client, layout: &Layout) -> Result<usize, Failure> {
    let Layout { shard, election, state, history } = layout;
    let registered = below(client, election).await?;
    let mut paths = Vec::new();
    let mut without = Vec::new();
    for (path, _, stat) in open_ones(client, &registered).await? {
        match (stat.ephemeral_owner, path.rsplit_once('/')) {
            (0, _) | (_, None) => paths.push(path),
            (_, Some((_, name))) => without.push(name.to_owned()),
        }
    }
    if !without.is_empty() {
        return Err(Failure::WithoutCredentials(without.join(", ")));
    }
    let nodes = [shard, election, state, history].map(Clone::clone);
    let mut closed = close_all(client, &nodes).await?;
    paths.extend(below(client, history).await?);
    closed += close_all(client, &paths).await?;
    Ok(closed)
}

async fn below(client: &Client, parent: &str) -> Result<Vec<String>, Failure> {
    match client.list_children(parent).await {
        Ok(names) => Ok(names.iter().map(|name| format!("{parent}/{name}")).collect()),
        Err(Error::NoNode) => Ok(Vec::new()),
        Err(error) => Err(Failure::node("read", parent, error)),
    }
}

/// Those of these nodes that everybody may change.
async fn open_ones(
    client: &Client,
    paths: &[String],
) -> Result<Vec<(String, Vec<Acl>, Stat)>, Failure> {
    let mut open = Vec::new();
    for some in paths.chunks(AT_ONCE) {
        // Each request is sent when its future is made: they are answered together.
        let answers: Vec<_> = some.iter().map(|path| client.get_acl(path)).collect();
        for (path, answer) in some.iter().zip(answers) {
            match answer.await {
                Ok((acl, stat)) if acl.iter().any(is_open) => open.push((path.clone(), acl, stat)),
                Ok(_) | Err(Error::NoNode) => {}
                Err(error) => return Err(Failure::node("read", path, error)),
            }
        }
    }
    Ok(open)
}

/// Closes those of these nodes that are open; one that cannot be closed keeps no other one open.
async fn close_all(client: &Client, paths: &[String]) -> Result<usize, Failure> {
    let (mut closed, mut failed) = (0, None);
    let mut open = open_ones(client, paths).await?;
    while !open.is_empty() {
        let mut changed = Vec::new();
        for some in open.chunks(AT_ONCE) {
            let wanted: Vec<_> = some.iter().map(|(_, acl, _)| ours(acl)).collect();
            let answers: Vec<_> = some
                .iter()
                .zip(&wanted)
                .map(|((path, _, stat), acl)| client.set_acl(path, acl, Some(stat.aversion)))
                .collect();
            for ((path, _, _), answer) in some.iter().zip(answers) {
                match answer.await {
                    Ok(_) => closed += 1,
                    Err(Error::NoNode) => {}
                    // By another peer of ours, as a rule.
                    Err(Error::BadVersion) => changed.push(path.clone()),
                    Err(error) => {
                        failed.get_or_insert(Failure::node("closed", path, error));
                    }
                }
            }
        }
        open = open_ones(client, &changed).await?;
    }
    failed.map_or(Ok(closed), Err)
}

fn is_everybody(acl: &Acl) -> bool {
    *acl.auth_id() == AuthId::anyone()
}

fn is_open(acl: &Acl) -> bool {
    is_everybody(acl) && acl.permission() & Permission::READ != acl.permission()
}

fn ours(acl: &[Acl]) -> Vec<Acl> {
    acl.iter().filter(|acl| !is_everybody(acl)).chain(&OWNED).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_everybody_may_and_what_stays() {
        let anyone = |permission| Acl::new(permission, AuthId::anyone());
        let other = Acl::new(Permission::ALL, AuthId::new("ip", "10.0.0.9"));
        for (permission, open) in [
            (Permission::NONE, false),
            (Permission::READ, false),
            (Permission::WRITE, true),
            (Permission::READ | Permission::CREATE, true),
            (Permission::DELETE, true),
            (Permission::ADMIN, true),
            (Permission::ALL, true),
        ] {
            assert_eq!(is_open(&anyone(permission)), open, "{permission}");
        }
        assert!(!is_open(&other));
        let [own, readable] = OWNED.clone();
        assert_eq!(ours(&[anyone(Permission::ALL), other.clone()]), [other, own, readable]);
    }
}
