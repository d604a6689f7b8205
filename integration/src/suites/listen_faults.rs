//! `kill -9` of whatever listens, serves and runs: every job that was admitted ends in one report, and none in two.

use crate::check::equal;
use crate::faulty::Faulty;
use crate::harness::Test;
use crate::lab::Lab;
use crate::listener::{Client, Listener, dial, job_dir, report};
use crate::procs;
use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

pub(super) const TESTS: &[Test] = &[
    Test::both("listener_and_sessions_killed_at_random_change_no_job", harmless),
    Test::both("everything_killed_at_random_ends_in_one_report_each", anything),
    Test::both("dead_supervisor_is_recovered_before_the_jobs_are_listed", recovered_when_asked),
    Test::both("dead_supervisor_of_a_busy_session_is_recovered_unasked", recovered_unasked),
    Test::root("session_killed_at_any_point_loses_no_job", |lab| every_point(lab, "launcher", 12)),
    Test::root("supervisor_of_a_session_killed_at_any_point_is_reported", |lab| {
        every_point(lab, "supervisor", 40)
    }),
    Test::root("scavenger_killed_at_any_point_is_followed_by_another", scavenger),
    Test::root("listener_without_descriptors_goes_on_when_it_has_some", exhausted),
    Test::root("sessions_keep_one_pool_between_them", one_pool),
];

const SOON: Duration = Duration::from_secs(30);
/// The same as in the listener's: how often it looks for the dead by itself, and some.
const UNASKED: Duration = Duration::from_secs(25);

/// Numbers that look like chance, the same for the same seed.
struct Dice(u64);

impl Dice {
    fn of(lab: &Lab) -> Self {
        Self(lab.token().bytes().fold(1, |n, byte| n.wrapping_mul(131).wrapping_add(byte.into())))
    }

    fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or(0) % most.max(1)
    }

    fn pause(&mut self, most_ms: usize) {
        std::thread::sleep(Duration::from_millis(self.below(most_ms) as u64));
    }
}

fn children(parent: i32) -> BTreeSet<i32> {
    procs::all().iter().filter(|p| p.parent == parent && p.is_runner()).map(|p| p.pid).collect()
}

/// A connection, and the process that serves it: nothing of a job's is there yet that could be taken for it.
fn client_and_session<'l>(listener: &Listener<'l>) -> Result<(Client<'l>, i32)> {
    let before = children(listener.pid());
    let client = listener.client()?;
    let mut session = None;
    procs::eventually(SOON, "the session is the listener's only new child", || {
        let mut new = children(listener.pid());
        new.retain(|pid| !before.contains(pid));
        session = new.first().copied().filter(|_| new.len() == 1);
        session.is_some()
    })?;
    // What sees to the dead does not live long.
    std::thread::sleep(Duration::from_millis(60));
    let session = session.filter(|pid| children(listener.pid()).contains(pid)).context("no session")?;
    Ok((client, session))
}

/// Asks for a job. Its id, and whether it was admitted as far as anybody was told.
fn ask_for_job(client: &Client, script: &str) -> Result<Option<(String, bool)>> {
    let outputs = json!([{"name": "out", "path": "/build/out"}]);
    let Ok(id) = client.send_job(&[script], &outputs) else { return Ok(None) };
    // A session that is dead says nothing.
    let admitted = loop {
        match client.hear().ok().flatten() {
            Some(said) if said["say"] == "finished" => {}
            Some(said) if said["say"] == "admitted" => break true,
            Some(said) => bail!("instead of an admission: {said}"),
            None => break false,
        }
    };
    Ok(Some((id, admitted)))
}

/// Waits until each of these jobs is reported, once, and forgets it. How each ended; none: it was never admitted.
fn settled(lab: &Lab, jobs: &[(String, bool)]) -> Result<Vec<Option<String>>> {
    let listener = Listener::start(lab, &[])?;
    let client = listener.client()?;
    let mut listed = Vec::new();
    procs::eventually(SOON, "every job is reported", || {
        listed = client.jobs().unwrap_or_default();
        listed.iter().all(|job| job["alive"] == false && job["reported"] == true)
    })
    .with_context(|| format!("{listed:?}"))?;
    let mut outcomes = Vec::new();
    for (id, admitted) in jobs {
        let is_listed = listed.iter().any(|job| job["id"] == id.as_str());
        ensure!(is_listed || !admitted, "job {id} was admitted, and is lost: {listed:?}");
        if !is_listed {
            outcomes.push(None);
            continue;
        }
        let report = report(lab, id)?;
        let events = fs::read(job_dir(lab, id).join("events"))?;
        let needle = b"\"runner_version\"";
        let reports = events.windows(needle.len()).filter(|part| part == needle).count();
        equal("reports in the journal", &reports, &1).with_context(|| id.clone())?;
        let outcome = report["outcome"].as_str().context("no outcome")?.to_owned();
        ensure!(outcome != "quarantined", "something is left of {id}: {}", report["teardown"]);
        outcomes.push(Some(outcome));
        client.forget(id)?;
    }
    equal("jobs that nobody asked for", &client.jobs()?, &Vec::new())?;
    drop(client);
    listener.stop()?;
    Ok(outcomes)
}

fn harmless(lab: &Lab) -> Result<()> {
    let mut dice = Dice::of(lab);
    let mut jobs = Vec::new();
    let mut listener = Listener::start(lab, &["--pool", "1"])?;
    for _ in 0..6 {
        let (one, first) = client_and_session(&listener)?;
        let (two, second) = client_and_session(&listener)?;
        for client in [&one, &two, &one, &two] {
            let script = format!("sleep 0.{}; echo x > /build/out", dice.below(10));
            jobs.extend(ask_for_job(client, &script)?);
        }
        dice.pause(300);
        let victims = [first, second, listener.pid()];
        for _ in 0..=dice.below(2) {
            let victim = victims.get(dice.below(3)).copied().context("no victim")?;
            // It may be dead already.
            let _ = procs::signal(victim, Signal::KILL);
            dice.pause(50);
        }
        if !listener.is_running() {
            drop(listener);
            listener = Listener::start(lab, &["--pool", "1"])?;
        }
    }
    listener.kill()?;
    let outcomes = settled(lab, &jobs)?;
    for ((id, admitted), outcome) in jobs.iter().zip(&outcomes) {
        let is_whole = outcome.as_deref() == Some("succeeded") || !admitted;
        ensure!(is_whole, "job {id} is {outcome:?}, and nothing of it was killed");
    }
    ensure!(outcomes.iter().flatten().count() >= 12, "too few jobs were admitted: {outcomes:?}");
    Ok(())
}

fn anything(lab: &Lab) -> Result<()> {
    let mut dice = Dice::of(lab);
    let (mut jobs, mut killed) = (Vec::new(), 0);
    let state = lab.state().display().to_string();
    let mut listener = Listener::start(lab, &["--pool", "1"])?;
    for _ in 0..16 {
        if !listener.is_running() {
            drop(listener);
            listener = Listener::start(lab, &["--pool", "1"])?;
        }
        // A listener that dies now, or a session, is no answer.
        let Ok(client) = listener.client() else { continue };
        for _ in 0..2 {
            let script = format!("sleep 0.{}; echo x > /build/out", dice.below(6));
            jobs.extend(ask_for_job(&client, &script)?);
        }
        dice.pause(200);
        let runners: Vec<_> =
            procs::with_args(&state).into_iter().filter(procs::Process::is_runner).map(|p| p.pid).collect();
        for _ in 0..=dice.below(2) {
            let Some(victim) = runners.get(dice.below(runners.len())) else { break };
            killed += u32::from(procs::signal(*victim, Signal::KILL).is_ok());
            dice.pause(40);
        }
    }
    drop(listener);
    let outcomes = settled(lab, &jobs)?;
    let known = ["succeeded", "failed", "aborted"];
    let strange: Vec<_> = outcomes.iter().flatten().filter(|o| !known.contains(&o.as_str())).collect();
    ensure!(strange.is_empty(), "outcomes: {strange:?}");
    let aborted = outcomes.iter().flatten().filter(|outcome| *outcome == "aborted").count();
    ensure!(
        killed >= 10 && aborted >= 1,
        "{killed} were killed and {aborted} jobs aborted: that tries little"
    );
    Ok(())
}

/// A job whose step sleeps, its supervisor, and that of whom its session is.
struct Sleeping<'l> {
    id: String,
    client: Client<'l>,
    session: i32,
    supervisor: i32,
}

fn sleeping<'l>(lab: &Lab, listener: &Listener<'l>) -> Result<Sleeping<'l>> {
    let (client, session) = client_and_session(listener)?;
    let marker = lab.marker();
    let id = client.run(&[&format!("exec sleep {marker}")], &json!([]))?;
    let args = format!("sleep {marker}");
    let runs = || procs::with_args(&args).iter().any(|process| process.is_program(&args));
    procs::eventually(SOON, &args, runs)?;
    let supervisor = *children(session).first().context("no supervisor")?;
    Ok(Sleeping { id, client, session, supervisor })
}

fn recovered_when_asked(lab: &Lab) -> Result<()> {
    let listener = Listener::start(lab, &[])?;
    let Sleeping { id, client, session, supervisor } = sleeping(lab, &listener)?;
    // It does not notice anything.
    procs::signal(session, Signal::STOP)?;
    let others = [listener.client()?, listener.client()?, listener.client()?];
    procs::signal(supervisor, Signal::KILL)?;
    for other in &others {
        other.say(&json!({"ask": "jobs", "after": null}), &[])?;
    }
    for other in &others {
        let said = other.hear()?.context("the session is gone")?;
        let job = &said["jobs"][0];
        // Whoever asks while another recovers it sees that somebody sees to it.
        ensure!(job["alive"] == true || job["reported"] == true, "{said}");
    }
    let over = vec![json!({"id": id, "alive": false, "reported": true})];
    procs::eventually(SOON, "it is recovered", || others[0].jobs().is_ok_and(|jobs| jobs == over))?;
    procs::signal(session, Signal::CONT)?;
    client.finished(&id)?;
    drop((client, others));
    listener.kill()?;
    equal("outcomes", &settled(lab, &[(id, true)])?, &vec![Some("aborted".to_owned())])
}

fn recovered_unasked(lab: &Lab) -> Result<()> {
    let listener = Listener::start(lab, &[])?;
    let Sleeping { id, client, session, supervisor } = sleeping(lab, &listener)?;
    procs::signal(session, Signal::STOP)?;
    // Nothing else has died meanwhile that the listener would look after.
    std::thread::sleep(Duration::from_secs(1));
    procs::signal(supervisor, Signal::KILL)?;
    let file = job_dir(lab, &id).join("report.json");
    procs::eventually(UNASKED, "it is recovered", || file.exists())?;
    procs::signal(session, Signal::KILL)?;
    drop(client);
    listener.kill()?;
    equal("outcomes", &settled(lab, &[(id, true)])?, &vec![Some("aborted".to_owned())])
}

/// Has a process of a listening launcher die at each of its points in turn.
fn every_point(lab: &Lab, role: &str, at_least: u32) -> Result<()> {
    let faulty = Faulty::install(lab)?;
    let (mut number, stride) = (1, procs::stride());
    loop {
        ensure!(number < 500, "there is no end of points");
        faulty.fault(role, number, "die")?;
        let listener = Listener::start_of(lab, &faulty.runner(), &[])?;
        let mut jobs = Vec::new();
        if let Ok(client) = listener.client() {
            jobs.extend(ask_for_job(&client, "echo x > /build/out")?);
        }
        let (fired, id) = (faulty.fired(), jobs.first().map(|(id, _)| job_dir(lab, id)));
        // Only what was begun is waited for.
        let _ = procs::eventually(Duration::from_secs(2), "it ends", || {
            faulty.fired() > 0 || id.as_ref().is_some_and(|dir| dir.join("report.json").exists())
        });
        listener.kill()?;
        let outcomes =
            settled(lab, &jobs).with_context(|| format!("{role} {number}, fired {fired}: {jobs:?}"))?;
        let end = outcomes.first().cloned().flatten();
        if faulty.fired() == 0 {
            equal("without a fault", &end.as_deref(), &Some("succeeded"))?;
            break;
        }
        ensure!(end.as_deref() != Some("failed"), "{role} {number}: a death is no fault of the job's");
        number += stride;
    }
    ensure!(number > at_least, "only {number} points: the faults are not where they were");
    Ok(())
}

fn scavenger(lab: &Lab) -> Result<()> {
    let faulty = Faulty::install(lab)?;
    let mut number = 1;
    loop {
        ensure!(number < 100, "there is no end of points");
        faulty.fault("scavenger", number, "die")?;
        let listener = Listener::start_of(lab, &faulty.runner(), &[])?;
        let Sleeping { id, client, session, supervisor } = sleeping(lab, &listener)?;
        procs::signal(session, Signal::KILL)?;
        procs::signal(supervisor, Signal::KILL)?;
        drop(client);
        let file = job_dir(lab, &id).join("report.json");
        let _ = procs::eventually(SOON, "it dies or recovers", || faulty.fired() > 0 || file.exists());
        listener.kill()?;
        let outcomes = settled(lab, &[(id, true)]).with_context(|| format!("scavenger {number}"))?;
        equal("outcomes", &outcomes, &vec![Some("aborted".to_owned())])?;
        if faulty.fired() == 0 {
            break;
        }
        number += procs::stride();
    }
    ensure!(number > 3, "only {number} points: the faults are not where they were");
    Ok(())
}

fn exhausted(lab: &Lab) -> Result<()> {
    let mut listener = Listener::start(lab, &[])?;
    listener.client()?;
    let pid = Pid::from_raw(listener.pid());
    let limit =
        |most: u64| prlimit(pid, Resource::Nofile, Rlimit { current: Some(most), maximum: Some(4096) });
    limit(4)?;
    let waiting = dial(&listener.socket)?;
    let spent = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", listener.pid())).unwrap_or_default();
        let fields: Vec<u64> =
            stat.rsplit(')').next().unwrap_or_default().split(' ').filter_map(|f| f.parse().ok()).collect();
        // utime and stime, in hundredths of a second; the state's letter is no number.
        fields.get(10).copied().unwrap_or(0) + fields.get(11).copied().unwrap_or(0)
    };
    let before = spent();
    std::thread::sleep(Duration::from_secs(2));
    let after = spent();
    ensure!(listener.is_running(), "it died: {}", listener.said());
    ensure!(after - before < 50, "it spins: {} hundredths of a second in two", after - before);
    limit(1024)?;
    let mut bytes = [0; 1024];
    let (_, count) = rustix::io::retry_on_intr(|| {
        rustix::net::recv(&waiting, &mut bytes, rustix::net::RecvFlags::empty())
    })?;
    let said: Value = serde_json::from_slice(bytes.get(..count).unwrap_or_default())?;
    equal("greeting of who has waited", &said["say"], &Value::from("hello"))?;
    drop(waiting);
    listener.stop()
}

fn one_pool(lab: &Lab) -> Result<()> {
    let listener = Listener::start(lab, &["--pool", "2"])?;
    let slots = || {
        let names = fs::read_dir(lab.state().join("jobs")).into_iter().flatten().flatten();
        names.filter(|entry| entry.file_name().to_string_lossy().starts_with(".slot-")).count()
    };
    let clients = [listener.client()?, listener.client()?, listener.client()?];
    std::thread::sleep(Duration::from_millis(500));
    equal("slots before a job", &slots(), &0)?;
    let run = |client: &Client| -> Result<()> {
        let id = client.run(&["true"], &json!([]))?;
        client.finished(&id)?;
        client.forget(&id)
    };
    for client in &clients {
        run(client)?;
    }
    procs::eventually(SOON, "the pool is full", || slots() == 2)?;
    std::thread::sleep(Duration::from_millis(500));
    equal("slots of three sessions", &slots(), &2)?;
    let [first, second, third] = clients;
    drop(first);
    procs::eventually(SOON, "the pool is gone with its session", || slots() == 0)?;
    run(&second)?;
    procs::eventually(SOON, "the next has taken over", || slots() == 2)?;
    drop((second, third));
    procs::eventually(SOON, "no slot is left", || slots() == 0)?;
    listener.stop()
}
