//! A process that takes a step's secrets from a real server and gives them back, until it is killed: for `tests/vault/kills.rs`.
//!
//! `secrets_child DIR SECRETS_TOML WORK`: `step` takes the secrets of a step, as if they were handed over, and takes them back; `recover` takes back
//! what one before has left, as a start of the agent does.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::expect_used)]

use ampoule_agent::audit::{AuditError, AuditEvent};
use ampoule_agent::audit_sink::{AuditSink, Refused};
use ampoule_agent::job::{Caller, Means};
use ampoule_agent::secrets::{Counts, Options, Secrets, SecretsFile, Step};
use ampoule_spec::{Delivery, JobId, Name, SandboxPath, Secret};
use futures_util::future::BoxFuture;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Says on its output what it is told.
struct Told;

impl AuditSink for Told {
    fn record(&self, refused: &Refused<'_>) {
        println!("refused {}", refused.reason);
    }

    fn write<'a>(&'a self, event: &'a AuditEvent) -> BoxFuture<'a, Result<(), AuditError>> {
        println!("{} {:?}", event.action.as_str(), event.detail);
        Box::pin(std::future::ready(Ok(())))
    }

    fn read<'a>(&'a self, event: &'a AuditEvent) -> BoxFuture<'a, Result<(), AuditError>> {
        self.write(event)
    }
}

fn step() -> Step {
    let name = |text: &str| Name::parse(text).unwrap();
    let secret = |text: &str| {
        let file = SandboxPath::parse(&format!("/run/secrets/{text}")).unwrap();
        Secret { name: name(text), delivery: Delivery::File(file), on_rotate: None }
    };
    Step {
        job: JobId::parse("01890a5d-ac96-774b-bcce-b302099a8057").unwrap(),
        project: name("app"),
        caller: Caller { means: Means::Peer, subject: "uid:7".to_owned(), claims: BTreeMap::new() },
        profile: name("hermetic"),
        is_signed: false,
        index: 0,
        name: name("publish"),
        limit: Duration::from_secs(120),
        secrets: ["npm", "db-user", "db-password"].map(secret).to_vec(),
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [dir, file, work] = args.as_slice() else { panic!("secrets_child DIR SECRETS_TOML WORK") };
    let secrets = Secrets::open(Options {
        dir: dir.into(),
        issuer: "https://builds.corp.example".to_owned(),
        credentials: None,
        audit: Arc::new(Told),
        counts: Counts::default(),
    });
    let secrets = secrets.unwrap();
    secrets.take(secrets.ready(&SecretsFile::load(file.as_ref()).unwrap()).unwrap());
    let step = step();
    if work == "step" {
        let acquired = secrets.acquire(&step, &CancellationToken::new()).await;
        let acquired = acquired.unwrap_or_else(|error| panic!("{}", error.reason()));
        assert_eq!(acquired.values.len(), step.secrets.len());
        secrets.handed_over(&acquired.ids().collect::<Vec<_>>()).await;
        println!("given");
    }
    secrets.open_grants().into_iter().for_each(|(id, _)| secrets.revoke(id));
    assert!(secrets.until_closed(&step.job, Duration::from_secs(30)).await, "{:?}", secrets.open_grants());
    println!("closed");
}
