# What the checks share. Nothing here waits for a time: it waits for something, for at most a time.

# Ours alone, and of the machine's first disk: what jobs read and leave.
W=/var/tmp/package
UNITS="ampoule-runner.socket ampoule-runner.service ampouled.socket ampouled.service"
# Who submits jobs.
BUILDER_UID=4711
passed=0
failed=0

now() { cut -d ' ' -f 1 /proc/uptime; }
# From a time until now, in seconds.
since() { echo "$(now) $1" | awk '{ printf "%.1f", $1 - $2 }'; }
fact() { printf '        %-44s %s\n' "$1" "$2"; }

# Runs one check in a shell of its own, which ends with its first command that fails.
run() {
    begun=$(now)
    at=$(date +%s)
    (
        set -eu
        trap 'leave' EXIT
        "$1"
    ) < /dev/null > "$W/check" 2>&1
    # Not behind && or in an if, where `set -e` would mean nothing.
    status=$?
    grep '^        ' "$W/check"
    if [ "$status" = 0 ]; then
        passed=$((passed + 1))
        echo "passed package/$1 in $(since "$begun") s"
    else
        failed=$((failed + 1))
        echo "FAILED package/$1 in $(since "$begun") s"
        sed 's/^/    | /' "$W/check"
        why
    fi
}

# What helps whoever reads of a failure.
why() {
    as_builder timeout 20 ampoule list 2>&1 | head -n 3 | sed 's/^/    | /'
    pgrep --list-full ampoule 2>&1 | cut -c 1-120 | sed 's/^/    | /'
    systemctl --no-pager --lines=0 status $UNITS 2>&1 | grep -E 'Active|Main PID|Loaded' | sed 's/^/    | /'
    journalctl --no-pager --quiet --since="@$at" --output=short-monotonic 2>&1 | grep -v -e DelegateSubgroup -e ' kernel: ' |
        cut -c 1-240 | tail -n 25 | sed 's/^/    | /'
}

# A client that a check has left.
leave() {
    [ -n "${client:-}" ] || return 0
    kill -KILL "$client" 2> /dev/null || true
    tail -n 20 "$follows"
}

fail() {
    echo "$*"
    exit 1
}
equal() { [ "$2" = "$3" ] || fail "$1: $2, and not $3"; }
# eventually SECONDS WHAT COMMAND…
eventually() {
    until_=$(($(date +%s) + $1))
    what=$2
    shift 2
    until "$@" > /dev/null 2>&1; do
        [ "$(date +%s)" -lt "$until_" ] || fail "it did not come to this in time: $what"
        sleep 0.1
    done
}
# fails_with STATUS COMMAND…
fails_with() {
    wanted=$1
    shift
    found=0
    "$@" || found=$?
    equal "exit status of $*" "$found" "$wanted"
}

main_pid() { systemctl show --property=MainPID --value "$1"; }
active() { systemctl is-active --quiet "$1"; }
ready() { curl --silent --output /dev/null --write-out '%{http_code}' http://127.0.0.1:9464/readyz; }
is_ready() { [ "$(ready)" = 200 ]; }
is_unready() { [ "$(ready)" = 503 ]; }
version_of() { dpkg-deb --field "$1" Version; }
version() { dpkg-query --show --showformat='${Version}' ampoule; }

as_builder() { setpriv --reuid="$BUILDER_UID" --regid="$BUILDER_UID" --init-groups --reset-env -- "$@"; }

# The files of the machine that a package could leave something among. What systemd and dpkg write as they go is not
# looked at.
files() {
    find /etc /usr /var /run /tmp /srv /opt /boot /root -xdev \
        \( -path "$W" -o -path /run/systemd -o -path /run/udev -o -path /run/log -o -path /var/log \
        -o -path /var/lib/systemd -o -path /var/lib/dpkg -o -path /var/cache/ldconfig \
        -o -path '/tmp/systemd-private-*' -o -path '/var/tmp/systemd-private-*' \) -prune -o -print | sort
}

# What the kernel has of us.
kernel() {
    cut -d ' ' -f 5- /proc/self/mountinfo | grep -v '^/run/credentials/systemd-' | sort
    losetup --list --noheadings --output NAME,BACK-FILE
    find /sys/fs/cgroup -type d -name '*ampoule*' | sort
    for exe in /proc/[0-9]*/exe; do
        readlink "$exe" | grep -E '/ampoule(d|-runner)?( |$)' || true
    done
}

prepare() {
    mkdir -p "$W/image/bin" "$W/jobs" "$W/out" "$W/said"
    # Ours is not there before the package is: the image has it for other tests.
    rm -f /etc/modules-load.d/ampoule.conf
    echo "u builder $BUILDER_UID - $W" | systemd-sysusers -
    chown "$BUILDER_UID" "$W/out" "$W/said"
    cp /bin/busybox "$W/image/bin/"
    for applet in sh sleep cat dd; do
        ln -s busybox "$W/image/bin/$applet"
    done
    tar --sort=name --mtime=@0 --owner=0 --group=0 -C "$W/image" -cf "$W/image.tar" .
    files > "$W/files.before"
    kernel > "$W/kernel.before"
    modprobe --remove loop
    cp /etc/passwd "$W/passwd.before"
}
