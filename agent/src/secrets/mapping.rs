//! What the operator gives to whom: a pure function of the file and of what is proven about a job.

use crate::job::Caller;
use crate::vault::Read;
use ampoule_spec::{Delivery, Name};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// What a tenant is told after the secret's name, whatever the reason: which secrets there are, and for whom, is the operator's.
pub const TENANT_TEXT: &str = "the job may not have this secret, or there is none of that name for its project; \
    ask the operator of this host";

/// The claim of a caller's token that says for which ref it was given.
const REF_CLAIM: &str = "ref";

/// Everything that decides whether a step gets a secret. Nothing but the name and the delivery is a tenant's word.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Whose job it is, as admission has let it in.
    pub project: &'a Name,
    /// The secret's name.
    pub name: &'a Name,
    /// Who has submitted the job, as the transport has proven it.
    pub caller: &'a Caller,
    /// The job's profile.
    pub profile: &'a Name,
    /// Whether the job has git inputs, and somebody whom the operator has named for the project signed each of them. Of a job whose
    /// commits were not fetched yet: whether it demands that.
    pub is_signed: bool,
    /// How the step wants it.
    pub delivery: &'a Delivery,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file of this host.
    File(PathBuf),
    /// A credential that systemd has handed to the daemon.
    Credential(String),
    /// A server.
    Vault {
        /// Which, by its name in the file.
        server: Name,
        /// What is read there.
        read: Read,
        /// Which field of the answer is the value; none: all of it, as JSON.
        field: Option<String>,
        /// How often it is looked for another value while a step runs; none: never.
        rotate: Option<Duration>,
    },
}

impl Source {
    /// What kind of place it is, as evidence says it.
    pub fn provider(&self) -> String {
        match self {
            Self::File(_) => "file".to_owned(),
            Self::Credential(_) => "systemd-credential".to_owned(),
            Self::Vault { server, .. } => format!("vault:{server}"),
        }
    }
}

/// One secret of a project's. What a list does not name is let through where the list is not there, and nothing where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Where it comes from.
    pub source: Source,
    /// Subjects whose jobs may have it; none: of everybody who may submit.
    pub callers: Option<Vec<String>>,
    /// Refs for which the caller's token was given; none: any, also of callers who have no token.
    pub refs: Option<Vec<String>>,
    /// Profiles of jobs; none: any.
    pub profiles: Option<Vec<Name>>,
    /// Whether each commit of the job has to be signed by whom the operator has named for the project.
    pub signed: bool,
    /// Whether a step may have it in its environment.
    pub env_allowed: bool,
}

/// No.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    /// Which and why, for the audit log alone.
    pub reason: String,
    /// Which, and [`TENANT_TEXT`].
    pub told: String,
}

impl Denied {
    pub(crate) fn new(secret: &Name, why: &str) -> Self {
        Self { reason: format!("secret {secret}: {why}"), told: format!("secret {secret}: {TENANT_TEXT}") }
    }
}

/// The secrets of all projects.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mapping {
    /// By project and name.
    pub(super) rules: BTreeMap<(Name, Name), Rule>,
}

impl Mapping {
    /// The rule that lets a step have a secret.
    ///
    /// # Errors
    /// [`Denied`] for everything that no rule lets through.
    pub fn decide(&self, wanted: &Wanted<'_>) -> Result<&Rule, Denied> {
        let denied = |why: &str| Err(Denied::new(wanted.name, why));
        let Some(rule) = self.rules.get(&(wanted.project.clone(), wanted.name.clone())) else {
            return denied("the project has none of that name");
        };
        let subject = &wanted.caller.subject;
        if rule.callers.as_ref().is_some_and(|callers| !callers.contains(subject)) {
            return denied("not for this caller");
        }
        if rule.profiles.as_ref().is_some_and(|profiles| !profiles.contains(wanted.profile)) {
            return denied("not with this profile");
        }
        if let Some(refs) = &rule.refs {
            let Some(proven) = reference(wanted.caller) else {
                return denied("for refs alone, and the caller's token has no claim `ref`");
            };
            if !refs.iter().any(|pattern| covers(pattern, proven)) {
                return denied("not for the ref of the caller's token");
            }
        }
        if rule.signed && !wanted.is_signed {
            return denied("for signed commits alone");
        }
        if matches!(wanted.delivery, Delivery::Env(_)) && !rule.env_allowed {
            return denied("not in an environment");
        }
        Ok(rule)
    }

    /// How many secrets there are.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }
}

/// The ref for which a caller's token was given, by its issuer's word. A job's own word of a ref is nobody's.
pub(super) fn reference(caller: &Caller) -> Option<&str> {
    caller.claims.get(REF_CLAIM).and_then(serde_json::Value::as_str)
}

/// A pattern is a ref, or the beginning of one with `*` at its end.
fn covers(pattern: &str, reference: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => reference.starts_with(beginning),
        None => reference == pattern,
    }
}

#[cfg(test)]
#[path = "mapping_tests.rs"]
mod tests;
