//! How strictly `sources.toml` is read.

use super::*;
use reqwest::Url;

const GOOD: &str = r#"
sources = 1
[project.default]
allow = ["pub", "reg"]
[project.web]
allow = ["mirror", "pub"]
public = true
[origin.pub]
url = "https://pub.example/"
[origin.reg]
registry = "registry.example:5000/team"
addresses = ["10.1.0.0/16", "fd00::1"]
ca = "ca.pem"
auth = { basic = "/etc/auth" }
[origin.mirror]
url = "https://mirror.example/pub/"
mirror_of = ["https://pub.example/"]
auth = { header = "PRIVATE-TOKEN", file = "token" }
"#;

fn parse(text: &str) -> Result<SourcesFile> {
    SourcesFile::parse(text, "sources.toml", Path::new("/etc/ampoule"))
}

fn url(text: &str) -> Url {
    Url::parse(text).unwrap()
}

#[test]
fn good_file_gives_each_project_its_own_origins() {
    let file = parse(GOOD).unwrap();
    let default = file.policy(None).unwrap();
    let web = file.policy(Some("web")).unwrap();
    let name = |policy: &Policy, purpose, text: &str| {
        policy.admit(purpose, &url(text)).map(|origin| origin.map(|o| o.name.clone()))
    };
    let x = "https://pub.example/x";
    let image = "https://registry.example:5000/v2/team/base/blobs/x";
    assert_eq!(name(&default, Purpose::Http, x), Ok(Some("pub".to_owned())));
    assert_eq!(name(&default, Purpose::Registry, image), Ok(Some("reg".to_owned())));
    // A registry is a registry's client's, and what it holds is no input by URL.
    assert!(name(&default, Purpose::Http, image).is_err());
    assert_eq!(name(&web, Purpose::Registry, image), Ok(None), "public");
    assert_eq!(default.mirrors(&url(x)), []);
    assert_eq!(web.mirrors(&url(x)), [url("https://mirror.example/pub/x")]);
    let reg = default.admit(Purpose::Registry, &url(image)).unwrap().unwrap();
    assert_eq!(reg.ca, Some(PathBuf::from("/etc/ampoule/ca.pem")));
    assert_eq!(reg.auth, Some(Auth::Basic(PathBuf::from("/etc/auth"))));
    assert!(reg.may_have("10.1.2.3".parse().unwrap()).is_ok());
    assert!(reg.may_have("8.8.8.8".parse().unwrap()).is_err());
    let secrets: Vec<_> = web.secrets().collect();
    assert_eq!(secrets, [Path::new("/etc/ampoule/token")]);
}

#[test]
fn denial_names_the_rule_and_the_remedy() {
    let policy = parse(GOOD).unwrap().policy(None).unwrap();
    let reason = policy.admit(Purpose::Http, &url("https://evil.example:8443/x?token=secret")).unwrap_err();
    for part in ["\"default\"", "sources.toml", "url = \"https://evil.example:8443/\"", "[project.default]"] {
        assert!(reason.contains(part), "{reason}");
    }
    assert!(!reason.contains("secret"), "{reason}");
    let unknown = parse(GOOD).unwrap().policy(Some("wep")).unwrap_err();
    assert_eq!(unknown.code, Code::InputSourceDenied);
    assert!(unknown.to_string().contains("did you mean \"web\"?"), "{unknown}");
}

#[test]
fn longest_prefix_decides_and_one_of_this_purpose_first() {
    let text = "sources = 1\n[project.default]\nallow = [\"a\", \"b\", \"c\"]\n[origin.a]\nurl = \"https://h/\"\n\
                [origin.b]\nurl = \"https://h/x/\"\n[origin.c]\ngit = \"https://h/x/\"\n";
    let policy = parse(text).unwrap().policy(None).unwrap();
    let name = |purpose, text: &str| policy.admit(purpose, &url(text)).unwrap().unwrap().name.clone();
    assert_eq!(name(Purpose::Http, "https://h/y"), "a");
    assert_eq!(name(Purpose::Http, "https://h/x/y"), "b");
    assert_eq!(name(Purpose::Git, "https://h/x/y"), "c");
    assert_eq!(name(Purpose::Registry, "https://h/x/y"), "b");
    // What may mean another path is not below /x/, and then below / only.
    assert_eq!(name(Purpose::Http, "https://h/x/..%2fy"), "a");
}

#[test]
fn wrong_files_are_refused_with_line_field_and_remedy() {
    let head = "sources = 1\n[project.default]\nallow = [\"a\"]\n[origin.a]\n";
    let with = |rest: &str| format!("{head}{rest}\n");
    let good = "url = \"https://h/\"";
    assert!(parse(&with(good)).is_ok());
    for (text, part) in [
        (String::new(), "add sources = 1"),
        ("sources = 2\n".to_owned(), "write sources = 1"),
        ("sources = 1\n".to_owned(), "project.default"),
        ("sources = 1\n[project.default]\n".to_owned(), "allow"),
        ("sources = 1\n[projects.default]\nallow = []\n".to_owned(), "did you mean \"project\"?"),
        (with("ulr = \"https://h/\""), "did you mean \"url\"?"),
        (with("adresses = []\nurl = \"https://h/\""), "did you mean \"addresses\"?"),
        (with("ca = \"x\""), "exactly one of"),
        (with("url = \"https://h/\"\ngit = \"https://h/\""), "exactly one of"),
        (with("url = \"h\""), "origin.a.url"),
        (with("url = \"https://*.h/\""), "no patterns"),
        (with("url = \"https://h/\"\naddresses = []"), "without any address"),
        (with("url = \"https://h/\"\naddresses = [\"10.1.2.3/8\"]"), "10.0.0.0/8"),
        (with("url = \"https://h/\"\naddresses = [\"0.0.0.0/0\"]"), "unspecified"),
        (with("url = \"https://h/\"\naddresses = [\"localhost\"]"), "write an address"),
        (with("url = \"https://0.0.0.0/\""), "unspecified"),
        (with("url = \"https://10.0.0.1/\"\naddresses = [\"10.0.0.2\"]"), "remove addresses"),
        (with("url = \"http://h/\"\nca = \"x\""), "without TLS"),
        (with("url = \"http://h/\"\nauth = { bearer = \"x\" }"), "without TLS"),
        (with("url = \"https://h/\"\nauth = { token = \"x\" }"), "unknown key"),
        (with("url = \"https://h/\"\nauth = { basic = \"x\", bearer = \"y\" }"), "not one way"),
        (
            with("url = \"https://h/\"\nauth = { header = \"Host\", file = \"x\" }"),
            "belongs to the connection",
        ),
        (with("git = \"https://h/\"\nmirror_of = [\"https://i/\"]"), "only an origin by url"),
        (with("url = \"https://h/\"\n[project.web]\nallow = [\"b\"]"), "did you mean \"a\"?"),
        (with("url = \"https://h/\"\n[project.web]\nallow = [\"a\", \"a\"]"), "listed twice"),
        (
            with(
                "url = \"https://h/\"\n[origin.b]\nurl = \"https://h:443\"\n[project.web]\nallow = [\"a\", \"b\"]",
            ),
            "same prefix",
        ),
        (with("url = \"https://h/\"\n[project.\"we b\"]\nallow = []"), "project"),
    ] {
        let error = parse(&text).expect_err(&text);
        assert_eq!(error.code, Code::FileUnusable, "{text}");
        assert!(error.to_string().contains(part), "{part}: {error}");
        assert!(text.is_empty() || error.line().is_some(), "{error}");
    }
}

#[test]
fn file_that_others_can_write_decides_nothing() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sources.toml");
    std::fs::write(&path, GOOD).unwrap();
    for (mode, good) in [(0o600, true), (0o644, true), (0o664, false), (0o646, false)] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(SourcesFile::load(&path).is_ok(), good, "{mode:o}");
    }
    assert!(SourcesFile::load(dir.path()).is_err());
    assert!(SourcesFile::load(&dir.path().join("none")).is_err());
    std::fs::write(&path, vec![b'#'; 2 << 20]).unwrap();
    assert!(SourcesFile::load(&path).is_err());
}
