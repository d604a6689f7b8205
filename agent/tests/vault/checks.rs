//! `ampoule secrets check` against a real server: the documented policies are enough, and what is less or more is said.

use crate::kills::step_tokens;
use crate::vault::{self, Rig, Storage};
use crate::{STEP, approle, rig, server};
use ampoule_agent::audit::{Action, AuditError, AuditEvent};
use ampoule_agent::audit_sink::{AuditSink, Refused};
use ampoule_agent::secrets::{Checked, Counts, FindingState, Options, Secrets, SecretsFile};
use futures_util::future::BoxFuture;
use serde_json::json;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Keeps what it is told.
#[derive(Default)]
struct Heard(Mutex<Vec<AuditEvent>>);

impl AuditSink for Heard {
    fn record(&self, _: &Refused<'_>) {}

    fn write<'a>(&'a self, event: &'a AuditEvent) -> BoxFuture<'a, Result<(), AuditError>> {
        self.0.lock().unwrap().push(event.clone());
        Box::pin(std::future::ready(Ok(())))
    }
}

fn open(dir: &Path, rig: &Rig, step: &str, heard: &Arc<Heard>) -> Arc<Secrets> {
    let options = Options {
        dir: dir.join("secrets"),
        issuer: "https://builds.test.example".to_owned(),
        credentials: None,
        audit: heard.clone(),
        counts: Counts::default(),
    };
    let secrets = Secrets::open(options).unwrap();
    rig.private("local", "of this host alone").unwrap();
    take(&secrets, rig, &approle(rig), step);
    secrets
}

fn take(secrets: &Secrets, rig: &Rig, login: &str, step: &str) {
    let local = "[[secret]]\nproject = \"app\"\nname = \"local\"\nfile = \"local\"\n";
    let text = vault::secrets_toml(&format!("{}{login}{step}", server(rig))) + local;
    let file = SecretsFile::parse(&text, &rig.path("")).unwrap();
    secrets.take(secrets.ready(&file).unwrap());
}

/// What was found, of a server and of each secret.
fn states(checked: &Checked) -> Vec<(String, FindingState)> {
    let servers = checked.servers.iter().flat_map(|of| &of.findings);
    let servers = servers.map(|of| (of.what.to_owned(), of.state));
    servers.chain(checked.rules.iter().map(|of| (of.name.to_string(), of.finding.state))).collect()
}

fn state(checked: &Checked, what: &str) -> FindingState {
    let found = states(checked).into_iter().find(|(of, _)| of == what);
    found.unwrap_or_else(|| panic!("no {what}: {checked:?}")).1
}

#[tokio::test(flavor = "multi_thread")]
async fn documented_policies_are_enough_and_what_is_less_or_more_is_said() {
    use FindingState::{Failed, Ok as Good, Unknown, Warning};
    let mut rig = rig(Storage::Raft);
    let (dir, heard) = (tempfile::tempdir().unwrap(), Arc::new(Heard::default()));
    let secrets = open(dir.path(), &rig, STEP, &heard);
    let look = async || {
        let checked = secrets.look_at_servers(None).await.unwrap();
        assert!(step_tokens(&rig).is_empty(), "a token of a check is left");
        assert!(!format!("{checked:?}").contains("canary"), "{checked:?}");
        checked
    };
    let checked = look().await;
    assert!(states(&checked).iter().all(|(_, state)| *state == Good), "{checked:?}");
    assert_eq!((checked.servers.len(), checked.rules.len()), (1, 4));
    {
        let heard = heard.0.lock().unwrap();
        let [event] = heard.as_slice() else { panic!("{heard:?}") };
        assert_eq!((event.action, event.detail["server"].as_str()), (Action::SecretsChecked, "bao"));
        assert_eq!((event.detail["accessor_sha256"].len(), event.detail["revoked"].as_str()), (64, "true"));
    }

    let policy = |name: &str, change: fn(String) -> String| {
        let text = std::fs::read_to_string(crate::repository().join(format!("examples/vault/{name}.hcl")));
        let body = json!({"policy": change(text.unwrap())});
        rig.ask("PUT", &format!("sys/policies/acl/{name}"), Some(&body)).unwrap();
    };
    // The agent's policy with less, with more, and without the right to ask.
    policy("ampoule-agent", |text| text.replace("sys/leases/revoke", "sys/leases/other"));
    assert_eq!(state(&look().await, "policy"), Failed);
    policy("ampoule-agent", |text| text + "path \"secret/*\" { capabilities = [\"read\"] }\n");
    let checked = look().await;
    assert_eq!((state(&checked, "policy"), state(&checked, "excess")), (Good, Warning));
    policy("ampoule-agent", |text| text.replace("sys/capabilities-self", "sys/other"));
    assert_eq!(state(&look().await, "policy"), Unknown);
    rig.policy("ampoule-agent").unwrap();
    // The same of the steps'.
    policy("ampoule-step-app", |text| text.replace("database/creds/app", "database/creds/other"));
    let checked = look().await;
    assert_eq!((state(&checked, "npm"), state(&checked, "db-user")), (Good, Failed));
    policy("ampoule-step-app", |text| text.replace("[\"read\"]", "[\"read\", \"delete\"]"));
    assert_eq!(state(&look().await, "npm"), Warning);
    policy("ampoule-step-app", |text| text.replace("sys/capabilities-self", "sys/other"));
    assert_eq!(state(&look().await, "npm"), Unknown);
    rig.policy("ampoule-step-app").unwrap();
    // A role whose tokens would die with the agent's own, or cannot be revoked.
    let unfit = [
        json!({"orphan": false}),
        json!({"renewable": false}),
        json!({"token_type": "batch", "renewable": false, "token_explicit_max_ttl": 0}),
    ];
    for change in unfit {
        let mut role = rig.example_json("token-role-app.json").unwrap();
        role.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        rig.ask("POST", "auth/token/roles/ampoule-step-app", Some(&role)).unwrap();
        let checked = secrets.look_at_servers(None).await.unwrap();
        assert_eq!(
            (state(&checked, "step"), state(&checked, "npm")),
            (Failed, Unknown),
            "{change}: {checked:?}"
        );
    }
    let role = rig.example_json("token-role-app.json").unwrap();
    rig.ask("POST", "auth/token/roles/ampoule-step-app", Some(&role)).unwrap();
    // Another secret id; steps that log in by themselves; a file that is gone; a server that is.
    let login = approle(&rig);
    rig.private("secret-id", "00000000-0000-0000-0000-000000000000").unwrap();
    take(&secrets, &rig, &login, STEP);
    let checked = secrets.look_at_servers(None).await.unwrap();
    assert_eq!((state(&checked, "login"), state(&checked, "step")), (Failed, Unknown), "{checked:?}");
    take(&secrets, &rig, &approle(&rig), "step.jwt = { role = \"r\", audience = \"vault\" }\n");
    std::fs::remove_file(rig.path("local")).unwrap();
    let checked = secrets.look_at_servers(None).await.unwrap();
    let found = (state(&checked, "step"), state(&checked, "npm"), state(&checked, "local"));
    assert_eq!(found, (Unknown, Unknown, Failed), "{checked:?}");
    // Another authority's certificate.
    let other = rig.path("other.pem");
    std::fs::write(&other, crate::certificates::Authority::new("another").unwrap().pem()).unwrap();
    let good = server(&rig);
    let text =
        vault::secrets_toml(&format!("{}{}{STEP}", good.replace("/ca.pem", "/other.pem"), approle(&rig)));
    let file = SecretsFile::parse(&text, &rig.path("")).unwrap();
    secrets.take(secrets.ready(&file).unwrap());
    let checked = secrets.look_at_servers(None).await.unwrap();
    let reachable = &checked.servers[0].findings[0];
    assert!(reachable.state == Failed && reachable.detail.contains("UnknownIssuer"), "{checked:?}");
    take(&secrets, &rig, &approle(&rig), STEP);
    rig.kill().unwrap();
    let begun = std::time::Instant::now();
    let checked = secrets.look_at_servers(None).await.unwrap();
    assert_eq!((state(&checked, "reachable"), state(&checked, "login")), (Failed, Unknown), "{checked:?}");
    assert!(checked.servers[0].findings[0].detail.contains("Connection refused"), "{checked:?}");
    assert!(checked.servers[0].findings[0].passes && begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
}
