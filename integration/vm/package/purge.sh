# The end: what a package that goes takes along, and what it leaves.

PURGE="
    removal_is_refused_while_a_job_runs
    removal_ends_everything_and_keeps_what_is_evidence
    installed_again_it_has_what_it_had
    purge_leaves_the_machine_as_it_was
"

try_removal() { dpkg --remove ampoule > "$W/removal" 2>&1; }

removal_is_refused_while_a_job_runs() {
    long removed
    begin removed
    fails_with 1 try_removal
    grep -q "ampoule cancel" "$W/removal" || fail "no remedy: $(cat "$W/removal")"
    equal status "$(dpkg-query --show --showformat='${db:Status-Status}' ampoule)" installed
    for unit in $UNITS; do
        active "$unit" || fail "$unit is not active"
        equal "$unit" "$(systemctl is-enabled "$unit")" enabled
    done
    tell removed
    ended_well removed
}

# What must not be there after a removal.
nothing_runs() {
    equal units "$(systemctl list-unit-files --no-legend 'ampoule-*' 'ampouled*')" ""
    equal loaded "$(systemctl list-units --all --no-legend 'ampoule-*' 'ampouled*')" ""
    kernel | diff "$W/kernel.before" -
    [ ! -e /run/ampoule/agent.sock ] && [ ! -e /run/ampoule/runner.sock ] || fail "a socket is left"
}

removal_ends_everything_and_keeps_what_is_evidence() {
    begun=$(now)
    dpkg --remove ampoule
    fact "dpkg --remove" "$(since "$begun") s"
    equal status "$(dpkg-query --show --showformat='${db:Status-Status}' ampoule)" config-files
    nothing_runs
    [ -s /etc/ampoule/agent.toml ] && [ -s /etc/ampoule/provenance.key ] || fail "the configuration is gone"
    [ -n "$(ls /var/lib/ampouled/records)" ] || fail "the records are gone"
}

installed_again_it_has_what_it_had() {
    dpkg --install newer.deb
    systemctl enable --now $UNITS
    eventually 120 "the daemon is ready" is_ready
    as_builder ampoule list > "$W/list"
    for name in first upgraded rolled removed; do
        grep -q "succeeded .*/$name\$" "$W/list" || fail "no $name: $(cat "$W/list")"
    done
    submit first
    verified first
}

purge_leaves_the_machine_as_it_was() {
    begun=$(now)
    dpkg --purge ampoule > "$W/purge"
    fact "dpkg --purge" "$(since "$begun") s"
    fails_with 1 dpkg-query --show ampoule
    nothing_runs
    # What the operator has written is the operator's, and is named.
    (cd /etc/ampoule && find . -type f | sort) > "$W/kept"
    printf './%s\n' agent.toml policy/authz.rego policy/data.json provenance.key | diff "$W/kept" -
    grep -q /etc/ampoule "$W/purge" || fail "it is not said what stays: $(cat "$W/purge")"
    files | grep -v -e '^/etc/ampoule$' -e '^/etc/ampoule/' | diff "$W/files.before" - || fail "files came or went"
    # A user stays, as its number is on whatever was backed up; nobody can log in as it, and nothing is its own.
    diff "$W/passwd.before" /etc/passwd | grep '^[<>]' | grep -v '^> ampouled:.*:/usr/sbin/nologin$' && fail "other users"
    equal "files of the user" "$(find / -xdev -user ampouled -print -quit)" ""
    equal "processes of the user" "$(pgrep --uid ampouled || true)" ""
}
