//! What the server's audit file says of steps' tokens, held against the daemon's audit log, in both directions.

use crate::audit_log;
use crate::lab::Lab;
use crate::servers::Servers;
use crate::vault::text;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// Steps' tokens, by accessor, as the server's audit file has them.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Those that were made, with job and step of their metadata.
    made: BTreeMap<String, (String, String)>,
    /// The same in their order.
    pub(super) order: Vec<String>,
    /// How many reads each has made.
    reads: BTreeMap<String, usize>,
    /// What was revoked, as the file has it: hashed.
    revoked: BTreeSet<String>,
}

/// What a server has done, from a byte of its file on, which is moved to the end.
pub(super) fn told(servers: &Servers, from: &mut u64) -> Result<Told> {
    let mut told = Told::default();
    for entry in servers.rig.audit_with_accessors(from)? {
        let path = entry["request"]["path"].as_str().unwrap_or_default();
        if entry["type"] != "response" || entry["error"].is_string() {
            continue;
        }
        if path.starts_with("auth/token/create/") {
            let auth = &entry["response"]["auth"];
            let meta = (text(auth, "/metadata/job")?, text(auth, "/metadata/step")?);
            told.order.push(text(auth, "/accessor")?);
            told.made.insert(text(auth, "/accessor")?, meta);
        } else if path == "auth/token/revoke-accessor" {
            told.revoked.insert(text(&entry, "/request/data/accessor")?);
        } else if ["secret/data/app/npm", "database/creds/app"].contains(&path)
            && entry["request"]["operation"] == "read"
        {
            *told.reads.entry(text(&entry, "/auth/accessor")?).or_default() += 1;
        }
    }
    Ok(told)
}

/// Entries of our log about one kind of thing: job and step, by the digest of the accessor.
fn ours(entries: &[Value], action: &str) -> Result<BTreeMap<String, (String, String)>> {
    let of = entries.iter().filter(|entry| entry["action"] == action);
    let of = of.filter(|entry| entry["detail"]["provider"] != "file");
    of.map(|entry| {
        let about = (text(entry, "/job")?, text(entry, "/detail/step")?);
        Ok((text(entry, "/detail/accessor_sha256")?, about))
    })
    .collect()
}

/// Both logs tell the same. `lost`: tokens that were made for a daemon that died before it knew of them.
pub(super) fn agree(lab: &Lab, servers: &Servers, lost: &BTreeSet<String>) -> Result<()> {
    let told = told(servers, &mut 0)?;
    let entries = audit_log::entries(lab, &lab.path("daemon/audit"))?;
    let (granted, revoked) = (ours(&entries, "secret.granted")?, ours(&entries, "secret.revoked")?);
    ensure!(
        !granted.is_empty() && !revoked.is_empty() && !told.reads.is_empty(),
        "nothing to hold against each other"
    );
    let mut known = BTreeMap::new();
    for (accessor, about) in &told.made {
        let digest = hex::encode(Sha256::digest(accessor.as_bytes()));
        let hashed = json!({"input": accessor});
        let hashed = text(&servers.rig.ask("POST", "sys/audit-hash/plain", Some(&hashed))?, "/data/hash")?;
        let (is_granted, is_back) = (granted.get(&digest), revoked.get(&digest));
        let reads = told.reads.get(accessor).copied().unwrap_or_default();
        let what =
            format!("the token of {about:?}: granted {is_granted:?}, revoked {is_back:?}, {reads} reads");
        ensure!(is_granted.is_none_or(|it| it == about) && is_back.is_none_or(|it| it == about), "{what}");
        ensure!(is_granted.is_none() || reads > 0, "we say that it was given, and nothing was read: {what}");
        ensure!(is_granted.is_none() || is_back.is_some(), "given and not taken back: {what}");
        let at_server = told.revoked.contains(&hashed);
        ensure!(at_server == is_back.is_some(), "revoked there: {at_server}; {what}");
        if lost.contains(accessor) {
            ensure!(is_granted.is_none() && is_back.is_none() && reads == 0, "lost, and yet known: {what}");
        } else {
            ensure!(is_back.is_some(), "the server made it, and we say nothing of it: {what}");
        }
        known.insert(digest, accessor);
    }
    for digest in granted.keys().chain(revoked.keys()) {
        ensure!(known.contains_key(digest), "we speak of {digest}, and the server has not made it");
    }
    for accessor in told.reads.keys() {
        ensure!(told.made.contains_key(accessor), "somebody read with a token that was made for no step");
    }
    Ok(())
}

/// Each job has one record, told once.
pub(super) fn one_record_each(lab: &Lab, jobs: &BTreeSet<String>) -> Result<()> {
    let entries = audit_log::entries(lab, &lab.path("daemon/audit"))?;
    let mut records: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for entry in entries.iter().filter(|entry| entry["action"] == "job.finished") {
        let digest = text(entry, "/detail/attestation")?;
        records.entry(text(entry, "/job")?).or_default().insert(digest);
    }
    ensure!(records.keys().eq(jobs), "jobs {jobs:?}, records {records:?}");
    for (job, digests) in &records {
        let record = std::fs::read(lab.path("daemon/records").join(job).join("run.intoto.jsonl"));
        let digest = hex::encode(Sha256::digest(record.with_context(|| job.clone())?));
        ensure!(digests.len() == 1, "{job}: {digests:?}");
        ensure!(digests.contains(&digest), "{job}: told {digests:?}, there is {digest}");
    }
    Ok(())
}
