//! Secrets of steps: brought by the agent over a job's control socket, there for one step, masked in its log.

use crate::check::equal;
use crate::harness::Test;
use crate::lab::Lab;
use crate::listener::{AGENT, Client, GROUP, Listener, OTHER, as_user, control, dial, job_dir, report};
use crate::procs;
use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, sendmsg};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

pub(super) const TESTS: &[Test] = &[
    Test::root("value_is_in_its_step_and_nowhere_else", delivered),
    Test::root("log_shows_no_form_of_a_value", masked),
    Test::root("packets_that_are_not_what_the_step_waits_for_are_refused", refused),
    Test::root("step_that_gets_no_secrets_ends_its_job", without),
    Test::root("rotation_is_seen_masked_and_signalled", rotated),
    Test::root("output_with_a_secret_in_it_is_not_taken_out", in_output),
    Test::root("output_with_a_value_that_came_later_is_not_taken_out", later_in_output),
    Test::root("refusal_of_an_output_has_no_value_in_it", refused_output),
];

const SOON: Duration = Duration::from_secs(20);
const FILE: &str = "canary-of-the-file-Zq7x";
const FD: &str = "canary-of-the-descriptor-Rt5k";
const ENV: &str = "canary-of-the-variable-Wm3p";

fn sealed(value: &str, seals: SealFlags) -> Result<OwnedFd> {
    let memory = memfd_create("secret", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = fs::File::from(memory);
    file.write_all(value.as_bytes())?;
    fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

fn all_seals() -> SealFlags {
    SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE
}

/// Sends a packet with descriptors to a job as a user of the agent's group; what is answered, or nothing.
fn tell(lab: &Lab, id: &str, uid: u32, kind: u8, what: &Value, memory: &[OwnedFd]) -> Result<Value> {
    let path = job_dir(lab, id).join("control.sock");
    as_user(uid, GROUP, || {
        let socket = dial(&path)?;
        let packet = [&[kind][..], what.to_string().as_bytes()].concat();
        let memory: Vec<_> = memory.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(40))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !memory.is_empty() {
            ensure!(ancillary.push(SendAncillaryMessage::ScmRights(&memory)), "no room for descriptors");
        }
        sendmsg(&socket, &[IoSlice::new(&packet)], &mut ancillary, SendFlags::NOSIGNAL)?;
        let mut answer = [0; 4096];
        let count = recv(&socket, &mut answer, RecvFlags::empty()).map_or(0, |(_, count)| count);
        Ok(serde_json::from_slice(answer.get(..count).unwrap_or_default()).unwrap_or(Value::Null))
    })
}

fn give(lab: &Lab, id: &str, step: u32, values: &[(&str, &str)]) -> Result<Value> {
    let memory = values.iter().map(|(_, value)| sealed(value, all_seals())).collect::<Result<Vec<_>>>()?;
    let named: Vec<_> =
        values.iter().map(|(name, value)| json!({"name": name, "bytes": value.len()})).collect();
    tell(lab, id, AGENT, b's', &json!({"step": step, "values": named}), &memory)
}

fn took() -> Value {
    json!({"took": true})
}

fn is_refused(said: &Value, why: &str) -> Result<()> {
    let text = said["refused"].as_str().with_context(|| format!("not refused: {said}"))?;
    ensure!(text.contains(why), "refused for another reason than {why:?}: {text}");
    Ok(())
}

fn step(name: &str, script: &str, secrets: &[&str]) -> Value {
    json!({"name": name, "cwd": "/build", "timeout_ms": 60_000, "run": ["sh", "-euc", script], "secrets": secrets})
}

fn three() -> Value {
    json!([
        {"name": "a", "file": "/run/secrets/a", "on_rotate": "SIGHUP"},
        {"name": "b", "fd": "B_FD"},
        {"name": "c", "env": "C"},
    ])
}

/// Has a job run; once it is admitted, its id.
fn start(client: &Client<'_>, fields: Value) -> Result<String> {
    let id = client.send_spec(fields)?;
    let said = client.hear()?.context("the session is gone")?;
    equal("answer", &said, &json!({"say": "admitted", "job": id}))?;
    Ok(id)
}

fn until_ready(lab: &Lab, id: &str, step: u32) -> Result<()> {
    let events = job_dir(lab, id).join("events");
    let is_ready = || {
        let events = fs::read(&events).unwrap_or_default();
        let events = String::from_utf8_lossy(&events).into_owned();
        let mut ready = events.split("\"step_ready\"").skip(1);
        ready.any(|rest| rest.chars().take(80).collect::<String>().contains(&format!("\"step\":{step},")))
    };
    procs::eventually(SOON, "the step waits for its secrets", is_ready)
}

/// All bytes below a directory in which this text stands.
fn holders(dir: &Path, text: &str, found: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let meta = fs::symlink_metadata(&path)?;
        if meta.is_dir() {
            holders(&path, text, found)?;
        } else if meta.is_file() {
            let bytes = fs::read(&path)?;
            if bytes.windows(text.len()).any(|window| window == text.as_bytes()) {
                found.push(path.display().to_string());
            }
        }
    }
    Ok(())
}

/// What a job wrote, as it lies in its directory.
fn log(lab: &Lab, id: &str) -> Result<String> {
    Ok(String::from_utf8_lossy(&fs::read(job_dir(lab, id).join("events"))?).into_owned())
}

fn sha256(text: &str) -> String {
    hex::encode(Sha256::digest(text))
}

const NOTHING: &str =
    "test ! -e /run/secrets; test -z \"${C:-}${B_FD:-}\"; ! grep -q ramfs /proc/self/mountinfo";

fn delivered(lab: &Lab) -> Result<()> {
    let marker = lab.marker();
    let listener = Listener::start(lab, &[])?;
    let client = listener.client()?;
    let here = format!(
        "sha256sum < /run/secrets/a; sha256sum < /dev/fd/$B_FD; printf %s \"$C\" | sha256sum; stat -c '%a %u %g' /run/secrets/a
         ! touch /run/secrets/x 2>/dev/null; ! chmod 600 /run/secrets/a 2>/dev/null; ! rm -f /run/secrets/a 2>/dev/null
         ! sh -c 'echo x > /run/secrets/a' 2>/dev/null; ! sh -c \"echo x > /dev/fd/$B_FD\" 2>/dev/null
         grep ' /run/secrets ' /proc/self/mountinfo
         cp /run/secrets/a /build/held; rm /build/held; sleep {marker} & wait $! || true"
    );
    let steps = json!([
        step("before", NOTHING, &[]),
        step("has", &here, &["c", "a", "b"]),
        step("after", NOTHING, &[]),
        step("only-b", "test ! -e /run/secrets; test -z \"${C:-}\"; sha256sum < /dev/fd/$B_FD", &["b"]),
    ]);
    let outputs = json!([{"name": "taken", "path": "/run/secrets/a", "optional": true}]);
    let id = start(&client, json!({"secrets": three(), "steps": steps, "outputs": outputs}))?;
    until_ready(lab, &id, 1)?;
    equal("given", &give(lab, &id, 1, &[("c", ENV), ("a", FILE), ("b", FD)])?, &took())?;
    let runs = || procs::with_args(&format!("sleep {marker}")).iter().any(|process| process.comm == "sleep");
    procs::eventually(SOON, "the step runs", runs).with_context(|| log(lab, &id).unwrap_or_default())?;
    is_refused(&give(lab, &id, 1, &[("c", ENV), ("a", FILE), ("b", FD)])?, "no step waits")?;
    for process in procs::all() {
        for value in [FILE, FD, ENV] {
            ensure!(!process.args.contains(value), "a value is in the arguments of {process:?}");
        }
    }
    for process in
        procs::with_args(&format!("sleep {marker}")).iter().filter(|process| process.comm == "sleep")
    {
        procs::signal(process.pid, rustix::process::Signal::TERM)?;
    }
    until_ready(lab, &id, 3).with_context(|| log(lab, &id).unwrap_or_default())?;
    equal("given", &give(lab, &id, 3, &[("b", FD)])?, &took())?;
    client.finished(&id)?;
    let report = report(lab, &id)?;
    equal("outcome", &report["outcome"], &Value::from("succeeded")).with_context(|| report.to_string())?;
    equal("outputs", &report["outputs"], &json!([]))?;
    let said = log(lab, &id)?;
    for value in [FILE, FD, ENV] {
        ensure!(said.contains(&sha256(value)), "a value did not arrive: {said}");
    }
    ensure!(said.contains("400 1000 1000"), "{said}");
    ensure!(said.contains(" ro,nosuid,nodev,noexec") && said.contains("ramfs"), "{said}");
    for value in [FILE, FD, ENV] {
        let mut found = Vec::new();
        holders(&lab.state(), value, &mut found)?;
        equal("files of the state directory with a value", &found, &Vec::new())?;
    }
    client.forget(&id)?;
    drop(client);
    listener.stop()
}

fn masked(lab: &Lab) -> Result<()> {
    let listener = Listener::start(lab, &[])?;
    let client = listener.client()?;
    let script = "
        echo \"plain $C\"; echo \"file $(cat /run/secrets/a)\" >&2; printf '%s' \"$C\" | base64
        printf 'user:%s' \"$C\" | base64; printf '%s' \"$C\" | base64 | base64; printf '%s' \"$C\" | od -An -tx1 | tr -d ' \\n'; echo
        printf '%s' \"$C\" | rev; echo; for n in 1 2 3 4 5 6 7 8 9; do printf %s \"$C\" | cut -c $n | tr -d '\\n'; sleep 0.02; done
        printf %s \"$C\" | cut -c 10-; echo the end";
    let steps = json!([step("tells", script, &["a", "c"])]);
    let id = start(&client, json!({"secrets": three(), "steps": steps}))?;
    until_ready(lab, &id, 0)?;
    equal("given", &give(lab, &id, 0, &[("a", FILE), ("c", ENV)])?, &took())?;
    client.finished(&id)?;
    let (said, report) = (log(lab, &id)?, report(lab, &id)?);
    equal("outcome", &report["outcome"], &Value::from("succeeded")).with_context(|| report.to_string())?;
    let base64 = STANDARD.encode(ENV);
    let twice = STANDARD.encode(format!("{base64}\n"));
    let backwards: String = ENV.chars().rev().collect();
    for form in [ENV, FILE, &base64[..24], &twice[..40], &hex::encode(ENV), &backwards] {
        ensure!(!said.contains(form), "{form} is in the log: {said}");
    }
    ensure!(said.contains("plain ***") && said.contains("file ***") && said.contains("the end"), "{said}");
    let masked = |at: usize| report["steps"][0]["logs"][at]["masked"].as_u64();
    equal("masked", &(masked(0), masked(1)), &(Some(7), Some(1)))?;
    client.forget(&id)?;
    drop(client);
    listener.stop()
}

fn refused(lab: &Lab) -> Result<()> {
    let listener = Listener::start(lab, &[])?;
    let client = listener.client()?;
    let steps = json!([step("has", "sha256sum < /run/secrets/a", &["a"])]);
    let id = start(&client, json!({"secrets": three(), "steps": steps}))?;
    until_ready(lab, &id, 0)?;
    let given = |bytes: usize| json!({"step": 0, "values": [{"name": "a", "bytes": bytes}]});
    let long = FILE.len();
    let good = || sealed(FILE, all_seals()).map(|memory| vec![memory]);
    for missing in [SealFlags::SEAL, SealFlags::SHRINK, SealFlags::GROW, SealFlags::WRITE] {
        let memory = [sealed(FILE, all_seals() - missing)?];
        is_refused(&tell(lab, &id, AGENT, b's', &given(long), &memory)?, "the seals")?;
    }
    let file: OwnedFd = fs::File::open(lab.write("plain", FILE)?)?.into();
    is_refused(&tell(lab, &id, AGENT, b's', &given(long), &[file])?, "no memory file")?;
    is_refused(&tell(lab, &id, AGENT, b's', &given(long - 1), &good()?)?, "another length")?;
    is_refused(&tell(lab, &id, AGENT, b's', &given(long), &[])?, "a descriptor for each")?;
    let two = [sealed(FILE, all_seals())?, sealed(FILE, all_seals())?];
    is_refused(&tell(lab, &id, AGENT, b's', &given(long), &two)?, "a descriptor for each")?;
    is_refused(&give(lab, &id, 1, &[("a", FILE)])?, "step 0 waits")?;
    is_refused(&give(lab, &id, 0, &[("c", ENV)])?, "came at the place of")?;
    is_refused(&give(lab, &id, 0, &[("a", "1234567")])?, "cannot be masked")?;
    let blank = "1234567\n".to_owned() + &" \r\n\t".repeat(50);
    for short in ["1234567\n", "        ", blank.as_str()] {
        is_refused(&give(lab, &id, 0, &[("a", short)])?, "before the blanks at its end")?;
    }
    is_refused(&give(lab, &id, 0, &[("a", &"x".repeat((64 << 10) + 1))])?, "65536")?;
    is_refused(&tell(lab, &id, AGENT, b's', &json!({"step": 0, "path": "x"}), &[])?, "cannot be read")?;
    is_refused(&tell(lab, &id, AGENT, b's', &json!("x".repeat(9000)), &[])?, "8192")?;
    let odd = json!({"step": 0, "failed": {"code": "internal", "message": "no"}});
    is_refused(&tell(lab, &id, AGENT, b's', &odd, &[])?, "secret.denied")?;
    let rotate = json!({"step": 0, "name": "a", "bytes": long});
    is_refused(&tell(lab, &id, AGENT, b'r', &rotate, &good()?)?, "no step runs")?;
    // Somebody else of the agent's group is not even answered.
    equal(
        "a stranger",
        &tell(lab, &id, OTHER, b's', &given(long), &good()?).unwrap_or(Value::Null),
        &Value::Null,
    )?;
    // None of it has changed anything.
    equal("given", &give(lab, &id, 0, &[("a", FILE)])?, &took())?;
    client.finished(&id)?;
    equal("outcome", &report(lab, &id)?["outcome"], &Value::from("succeeded"))?;
    ensure!(log(lab, &id)?.contains(&sha256(FILE)), "it did not arrive");
    client.forget(&id)?;
    drop(client);
    listener.stop()
}

fn without(lab: &Lab) -> Result<()> {
    let listener = Listener::start(lab, &[])?;
    let client = listener.client()?;
    let steps = json!([step("has", "touch /build/ran", &["a"]), step("then", "true", &[])]);
    for (code, outcome) in [
        ("secret.denied", "failed"),
        ("secret.unavailable", "aborted"),
        ("job.cancelled", "cancelled"),
        ("limit.timeout", "timed_out"),
    ] {
        let limit = if code == "limit.timeout" { 1500 } else { 600_000 };
        let fields = json!({"secrets": three(), "steps": steps, "limits": {"timeout_ms": limit}});
        let id = start(&client, fields)?;
        until_ready(lab, &id, 0)?;
        match code {
            "job.cancelled" => control(lab, &id, b"c")?,
            "limit.timeout" => {}
            code => {
                let failed = json!({"step": 0, "failed": {"code": code, "message": "nobody has it"}});
                equal("failed", &tell(lab, &id, AGENT, b's', &failed, &[])?, &took())?;
            }
        }
        client.finished(&id)?;
        let report = report(lab, &id)?;
        equal("code", &report["failure"]["code"], &Value::from(code)).with_context(|| report.to_string())?;
        equal("outcome", &report["outcome"], &Value::from(outcome))?;
        for at in 0..2 {
            equal("end", &report["steps"][at]["end"]["end"], &Value::from("not_run"))?;
        }
        client.forget(&id)?;
    }
    drop(client);
    listener.stop()
}

fn rotated(lab: &Lab) -> Result<()> {
    const NEW: &str = "canary-of-a-newer-value-Hb9d";
    let listener = Listener::start(lab, &[])?;
    let client = listener.client()?;
    let script = "trap 'told=1' HUP; told=; exec 9</run/secrets/a; sha256sum </run/secrets/a; echo \"is $(cat /run/secrets/a)\"
        echo ready; while test -z \"$told\"; do sleep 0.05; done
        sha256sum </run/secrets/a; sha256sum <&9; echo \"was $(cat <&9) is $(cat /run/secrets/a)\"; ls -A /run/secrets | wc -l";
    let steps = json!([step("has", script, &["a", "c"])]);
    let id = start(&client, json!({"secrets": three(), "steps": steps}))?;
    until_ready(lab, &id, 0)?;
    equal("given", &give(lab, &id, 0, &[("a", FILE), ("c", ENV)])?, &took())?;
    procs::eventually(SOON, "the step has read it", || {
        log(lab, &id).is_ok_and(|log| log.contains("is ***"))
    })?;
    let rotate = |step: u32, name: &str| {
        let what = json!({"step": step, "name": name, "bytes": NEW.len()});
        tell(lab, &id, AGENT, b'r', &what, &[sealed(NEW, all_seals())?])
    };
    is_refused(&rotate(0, "c")?, "as a file")?;
    is_refused(&rotate(1, "a")?, "step 0 runs")?;
    let weak = [sealed(NEW, SealFlags::SEAL)?];
    let what = json!({"step": 0, "name": "a", "bytes": NEW.len()});
    is_refused(&tell(lab, &id, AGENT, b'r', &what, &weak)?, "the seals")?;
    equal("rotated", &rotate(0, "a")?, &took())?;
    client.finished(&id)?;
    let (said, report) = (log(lab, &id)?, report(lab, &id)?);
    equal("outcome", &report["outcome"], &Value::from("succeeded")).with_context(|| said.clone())?;
    equal("times of the old value", &said.matches(&sha256(FILE)).count(), &2)?;
    equal("times of the new value", &said.matches(&sha256(NEW)).count(), &1)?;
    ensure!(!said.contains(FILE) && !said.contains(NEW) && said.contains("is ***"), "{said}");
    client.forget(&id)?;
    drop(client);
    listener.stop()
}

fn in_output(lab: &Lab) -> Result<()> {
    let listener = Listener::start(lab, &[])?;
    let client = listener.client()?;
    let base64 = "base64 -w 0 < /run/secrets/a";
    // What a step makes, in which form it leaves, and of which secret something is in it.
    let cases = [
        ("cp /run/secrets/a f".to_owned(), "file", Some("a")),
        (format!("{{ head -c 1000000 /dev/zero; printf 'x: %s' \"$({base64})\"; }} > f"), "file", Some("a")),
        ("printf %s \"$C\" | rev > f".to_owned(), "file", Some("c")),
        (
            "mkdir f; mkdir -p f/deep; tr -d x < /run/secrets/a > f/deep/y; cp /run/secrets/a f/deep/x"
                .to_owned(),
            "tree",
            Some("a"),
        ),
        ("mkdir f; touch \"f/$C\"".to_owned(), "tree", Some("c")),
        ("mkdir f; touch f/x; ln -s x \"f/to-$C\"".to_owned(), "tree", Some("c")),
        ("mkdir f; ln -s \"$C\" f/x".to_owned(), "tree", Some("c")),
        (format!("mkdir f; {base64} > f/x"), "tar.zst", Some("a")),
        ("mkdir -p \"f/$C/x\"".to_owned(), "tar.zst", Some("c")),
        // In the later step, which has none, of what an earlier one had kept.
        ("cp /run/secrets/a /build/kept; sleep 0.1".to_owned(), "later", Some("a")),
        ("sha256sum < /run/secrets/a > f; head -c 9 /run/secrets/a >> f".to_owned(), "file", None),
        ("mkdir f; sha256sum < /run/secrets/a > f/x".to_owned(), "tree", None),
        ("mkdir f; sha256sum < /run/secrets/a > f/x".to_owned(), "tar.zst", None),
    ];
    let taken = lab.state().join("store/trees");
    let count = || fs::read_dir(&taken).map_or(0, Iterator::count);
    for (script, form, secret) in &cases {
        let steps = json!([
            step("has", &format!("cd /build; {script}"), &["a", "c"]),
            step("then", "test ! -e /build/kept || cp /build/kept /build/f", &[]),
        ]);
        let form = if *form == "later" { "file" } else { form };
        let outputs = json!([
            {"name": "bad", "path": "/build/f", "form": form, "when": "always"},
            {"name": "good", "path": "/etc/passwd", "when": "always"},
        ]);
        let before = count();
        let id = start(&client, json!({"secrets": three(), "steps": steps, "outputs": outputs}))?;
        until_ready(lab, &id, 0)?;
        equal("given", &give(lab, &id, 0, &[("a", FILE), ("c", ENV)])?, &took())?;
        client.finished(&id)?;
        let report = report(lab, &id)?;
        let context = || format!("{script}: {report}");
        match secret {
            None => {
                equal("outcome", &report["outcome"], &Value::from("succeeded")).with_context(context)?;
                equal("outputs", &report["outputs"].as_array().map(Vec::len), &Some(2))
                    .with_context(context)?;
            }
            Some(secret) => {
                let failure = &report["failure"];
                equal("code", &failure["code"], &Value::from("secret.in_output")).with_context(context)?;
                let said = failure["message"].as_str().unwrap_or_default();
                ensure!(said.contains(&format!("output bad at /build/f: secret {secret},")), "{said}");
                ensure!(!said.contains(FILE) && !said.contains(ENV), "{said}");
                equal("outputs", &report["outputs"], &json!([])).with_context(context)?;
                equal("objects of the store", &count(), &before).with_context(context)?;
            }
        }
        client.forget(&id)?;
    }
    for value in [FILE, ENV] {
        let mut found = Vec::new();
        holders(&lab.state(), value, &mut found)?;
        equal("files of the state directory with a value", &found, &Vec::new())?;
    }
    drop(client);
    listener.stop()
}

fn later_in_output(lab: &Lab) -> Result<()> {
    const NEW: &str = "canary-of-a-later-value-Gd4s";
    let listener = Listener::start(lab, &[])?;
    let client = listener.client()?;
    let script =
        "trap 'told=1' HUP; told=; sleep 0.2; echo ready; while test -z \"$told\"; do sleep 0.05; done
        cp /run/secrets/a /build/f";
    let steps = json!([step("has", script, &["a"]), step("then", "true", &[])]);
    let outputs = json!([{"name": "bad", "path": "/build/f"}]);
    let id = start(&client, json!({"secrets": three(), "steps": steps, "outputs": outputs}))?;
    until_ready(lab, &id, 0)?;
    equal("given", &give(lab, &id, 0, &[("a", FILE)])?, &took())?;
    procs::eventually(SOON, "the step is ready", || log(lab, &id).is_ok_and(|log| log.contains("ready\n")))?;
    let what = json!({"step": 0, "name": "a", "bytes": NEW.len()});
    equal("rotated", &tell(lab, &id, AGENT, b'r', &what, &[sealed(NEW, all_seals())?])?, &took())?;
    client.finished(&id)?;
    let report = report(lab, &id)?;
    let code = &report["failure"]["code"];
    equal("code", code, &Value::from("secret.in_output")).with_context(|| report.to_string())?;
    client.forget(&id)?;
    drop(client);
    listener.stop()
}

/// Why an output is refused is kept in many places: what a step called something in it stands in none of them.
fn refused_output(lab: &Lab) -> Result<()> {
    let listener = Listener::start(lab, &[])?;
    let client = listener.client()?;
    // What a step makes, and what of it is said.
    let cases = [
        ("ln -s \"/x/$C\" out/l", "tree", "a link in it is absolute"),
        ("ln -s \"/x/$C\" out/l", "tar.zst", "a link in it is absolute"),
        ("ln -s \"../$C\" \"out/$C\"", "tree", "a link in it leads out of the directory"),
        ("mkfifo \"out/$C\"", "tree", "something in it is a FIFO"),
        (
            "d=\"out/$C\"; for i in $(seq 70); do d=\"$d/d\"; done; mkdir -p \"$d\"",
            "tar.zst",
            "64 components",
        ),
    ];
    for (script, form, said) in &cases {
        let steps = json!([step("has", &format!("mkdir /build/out; cd /build; {script}"), &["c"])]);
        let outputs = json!([{"name": "bad", "path": "/build/out", "form": form, "when": "always"}]);
        let secrets = three().as_array().cloned().unwrap_or_default();
        let secrets: Vec<_> = secrets.into_iter().filter(|secret| secret["name"] == "c").collect();
        let id = start(&client, json!({"secrets": secrets, "steps": steps, "outputs": outputs}))?;
        until_ready(lab, &id, 0)?;
        equal("given", &give(lab, &id, 0, &[("c", ENV)])?, &took())?;
        client.finished(&id)?;
        let report = report(lab, &id)?;
        let failure = &report["failure"];
        let context = || format!("{script}: {report}");
        equal("code", &failure["code"], &Value::from("output.refused")).with_context(context)?;
        let message = failure["message"].as_str().unwrap_or_default();
        ensure!(message.starts_with("output bad at /build/out: ") && message.contains(said), "{message}");
        let mut found = Vec::new();
        holders(&lab.state(), ENV, &mut found)?;
        equal("files of the state directory with a value", &found, &Vec::new()).with_context(context)?;
        client.forget(&id)?;
    }
    drop(client);
    listener.stop()
}
