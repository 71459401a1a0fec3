#!/usr/bin/env bash
# Runs a test program with another PostgreSQL than this machine's, and ends as it does; cargo calls this in
# the program's stead:
#
#   POSTGRESQL=VERSION run.sh PROGRAM [ARGUMENT ...]
#
# It runs in a root directory made by build.sh, with the devices, the processes and the network of this
# machine, and the tree at its own place. What is mounted for that is seen by nobody else.
set -euo pipefail
here=$(realpath "$(dirname "${BASH_SOURCE[0]}")")

fail() {
    echo "tools/debian-root/run.sh: $*" >&2
    exit 1
}

program=$(realpath "$1")
shift
root=$("$here/build.sh" "${POSTGRESQL:?the version of PostgreSQL to run with}")
readonly tree=${here%/tools/debian-root} target=${program%/debug/*}
output=$(mktemp "${TMPDIR:-/tmp}/manatee-debian-root.XXXXXX")
trap 'rm -f "$output"' EXIT

# In a namespace of its own: the root, what of this machine belongs into it, and the program in it.
enter='
    root=$1 tree=$2 target=$3 directory=$4
    shift 4
    mount --rbind /dev "$root/dev"
    mount --types proc proc "$root/proc"
    mount --types tmpfs none "$root/tmp"
    mount --types tmpfs none "$root/run"
    mount --types tmpfs none "$root/mnt"
    for place in "$tree" "$target"; do
        mkdir -p "$root/$place"
        mount --bind "$place" "$root/$place"
    done
    exec chroot "$root" /usr/bin/env --chdir="$directory" -- "$@"
'
settings=(PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TMPDIR="${TMPDIR:-/tmp}")
status=0
unshare --mount --propagation private bash -euc "$enter" enter "$root" "$tree" "$target" "$PWD" \
    "${settings[@]}" "$program" "$@" | tee "$output" || status=$?
# Under another name nothing would have run, with success.
((status != 0)) || grep --quiet '^test result: ok\. [1-9]' "$output" || fail "$program: no test ran"
exit "$status"
