#!/bin/busybox sh
# The machine's first program: finds its disks, the system's (which forgets what is written to it) and
# the one with what to run, and hands over to the program `init` on that one.
/bin/busybox mount -t devtmpfs dev /dev
while read -r module; do /bin/busybox insmod "/modules/$module"; done </modules/order
tries=0
while [ ! -e /dev/vdb ] && [ "$tries" -lt 500 ]; do
    /bin/busybox usleep 20000
    tries=$((tries + 1))
done
/bin/busybox mount -t ext4 -o noatime /dev/vda /root && /bin/busybox mount -t ext4 -o noatime /dev/vdb /root/work &&
    /bin/busybox mount --move /dev /root/dev && exec /bin/busybox switch_root /root /work/init
/bin/busybox poweroff -f
