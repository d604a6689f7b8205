//! From a policy to the programs that the kernel runs.

use super::source::{Action, Condition, Group, Op, Policy};
use ampoule_spec::SeccompProgram;
use anyhow::{Context, Result, anyhow};
use seccompiler::{TargetArch, compile_from_json};
use serde_json::{Value, json};

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
const EAFNOSUPPORT: u32 = 97;

/// The programs in the order in which they are loaded.
///
/// The first allows what the policy allows and answers ENOSYS to everything else. The later ones turn
/// known calls into an errno of their own. The kernel takes the strictest action of all programs and,
/// among equal ones, that of the program loaded last; so a call that the first program does not know
/// still gets the errno of a later one.
const PROGRAMS: [(Action, &str); 3] = [
    (Action::Allow, "allow-list; ENOSYS for every other call"),
    (Action::Eperm, "EPERM for calls that exist but are denied"),
    (Action::Eafnosupport, "EAFNOSUPPORT for socket families that are not listed"),
];

/// Compiles a policy.
pub(crate) fn programs(policy: &Policy) -> Result<Vec<SeccompProgram>> {
    check_known(policy)?;
    PROGRAMS.iter().map(|(action, name)| program(policy, *action, name)).collect()
}

fn program(policy: &Policy, action: Action, name: &str) -> Result<SeccompProgram> {
    let groups = policy.groups.iter().filter(|g| g.action == action);
    let rules: Vec<Value> = groups.flat_map(rules_of).collect();
    let (matched, otherwise) = match action {
        Action::Allow => (json!("allow"), json!({ "errno": ENOSYS })),
        Action::Eperm => (json!({ "errno": EPERM }), json!("allow")),
        Action::Eafnosupport => (json!({ "errno": EAFNOSUPPORT }), json!("allow")),
        Action::Enosys => (json!({ "errno": ENOSYS }), json!("allow")),
    };
    let filter = json!({ "mismatch_action": otherwise, "match_action": matched, "filter": rules });
    let compiled = compile(policy, &filter).with_context(|| format!("program {name:?}"))?;
    Ok(SeccompProgram { name: name.to_owned(), instructions: compiled })
}

/// Names of groups that no program holds must be known too: a typing error would otherwise pass unseen.
fn check_known(policy: &Policy) -> Result<()> {
    let names = policy.groups.iter().flat_map(|g| &g.names);
    let rules: Vec<Value> = names.map(|name| json!({ "syscall": name })).collect();
    let filter = json!({ "mismatch_action": "allow", "match_action": "log", "filter": rules });
    compile(policy, &filter).map(drop)
}

fn compile(policy: &Policy, filter: &Value) -> Result<Vec<u64>> {
    let arch = TargetArch::try_from(policy.arch.as_str()).map_err(|e| anyhow!("{e}"))?;
    let text = serde_json::to_vec(&json!({ "program": filter }))?;
    let mut map = compile_from_json(text.as_slice(), arch).map_err(|e| anyhow!("{e}"))?;
    let program = map.remove("program").context("the compiler gave no program")?;
    Ok(program
        .iter()
        .map(|i| u64::from(i.code) << 48 | u64::from(i.jt) << 40 | u64::from(i.jf) << 32 | u64::from(i.k))
        .collect())
}

fn rules_of(group: &Group) -> Vec<Value> {
    let rule = |name: &String| match group.when.as_slice() {
        [] => vec![json!({ "syscall": name })],
        alternatives => alternatives
            .iter()
            .map(|all| json!({ "syscall": name, "args": all.iter().map(condition).collect::<Vec<_>>() }))
            .collect(),
    };
    group.names.iter().flat_map(rule).collect()
}

fn condition(c: &Condition) -> Value {
    let op = match (c.op, c.mask) {
        (Op::MaskedEq, mask) => json!({ "masked_eq": mask }),
        (Op::Eq, _) => json!("eq"),
        (Op::Ne, _) => json!("ne"),
    };
    let length = if c.bits == 32 { "dword" } else { "qword" };
    json!({ "index": c.arg, "type": length, "op": op, "val": c.value })
}
