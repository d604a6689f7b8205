use super::*;
use crate::job::Means;
use proptest::prelude::*;

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

/// For as long as the tests.
fn kept<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

fn file() -> &'static Delivery {
    kept(Delivery::File(ampoule_spec::SandboxPath::parse("/run/secrets/npm").unwrap()))
}

fn environment() -> &'static Delivery {
    kept(Delivery::Env(ampoule_spec::EnvName::parse("NPM").unwrap()))
}

fn caller(subject: &str, reference: Option<&str>) -> Caller {
    let claims = reference.map(|text| ("ref".to_owned(), serde_json::json!(text)));
    Caller { means: Means::Token, subject: subject.to_owned(), claims: claims.into_iter().collect() }
}

fn rule() -> Rule {
    let source = Source::File("/etc/ampoule/secrets/npm".into());
    Rule { source, callers: None, refs: None, profiles: None, signed: false, env_allowed: false }
}

fn mapping(rule: Rule) -> Mapping {
    Mapping { rules: BTreeMap::from([((name("web"), name("npm")), rule)]) }
}

/// What is changed, why that is a no, and how.
type Case = (&'static str, &'static str, fn(&mut Wanted<'_>));

fn decide(mapping: &Mapping, change: impl FnOnce(&mut Wanted<'_>)) -> Result<Rule, String> {
    let (project, profile, caller) = (name("web"), name("hermetic"), caller("ci", Some("refs/heads/main")));
    let mut wanted = Wanted {
        project: &project,
        name: kept(name("npm")),
        caller: &caller,
        profile: &profile,
        is_signed: true,
        delivery: file(),
    };
    change(&mut wanted);
    mapping.decide(&wanted).cloned().map_err(|denied| denied.reason)
}

/// Each line of the matrix takes away one thing that a rule asks for, and each is a no of its own.
#[test]
fn only_what_a_rule_lets_through_in_all_it_asks_for_is_given() {
    let strict = Rule {
        callers: Some(vec!["ci".to_owned()]),
        refs: Some(vec!["refs/heads/main".to_owned(), "refs/tags/v*".to_owned()]),
        profiles: Some(vec![name("hermetic")]),
        signed: true,
        ..rule()
    };
    let strict_mapping = mapping(strict.clone());
    assert_eq!(decide(&strict_mapping, |_| ()), Ok(strict.clone()));
    let (other, fork, tag, none) = (
        caller("ci2", Some("refs/heads/main")),
        caller("ci", Some("refs/pull/7/merge")),
        caller("ci", Some("refs/tags/v1.2")),
        caller("ci", None),
    );
    let (elsewhere, root) = (name("web2"), name("rootful"));
    let number = Caller { claims: [("ref".to_owned(), serde_json::json!(7))].into(), ..none.clone() };
    let cases: [Case; 3] = [
        ("another name", "none of that name", |wanted| wanted.name = kept(name("npm2"))),
        ("unsigned", "signed commits alone", |wanted| wanted.is_signed = false),
        ("environment", "not in an environment", |wanted| wanted.delivery = environment()),
    ];
    for (what, why, change) in cases {
        let denied = decide(&strict_mapping, change).unwrap_err();
        assert!(denied.contains(why), "{what}: {denied}");
    }
    let no = |mapping: &Mapping, of: &Caller| {
        let (project, profile) = (name("web"), name("hermetic"));
        let descriptor = Delivery::Fd(ampoule_spec::EnvName::parse("NPM").unwrap());
        let delivery = &descriptor;
        let wanted = Wanted {
            project: &project,
            name: kept(name("npm")),
            caller: of,
            profile: &profile,
            is_signed: true,
            delivery,
        };
        mapping.decide(&wanted).is_err()
    };
    for (caller, denied) in [(&other, true), (&fork, true), (&none, true), (&number, true), (&tag, false)] {
        assert_eq!(no(&strict_mapping, caller), denied, "{caller:?}");
        assert!(!no(&mapping(rule()), caller), "a rule that asks for nothing: {caller:?}");
    }
    let (is_elsewhere, is_root) = (
        strict_mapping.decide(&wanted(&elsewhere, &name("npm"), &tag, &name("hermetic"))),
        strict_mapping.decide(&wanted(&name("web"), &name("npm"), &tag, &root)),
    );
    assert!(is_elsewhere.is_err() && is_root.is_err());
    let open = Rule { env_allowed: true, ..rule() };
    assert_eq!(decide(&mapping(open.clone()), |w| w.delivery = environment()), Ok(open));
    // A list that is there and empty is for nobody.
    for empty in [
        Rule { callers: Some(Vec::new()), ..rule() },
        Rule { refs: Some(Vec::new()), ..rule() },
        Rule { profiles: Some(Vec::new()), ..rule() },
    ] {
        assert!(decide(&mapping(empty), |_| ()).is_err());
    }
    assert!(decide(&Mapping::default(), |_| ()).is_err());
}

fn wanted<'a>(project: &'a Name, name: &'a Name, caller: &'a Caller, profile: &'a Name) -> Wanted<'a> {
    Wanted { project, name, caller, profile, is_signed: true, delivery: file() }
}

#[test]
fn pattern_is_a_whole_ref_or_the_beginning_of_one() {
    for (pattern, reference, covered) in [
        ("refs/heads/main", "refs/heads/main", true),
        ("refs/heads/main", "refs/heads/main2", false),
        ("refs/heads/main", "refs/heads/Main", false),
        ("refs/heads/release/*", "refs/heads/release/1", true),
        ("refs/heads/release/*", "refs/heads/release", false),
        ("*", "anything", true),
        ("refs/*/main", "refs/heads/main", false),
        ("", "", true),
        ("", "main", false),
    ] {
        assert_eq!(covers(pattern, reference), covered, "{pattern} {reference}");
    }
}

proptest! {
    /// The confused deputy: whatever a tenant writes as the name, where a value comes from is what the operator wrote, whole.
    #[test]
    fn nothing_that_a_tenant_says_becomes_a_part_of_a_source(
        text in "([a-z0-9-]{1,6}|npm|\\PC{0,40}|(\\.\\./){1,4}npm|npm[?#%/.]{1,6}[a-z]{0,4}|kv/data/[a-z]{1,8})",
        subject in "\\PC{0,40}",
        reference in "\\PC{0,40}",
    ) {
        let read: crate::vault::Read = toml::from_str("[kv2]\npath = \"web/npm\"\nversion = 3").unwrap();
        let source = Source::Vault { server: name("main"), read, field: Some("token".to_owned()), rotate: None };
        let mapping = mapping(Rule { source: source.clone(), ..rule() });
        let caller = caller(&subject, Some(&reference));
        let (project, profile) = (name("web"), name("hermetic"));
        // Most of it is no name, and does not come as far as here.
        let Ok(tenants) = Name::parse(&text) else { return Ok(()) };
        match mapping.decide(&wanted(&project, &tenants, &caller, &profile)) {
            Ok(rule) => { prop_assert_eq!(&rule.source, &source); prop_assert_eq!(text.as_str(), "npm"); }
            Err(denied) => { prop_assert!(!denied.reason.contains("web/npm")); prop_assert_ne!(text.as_str(), "npm"); }
        }
    }
}
