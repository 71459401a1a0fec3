#!/usr/bin/env bash
# How many lines of crates/cluster the tests of cluster and sim (vectors, scripts, properties, the
# fuzzer, the explorer) run, a file a line and in total:
#
#   tools/coverage.sh [PERCENT]
#
# Lists the lines that nothing runs. Fails below PERCENT. Tests inside the files count for nothing:
# a test always runs itself.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly wanted=${1:-0}
lcov=$(mktemp)
trap 'rm -f "$lcov"' EXIT
cargo llvm-cov --locked --package cluster --package sim --lcov --output-path "$lcov" >&2

awk -v wanted="$wanted" -v root="$PWD/" '
    function report(name, run, all) { printf "%-44s %5d of %5d lines  %6.2f %%\n", name, run, all, 100 * run / all }
    /^SF:/ {
        file = substr($0, 4); sub(root, "", file)
        ours = file ~ /^crates\/cluster\/src\//
        end = 1e9; number = 0
        if (ours) {
            while ((getline line < file) > 0) { number++; if (line ~ /^#\[cfg\(test\)\]/ && number < end) end = number }
            close(file)
        }
        run = all = 0; missed = ""
    }
    /^DA:/ && ours {
        split(substr($0, 4), field, ",")
        if (field[1] >= end) next
        all++
        if (field[2] > 0) run++; else missed = missed " " field[1]
    }
    /^end_of_record/ && ours && all {
        report(file, run, all)
        if (missed) print "    not run:" missed
        total_run += run; total_all += all
    }
    END {
        if (!total_all) { print "tools/coverage.sh: nothing was measured" > "/dev/stderr"; exit 1 }
        report("all of crates/cluster", total_run, total_all)
        if (100 * total_run < wanted * total_all) {
            printf "tools/coverage.sh: less than %s %% of the lines are run\n", wanted > "/dev/stderr"
            exit 1
        }
    }
' "$lcov"
