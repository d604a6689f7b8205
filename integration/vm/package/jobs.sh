# Jobs, as somebody submits them who has nothing but the group and a line in the policy.

JOBS="
    job_gives_an_output_whose_evidence_verifies
    job_of_the_hosts_own_image_runs
    caller_without_a_role_is_refused
    memory_limit_is_enforced
    process_limit_is_enforced
    disk_limit_is_enforced
    time_limit_is_enforced
    limits_stand_in_groups_of_version_2
"

# job NAME SCRIPT [LIMIT…]: a job over the small image, which is named by its digest.
job() {
    {
        echo 'ampoule = 1'
        echo "name = \"$1\""
        echo "image = \"${image:-tar:$W/image.tar@sha256:$(sha256sum "$W/image.tar" | cut -d ' ' -f 1)}\""
        echo 'env = { PATH = "/bin:/usr/bin" }'
        echo '[[step]]'
        echo 'name = "s"'
        echo "run = ['sh', '-c', '''"
        echo "$2"
        echo "''']"
        echo "timeout = \"${timeout:-20m}\""
        echo '[[output]]'
        echo 'path = "/build/out"'
        echo '[limits]'
        shift 2
        # What a job does not say is the profile's, which is more than this machine has for two of them.
        for limit in 'cpus = 1' 'disk = "64MiB"' 'memory = "128MiB"' "$@"; do
            echo "$limit"
        done | awk '{ limit[$1] = $0 } END { for (name in limit) print limit[name] }'
    } > "$W/jobs/$1.toml"
}

# submit NAME: until its end, in the foreground. What it says is in said/NAME.
submit() {
    rm -rf "$W/out/$1"
    as_builder ampoule submit "$W/jobs/$1.toml" --wait --out "$W/out/$1" --key "$W/provenance.pub" > "$W/said/$1" 2>&1
}

# verified NAME [BUILDER]: whether what a job left is signed by the operator's key, as a stranger with that key sees it.
verified() {
    ampoule verify "$W/out/$1/outputs/out" --attestation "$W/out/$1/evidence/out.intoto.jsonl" \
        --key "$W/provenance.pub" --builder "https://builds.corp.example/builders/${2:-hermetic}/v1"
}

job_gives_an_output_whose_evidence_verifies() {
    job first 'echo said; echo built > /build/out'
    begun=$(now)
    submit first || fail "$(cat "$W/said/first")"
    fact "the first job, its image uploaded" "$(since "$begun") s"
    begun=$(now)
    submit first || fail "$(cat "$W/said/first")"
    fact "the next one" "$(since "$begun") s"
    equal output "$(cat "$W/out/first/outputs/out")" built
    equal log "$(cat "$W/out/first/evidence/logs/0-s.stdout")" said
    verified first
    echo x >> "$W/out/first/outputs/out"
    fails_with 2 verified first
}

job_of_the_hosts_own_image_runs() {
    image=host job host 'echo built > /build/out'
    # Who may have the host's own files is said by name.
    fails_with 77 submit host
    sed -i "/\"uid:$BUILDER_UID\"/s/\"own\": true/&, \"host_image\": true/" /etc/ampoule/policy/data.json
    systemctl restart ampouled.service
    begun=$(now)
    submit host || fail "$(cat "$W/said/host")"
    fact "a job over image = \"host\"" "$(since "$begun") s"
    # By the host's list of packages, which is no digest of bytes: another builder says so.
    verified host host
}

caller_without_a_role_is_refused() {
    # Root is an operator by the sample policy, and submits nothing.
    job refused 'echo built > /build/out'
    fails_with 77 ampoule submit "$W/jobs/refused.toml" --wait
}

# ends_with NAME CODE
ends_with() {
    fails_with 1 submit "$1"
    grep -q "\[$2\]" "$W/said/$1" || fail "no $2: $(cat "$W/said/$1")"
    [ ! -e "$W/out/$1/outputs/out" ] || fail "an output was released"
    # The record of a failure is signed too.
    grep -q "\"code\": *\"$2\"" "$W/out/$1/evidence/report.json" || fail "the report says something else"
}

memory_limit_is_enforced() {
    job memory 'echo x > /build/out; x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done' 'memory = "48MiB"'
    ends_with memory limit.oom
}

process_limit_is_enforced() {
    job pids 'echo x > /build/out; n=0; while [ $n -lt 100 ]; do n=$((n + 1)); sleep 1000 & done; wait' 'pids = 24'
    ends_with pids limit.pids
}

disk_limit_is_enforced() {
    job disk 'dd if=/dev/zero of=/build/out bs=1024k count=64' 'disk = "16MiB"'
    ends_with disk limit.disk
}

time_limit_is_enforced() {
    timeout=5s job time 'echo x > /build/out; sleep 1000'
    ends_with time limit.timeout
}

limits_stand_in_groups_of_version_2() {
    equal "file system of the groups" "$(stat --file-system --format=%T /sys/fs/cgroup)" cgroup2fs
    long groups 'pids = 99' 'memory = "96MiB"' 'cpus = 0.5'
    begin groups
    group=/sys/fs/cgroup$(sed 's/^0:://' "/proc/$(step groups)/cgroup")
    while [ ! -e "$group/memory.max" ] || [ "$(cat "$group/memory.max")" = max ]; do
        group=$(dirname "$group")
        [ "$group" != / ] || fail "no group of the job's has a limit"
    done
    fact "the job's group" "${group#/sys/fs/cgroup}"
    case ${group##*/} in ampoule-*) ;; *) fail "the limit is that of $group" ;; esac
    equal memory.max "$(cat "$group/memory.max")" $((96 << 20))
    equal memory.swap.max "$(cat "$group/memory.swap.max" 2> /dev/null || echo 0)" 0
    equal pids.max "$(cat "$group/pids.max")" 100
    equal cpu.max "$(cat "$group/cpu.max")" "50000 100000"
    tell groups
    ended_well groups
    [ ! -e "$group" ] || fail "the group is left: $group"
}
