# Restarts, upgrades and drains under jobs that run until they are told to end.

LIFE="
    job_outlives_a_restart_of_the_agent
    job_outlives_a_restart_of_the_launcher
    job_outlives_the_death_of_both
    stop_drains_by_its_deadline_and_the_job_is_taken_up_again
    drain_ends_the_intake_and_lets_jobs_end
    agent_of_the_next_version_serves_beside_the_launcher_before
    launcher_of_the_next_version_serves_beside_the_agent_before
    job_outlives_an_upgrade
    reload_reads_the_policy_again_without_a_restart
    job_outlives_a_rollback
    job_over_the_hosts_image_ends_with_a_record_when_the_host_is_upgraded
    nothing_failed_by_itself
"

# A job that counts in its log until it is told to end, with SIGUSR1 from outside.
long() {
    name=$1
    shift
    job "$name" "trap 'told=$name' USR1
n=0
while [ -z \"\$told\" ]; do n=\$((n + 1)); echo \"line \$n of it\"; sleep 0.25; done
echo \"end after \$n\"
echo built > /build/out" "$@"
}

# The process of its step, as the host sees it.
step() { pgrep --oldest --full "^sh -c .*told=$1'" || fail "the job $1 does not run"; }
tell() { kill -USR1 "$(step "$1")"; }
# How many lines its client has shown.
shown() { grep -c 'line [0-9]* of it' "$W/said/$1" || true; }
has_shown() { [ "$(shown "$1")" -ge "$2" ]; }

# begin NAME: a client that follows the job, and a job that has said something.
begin() {
    rm -rf "$W/out/$1"
    as_builder ampoule submit "$W/jobs/$1.toml" --wait --out "$W/out/$1" --key "$W/provenance.pub" \
        > "$W/said/$1" 2>&1 &
    client=$!
    follows=$W/said/$1
    eventually 180 "job $1 runs" has_shown "$1" 3
}

# counts_up FILE: lines 1, 2, 3 … each once, and the end that says how many.
counts_up() {
    sed -n 's/.*line \([0-9]*\) of it.*/\1/p; s/.*end after \([0-9]*\).*/end \1/p' "$1" | awk '
        $1 == "end" { end = $2; next }
        { n++; if ($1 != n) { print "line " $1 " where " n " was due"; wrong = 1; exit 1 } }
        END { if (!wrong && end != n) { print n " lines, and the end says " end; exit 1 } }'
}

# A child that has ended and was not waited for has no command line any more.
client_has_ended() { [ -z "$(tr -d '\000' < "/proc/$client/cmdline")" ]; }

# ends STATUS: so ends the client.
ends() {
    eventually 180 "the client ends" client_has_ended
    status=0
    wait "$client" || status=$?
    client=
    equal "exit of submit: $(tail -n 5 "$follows")" "$status" "$1"
}

# The client has seen a success, every line once, and so has the evidence.
ended_well() {
    ends 0
    counts_up "$W/said/$1" || fail "what was shown"
    counts_up "$W/out/$1/evidence/logs/0-s.stdout" || fail "what was kept"
    fact "lines" "$(grep -c 'line' "$W/out/$1/evidence/logs/0-s.stdout")"
    equal output "$(cat "$W/out/$1/outputs/out")" built
    verified "$1"
    grep -q '"outcome": *"succeeded"' "$W/out/$1/evidence/report.json" || fail "another outcome"
}

# outlives NAME COMMAND…: a job runs across the command, is followed after it, and ends well.
outlives() {
    job=$1
    shift
    long "$job"
    begin "$job"
    at=$(step "$job")
    begun=$(now)
    "$@"
    fact "$*" "$(since "$begun") s"
    equal "process of the step" "$(step "$job")" "$at"
    eventually 120 "the daemon is ready" is_ready
    eventually 120 "the log goes on" has_shown "$job" $(($(shown "$job") + 3))
    tell "$job"
    ended_well "$job"
}

# Whether a unit's process is another than that of the number, and of a program that is still there.
replaced() { active "$1" && [ "$(main_pid "$1")" != "$2" ] && ! readlink "/proc/$(main_pid "$1")/exe" | grep -q deleted; }

restart() {
    was=$(main_pid "$1")
    systemctl restart "$1"
    replaced "$1" "$was" || fail "$1 is the process that it was"
}

job_outlives_a_restart_of_the_agent() { outlives agent restart ampouled.service; }
job_outlives_a_restart_of_the_launcher() { outlives launcher restart ampoule-runner.service; }

kill_both() {
    agent=$(main_pid ampouled.service)
    launcher=$(main_pid ampoule-runner.service)
    kill -KILL "$agent" "$launcher"
    eventually 120 "another launcher" replaced ampoule-runner.service "$launcher"
    eventually 120 "another agent" replaced ampouled.service "$agent"
}
job_outlives_the_death_of_both() { outlives both kill_both; }

stop_and_start() {
    # The socket too: the client that follows would have the daemon started again by it.
    stopped=$(now)
    systemctl stop ampouled.socket ampouled.service
    fact "stop, with a call in flight and a deadline of 3 s" "$(since "$stopped") s"
    echo "$(since "$stopped")" | awk '{ exit !($1 >= 3 && $1 < 30) }' || fail "not by the deadline"
    equal result "$(systemctl show --property=Result --value ampouled.service)" success
    equal status "$(systemctl show --property=ExecMainStatus --value ampouled.service)" 0
    [ ! -e /run/ampoule/agent.sock ] || fail "the socket is left"
    systemctl start ampouled.socket ampouled.service
}
stop_drains_by_its_deadline_and_the_job_is_taken_up_again() { outlives stopped stop_and_start; }

# drain MESSAGE: HostService.Drain by a client that is not ours. The message is one frame of gRPC's.
drain() {
    printf "$1" > "$W/frame"
    curl --silent --show-error --http2-prior-knowledge --unix-socket /run/ampoule/agent.sock \
        --header 'content-type: application/grpc' --header 'te: trailers' --data-binary "@$W/frame" \
        --dump-header "$W/headers" --output "$W/answer" http://localhost/ampoule.v1.HostService/Drain
    tr -d '\r' < "$W/headers" | grep -qix 'grpc-status: 0' || fail "$(cat "$W/headers")"
}

both_are_connected() { [ "$(ss --no-header --unix state established | grep -c /run/ampoule/agent.sock)" -ge 2 ]; }

drain_ends_the_intake_and_lets_jobs_end() {
    long drained
    begin drained
    # drain = true; the answer: one runs, none waits.
    drain '\000\000\000\000\002\010\001'
    equal answer "$(od -An -tx1 "$W/answer" | tr -d ' \n')" 00000000020801
    eventually 60 "the daemon says that it is not ready" is_unready
    job late 'echo built > /build/out'
    # A client of ours is told to come again, and does so: it is neither taken nor lost.
    as_builder ampoule submit "$W/jobs/late.toml" --wait > "$W/said/late" 2>&1 &
    late=$!
    eventually 60 "two clients are connected" both_are_connected
    tell drained
    ended_well drained
    as_builder ampoule list > "$W/list"
    ! grep /late "$W/list" || fail "a job was taken"
    client=$late
    follows=$W/said/late
    drain '\000\000\000\000\000'
    eventually 60 "the daemon is ready" is_ready
    ends 0
}

# Unpacked and not configured: programs and units of the other version are there, the processes are those of before.
agent_of_the_next_version_serves_beside_the_launcher_before() {
    launcher=$(main_pid ampoule-runner.service)
    dpkg --unpack newer.deb
    systemctl daemon-reload
    outlives mixed restart ampouled.service
    equal "the launcher" "$(main_pid ampoule-runner.service)" "$launcher"
    dpkg --configure ampoule
    equal version "$(version)" "$(version_of newer.deb)"
    replaced ampoule-runner.service "$launcher" || fail "the launcher was not replaced"
}

launcher_of_the_next_version_serves_beside_the_agent_before() {
    dpkg --install older.deb
    agent=$(main_pid ampouled.service)
    dpkg --unpack newer.deb
    systemctl daemon-reload
    outlives other restart ampoule-runner.service
    equal "the agent" "$(main_pid ampouled.service)" "$agent"
    dpkg --configure ampoule
    dpkg --install older.deb
}

# change_to FILE
change_to() {
    agent=$(main_pid ampouled.service)
    launcher=$(main_pid ampoule-runner.service)
    dpkg --install "$1"
    equal version "$(version)" "$(version_of "$1")"
    replaced ampouled.service "$agent" || fail "the agent is the process that it was"
    replaced ampoule-runner.service "$launcher" || fail "the launcher is the process that it was"
}
job_outlives_an_upgrade() {
    equal version "$(version)" "$(version_of older.deb)"
    as_builder ampoule list > "$W/before"
    outlives upgraded change_to newer.deb
    for unit in $UNITS; do
        equal "$unit" "$(systemctl is-enabled "$unit")" enabled
    done
    # What was there before the upgrade is there after it.
    as_builder ampoule list > "$W/list"
    ! grep -vxF -f "$W/list" "$W/before" || fail "jobs are gone: $(cat "$W/list")"
}
is_refused() {
    submit "$1"
    [ $? = 77 ]
}

reload_reads_the_policy_again_without_a_restart() {
    before=$(main_pid ampouled.service)
    cp /etc/ampoule/policy/data.json "$W/data.json"
    sed -i 's/, "host_image": true//' /etc/ampoule/policy/data.json
    systemctl reload ampouled.service
    eventually 60 "the grant is taken back" is_refused host
    cp "$W/data.json" /etc/ampoule/policy/data.json
    systemctl reload ampouled.service
    eventually 60 "it is given again" submit host
    equal "process of the agent" "$(main_pid ampouled.service)" "$before"
}

job_outlives_a_rollback() { outlives rolled change_to older.deb; }

job_over_the_hosts_image_ends_with_a_record_when_the_host_is_upgraded() {
    # Its image is the host's /usr by its package list, and that is another one now: nothing may be claimed of it.
    image=host long onhost
    begin onhost
    dpkg --install newer.deb
    tell onhost
    ends 70
    grep -q '\[input.changed\]' "$W/said/onhost" || fail "$(cat "$W/said/onhost")"
    counts_up "$W/out/onhost/evidence/logs/0-s.stdout"
    [ ! -e "$W/out/onhost/outputs/out" ] || fail "an output was released"
}

nothing_failed_by_itself() {
    for unit in $UNITS; do
        active "$unit" || fail "$unit is not active"
        equal "$unit" "$(systemctl show --property=Result --value "$unit")" success
    done
    curl --silent http://127.0.0.1:9464/metrics > "$W/metrics"
    grep -x 'ampoule_panics_total 0' "$W/metrics" || fail "$(grep panics "$W/metrics")"
    journalctl --no-pager --quiet --unit=ampouled.service --unit=ampoule-runner.service > "$W/journal"
    ! grep -i -e panicked -e '"a defect' -e 'watchdog timeout' -e 'core-dump' "$W/journal"
}
