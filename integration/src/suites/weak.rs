//! The tests of the tests: with one layer dropped, at least one attack succeeds, and the layer's own measurement notices.
//!
//! Each file of `integration/weak-profiles/` is a patch of the compiled profile `hermetic`.

use super::attacks;
use super::{probe, with_probe};
use crate::check::{Ending, Ran, equal, said};
use crate::faulty::Faulty;
use crate::harness::Test;
use crate::lab::Lab;
use crate::serve::Server;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

pub(super) const TESTS: &[Test] = &[
    Test::root("each_dropped_layer_turns_an_attack_red", matrix),
    Test::root("profile_below_the_floor_is_refused", floor),
    Test::root("dropped_layer_is_noticed_by_the_measurement", measured),
];

const SUCCEEDED: Ending = Ending("succeeded", "", 0);

/// One weakened profile.
struct Weak {
    name: String,
    /// What is dropped, for people.
    drops: String,
    /// The layer of the measurement that has to notice, if it can.
    layer: Option<String>,
    /// For steps of which user.
    user: String,
    profile: Value,
}

fn weak_profiles(lab: &Lab) -> Result<Vec<Weak>> {
    let hermetic: Value =
        serde_json::from_slice(&fs::read(lab.repository("sandbox-profiles/compiled/hermetic.json"))?)?;
    let mut found = Vec::new();
    for entry in fs::read_dir(lab.repository("integration/weak-profiles"))? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|s| s.to_str()).context("a name")?.to_owned();
        let file: Value =
            serde_json::from_slice(&fs::read(&path)?).with_context(|| path.display().to_string())?;
        let mut profile = hermetic.clone();
        merge(&mut profile, &file["patch"]);
        profile["name"] = Value::from(name.clone());
        let text = |key: &str| file[key].as_str().map(str::to_owned);
        let drops = text("drops").context("drops")?;
        let user = text("user").unwrap_or_else(|| "build".to_owned());
        found.push(Weak { name, drops, layer: text("layer"), user, profile });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    ensure!(found.len() >= 10, "only {} weak profiles", found.len());
    Ok(found)
}

/// RFC 7396, without the removal of keys.
fn merge(into: &mut Value, patch: &Value) {
    match patch {
        Value::Object(map) => map.iter().for_each(|(key, value)| merge(&mut into[key], value)),
        other => *into = other.clone(),
    }
}

/// Writes all weak profiles, and `hermetic` beside them.
fn directory(lab: &Lab, weak: &[Weak]) -> Result<PathBuf> {
    for one in weak {
        lab.write(&format!("profiles/{}.json", one.name), serde_json::to_vec_pretty(&one.profile)?)?;
    }
    let hermetic = fs::read(lab.repository("sandbox-profiles/compiled/hermetic.json"))?;
    lab.write("profiles/hermetic.json", hermetic)?;
    Ok(lab.path("profiles"))
}

fn job(lab: &Lab, port: &str, profile: &str, user: &str) -> Result<PathBuf> {
    let body =
        format!("user = \"{user}\"\n") + &attacks::attacking_job(lab)? + &probe("b", &["isolation", port]);
    let job = lab.job_of(&attacks::open_image(lab)?, &body)?;
    let text =
        fs::read_to_string(&job)?.replace("profile = \"hermetic\"", &format!("profile = \"{profile}\""));
    fs::write(&job, text)?;
    Ok(job)
}

/// Every answer of a run, by name.
fn answers(ran: &Ran) -> Result<BTreeMap<String, String>> {
    // Some calls that are no longer refused end the step: then the second one has no log.
    let text = ran.log_text("0-a.stdout")? + &ran.log_text("1-b.stdout").unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split_once('='));
    // A directory lists its entries in any order.
    let sorted = |value: &str| {
        let mut words: Vec<&str> = value.split_whitespace().collect();
        words.sort_unstable();
        words.join(" ")
    };
    Ok(lines.map(|(name, value)| (name.to_owned(), sorted(value))).collect())
}

fn matrix(lab: &Lab) -> Result<()> {
    let faulty = Faulty::install(lab)?;
    let weak = weak_profiles(lab)?;
    let profiles = directory(lab, &weak)?;
    let server = Server::start("200 OK", b"host".to_vec())?;
    let port = server.port().to_string();
    let run = |profile: &str, user: &str| -> Result<Ran> {
        faulty.run(&job(lab, &port, profile, user)?).arg("--profiles").arg(&profiles).end()
    };
    faulty.ask("weak,unmeasured")?;
    let mut strong = BTreeMap::new();
    for user in ["build", "root"] {
        strong.insert(user, answers(&run("hermetic", user)?.ended(&SUCCEEDED)?)?);
    }
    let mut matrix = String::new();
    for one in &weak {
        // A step that gets further than it may can fail for it: what counts is what it could do.
        let ran = run(&one.name, &one.user)?;
        let strong = strong.get(one.user.as_str()).context("a user")?;
        let found = answers(&ran).with_context(|| format!("{}: {ran:?}", one.name))?;
        let changed =
            |(name, value): &(&String, &String)| strong.get(*name) != Some(*value) && is_red(name, value);
        let red: Vec<String> =
            found.iter().filter(changed).map(|(name, value)| format!("{name}={value}")).collect();
        ensure!(!red.is_empty(), "{} dropped, and no attack noticed", one.drops);
        matrix += &format!("{:<22} {:>3} red: {}\n", one.name, red.len(), red.join(" "));
    }
    println!("weak profiles and the attacks that each let through:\n{matrix}");
    Ok(())
}

/// An answer that differs for a reason: what differs from run to run is none, and what is no longer there cannot be
/// attacked.
fn is_red(name: &str, value: &str) -> bool {
    if ["ENOENT", "EBADF", "?"].contains(&value) {
        return false;
    }
    let varies = ["ns.", "own_pid", "proc", "status.", "S1.seen"];
    // With the host's own namespace the answer is the host's.
    let is_hosts = name.strip_prefix("ns.").is_some_and(|kind| {
        fs::read_link(format!("/proc/self/ns/{kind}")).is_ok_and(|ours| ours.to_string_lossy() == value)
    });
    is_hosts || !varies.iter().any(|prefix| name.starts_with(prefix)) || name.starts_with("status.Cap")
}

fn floor(lab: &Lab) -> Result<()> {
    let weak = weak_profiles(lab)?;
    let profiles = directory(lab, &weak)?;
    for one in &weak {
        let job = job(lab, "1", &one.name, &one.user)?;
        let ran = lab.run(&job).arg("--profiles").arg(&profiles).end()?.exits(69)?;
        ran.says(&["sandbox.unsupported", "weaker than a profile may be"])?;
    }
    Ok(())
}

fn measured(lab: &Lab) -> Result<()> {
    let faulty = Faulty::install(lab)?;
    let weak = weak_profiles(lab)?;
    let profiles = directory(lab, &weak)?;
    faulty.ask("weak")?;
    let mut noticed = 0;
    for one in &weak {
        let Some(layer) = &one.layer else { continue };
        let ran = faulty.run(&job(lab, "1", &one.name, &one.user)?).arg("--profiles").arg(&profiles).end()?;
        // Without a namespace of its own the job's is the host's, and the teardown finds that still there.
        ensure!(matches!(ran.status, Some(69 | 70)), "{}: {ran:?}", one.name);
        let ran = ran.says(&["sandbox.unsupported"])?;
        let statement = ran.statement("run.intoto.jsonl")?;
        let measured = &statement["predicate"]["isolation"][layer.as_str()]["inForce"];
        equal(layer, measured, &Value::from(false))?;
        noticed += 1;
    }
    ensure!(noticed >= 7, "only {noticed} layers are measured");
    // The probe itself is the same as that of a real job.
    let ran = lab.run_job(&(with_probe(lab)? + &probe("a", &["self"])))?.ended(&SUCCEEDED)?;
    said(&ran.log_text("0-a.stdout")?, "uid").map(drop)
}
