//! Every way in, and what is refused.

use crate::identity::Signer;
use crate::vault::{Rig, Storage};
use crate::{STEP, client, config, meta, rig, server, text};
use ampoule_agent::vault::{Kind, Vault, VaultError};
use serde_json::json;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::Arc;

const JWT: &str = "login.jwt = { role = \"ampoule-agent\", audience = \"vault\" }\n\
                   step.jwt = { role = \"ampoule-step-app\", audience = \"vault\" }\n";

fn by(rig: &Rig, login: &str) -> Vault {
    Vault::new(config(&format!("{}{login}{STEP}", server(rig))), None).unwrap()
}

fn status(error: &VaultError) -> u16 {
    match error {
        VaultError::Login { status, .. } => *status,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jwt_login_of_agent_and_step_gives_what_the_claims_allow() {
    let rig = rig(Storage::Memory);
    let signer = Arc::new(Signer::new(&rig));
    let vault = Vault::new(config(&format!("{}{JWT}", server(&rig))), Some(signer.clone())).unwrap();
    vault.ready().await.unwrap();
    let minted = vault.login_step(None, &signer.step(&json!({}))).await.unwrap();
    assert_eq!(minted.policies, ["ampoule-step-app"]);
    let asked = std::time::Duration::from_secs(600);
    assert!(vault.renew_accessor(&minted.accessor, asked).await.unwrap().covers(asked));
    let info = vault.lookup_accessor(&minted.accessor).await.unwrap().unwrap();
    assert!(info.orphan && info.meta.get("job").is_some_and(|job| job == "0199"), "{info:?}");
    vault.revoke_accessor(&minted.accessor).await.unwrap();

    for (what, claims) in [
        ("audience", json!({"aud": "other"})),
        ("no audience", json!({"aud": null})),
        ("ref", json!({"ref": "refs/tags/v1"})),
        ("project", json!({"project": "other"})),
        ("over", json!({"exp": 1_700_000_000, "nbf": 1_600_000_000, "iat": 1_600_000_000})),
        ("issuer", json!({"iss": "https://other.example"})),
    ] {
        let error = vault.login_step(None, &signer.step(&claims)).await.unwrap_err();
        assert!((400..404).contains(&status(&error)), "{what}: {error}");
        assert!(!error.retryable() && !format!("{error:?}").contains("eyJ"), "{what}: {error:?}");
    }
    // A token of somebody else's key; and the agent's own token in a step's role.
    let other = Signer(rcgen_key());
    assert!(
        (400..404).contains(&status(&vault.login_step(None, &other.step(&json!({}))).await.unwrap_err()))
    );
    let own = signer.sign(&json!({"sub": "ampoule:agent", "aud": "vault"}));
    assert!((400..404).contains(&status(&vault.login_step(None, &own).await.unwrap_err())));
    // A step's token is not the agent's.
    let steps = vault.login_step(Some("ampoule-agent"), &signer.step(&json!({}))).await.unwrap_err();
    assert!((400..404).contains(&status(&steps)));
}

fn rcgen_key() -> rcgen::KeyPair {
    rcgen::KeyPair::generate().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn step_role_that_gives_long_or_batch_tokens_is_refused() {
    let rig = rig(Storage::Memory);
    let signer = Arc::new(Signer::new(&rig));
    let vault = Vault::new(config(&format!("{}{JWT}", server(&rig))), Some(signer.clone())).unwrap();
    for (change, reason) in [
        (json!({"token_ttl": "10m"}), "token_ttl = 15s"),
        (json!({"token_type": "batch"}), "token_type = service"),
    ] {
        let mut role = rig.example_json("jwt-role-step-app.json").unwrap();
        role.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        rig.ask("POST", "auth/jwt/role/other", Some(&role)).unwrap();
        let error = vault.login_step(Some("other"), &signer.step(&json!({}))).await.unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn approle_login_is_renewed_by_another_when_its_token_is_revoked() {
    let rig = rig(Storage::Memory);
    let vault = client(&rig);
    vault.mint(None, &meta()).await.unwrap();
    // All of the AppRole's tokens, from outside: the next call logs in once more.
    rig.ask("PUT", "sys/leases/revoke-prefix/auth/approle/login", None).unwrap();
    let minted = vault.mint(None, &meta()).await.unwrap();
    vault.revoke_accessor(&minted.accessor).await.unwrap();
    // A secret id that is none any more: the login is refused, and is not tried again.
    let id = text(&rig.ask("LIST", "auth/approle/role/ampoule/secret-id", None).unwrap(), "/data/keys/0");
    let destroy = json!({"secret_id_accessor": id});
    rig.ask("POST", "auth/approle/role/ampoule/secret-id-accessor/destroy", Some(&destroy)).unwrap();
    rig.ask("PUT", "sys/leases/revoke-prefix/auth/approle/login", None).unwrap();
    let begun = std::time::Instant::now();
    let error = vault.mint(None, &meta()).await.unwrap_err();
    assert!(status(&error) == 400 && !error.retryable(), "{error}");
    assert!(begun.elapsed() < std::time::Duration::from_secs(3));
    // As if a wrapping token were taken for the secret id.
    let said = error.to_string();
    assert!(
        said.contains("see login.approle.role_id and secret_id") && said.contains("wrapped = "),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn call_that_the_policy_denies_makes_one_more_login_and_no_pile_of_them() {
    let rig = rig(Storage::Memory);
    let vault = client(&rig);
    vault.ready().await.unwrap();
    let tokens = || {
        let keys = rig.ask("LIST", "auth/token/accessors", None).unwrap();
        keys.pointer("/data/keys").and_then(serde_json::Value::as_array).map_or(0, Vec::len)
    };
    let before = tokens();
    for _ in 0..5 {
        assert_eq!(vault.mint(Some("other"), &meta()).await.unwrap_err().kind(), Kind::Denied);
    }
    assert_eq!(tokens(), before, "the login before was ended");
    let audit = rig.audit().unwrap();
    let is_login = |entry: &&serde_json::Value| {
        entry.pointer("/request/path").is_some_and(|path| path == "auth/approle/login")
            && entry.pointer("/type").is_some_and(|kind| kind == "response")
    };
    assert_eq!(audit.iter().filter(is_login).count(), 2, "one more helps or none does");
    vault.mint(None, &meta()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn token_is_used_to_its_end_when_no_other_can_be_had() {
    let rig = rig(Storage::Memory);
    rig.ask("POST", "auth/approle/role/ampoule", Some(&json!({"token_ttl": "12s"}))).unwrap();
    let vault = client(&rig);
    let minted = vault.mint(None, &meta()).await.unwrap();
    let id = text(&rig.ask("LIST", "auth/approle/role/ampoule/secret-id", None).unwrap(), "/data/keys/0");
    let destroy = json!({"secret_id_accessor": id});
    rig.ask("POST", "auth/approle/role/ampoule/secret-id-accessor/destroy", Some(&destroy)).unwrap();
    // Past two thirds, and before the end: the login is refused, and what is to be revoked is revoked.
    tokio::time::sleep(std::time::Duration::from_secs(9)).await;
    vault.revoke_accessor(&minted.accessor).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    assert_eq!(status(&vault.revoke_accessor(&minted.accessor).await.unwrap_err()), 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificate_login_needs_the_certificate() {
    let rig = rig(Storage::Memory);
    rig.ask("POST", "sys/auth/cert", Some(&json!({"type": "cert"}))).unwrap();
    let role = json!({
        "certificate": std::fs::read_to_string(rig.ca()).unwrap(), "allowed_uri_sans": "spiffe://agent",
        "token_policies": "ampoule-agent", "token_no_default_policy": true, "token_ttl": "10m",
    });
    rig.ask("POST", "auth/cert/certs/ampoule", Some(&role)).unwrap();
    let login = |pair: &crate::certificates::Pair| {
        let (certificate, key) = (&pair.certificate, &pair.key);
        format!("login.cert = {{ role = \"ampoule\", certificate = {certificate:?}, key = {key:?} }}\n")
    };
    let good = by(&rig, &login(&rig.client_certificate("spiffe://agent").unwrap()));
    let minted = good.mint(None, &meta()).await.unwrap();
    good.revoke_accessor(&minted.accessor).await.unwrap();
    good.log_out().await.unwrap();

    let at = rig.path("other");
    let wrong = rig.authority().client("spiffe://other", &at).unwrap();
    assert!((400..404).contains(&status(&by(&rig, &login(&wrong)).ready().await.unwrap_err())));
    let over = rig.authority().expired("spiffe://agent", &at).unwrap();
    let error = by(&rig, &login(&over)).ready().await.unwrap_err();
    assert!(error.kind() == Kind::Login || error.kind() == Kind::Unavailable, "{error}");
    let stranger = crate::certificates::Authority::new("stranger").unwrap();
    let pair = stranger.client("spiffe://agent", &at).unwrap();
    assert!((400..404).contains(&status(&by(&rig, &login(&pair)).ready().await.unwrap_err())));
}

#[tokio::test(flavor = "multi_thread")]
async fn token_file_is_read_as_its_owners_alone_and_its_token_is_not_ended() {
    let rig = rig(Storage::Memory);
    let made = json!({"policies": ["ampoule-agent"], "ttl": "10m"});
    let made = rig.ask("POST", "auth/token/create", Some(&made)).unwrap();
    let file = rig.private("token", text(&made, "/auth/client_token")).unwrap();
    let login = format!("login.token = {{ file = {file:?} }}\n");
    let vault = by(&rig, &login);
    let minted = vault.mint(None, &meta()).await.unwrap();
    vault.revoke_accessor(&minted.accessor).await.unwrap();
    vault.log_out().await.unwrap();
    vault.ready().await.unwrap();

    rig.private("token", "s.not-one-of-this-server").unwrap();
    assert_eq!(status(&by(&rig, &login).ready().await.unwrap_err()), 403);
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = by(&rig, &login).ready().await.unwrap_err();
    assert!(error.to_string().contains("chmod 600"), "{error}");
}

/// What a cluster's API says of a service account's token when it is asked (`TokenReview`): that it knows this one alone.
fn reviewer(known: String) -> u16 {
    let listener = TcpListener::bind((crate::vault::LOOPBACK, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let (mut line, mut bytes) = (String::new(), 0);
            while line != "\r\n" {
                line.clear();
                stream.read_line(&mut line).unwrap();
                let length = line.to_ascii_lowercase();
                if let Some(length) = length.strip_prefix("content-length:") {
                    bytes = length.trim().parse().unwrap();
                }
            }
            let mut body = vec![0; bytes];
            stream.read_exact(&mut body).unwrap();
            let asked: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let status = match asked["spec"]["token"] == known.as_str() {
                true => {
                    let user = json!({"username": "system:serviceaccount:ci:ampoule", "uid": "u1"});
                    json!({"authenticated": true, "audiences": asked["spec"]["audiences"], "user": user})
                }
                false => json!({"authenticated": false, "error": "nobody knows it"}),
            };
            let review =
                json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": status});
            let review = review.to_string();
            let head = "HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nConnection: close";
            write!(stream.get_mut(), "{head}\r\nContent-Length: {}\r\n\r\n{review}", review.len()).unwrap();
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn kubernetes_login_is_by_the_service_accounts_token_that_the_cluster_knows() {
    let rig = rig(Storage::Memory);
    rig.ask("POST", "sys/auth/kubernetes", Some(&json!({"type": "kubernetes"}))).unwrap();
    let account = |uid: &str| {
        Signer(rcgen_key()).sign(&json!({
            "sub": "system:serviceaccount:ci:ampoule", "aud": ["vault"],
            "kubernetes.io": {"namespace": "ci", "serviceaccount": {"name": "ampoule", "uid": uid}},
        }))
    };
    let known = account("u1");
    let port = reviewer(known.expose_text().unwrap().to_owned());
    let cluster = json!({
        "kubernetes_host": format!("http://127.0.0.1:{port}"), "disable_local_ca_jwt": true,
        "kubernetes_ca_cert": std::fs::read_to_string(rig.ca()).unwrap(),
    });
    rig.ask("POST", "auth/kubernetes/config", Some(&cluster)).unwrap();
    for (role, name) in [("ampoule", "ampoule"), ("other", "somebody-else")] {
        let role_of = json!({
            "bound_service_account_names": name, "bound_service_account_namespaces": "ci", "token_policies": "ampoule-agent",
        });
        rig.ask("POST", &format!("auth/kubernetes/role/{role}"), Some(&role_of)).unwrap();
    }
    let login = |file: &std::path::Path, role: &str| {
        format!("login.kubernetes = {{ role = {role:?}, token = {file:?} }}\n")
    };
    let file = rig.private("known", known.expose()).unwrap();
    let vault = by(&rig, &login(&file, "ampoule"));
    vault.ready().await.unwrap();
    let minted = vault.mint(None, &meta()).await.unwrap();
    vault.revoke_accessor(&minted.accessor).await.unwrap();
    // A role of another account's, and a token that the cluster does not know.
    let forged = rig.private("forged", account("u1").expose()).unwrap();
    for (file, role) in [(&file, "other"), (&forged, "ampoule")] {
        let error = by(&rig, &login(file, role)).ready().await.unwrap_err();
        assert!((400..404).contains(&status(&error)), "{role}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn namespace_is_another_world() {
    let rig = rig(Storage::Memory);
    rig.ask("POST", "sys/namespaces/team", Some(&json!({}))).unwrap();
    let inside = |method: &str, path: &str, body: Option<&serde_json::Value>| {
        let (status, answer) =
            rig.ask_as(rig.root_token(), &["X-Vault-Namespace: team"], method, path, body).unwrap();
        assert!((200..300).contains(&status), "{path}: {status} {answer}");
        answer
    };
    inside("POST", "sys/auth/there", Some(&json!({"type": "approle"})));
    inside("POST", "auth/there/role/ampoule", Some(&json!({"token_ttl": "5m"})));
    let id = text(&inside("GET", "auth/there/role/ampoule/role-id", None), "/data/role_id");
    let made = inside("POST", "auth/there/role/ampoule/secret-id", Some(&json!({})));
    let file = rig.private("inside", text(&made, "/data/secret_id")).unwrap();
    let login = format!("login.approle = {{ mount = \"there\", role_id = {id:?}, secret_id = {file:?} }}\n");
    let named = config(&format!("namespace = \"team\"\n{}{login}{STEP}", server(&rig)));
    Vault::new(named, None).unwrap().ready().await.unwrap();
    let error = by(&rig, &login).ready().await.unwrap_err();
    assert!((400..405).contains(&status(&error)), "the namespace was not sent: {error}");
}
