#!/usr/bin/env bash
# Builds the machine that OpenZFS is tested in, of packages of this Debian, and prints the directory it
# is in; at once when it has been built. Takes some minutes otherwise, most of them to compile the
# kernel's modules. It lies outside the tree, where caches do, and holds what no test writes to:
# vmlinuz, initrd.gz, root.img (ext4).
#
# It is the same Debian as this one, because programs built here are to run there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

fail() {
    echo "tools/zfs-vm/build.sh: $*" >&2
    exit 1
}

. /etc/os-release
[[ $ID == debian && $(uname -m) == x86_64 ]] ||
    fail "builds on Debian on x86_64 only, and this is $PRETTY_NAME on $(uname -m); where the kernel has ZFS" \
        'nothing is built, but /dev/zfs has to be there: modprobe zfs'
[[ $(id -u) == 0 ]] || fail 'makes a root file system, which only root can: run it as root'

export CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/manatee
readonly machine=$CACHE/zfs-vm-$VERSION_CODENAME-$(cat build.sh modules.sh initrd.sh | sha256sum | cut -c 1-12)
mkdir -p "$CACHE"
# One builds, the others wait for it.
exec 9>"$CACHE/zfs-vm.lock"
flock 9
if [[ -e $machine ]]; then
    touch "$machine"
    echo "$machine"
    exit
fi
echo "tools/zfs-vm/build.sh: building a machine with OpenZFS in $machine; that takes some minutes, once" >&2
# What one left that was killed.
rm -rf --one-file-system "$CACHE"/building.*
work=$(mktemp --directory "$CACHE/building.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
root=$work/root
mkdir "$work/machine"

# Where this machine has its packages from, and contrib, where ZFS is.
sources=$(
    apt-get indextargets --format '$(SITE) $(RELEASE)' 'Created-By: Packages' 'Origin: Debian' |
        sort --unique | awk -v suite="$VERSION_CODENAME" '
            $2 == suite || index($2, suite "-") == 1 { print "deb", $1, $2, "main contrib" }'
)
[[ -n $sources ]] || fail "apt knows no packages of Debian $VERSION_CODENAME: run 'apt-get update'"

# The modules are compiled by us, not for the kernel that runs here as dkms would by itself; and Debian
# makes a database of its own with PostgreSQL, which nobody needs.
prepare='mkdir -p "$1/etc/dkms" "$1/etc/postgresql-common" &&
    touch "$1/etc/dkms/no-autoinstall" &&
    echo "create_main_cluster = false" >"$1/etc/postgresql-common/createcluster.conf"'
packages=(
    linux-image-cloud-amd64 linux-headers-cloud-amd64 zfs-dkms gcc make kmod
    zfsutils-linux postgresql iproute2 procps util-linux mount busybox-static
)
started=$SECONDS
# What it mounts there is seen by nobody else, and goes with it. The lock goes with us alone.
unshare --mount nice mmdebstrap --quiet --mode=root --variant=apt --format=directory \
    --aptopt='Apt::Install-Recommends "false"' --dpkgopt=force-unsafe-io \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --essential-hook="$prepare" --include="$(IFS=,; echo "${packages[*]}")" \
    --customize-hook=./modules.sh "$VERSION_CODENAME" "$root" - <<<"$sources" >"$work/log" 2>&1 9>&- ||
    { tail -n 40 "$work/log" >&2; fail 'the root file system could not be made; above is the end of what was said'; }
kernel=$(ls "$root/lib/modules")

# What only compiling needed.
rm -rf "$root"/usr/src/* "$root"/var/lib/dkms "$root"/usr/lib/gcc "$root"/var/cache/apt/* \
    "$root"/var/lib/apt/lists/* "$root"/boot/initrd*
cp "$root/boot/vmlinuz-$kernel" "$work/machine/vmlinuz"
mkdir "$root/work"
truncate --size 4G "$work/machine/root.img"
mke2fs -q -F -t ext4 -O ^has_journal -d "$root" "$work/machine/root.img"

# Modules that it takes to find the disks, in the order that they need each other.
initrd=$work/initrd
mkdir -p "$initrd"/{bin,dev,modules,root}
cp "$root/bin/busybox" "$initrd/bin/busybox"
cp initrd.sh "$initrd/init"
for module in virtio_pci virtio_blk ext4; do
    chroot "$root" modprobe --set-version "$kernel" --show-depends "$module"
done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r file; do
    cp "$root$file" "$initrd/modules/"
    basename "$file" >>"$initrd/modules/order"
done
(cd "$initrd" && find . | cpio --create --format newc --quiet | gzip -1) >"$work/machine/initrd.gz"
mv "$work/machine" "$machine"
# Those that older scripts made and nobody has used for long.
find "$CACHE" -maxdepth 1 -name 'zfs-vm-*' -type d -mtime +30 -exec rm -r {} +
echo "tools/zfs-vm/build.sh: done after $((SECONDS - started)) s" >&2
echo "$machine"
