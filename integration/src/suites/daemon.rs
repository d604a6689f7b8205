//! The jobs of the daemon on a launcher that listens: each that was acknowledged ends in one signed record, whatever dies.

use crate::check::{equal, json, sha256, statement, verify};
use crate::harness::Test;
use crate::keeper::{self, Followed, Keeper};
use crate::lab::Lab;
use crate::listener::Listener;
use crate::procs::{self, patience};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant, SystemTime};

pub(super) const TESTS: &[Test] = &[
    Test::root("jobs_run_and_their_records_verify", run),
    Test::root("cancel_in_every_state", cancel),
    Test::root("job_goes_on_without_its_agent", goes_on),
    Test::root("jobs_wait_for_a_launcher_that_is_down", waits),
    Test::root("directory_of_a_job_that_nobody_knows_is_left", unknown),
    Test::root("job_of_a_stopped_session_is_aborted_and_never_runs", super::frozen::frozen),
    Test::root("killed_at_random_every_job_ends_in_one_record", kills),
];

pub(super) const SOON: Duration = Duration::from_secs(30);
/// How many jobs and kills there are, if `AMPOULE_DAEMON_JOBS` and `AMPOULE_DAEMON_KILLS` do not say.
const JOBS: u64 = 40;
const KILLS: u64 = 10;

/// An id whose order is that of the numbers.
pub(super) fn job_id(number: u64) -> String {
    format!("01890a5d-ac96-774b-bcce-{number:04x}{:08x}", std::process::id())
}

/// A request for a job of one step.
pub(super) fn submit(number: u64, script: &str, outputs: &Value) -> Value {
    json!({"do": "submit", "key": format!("key-{number}"), "spec": {
        "ampoule": 1, "id": job_id(number), "attempt": 1, "name": "kept", "profile": "hermetic",
        "image": {"kind": "host"}, "source_date_epoch": 0, "outputs": outputs, "limits": {"memory_bytes": 134_217_728},
        "steps": [{"name": "s", "cwd": "/build", "timeout_ms": 600_000, "run": ["sh", "-euc", script]}],
    }})
}

fn out() -> Value {
    json!([{"name": "out", "path": "/build/out"}])
}

/// Removes every job's directory by the keeper's own retention, and ends both.
pub(super) fn finish(lab: &Lab, listener: Listener<'_>, keeper: Keeper<'_>) -> Result<()> {
    keeper.stop()?;
    let keeper = Keeper::start(&listener, lab, &["--keep-bytes", "0"])?;
    let jobs = lab.state().join("jobs");
    procs::eventually(SOON, "directories of finished jobs go", || {
        // A fence stays until the host is booted again.
        fs::read_dir(&jobs)
            .is_ok_and(|mut left| left.all(|left| left.is_ok_and(|left| left.path().is_file())))
    })?;
    for fence in fs::read_dir(&jobs)? {
        fs::remove_file(fence?.path())?;
    }
    keeper.stop()?;
    listener.stop()
}

/// The one signed record of a job verifies and says how the job ended.
pub(super) fn has_one_record(lab: &Lab, id: &str, job: &Value) -> Result<Value> {
    let dir = keeper::state(lab).join("records").join(id);
    let attestation = dir.join("run.intoto.jsonl");
    let end = &job["end"];
    equal("attestation", &end["attestation"], &Value::from(sha256(&fs::read(&attestation)?)))?;
    let key = keeper::state(lab).join("keys/development.pub");
    let verified = verify(&lab.program("ampoule"), &dir.join("report.json"), &attestation, &key, &["--run"])?;
    ensure!(verified.0 == Some(0), "{id}: {}", verified.1);
    let said = statement(&attestation)?;
    equal("invocation", &said["predicate"]["invocationId"], &Value::from(format!("urn:uuid:{id}")))?;
    equal("outcome", &said["predicate"]["outcome"], &end["outcome"])?;
    let result = json(&dir.join("result.json"))?;
    equal("code", &result["code"], &end["failure"]["code"])?;
    Ok(said["predicate"].clone())
}

fn run(lab: &Lab) -> Result<()> {
    let listener = Listener::start(lab, &[])?;
    let mut keeper = Keeper::start(&listener, lab, &[])?;
    let script =
        "echo one; echo two >&2; mkdir /build/tree; echo f > /build/tree/f; echo three | tee /build/out";
    let outputs = json!([{"name": "out", "path": "/build/out"}, {"name": "tree", "path": "/build/tree", "form": "tree"}]);
    let submitted = keeper.ask(submit(1, script, &outputs))?;
    equal("state", &submitted["job"]["state"], &Value::from("queued"))?;
    let job = keeper.finished(&job_id(1))?;
    equal("outcome", &job["end"]["outcome"], &Value::from("succeeded"))?;
    let followed = keeper.followed.get(&job_id(1)).context("not followed")?;
    equal(
        "stdout",
        &followed.logs.get(&(0, "stdout".to_owned())).map(Vec::as_slice),
        &Some(&b"one\nthree\n"[..]),
    )?;
    equal("stderr", &followed.logs.get(&(0, "stderr".to_owned())).map(Vec::as_slice), &Some(&b"two\n"[..]))?;
    ensure!(followed.states.is_sorted_by_key(|s| order(s)), "{:?}", followed.states);
    let predicate = has_one_record(lab, &job_id(1), &job)?;
    equal("sandbox", &predicate["sandbox"], &Value::Null)?;
    let output = keeper.ask(json!({"do": "output", "id": job_id(1), "name": "out"}))?;
    equal("output", &output["bytes"], &Value::from("dGhyZWUK"))?;
    let tree = keeper.ask(json!({"do": "output", "id": job_id(1), "name": "tree"}))?;
    ensure!(tree["length"].as_u64().is_some_and(|length| length > 512), "no archive: {tree}");
    let evidence = keeper.ask(json!({"do": "evidence", "id": job_id(1)}))?;
    ensure!(evidence["files"]["out.intoto.jsonl"].is_string(), "no provenance: {}", evidence["files"]);
    equal("statement", &evidence["files"]["tree.intoto.jsonl"], &evidence["files"]["out.intoto.jsonl"])?;
    // Two artifacts have one statement on the disk, and the job's record is counted.
    let record = keeper::state(lab).join("records").join(job_id(1));
    for name in ["intoto.jsonl", "sigstore.json"] {
        let file =
            |output: &str| fs::metadata(record.join(format!("{output}.{name}"))).map(|meta| meta.ino());
        equal(name, &file("tree")?, &file("out")?)?;
    }
    let bytes = job["end"]["record_bytes"].as_u64().unwrap_or_default();
    ensure!((6 * 4096..1 << 20).contains(&bytes), "the record has {bytes} bytes");
    for (number, script, code) in [(2, "exit 3", "step.exit_nonzero"), (3, "kill -9 $$", "step.signalled")] {
        keeper.ask(submit(number, script, &out()))?;
        let job = keeper.finished(&job_id(number))?;
        equal("code", &job["end"]["failure"]["code"], &Value::from(code))?;
        has_one_record(lab, &job_id(number), &job)?;
    }
    let mut lacks = submit(4, "true", &json!([]));
    lacks["spec"]["inputs"] = json!([{"name": "src", "mount": "/build/src",
        "source": {"kind": "tar", "sha256": "1".repeat(64)}}]);
    keeper.ask(lacks)?;
    let job = keeper.finished(&job_id(4))?;
    equal("code", &job["end"]["failure"]["code"], &Value::from("input.missing"))?;
    equal("sandbox", &has_one_record(lab, &job_id(4), &job)?["sandbox"], &Value::from("none"))?;
    finish(lab, listener, keeper)
}

fn order(state: &str) -> usize {
    ["queued", "preparing", "running", "attesting", "finished"].iter().position(|s| *s == state).unwrap_or(9)
}

fn cancel(lab: &Lab) -> Result<()> {
    let listener = Listener::start(lab, &[])?;
    let mut keeper = Keeper::start(&listener, lab, &["--running", "1"])?;
    let marker = lab.marker();
    keeper.ask(submit(1, &format!("echo begun; exec sleep {marker}"), &json!([])))?;
    keeper.ask(submit(2, "true", &json!([])))?;
    keeper.ask(submit(3, "true", &json!([])))?;
    let runs = format!("sleep {marker}");
    procs::eventually(SOON, "the step runs", || procs::with_args(&runs).iter().any(|p| p.is_program(&runs)))?;
    // One that waits never has a sandbox; one that runs is ended by its supervisor.
    for (number, sandbox) in [(2, "none"), (1, "")] {
        keeper.ask(json!({"do": "cancel", "id": job_id(number)}))?;
        let job = keeper.finished(&job_id(number))?;
        equal("outcome", &job["end"]["outcome"], &Value::from("cancelled"))?;
        let predicate = has_one_record(lab, &job_id(number), &job)?;
        equal("sandbox", predicate["sandbox"].as_str().unwrap_or_default(), sandbox)?;
    }
    let job = keeper.finished(&job_id(3))?;
    equal("outcome", &job["end"]["outcome"], &Value::from("succeeded"))?;
    // At once, whatever state that finds it in.
    for number in 10..18 {
        keeper.ask(submit(number, "sleep 600", &json!([])))?;
        std::thread::sleep(Duration::from_millis((number - 10) * 7));
        keeper.ask(json!({"do": "cancel", "id": job_id(number)}))?;
        let job = keeper.finished(&job_id(number))?;
        equal("outcome", &job["end"]["outcome"], &Value::from("cancelled"))?;
        has_one_record(lab, &job_id(number), &job)?;
    }
    finish(lab, listener, keeper)
}

fn goes_on(lab: &Lab) -> Result<()> {
    let listener = Listener::start(lab, &[])?;
    let mut keeper = Keeper::start(&listener, lab, &[])?;
    keeper.ask(submit(1, "i=0; while [ $i -lt 60 ]; do echo $i; i=$((i+1)); sleep 0.05; done", &out()))?;
    keeper.followed.entry(job_id(1)).or_default();
    keeper.follow_all()?;
    let begun = Instant::now();
    while keeper.followed.values().all(|job| job.logs.is_empty()) && begun.elapsed() < patience(SOON) {
        keeper.listen(Duration::from_millis(20));
    }
    // Without agent and listener it comes to its end; whoever is next finds its report.
    let followed = keeper.kill()?;
    ensure!(followed.values().any(|job| job.cursor > 0), "it has not begun: {followed:?}");
    listener.kill()?;
    let report = lab.state().join("jobs").join(job_id(1)).join("report.json");
    procs::eventually(SOON, "the report is written", || report.exists())?;
    let listener = Listener::start(lab, &[])?;
    let mut keeper = Keeper::start(&listener, lab, &[])?;
    keeper.followed = followed;
    let job = keeper.finished(&job_id(1))?;
    // Its one output is not there.
    equal("code", &job["end"]["failure"]["code"], &Value::from("output.missing"))?;
    has_one_record(lab, &job_id(1), &job)?;
    let expected: String = (0..60).map(|n| format!("{n}\n")).collect();
    let followed = keeper.followed.get(&job_id(1)).context("not followed")?;
    equal("log", &followed.logs.get(&(0, "stdout".to_owned())), &Some(&expected.into_bytes()))?;
    finish(lab, listener, keeper)
}

fn waits(lab: &Lab) -> Result<()> {
    let listener = Listener::start(lab, &[])?;
    let mut keeper = Keeper::start(&listener, lab, &[])?;
    keeper.ask(submit(1, "true", &json!([])))?;
    keeper.finished(&job_id(1))?;
    listener.stop()?;
    keeper.ask(submit(2, "true", &json!([])))?;
    keeper.ask(submit(3, "true", &json!([])))?;
    let begun = Instant::now();
    while keeper.ask(json!({"do": "health"}))?["launcher"] == true && begun.elapsed() < patience(SOON) {
        keeper.listen(Duration::from_millis(20));
    }
    equal("launcher", &keeper.ask(json!({"do": "health"}))?["launcher"], &Value::from(false))?;
    let state = keeper.ask(json!({"do": "get", "id": job_id(3)}))?["job"]["state"].clone();
    ensure!(state == "queued" || state == "preparing", "it is {state}");
    let listener = Listener::start(lab, &[])?;
    for number in 2..4 {
        let job = keeper.finished(&job_id(number))?;
        equal("outcome", &job["end"]["outcome"], &Value::from("succeeded"))?;
    }
    finish(lab, listener, keeper)
}

fn unknown(lab: &Lab) -> Result<()> {
    let listener = Listener::start(lab, &[])?;
    let client = listener.client()?;
    let id = client.run(&["true"], &json!([]))?;
    client.finished(&id)?;
    let mut keeper = Keeper::start(&listener, lab, &["--keep-bytes", "0"])?;
    let begun = Instant::now();
    loop {
        let health = keeper.ask(json!({"do": "health"}))?;
        if health["unknown"] == json!([id]) {
            break;
        }
        ensure!(begun.elapsed() < patience(SOON), "nobody is told: {health}");
        keeper.listen(Duration::from_millis(50));
    }
    // Others come and go; this one stays.
    keeper.ask(submit(1, "true", &json!([])))?;
    keeper.finished(&job_id(1))?;
    let jobs = lab.state().join("jobs");
    procs::eventually(SOON, "the other one goes", || !jobs.join(job_id(1)).exists())?;
    ensure!(jobs.join(&id).exists(), "it is gone");
    keeper.stop()?;
    client.forget(&id)?;
    drop(client);
    listener.stop()
}

/// How a job is to end if nothing of ours dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Quick,
    Slow,
    Fails,
    Lacks,
    Cancelled,
}

const KINDS: [Kind; 8] =
    [Kind::Quick, Kind::Slow, Kind::Fails, Kind::Quick, Kind::Slow, Kind::Lacks, Kind::Cancelled, Kind::Slow];

/// Numbers that a seed gives (xorshift64*, Vigna 2016).
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % most.max(1)
    }
}

fn setting(name: &str, other: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(other)
}

/// What a job of a kind writes.
fn lines(kind: Kind, number: u64) -> u64 {
    match kind {
        Kind::Quick => 1 + number * 37 % 2000,
        Kind::Slow => 20,
        Kind::Fails | Kind::Lacks | Kind::Cancelled => 1,
    }
}

fn expected(kind: Kind, number: u64) -> Vec<u8> {
    (0..lines(kind, number)).map(|line| format!("line {line} of {number}\n")).collect::<String>().into_bytes()
}

fn request(kind: Kind, number: u64) -> Value {
    let pause = if kind == Kind::Slow { "sleep 0.04;" } else { "" };
    let after = match kind {
        Kind::Quick | Kind::Slow => "echo made > /build/out",
        Kind::Fails => "exit 3",
        Kind::Lacks => "true",
        Kind::Cancelled => "exec sleep 600",
    };
    let count = lines(kind, number);
    let script = format!(
        "i=0; while [ $i -lt {count} ]; do echo \"line $i of {number}\"; i=$((i+1)); {pause} done; {after}"
    );
    let mut request = submit(number, &script, &out());
    if kind == Kind::Lacks {
        let source = json!({"kind": "file", "sha256": format!("{number:064x}")});
        request["spec"]["inputs"] = json!([{"name": "src", "mount": "/build/src", "source": source}]);
    }
    request
}

/// Everything that lives while jobs run and things die.
struct World<'l> {
    lab: &'l Lab<'l>,
    listener: Option<Listener<'l>>,
    keeper: Option<Keeper<'l>>,
    dice: Dice,
    kinds: BTreeMap<String, (Kind, u64)>,
    kills: BTreeMap<&'static str, u64>,
}

impl<'l> World<'l> {
    fn keeper(&mut self) -> Result<&mut Keeper<'l>> {
        self.keeper.as_mut().context("no keeper")
    }

    /// Submits a job until it is acknowledged, as a client does that loses its daemon; half of the time the agent is
    /// killed before it has answered.
    fn submit(&mut self, number: u64) -> Result<()> {
        let kind = KINDS[usize::try_from(self.dice.below(KINDS.len() as u64))?];
        let asked = self.keeper()?.send(request(kind, number))?;
        if self.dice.below(25) == 0 {
            let pause = self.dice.below(4000);
            std::thread::sleep(Duration::from_micros(pause));
            self.kill_agent()?;
            let attached = self.keeper()?.ask(request(kind, number))?;
            equal("id", &attached["job"]["id"], &Value::from(job_id(number)))?;
        } else {
            let answer = self.keeper()?.answer(asked)?;
            ensure!(answer["error"].is_null(), "it refuses: {answer}");
        }
        self.kinds.insert(job_id(number), (kind, number));
        self.keeper()?.followed.entry(job_id(number)).or_default();
        self.keeper()?.follow_all()
    }

    fn kill_agent(&mut self) -> Result<()> {
        *self.kills.entry("agent").or_default() += 1;
        let followed = self.keeper.take().context("no keeper")?.kill()?;
        let listener = self.listener.as_ref().context("no listener")?;
        let mut keeper = Keeper::start(listener, self.lab, &[])?;
        keeper.followed = followed;
        keeper.follow_all()?;
        self.keeper = Some(keeper);
        Ok(())
    }

    /// Kills one process of ours.
    fn kill(&mut self) -> Result<()> {
        match self.dice.below(10) {
            0..3 => self.kill_agent(),
            3..5 => {
                *self.kills.entry("listener").or_default() += 1;
                self.listener.take().context("no listener")?.kill()?;
                let pause = self.dice.below(300);
                self.keeper()?.listen(Duration::from_millis(pause));
                self.listener = Some(Listener::start(self.lab, &["--pool", "2"])?);
                Ok(())
            }
            // Sessions, supervisors, import workers, pumps, inits, whatever there is.
            _ => {
                let listener = self.listener.as_ref().context("no listener")?.pid();
                let place = self.lab.state().display().to_string();
                let ours = procs::with_args(&place).into_iter();
                let ours: Vec<_> = ours.filter(|p| p.is_runner() && p.pid != listener).collect();
                let drawn = usize::try_from(self.dice.below(ours.len() as u64))?;
                if let Some(process) = ours.get(drawn) {
                    *self.kills.entry("of the runner's").or_default() += 1;
                    // It may have ended by itself.
                    let _ = procs::signal(process.pid, Signal::KILL);
                }
                Ok(())
            }
        }
    }

    /// Wishes the end of a job that does not end by itself, or of any.
    fn cancel(&mut self, all: bool) -> Result<()> {
        let keeper = self.keeper.as_ref().context("no keeper")?;
        let open = |id: &&String| keeper.followed.get(*id).is_none_or(|job| !job.is_finished());
        let endless = self.kinds.iter().filter(|(_, (kind, _))| *kind == Kind::Cancelled);
        let ids: Vec<String> = endless.map(|(id, _)| id).filter(open).cloned().collect();
        for id in ids {
            if all || self.dice.below(3) == 0 {
                self.keeper()?.ask(json!({"do": "cancel", "id": id}))?;
            }
        }
        Ok(())
    }
}

fn kills(lab: &Lab) -> Result<()> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let seed = setting("AMPOULE_DAEMON_SEED", u64::try_from(now.as_nanos() & 0xffff_ffff)?.max(1));
    let (jobs, kills) = (setting("AMPOULE_DAEMON_JOBS", JOBS), setting("AMPOULE_DAEMON_KILLS", KILLS));
    kill_at_random(lab, seed, jobs, kills).with_context(|| format!("AMPOULE_DAEMON_SEED={seed}"))
}

fn kill_at_random(lab: &Lab, seed: u64, jobs: u64, kills: u64) -> Result<()> {
    let begun = Instant::now();
    let listener = Listener::start(lab, &["--pool", "2"])?;
    let keeper = Keeper::start(&listener, lab, &[])?;
    let mut world = World {
        lab,
        listener: Some(listener),
        keeper: Some(keeper),
        dice: Dice(seed),
        kinds: BTreeMap::new(),
        kills: BTreeMap::new(),
    };
    let mut killed = 0;
    for number in 1..=jobs {
        world.submit(number)?;
        // No more than a few wait, so that whatever is killed meets jobs in every state.
        loop {
            world.keeper()?.follow_all()?;
            world.keeper()?.listen(Duration::from_millis(5));
            if killed * jobs < number * kills {
                killed += 1;
                world.kill()?;
            }
            world.cancel(false)?;
            let open = world.keeper()?.followed.values().filter(|job| !job.is_finished()).count();
            if open < 12 {
                break;
            }
            ensure!(begun.elapsed() < patience(Duration::from_secs(60 + 2 * jobs)), "too slow");
        }
    }
    world.cancel(true)?;
    let ids: Vec<_> = world.kinds.keys().cloned().collect();
    let mut outcomes = BTreeMap::<String, u64>::new();
    for id in &ids {
        let job = world.keeper()?.finished(id)?;
        let (kind, number) = *world.kinds.get(id).context("unknown")?;
        let followed = world.keeper()?.followed.remove(id).context("not followed")?;
        ended_well(lab, kind, number, &job, &followed)
            .with_context(|| format!("job {number} ({kind:?}) {id}"))?;
        let code = job["end"]["failure"]["code"].as_str().unwrap_or("succeeded").to_owned();
        *outcomes.entry(code).or_default() += 1;
    }
    let records = fs::read_dir(keeper::state(lab).join("records"))?.count();
    equal("records", &records, &ids.len())?;
    let spent = begun.elapsed();
    println!("  seed {seed}: {jobs} jobs, killed {:?}, ended {outcomes:?}, in {spent:.0?}", world.kills);
    let (listener, keeper) = (world.listener.take(), world.keeper.take());
    finish(lab, listener.context("no listener")?, keeper.context("no keeper")?)
}

/// A job ended as it should, or because something of ours was killed; either way its record says so, and its watcher has
/// every byte of its log once.
fn ended_well(lab: &Lab, kind: Kind, number: u64, job: &Value, followed: &Followed) -> Result<()> {
    let (id, code) = (job_id(number), job["end"]["failure"]["code"].as_str().unwrap_or("succeeded"));
    let meant = match kind {
        Kind::Quick | Kind::Slow => "succeeded",
        Kind::Fails => "step.exit_nonzero",
        Kind::Lacks => "input.missing",
        Kind::Cancelled => "job.cancelled",
    };
    // What a kill of a process inside the sandbox, or of its makers, looks like.
    let killed = ["job.aborted", "sandbox.setup_failed", "internal", "step.signalled", "input.missing"];
    ensure!(code == meant || killed.contains(&code), "it ended with {code}: {}", job["end"]["failure"]);
    ensure!(followed.states.is_sorted_by_key(|s| order(s)), "{:?}", followed.states);
    let predicate = has_one_record(lab, &id, job)?;
    let log = followed.logs.get(&(0, "stdout".to_owned())).cloned().unwrap_or_default();
    let all = expected(kind, number);
    ensure!(all.starts_with(&log), "the log is another one: {:?}", String::from_utf8_lossy(&log));
    if code == meant && matches!(kind, Kind::Quick | Kind::Slow | Kind::Fails) {
        equal("log", &log.len(), &all.len())?;
        let digest = predicate["steps"][0]["logs"][0]["digest"]["sha256"].clone();
        equal("digest of the log", &digest, &Value::from(sha256(&log)))?;
    }
    Ok(())
}
