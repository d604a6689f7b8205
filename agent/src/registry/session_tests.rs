use super::super::testing::{Answer, Asked, Server, access, wait};
use super::super::{AuthFile, resolve_tag};
use super::*;
use ampoule_spec::{Code, Sha256};
use base64::Engine as _;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, OnceLock};

/// What must appear in no message: the password, and both of what it is sent as.
const PASSWORD: &str = "s3cret-p4ss";
const TOKEN: &str = "t0ken-of-the-service";
const DOCUMENT: &str = "{\"schemaVersion\":2}";

/// A file with these credentials for a host.
fn auth_file(host: &str, entry: &str) -> AuthFile {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("auth.json");
    std::fs::write(&path, format!("{{\"auths\": {{\"{host}\": {entry}}}}}")).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    AuthFile::read(&path).unwrap()
}

fn password(host: &str) -> AuthFile {
    auth_file(host, &format!("{{\"auth\": \"{}\"}}", base64_of(&format!("me:{PASSWORD}"))))
}

fn base64_of(text: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(text)
}

fn resolve(server: &Server, auth: Option<AuthFile>) -> Result<Sha256, InputError> {
    // Twice: its token service is not below /v2/.
    resolve_with(server, &[server.host()], auth)
}

fn resolve_with(server: &Server, others: &[&str], auth: Option<AuthFile>) -> Result<Sha256, InputError> {
    let hosts: Vec<&str> = std::iter::once(server.host()).chain(others.iter().copied()).collect();
    wait(resolve_tag(&access(&hosts, auth), &server.reference("team/base:v1")))
}

/// Holds an error against what must be in it and what never may.
fn says(error: &InputError, code: Code, text: &str) {
    let mut whole = format!("{error} {error:?}");
    let mut cause = std::error::Error::source(error);
    while let Some(one) = cause {
        whole.push_str(&one.to_string());
        cause = one.source();
    }
    assert_eq!(error.code(), code, "{whole}");
    assert!(whole.contains(text), "{text}: {whole}");
    for secret in [PASSWORD, TOKEN, &base64_of(&format!("me:{PASSWORD}"))] {
        assert!(!whole.contains(secret), "{whole}");
    }
}

/// A registry that wants this authorization, and asks for it so.
fn guarded(wanted: String, challenge: String) -> impl Fn(&Asked) -> Answer + Send + Sync + 'static {
    move |asked| match asked.header("authorization") == wanted {
        true => Answer::new("200 OK", DOCUMENT),
        false => {
            Answer::new(format!("401 Unauthorized\r\n{challenge}"), r#"{"errors":[{"code":"UNAUTHORIZED"}]}"#)
        }
    }
}

#[test]
fn basic_credentials_are_shown_once_asked_for() {
    let wanted = format!("Basic {}", base64_of(&format!("me:{PASSWORD}")));
    let server = Server::start(guarded(wanted, "www-authenticate: Basic realm=\"r\"".to_owned()));
    assert!(resolve(&server, Some(password(server.host()))).is_ok());
    let shown: Vec<bool> = server.asked().iter().map(|a| !a.header("authorization").is_empty()).collect();
    assert_eq!(shown, [false, true]);
    says(&resolve(&server, None).unwrap_err(), Code::InputSourceDenied, "--registry-auth FILE");
    says(
        &resolve(&server, Some(password("other.example"))).unwrap_err(),
        Code::InputSourceDenied,
        "wants credentials",
    );
    let wrong = auth_file(server.host(), &format!("{{\"auth\": \"{}\"}}", base64_of("me:other")));
    says(
        &resolve(&server, Some(wrong)).unwrap_err(),
        Code::InputSourceDenied,
        "does not accept the credentials",
    );
    let token = auth_file(server.host(), "{\"identitytoken\": \"x\"}");
    says(&resolve(&server, Some(token)).unwrap_err(), Code::InputSourceDenied, "asks for a password");
}

/// A registry whose own host hands out tokens at `/token`.
fn with_tokens(token: fn(&Asked) -> Answer) -> Server {
    let host = Arc::new(OnceLock::<String>::new());
    let own = Arc::clone(&host);
    let server = Server::start(move |asked| {
        if asked.path.starts_with("/token") {
            return token(asked);
        }
        let realm = format!("http://{}/token?kept=1", own.get().unwrap());
        let challenge =
            format!("www-authenticate: Bearer realm=\"{realm}\",service=\"a registry\",scope=\"all\"");
        guarded(format!("Bearer {TOKEN}"), challenge)(asked)
    });
    host.set(server.host().to_owned()).unwrap();
    server
}

#[test]
fn token_is_fetched_for_this_repository_and_to_pull_alone() {
    for field in ["token", "access_token"] {
        let answer: fn(&Asked) -> Answer = match field {
            "token" => |_| Answer::new("200 OK", format!("{{\"token\": \"{TOKEN}\"}}")),
            _ => |_| Answer::new("200 OK", format!("{{\"access_token\": \"{TOKEN}\", \"expires_in\": 60}}")),
        };
        let server = with_tokens(answer);
        assert!(resolve(&server, Some(password(server.host()))).is_ok());
        let asked = server.asked();
        let [_, token, again] = asked.as_slice() else { panic!("{asked:?}") };
        assert_eq!(token.path, "/token?kept=1&service=a+registry&scope=repository%3Ateam%2Fbase%3Apull");
        assert_eq!(token.header("authorization"), format!("Basic {}", base64_of(&format!("me:{PASSWORD}"))));
        assert_eq!(again.header("authorization"), format!("Bearer {TOKEN}"));
        // Without credentials the token of whoever comes.
        assert!(resolve(&server, None).is_ok());
        assert_eq!(server.asked()[4].header("authorization"), "");
    }
}

#[test]
fn identity_token_is_exchanged_in_the_body_and_never_in_a_url() {
    let server = with_tokens(|_| Answer::new("200 OK", format!("{{\"access_token\": \"{TOKEN}\"}}")));
    let auth = auth_file(server.host(), &format!("{{\"identitytoken\": \"{PASSWORD}\"}}"));
    assert!(resolve(&server, Some(auth)).is_ok());
    let token = &server.asked()[1];
    assert_eq!((token.method.as_str(), token.path.as_str()), ("POST", "/token?kept=1"));
    let body = String::from_utf8(token.body.clone()).unwrap();
    let form = format!(
        "grant_type=refresh_token&client_id=ampoule&scope=repository%3Ateam%2Fbase%3Apull&service=a+registry&refresh_token={PASSWORD}"
    );
    assert_eq!(body, form);
}

#[test]
fn token_services_that_fail_are_said_to() {
    type Script = fn(&Asked) -> Answer;
    let table: [(Script, Code, &str); 7] = [
        (|_| Answer::new("401 No", "{}"), Code::InputSourceDenied, "does not accept the credentials"),
        (|_| Answer::new("503 No", ""), Code::InputUnreachable, "try again later"),
        (|_| Answer::new("200 OK", "{}"), Code::InputUnreachable, "without a token"),
        (|_| Answer::new("200 OK", "<html>"), Code::InputUnreachable, "without a token"),
        (|_| Answer::new("200 OK", "{\"token\": \"a\\nb\"}"), Code::InputUnreachable, "without a token"),
        (|_| Answer::new("200 OK", vec![b' '; (128 << 10) + 1]), Code::InputUnreachable, "without a token"),
        (
            |_| Answer::new("200 OK", "{\"token\": \"of somebody else\"}"),
            Code::InputSourceDenied,
            "does not accept",
        ),
    ];
    for (script, code, text) in table {
        let server = with_tokens(script);
        says(&resolve(&server, Some(password(server.host()))).unwrap_err(), code, text);
        assert!(server.asked().len() <= 3);
    }
}

#[test]
fn token_service_elsewhere_is_denied_before_it_is_asked() {
    let elsewhere = Server::start(|_| Answer::new("200 OK", format!("{{\"token\": \"{TOKEN}\"}}")));
    for realm in [
        format!("http://{}/token", elsewhere.host()),
        "https://token.example/x".to_owned(),
        "http://me@127.0.0.1/x".to_owned(),
        "file:///etc/passwd".to_owned(),
        "x".to_owned(),
    ] {
        let challenge = format!("www-authenticate: Bearer realm=\"{realm}\",service=\"x\"");
        let server = Server::start(guarded(format!("Bearer {TOKEN}"), challenge));
        let error = resolve(&server, Some(password(server.host()))).unwrap_err();
        says(&error, Code::InputSourceDenied, "token");
    }
    assert!(elsewhere.asked().is_empty());
}

#[test]
fn token_service_elsewhere_that_is_listed_is_asked() {
    let elsewhere = Server::start(|_| Answer::new("200 OK", format!("{{\"token\": \"{TOKEN}\"}}")));
    let challenge = format!("www-authenticate: Bearer realm=\"http://{}/token\"", elsewhere.host());
    let server = Server::start(guarded(format!("Bearer {TOKEN}"), challenge));
    assert!(resolve_with(&server, &[elsewhere.host()], Some(password(server.host()))).is_ok());
    let shown = elsewhere.asked()[0].header("authorization").to_owned();
    assert_eq!(shown, format!("Basic {}", base64_of(&format!("me:{PASSWORD}"))));
}

/// A registry could have a token of another one's service for a repository of its choice, and see it.
#[test]
fn token_service_elsewhere_is_not_told_by_a_registry_what_the_token_is_for() {
    let elsewhere = Server::start(|_| Answer::new("200 OK", format!("{{\"token\": \"{TOKEN}\"}}")));
    let realm = format!("http://{}/token?service=theirs&scope=repository:private/x:pull", elsewhere.host());
    let challenge = format!("www-authenticate: Bearer realm=\"{realm}\"");
    let server = Server::start(guarded(format!("Bearer {TOKEN}"), challenge));
    let error = resolve_with(&server, &[elsewhere.host()], None).unwrap_err();
    says(&error, Code::InputSourceDenied, "a query of its own");
    assert!(elsewhere.asked().is_empty());
}

#[test]
fn redirect_to_another_host_carries_no_credentials() {
    let elsewhere = Server::start(|_| Answer::new("200 OK", DOCUMENT));
    let to = format!("http://{}/blob?signature=x", elsewhere.host());
    let wanted = format!("Basic {}", base64_of(&format!("me:{PASSWORD}")));
    let server = Server::start(move |asked| match asked.header("authorization") == wanted {
        true => Answer::new(format!("307 Elsewhere\r\nlocation: {to}"), ""),
        false => Answer::new("401 No\r\nwww-authenticate: Basic realm=\"r\"", ""),
    });
    assert!(resolve_with(&server, &[elsewhere.host()], Some(password(server.host()))).is_ok());
    let asked = elsewhere.asked();
    assert_eq!((asked.len(), asked[0].header("authorization")), (1, ""));
}
