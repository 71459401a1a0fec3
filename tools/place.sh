#!/usr/bin/env bash
# Prints where tests keep what they make: in memory, where there is room for it, so that they wait for
# no disk. What they prove does not depend on it: they kill processes, not machines.
set -euo pipefail

readonly least_kib=$((12 * 1024 * 1024)) # several databases and file systems at once
readonly memory=/dev/shm

in_memory() {
    local type available options
    read -r type available options < <(findmnt --noheadings --bytes --output FSTYPE,AVAIL,OPTIONS --target "$memory") || return 1
    [[ $type == tmpfs && ,$options, != *,noexec,* && ,$options, == *,rw,* && -w $memory ]] || return 1
    ((available / 1024 >= least_kib)) || return 1
    (($(awk '$1 == "MemAvailable:" { print $2 }' /proc/meminfo) >= least_kib))
}

if in_memory; then echo "$memory"; else echo /tmp; fi
