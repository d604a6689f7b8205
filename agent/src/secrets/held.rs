//! What is open, for operators: listed without a value, an accessor or a lease's name, and taken back when they ask for it.

use super::leases::{Grant, GrantId};
use super::service::Secrets;
use crate::vault::hidden;
use ampoule_spec::{JobId, Name, UnixNanos};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// How long an answer to a revoke waits for it to be done.
const REVOKED_WITHIN: Duration = Duration::from_secs(5);
/// The most characters of an error that are shown.
const ERROR_CHARS_MAX: usize = 500;

/// Which grants are listed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Only of this project.
    pub project: Option<Name>,
    /// Only of this job.
    pub job: Option<JobId>,
    /// Only of this server.
    pub server: Option<Name>,
    /// Only what is to be revoked.
    pub pending: bool,
    /// Only after this one.
    pub after: Option<GrantId>,
    /// At most so many.
    pub limit: usize,
}

impl Wanted {
    fn has(&self, id: GrantId, grant: &Grant) -> bool {
        self.after.is_none_or(|after| id > after)
            && self.project.as_ref().is_none_or(|project| *project == grant.project)
            && self.job.as_ref().is_none_or(|job| *job == grant.job)
            && self.server.as_ref().is_none_or(|server| grant.server.as_ref() == Some(server))
            && (!self.pending || grant.revoking_at.is_some())
    }
}

/// A grant as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Its number.
    pub id: GrantId,
    /// Whose job.
    pub project: Name,
    /// Which job.
    pub job: JobId,
    /// Which step, from 0.
    pub step: u32,
    /// The step's name.
    pub step_name: Name,
    /// From which server; none: from this host.
    pub server: Option<Name>,
    /// The names of the secrets.
    pub secrets: Vec<String>,
    /// SHA-256 of the token's accessor.
    pub accessor_sha256: Option<String>,
    /// How many leases there are.
    pub leases: usize,
    /// When it was made.
    pub minted_at: UnixNanos,
    /// When the step had it.
    pub given_at: Option<UnixNanos>,
    /// Until when it lives.
    pub until: UnixNanos,
    /// Since when it is to be revoked.
    pub revoking_at: Option<UnixNanos>,
    /// How often that was tried in vain by this process.
    pub tries: u32,
    /// Why the last time.
    pub last_error: Option<String>,
}

/// A page of them, and whether there are more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// By number.
    pub grants: Vec<Shown>,
    /// Whether there are more after them.
    pub more: bool,
}

/// What is to be revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// Everything of a job.
    Job(JobId),
    /// One.
    Grant(GrantId),
}

/// What came of a wish for a revoke.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asked {
    /// How many were open.
    pub asked: usize,
    /// How many of them still are.
    pub open: usize,
}

/// What is known of revokes that are under way, and the way to have one tried at once.
#[derive(Debug, Default)]
pub(super) struct UnderWay(Mutex<BTreeMap<GrantId, Tries>>);

#[derive(Debug, Default)]
struct Tries {
    count: u32,
    last: Option<String>,
    wake: Arc<Notify>,
}

impl UnderWay {
    fn all(&self) -> MutexGuard<'_, BTreeMap<GrantId, Tries>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A revoke begins: from now on a wish is kept.
    pub(super) fn begins(&self, id: GrantId) {
        self.all().entry(id).or_default();
    }

    /// A try failed.
    pub(super) fn failed(&self, id: GrantId, grant: &Grant, error: &str) {
        let mut all = self.all();
        let tries = all.entry(id).or_default();
        (tries.count, tries.last) = (tries.count.saturating_add(1), Some(shown(grant, error)));
    }

    /// Waits for so long, or until somebody wants it tried at once.
    pub(super) async fn pause(&self, id: GrantId, most: Duration) {
        let wake = self.all().entry(id).or_default().wake.clone();
        let _ = tokio::time::timeout(most, wake.notified()).await;
    }

    /// It is tried at once. A wish that comes during a try is kept for after it.
    fn wake(&self, id: GrantId) {
        if let Some(tries) = self.all().get(&id) {
            tries.wake.notify_one();
        }
    }

    /// It is over.
    pub(super) fn over(&self, id: GrantId) {
        self.all().remove(&id);
    }

    fn of(&self, id: GrantId) -> (u32, Option<String>) {
        self.all().get(&id).map(|tries| (tries.count, tries.last.clone())).unwrap_or_default()
    }
}

/// What a grant is named by at its server: neither accessor nor lease goes further.
pub(super) fn names(grant: &Grant) -> Vec<&str> {
    grant.accessor.iter().chain(&grant.leases).map(String::as_str).collect()
}

/// A failure as it is shown: what a server says of it may name what it could not take back.
pub(super) fn shown(grant: &Grant, error: &str) -> String {
    hidden(error.to_owned(), &names(grant)).chars().take(ERROR_CHARS_MAX).collect()
}

impl Secrets {
    /// What is open, by number.
    pub fn held(&self, wanted: &Wanted) -> Held {
        let mut open = self.open_grants().into_iter().filter(|(id, grant)| wanted.has(*id, grant));
        let grants = open.by_ref().take(wanted.limit).map(|(id, grant)| self.show(id, grant)).collect();
        Held { grants, more: open.next().is_some() }
    }

    fn show(&self, id: GrantId, grant: Grant) -> Shown {
        let (tries, last_error) = self.under_way.of(id);
        Shown {
            id,
            accessor_sha256: grant.accessor.as_deref().map(super::digest_of),
            leases: grant.leases.len(),
            project: grant.project,
            job: grant.job,
            step: grant.step,
            step_name: grant.step_name,
            server: grant.server,
            secrets: grant.secrets.into_iter().map(|given| given.name).collect(),
            minted_at: grant.minted_at,
            given_at: grant.given_at,
            until: grant.until,
            revoking_at: grant.revoking_at,
            tries,
            last_error,
        }
    }

    /// Of which project and job something that is open is; none: there is none.
    pub fn whose(&self, which: &Which) -> Option<(Name, JobId)> {
        let (_, grant) = self.open_which(which).into_iter().next()?;
        Some((grant.project, grant.job))
    }

    fn open_which(&self, which: &Which) -> Vec<(GrantId, Grant)> {
        match which {
            Which::Job(job) => self.open_of(job),
            Which::Grant(id) => {
                let found = self.leases().get(*id).filter(Grant::is_open);
                found.map(|grant| (*id, grant)).into_iter().collect()
            }
        }
    }

    /// Has something taken back now, and waits for it for a moment.
    pub async fn revoke_now(self: &Arc<Self>, which: &Which) -> Asked {
        let ids: Vec<GrantId> = self.open_which(which).into_iter().map(|(id, _)| id).collect();
        for id in &ids {
            if !self.begin_revoke(*id) {
                self.under_way.wake(*id);
            }
        }
        let open = || ids.iter().filter(|id| self.leases().get(**id).is_some_and(|of| of.is_open())).count();
        let all = async {
            loop {
                let mut told = std::pin::pin!(self.closed.notified());
                told.as_mut().enable();
                if open() == 0 {
                    return;
                }
                told.await;
            }
        };
        let _ = tokio::time::timeout(REVOKED_WITHIN, all).await;
        Asked { asked: ids.len(), open: open() }
    }
}

#[cfg(test)]
#[path = "held_tests.rs"]
mod tests;
