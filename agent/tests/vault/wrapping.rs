//! What came wrapped is unwrapped once, and only if it was made where it must have been made.

use crate::vault::{Rig, Storage};
use crate::{STEP, client, config, meta, rig, server, text};
use ampoule_agent::vault::{Kind, Secret, Vault, Wrapped};
use serde_json::json;

pub(crate) const PATH: &str = "auth/approle/role/ampoule/secret-id";

pub(crate) fn wrap(rig: &Rig) -> Wrapped {
    let made =
        rig.ask_as(rig.root_token(), &["X-Vault-Wrap-TTL: 5m"], "POST", PATH, Some(&json!({}))).unwrap();
    let token = Secret::new(text(&made.1, "/wrap_info/token").into_bytes());
    Wrapped { token, creation_path: PATH.to_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrapped_answer_is_unwrapped_once_and_the_second_time_is_a_security_event() {
    let rig = rig(Storage::Memory);
    let vault = client(&rig);
    let wrapped = wrap(&rig);
    assert!(vault.unwrap(&wrapped).await.unwrap().field("secret_id").is_some());
    let error = vault.unwrap(&wrapped).await.unwrap_err();
    assert!(error.is_security_event() && error.kind() == Kind::Intercepted && !error.retryable(), "{error}");
    assert!(error.to_string().contains("possibly intercepted"));
}

#[tokio::test(flavor = "multi_thread")]
async fn answer_that_somebody_wrapped_again_is_not_unwrapped() {
    let rig = rig(Storage::Memory);
    let vault = client(&rig);
    // Whoever took it wraps what was in it again, and hands that on.
    let taken = vault.unwrap(&wrap(&rig)).await.unwrap();
    let body: serde_json::Value = serde_json::from_slice(taken.whole().expose()).unwrap();
    let again =
        rig.ask_as(rig.root_token(), &["X-Vault-Wrap-TTL: 5m"], "POST", "sys/wrapping/wrap", Some(&body));
    let token = text(&again.unwrap().1, "/wrap_info/token");
    let wrapped = Wrapped { token: Secret::new(token.clone().into_bytes()), creation_path: PATH.to_owned() };
    let error = vault.unwrap(&wrapped).await.unwrap_err();
    assert!(error.is_security_event() && error.to_string().contains("sys/wrapping/wrap"), "{error}");
    // It was not unwrapped: it is evidence.
    let (status, _) =
        rig.ask_as("", &[], "POST", "sys/wrapping/lookup", Some(&json!({"token": token}))).unwrap();
    assert_eq!(status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn approle_with_a_wrapped_secret_id_logs_in_again_without_unwrapping_again() {
    let rig = rig(Storage::Memory);
    let id = text(&rig.ask("GET", "auth/approle/role/ampoule/role-id", None).unwrap(), "/data/role_id");
    let file = rig.private("wrapped", wrap(&rig).token.expose()).unwrap();
    let login =
        format!("login.approle = {{ role_id = {id:?}, secret_id = {file:?}, wrapped = {PATH:?} }}\n{STEP}");
    let vault = Vault::new(config(&format!("{}{login}", server(&rig))), None).unwrap();
    vault.mint(None, &meta()).await.unwrap();
    rig.ask("PUT", "sys/leases/revoke-prefix/auth/approle/login", None).unwrap();
    vault.mint(None, &meta()).await.unwrap();
    // Another process finds it spent.
    let other = Vault::new(config(&format!("{}{login}", server(&rig))), None).unwrap();
    assert!(other.ready().await.unwrap_err().is_security_event());
    // A new one in the file is unwrapped in its stead.
    rig.private("wrapped", wrap(&rig).token.expose()).unwrap();
    other.ready().await.unwrap();
}
