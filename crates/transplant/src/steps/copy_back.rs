//! The donor gets a copy of what the shard has, where the WAL between the two is not kept any more. The data
//! directory that it had is kept aside, its own configuration goes into the copy.

use super::{POLL, Scene};
use crate::recipient::{Progress, Recipient};
use adapters::clock;
use anyhow::{Context, Result, bail};
use saga::Tell;

/// Prints what stands in the way of it: `$1` is the data directory, `$2` the bytes that are needed.
pub(crate) const LOOK: &str = r#"
set -eu
parent=$(dirname -- "$1")
[ -e "$1" ] || exit 0
[ "$(stat -c %d -- "$1")" = "$(stat -c %d -- "$parent")" ] ||
    { echo "$1 is a file system of its own, and cannot be kept aside"; exit 0; }
[ -w "$parent" ] || { echo "$(id -un) may not write to $parent"; exit 0; }
free=$(df -Pk -- "$parent" | awk 'NR == 2 { print $4 }')
[ "$free" -ge "$(($2 / 1024))" ] ||
    echo "$parent has $((free / 1024)) MiB free, a second copy needs $(($2 / 1048576)) MiB"
"#;

/// Makes the copy beside the data directory `$1`, for the transplant `$2`, by the programs in `$3`, from `$4`,
/// with these further options; the password is read. It is closed from the beginning. What an earlier attempt
/// of the same transplant left is ours.
pub(crate) const COPY: &str = r#"
set -eu
data=$1 copy=$1.transplant-copy-$2 bin=$3 from=$4
shift 4
[ ! -e "$copy.done" ] || exit 0
rm -rf -- "$copy"
IFS= read -r PGPASSWORD
export PGPASSWORD
"$bin/pg_basebackup" -D "$copy" -d "$from" -c fast -X stream "$@"
rm -f -- "$copy"/*.signal
: >"$copy/standby.signal"
for path in "$data"/* "$data"/.[!.]*; do
    case ${path##*/} in
    *.conf) ;;
    PG_VERSION | base | global | pg_* | postmaster.* | backup_* | tablespace_map* | *.signal | current_logfiles | log)
        continue ;;
    esac
    [ ! -e "$path" ] || cp -a -- "$path" "$copy/"
done
sync
: >"$copy.done"
"#;

/// Puts the copy of `$1` for the transplant `$2` in its place, if one is complete; prints where the one that was
/// there is kept.
pub(crate) const PLACE: &str = r#"
set -eu
data=$1 copy=$1.transplant-copy-$2
[ -e "$copy.done" ] || exit 0
if [ -e "$copy" ]; then
    if [ -e "$data" ]; then
        aside=$data.transplant-$(date -u +%Y%m%dT%H%M%SZ)
        [ ! -e "$aside" ] || { echo "$aside is there already" >&2; exit 1; }
        mv -- "$data" "$aside"
        echo "$aside"
    fi
    mv -- "$copy" "$data"
fi
sync
rm -f -- "$copy.done"
"#;

/// Ends what is left of the copy of `$1` for the transplant `$2`: one that is complete is kept aside, unless the
/// donor has no other; prints where.
pub(crate) const SETTLE: &str = r#"
set -eu
data=$1 copy=$1.transplant-copy-$2
if [ -e "$copy.done" ] && [ -e "$copy" ]; then
    aside=$data.transplant-$(date -u +%Y%m%dT%H%M%SZ)
    [ -e "$data" ] || aside=$data
    [ "$aside" = "$data" ] || [ ! -e "$aside" ] || { echo "$aside is there already" >&2; exit 1; }
    mv -- "$copy" "$aside"
    sync
    [ "$aside" = "$data" ] || echo "$aside"
fi
rm -rf -- "$copy" "$copy.done"
"#;

async fn run(scene: &Scene, script: &str, arg: &str) -> Result<String> {
    let donor = &scene.donor;
    let data = donor.config.data_dir.trim_end_matches('/');
    let exec = donor.config.host.shell(Some(&donor.config.os_user), script, &[data, arg])?;
    Ok(String::from_utf8_lossy(&exec.run().await?.stdout).trim().to_owned())
}

/// Puts a copy in place that is complete, where an earlier attempt ended before that.
pub(super) async fn place(scene: &Scene, tell: &dyn Tell) -> Result<()> {
    let aside = run(scene, PLACE, &scene.facts.id).await;
    let aside = aside.context("the donor's copy cannot be put in place")?;
    if !aside.is_empty() {
        tell.note(&format!("the donor's database of before is kept in {aside}"));
    }
    Ok(())
}

/// Lets no copy outlive the way back that it was made for: another one would take it for its own.
pub(super) async fn settle(scene: &Scene, tell: &dyn Tell) -> Result<()> {
    let aside = run(scene, SETTLE, &scene.facts.id).await;
    let aside = aside.context("the donor's copy cannot be kept aside")?;
    if !aside.is_empty() {
        tell.note(&format!(
            "a copy of the shard that was not put in the donor's place is kept in {aside}"
        ));
    }
    Ok(())
}

/// Makes one; `secret` is what the shard's role for replication logs in by. The donor is stopped.
pub(super) async fn copy_back(
    scene: &Scene,
    primary: &Recipient,
    secret: &str,
    tell: &dyn Tell,
) -> Result<()> {
    let donor = &scene.donor;
    let size = "select sum(pg_database_size(oid))::bigint from pg_database";
    let bytes: u64 = primary.sql(size).await?.parse().context("no size")?;
    // What is written meanwhile comes on top.
    let needed = (bytes + bytes / 10 + (1 << 28)).to_string();
    let problem = run(scene, LOOK, &needed).await?;
    if !problem.is_empty() {
        bail!(
            "the shard has not kept the WAL that the donor needs (slot_keep_mib of its sitters' files), and \
             the donor cannot be copied anew: {problem}. The shard serves on: make room and roll back \
             again; or give up what the shard wrote, with --discard-writes. Until then it is frozen, so that \
             nobody takes over there: `manatee adm unfreeze` ends that"
        );
    }
    tell.note("the shard has not kept the WAL that the donor needs: it is copied anew");
    let data = donor.config.data_dir.trim_end_matches('/');
    let facts = &primary.facts;
    let user = facts.replication_user.replace('\\', "\\\\").replace('\'', "\\'");
    let from = format!("host={} port={} user='{user}'", facts.peer.ip, facts.port);
    let mut command =
        vec!["sh", "-c", COPY, "sh", data, &scene.facts.id, &donor.config.bin_dir, &from];
    let rate = scene.facts.inventory.limits.rate_mib.map(|mib| format!("{mib}M"));
    command.extend(rate.iter().flat_map(|rate| ["-r", rate.as_str()]));
    let exec = donor.config.host.exec_alone(Some(&donor.config.os_user), &command)?;
    let mut copying = Box::pin(exec.stdin(format!("{secret}\n")).redact(secret).run());
    let begun = clock::now();
    loop {
        tokio::select! {
            copied = &mut copying => {
                copied.context("the donor cannot be copied anew")?;
                break;
            }
            () = tokio::time::sleep(5 * POLL) => {
                let sent = "select coalesce(max(backup_streamed), 0) from pg_stat_progress_basebackup";
                let sent = primary.sql(sent).await?.parse().context("no number of bytes")?;
                tell.tell(&Progress::after(clock::now() - begun, sent, Some(bytes)).to_string());
            }
        }
    }
    place(scene, tell).await
}
