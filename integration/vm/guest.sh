#!/bin/sh
# On the second disk, with the programs: says what this machine is, then runs each service and says how it ended.
# `cargo xtask vm` reads the lines that begin with "== ".
set -eu

. /ampoule/environment
mkdir -p /run/systemd/system
cp /ampoule/units/*.service /run/systemd/system/
systemctl daemon-reload

fact() { printf '%-12s %s\n' "$1" "$2"; }

# landlock_create_ruleset(2) without attributes and with the flag 1 answers with the ABI.
landlock_abi() {
    printf '%s\n' '#include <stdio.h>' '#include <unistd.h>' \
        'int main(void) { return printf("%ld\n", syscall(444, 0L, 0L, 1L)) < 0; }' > /var/tmp/abi.c
    cc -o /var/tmp/abi /var/tmp/abi.c
    /var/tmp/abi
    rm /var/tmp/abi /var/tmp/abi.c
}

echo "== guest"
fact uptime "$(cut -d ' ' -f 1 /proc/uptime) s"
fact kernel "$(uname -r)"
fact systemd "$(systemctl --version | head -n 1)"
fact cgroup "$(stat -fc %T /sys/fs/cgroup)"
fact controllers "$(cat /sys/fs/cgroup/cgroup.controllers)"
fact "handed down" "$(cat /sys/fs/cgroup/cgroup.subtree_control)"
fact landlock "ABI $(landlock_abi)"
fact "state on" "$(findmnt -no FSTYPE -T /tmp)"
if [ -e /ampoule/bin ]; then
    mkdir /var/tmp/first /var/tmp/first/src
    cd /var/tmp/first/src
    /ampoule/bin/ampoule doctor --state /var/tmp/first/state || true
    # The first job of a machine digests the package list, which takes a debug program long here. Not on a test's time.
    /ampoule/bin/ampoule run --state /var/tmp/first/state --out /var/tmp/first/out -- true || true
    cd /
    rm -rf /var/tmp/first
fi

for service in $SERVICES; do
    echo "== $service"
    systemctl start "suites-$service.service" > /dev/null 2>&1 || true
    echo "== $service ended with $(systemctl show --property=ExecMainStatus --value "suites-$service.service")"
done
