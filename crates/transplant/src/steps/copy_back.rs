//! The donor gets a copy of what the shard has, where the WAL between the two is not kept any more. The data
//! directory that it had is kept aside, its own configuration goes into the copy.

use super::{POLL, Scene};
use crate::{
    Donor,
    recipient::{Progress, Recipient},
};
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

/// Makes the copy beside the data directory `$1`, by the programs in `$2`, from `$3`, with these further
/// options; the password is read. It is closed from the beginning. What an earlier attempt left is ours.
pub(crate) const COPY: &str = r#"
set -eu
data=$1 copy=$1.transplant-copy bin=$2 from=$3
shift 3
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

/// Puts the copy of `$1` in its place, if one is complete; prints where the one that was there is kept.
pub(crate) const PLACE: &str = r#"
set -eu
data=$1 copy=$1.transplant-copy
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

async fn run(donor: &Donor, script: &str, args: &[&str]) -> Result<String> {
    let data = donor.config.data_dir.trim_end_matches('/');
    let exec =
        donor.config.host.shell(Some(&donor.config.os_user), script, &[&[data], args].concat())?;
    Ok(String::from_utf8_lossy(&exec.run().await?.stdout).trim().to_owned())
}

/// Puts a copy in place that is complete, where an earlier attempt ended before that.
pub(super) async fn place(donor: &Donor, tell: &dyn Tell) -> Result<()> {
    let aside = run(donor, PLACE, &[]).await.context("the donor's copy cannot be put in place")?;
    if !aside.is_empty() {
        tell.note(&format!("the donor's database of before is kept in {aside}"));
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
    let problem = run(donor, LOOK, &[&needed]).await?;
    if !problem.is_empty() {
        bail!(
            "the shard has not kept the WAL that the donor needs (slot_keep_mib of its sitters' files), and \
             the donor cannot be copied anew: {problem}. The shard serves on: make room and roll back \
             again; or commit; or give up what the shard wrote, with --discard-writes"
        );
    }
    tell.note("the shard has not kept the WAL that the donor needs: it is copied anew");
    let data = donor.config.data_dir.trim_end_matches('/');
    let facts = &primary.facts;
    let user = facts.replication_user.replace('\\', "\\\\").replace('\'', "\\'");
    let from = format!("host={} port={} user='{user}'", facts.peer.ip, facts.port);
    let mut command = vec!["sh", "-c", COPY, "sh", data, &donor.config.bin_dir, &from];
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
    place(donor, tell).await
}
