//! `manatee adm …`: what an operator does by hand. Started as `manatee-adm`, the binary is this.
//!
//! Contract: [`gather`] and [`change`] alone talk to the world; what is printed is computed from the
//! [`view::ShardView`] that was gathered. Tables and errors are for people, `--json` for programs;
//! the exit status is for both: 0 done, 1 failed (or, for `verify`, there are problems), 2 misuse.

mod backfill;
pub(crate) mod backup;
mod change;
pub(crate) mod command;
#[cfg(test)]
mod fixture;
mod gather;
mod history;
mod peers;
mod problems;
mod promote;
mod reach;
mod reap;
mod rebuild;
pub(crate) mod restore;
mod show;
mod snapshot;
mod status;
mod table;
mod topology;
mod view;

use adapters::coord::Coordination;
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use cluster::{PeerIdent, Promote, Role};
use command::{AdmCommand, Json, Rows};
use gather::{Ask, gather};
use jiff::Timestamp;
use peers::PeerColumn;
use problems::Problem;
use reach::{Reach, Target};
use serde_json::json;
use std::{
    io::{self, ErrorKind, Write},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};
use view::ShardView;

/// `manatee adm`.
#[derive(Debug, Args)]
#[command(version)]
pub struct Adm {
    #[command(flatten)]
    reach: Reach,
    #[command(subcommand)]
    command: AdmCommand,
}

/// A shard whose coordination is open.
pub(crate) struct Shard {
    coord: Arc<dyn Coordination>,
    target: Target,
}

impl Shard {
    /// Tells a person, beside what is printed, that there is nothing of this shard: its name may be wrong.
    async fn note_nothing(&self) -> Result<()> {
        let Shard { coord, target } = self;
        let nothing = coord.read().await?.state.is_none()
            && coord.history().await?.is_empty()
            && coord.first_version_history().await?.is_empty();
        if nothing {
            eprintln!(
                "note: there is neither a cluster state nor a history of shard {:?} at {}: it was not set up \
                 yet, or is not its name",
                target.shard,
                coord.target()
            );
        }
        Ok(())
    }
}

/// What takes the place of the original's command of this name.
const SET_ONWM: &str = "there is no set-onwm: one-node-write mode is a field of the sitter's file. To enter it, in a \
     shard of one peer: one_node_write_mode = true, then SIGHUP to the sitter. To leave it: one_node_write_mode = \
     false, SIGHUP, `manatee adm unfreeze`, and a second peer";

/// Runs `manatee adm …`.
pub fn run(adm: Adm) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the asynchronous runtime")?;
    let Adm { reach, command } = adm;
    let target = |inner: Reach| inner.or(reach.clone()).target(|name| std::env::var(name).ok());
    let outer = || reach.clone();
    let open = |inner: Reach| {
        let target = target(inner)?;
        let coord = target.open()?;
        anyhow::Ok(Shard { coord, target })
    };
    runtime.block_on(async {
        match command {
            AdmCommand::Version { json: Json { json: true } } => {
                print(&format!("{}\n", json!({ "version": crate::VERSION })))
            }
            AdmCommand::Version { json: _ } => print(&format!("{}\n", crate::VERSION)),
            AdmCommand::Show { verbose, json, reach } => {
                show(&open(reach)?, verbose, json.json).await
            }
            AdmCommand::Peers { rows, reach } => peers(&open(reach)?, &rows).await,
            AdmCommand::PgStatus { rows, wide, period, count, reach } => {
                pg_status(&open(reach)?, &rows, wide, period.map(|period| (period, count))).await
            }
            AdmCommand::History { verbose, json, sort, reach } => {
                let shard = open(reach)?;
                let old = shard.coord.first_version_history().await?;
                let events = history::events(shard.coord.history().await?, old, sort);
                if events.is_empty() {
                    shard.note_nothing().await?;
                }
                let text = if json { history::render_json } else { history::render };
                print(&text(&events, verbose))
            }
            AdmCommand::Verify { verbose, json, reach } => {
                return verify(&open(reach)?, verbose, json.json).await;
            }
            AdmCommand::Topology { watch: false, json, reach } => {
                topology::print_once(&open(reach)?, json.json).await
            }
            AdmCommand::Topology { watch: true, json, reach } => {
                topology::print_changes(&open(reach)?, json.json).await
            }
            AdmCommand::Status { legacy, json: _, reach } => {
                let status = status::status(&open(reach)?, legacy).await?;
                print(&(serde_json::to_string_pretty(&status)? + "\n"))
            }
            AdmCommand::StateBackfill { yes, json: _, reach } => {
                state_backfill(&open(reach)?, yes).await
            }
            AdmCommand::CheckLock { path, json, reach } => {
                return check_lock(&target(reach)?, &path, json).await;
            }
            AdmCommand::Freeze { reason, json, reach } => {
                let done = change::freeze(&open(reach)?, &reason, Timestamp::now()).await?;
                print(&told(done, true, json))
            }
            AdmCommand::Unfreeze { json, reach } => {
                print(&told(change::unfreeze(&open(reach)?).await?, false, json))
            }
            AdmCommand::Promote { promotion, json, reach } => {
                promote::promote(&open(reach)?, &promotion, json.json).await
            }
            AdmCommand::ClearPromote { json, reach } => {
                let request = promote::clear(&open(reach)?).await?;
                print(&cleared(&request, json))
            }
            AdmCommand::Reap { which, json, reach } => {
                let peer = reap::reap(&open(reach)?, &which).await?;
                print(&reaped(&peer, json))
            }
            AdmCommand::Rebuild { full, yes, reach } => {
                let file = reach.or(outer()).sitter_file(|name| std::env::var(name).ok())?;
                rebuild::rebuild(&file, full, yes).await
            }
            AdmCommand::Snapshot { command, reach } => {
                let file = reach.or(outer()).sitter_file(|name| std::env::var(name).ok())?;
                print(&snapshot::run(&file, command).await?)
            }
            AdmCommand::Backup { to, json, reach } => {
                let file = reach.or(outer()).sitter_file(|name| std::env::var(name).ok())?;
                print(&backup::backup(&file, &to, json).await?)
            }
            AdmCommand::SetOnwm { .. } => bail!(SET_ONWM),
            AdmCommand::Restore(options) => print(&restore::restore(&options).await?),
            AdmCommand::ZkState { json: _, reach } => zk_state(&open(reach)?).await,
            AdmCommand::ZkActive { json: _, reach } => {
                let shard = open(reach)?;
                let active = shard.coord.read().await?.active;
                if active.is_empty() {
                    shard.note_nothing().await?;
                }
                print(&(serde_json::to_string_pretty(&active)? + "\n"))
            }
        }
        .map(|()| ExitCode::SUCCESS)
    })
}

/// What was done, in words or for a program.
fn told(done: String, frozen: bool, json: Json) -> String {
    if json.json {
        format!("{}\n", json!({ "frozen": frozen, "message": done.trim_end() }))
    } else {
        done
    }
}

fn cleared(request: &Promote, Json { json }: Json) -> String {
    if json {
        format!("{}\n", json!({ "cleared": request }))
    } else {
        format!("{} is no longer asked for\n", request.id)
    }
}

fn reaped(peer: &PeerIdent, Json { json }: Json) -> String {
    if json {
        format!("{}\n", json!({ "reaped": peer }))
    } else {
        format!("{} ({}) is no longer among the deposed\n", peer.id, peer.zone_id)
    }
}

/// Prints to the standard output. That nobody reads it any more is no failure: `… | head`.
fn print(text: &str) -> Result<()> {
    print_if_read(text).map(|_| ())
}

/// As [`print`]; whether somebody still reads.
fn print_if_read(text: &str) -> Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("cannot write to the standard output"),
    }
}

async fn look(shard: &Shard) -> Result<(ShardView, Vec<Problem>)> {
    let view = gather(shard, Ask::Sitters).await?;
    let problems = problems::find(&view, Timestamp::now());
    Ok((view, problems))
}

async fn show(shard: &Shard, verbose: bool, json: bool) -> Result<()> {
    let (view, problems) = look(shard).await?;
    if json {
        print(&format!("{}\n", show::json(&view, &problems)))
    } else {
        print(&show::render(&view, &problems, verbose))
    }
}

/// Refuses where there are no peers to list, because nobody knows who they are.
fn listable(view: &ShardView) -> Result<()> {
    let shard = &view.shard;
    match &view.stored {
        None => bail!(
            "shard {shard:?} at {} has no cluster state: it was not set up yet, or is not its name",
            view.coordination
        ),
        Some(view::Stored { state: None, error, .. }) => {
            let error = error.as_ref().map(ToString::to_string).unwrap_or_default();
            bail!("what is stored for shard {shard:?} is no {error}; see `manatee adm zk-state`")
        }
        Some(_) => Ok(()),
    }
}

async fn peers(shard: &Shard, options: &Rows) -> Result<()> {
    let columns = if options.columns.is_empty() { peers::PEERS } else { &options.columns };
    if let Some(column) = columns.iter().find(|column| column.needs_status()) {
        let name = column.to_possible_value().map(|value| value.get_name().to_owned());
        bail!("column {} is one of `pg-status`, not of `peers`", name.unwrap_or_default());
    }
    let view = gather(shard, Ask::Coordination).await?;
    listable(&view)?;
    let rows = peers::rows(&view, options.role.map(Role::from));
    if options.json {
        print(&format!("{}\n", json!(peers::plain(&rows))))
    } else {
        print(&peers::render(&rows, columns, !options.omit_header))
    }
}

async fn pg_status(
    shard: &Shard,
    options: &Rows,
    wide: bool,
    again: Option<(Duration, Option<u64>)>,
) -> Result<()> {
    let default = options.columns.is_empty();
    let mut columns = if default { peers::PG_STATUS.to_vec() } else { options.columns.clone() };
    if wide {
        columns = columns.into_iter().map(PeerColumn::wide).collect();
    }
    let plain = !default || options.omit_header || options.role.is_some();
    let mut printed = 0;
    loop {
        let (view, problems) = look(shard).await?;
        listable(&view)?;
        let rows = peers::rows(&view, options.role.map(Role::from));
        let text = if options.json {
            format!("{}\n", json!({"peers": rows, "problems": problems}))
        } else {
            let gap = if printed > 0 && !plain { "\n" } else { "" };
            let table = peers::render(&rows, &columns, !options.omit_header);
            let copies = if plain { String::new() } else { show::copies(&view) };
            let apart = if copies.is_empty() { "" } else { "\n" };
            let problems = if plain { String::new() } else { peers::render_problems(&problems) };
            format!("{gap}{table}{apart}{copies}{problems}")
        };
        let read = print_if_read(&text)?;
        printed += 1;
        match again {
            Some(_) if !read => return Ok(()),
            None => return Ok(()),
            Some((_, Some(count))) if printed >= count => return Ok(()),
            Some((period, _)) => tokio::time::sleep(period).await,
        }
    }
}

async fn verify(shard: &Shard, verbose: bool, json: bool) -> Result<ExitCode> {
    let (view, problems) = look(shard).await?;
    let frozen = view.state().is_some_and(cluster::ClusterState::is_frozen);
    if json {
        print(&format!("{}\n", json!({"frozen": frozen, "problems": problems})))?;
    } else {
        let mut text: String = problems.iter().map(|problem| format!("{problem}\n")).collect();
        if verbose && problems.is_empty() {
            text += "all is well\n";
        }
        if verbose && frozen {
            text += "note: the shard is frozen; `manatee adm show` says since when and why\n";
        }
        print(&text)?;
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn check_lock(target: &Target, path: &str, json: Json) -> Result<ExitCode> {
    let there = target.node_exists(path).await?;
    if json.json {
        print(&format!("{}\n", json!({ "path": path, "exists": there })))?;
    } else {
        print(&format!("{path} {}\n", if there { "exists" } else { "does not exist" }))?;
    }
    Ok(if there { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn state_backfill(shard: &Shard, yes: bool) -> Result<()> {
    let state = backfill::propose(shard, Timestamp::now()).await?;
    if !yes {
        backfill::confirm(&state, &mut io::stdin().lock(), &mut io::stderr().lock())?;
    }
    backfill::write(shard, &state).await?;
    print(&format!("{}\n", serde_json::to_string_pretty(&state)?))
}

async fn zk_state(shard: &Shard) -> Result<()> {
    match shard.coord.read().await?.state {
        Some(stored) => print(&format!("{}\n", stored.json.trim_end_matches('\n'))),
        None => bail!("no cluster state is stored for shard {:?}", shard.target.shard),
    }
}
