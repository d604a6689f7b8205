//! `kill -9` of the whole daemon at each step of what it does for a secret: minted, journaled, renewed, read, handed over, revoked.

use super::agree::{agree, one_record_each, told};
use super::{ALL, SUCCEEDED, job, leases};
use crate::ampouled::Ampouled;
use crate::lab::Lab;
use crate::middleman::{Middleman, When};
use crate::procs;
use crate::servers::Servers;
use crate::vault::{self, Storage, TOKEN_ROLE};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(60);
/// How often at each point.
const TIMES: &str = "AMPOULE_LEASED_KILLS";
/// A token that nobody renews is gone after so long.
const MINT_TTL: Duration = Duration::from_secs(15);
/// The step has its secrets about now, a moment before or after.
const HANDED_OVER: Duration = Duration::from_millis(40);

/// What is killed at: a name, the request below `/v1/`, and where it is then.
const POINTS: [(&str, &str, Option<When>); 9] = [
    ("before a token is made", "auth/token/create/", Some(When::Asked)),
    ("token made, and nobody knows", "auth/token/create/", Some(When::Done)),
    ("journaled, not renewed", "auth/token/renew-accessor", Some(When::Asked)),
    ("renewed, and nobody knows", "auth/token/renew-accessor", Some(When::Done)),
    ("user made, its lease not journaled", "database/creds/app", Some(When::Done)),
    ("about when it is handed over", "sys/leases/renew", None),
    ("to be revoked", "auth/token/revoke-accessor", Some(When::Asked)),
    ("revoked, and nobody knows", "auth/token/revoke-accessor", Some(When::Done)),
    ("lease revoked, and nobody knows", "sys/leases/revoke", Some(When::Done)),
];

pub(super) fn killed(lab: &Lab) -> Result<()> {
    let times: u32 = std::env::var(TIMES).ok().map_or(Ok(1), |text| text.parse()).context(TIMES)?;
    let servers = Servers::start(lab, Storage::Memory)?;
    let middleman = Middleman::before(&servers.rig)?;
    let server = servers.server(Some(&middleman.address()));
    let file = vault::secrets_toml(&format!("{server}{}{TOKEN_ROLE}", servers.rig.approle()?));
    let mut daemon = Ampouled::start_with(lab, &Servers::write(lab, &file)?)?;
    let job = job(lab, &ALL, "test -s /run/secrets/npm; test -s /run/secrets/db-user")?;
    let (mut jobs, mut lost) = (BTreeSet::new(), BTreeSet::new());
    let (mut last, mut from) = (Instant::now(), 0);
    for (point, path, when) in POINTS {
        let begun = Instant::now();
        for time in 0..times {
            // Over and over, each time at another moment.
            let pause = HANDED_OVER.mul_f64(f64::from(time) / f64::from(times.max(1)));
            let when = when.unwrap_or(When::After(pause));
            middleman.trap(daemon.pid(), path, when);
            let live =
                daemon.submit(&job, &format!("{path}{when:?}{time}")).args(["--project", "app"]).start()?;
            middleman.sprung(SOON).with_context(|| format!("{point}, {time}: {}", daemon.said_last()))?;
            last = Instant::now();
            daemon.start_again()?;
            let ran = daemon.ended(live)?.ended(&SUCCEEDED).with_context(|| point)?;
            jobs.insert(ran.result()?["job"].as_str().context("no job")?.to_owned());
            let closed = || leases(&daemon, &[]).is_ok_and(|all| all.is_empty());
            procs::eventually(SOON, "the journal is closed", closed).with_context(|| point)?;
            servers.nothing_is_left().with_context(|| point)?;
            // A token that was made and not told of is the one thing that may be left, for seconds.
            let is_lost = (path, when) == ("auth/token/create/", When::Done);
            let made = told(&servers, &mut from)?.order;
            let first = made.first().filter(|_| is_lost);
            for accessor in &made {
                let lives = ttl(&servers, accessor)?;
                let may = Some(accessor) == first && lives.is_some_and(|ttl| ttl <= MINT_TTL);
                ensure!(may || lives.is_none(), "{point}: a token lives for {lives:?}");
            }
            lost.extend(first.cloned());
        }
        println!("{times} kills, {point}: {:.1} s", begun.elapsed().as_secs_f64());
    }
    let gone = || lost.iter().all(|accessor| matches!(ttl(&servers, accessor), Ok(None)));
    procs::eventually(MINT_TTL.saturating_sub(last.elapsed()) + SOON, "what was lost is gone", gone)?;
    daemon.stop()?;
    one_record_each(lab, &jobs)?;
    agree(lab, &servers, &lost)
}

/// How long a token lives; none: there is none.
pub(super) fn ttl(servers: &Servers, accessor: &str) -> Result<Option<Duration>> {
    let rig = &servers.rig;
    let body = json!({"accessor": accessor});
    let (status, found) =
        rig.ask_as(rig.root_token(), &[], "POST", "auth/token/lookup-accessor", Some(&body))?;
    ensure!(matches!(status, 200 | 400 | 403 | 404), "{status} {found}");
    let ttl = found.pointer("/data/ttl").and_then(serde_json::Value::as_u64);
    Ok(ttl.filter(|_| status == 200).map(Duration::from_secs))
}
