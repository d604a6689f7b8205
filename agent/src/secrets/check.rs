//! Whether steps could have their secrets now: every server of `secrets.toml` is asked, and no secret is read.
//!
//! Guarantees: no value of a server's is read, and one of this host's is read and dropped; what is made for it (a login, a token of a step's)
//! is ended, and stands in the audit log. What is not: a step that logs in by itself cannot be tried without a step.

use super::fitting::unfit;
use super::judge::{self, Asks, Tried};
use super::mapping::{Rule, Source};
use super::service::{Rules, Secrets, now, seconds};
use crate::audit::{Action, AuditEvent, OURSELVES};
use crate::chain::chain;
use crate::vault::{Read, StepMeta, StepTried};
use ampoule_evidence::rfc3339;
use ampoule_spec::Name;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// What the metadata of a token say that is made for a check.
const NOBODY: &str = "ampoule-check";
/// How long one server may take.
const SERVER_WITHIN: Duration = Duration::from_secs(120);

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FindingState {
    /// As it should be.
    Ok,
    /// It cannot be known without a step, or another finding kept it from being looked at.
    Unknown,
    /// Steps can have their secrets, and something should be changed.
    Warning,
    /// Steps would not have their secrets.
    Failed,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub what: &'static str,
    /// How it is.
    pub state: FindingState,
    /// More about it, and what to do.
    pub detail: String,
    /// Whether it may be otherwise later without anybody doing anything.
    pub passes: bool,
}

impl Finding {
    pub(super) fn new(what: &'static str, state: FindingState, detail: impl Into<String>) -> Self {
        Self { what, state, detail: detail.into(), passes: false }
    }
}

/// A server that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedServer {
    /// Its name.
    pub server: Name,
    /// What was found.
    pub findings: Vec<Finding>,
}

/// A secret whose source was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedRule {
    /// Its project.
    pub project: Name,
    /// Its name.
    pub name: Name,
    /// What kind of place gives it.
    pub provider: String,
    /// What was found.
    pub finding: Finding,
}

/// Everything that was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checked {
    /// By name.
    pub servers: Vec<CheckedServer>,
    /// By project and name.
    pub rules: Vec<CheckedRule>,
    /// Whether what was looked at is what the files say, as they were read last; none: nobody has said.
    pub configuration: Option<Finding>,
}

/// Somebody else has the servers checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Busy;

/// Secrets of the file, by project and name.
type Of<'a> = Vec<(&'a (Name, Name), &'a Rule)>;

impl Secrets {
    /// Looks at the servers, and at where each secret comes from: of one project, or of all.
    ///
    /// # Errors
    /// [`Busy`].
    pub async fn look_at_servers(self: &Arc<Self>, project: Option<&Name>) -> Result<Checked, Busy> {
        let Ok(turn) = self.checking.clone().try_lock_owned() else { return Err(Busy) };
        let (this, project) = (self.clone(), project.cloned());
        // A task of its own: whoever is dropped in the middle would leave what it has made.
        let done = tokio::spawn(async move {
            let _turn = turn;
            this.look_at_all(project.as_ref()).await
        });
        Ok(done.await.unwrap_or_default())
    }

    async fn look_at_all(self: &Arc<Self>, project: Option<&Name>) -> Checked {
        let rules = self.rules();
        let of: Of<'_> = rules.mapping.rules.iter().collect();
        let of: Of<'_> = of.into_iter().filter(|((of, _), _)| project.is_none_or(|it| it == of)).collect();
        let named: BTreeSet<&Name> = of.iter().filter_map(|(_, rule)| server_of(rule)).collect();
        let servers = rules.servers.keys().filter(|name| project.is_none() || named.contains(name));
        let looked =
            futures_util::future::join_all(servers.map(|name| self.look_at(&rules, name, &of))).await;
        let mut checked = Checked { configuration: Some(self.read_last()), ..Checked::default() };
        let mut may = BTreeMap::new();
        for (name, findings, of_step) in looked {
            checked.servers.push(CheckedServer { server: name.clone(), findings });
            may.insert(name, of_step);
        }
        for ((project, name), rule) in of {
            let finding = match &rule.source {
                Source::Vault { server, read, .. } => judge::of_rule(read, may.get(server)),
                source => self.look_at_host(source.clone()).await,
            };
            let (project, name) = (project.clone(), name.clone());
            checked.rules.push(CheckedRule { project, name, provider: rule.source.provider(), finding });
        }
        checked
    }

    /// A server's findings, and what a step's token may do there.
    async fn look_at(
        self: &Arc<Self>,
        rules: &Rules,
        name: &Name,
        of: &Of<'_>,
    ) -> (Name, Vec<Finding>, judge::MayRead) {
        let Some(server) = rules.servers.get(name).cloned() else {
            return (name.clone(), Vec::new(), judge::MayRead::Unknown("it was taken away".to_owned()));
        };
        let reads: Vec<&Read> = of.iter().filter_map(|(_, rule)| read_at(rule, name)).collect();
        let asks = Asks::of(server.token_role(), &reads);
        let meta = StepMeta { job: NOBODY.to_owned(), step: NOBODY.to_owned(), project: NOBODY.to_owned() };
        let (this, of, asked) = (self.clone(), name.clone(), asks.clone());
        // In a task of its own: what was made is ended and told, also when nobody waits for that any more.
        let looked = tokio::spawn(async move {
            let tried = server.preflight(&asked, &meta).await;
            this.tell_made(&of, &tried).await;
            tried
        });
        match tokio::time::timeout(SERVER_WITHIN, looked).await.map(Result::ok) {
            Ok(Some(tried)) => {
                let (findings, may) = judge::of_server(&asks, &tried, seconds());
                (name.clone(), findings, may)
            }
            Ok(None) | Err(_) => {
                let text = format!("it has taken more than {SERVER_WITHIN:?} to answer");
                let finding =
                    Finding { passes: true, ..Finding::new("reachable", FindingState::Failed, text.clone()) };
                (name.clone(), vec![finding], judge::MayRead::Unknown(text))
            }
        }
    }

    /// What was made at a server stands in the audit log, as everything that is.
    async fn tell_made(&self, server: &Name, tried: &Tried) {
        let Tried::Asked { step: StepTried::Role { made: Ok(made), .. }, .. } = tried else { return };
        let event = AuditEvent::now(Action::SecretsChecked, OURSELVES)
            .with("server", server.as_str())
            .with("accessor_sha256", super::digest_of(made.accessor.as_str()))
            .with("revoked", made.ended.is_ok().to_string());
        if let Err(error) = self.audit().write(&event).await {
            tracing::warn!(error = chain(&error), "a check is not in the audit log");
        }
    }

    /// The configuration was read again: it is in force, or why not.
    pub fn was_read(&self, taken: Result<(), String>) {
        *self.read.lock().unwrap_or_else(PoisonError::into_inner) = (now(), taken);
    }

    fn read_last(&self) -> Finding {
        let (at, taken) = self.read.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let at = rfc3339(at);
        match taken {
            Ok(()) => Finding::new("files", FindingState::Ok, format!("what is in force was read at {at}")),
            Err(why) => {
                let text = format!(
                    "what was read at {at} was not taken, and what is looked at here is older: {why}; mend it and send SIGHUP"
                );
                Finding::new("files", FindingState::Failed, text)
            }
        }
    }

    async fn look_at_host(&self, source: Source) -> Finding {
        let credentials: Option<PathBuf> = self.credentials().map(Into::into);
        let looked = tokio::task::spawn_blocking(move || {
            let value = match &source {
                Source::File(path) => super::read_file(path),
                Source::Credential(name) => super::read_credential(credentials.as_deref(), name),
                Source::Vault { .. } => return Ok(()),
            };
            unfit(&value.map_err(|e| chain(&e))?).map_or(Ok(()), |why| Err(format!("it {why}")))
        });
        match looked.await.unwrap_or_else(|e| Err(e.to_string())) {
            Ok(()) => Finding::new("source", FindingState::Ok, "it can be read"),
            Err(reason) => Finding::new("source", FindingState::Failed, reason),
        }
    }
}

fn server_of(rule: &Rule) -> Option<&Name> {
    match &rule.source {
        Source::Vault { server, .. } => Some(server),
        _ => None,
    }
}

fn read_at<'a>(rule: &'a Rule, name: &Name) -> Option<&'a Read> {
    match &rule.source {
        Source::Vault { server, read, .. } if server == name => Some(read),
        _ => None,
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
