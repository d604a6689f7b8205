//! A new step waits for a server that is away for as long as the operator has said, whether or not the agent is logged in there.

use crate::vault::{self, Rig, Storage};
use crate::{STEP, approle, rig, server};
use ampoule_agent::audit::{AuditError, AuditEvent};
use ampoule_agent::audit_sink::{AuditSink, Refused};
use ampoule_agent::job::{Caller, Means};
use ampoule_agent::secrets::{Counts, Options, Secrets, SecretsFile, Step};
use ampoule_spec::{Delivery, JobId, Name, SandboxPath, Secret};
use futures_util::future::BoxFuture;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

struct Deaf;

impl AuditSink for Deaf {
    fn record(&self, _: &Refused<'_>) {}

    fn write<'a>(&'a self, _: &'a AuditEvent) -> BoxFuture<'a, Result<(), AuditError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

fn step(names: &[&str]) -> Step {
    let name = |text: &str| Name::parse(text).unwrap();
    let secret = |text: &&str| {
        let path = SandboxPath::parse(&format!("/run/secrets/{text}")).unwrap();
        Secret { name: name(text), delivery: Delivery::File(path), on_rotate: None }
    };
    Step {
        job: JobId::parse("01890a5d-ac96-774b-bcce-b302099a8057").unwrap(),
        project: name("app"),
        caller: Caller { means: Means::Peer, subject: "uid:7".to_owned(), claims: BTreeMap::new() },
        profile: name("hermetic"),
        is_signed: false,
        index: 0,
        name: name("deploy"),
        limit: Duration::from_secs(60),
        secrets: names.iter().map(secret).collect(),
    }
}

/// The agent, logged in, whose new steps wait for so long.
async fn agent(rig: &Rig, dir: &std::path::Path, wait: &str) -> Arc<Secrets> {
    let options = Options {
        dir: dir.join("secrets"),
        issuer: "https://builds.test.example".to_owned(),
        credentials: None,
        audit: Arc::new(Deaf),
        counts: Counts::default(),
    };
    let secrets = Secrets::open(options).unwrap();
    let waits = server(rig).replace("wait_for_vault = \"20s\"", &format!("wait_for_vault = \"{wait}\""));
    let text = vault::secrets_toml(&format!("{waits}{}{STEP}", approle(rig)));
    secrets.take(secrets.ready(&SecretsFile::parse(&text, &rig.path("")).unwrap()).unwrap());
    let first = secrets.acquire(&step(&["npm"]), &CancellationToken::new()).await.unwrap();
    first.ids().for_each(|id| secrets.revoke(id));
    assert!(secrets.until_closed(&step(&[]).job, Duration::from_secs(20)).await);
    secrets
}

#[tokio::test(flavor = "multi_thread")]
async fn new_step_waits_longer_than_one_call_may_take_for_a_server_that_comes_back() {
    let rig = rig(Storage::Memory);
    let dir = tempfile::tempdir().unwrap();
    let secrets = agent(&rig, dir.path(), "40s").await;
    rig.seal().unwrap();
    let of = secrets.clone();
    let waits = tokio::spawn(async move { of.acquire(&step(&["npm"]), &CancellationToken::new()).await });
    // Twice the budget of a call.
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert!(!waits.is_finished(), "{:?}", waits.await);
    rig.unseal().unwrap();
    let begun = Instant::now();
    assert_eq!(waits.await.unwrap().unwrap().values.len(), 1);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn new_step_waits_no_longer_than_was_said_and_says_why() {
    let mut rig = rig(Storage::Memory);
    let dir = tempfile::tempdir().unwrap();
    let secrets = agent(&rig, dir.path(), "3s").await;
    let fails = async |state: &str| {
        let begun = Instant::now();
        let error = secrets.acquire(&step(&["npm"]), &CancellationToken::new()).await.unwrap_err();
        let took = begun.elapsed();
        assert!(took > Duration::from_millis(2900) && took < Duration::from_secs(5), "{state}: {took:?}");
        assert!(error.reason().contains(state) && error.reason().contains("3s in all"), "{}", error.reason());
    };
    rig.freeze().unwrap();
    // All of its threads.
    tokio::time::sleep(Duration::from_millis(500)).await;
    fails("is hung").await;
    rig.thaw().unwrap();
    rig.seal().unwrap();
    fails("is sealed").await;
    rig.kill().unwrap();
    fails("Connection refused").await;
}
