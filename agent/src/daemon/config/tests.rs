use super::keys::{KEYS, SECTIONS};
use super::*;

const LEAST: &str = "authority = \"https://builds.corp.example\"\n[listen]\nunix = \"agent.sock\"\n\
    [signing]\nkey = \"k.pem\"\n";

fn parse(text: &str) -> Result<Config, crate::jobfile::JobFileError> {
    Config::parse(text, "agent.toml", Path::new("/etc/ampoule"))
}

/// A file with the example of every key but those that exclude each other.
fn everything(without: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for section in SECTIONS {
        if !section.is_empty() {
            text.push_str(&format!("[{}]\n", section.replace("NAME", "kernel")));
        }
        for key in KEYS.iter().filter(|key| key.section == *section) {
            if !without.contains(&(*section, key.name)) {
                text.push_str(&format!("{} = {}\n", key.name, key.example));
            }
        }
    }
    text
}

#[test]
fn least_configuration_has_the_documented_defaults() {
    let config = parse(LEAST).unwrap();
    assert_eq!(config.listen.unix.as_deref(), Some(Path::new("/etc/ampoule/agent.sock")));
    let shown = config.show();
    for key in KEYS.iter().filter(|key| key.default.starts_with('`') && key.default.ends_with('`')) {
        let default = key.default.trim_matches('`');
        let default = match key.name {
            "policy" => "/etc/ampoule/policy",
            "identities" => "/etc/ampoule/identities.toml",
            _ => default,
        };
        let lines = [format!("{} = {default}\n", key.name), format!("{} = \"{default}\"\n", key.name)];
        assert!(lines.iter().any(|line| shown.contains(line)), "{}: {default} is not in\n{shown}", key.name);
    }
}

#[test]
fn every_key_of_the_reference_is_read_and_shown() {
    let ways = ["key", "credential", "transit"].map(|way| ("signing", way));
    for way in ways {
        let without: Vec<_> = ways.into_iter().filter(|other| *other != way).collect();
        let config = parse(&everything(&without)).unwrap();
        let shown = config.show();
        assert_eq!(parse(&shown).unwrap(), config, "{shown}");
        for key in KEYS.iter().filter(|key| !without.contains(&(key.section, key.name))) {
            assert!(shown.contains(&format!("{} = ", key.name)), "{} is not in\n{shown}", key.name);
            // Its value matters: without it the configuration is another, or none.
            let less = parse(&everything(&[&without[..], &[(key.section, key.name)]].concat()));
            let is_default = key.example.trim_matches('"') == key.default.trim_matches('`')
                || matches!(key.name, "policy" | "identities")
                || key.name == "unix";
            assert!(is_default || less.ok().as_ref() != Some(&config), "{} changes nothing", key.name);
        }
    }
}

#[test]
fn unknown_key_has_its_line_and_the_nearest_known_one() {
    let error = parse(&format!("{LEAST}[limits]\nqeue = 5\n")).unwrap_err().to_string();
    assert_eq!(error, "agent.toml:7:1: limits.qeue: unknown key; did you mean \"queue\"?");
    let error = parse(&format!("{LEAST}[limit]\n")).unwrap_err().to_string();
    assert_eq!(error, "agent.toml:6:2: limit: unknown key; did you mean \"limits\"?");
}

#[test]
fn what_an_operator_gets_wrong_is_named_with_its_remedy() {
    let cases = [
        ("[listen]\nunix = \"s\"\n[signing]\nkey = \"k\"\n", "authority: missing"),
        (&LEAST.replace("builds.corp.example", "ampoule.example"), "the example stands for nobody"),
        (&LEAST.replace("[signing]\nkey = \"k.pem\"\n", ""), "nothing is there to sign with"),
        (&LEAST.replace("unix = \"agent.sock\"", ""), "nobody could reach this daemon"),
        (&LEAST.replace("unix =", "tcp = \"0.0.0.0:1\"\nunix ="), "listen.tcp has no TLS"),
        (&LEAST.replace("unix =", "tcp = \"host:1\"\nunix ="), "names are not looked up"),
        (&format!("{LEAST}credential = \"c\"\n"), "exactly one of key, credential and transit"),
        (&format!("{LEAST}[tls]\nkey = \"k\"\n"), "tls.certificate: missing"),
        (&format!("{LEAST}[metrics]\nlisten = \"10.0.0.1:1\"\n"), "whoever reaches it would read it"),
        (&format!("{LEAST}[limits]\nmemory = 5\n"), "with one of B, kB"),
        (&format!("{LEAST}[limits]\nqueue = 0\n"), "give at least 1"),
        (&format!("{LEAST}[retention]\njobs = \"9000h\"\n"), "for a shorter time"),
        (&format!("{LEAST}[log]\nlevel = \"a=b=c\"\n"), "log.level: not a level"),
        (&format!("{LEAST}[log]\nformat = \"jsn\"\n"), "did you mean \"json\"?"),
        (&format!("{LEAST}[host]\nrefuse_on_drift = true\n"), "--record-baseline"),
        (&format!("profiles = []\n{LEAST}"), "without a profile no job can run"),
        (&format!("state = \"\"\n{LEAST}"), "the path is empty"),
        (&format!("registry_auth = \"a.json\"\n{LEAST}"), "given to projects by their names"),
    ];
    for (text, reason) in cases {
        let error = parse(text).unwrap_err();
        assert!(error.to_string().contains(reason), "{error} is not {reason:?}");
        assert_eq!(error.code(), ampoule_spec::Code::FileUnusable);
    }
}

#[test]
fn files_are_of_the_projects_that_are_named() {
    for key in ["registry_auth", "allowed_signers", "trust"] {
        let config = parse(&format!("{LEAST}[project.a]\n{key} = \"a.json\"\n[project.b]\n")).unwrap();
        let of = |project: &str| {
            let ProjectFiles { registry_auth, allowed_signers, trust } =
                config.files.get(&Name::parse(project).unwrap()).cloned().unwrap_or_default();
            [registry_auth, allowed_signers, trust].into_iter().flatten().collect::<Vec<_>>()
        };
        assert_eq!(of("a"), [Path::new("/etc/ampoule/a.json")], "{key}");
        assert_eq!((of("b"), of("default"), of("ab")), (vec![], vec![], vec![]));
    }
}

#[test]
fn example_authority_and_no_key_are_for_development_alone() {
    let config = parse("dev = true\n[listen]\nunix = \"s\"\n").unwrap();
    assert!(config.authority.is_example() && config.signing.is_none());
}

#[test]
fn file_that_others_can_write_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("agent.toml");
    std::fs::write(&file, LEAST).unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
    Config::load(&file).unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o664)).unwrap();
    assert!(Config::load(&file).unwrap_err().to_string().contains("they would decide"));
}

#[test]
fn collector_is_on_this_host_or_known_by_its_certificate() {
    let with = |table: &str| parse(&format!("{LEAST}[traces]\n{table}\n"));
    assert_eq!(parse(LEAST).unwrap().traces, None);
    for plain in ["http://127.0.0.1:4317", "http://[::1]:4317"] {
        let traces = with(&format!("endpoint = \"{plain}\"")).unwrap().traces.unwrap();
        assert_eq!(traces.endpoint.to_string(), plain);
    }
    for host in ["https://collector.example:4317", "https://[2001:db8::1]:4317"] {
        let config = with(&format!("endpoint = \"{host}\"\nca = \"ca.pem\"")).unwrap();
        let traces = config.traces.clone().unwrap();
        assert_eq!(traces.endpoint.to_string(), host);
        assert_eq!(traces.credentials.ca.as_deref(), Some(Path::new("/etc/ampoule/ca.pem")));
        assert_eq!(parse(&config.show()).unwrap(), config);
    }
    for (table, reason) in [
        ("ca = \"ca.pem\"", "traces.endpoint: missing"),
        ("endpoint = \"http://10.0.0.1:4317\"", "without TLS"),
        ("endpoint = \"http://localhost:4317\"", "without TLS"),
        ("endpoint = \"https://collector.example:4317\"", "traces.ca: missing"),
        ("endpoint = \"https://c.example/v1\"\nca = \"ca.pem\"", "not an address of a collector"),
        ("endpoint = \"unix:///run/c\"", "not an address of a collector"),
        ("endpoint = \"http://127.0.0.1:1\"\nca = \"ca.pem\"", "nobody to know"),
        ("endpoint = \"https://c.example:1\"\nca = \"a\"\nkey = \"k\"", "go together"),
    ] {
        let error = with(table).unwrap_err().to_string();
        assert!(error.contains(reason), "{error} is not {reason:?}");
    }
}
