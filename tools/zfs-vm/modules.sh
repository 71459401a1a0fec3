#!/usr/bin/env bash
# Puts ZFS's modules into the root file system that mmdebstrap is making: `modules.sh ROOT`. They are
# compiled for the kernel there, which dkms does with every processor that there is and behind
# everything else, and kept beside the machines ($CACHE) for the next one of the same versions.
set -euo pipefail
root=$1
kernel=$(ls "$root/lib/modules")
version=$(basename "$root"/usr/src/zfs-*)
version=${version#zfs-}
package=$(chroot "$root" dpkg-query --show --showformat '${Package}-${Version}' zfs-dkms)
kept=$CACHE/$package-$kernel.tar
if [[ ! -e $kept ]]; then
    chroot "$root" dkms install -m zfs -v "$version" -k "$kernel" -j "$(nproc)"
    [[ -e $(echo "$root/lib/modules/$kernel/updates/dkms/zfs.ko"*) ]] || { echo 'no zfs.ko came of it' >&2; exit 1; }
    tar --create --directory "$root" --file "$kept.new" "lib/modules/$kernel/updates"
    mv "$kept.new" "$kept"
fi
tar --extract --directory "$root" --file "$kept"
chroot "$root" depmod "$kernel"
