use super::*;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use std::os::unix::fs::MetadataExt;

const NOW: u64 = 1_800_000_000;
const AUDIENCE: &str = "https://vault.corp.example";

fn token(identity: &Identity, now: u64) -> String {
    let name = |text| Name::parse(text).unwrap();
    let (step, project, profile) = (name("deploy"), name("web"), name("hermetic"));
    let job = JobId::parse("01890a5d-ac96-774b-bcce-b302099a8057").unwrap();
    let reference = Some("refs/heads/main");
    let of =
        Workload { job: &job, step: &step, project: &project, profile: &profile, caller: "i#ci", reference };
    String::from_utf8(identity.token(&of, AUDIENCE, now).unwrap().expose().to_vec()).unwrap()
}

/// Verifies it as a server does: by the published keys alone.
fn verify(identity: &Identity, token: &str, audience: &str) -> Result<serde_json::Value, String> {
    let keys: JwkSet = serde_json::from_str(&identity.jwks()).unwrap();
    let kid = decode_header(token).unwrap().kid.unwrap();
    let key = keys.find(&kid).ok_or("no such key")?;
    let mut how = Validation::new(Algorithm::ES256);
    how.set_audience(&[audience]);
    how.set_issuer(&["https://builds.corp.example"]);
    how.set_required_spec_claims(&["exp", "nbf", "aud", "iss", "sub"]);
    (how.validate_exp, how.validate_nbf) = (false, false);
    let decoded = decode(token, &DecodingKey::from_jwk(key).unwrap(), &how);
    decoded.map(|token| token.claims).map_err(|e| e.to_string())
}

#[test]
fn token_says_which_step_for_five_minutes_and_one_audience_and_verifies_by_what_is_published() {
    let dir = tempfile::tempdir().unwrap();
    let identity = Identity::open(&dir.path().join("identity"), "https://builds.corp.example", NOW).unwrap();
    let text = token(&identity, NOW);
    let claims = verify(&identity, &text, AUDIENCE).unwrap();
    let of = |name: &str| claims[name].as_str().unwrap().to_owned();
    assert_eq!(
        ["sub", "job", "step", "project", "profile", "caller", "ref"].map(of),
        [
            "project:web",
            "01890a5d-ac96-774b-bcce-b302099a8057",
            "deploy",
            "web",
            "hermetic",
            "i#ci",
            "refs/heads/main"
        ]
    );
    assert_eq!(
        (&claims["iat"], &claims["nbf"], &claims["exp"]),
        (&NOW.into(), &(NOW - 10).into(), &(NOW + 300).into())
    );
    assert!(verify(&identity, &text, "https://other").is_err());
    let forged = format!("{}A{}", &text[..text.len() - 8], &text[text.len() - 7..]);
    assert!(forged == text || verify(&identity, &forged, AUDIENCE).is_err());
    assert_ne!(verify(&identity, &token(&identity, NOW), AUDIENCE).unwrap()["jti"], claims["jti"]);
    // The key is nobody else's, and what is published has nothing of it.
    for entry in std::fs::read_dir(dir.path().join("identity")).unwrap() {
        let entry = entry.unwrap();
        let is_key = entry.path().extension().is_some_and(|end| end == "pem");
        assert_eq!(entry.metadata().unwrap().mode() & 0o777 == 0o600, is_key, "{:?}", entry.path());
    }
    let published = std::fs::read_to_string(dir.path().join("identity/jwks.json")).unwrap();
    assert_eq!(published, identity.jwks());
    assert!(!published.contains("\"d\""));
    let again = Identity::open(&dir.path().join("identity"), "https://builds.corp.example", NOW + 5).unwrap();
    assert_eq!(again.jwks(), published, "the same key after a restart");
}

#[test]
fn next_key_is_published_before_it_signs_and_the_last_one_after() {
    let day = |days: u64| NOW + days * DAY_S;
    let dir = tempfile::tempdir().unwrap();
    let identity = Identity::open(dir.path(), "https://builds.corp.example", NOW).unwrap();
    let kid = |days| decode_header(token(&identity, day(days))).unwrap().kid.unwrap();
    let count = || serde_json::from_str::<JwkSet>(&identity.jwks()).unwrap().keys.len();
    let first = kid(0);
    for (days, keys, is_first) in
        [(0, 1, true), (89, 1, true), (90, 2, true), (96, 2, true), (97, 2, false), (98, 1, false)]
    {
        let before = token(&identity, day(days));
        identity.look(day(days)).unwrap();
        assert_eq!((count(), kid(days) == first), (keys, is_first), "day {days}");
        if days < 98 {
            verify(&identity, &before, AUDIENCE).unwrap();
        }
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "the key that is over is gone");
}

#[test]
fn agent_that_was_away_signs_with_what_is_published() {
    let (a, b) = (NOW, NOW + 90 * DAY_S);
    assert_eq!(plan(&[], NOW), Plan { make: true, remove: vec![], sign: None });
    assert_eq!(plan(&[a], a + 500 * DAY_S), Plan { make: true, remove: vec![], sign: Some(a) });
    assert_eq!(plan(&[a, b], b), Plan { make: false, remove: vec![], sign: Some(a) });
    // A clock that was put back makes nothing and removes nothing.
    assert_eq!(plan(&[a, b], a - DAY_S), Plan { make: false, remove: vec![], sign: Some(a) });
    assert_eq!(plan(&[a, b], b + LEAD_S + AFTER_S), Plan { make: false, remove: vec![a], sign: Some(b) });
}

#[test]
fn key_that_others_can_read_is_not_used() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    drop(Identity::open(dir.path(), "https://i", NOW).unwrap());
    let key = dir.path().join(format!("{NOW}.pem"));
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o640)).unwrap();
    assert!(Identity::open(dir.path(), "https://i", NOW).is_err());
}
