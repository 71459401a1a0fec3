//! `adm rebuild`: asks the sitter of this peer to rebuild its database, and shows what it does.
//!
//! The sitter decides and does it all (rule X5 of SPEC.md): when this program ends, it goes on.

use super::backfill::confirmed;
use super::gather::ask;
use super::problems::progress;
use crate::backup::{FetchError, Remote, TlsFiles};
use crate::sitter::config::Config;
use crate::status::PeerStatus;
use adapters::clock;
use anyhow::{Context, Result, bail};
use cluster::{Millis, Monotonic, PeerIdent, Role};
use std::{io, path::Path, time::Duration};
use tokio::time::sleep;

/// Between two questions to the sitter.
const POLL: Duration = Duration::from_millis(300);
/// Between two lines while only the number of bytes changes.
const PERIOD: Millis = Millis(5_000);
/// How long the sitter may be silent: it may be started again meanwhile.
const PATIENCE: Millis = Millis(30_000);

/// Rebuilds the database of the peer whose sitter has this file.
///
/// # Errors
/// When the sitter does not run, refuses, or has forgotten the request.
pub async fn rebuild(file: &Path, full: bool, yes: bool) -> Result<()> {
    let config = Config::load(file)?;
    let me = config.ident()?;
    let status = ask(&config.shard, &me).map_err(|error| {
        anyhow::anyhow!(
            "the sitter of this peer does not answer, and it is the one that rebuilds: start it first \
             ({error})"
        )
    })?;
    refuse_early(&status)?;
    let question = format!(
        "The database of {} ({}, {}) in {} will be kept aside and replaced by a copy of another peer's; \
         rebuild",
        me.id,
        me.zone_id,
        status.role,
        config.mountpoint().display()
    );
    if !yes && !confirmed(&question, &mut io::stdin().lock(), &mut io::stderr().lock())? {
        bail!("not rebuilt: it was not confirmed (`-y` confirms without asking)");
    }
    let url = me.backup_url.as_deref().context("this peer has no backup service")?;
    let address = url.split_once("://").map_or(url, |(_, rest)| rest).trim_end_matches('/');
    let tls = config.tls.clone().map(TlsFiles::from);
    let remote = Remote::new(address, config.secret(), tls.as_ref())?;
    match remote.rebuild(full).await {
        Ok(()) => {}
        Err(FetchError::Refused { status: 409, problem, .. }) => bail!("not rebuilt: {problem}"),
        Err(error) => return Err(error).context("the request may not have reached the sitter"),
    }
    super::print(&format!("{}: the sitter has taken the request\n", me.id))?;
    watch(&config.shard, &me, status.copies).await
}

/// What need not be confirmed before it is refused. The sitter has the last word.
fn refuse_early(status: &PeerStatus) -> Result<()> {
    match status.role {
        Role::Primary | Role::Sync => bail!(
            "not rebuilt: this peer is the {}; only an async or a deposed peer can be rebuilt",
            status.role
        ),
        _ => Ok(()),
    }
}

/// Shows what the sitter does until its database, copied since it had made this many copies, streams.
async fn watch(shard: &str, me: &PeerIdent, before: u64) -> Result<()> {
    let mut copied = false;
    let mut shown = Shown::default();
    let mut answered = clock::now();
    loop {
        let now = clock::now();
        match ask(shard, me) {
            Ok(status) => {
                answered = now;
                if let Some(line) = shown.line(&status, now) {
                    super::print(&line)?;
                }
                copied |= status.copies > before;
                if is_back(&status, copied)? {
                    let from = status.postgres.upstream.unwrap_or_default();
                    return super::print(&format!("{} streams from {from}\n", me.id));
                }
            }
            Err(error) if now - answered > PATIENCE => bail!(
                "the sitter has not answered for {} s ({error}): when it runs again, see `manatee adm \
                 show -v` whether the peer is back, and ask again if it is not",
                PATIENCE.0 / 1000
            ),
            Err(_) => {}
        }
        sleep(POLL).await;
    }
}

/// Whether what was asked for is done: a request that is gone may also have been forgotten, or have ended with
/// the place that it was made for.
fn is_back(status: &PeerStatus, copied: bool) -> Result<bool> {
    if status.rebuild_asked {
        return Ok(false);
    }
    let (role, why) = (status.role, &status.reason.text);
    if !copied || status.reason.kind == "deposedManual" {
        bail!(
            "not rebuilt: the request is gone, because the sitter was started again or this peer has another \
             place now ({role}: {why}); ask again if it is still wanted"
        );
    }
    if role == Role::Primary {
        bail!("rebuilt, and the primary since: {why}");
    }
    Ok(matches!(role, Role::Async | Role::Sync) && status.postgres.streaming == Some(true))
}

/// What was printed last.
#[derive(Default)]
struct Shown {
    stage: String,
    at: Option<Monotonic>,
}

impl Shown {
    /// What is to be said of this status, if anything is: what is new at once, bytes now and then.
    fn line(&mut self, status: &PeerStatus, now: Monotonic) -> Option<String> {
        let phase = status.copying.as_ref().map(|copying| copying.phase.as_str());
        let failure = status.failure.as_deref().map(|failure| format!("; failed: {failure}"));
        let failure = failure.unwrap_or_default();
        let stage = format!("{}{}{failure}", status.reason.text, phase.unwrap_or_default());
        let due = phase.is_some() && self.at.is_none_or(|at| now - at >= PERIOD);
        if stage == self.stage && !due {
            return None;
        }
        (self.stage, self.at) = (stage, Some(now));
        let copying = status.copying.as_ref().map(|copying| format!("; {}", progress(copying)));
        let copying = copying.unwrap_or_default();
        Some(format!("{}: {}{copying}{failure}\n", status.role, status.reason.text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adm::fixture::{peer, status};

    fn now(role: Role, asked: bool, copied: bool) -> Result<bool> {
        let mut status = status(role, &peer(1), Vec::new());
        status.rebuild_asked = asked;
        is_back(&status, copied)
    }

    #[test]
    fn is_back_when_what_was_copied_streams() {
        assert!(!now(Role::Async, true, false).expect("asked for"));
        assert!(!now(Role::Deposed, true, true).expect("it has to come back first"));
        assert!(now(Role::Async, false, true).expect("done"));
        assert!(now(Role::Sync, false, true).expect("done, and the sync since"));
    }

    /// A sitter that was started again knows of no request, and a sync must not be rebuilt.
    #[test]
    fn a_request_that_is_gone_without_a_copy_is_not_done() {
        for role in [Role::Async, Role::Sync, Role::Primary, Role::Deposed] {
            let error = now(role, false, false).expect_err("no copy").to_string();
            assert!(error.contains("not rebuilt") && error.contains("ask again"), "{error}");
        }
        assert!(now(Role::Primary, false, true).is_err());
    }
}
