//! A launcher as a service: jobs that belong to no connection, and an agent that is another user.

use crate::check::equal;
use crate::harness::Test;
use crate::lab::Lab;
use crate::listener::{AGENT, GROUP, Listener, OTHER, agent, as_user, control, dial, job_dir, report};
use crate::procs;
use anyhow::{Context, Result, ensure};
use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, bind, listen, recv, socket_with,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

pub(super) const TESTS: &[Test] = &[
    Test::both("job_outlives_its_connection_and_the_listener", outlives),
    Test::both("cancel_ends_a_job_of_no_connection", cancelled),
    Test::both("cancel_before_the_first_step_and_after_the_end", cancelled_early_and_late),
    Test::both("packets_that_are_no_cancel_are_counted", ignored),
    Test::root("agent_reads_its_jobs_and_writes_nothing", reads),
    Test::root("nobody_else_connects", strangers),
    Test::both("state_directory_has_one_listener", one_listener),
    Test::both("listener_that_is_told_to_stop_lets_sessions_end", stops),
    Test::both("live_job_is_not_forgotten", not_forgotten),
    Test::both("fenced_job_is_refused_by_a_session_that_had_the_request", fenced),
    Test::both("job_that_is_admitted_is_not_fenced_and_goes_on", fenced_too_late),
    Test::both("desk_lists_fences_and_forgets_while_all_sessions_are_taken", desk),
    Test::both("unit_passes_its_socket_on_and_is_told_how_it_goes", unit),
];

const SOON: Duration = Duration::from_secs(20);

fn code(report: &Value) -> &str {
    report["failure"]["code"].as_str().unwrap_or("none")
}

/// Waits until a step's program runs.
fn until_runs(args: &str) -> Result<()> {
    let runs = || procs::with_args(args).iter().any(|process| process.is_program(args));
    procs::eventually(SOON, args, runs)
}

fn outlives(lab: &Lab) -> Result<()> {
    let listener = Listener::start(lab, &[])?;
    let client = listener.client()?;
    let id =
        client.run(&["sleep 2; echo done > /build/out"], &json!([{"name": "out", "path": "/build/out"}]))?;
    drop(client);
    listener.kill()?;
    let report_file = job_dir(lab, &id).join("report.json");
    ensure!(!report_file.exists(), "this machine is too slow: the job ended before the listener");
    procs::eventually(SOON, "the report is written", || report_file.exists())?;
    equal("outcome", &report(lab, &id)?["outcome"], &Value::from("succeeded"))?;
    let next = Listener::start(lab, &[])?;
    let client = next.client()?;
    equal("jobs", &client.jobs()?, &vec![json!({"id": id, "alive": false, "reported": true})])?;
    client.forget(&id)?;
    client.forget(&id).context("a second time")?;
    equal("jobs", &client.jobs()?, &Vec::new())?;
    drop(client);
    next.stop()
}

fn cancelled(lab: &Lab) -> Result<()> {
    let marker = lab.marker();
    let listener = Listener::start(lab, &[])?;
    let client = listener.client()?;
    let id = client.run(&[&format!("exec sleep {marker}")], &json!([]))?;
    until_runs(&format!("sleep {marker}"))?;
    let alive = vec![json!({"id": id, "alive": true, "reported": false})];
    equal("jobs", &client.jobs()?, &alive)?;
    equal("jobs of another connection", &listener.client()?.jobs()?, &alive)?;
    control(lab, &id, b"c")?;
    client.finished(&id)?;
    equal("code", code(&report(lab, &id)?), "job.cancelled")?;
    // Who is told that it has ended may forget it, by another connection too.
    listener.client()?.forget(&id)?;
    drop(client);
    listener.stop()
}

fn cancelled_early_and_late(lab: &Lab) -> Result<()> {
    let listener = Listener::start(lab, &[])?;
    let client = listener.client()?;
    for _ in 0..5 {
        let id = client.run(&["sleep 600"], &json!([]))?;
        control(lab, &id, b"c")?;
        client.finished(&id)?;
        equal("code", code(&report(lab, &id)?), "job.cancelled")?;
        let late = control(lab, &id, b"c").err();
        let errno = late.as_ref().and_then(|error| error.downcast_ref());
        equal("errno", &errno, &Some(&Errno::CONNREFUSED))?;
        equal("code", code(&report(lab, &id)?), "job.cancelled")?;
        client.forget(&id)?;
    }
    drop(client);
    listener.stop()
}

fn ignored(lab: &Lab) -> Result<()> {
    let marker = lab.marker();
    let listener = Listener::start(lab, &[])?;
    let client = listener.client()?;
    let id = client.run(&[&format!("sleep {marker} & wait $!")], &json!([]))?;
    until_runs(&format!("sleep {marker}"))?;
    let (uid, gid) = agent(lab);
    let socket = job_dir(lab, &id).join("control.sock");
    let held = as_user(uid, gid, || (0..12).map(|_| dial(&socket)).collect::<Result<Vec<_>>>())?;
    for packet in [&b"x"[..], b"cc", b"{}", &[b'c'; 4000]] {
        control(lab, &id, packet)?;
    }
    std::thread::sleep(Duration::from_millis(300));
    equal("jobs", &client.jobs()?, &vec![json!({"id": id, "alive": true, "reported": false})])?;
    control(lab, &id, b"c")?;
    client.finished(&id)?;
    drop(held);
    equal("code", code(&report(lab, &id)?), "job.cancelled")?;
    let events = fs::read(job_dir(lab, &id).join("events"))?;
    let events = String::from_utf8_lossy(&events).into_owned();
    ensure!(
        events.contains("{\"event\":\"control_ignored\"") && events.contains("\"packets\":4"),
        "{events}"
    );
    client.forget(&id)?;
    drop(client);
    listener.stop()
}

/// What a user may do with a path, by errno.
fn tries(uid: u32, gid: u32, path: &Path) -> Result<[Option<Errno>; 4]> {
    let errno = |done: std::io::Result<()>| done.err().and_then(|e| Errno::from_io_error(&e));
    let meta = fs::symlink_metadata(path)?;
    as_user(uid, gid, || {
        let read = if meta.is_dir() { fs::read_dir(path).map(drop) } else { File::open(path).map(drop) };
        let write = match meta.is_dir() {
            true => File::create_new(path.join("made")).map(drop),
            false => File::options().append(true).open(path).map(drop),
        };
        let renamed = fs::rename(path, path.with_extension("moved"));
        let opened = fs::set_permissions(path, fs::Permissions::from_mode(0o777));
        Ok([read, write, renamed, opened].map(errno))
    })
}

fn reads(lab: &Lab) -> Result<()> {
    let listener = Listener::start(lab, &[])?;
    let client = listener.client()?;
    let script = "echo said; echo '#!/bin/sh' > /build/out; chmod 755 /build/out; mkdir /build/dir; echo x > /build/dir/x";
    let outputs = json!([{"name": "out", "path": "/build/out"}, {"name": "dir", "path": "/build/dir"}]);
    let id = client.run(&[script], &outputs)?;
    client.finished(&id)?;
    let (state, dir) = (lab.state(), job_dir(lab, &id));
    let (no, perm) = (Some(Errno::ACCESS), Some(Errno::PERM));
    for name in ["events", "spec.json", "report.json"] {
        let expected = [None, no, no, perm];
        equal(name, &tries(AGENT, GROUP, &dir.join(name))?, &expected)?;
        equal(name, &tries(OTHER, OTHER, &dir.join(name))?, &[no, no, no, no])?;
    }
    for closed in [dir.clone(), state.join("jobs"), state.clone()] {
        equal("directory on the way", &tries(AGENT, GROUP, &closed)?, &[no, no, no, perm])?;
        // Else it could hold the lock by which a job is known to live.
        let locked = as_user(AGENT, GROUP, || {
            let dir = File::open(&closed)?;
            Ok(flock(dir, FlockOperation::NonBlockingLockExclusive)?)
        });
        ensure!(locked.is_err(), "the agent can lock {}", closed.display());
    }
    for closed in ["store", "scratch", "kept"] {
        equal(closed, &tries(AGENT, GROUP, &state.join(closed))?, &[no, no, no, perm])?;
        let below = as_user(AGENT, GROUP, || Ok(fs::metadata(state.join(closed).join(".")).is_ok()))?;
        ensure!(!below, "the agent can enter {closed}");
    }
    client.forget(&id)?;
    drop(client);
    listener.stop()
}

fn strangers(lab: &Lab) -> Result<()> {
    let marker = lab.marker();
    let listener = Listener::start(lab, &[])?;
    let socket = listener.socket.clone();
    let client = listener.client()?;
    let id = client.run(&[&format!("exec sleep {marker}")], &json!([]))?;
    until_runs(&format!("sleep {marker}"))?;
    let control_socket = job_dir(lab, &id).join("control.sock");
    let errno = |done: Result<()>| done.err().and_then(|e| e.downcast_ref::<Errno>().copied());
    // The agent's group alone does not open the listener; it does a job's socket, and there the uid counts.
    for (uid, gid) in [(OTHER, OTHER), (OTHER, GROUP)] {
        let tried = as_user(uid, gid, || dial(&socket).map(drop));
        equal("errno", &errno(tried), &Some(Errno::ACCESS))?;
    }
    let tried = as_user(OTHER, OTHER, || dial(&control_socket).map(drop));
    equal("errno", &errno(tried), &Some(Errno::ACCESS))?;
    let tried = as_user(OTHER, GROUP, || {
        let socket = dial(&control_socket)?;
        Ok(rustix::net::send(socket, b"c", rustix::net::SendFlags::NOSIGNAL).map(drop)?)
    });
    ensure!(matches!(errno(tried), None | Some(Errno::PIPE)), "a stranger of the agent's group");
    // Were the mode wrong: the kernel's word about the peer holds.
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666))?;
    let said = as_user(OTHER, OTHER, || {
        let socket = dial(&socket)?;
        let mut byte = [0];
        Ok(rustix::net::recv(&socket, &mut byte, rustix::net::RecvFlags::empty())
            .map_or(0, |(_, count)| count))
    })?;
    equal("bytes that a stranger is told", &said, &0)?;
    std::thread::sleep(Duration::from_millis(300));
    equal("jobs", &client.jobs()?, &vec![json!({"id": id, "alive": true, "reported": false})])?;
    control(lab, &id, b"c")?;
    client.finished(&id)?;
    client.forget(&id)?;
    drop(client);
    listener.stop()
}

fn one_listener(lab: &Lab) -> Result<()> {
    let listener = Listener::start(lab, &[])?;
    let mut second = Command::new(lab.program("ampoule-runner"));
    second.arg("listen").arg("--state").arg(lab.state()).args(["--socket"]).arg(lab.path("run/other"));
    second.args(["--agent", &agent(lab).0.to_string(), "--group", &agent(lab).1.to_string()]);
    let second = second.output()?;
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    ensure!(second.status.code() == Some(70) && said.contains("another listener"), "{said}");
    listener.client()?;
    listener.stop()
}

fn stops(lab: &Lab) -> Result<()> {
    let mut listener = Listener::start(lab, &[])?;
    let client = listener.client()?;
    let socket = listener.socket.clone();
    procs::signal(listener.pid(), Signal::TERM)?;
    procs::eventually(SOON, "nobody is let in any more", || dial(&socket).is_err())?;
    // Who is there is served to the end.
    let id = client.run(&["true"], &json!([]))?;
    client.finished(&id)?;
    client.forget(&id)?;
    ensure!(listener.is_running(), "the listener has left its session");
    drop(client);
    procs::eventually(SOON, "the listener ends", || !listener.is_running())
}

fn not_forgotten(lab: &Lab) -> Result<()> {
    let marker = lab.marker();
    let listener = Listener::start(lab, &[])?;
    let client = listener.client()?;
    let id = client.run(&[&format!("exec sleep {marker}")], &json!([]))?;
    until_runs(&format!("sleep {marker}"))?;
    let said = client.ask(&json!({"ask": "forget", "job": id}))?;
    equal("answer", &said["code"], &Value::from("job.invalid"))?;
    ensure!(job_dir(lab, &id).join("events").exists(), "it is forgotten all the same");
    control(lab, &id, b"c")?;
    client.finished(&id)?;
    client.forget(&id)?;
    drop(client);
    listener.stop()
}

/// What a service manager is told next, within a time.
fn told(notify: &UnixDatagram) -> Result<String> {
    let mut bytes = [0; 256];
    let count = rustix::io::retry_on_intr(|| rustix::net::recv(notify, &mut bytes, RecvFlags::empty()))?.1;
    Ok(String::from_utf8_lossy(bytes.get(..count).unwrap_or_default()).into_owned())
}

fn unit(lab: &Lab) -> Result<()> {
    fs::create_dir_all(lab.path("run"))?;
    let path = lab.path("run/unit");
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &SocketAddrUnix::new(&path)?)?;
    listen(&socket, 8)?;
    let notify = UnixDatagram::bind(lab.path("run/notify"))?;
    notify.set_read_timeout(Some(procs::patience(SOON)))?;
    // As systemd does it: the socket is descriptor 3, and the variables name the process that it is for.
    let script = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=x exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(lab.program("ampoule-runner")).arg("listen");
    let (uid, gid) = agent(lab);
    command.arg("--state").arg(lab.state()).args(["--agent", &uid.to_string(), "--group", &gid.to_string()]);
    command.env("NOTIFY_SOCKET", lab.path("run/notify")).env("WATCHDOG_USEC", "400000");
    let mut child = command.stdin(Stdio::from(socket)).stdout(Stdio::null()).spawn()?;
    let done = (|| {
        equal("first", &told(&notify)?, &"READY=1".to_owned())?;
        for _ in 0..3 {
            equal("while nothing happens", &told(&notify)?, &"WATCHDOG=1".to_owned())?;
        }
        let connection = dial(&path)?;
        let mut bytes = [0; 1024];
        let greeting = retry_on_intr(|| recv(&connection, &mut bytes, RecvFlags::empty()))?.1;
        ensure!(greeting > 0, "nobody is there");
        procs::signal(child.id().cast_signed(), Signal::TERM)?;
        while told(&notify)? == "WATCHDOG=1" {}
        // The session is waited for, and the manager hears that this is no hang.
        equal("while it stops", &told(&notify)?, &"WATCHDOG=1".to_owned())?;
        drop(connection);
        procs::eventually(SOON, "it ends", || matches!(child.try_wait(), Ok(Some(_))))?;
        ensure!(path.exists(), "the manager's socket is removed");
        Ok(())
    })();
    let _ = child.kill();
    let status = child.wait()?;
    done.with_context(|| format!("it ended with {status}"))
}

/// The session of the newest connection, which is the listener's only new child.
fn sessions(listener: &Listener<'_>) -> Vec<i32> {
    let is_ours = |p: &procs::Process| p.parent == listener.pid() && p.is_runner();
    procs::all().iter().filter(|p| is_ours(p)).map(|p| p.pid).collect()
}

fn fenced(lab: &Lab) -> Result<()> {
    let listener = Listener::start(lab, &[])?;
    let asks = listener.client()?;
    // Nothing else is there yet, and what sees to the dead is gone soon.
    let mut own = Vec::new();
    procs::eventually(SOON, "the session is the only one", || {
        own = sessions(&listener);
        own.len() == 1
    })?;
    let session = *own.first().context("no session")?;
    procs::signal(session, Signal::STOP)?;
    let marker = lab.marker();
    let id = asks.send_job(&[&format!("exec sleep {marker}")], &json!([]))?;
    let other = listener.client()?;
    let fence = json!({"ask": "fence", "job": id});
    for _ in 0..2 {
        equal("answer", &other.ask(&fence)?, &json!({"say": "fenced", "never": true}))?;
    }
    equal("jobs", &other.jobs()?, &Vec::new())?;
    other.forget(&id).context("of what has no directory nothing is to be removed")?;
    // Whoever lists jobs, recovers or starts again leaves it.
    drop(other);
    listener.kill()?;
    let listener = Listener::start(lab, &[])?;
    procs::signal(session, Signal::CONT)?;
    let said = asks.hear()?.context("the session is gone")?;
    equal("answer", &said["say"], &Value::from("refused")).with_context(|| said.to_string())?;
    equal("code", &said["code"], &Value::from("job.invalid"))?;
    drop(asks);
    let client = listener.client()?;
    equal("jobs", &client.jobs()?, &Vec::new())?;
    ensure!(procs::with_args(&format!("sleep {marker}")).is_empty(), "it runs");
    drop(client);
    listener.stop()?;
    let name = lab.state().join("jobs").join(&id);
    ensure!(name.is_file(), "the fence is gone");
    fs::remove_file(name)?;
    Ok(())
}

fn fenced_too_late(lab: &Lab) -> Result<()> {
    let listener = Listener::start(lab, &[])?;
    let client = listener.client()?;
    let id =
        client.run(&["sleep 1; echo x > /build/out"], &json!([{"name": "out", "path": "/build/out"}]))?;
    let fence = json!({"ask": "fence", "job": id});
    let too_late = json!({"say": "fenced", "never": false});
    equal("while it runs", &listener.client()?.ask(&fence)?, &too_late)?;
    client.finished(&id)?;
    equal("after its end", &client.ask(&fence)?, &too_late)?;
    equal("outcome", &report(lab, &id)?["outcome"], &Value::from("succeeded"))?;
    client.forget(&id)?;
    drop(client);
    listener.stop()
}

fn desk(lab: &Lab) -> Result<()> {
    let listener = Listener::start(lab, &[])?;
    let first = listener.client()?;
    let id = first.run(&["true"], &json!([]))?;
    first.finished(&id)?;
    // As many as there may be do anything, and nothing.
    procs::eventually(SOON, "no other session is left", || sessions(&listener).len() == 1)?;
    let mut held = vec![first];
    while held.len() < 12 {
        held.push(listener.client()?);
    }
    // Who came for something else is told so and leaves, however long he would stay: there are four such places.
    let mut elsewhere = Vec::new();
    for _ in 0..8 {
        let client = listener.client()?;
        let doctor = client.ask(&json!({"ask": "doctor", "profile": lab.profile()}))?;
        equal("code", &doctor["code"], &Value::from("admission.busy")).with_context(|| doctor.to_string())?;
        procs::eventually(SOON, "the session has ended", || sessions(&listener).len() == 12)?;
        elsewhere.push(client);
    }
    let desk = listener.client()?;
    let reported = vec![json!({"id": id, "alive": false, "reported": true})];
    equal("jobs", &desk.jobs()?, &reported)?;
    desk.forget(&id)?;
    let other = "01890a5d-ac96-774b-bcce-ffffffffffff";
    let fenced = desk.ask(&json!({"ask": "fence", "job": other}))?;
    equal("fenced", &fenced["never"], &Value::from(true))?;
    // Whoever only holds a place at the desk has to leave it, and so there is one again.
    let idle = (0..3).map(|_| listener.client()).collect::<Result<Vec<_>>>()?;
    let full = listener.client().map(drop);
    ensure!(full.is_err(), "there is no end of places");
    procs::eventually(SOON, "there is a place again", || {
        listener.client().is_ok_and(|client| client.jobs().is_ok_and(|jobs| jobs.is_empty()))
    })?;
    drop((idle, desk, held));
    procs::eventually(SOON, "the sessions end", || sessions(&listener).is_empty())?;
    let again = listener.client()?;
    let doctor = again.ask(&json!({"ask": "doctor", "profile": lab.profile()}))?;
    equal("answer", &doctor["say"], &Value::from("measured"))?;
    drop(again);
    listener.stop()?;
    fs::remove_file(lab.state().join("jobs").join(other))?;
    Ok(())
}
