//! Provenance that a server of the Vault API signs.

use super::{output, sh};
use crate::ampouled::Ampouled;
use crate::check::{Ending, equal};
use crate::harness::{Test, skip};
use crate::lab::Lab;
use crate::vault::{self, Rig, Storage};
use anyhow::{Result, ensure};
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

const SERVER: &str = "a server of the Vault API (integration/vault-requirements.txt) that this user may run";

pub(super) const TESTS: &[Test] = &[
    Test::root("provenance_is_signed_by_a_key_that_never_leaves_vault", signed).may_lack(SERVER),
    Test::root("records_wait_for_a_sealed_server_and_the_known_key", waits).may_lack(SERVER),
];

/// A server with a key and the policy for signers, and the operator's two files: `transit.toml` and the public key.
fn rig(lab: &Lab) -> Result<(Rig, PathBuf, PathBuf)> {
    let repository = lab.repository("");
    if let Err(reason) = vault::program(&repository) {
        return skip(reason);
    }
    let rig = Rig::start(&repository, Storage::Memory)?;
    rig.policy("ampoule-signer")?;
    rig.ask("POST", "sys/mounts/transit", Some(&json!({"type": "transit"})))?;
    rig.ask("POST", "transit/keys/ampoule", Some(&json!({"type": "ecdsa-p256"})))?;
    let key = rig.ask("GET", "transit/keys/ampoule", None)?;
    let public = lab.write("provenance.pub", vault::text(&key, "/data/keys/1/public_key")?)?;
    let token = json!({"policies": ["ampoule-signer"], "ttl": "30m"});
    let token = rig.ask("POST", "auth/token/create", Some(&token))?;
    let token = rig.private("signer", vault::text(&token, "/auth/client_token")?)?;
    let text = format!(
        "key = \"ampoule\"\n[vault]\naddresses = [{:?}]\nca = {:?}\ntimeout = \"2s\"\nbudget = \"5s\"\nlogin.token = {{ file = {token:?} }}\n",
        rig.address(),
        rig.ca()
    );
    let file = lab.write("transit.toml", text)?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;
    Ok((rig, file, public))
}

fn signed(lab: &Lab) -> Result<()> {
    let (rig, file, public) = rig(lab)?;
    let mut daemon = Ampouled::start_signing_by(lab, &format!("signing.transit = {file:?}\n"), public)?;
    let job = lab.job(&(sh("make", "echo made > out") + &output("out", "/build/out")))?;
    let ran = daemon.ended(daemon.submit(&job, "one").start()?)?.ended(&Ending("succeeded", "", 0))?;
    ran.verifies_output("out")?;
    // The server signed each statement, by its digest alone.
    let signed = rig.audit()?.into_iter().filter(|entry| {
        entry["type"] == "response" && entry["request"]["path"] == "transit/sign/ampoule/sha2-256"
    });
    equal("signatures: provenance and run attestation", &signed.count(), &2)?;
    // The key is known: a daemon starts without the server, which has another one under its name now.
    rig.ask("POST", "transit/keys/ampoule/rotate", Some(&json!({})))?;
    daemon.kill_and_start(Duration::ZERO)?;
    let ran = daemon.ended(daemon.submit(&job, "two").start()?)?.ended(&Ending("succeeded", "", 0))?;
    ran.verifies_output("out")?;
    daemon.stop()
}

fn waits(lab: &Lab) -> Result<()> {
    let (rig, file, public) = rig(lab)?;
    let mut daemon = Ampouled::start_signing_by(lab, &format!("signing.transit = {file:?}\n"), public)?;
    let job = lab.job(&(sh("make", "echo made > out") + &output("out", "/build/out")))?;
    rig.seal()?;
    let live = daemon.submit(&job, "one").start()?;
    daemon.says("the job's record cannot be made now")?;
    // A daemon that starts now has the key, and goes on waiting.
    daemon.kill_and_start(Duration::ZERO)?;
    rig.unseal()?;
    daemon.ended(live)?.ended(&Ending("succeeded", "", 0))?.verifies_output("out")?;
    // Somebody makes another key under that name: nothing is signed by it.
    rig.ask("POST", "transit/keys/ampoule/config", Some(&json!({"deletion_allowed": true})))?;
    rig.ask("DELETE", "transit/keys/ampoule", None)?;
    rig.ask("POST", "transit/keys/ampoule", Some(&json!({"type": "ecdsa-p256"})))?;
    let mut live = daemon.submit(&job, "two").start()?;
    daemon.says("it does not verify with the key that was read")?;
    let records = lab.path("daemon/records");
    ensure!(fs::read_dir(&records)?.count() == 1, "something was signed by a key that nobody knows");
    live.kill();
    daemon.stop()
}
