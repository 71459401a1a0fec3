#!/usr/bin/env bash
# Builds a root directory of Debian with another PostgreSQL than this machine's, and prints where it is; at
# once when it has been built:
#
#   build.sh VERSION
#
# It lies outside the tree, where caches do. Programs built here are to run in it, so it is never older than
# this Debian: 13 comes as packages of an older Debian in the root of a newer one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

fail() {
    echo "tools/debian-root/build.sh: $*" >&2
    exit 1
}

# Where a PostgreSQL is: the suite of the root, a suite that packages are also taken from, the package.
case ${1-} in
    13) places=(bookworm bullseye postgresql-13) ;;
    15) places=(bookworm bookworm postgresql-15) ;;
    17) places=(trixie trixie postgresql-17) ;;
    18) places=(forky forky postgresql-18) ;;
    *) fail "${1:-no version}: give one of 13, 15, 17, 18: Debian has no others" ;;
esac
readonly version=$1 suite=${places[0]} also=${places[1]} package=${places[2]}

. /etc/os-release
[[ $ID == debian ]] || fail "builds on Debian only, and this is $PRETTY_NAME"
[[ $(id -u) == 0 ]] || fail 'makes a root directory, which only root can: run it as root'

readonly cache=${XDG_CACHE_HOME:-$HOME/.cache}/manatee
readonly root=$cache/postgresql-$version-$(sha256sum <build.sh | cut -c 1-12)
mkdir -p "$cache"
# One builds, the others wait for it.
exec 9>"$cache/postgresql-$version.lock"
flock 9
if [[ -e $root ]]; then
    touch "$root"
    echo "$root"
    exit
fi
echo "tools/debian-root/build.sh: building a Debian with PostgreSQL $version in $root; that takes some minutes, once" >&2
# What one left that was killed.
rm -rf --one-file-system "$cache/postgresql-$version-building".*
work=$(mktemp --directory "$cache/postgresql-$version-building.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT

# Where this machine has its packages from.
mirror=$(
    apt-get indextargets --format '$(SITE) $(LABEL)' 'Created-By: Packages' 'Origin: Debian' |
        awk '$2 == "Debian" { print $1; exit }'
)
[[ -n $mirror ]] || fail "apt knows no packages of Debian: run 'apt-get update'"

# Debian makes a database of its own with PostgreSQL, which nobody needs; and a suite that is still being
# made is not signed anew every day.
prepare='mkdir -p "$1/etc/postgresql-common" &&
    echo "create_main_cluster = false" >"$1/etc/postgresql-common/createcluster.conf"'
packages=("$package" procps strace util-linux)
started=$SECONDS
# What it mounts there is seen by nobody else, and goes with it. The lock goes with us alone.
printf 'deb %s %s main\n' "$mirror" "$suite" "$mirror" "$also" | sort --unique |
    unshare --mount nice mmdebstrap --quiet --mode=root --variant=apt --format=directory \
        --aptopt='Apt::Install-Recommends "false"' --aptopt='Acquire::Check-Valid-Until "false"' \
        --dpkgopt=force-unsafe-io --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --essential-hook="$prepare" --include="$(IFS=,; echo "${packages[*]}")" \
        "$suite" "$work/root" - >"$work/log" 2>&1 9>&- ||
    { tail -n 40 "$work/log" >&2; fail 'the root directory could not be made; above is the end of what was said'; }
rm -rf "$work"/root/var/cache/apt/* "$work"/root/var/lib/apt/lists/*
mv "$work/root" "$root"
# Those that older scripts made and nobody has used for long.
find "$cache" -maxdepth 1 -name "postgresql-$version-*" -type d -mtime +30 -exec rm -r --one-file-system {} +
echo "tools/debian-root/build.sh: done after $((SECONDS - started)) s" >&2
echo "$root"
