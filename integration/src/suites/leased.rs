//! Secrets with everything real: a daemon, its launcher, a server of the Vault API and a database.

mod agree;
mod kills;
mod ways;

use super::sh;
use crate::ampouled::Ampouled;
use crate::check::{Ending, Ran, equal};
use crate::harness::Test;
use crate::lab::Lab;
use crate::procs;
use crate::servers::{CANARY, Servers};
use crate::vault::Storage;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;

pub(super) const TESTS: &[Test] = &[
    Test::root("step_has_what_a_server_leases_and_nothing_is_left", leased),
    Test::root("agent_killed_under_a_step_takes_back_when_it_is_there_again", killed),
    Test::root("daemon_killed_at_each_step_leaves_nothing_and_logs_agree", kills::killed),
    Test::root("pending_revoke_is_seen_and_withholds_provenance_not_the_slot", pending),
    Test::root("step_logs_in_by_itself_and_the_roles_claims_decide", ways::by_jwt),
    Test::root("secret_of_a_step_that_outlives_the_daemon_rotates", ways::rotated),
    Test::root("rules_that_change_under_the_daemon_hold_from_then_on", ways::reloaded),
    Test::root("secret_without_a_rule_is_denied_with_one_text", denied),
];

const SOON: Duration = Duration::from_secs(60);
const SUCCEEDED: Ending = Ending("succeeded", "", 0);

pub(super) fn job(lab: &Lab, secrets: &[&str], script: &str) -> Result<PathBuf> {
    job_with(lab, secrets, script, "")
}

fn job_with(lab: &Lab, secrets: &[&str], script: &str, more: &str) -> Result<PathBuf> {
    let declared: String = secrets
        .iter()
        .map(|name| format!("[[secret]]\nname = \"{name}\"\nfile = \"/run/secrets/{name}\"\n"))
        .collect();
    let names: Vec<_> = secrets.iter().map(|name| format!("\"{name}\"")).collect();
    let step = format!("{}secrets = [{}]\n", sh("use", script), names.join(", "));
    lab.job(&format!("{declared}{step}{more}"))
}

pub(super) fn submit(daemon: &Ampouled<'_>, job: &std::path::Path, key: &str) -> Result<Ran> {
    daemon.ended(daemon.submit(job, key).args(["--project", "app"]).start()?)
}

/// What the run attestation says of secrets.
fn claim(ran: &Ran) -> Result<Value> {
    let statement = ran.statement("run.intoto.jsonl")?;
    let text = statement["predicate"]["agentClaims"]["secrets"].as_str().context("no claim")?;
    ensure!(!text.contains(CANARY), "{text}");
    Ok(serde_json::from_str(text)?)
}

const ALL: [&str; 3] = ["npm", "db-user", "db-password"];

fn leased(lab: &Lab) -> Result<()> {
    let servers = Servers::start(lab, Storage::Memory)?;
    let daemon = Ampouled::start_with(lab, &servers.table(lab)?)?;
    let script = "test \"$(cat /run/secrets/npm)\" = \"$(printf canary; printf -- -of-the-token-Vb8n)\"\n\
                  case \"$(cat /run/secrets/db-user)\" in v-*) ;; *) exit 9 ;; esac\n\
                  test -s /run/secrets/db-password\ncat /run/secrets/npm";
    let ran = submit(&daemon, &job(lab, &ALL, script)?, "leased")?;
    let ran = ran.ended(&SUCCEEDED)?;
    servers.nothing_is_left()?;
    let claims = claim(&ran)?;
    let claim = claims.get(0).context("no grant")?;
    ensure!(claim["revokedAt"].is_string() && claim["handedOverAt"].is_string(), "{claims}");
    let digest = claim["accessorSha256"].as_str().context("no accessor")?;
    ensure!(digest.len() == 64 && claims.as_array().is_some_and(|all| all.len() == 1), "{claims}");
    // Nowhere in the daemon's state or the job's, and masked in the log.
    for place in [lab.path("daemon"), lab.state(), lab.path("agent.log")] {
        let found = lab.call("grep").args(["-rla", CANARY]).arg(&place).end()?;
        equal("places with the value", &found.stdout_text(), &String::new())?;
    }
    daemon.stop()
}

fn killed(lab: &Lab) -> Result<()> {
    let servers = Servers::start(lab, Storage::Memory)?;
    let mut daemon = Ampouled::start_with(lab, &servers.table(lab)?)?;
    for (key, lasts) in [("over", "3"), ("runs", "12")] {
        let job = job(lab, &ALL, &format!("sleep {lasts}; test -s /run/secrets/npm"))?;
        let live = daemon.submit(&job, key).args(["--project", "app"]).start()?;
        let given = || servers.postgres.made_users().is_ok_and(|users| users.len() == 1);
        procs::eventually(SOON, "the database has a user for the step", given)?;
        std::thread::sleep(Duration::from_millis(500));
        // One step ends while there is no agent, the other one runs on under the next.
        daemon.kill_and_start(Duration::from_secs(6))?;
        drop(live);
        let ran = submit(&daemon, &job, key)?;
        let ran = ran.ended(&SUCCEEDED)?;
        servers.nothing_is_left()?;
        let claims = claim(&ran)?;
        ensure!(claims[0]["revokedAt"].is_string(), "{claims}");
    }
    daemon.stop()
}

fn denied(lab: &Lab) -> Result<()> {
    let daemon = Ampouled::start_with(lab, "")?;
    let ran = submit(&daemon, &job(lab, &["npm"], "true")?, "denied")?;
    let ran = ran.exits(77)?;
    let said = &ran.stderr;
    ensure!(said.contains("secret npm: the job may not have this secret"), "{said}");
    daemon.stop()
}

/// The grants that `ampoule secrets leases` lists.
fn leases(daemon: &Ampouled<'_>, more: &[&str]) -> Result<Vec<Value>> {
    daemon.secrets("leases").args(more).arg("--json").end()?.exits(0)?.json_lines()
}

/// A metric without labels.
fn metric(lab: &Lab, name: &str) -> Result<String> {
    let curl = lab.call("curl").args(["-sS", "--unix-socket"]).arg(lab.path("metrics.sock"));
    let page = curl.arg("http://daemon/metrics").end()?.exits(0)?.stdout_text();
    let line = page.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
    line.map(str::to_owned).with_context(|| format!("no {name}: {page}"))
}

fn pending(lab: &Lab) -> Result<()> {
    let mut servers = Servers::start(lab, Storage::Raft)?;
    let metrics =
        format!("[metrics]\nlisten = \"{}\"\n[limits]\nrunning = 1\n", lab.path("metrics.sock").display());
    let daemon = Ampouled::start_with(lab, &(servers.table(lab)? + &metrics))?;
    daemon
        .secrets("check")
        .end()?
        .exits(0)?
        .says(&["1 server, 3 secrets: 0 failed, 0 warnings, 0 not known"])?;
    ensure!(leases(&daemon, &[])?.is_empty(), "before any job");

    let output = "[[output]]\nname = \"made\"\npath = \"/build/made\"\n";
    let held = job_with(lab, &ALL, "sleep 5; echo made > /build/made", output)?;
    let live = daemon.submit(&held, "held").args(["--project", "app"]).start()?;
    let given =
        || leases(&daemon, &[]).is_ok_and(|all| all.iter().any(|of| of["handed_over_at"].is_string()));
    procs::eventually(SOON, "the step has its secrets", given)?;
    let all = leases(&daemon, &["--of", "bao", "--project", "app"])?;
    let grant = all.first().context("no grant")?;
    let id = grant["job"].as_str().context("no job")?.to_owned();
    ensure!(all.len() == 1 && grant["leases"] == 1 && grant["revoking_since"].is_null(), "{all:?}");
    ensure!(grant["accessor_sha256"].as_str().is_some_and(|of| of.len() == 64), "{grant}");
    servers.rig.kill()?;

    // Its step ends, and the server is not there to take back what it had.
    let seen = || leases(&daemon, &["--pending"]).is_ok_and(|all| all.iter().any(|of| of["tries"] != 0));
    procs::eventually(SOON, "a revoke has failed", seen)?;
    let since = std::time::Instant::now();
    let all = leases(&daemon, &["--pending", "--job", &id])?;
    let why = all[0]["last_error"].as_str().context("no error")?;
    ensure!(all[0]["revoking_since"].is_string() && why.contains("server bao"), "{all:?}");
    equal("metric", &metric(lab, "ampoule_secret_revokes_pending")?, &"1".to_owned())?;
    daemon.secrets("revoke").arg(&id).end()?.exits(75)?;
    daemon.secrets("check").end()?.exits(75)?;
    // The one place of the host is free while the record waits.
    let next = submit(&daemon, &job(lab, &[], "true")?, "next")?.ended(&SUCCEEDED)?;
    let ran = daemon.ended(live)?;
    ensure!(next.took < Duration::from_secs(20), "the next job took {:?}", next.took);
    let ran = ran.exits(70)?.says(&["provenance.refused", "secrets.revoke_pending"])?;
    ensure!(since.elapsed() < Duration::from_secs(75), "the record took {:?}", since.elapsed());
    let record = lab.path("daemon/records").join(&id).join("run.intoto.jsonl");
    let run = crate::check::statement(&record)?;
    let text = run["predicate"]["agentClaims"]["secrets"].as_str().context("no claim")?;
    ensure!(text.contains("\"revokePending\":true"), "{text}");
    ran.has_no_provenance()?;
    let released = crate::lab::tree(&ran.out.join("outputs")).unwrap_or_default();
    equal("what was released", &released, &Vec::new())?;

    servers.rig.restart()?;
    let gone = || leases(&daemon, &[]).is_ok_and(|all| all.is_empty());
    procs::eventually(SOON, "nothing is open", gone)?;
    servers.nothing_is_left()?;
    equal("metric", &metric(lab, "ampoule_secret_revokes_pending")?, &"0".to_owned())?;
    daemon.secrets("revoke").arg(&id).end()?.exits(0)?;
    daemon.secrets("check").end()?.exits(0)?;
    daemon.stop()
}
