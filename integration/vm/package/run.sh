#!/bin/sh
# The Debian package on a machine where systemd is process 1: every check in its order, each on what the ones before have
# left. `cargo xtask vm --service daemon` runs this and reads the last line.
set -u
cd /ampoule/package
. ./lib.sh
. ./install.sh
. ./jobs.sh
. ./life.sh
. ./purge.sh

prepare
for check in $INSTALL $JOBS $LIFE $PURGE; do
    # All, or those that were named.
    case " $SUITES " in
        "  " | *" package "* | *" package/$check "*) run "$check" ;;
    esac
done
printf '\n%s passed, %s failed, 0 skipped\n' "$passed" "$failed"
[ "$failed" = 0 ]
