//! What a look at a server says: pure functions of what it answered.

use super::check::{Finding, FindingState};
use crate::chain::chain;
use crate::vault::{Health, LoggedIn, Method, OfStep, Read, ServerState, StepTried, VaultError};
use std::collections::{BTreeMap, BTreeSet};

/// Clocks may differ by so much, in seconds: tokens of steps are good for five minutes, and servers allow about one.
const SKEW_MAX: u64 = 30;
/// What is named of a list.
const NAMED_MAX: usize = 5;

/// What a server is asked about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asks {
    /// Paths that the agent writes to (`update`), and what for.
    pub needs: Vec<(String, &'static str)>,
    /// Paths where it has no business.
    pub never: Vec<String>,
    /// Paths that steps read, and what they need there.
    pub reads: BTreeMap<String, &'static str>,
}

impl Asks {
    /// Of a server with this token role (none: steps log in by themselves, or have no token there), and these reads.
    pub(super) fn of(role: Option<&str>, reads: &[&Read]) -> Self {
        let mut needs = Vec::new();
        if let Some(role) = role {
            needs.push((format!("auth/token/create/{role}"), "making steps' tokens"));
        }
        needs.push(("auth/token/renew-accessor".to_owned(), "keeping steps' tokens alive"));
        needs.push(("auth/token/revoke-accessor".to_owned(), "ending steps' tokens"));
        if reads.iter().any(|read| read.is_dynamic()) {
            needs.push(("sys/leases/renew".to_owned(), "keeping leases alive"));
            needs.push(("sys/leases/revoke".to_owned(), "ending leases"));
        }
        let paths = reads.iter().filter_map(|read| Some((read.path().ok()?, needed(read))));
        let reads: BTreeMap<String, &'static str> = paths.collect();
        let mut never: BTreeSet<String> = reads.keys().cloned().collect();
        let everything = [
            "auth/token/create",
            "auth/token/create-orphan",
            "sys/auth/ampoule-check",
            "sys/leases/revoke-force/ampoule-check",
            "sys/leases/revoke-prefix/ampoule-check",
            "sys/mounts/ampoule-check",
            "sys/policies/acl/ampoule-check",
            "sys/seal",
        ];
        never.extend(everything.map(str::to_owned));
        never.extend(role.map(|role| format!("auth/token/roles/{role}")));
        Self { needs, never: never.into_iter().collect(), reads }
    }

    /// Everything about which the agent's own login is asked.
    pub(super) fn of_agent(&self) -> Vec<String> {
        self.needs.iter().map(|(path, _)| path).chain(&self.never).cloned().collect()
    }

    /// The same of a step's token.
    pub(super) fn of_step(&self) -> Vec<String> {
        self.reads.keys().cloned().collect()
    }
}

/// The capability that a read needs.
fn needed(read: &Read) -> &'static str {
    match read {
        Read::Kv1 { .. } | Read::Kv2 { .. } | Read::Database { .. } => "read",
        Read::Path { method: Method::Get, .. } => "read",
        Read::Pki { .. } | Read::Ssh { .. } | Read::Path { method: Method::Write, .. } => "update",
    }
}

/// What a server answered.
#[derive(Debug)]
pub enum Tried {
    /// No address serves.
    Away(Vec<Health>),
    /// There is no login.
    Outside(Vec<Health>, VaultError),
    /// It was asked.
    Asked {
        /// How its addresses are.
        health: Vec<Health>,
        /// What came of a login.
        login: LoggedIn,
        /// What came of a step's token.
        step: StepTried,
    },
}

/// What a step's token may do at a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum MayRead {
    /// By path, what it may and what it needs.
    Known(BTreeMap<String, Vec<String>>),
    /// Nobody can say without a step.
    ByStep,
    /// Something was in the way.
    Unknown(String),
}

/// The findings about a server.
pub(super) fn of_server(asks: &Asks, tried: &Tried, now: u64) -> (Vec<Finding>, MayRead) {
    let (health, not_asked) = match tried {
        Tried::Away(health) => (health, Some("the server cannot be reached".to_owned())),
        Tried::Outside(health, _) => (health, Some("the agent cannot log in".to_owned())),
        Tried::Asked { health, .. } => (health, None),
    };
    let mut findings = vec![reachable(health)];
    findings.extend(clock(health, now));
    match tried {
        Tried::Away(_) => {}
        Tried::Outside(_, error) => findings.push(failed("login", error)),
        Tried::Asked { login, step, .. } => {
            findings.push(Finding::new(
                "login",
                FindingState::Ok,
                format!("it works, for {} s", login.ttl.as_secs()),
            ));
            findings.extend(policy(asks, login));
            let (finding, may) = of_step(step);
            findings.extend(finding);
            return (findings, may);
        }
    }
    let why = not_asked.unwrap_or_default();
    let unknown = |what| Finding::new(what, FindingState::Unknown, why.clone());
    if matches!(tried, Tried::Away(_)) {
        findings.push(unknown("login"));
    }
    findings.extend([unknown("policy"), unknown("step")]);
    (findings, MayRead::Unknown(why))
}

fn failed(what: &'static str, error: &VaultError) -> Finding {
    Finding { passes: error.retryable(), ..Finding::new(what, FindingState::Failed, chain(error)) }
}

/// One address that serves is enough; those that do not are said.
fn reachable(health: &[Health]) -> Finding {
    let why = |of: &Health| of.silence.as_ref().map_or(String::new(), |why| format!(" ({why})"));
    let each: Vec<_> = health.iter().map(|of| format!("{} is {}{}", of.address, of.state, why(of))).collect();
    let serves = |of: &&Health| of.state == ServerState::Up;
    let lost = |of: &&Health| !matches!(of.state, ServerState::Up | ServerState::Standby);
    let state = match (health.iter().any(|of| serves(&of)), health.iter().any(|of| lost(&of))) {
        (false, _) => FindingState::Failed,
        (true, true) => FindingState::Warning,
        (true, false) => FindingState::Ok,
    };
    let passes = state == FindingState::Failed;
    Finding { passes, ..Finding::new("reachable", state, each.join("; ")) }
}

fn clock(health: &[Health], now: u64) -> Option<Finding> {
    let times = health.iter().filter_map(|of| Some((of.time?.abs_diff(now), &of.address)));
    let (most, address) = times.max()?;
    if most <= SKEW_MAX {
        return Some(Finding::new("clock", FindingState::Ok, format!("it differs by {most} s at most")));
    }
    let text = format!(
        "that of {address} differs by {most} s; logins by tokens fail if that grows. Have both keep the time (NTP)"
    );
    Some(Finding::new("clock", FindingState::Warning, text))
}

/// What the agent's own login may do: all that it needs, and little else.
fn policy(asks: &Asks, login: &LoggedIn) -> Vec<Finding> {
    let may = match &login.may {
        Ok(may) => by_path(may),
        Err(error @ VaultError::Denied { .. }) => {
            let text = format!(
                "{}; give the agent's role update on sys/capabilities-self, as examples/vault/ampoule-agent.hcl does",
                chain(error)
            );
            return vec![Finding::new("policy", FindingState::Unknown, text)];
        }
        Err(error) => return vec![failed("policy", error)],
    };
    let lacks = asks.needs.iter().filter(|(path, _)| !has(&may, path, "update"));
    let lacks: Vec<_> = lacks.map(|(path, what)| format!("update on {path} ({what})")).collect();
    let first = if lacks.is_empty() {
        Finding::new("policy", FindingState::Ok, "the agent may do all that it needs")
    } else {
        let text = format!("the agent's role lacks {}; see examples/vault/ampoule-agent.hcl", named(&lacks));
        Finding::new("policy", FindingState::Failed, text)
    };
    let (ends, excess) = (login.ended.as_ref(), excess(asks, &may));
    let mut findings = vec![first, excess];
    if let Some(Err(error)) = ends {
        let text = format!(
            "the login of this check was not ended ({}), and lives for {:?}; give the agent's role update on auth/token/revoke-self",
            chain(error),
            login.ttl
        );
        findings.push(Finding::new("logout", FindingState::Warning, text));
    }
    findings
}

fn excess(asks: &Asks, may: &BTreeMap<String, Vec<String>>) -> Finding {
    let something = |path: &&String| may.get(*path).is_some_and(|of| of.iter().any(|word| word != "deny"));
    let more = |(path, _): &&(String, &str)| {
        may.get(path).is_some_and(|of| of.iter().any(|word| word == "sudo" || word == "root"))
    };
    let paths = asks.never.iter().filter(something);
    let paths: Vec<String> =
        paths.chain(asks.needs.iter().filter(more).map(|(path, _)| path)).cloned().collect();
    if paths.is_empty() {
        return Finding::new("excess", FindingState::Ok, "it may do nothing else that was asked about");
    }
    let text = format!(
        "the agent's role may do more than it needs, at {}; a leak of its token would be one of that too",
        named(&paths)
    );
    Finding::new("excess", FindingState::Warning, text)
}

fn of_step(step: &StepTried) -> (Vec<Finding>, MayRead) {
    match step {
        StepTried::Nowhere => {
            let text = "steps have no token here: configure step.token_role or step.jwt";
            let finding = Finding::new("step", FindingState::Failed, text);
            (vec![finding], MayRead::Unknown("steps have no token there".to_owned()))
        }
        StepTried::ByStep => {
            let text = "each step logs in by itself, and the role's claims decide: not tried without a step";
            (vec![Finding::new("step", FindingState::Unknown, text)], MayRead::ByStep)
        }
        StepTried::Role { name, made: Err(error) } => {
            let mut finding = failed("step", error);
            finding.detail = format!("token role {name}: {}", finding.detail);
            (vec![finding], MayRead::Unknown("no token of a step's can be made".to_owned()))
        }
        StepTried::Role { name, made: Ok(made) } => of_token(name, made),
    }
}

fn of_token(role: &str, made: &OfStep) -> (Vec<Finding>, MayRead) {
    let policies = if made.policies.is_empty() { "no policy".to_owned() } else { made.policies.join(", ") };
    let text = format!(
        "token role {role} makes orphans that can be renewed and revoked, for {:?}, with {policies}",
        made.ttl
    );
    let mut findings = vec![Finding::new("step", FindingState::Ok, text)];
    if let Err(error) = &made.ended {
        let text = format!("the token of this check was not revoked ({}), and ends by itself", chain(error));
        findings.push(Finding {
            passes: error.retryable(),
            ..Finding::new("revoke", FindingState::Failed, text)
        });
    }
    let may = match &made.may {
        Ok(may) => MayRead::Known(by_path(may)),
        Err(VaultError::Denied { .. }) => MayRead::Unknown(
            "the steps' policy lacks update on sys/capabilities-self, as examples/vault/ampoule-step-app.hcl has it".to_owned(),
        ),
        Err(error) => MayRead::Unknown(chain(error)),
    };
    (findings, may)
}

/// The finding about a secret that a server gives.
pub(super) fn of_rule(read: &Read, may: Option<&MayRead>) -> Finding {
    let path = match read.path() {
        Ok(path) => path,
        Err(error) => return failed("source", &error),
    };
    let unknown = |text: String| Finding::new("source", FindingState::Unknown, text);
    let may = match may {
        Some(MayRead::Known(may)) => may,
        Some(MayRead::ByStep) => return unknown("the role's claims decide, step by step".to_owned()),
        Some(MayRead::Unknown(why)) => return unknown(why.clone()),
        None => return unknown("its server was not looked at".to_owned()),
    };
    let need = needed(read);
    if !has(may, &path, need) {
        let text = format!("a step's token lacks {need} on {path}; add it to the policy of the token role");
        return Finding::new("source", FindingState::Failed, text);
    }
    let beyond =
        may.get(&path).into_iter().flatten().filter(|word| !is_enough(word, need) || *word == "root");
    let beyond: Vec<String> = beyond.cloned().collect();
    if beyond.is_empty() {
        return Finding::new("source", FindingState::Ok, format!("a step's token may {need} {path}"));
    }
    let text = format!("a step's token has also {} on {path}; {need} is enough", named(&beyond));
    Finding::new("source", FindingState::Warning, text)
}

fn by_path(may: &[(String, Vec<String>)]) -> BTreeMap<String, Vec<String>> {
    may.iter().cloned().collect()
}

/// Whether a capability is one that does what is needed. (A write to what is not there is `create`.)
fn is_enough(word: &str, need: &str) -> bool {
    word == need || word == "root" || need == "update" && word == "create"
}

fn has(may: &BTreeMap<String, Vec<String>>, path: &str, need: &str) -> bool {
    may.get(path).is_some_and(|of| of.iter().any(|word| is_enough(word, need)))
}

fn named(all: &[String]) -> String {
    let some: Vec<&str> = all.iter().take(NAMED_MAX).map(String::as_str).collect();
    match all.len().saturating_sub(NAMED_MAX) {
        0 => some.join(", "),
        more => format!("{} and {more} more", some.join(", ")),
    }
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
