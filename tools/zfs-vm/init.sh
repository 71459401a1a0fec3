#!/bin/bash
# The first program of the machine that OpenZFS is tested in, and the only one that Debian did not bring:
# makes the machine one that tests run in, runs the program that was given, tells how it ended, and
# turns the machine off.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root PAGER=cat MANATEE_TEST_SLOWNESS=10
exec >/dev/ttyS0 2>&1 </dev/null
end() {
    echo "manatee-zfs-vm: ended with $1"
    sync
    exec busybox poweroff -f
}
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/shm
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
chmod 1777 /dev/shm /work/tmp
mount --bind /work/tmp /tmp
ln -sf /proc/self/fd /dev/fd
mkdir -p /run/lock
echo '127.0.0.1 localhost' >/etc/hosts
hostname localhost
ip link set lo up
# A third of the memory is enough for ZFS to keep.
modprobe zfs zfs_arc_max=$((512 << 20)) || end 1
path=$(cat /work/manatee.path)
mkdir -p "$(dirname "$path")"
ln -sf /work/manatee "$path"
echo "manatee-zfs-vm: OpenZFS $(cat /sys/module/zfs/version) after $(cut -d ' ' -f 1 /proc/uptime) s"
mapfile -t arguments </work/arguments
cd /work
# Not at a terminal, which the console is, so that it does not colour what it says.
./test "${arguments[@]}" 2>&1 | cat
end "${PIPESTATUS[0]}"
