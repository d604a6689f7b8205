//! The one place in which a call is allowed or not.

use super::policy::{Decision, Policy, PolicyError};
use super::question::{Action, Question};
use crate::audit::{AuditError, AuditEvent};
use crate::audit_sink::{AuditSink, Refusal, Refused};
use crate::job::{Caller, Job};
use ampoule_spec::JobId;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Where a call came from, for the record of its refusal.
#[derive(Debug, Clone, Copy)]
pub struct Scene<'a> {
    /// `unix` or an address.
    pub peer: &'a str,
    /// The call: `ampoule.v1.JobService/GetJob`.
    pub call: &'a str,
}

/// Decides calls by the policy of a directory.
pub struct Desk {
    dir: PathBuf,
    policy: RwLock<Arc<Policy>>,
    audit: Arc<dyn AuditSink>,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Desk {
    /// Reads the policy.
    ///
    /// # Errors
    /// As [`Policy::load`].
    pub fn open(dir: PathBuf, audit: Arc<dyn AuditSink>) -> Result<Self, PolicyError> {
        let policy = RwLock::new(Arc::new(Policy::load(&dir)?));
        Ok(Self { dir, policy, audit })
    }

    /// Reads the policy again; what cannot be used changes nothing.
    ///
    /// # Errors
    /// As [`Policy::load`].
    pub fn reload(&self) -> Result<(), PolicyError> {
        self.take(self.read()?);
        Ok(())
    }

    /// Reads the policy as it is in its directory now; it is not in force yet.
    ///
    /// # Errors
    /// As [`Policy::load`].
    pub fn read(&self) -> Result<Policy, PolicyError> {
        Policy::load(&self.dir)
    }

    /// Puts a policy in force.
    pub fn take(&self, policy: Policy) {
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
    }

    fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the policy allows it. A no is told to the audit log.
    pub fn allows(&self, question: &Question<'_>, scene: Scene<'_>, job: Option<&JobId>) -> bool {
        let reason = match self.policy().decide(question) {
            Decision::Allowed => return true,
            Decision::Denied => "the policy does not allow it".to_owned(),
            Decision::Failed(reason) => {
                tracing::error!(action = question.action.as_str(), reason, "the policy failed");
                reason
            }
        };
        self.refused(Refusal::Denied, question, scene, job, &reason);
        false
    }

    /// Writes down what is about to be done. When it returns that is durable, and only then it may be done.
    ///
    /// # Errors
    /// [`AuditError`]: it must not be done.
    pub async fn write(&self, event: &AuditEvent) -> Result<(), AuditError> {
        self.audit.write(event).await
    }

    /// The same of what is about to be read; a repetition may be counted instead.
    ///
    /// # Errors
    /// [`AuditError`]: it must not be read.
    pub async fn write_read(&self, event: &AuditEvent) -> Result<(), AuditError> {
        self.audit.read(event).await
    }

    /// Tells the audit log of a call that was allowed, and then was not done.
    pub fn not_done(&self, question: &Question<'_>, scene: Scene<'_>, job: Option<&JobId>, reason: &str) {
        self.refused(Refusal::NotDone, question, scene, job, reason);
    }

    fn refused(
        &self,
        refusal: Refusal,
        question: &Question<'_>,
        scene: Scene<'_>,
        job: Option<&JobId>,
        reason: &str,
    ) {
        self.audit.record(&Refused {
            refusal,
            peer: scene.peer,
            caller: Some(&question.caller.subject),
            call: scene.call,
            action: Some(question.action.as_str()),
            project: question.project,
            job,
            reason,
        });
    }

    /// Whether the policy would allow it, for an answer that says more to some. A no is told to nobody: it was not asked for.
    pub fn would_allow(&self, question: &Question<'_>) -> bool {
        self.policy().decide(question) == Decision::Allowed
    }

    /// Whether the caller may read each of many jobs. What it may not is told to nobody: it did not ask for it.
    pub fn reader<'a>(&'a self, caller: &'a Caller) -> impl Fn(&Job) -> bool + Sync + 'a {
        let policy = self.policy();
        // Nothing else of a job is in the question, so jobs that are alike in these have one answer.
        let known = Mutex::new(BTreeMap::<(String, String, String), bool>::new());
        move |job| {
            let key = (job.project.to_string(), job.profile.to_string(), job.caller.subject.clone());
            let known_of = || known.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(answer) = known_of().get(&key) {
                return *answer;
            }
            let answer = policy.decide(&Question::job(caller, Action::Read, job)) == Decision::Allowed;
            known_of().insert(key, answer);
            answer
        }
    }

    /// Tells the audit log of a call whose caller is not known.
    pub fn unidentified(&self, scene: Scene<'_>, reason: &str) {
        let end = reason.char_indices().map(|(at, _)| at).take_while(|at| *at <= 256).last().unwrap_or(0);
        let reason = if reason.len() > 256 { reason.get(..end).unwrap_or_default() } else { reason };
        self.audit.record(&Refused {
            refusal: Refusal::Unidentified,
            peer: scene.peer,
            caller: None,
            call: scene.call,
            action: None,
            project: None,
            job: None,
            reason,
        });
    }
}
