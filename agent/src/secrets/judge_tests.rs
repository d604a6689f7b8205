use super::*;
use crate::secrets::FindingState::{Failed, Ok as Good, Unknown, Warning};
use crate::vault::{Accessor, May, Revoked};
use std::time::Duration;

fn up(time: u64) -> Health {
    Health { address: "https://a".to_owned(), state: ServerState::Up, time: Some(time), silence: None }
}

fn read(text: &str) -> Read {
    toml::from_str::<BTreeMap<String, Read>>(&format!("read = {text}")).unwrap().remove("read").unwrap()
}

fn reads() -> Vec<Read> {
    [
        "{ kv2 = { path = \"app/npm\" } }",
        "{ database = { role = \"app\" } }",
        "{ pki = { role = \"app\", parameters = {} } }",
    ]
    .map(read)
    .to_vec()
}

fn asks() -> Asks {
    let reads = reads();
    Asks::of(Some("ampoule-step-app"), &reads.iter().collect::<Vec<_>>())
}

/// What the documented policy gives: what is needed, and `deny` for the rest.
fn minimal(asks: &Asks) -> Vec<(String, Vec<String>)> {
    let of = |path: String| {
        let is_needed = asks.needs.iter().any(|(needed, _)| *needed == path);
        (path, vec![if is_needed { "update" } else { "deny" }.to_owned()])
    };
    asks.of_agent().into_iter().map(of).collect()
}

fn denied() -> VaultError {
    VaultError::Denied { doing: "asking", path: "sys/capabilities-self".to_owned() }
}

fn asked(may: May, step: StepTried) -> Tried {
    let login = LoggedIn { ttl: Duration::from_secs(600), may, ended: Some(Ok(())) };
    Tried::Asked { health: vec![up(1000)], login, step }
}

fn of_role(may: May) -> StepTried {
    let made = OfStep {
        accessor: Accessor::new("acc".to_owned()).unwrap(),
        ttl: Duration::from_secs(15),
        policies: vec!["ampoule-step-app".to_owned()],
        may,
        ended: Ok(Revoked::Now),
    };
    StepTried::Role { name: "ampoule-step-app".to_owned(), made: Ok(Box::new(made)) }
}

fn states(findings: &[Finding]) -> Vec<(&'static str, FindingState)> {
    findings.iter().map(|finding| (finding.what, finding.state)).collect()
}

#[test]
fn documented_policy_is_enough_and_each_thing_less_or_more_is_said() {
    let asks = asks();
    let step = |may: &str| {
        let all = asks.of_step().into_iter();
        of_role(Ok(all.map(|path| (path, may.split(' ').map(str::to_owned).collect())).collect()))
    };
    let good = asked(Ok(minimal(&asks)), step("read update"));
    let (findings, _) = of_server(&asks, &good, 1010);
    assert!(findings.iter().all(|finding| finding.state == Good), "{findings:?}");
    assert_eq!(
        findings.iter().map(|finding| finding.what).collect::<Vec<_>>(),
        ["reachable", "clock", "login", "policy", "excess", "step"]
    );
    // Without any one of what is needed steps would have nothing.
    for (lacking, _) in &asks.needs {
        let mut may = minimal(&asks);
        may.iter_mut().filter(|(path, _)| path == lacking).for_each(|(_, of)| *of = vec!["deny".to_owned()]);
        let (findings, _) = of_server(&asks, &asked(Ok(may), step("read")), 1000);
        let policy = findings.iter().find(|finding| finding.what == "policy").unwrap();
        assert!(policy.state == Failed && policy.detail.contains(lacking.as_str()), "{policy:?}");
    }
    // With any one of what it has no business with, a leak would be one of that.
    for more in &asks.never {
        let mut may = minimal(&asks);
        may.iter_mut().filter(|(path, _)| path == more).for_each(|(_, of)| *of = vec!["read".to_owned()]);
        let (findings, _) = of_server(&asks, &asked(Ok(may), step("read")), 1000);
        let excess = findings.iter().find(|finding| finding.what == "excess").unwrap();
        assert!(excess.state == Warning && excess.detail.contains(more.as_str()), "{excess:?}");
    }
    // Root may do all of it, and more.
    let root = asks.of_agent().into_iter().map(|path| (path, vec!["root".to_owned()])).collect();
    let (findings, _) = of_server(&asks, &asked(Ok(root), step("read")), 1000);
    assert_eq!(states(&findings)[3..5], [("policy", Good), ("excess", Warning)]);
    // Paths of KV alone need no leases.
    let kv = read("{ kv2 = { path = \"a\" } }");
    assert!(Asks::of(None, &[&kv]).needs.iter().all(|(path, _)| !path.starts_with("sys/leases")));
}

#[test]
fn what_is_in_the_way_is_said_once_and_the_rest_is_not_known() {
    let asks = asks();
    let sealed = Health { state: ServerState::Sealed, time: None, ..up(0) };
    let (findings, may) = of_server(&asks, &Tried::Away(vec![sealed.clone()]), 0);
    assert_eq!(
        states(&findings),
        [("reachable", Failed), ("login", Unknown), ("policy", Unknown), ("step", Unknown)]
    );
    assert!(findings[0].passes && findings[0].detail.contains("https://a is sealed"));
    assert_eq!(of_rule(&reads()[0], Some(&may)).state, Unknown);
    let refused =
        VaultError::Login { method: "AppRole", status: 400, detail: "invalid secret id".to_owned().into() };
    let (findings, _) = of_server(&asks, &Tried::Outside(vec![up(99), sealed], refused), 0);
    assert_eq!(
        states(&findings),
        [
            ("reachable", Warning),
            ("clock", Warning),
            ("login", Failed),
            ("policy", Unknown),
            ("step", Unknown)
        ]
    );
    assert!(!findings[2].passes && findings[2].detail.contains("invalid secret id"));
    // A policy that does not let it ask is no failure: steps may have their secrets.
    let (findings, may) = of_server(&asks, &asked(Err(denied()), of_role(Err(denied()))), 1000);
    let policy = findings.iter().find(|finding| finding.what == "policy").unwrap();
    assert!(policy.state == Unknown && policy.detail.contains("ampoule-agent.hcl"), "{policy:?}");
    assert_eq!(of_rule(&reads()[0], Some(&may)).state, Unknown);
    for (step, state) in [
        (StepTried::Nowhere, Failed),
        (StepTried::ByStep, Unknown),
        (StepTried::Role { name: "r".to_owned(), made: Err(denied()) }, Failed),
    ] {
        let (findings, _) = of_server(&asks, &asked(Ok(minimal(&asks)), step), 1000);
        let step = findings.iter().find(|finding| finding.what == "step").unwrap();
        assert_eq!(step.state, state, "{step:?}");
    }
}

#[test]
fn secret_can_be_had_if_a_steps_token_may_do_what_its_kind_needs_and_more_is_said() {
    let may = |paths: &[(&str, &str)]| {
        let words = |of: &str| of.split(' ').map(str::to_owned).collect();
        MayRead::Known(paths.iter().map(|(path, of)| ((*path).to_owned(), words(of))).collect())
    };
    let (kv, database, pki) = ("secret/data/app/npm", "database/creds/app", "pki/issue/app");
    let all = reads();
    for (read, path, of, state) in [
        (&all[0], kv, "read", Good),
        (&all[0], kv, "deny", Failed),
        (&all[0], kv, "update", Failed),
        (&all[0], kv, "list read", Warning),
        (&all[0], kv, "root", Warning),
        (&all[1], database, "read", Good),
        (&all[1], kv, "read", Failed),
        (&all[2], pki, "update", Good),
        (&all[2], pki, "create", Good),
        (&all[2], pki, "read", Failed),
    ] {
        let finding = of_rule(read, Some(&may(&[(path, of)])));
        assert_eq!(finding.state, state, "{path} {of}: {finding:?}");
    }
    assert_eq!(of_rule(&all[0], Some(&MayRead::ByStep)).state, Unknown);
    assert_eq!(of_rule(&all[0], None).state, Unknown);
}
