//! Steps that log in by themselves, and rules that change under the daemon.

use super::agree::told;
use super::kills::ttl;
use super::{ALL, SUCCEEDED, job, leases, submit};
use crate::ampouled::Ampouled;
use crate::check::equal;
use crate::lab::Lab;
use crate::procs;
use crate::servers::Servers;
use crate::vault::{LOOPBACK, Storage, secrets_toml, text};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::net::TcpListener;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);
/// Agent and steps log in by tokens that the agent signs.
const JWT: &str = "login.jwt = { role = \"ampoule-agent\", audience = \"vault\" }\nstep.jwt = { role = \"ampoule-step-app\", audience = \"vault\" }\n";

/// The role of steps, as documented, which lets in whose claims are these.
fn role(servers: &Servers, claims: &Value) -> Result<()> {
    let mut role = servers.rig.example_json("jwt-role-step-app.json")?;
    *role.get_mut("bound_claims").context("no claims")? = claims.clone();
    servers.rig.ask("POST", "auth/jwt/role/ampoule-step-app", Some(&role)).map(drop)
}

pub(super) fn by_jwt(lab: &Lab) -> Result<()> {
    let servers = Servers::start(lab, Storage::Memory)?;
    let rig = &servers.rig;
    let port = TcpListener::bind((LOOPBACK, 0))?.local_addr()?.port();
    let table = Servers::write(lab, &secrets_toml(&format!("{}{JWT}", servers.server(None))))?;
    let metrics = format!("[metrics]\nlisten = \"127.0.0.1:{port}\"\n");
    let daemon = Ampouled::start_signing_with(lab, &(table + &metrics))?;
    // The server believes whom the daemon publishes, and nobody else.
    rig.ask("POST", "sys/auth/jwt", Some(&json!({"type": "jwt"})))?;
    let keys = format!("http://127.0.0.1:{port}/jwks.json");
    let config = json!({"jwks_url": keys, "bound_issuer": "https://builds.test.example"});
    rig.ask("POST", "auth/jwt/config", Some(&config))?;
    let agent = rig.example_json("jwt-role-agent.json")?;
    rig.ask("POST", "auth/jwt/role/ampoule-agent", Some(&agent))?;
    role(&servers, &json!({"project": "app", "caller": "uid:0"}))?;

    let check = daemon.secrets("check").end()?.exits(0)?;
    check.says(&["0 failed, 0 warnings, 4 not known"])?;
    let script = "test \"$(cat /run/secrets/npm)\" = \"$(printf canary; printf -- -of-the-token-Vb8n)\"\ntest -s /run/secrets/db-password";
    let wanted = job(lab, &ALL, script)?;
    let ran = submit(&daemon, &wanted, "by itself")?.ended(&SUCCEEDED)?;
    servers.nothing_is_left()?;
    // The server knows which step it was, by the token's own claims.
    let id = ran.result()?["job"].as_str().context("no job")?.to_owned();
    let logins: Vec<Value> = rig.audit_with_accessors(&mut 0)?.into_iter().filter(is_login).collect();
    let of_step = logins.iter().filter(|of| of["response"]["auth"]["metadata"]["job"] == id.as_str());
    let of_step: Vec<_> = of_step.collect();
    let [login] = of_step.as_slice() else {
        anyhow::bail!("{} logins of the job: {logins:?}", of_step.len())
    };
    let meta = &login["response"]["auth"]["metadata"];
    equal("metadata", &(&meta["step"], &meta["project"]), &(&json!("use"), &json!("app")))?;
    let accessor = text(login, "/response/auth/accessor")?;
    let body = json!({"accessor": accessor});
    let (status, found) =
        rig.ask_as(rig.root_token(), &[], "POST", "auth/token/lookup-accessor", Some(&body))?;
    ensure!(status != 200, "the step's token lives: {found}");

    // Claims that this job's token does not have: the caller has shown no token, so there is no ref.
    role(&servers, &json!({"project": "app", "ref": "refs/heads/*"}))?;
    let refused = submit(&daemon, &wanted, "no ref")?.exits(75)?;
    // The tenant hears nothing of the server's rules.
    let told = "failed: step use: a secret of this step cannot be had now; the log of this host's agent says why [secret.unavailable]";
    ensure!(refused.stderr.lines().any(|line| line == told), "{}", refused.stderr);
    servers.nothing_is_left()?;
    daemon.stop()
}

fn is_login(entry: &Value) -> bool {
    entry["type"] == "response"
        && entry["request"]["path"] == "auth/jwt/login"
        && entry["response"]["auth"].is_object()
}

/// Has the daemon read its files again, and waits until it has said so in these words once more.
fn reload(lab: &Lab, daemon: &Ampouled<'_>, says: &str) -> Result<()> {
    let count = || {
        let said = std::fs::read_to_string(lab.path("agent.log")).unwrap_or_default();
        said.matches(says).count()
    };
    let before = count();
    daemon.signal(Signal::HUP)?;
    procs::eventually(SOON, says, || count() > before)
}

const TAKEN: &str = "the configuration was read again";
const NOT_TAKEN: &str = "the configuration was not taken";

pub(super) fn reloaded(lab: &Lab) -> Result<()> {
    let servers = Servers::start(lab, Storage::Memory)?;
    let table = servers.table(lab)?;
    let whole = std::fs::read_to_string(lab.path("secrets.toml"))?;
    let (server, rules) = whole.split_once("[[secret]]").context("no rules")?;
    let (npm, database) = rules.split_once("[[secret]]").context("one rule")?;
    Servers::write(lab, &format!("{server}[[secret]]{npm}"))?;
    let daemon = Ampouled::start_with(lab, &table)?;
    let wanted = job(lab, &ALL, "test -s /run/secrets/db-user")?;
    let denied = |key: &str| submit(&daemon, &wanted, key)?.exits(77).map(drop);
    let given = |key: &str| submit(&daemon, &wanted, key)?.ended(&SUCCEEDED).map(drop);
    denied("one rule")?;
    Servers::write(lab, &format!("{server}[[secret]]{npm}[[secret]]{database}"))?;
    denied("not read yet")?;
    reload(lab, &daemon, TAKEN)?;
    given("all rules")?;
    // What cannot be used changes nothing.
    for bad in ["format = 1\n[server.bao]\n", "format = 1\nmore = 1\n"] {
        Servers::write(lab, bad)?;
        reload(lab, &daemon, NOT_TAKEN)?;
    }
    given("a file that cannot be used")?;
    // A step keeps what it has when rule and server are named no more, and it is taken back all the same.
    let live = daemon.submit(&job(lab, &ALL, "sleep 4; test -s /run/secrets/npm")?, "kept");
    let live = live.args(["--project", "app"]).start()?;
    let made = || servers.postgres.made_users().is_ok_and(|users| users.len() == 1);
    procs::eventually(SOON, "the step has a user", made)?;
    Servers::write(lab, "format = 1\n")?;
    reload(lab, &daemon, TAKEN)?;
    denied("no rules")?;
    daemon.ended(live)?.ended(&SUCCEEDED)?;
    servers.nothing_is_left()?;
    daemon.stop()
}

pub(super) fn rotated(lab: &Lab) -> Result<()> {
    let servers = Servers::start(lab, Storage::Memory)?;
    let table = servers.table(lab)?;
    let file = std::fs::read_to_string(lab.path("secrets.toml"))?;
    let turning = file.replace("name = \"npm\"\n", "name = \"npm\"\nrotate = \"10s\"\n");
    ensure!(turning != file, "the file has no npm: {file}");
    Servers::write(lab, &turning)?;
    let mut daemon = Ampouled::start_with(lab, &table)?;
    // It ends when the value is another one, and fails if that does not come.
    let script = "first=$(cat /run/secrets/npm); n=0\n\
                  while test \"$(cat /run/secrets/npm)\" = \"$first\"; do n=$((n+1)); test $n -lt 600 || exit 9; sleep 0.1; done";
    let live = daemon.submit(&job(lab, &["npm"], script)?, "turns").args(["--project", "app"]).start()?;
    let given =
        || leases(&daemon, &[]).is_ok_and(|all| all.iter().any(|of| of["handed_over_at"].is_string()));
    procs::eventually(SOON, "the step has its secret", given)?;
    daemon.kill_and_start(Duration::from_secs(1))?;
    let value = json!({"data": {"token": "canary-of-another-token-Xq2"}});
    servers.rig.ask("POST", "secret/data/app/npm", Some(&value))?;
    daemon.ended(live)?.ended(&SUCCEEDED)?;
    let closed = || leases(&daemon, &[]).is_ok_and(|all| all.is_empty());
    procs::eventually(SOON, "nothing is open", closed)?;
    let made = told(&servers, &mut 0)?.order;
    ensure!(made.len() >= 2, "each turn has a token of its own: {}", made.len());
    for accessor in made {
        ensure!(ttl(&servers, &accessor)?.is_none(), "a token of a turn lives");
    }
    daemon.stop()
}
