use super::*;
use crate::admission::{Action, run_cases};
use crate::job::{Caller, Means};
use std::collections::BTreeMap;
use std::time::Instant;

fn caller(subject: &str) -> Caller {
    Caller { means: Means::Peer, subject: subject.to_owned(), claims: BTreeMap::new() }
}

fn policy(text: &str) -> Result<Policy, PolicyError> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.rego"), text).unwrap();
    Policy::load(dir.path())
}

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/policy")
}

#[test]
fn example_policy_gives_what_its_cases_say() {
    let results = run_cases(&example()).unwrap();
    assert!(results.len() > 10);
    let wrong: Vec<_> = results.iter().filter(|result| !result.holds()).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn case_that_does_not_hold_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.rego"), "package ampoule.authz\nallow if input.action == \"read\"\n")
        .unwrap();
    assert!(run_cases(dir.path()).is_err(), "no cases");
    std::fs::create_dir(dir.path().join("cases")).unwrap();
    assert!(run_cases(dir.path()).is_err(), "no cases in the directory");
    let cases = r#"[{"name": "a", "input": {"action": "read"}, "allow": false}, {"name": "b", "input": {"action": "drain"}, "allow": false}]"#;
    std::fs::write(dir.path().join("cases/a.json"), cases).unwrap();
    let results = run_cases(dir.path()).unwrap();
    let holds: Vec<_> = results.iter().map(|r| (r.name.as_str(), r.holds())).collect();
    assert_eq!(holds, [("a.json: a", false), ("a.json: b", true)]);
    std::fs::write(dir.path().join("cases/b.json"), r#"[{"name": "a", "inputs": {}, "allow": false}]"#)
        .unwrap();
    assert!(run_cases(dir.path()).is_err(), "an unknown key");
}

#[test]
fn only_true_allows() {
    let who = caller("uid:1");
    let question = Question::host(&who, Action::Drain);
    for (rule, expected) in [
        ("allow if input.caller.subject == \"uid:1\"", Some(true)),
        ("allow if input.caller.subject == \"uid:2\"", Some(false)),
        ("allow := \"yes\" if input.caller", None),
        ("allow := 1 if input.caller", None),
        ("allow := {\"a\": true} if input.caller", None),
        ("allow if to_number(input.caller.subject) > 1", None),
        ("allow := true if input.caller\nallow := false if input.action == \"drain\"", None),
    ] {
        let decision = policy(&format!("package ampoule.authz\n{rule}\n")).unwrap().decide(&question);
        match expected {
            Some(true) => assert_eq!(decision, Decision::Allowed, "{rule}"),
            Some(false) => assert_eq!(decision, Decision::Denied, "{rule}"),
            None => {
                assert!(!matches!(decision, Decision::Allowed | Decision::Denied), "{rule}: {decision:?}")
            }
        }
    }
}

#[test]
fn policy_that_cannot_be_meant_is_refused_when_it_is_read() {
    assert!(
        policy("package ampoule.authz\nallow := true\n").unwrap_err().reason.contains("without a caller")
    );
    assert!(policy("package ampoule.authz\ndefault allow := false\nallow if not input.x\n").is_err());
    assert!(policy("package other\nallow := false\n").is_err(), "no entry");
    assert!(policy("package ampoule.authz\nallow if {\n").is_err(), "syntax");
    let dir = tempfile::tempdir().unwrap();
    assert!(Policy::load(dir.path()).unwrap_err().reason.contains("no policy"));
    assert!(Policy::load(&dir.path().join("none")).is_err());
    std::fs::write(dir.path().join("a.rego"), vec![b'#'; (1 << 20) + 1]).unwrap();
    assert!(Policy::load(dir.path()).is_err(), "too large");
    let file = dir.path().join("a.rego");
    std::fs::write(&file, "package ampoule.authz\nallow if input.caller\n").unwrap();
    Policy::load(dir.path()).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    assert!(Policy::load(dir.path()).unwrap_err().reason.contains("written by others"));
}

#[test]
fn policy_that_takes_too_long_denies() {
    let slow = "package ampoule.authz\n\
        allow if {\n input.caller\n some a in numbers.range(1, 3000)\n some b in numbers.range(1, 3000)\n a * b == 0\n }\n";
    let policy = policy(slow).unwrap();
    let who = caller("uid:1");
    let before = Instant::now();
    let decision = policy.decide(&Question::host(&who, Action::Drain));
    assert!(matches!(decision, Decision::Failed(_)), "{decision:?}");
    assert!(before.elapsed() < TIME_MAX * 10, "{:?}", before.elapsed());
}

#[test]
fn question_that_is_too_large_is_denied() {
    let policy = policy("package ampoule.authz\nallow if input.caller\n").unwrap();
    let small = serde_json::json!({ "caller": "a".repeat(INPUT_BYTES_MAX / 2) });
    assert_eq!(policy.decide_json(&small), Decision::Allowed);
    let large = serde_json::json!({ "caller": "a".repeat(INPUT_BYTES_MAX) });
    assert!(matches!(policy.decide_json(&large), Decision::Failed(_)));
}

#[test]
fn reload_that_fails_keeps_the_last_good_policy() {
    use crate::admission::{Desk, Scene};
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.rego");
    let rule = |uid: u32| format!("package ampoule.authz\nallow if input.caller.subject == \"uid:{uid}\"\n");
    std::fs::write(&file, rule(1)).unwrap();
    let told = std::sync::Arc::new(crate::admission::desk_tests::Told::default());
    let desk = Desk::open(dir.path().to_owned(), told.clone()).unwrap();
    let asks = |uid: &str| {
        let who = caller(uid);
        desk.allows(&Question::host(&who, Action::Drain), Scene { peer: "unix", call: "a/b" }, None)
    };
    assert!(asks("uid:1") && !asks("uid:2"));
    std::fs::write(&file, "package ampoule.authz\nallow if {\n").unwrap();
    assert!(desk.reload().is_err());
    assert!(asks("uid:1") && !asks("uid:2"));
    std::fs::write(&file, rule(2)).unwrap();
    desk.reload().unwrap();
    assert!(!asks("uid:1") && asks("uid:2"));
    assert_eq!(told.lines(), ["denied a/b uid:2", "denied a/b uid:2", "denied a/b uid:1"]);
}
