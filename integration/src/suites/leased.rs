//! Secrets with everything real: a daemon, its launcher, a server of the Vault API and a database.

use super::sh;
use crate::ampouled::Ampouled;
use crate::check::{Ending, Ran, equal};
use crate::harness::{Test, skip};
use crate::lab::Lab;
use crate::postgres::{self, Postgres};
use crate::procs;
use crate::vault::{self, Rig, Storage, text};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

pub(super) const TESTS: &[Test] = &[
    Test::root("step_has_what_a_server_leases_and_nothing_is_left", leased),
    Test::root("agent_killed_under_a_step_takes_back_when_it_is_there_again", killed),
    Test::root("secret_without_a_rule_is_denied_with_one_text", denied),
];

const SOON: Duration = Duration::from_secs(60);
const CANARY: &str = "canary-of-the-token-Vb8n";
const SUCCEEDED: Ending = Ending("succeeded", "", 0);

/// A server with the documented policies and a database.
struct Servers {
    rig: Rig,
    postgres: Postgres,
}

impl Servers {
    fn start(lab: &Lab) -> Result<Self> {
        if let Err(reason) = vault::program(&lab.repository("")).and(postgres::programs()) {
            skip(reason)?;
        }
        let rig = Rig::start(&lab.repository(""), Storage::Memory)?;
        for policy in ["ampoule-agent", "ampoule-step-app"] {
            rig.policy(policy)?;
        }
        let role = rig.example_json("token-role-app.json")?;
        rig.ask("POST", "auth/token/roles/ampoule-step-app", Some(&role))?;
        rig.ask("POST", "sys/auth/approle", Some(&json!({"type": "approle"})))?;
        let role = rig.example_json("approle-role-agent.json")?;
        rig.ask("POST", "auth/approle/role/ampoule", Some(&role))?;
        rig.ask("POST", "sys/mounts/secret", Some(&json!({"type": "kv", "options": {"version": "2"}})))?;
        let value = json!({"data": {"token": CANARY}});
        vault::until("the engine is there", || rig.ask("POST", "secret/data/app/npm", Some(&value)).is_ok())?;
        let postgres = Postgres::start()?;
        postgres.configure(&rig, "2m", "1h")?;
        Ok(Self { rig, postgres })
    }

    /// `[secrets]` of a daemon's configuration, with the file that it names.
    fn table(&self, lab: &Lab) -> Result<String> {
        let rig = &self.rig;
        let id = text(&rig.ask("GET", "auth/approle/role/ampoule/role-id", None)?, "/data/role_id")?;
        let made = rig.ask("POST", "auth/approle/role/ampoule/secret-id", Some(&json!({})))?;
        let secret_id = rig.private("secret-id", text(&made, "/data/secret_id")?)?;
        let rule = |name: &str, read: &str, field: &str| {
            format!(
                "[[secret]]\nproject = \"app\"\nname = {name:?}\nserver = \"bao\"\nread = {read}\nfield = {field:?}\n"
            )
        };
        let database = "{ database = { role = \"app\" } }";
        let rules = [
            rule("npm", "{ kv2 = { path = \"app/npm\" } }", "token"),
            rule("db-user", database, "username"),
            rule("db-password", database, "password"),
        ];
        let file = format!(
            "format = 1\n[server.bao]\naddresses = [{:?}]\nca = {:?}\nlogin.approle = {{ role_id = {id:?}, secret_id = {secret_id:?} }}\n\
             step.token_role = {{ name = \"ampoule-step-app\" }}\n{}",
            rig.address(),
            rig.ca(),
            rules.concat()
        );
        let path = lab.write("secrets.toml", file)?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600))?;
        Ok(format!("[secrets]\nfile = \"{}\"\n", path.display()))
    }

    fn nothing_is_left(&self) -> Result<()> {
        let users = || self.postgres.made_users().is_ok_and(|users| users.is_empty());
        procs::eventually(SOON, "the database has no user of ours", users)?;
        equal("leases", &self.rig.leases("database/creds/app")?, &Vec::new())
    }
}

fn job(lab: &Lab, secrets: &[&str], script: &str) -> Result<PathBuf> {
    let declared: String = secrets
        .iter()
        .map(|name| format!("[[secret]]\nname = \"{name}\"\nfile = \"/run/secrets/{name}\"\n"))
        .collect();
    let names: Vec<_> = secrets.iter().map(|name| format!("\"{name}\"")).collect();
    let step = format!("{}secrets = [{}]\n", sh("use", script), names.join(", "));
    lab.job(&format!("{declared}{step}"))
}

fn submit(daemon: &Ampouled<'_>, job: &std::path::Path, key: &str) -> Result<Ran> {
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
    let servers = Servers::start(lab)?;
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
    let servers = Servers::start(lab)?;
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
    ensure!(said.contains("may not have this secret"), "{said}");
    daemon.stop()
}
