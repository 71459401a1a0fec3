#!/usr/bin/env bash
# Sees to it that this machine has what is named:
#
#   tools/need.sh [build] [lint] [coverage] [postgresql] [network] [zookeeper] [etcd] [patroni] [filesystems] [zfs-vm] [ssh] [systemd] [debian-root]
#
# What Debian packages hold is installed where we may (root, or sudo without a password); Rust is
# never installed, because Debian's is too old and where to put it is not ours to choose. What rustup
# and cargo hold is added to the Rust that is there. Says what it installs; silent when nothing is
# missing. Otherwise says all that is missing and how to get it, and fails.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly oldest_postgresql=13
packages=() # to install
missing=()  # to tell: what, and how to get it

# Whether version $1 is at least $2.
at_least() {
    [[ $(printf '%s\n%s\n' "$2" "$1" | sort --version-sort | head -n 1) == "$2" ]]
}

need_build() {
    command -v cc >/dev/null || packages+=(gcc libc6-dev)
    # The client of etcd is generated from etcd's own description of its protocol.
    command -v protoc >/dev/null || packages+=(protobuf-compiler)
    [[ -e /usr/include/google/protobuf/descriptor.proto ]] ||
        protoc_includes || packages+=(libprotobuf-dev)
    local wanted found
    wanted=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
    if ! command -v cargo >/dev/null; then
        missing+=("Rust $wanted or later (no cargo in PATH): install it with rustup, see https://rustup.rs; Debian's is too old")
        return
    fi
    found=$(rustc --version | cut -d ' ' -f 2)
    at_least "${found%%-*}" "$wanted" ||
        missing+=("Rust $wanted or later ($(command -v rustc) is $found): run 'rustup update stable', or install rustup, see https://rustup.rs")
}

need_lint() {
    command -v cargo >/dev/null || return 0 # already told
    cargo fmt --version >/dev/null 2>&1 || missing+=("cargo fmt: run 'rustup component add rustfmt'")
    cargo clippy --version >/dev/null 2>&1 || missing+=("cargo clippy: run 'rustup component add clippy'")
}

# Whether protoc has its own descriptions beside it, as those that do not come from Debian have.
protoc_includes() {
    local protoc
    protoc=$(command -v protoc) && [[ -e ${protoc%/bin/*}/include/google/protobuf/descriptor.proto ]]
}

need_etcd() {
    command -v etcd >/dev/null || packages+=(etcd-server)
}

# What tests move away from. It is a program of Debian's own Python, and so is its client of etcd.
need_patroni() {
    need_etcd
    command -v patroni >/dev/null || packages+=(patroni)
    /usr/bin/python3 -c 'import etcd' 2>/dev/null || packages+=(python3-etcd)
    command -v curl >/dev/null || packages+=(curl)
}

# cargo-llvm-cov, and the tools of the LLVM that rustc was built with: those of another version cannot
# read what it writes.
need_coverage() {
    command -v cargo >/dev/null || return 0 # already told
    local sysroot tools
    sysroot=$(rustc --print sysroot)
    tools=("$sysroot"/lib/rustlib/*/bin/llvm-profdata)
    if [[ ! -x ${tools[0]} ]]; then
        echo 'tools/need.sh: adding llvm-tools to the Rust toolchain' >&2
        rustup component add llvm-tools >&2 ||
            missing+=("llvm-tools of this Rust: run 'rustup component add llvm-tools'")
    fi
    if ! cargo llvm-cov --version >/dev/null 2>&1; then
        echo 'tools/need.sh: installing cargo-llvm-cov into the directory of cargo' >&2
        cargo install --quiet --locked --version '^0.9' cargo-llvm-cov >&2 ||
            missing+=("cargo-llvm-cov: run 'cargo install --locked cargo-llvm-cov'")
    fi
}

# The server's own programs, which Debian keeps out of PATH.
need_postgresql() {
    local initdb version
    for initdb in /usr/lib/postgresql/*/bin/initdb /usr/pgsql-*/bin/initdb "$(command -v initdb || true)"; do
        [[ -x $initdb && -x ${initdb%/*}/postgres && -x ${initdb%/*}/pg_basebackup ]] || continue
        version=$("$initdb" --version | sed 's/^[^0-9]*\([0-9]*\).*/\1/')
        at_least "$version" "$oldest_postgresql" && return
    done
    packages+=(postgresql)
}

# Its jar and a Java to run it; its own scripts, which would run it as a service, are not used.
need_zookeeper() {
    [[ -e /usr/share/java/zookeeper.jar ]] || packages+=(zookeeper)
    command -v java >/dev/null || packages+=(default-jre-headless)
}

# What the tests cut wires and slow disks down with.
need_network() {
    command -v ip >/dev/null || packages+=(iproute2)
    command -v nft >/dev/null || [[ -x /usr/sbin/nft ]] || packages+=(nftables)
    command -v unshare >/dev/null || packages+=(util-linux)
    command -v strace >/dev/null || packages+=(strace)
}

# What real file systems are tested with. ZFS is the kernel's where it has it: its commands and those
# of zfs-fuse exclude each other.
need_filesystems() {
    command -v mkfs.btrfs >/dev/null || [[ -x /sbin/mkfs.btrfs ]] || packages+=(btrfs-progs)
    if [[ -e /dev/zfs ]]; then
        command -v zpool >/dev/null || [[ -x /sbin/zpool ]] || packages+=(zfsutils-linux)
    else
        command -v zfs-fuse >/dev/null || [[ -x /usr/sbin/zfs-fuse ]] || packages+=(zfs-fuse)
    fi
    [[ $(id -u) == 0 ]] ||
        missing+=("root: the tests mount real file systems (btrfs on a loop device, ZFS on a pool in a file) and none of them is skipped; run 'make test' as root")
}

# What a machine with OpenZFS is built and run with; nothing of that where this one has it.
need_zfs-vm() {
    if [[ -e /dev/zfs ]]; then
        need_postgresql
        need_filesystems
        return
    fi
    command -v qemu-system-x86_64 >/dev/null || packages+=(qemu-system-x86)
    command -v mmdebstrap >/dev/null || packages+=(mmdebstrap)
    command -v mke2fs >/dev/null || [[ -x /sbin/mke2fs ]] || packages+=(e2fsprogs)
    command -v cpio >/dev/null || packages+=(cpio)
    command -v objcopy >/dev/null || packages+=(binutils)
    [[ $(id -u) == 0 ]] ||
        missing+=("root: a root file system is made and mounted, which only root can; run it as root")
}

# What a root directory with another PostgreSQL is made with.
need_debian-root() {
    command -v mmdebstrap >/dev/null || packages+=(mmdebstrap)
    command -v unshare >/dev/null || packages+=(util-linux)
    [[ $(id -u) == 0 ]] ||
        missing+=("root: a root directory is made and mounted in, which only root can: run it as root")
}

# One of the tests' own starts units.
need_systemd() {
    [[ -x /lib/systemd/systemd ]] || packages+=(systemd)
}

# What a transplant reaches other hosts by; its server is run by the tests alone.
need_ssh() {
    command -v ssh >/dev/null || packages+=(openssh-client)
    [[ -x /usr/sbin/sshd ]] || packages+=(openssh-server)
}

# Runs a command as root.
as_root() {
    if [[ $(id -u) == 0 ]]; then "$@"; else sudo -n "$@"; fi
}

may_install() {
    command -v apt-get >/dev/null || return 1
    [[ $(id -u) == 0 ]] || { command -v sudo >/dev/null && sudo -n true 2>/dev/null; }
}

apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet=2 \
        --option Dpkg::Use-Pty=0 --no-install-recommends "$@"
}

# By this line what we change while we install is known as ours, also after a run that was killed.
readonly ours='# by tools/need.sh of Manatee, while it installs'
readonly policy=/usr/sbin/policy-rc.d
readonly createcluster=/etc/postgresql-common/createcluster.conf

# Takes back what is changed for as long as we install.
undo() {
    if grep --quiet --no-messages --line-regexp "$ours" "$policy"; then as_root rm "$policy"; fi
    if grep --quiet --no-messages --line-regexp "$ours" "$createcluster"; then
        as_root sed --in-place "\|^$ours\$|,+1d" "$createcluster"
    fi
}

# Debian's server package creates a cluster of its own and starts it, which nobody asked for here. Its
# configuration can forbid that, for as long as we install.
install_postgresql() {
    apt_install postgresql-common
    printf '%s\ncreate_main_cluster = false\n' "$ours" | as_root tee --append "$createcluster" >/dev/null
    apt_install postgresql
}

# Debian starts the services that it installs at once, unless this file forbids it, and at each boot,
# unless they are disabled. All that we want of them is their programs.
install_unstarted() {
    if [[ ! -e $policy ]]; then # otherwise somebody has decided
        printf '#!/bin/sh\n%s\nexit 101\n' "$ours" | as_root tee "$policy" >/dev/null
        as_root chmod 755 "$policy"
    fi
    apt_install "$@"
    local package file
    for package in "$@"; do
        for file in $(dpkg --listfiles "$package"); do
            case $file in
                */systemd/system/*@*) ;; # a template
                */systemd/system/*.service | */systemd/system/*.socket | */systemd/system/*.timer)
                    # As the package's own script would: it answers nobody else.
                    as_root env DPKG_MAINTSCRIPT_PACKAGE="$package" \
                        deb-systemd-helper disable "${file##*/}" >/dev/null
                    ;;
                /etc/init.d/*) as_root update-rc.d "${file##*/}" disable ;;
            esac
        done
    done
}

install() {
    trap undo EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    undo
    echo "tools/need.sh: installing the Debian packages ${packages[*]}"
    as_root apt-get update --quiet=2
    local package others=()
    for package in "${packages[@]}"; do
        [[ $package == postgresql ]] || others+=("$package")
    done
    if ((${#others[@]})); then install_unstarted "${others[@]}"; fi
    if [[ " ${packages[*]} " == *' postgresql '* ]]; then install_postgresql; fi
    undo
}

for what in "$@"; do
    case $what in
        build | lint | coverage | network | postgresql | zookeeper | etcd | patroni | filesystems | zfs-vm | ssh | systemd | debian-root) "need_$what" ;;
        *)
            echo "tools/need.sh: $what: give any of build, lint, coverage, network, postgresql, zookeeper, etcd, patroni, filesystems, zfs-vm, ssh, systemd, debian-root" >&2
            exit 2
            ;;
    esac
done
if ((${#packages[@]})); then
    if may_install; then
        install >&2
        if [[ " ${packages[*]} " == *' postgresql '* ]]; then
            packages=()
            need_postgresql
            ((${#packages[@]} == 0)) || missing+=("PostgreSQL $oldest_postgresql or later: the package postgresql of this system is older")
        fi
    else
        missing+=("the Debian packages ${packages[*]} (or what your system calls them): as root, run 'apt-get install ${packages[*]}'")
    fi
fi
if ((${#missing[@]})); then
    echo 'tools/need.sh: this machine lacks:' >&2
    printf '  %s\n' "${missing[@]}" >&2
    exit 1
fi
