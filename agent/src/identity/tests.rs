use super::*;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use std::future::Future;
use std::pin::Pin;

/// An issuer's key and its public half.
pub(crate) struct Signer {
    key: EncodingKey,
    kid: String,
}

impl Signer {
    pub(crate) fn new(kid: &str) -> Self {
        let pem = rcgen::KeyPair::generate().unwrap().serialize_pem();
        Self { key: EncodingKey::from_ec_pem(pem.as_bytes()).unwrap(), kid: kid.to_owned() }
    }

    pub(crate) fn jwks(signers: &[&Self]) -> Vec<u8> {
        let keys = signers.iter().map(|signer| {
            let mut key = Jwk::from_encoding_key(&signer.key, Algorithm::ES256).unwrap();
            key.common.key_id = Some(signer.kid.clone());
            key
        });
        serde_json::to_vec(&JwkSet { keys: keys.collect() }).unwrap()
    }

    pub(crate) fn sign(&self, claims: &Value) -> String {
        self.sign_with(Header::new(Algorithm::ES256), claims)
    }

    fn sign_with(&self, mut header: Header, claims: &Value) -> String {
        header.kid = Some(self.kid.clone());
        jsonwebtoken::encode(&header, claims, &self.key).unwrap()
    }
}

struct Nowhere;

impl FetchKeys for Nowhere {
    fn fetch<'a>(
        &'a self,
        _: &'a str,
        _: usize,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<u8>, String>> + Send + 'a>> {
        Box::pin(std::future::ready(Err("nowhere".to_owned())))
    }
}

fn good() -> Value {
    let now = now();
    json!({ "iss": "https://i.example", "aud": "ampouled", "sub": "ci", "exp": now + 300, "nbf": now - 10, "repository": "corp/app", "other": 1 })
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = good();
    match value {
        Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
        value => claims[name] = value,
    }
    claims
}

/// Identities with one issuer, whose keys are these, and one certificate name.
fn identities(dir: &Path, keys: &[u8]) -> Identities {
    std::fs::write(dir.join("keys.json"), keys).unwrap();
    let text = "format = 1\ncertificates = [\"dns:ci.corp.example\"]\n[[tokens]]\nissuer = \"https://i.example\"\n\
        audience = \"ampouled\"\nalgorithms = [\"ES256\"]\njwks = \"keys.json\"\nclaims = [\"repository\"]\n";
    std::fs::write(dir.join("identities.toml"), text).unwrap();
    Identities::open(&dir.join("identities.toml"), Arc::new(Nowhere)).unwrap()
}

async fn who(of: &Identities, token: &str) -> Result<Caller, Unidentified> {
    of.who(&Shown::Nothing, &[format!("Bearer {token}").as_bytes()]).await
}

#[tokio::test]
async fn token_of_a_known_issuer_is_a_caller_with_the_claims_that_are_handed_on() {
    let dir = tempfile::tempdir().unwrap();
    let signer = Signer::new("a");
    let known = identities(dir.path(), &Signer::jwks(&[&signer]));
    let caller = who(&known, &signer.sign(&good())).await.unwrap();
    assert_eq!((caller.means, caller.subject.as_str()), (Means::Token, "https://i.example#ci"));
    let claims: Vec<_> = caller.claims.keys().map(String::as_str).collect();
    assert_eq!(claims, ["iss", "repository", "sub"]);
    let several = who(&known, &signer.sign(&with("aud", json!(["x", "ampouled"])))).await;
    assert!(several.is_ok());
}

#[tokio::test]
async fn token_that_is_wrong_in_one_thing_is_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let (signer, other) = (Signer::new("a"), Signer::new("a"));
    let known = identities(dir.path(), &Signer::jwks(&[&signer]));
    let now = now();
    for (name, value) in [
        ("iss", json!("https://evil.example")),
        ("iss", json!("https://i.example/")),
        ("iss", Value::Null),
        ("aud", json!("other")),
        ("aud", json!(["other"])),
        ("aud", json!([])),
        ("aud", Value::Null),
        ("sub", Value::Null),
        ("sub", json!("")),
        ("sub", json!("a\nb")),
        ("exp", json!(now - 100)),
        ("exp", json!((now + 300).to_string())),
        ("exp", json!(now as f64 + 1e30)),
        ("exp", Value::Null),
        ("exp", json!(now + 100_000)),
        ("nbf", json!(now + 100)),
        ("nbf", json!("0")),
        ("nbf", Value::Null),
    ] {
        let claims = with(name, value.clone());
        assert!(who(&known, &signer.sign(&claims)).await.is_err(), "{name} {value}");
    }
    let token = signer.sign(&good());
    let parts: Vec<&str> = token.split('.').collect();
    let mut critical = Header::new(Algorithm::ES256);
    critical.crit = Some(vec!["b64".to_owned()]);
    let b64 = |text: &str| URL_SAFE_NO_PAD.encode(text);
    for (what, token) in [
        ("another key with the same id", other.sign(&good())),
        ("no signature", format!("{}.{}.", parts[0], parts[1])),
        ("alg none", format!("{}.{}.", b64(r#"{"alg":"none","typ":"JWT"}"#), parts[1])),
        ("alg None", format!("{}.{}.", b64(r#"{"alg":"None"}"#), parts[1])),
        (
            "a secret's algorithm",
            format!("{}.{}.{}", b64(r#"{"alg":"HS256","kid":"a"}"#), parts[1], parts[2]),
        ),
        ("another curve", format!("{}.{}.{}", b64(r#"{"alg":"ES384","kid":"a"}"#), parts[1], parts[2])),
        ("another key id", Signer { kid: "b".to_owned(), ..Signer::new("b") }.sign(&good())),
        ("a critical header", signer.sign_with(critical, &good())),
        (
            "other claims under the signature",
            format!("{}.{}.{}", parts[0], b64(&with("sub", json!("root")).to_string()), parts[2]),
        ),
        ("too long", format!("{token}{}", "a".repeat(17 << 10))),
        ("no token", "a.b.c".to_owned()),
        ("two parts", format!("{}.{}", parts[0], parts[1])),
    ] {
        assert!(who(&known, &token).await.is_err(), "{what}");
    }
    assert!(who(&known, &token).await.is_ok(), "the good one still is");
}

#[tokio::test]
async fn bad_token_is_not_saved_by_what_the_connection_has_shown() {
    let dir = tempfile::tempdir().unwrap();
    let signer = Signer::new("a");
    let known = identities(dir.path(), &Signer::jwks(&[&signer]));
    let der = certificate_tests::certificate(&["dns:ci.corp.example"]);
    let shown = Shown::Certificate(Arc::new(Certificate::read(&der).unwrap()));
    assert_eq!(known.who(&shown, &[]).await.unwrap().subject, "dns:ci.corp.example");
    assert_eq!(known.who(&Shown::Peer(7), &[]).await.unwrap().subject, "uid:7");
    assert!(known.who(&Shown::Nothing, &[]).await.is_err());
    let good = format!("Bearer {}", signer.sign(&good()));
    for headers in [
        &[b"Bearer x".as_slice()][..],
        &[b"Basic eDp5"],
        &[b""],
        &[b"Bearer "],
        &[good.as_bytes(), good.as_bytes()],
    ] {
        assert!(known.who(&shown, headers).await.is_err());
        assert!(known.who(&Shown::Peer(0), headers).await.is_err());
    }
    assert_eq!(known.who(&Shown::Peer(0), &[good.as_bytes()]).await.unwrap().subject, "https://i.example#ci");
}

#[tokio::test]
async fn reload_that_fails_keeps_the_last_good_identities() {
    let dir = tempfile::tempdir().unwrap();
    let signer = Signer::new("a");
    let known = identities(dir.path(), &Signer::jwks(&[&signer]));
    std::fs::write(dir.path().join("identities.toml"), "format = 1\nmore = 2\n").unwrap();
    assert!(known.reload().is_err());
    assert!(who(&known, &signer.sign(&good())).await.is_ok());
    std::fs::write(dir.path().join("identities.toml"), "format = 1\n").unwrap();
    known.reload().unwrap();
    assert!(who(&known, &signer.sign(&good())).await.is_err());
}
