//! The jobs in memory, and the ways to find one.

use crate::job::model::{IdempotencyKey, Job};
use crate::job::service::{Page, Wanted};
use crate::job::state::Life;
use ampoule_spec::{JobId, Name, Sha256, UnixNanos};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Where a spec's frame is in the ledger's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SpecAt(pub(super) u64);

/// A job, and where its spec is unless it is finished.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) life: Arc<Life>,
    pub(super) spec: Option<SpecAt>,
}

/// How many finished jobs are kept, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// At most this many.
    pub count: usize,
    /// At most this long after their end, in nanoseconds.
    pub age_ns: u64,
}

impl Default for Retention {
    /// 10,000 jobs and 30 days.
    fn default() -> Self {
        Self { count: 10_000, age_ns: 30 * 24 * 60 * 60 * 1_000_000_000 }
    }
}

/// Jobs by id, key, project and fence. Ids are of UUID version 7: their order is that of their making.
#[derive(Debug, Default)]
pub(super) struct Index {
    jobs: BTreeMap<JobId, Kept>,
    keys: HashMap<(String, IdempotencyKey), JobId>,
    projects: HashMap<Name, BTreeSet<JobId>>,
    /// The highest attempt, and whose it is.
    fences: HashMap<Sha256, (u32, JobId)>,
}

impl Index {
    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }

    pub(super) fn kept(&self, id: &JobId) -> Option<&Kept> {
        self.jobs.get(id)
    }

    pub(super) fn by_key(&self, subject: &str, key: &IdempotencyKey) -> Option<&Kept> {
        self.jobs.get(self.keys.get(&(subject.to_owned(), key.clone()))?)
    }

    /// The highest attempt at what a fence stands for.
    pub(super) fn attempt(&self, fence: &Sha256) -> Option<u32> {
        self.fences.get(fence).map(|(attempt, _)| *attempt)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Kept> {
        self.jobs.values()
    }

    pub(super) fn put(&mut self, kept: Kept) {
        let job = &kept.life.job;
        if !self.jobs.contains_key(&job.id) {
            self.keys.insert((job.caller.subject.clone(), job.key.clone()), job.id.clone());
            self.projects.entry(job.project.clone()).or_default().insert(job.id.clone());
            let seen = self.fences.entry(kept.life.fence).or_insert((0, job.id.clone()));
            if job.attempt >= seen.0 {
                *seen = (job.attempt, job.id.clone());
            }
        }
        self.jobs.insert(job.id.clone(), kept);
    }

    pub(super) fn remove(&mut self, id: &JobId) {
        let Some(kept) = self.jobs.remove(id) else { return };
        let job = &kept.life.job;
        self.keys.remove(&(job.caller.subject.clone(), job.key.clone()));
        if let Some(ids) = self.projects.get_mut(&job.project) {
            ids.remove(id);
            if ids.is_empty() {
                self.projects.remove(&job.project);
            }
        }
        if self.fences.get(&kept.life.fence).is_some_and(|(_, holder)| holder == id) {
            self.fences.remove(&kept.life.fence);
        }
    }

    /// Finished jobs whose retention is over, oldest end first.
    pub(super) fn expired(&self, retention: &Retention, now: UnixNanos) -> Vec<JobId> {
        let ended =
            self.jobs.values().filter_map(|kept| Some((kept.life.job.finished_at?, &kept.life.job.id)));
        let mut ended: Vec<_> = ended.collect();
        ended.sort_unstable();
        let surplus = ended.len().saturating_sub(retention.count);
        let old = ended.partition_point(|(at, _)| now.0.saturating_sub(at.0) > retention.age_ns);
        ended.into_iter().take(surplus.max(old)).map(|(_, id)| id.clone()).collect()
    }

    /// Those that a list may have, newest first; filters that need a look at the job are for [`page`].
    pub(super) fn candidates(&self, wanted: &Wanted) -> Vec<Arc<Life>> {
        let before = |id: &JobId| wanted.before.as_ref().is_none_or(|before| id < before);
        match &wanted.project {
            Some(project) => {
                let ids = self.projects.get(project).into_iter().flatten().rev().filter(|id| before(id));
                ids.filter_map(|id| self.jobs.get(id)).map(|kept| kept.life.clone()).collect()
            }
            None => {
                let jobs = self.jobs.iter().rev().filter(|(id, _)| before(id));
                jobs.map(|(_, kept)| kept.life.clone()).collect()
            }
        }
    }
}

/// The page that is asked for, of candidates in their order. Called without any lock: `may_read` may take its time.
pub(super) fn page(
    candidates: &[Arc<Life>],
    wanted: &Wanted,
    may_read: &(dyn Fn(&Job) -> bool + Sync),
) -> Page {
    let fits = |job: &Job| {
        (wanted.states.is_empty() || wanted.states.contains(&job.state))
            && (wanted.outcomes.is_empty()
                || job.end.as_ref().is_some_and(|end| wanted.outcomes.contains(&end.outcome)))
            && wanted.labels.iter().all(|(name, value)| job.labels.get(name) == Some(value))
    };
    let mut found = candidates.iter().filter(|life| fits(&life.job) && may_read(&life.job));
    let jobs = found.by_ref().take(wanted.limit).map(|life| life.job.clone()).collect();
    Page { jobs, more: found.next().is_some() }
}
