#!/usr/bin/env bash
# Runs a test program where OpenZFS is, and ends as it does; cargo calls this in the program's stead:
#
#   run.sh PROGRAM [ARGUMENT ...]
#
# On a machine whose kernel has ZFS, that is this machine. Elsewhere it is one that qemu emulates, made by
# build.sh, started for this program alone, with nothing of this machine in it but a disk with the
# program, and no network. What it writes goes with it.
set -euo pipefail
here=$(realpath "$(dirname "${BASH_SOURCE[0]}")")

# Nothing that is run here takes as long, in seconds, on a machine that has something else to do as well;
# what hangs is to be told and not waited for.
readonly limit=3600
# In MiB. Three servers, their sitters, and what ZFS keeps.
readonly memory=2048

fail() {
    echo "tools/zfs-vm/run.sh: $*" >&2
    exit 1
}

directory=$(mktemp --directory "${TMPDIR:-/tmp}/manatee-zfs-vm.XXXXXX")
trap 'rm -rf "$directory"' EXIT
readonly output=$directory/output

# A disk for the machine: the program, with `manatee` where programs of tests look for it, and room.
make_disk() {
    local program=$1 disk=$directory/disk manatee=${1%/deps/*}/manatee
    shift
    mkdir -p "$disk/tmp"
    cp "$here/init.sh" "$disk/init"
    objcopy --strip-debug "$program" "$disk/test"
    if [[ -e $manatee ]]; then objcopy --strip-debug "$manatee" "$disk/manatee"; fi
    echo "$manatee" >"$disk/manatee.path"
    printf '%s\n' "$@" >"$disk/arguments"
    truncate --size 16G "$directory/disk.img"
    mke2fs -q -F -t ext4 -O ^has_journal -d "$disk" "$directory/disk.img"
    rm -r "$disk"
}

# Starts the machine and prints what it does.
run_machine() {
    local machine=$1 drive=if=virtio,format=raw,cache=unsafe,aio=threads
    # cache=unsafe: a machine that dies takes its disks with it.
    timeout --foreground "$limit" qemu-system-x86_64 -machine q35 -accel tcg,thread=multi \
        -cpu max -smp "$(nproc)" -m "$memory" -kernel "$machine/vmlinuz" -initrd "$machine/initrd.gz" \
        -append 'console=ttyS0 quiet loglevel=3 mitigations=off nokaslr tsc=reliable random.trust_cpu=on panic=-1' \
        -drive "$drive,snapshot=on,file=$machine/root.img" -drive "$drive,file=$directory/disk.img" \
        -nodefaults -display none -no-reboot -serial stdio </dev/null 2>"$directory/qemu" |
        sed --unbuffered 's/\r$//' | tee "$output" | sed --unbuffered '/^manatee-zfs-vm: ended with/d; /\] reboot: /d'
}

status=0
if [[ -e /dev/zfs ]]; then
    "$@" | tee "$output" || status=$?
else
    machine=$("$here/build.sh")
    make_disk "$@"
    run_machine "$machine" || { cat "$directory/qemu" >&2; fail "the machine did not run to its end within $limit s"; }
    status=$(sed -n 's/^manatee-zfs-vm: ended with //p' "$output")
    [[ -n $status ]] || { cat "$directory/qemu" >&2; fail 'the machine ended before the program in it did'; }
fi
# Under another name nothing would have run, with success.
((status != 0)) || grep --quiet '^test result: ok\. [1-9]' "$output" || fail "$1: no test ran"
exit "$status"
