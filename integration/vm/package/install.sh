# From nothing to two units that serve, as docs/operations.md says it is done.

INSTALL="
    older_version_installs_and_starts_nothing
    pages_and_completions_are_there
    users_directories_and_modules_are_there
    configuration_of_the_page_is_good
    units_start_and_say_so
    sockets_start_what_they_are_for
    exposure_of_the_units_is_bounded
    nothing_of_the_units_is_swapped
"

older_version_installs_and_starts_nothing() {
    begun=$(now)
    dpkg --install older.deb
    fact "dpkg --install" "$(since "$begun") s"
    equal status "$(dpkg-query --show --showformat='${Status}' ampoule)" "install ok installed"
    equal audit "$(dpkg --audit)" ""
    equal verify "$(dpkg --verify ampoule)" ""
    for unit in $UNITS; do
        equal "$unit" "$(systemctl is-active "$unit" || true)" inactive
        equal "$unit" "$(systemctl is-enabled "$unit" || true)" disabled
    done
    for program in /usr/bin/ampoule /usr/bin/ampouled /usr/libexec/ampoule/ampoule-runner; do
        "$program" --version
    done
}

pages_and_completions_are_there() {
    dpkg --listfiles ampoule > "$W/listed"
    for file in man1/ampoule.1 man1/ampoule-run.1 man1/ampoule-submit.1 man1/ampoule-verify.1 man8/ampouled.8; do
        grep -qx "/usr/share/man/$file.gz" "$W/listed" || fail "no page $file"
        gzip --test "/usr/share/man/$file.gz"
    done
    # A page for each command that the program itself lists.
    ampoule --help | sed -n '/^Commands:/,/^$/s/^  \([a-z][a-z-]*\) .*/\1/p' | grep -vx help > "$W/commands"
    [ -s "$W/commands" ] || fail "the program lists no commands"
    while read -r command; do
        grep -qx "/usr/share/man/man1/ampoule-$command.1.gz" "$W/listed" || fail "no page of ampoule $command"
    done < "$W/commands"
    fact "commands, each with its page" "$(wc -l < "$W/commands")"
    for file in bash-completion/completions/ampoule bash-completion/completions/ampouled zsh/vendor-completions/_ampoule \
        zsh/vendor-completions/_ampouled fish/vendor_completions.d/ampoule.fish fish/vendor_completions.d/ampouled.fish; do
        [ -s "/usr/share/$file" ] || fail "no completions $file"
    done
    bash -n /usr/share/bash-completion/completions/ampoule
}

users_directories_and_modules_are_there() {
    getent passwd ampouled | grep -q ':/var/lib/ampouled:/usr/sbin/nologin$'
    getent group ampoule > /dev/null
    for dir in /run/ampoule /etc/ampoule /etc/ampoule/policy; do
        equal "$dir" "$(stat --format='%a %U %G' "$dir")" "755 root root"
    done
    # A unit's rule for loop devices is about those that the kernel knows when it starts.
    grep -q '^loop ' /proc/modules || fail "the module loop is not loaded"
    [ -s /usr/lib/modules-load.d/ampoule.conf ]
}

configuration_of_the_page_is_good() {
    cp /usr/share/ampoule/policy/authz.rego /usr/share/ampoule/policy/data.json /etc/ampoule/policy/
    binding="{ \"subject\": \"uid:$BUILDER_UID\", \"role\": \"submit\", \"projects\": [\"default\"],"
    binding="$binding \"profiles\": [\"hermetic\"], \"own\": true },"
    sed -i "/\"uid:0\"/a $binding" /etc/ampoule/policy/data.json
    (umask 077 && openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out /etc/ampoule/provenance.key)
    openssl pkey -in /etc/ampoule/provenance.key -pubout -out "$W/provenance.pub"
    cat > /etc/ampoule/agent.toml << 'END'
authority = "https://builds.corp.example"
[listen]
systemd = ["agent"]
[signing]
credential = "provenance-key"
[drain]
deadline = "3s"
END
    echo "m builder ampoule" | systemd-sysusers -
    # As its unit hands the key over.
    mkdir -m 700 "$W/credentials"
    cp /etc/ampoule/provenance.key "$W/credentials/provenance-key"
    chown -R ampouled "$W/credentials"
    setpriv --reuid=ampouled --regid=ampouled --clear-groups -- \
        env CREDENTIALS_DIRECTORY="$W/credentials" ampouled --check-config
    rm -r "$W/credentials"
}

units_start_and_say_so() {
    begun=$(now)
    systemctl enable --now $UNITS
    # With Type=notify that returns when both have said that they are ready.
    fact "enable --now" "$(since "$begun") s"
    for unit in $UNITS; do
        active "$unit" || fail "$unit is not active"
        equal "$unit" "$(systemctl is-enabled "$unit")" enabled
    done
    for unit in ampouled ampoule-runner; do
        equal "$unit" "$(systemctl show --property=Type --value "$unit.service")" notify
        equal "$unit restarts" "$(systemctl show --property=NRestarts --value "$unit.service")" 0
    done
    equal "user" "$(stat --format=%U "/proc/$(main_pid ampouled.service)")" ampouled
    eventually 120 "the daemon is ready" is_ready
    fact "VmRSS of ampouled" "$(grep VmRSS "/proc/$(main_pid ampouled.service)/status" | tr -s '\t ' ' ')"
    as_builder ampoule list
}

sockets_start_what_they_are_for() {
    equal "agent's socket" "$(stat --format='%a %U %G' /run/ampoule/agent.sock)" "660 ampouled ampoule"
    equal "launcher's socket" "$(stat --format='%a %U %G' /run/ampoule/runner.sock)" "660 root ampouled"
    systemctl stop ampouled.service ampoule-runner.service
    for unit in ampouled.service ampoule-runner.service; do
        equal "$unit" "$(systemctl is-active "$unit" || true)" inactive
    done
    # Somebody asks, and both are there.
    as_builder ampoule list
    # A call may be answered before systemd has read that the daemon is ready.
    eventually 60 "the agent is active" active ampouled.service
    eventually 60 "the launcher is active" active ampoule-runner.service
    eventually 120 "the daemon is ready" is_ready
    # Nobody else gets in: not in the group.
    fails_with 7 setpriv --reuid=4712 --regid=4712 --clear-groups -- \
        curl --silent --unix-socket /run/ampoule/agent.sock http://localhost/
}

# exposure UNIT MOST
exposure() {
    systemd-analyze security --no-pager "$1" > "$W/security"
    score=$(sed -n "s/.*Overall exposure level for $1: \([0-9.]*\) .*/\1/p" "$W/security")
    [ -n "$score" ] || fail "no score of $1"
    fact "systemd-analyze security $1" "$score, at most $2"
    echo "$score $2" | awk '{ exit !($1 <= $2) }' || fail "$1: $score, at most $2"
}

exposure_of_the_units_is_bounded() {
    exposure ampouled.service 2.0
    # Root, and without a filter of system calls: steps would inherit it (systemd/README.md).
    exposure ampoule-runner.service 8.4
}

nothing_of_the_units_is_swapped() {
    for unit in ampouled.service ampoule-runner.service; do
        group=$(systemctl show --property=ControlGroup --value "$unit")
        [ -n "$group" ] || fail "$unit has no group"
        equal "$unit" "$(cat "/sys/fs/cgroup$group/memory.swap.max")" 0
    done
}
