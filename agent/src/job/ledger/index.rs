//! The jobs in memory, and the ways to find one.

use crate::job::model::{IdempotencyKey, Job};
use crate::job::service::{Page, Wanted};
use crate::job::state::Life;
use ampoule_spec::{JobId, Name, Sha256, UnixNanos};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

/// Where a spec's frame is. It holds the file, which a compaction may have replaced: whoever has this can read the spec.
#[derive(Debug, Clone)]
pub(super) struct SpecAt {
    pub(super) file: Arc<File>,
    pub(super) offset: u64,
    /// Whether it leaves something to be found.
    pub(super) is_open: bool,
    /// The spec's length.
    pub(super) bytes: u64,
}

/// A job, and where its spec is unless it is finished.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) life: Arc<Life>,
    pub(super) spec: Option<SpecAt>,
}

/// What a job costs beside its record: its frame and its places in memory, roughly.
const JOB_BYTES: u64 = 4096;
/// By which part more than is kept a project may have before it is refused: what is over goes at the next sweep.
const OVER: u8 = 8;
/// When to ask again while what is old enough waits for the next sweep.
const SOON: Duration = Duration::from_secs(5);

/// What is kept of finished jobs. All of it counts by project: what one has says nothing about another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// At most this many of a project.
    pub count: usize,
    /// At most this many bytes of a project: records, specs of jobs that are not finished, and some KiB for each job.
    pub bytes: u64,
    /// At most this long after their end, in nanoseconds.
    pub age_ns: u64,
    /// At least this long after their end, in nanoseconds, whatever else there is: a project that has more is refused.
    pub least_ns: u64,
}

impl Default for Retention {
    /// 10,000 jobs and 4 GiB of a project, an hour at least and 30 days at most.
    fn default() -> Self {
        let hour = 60 * 60 * 1_000_000_000;
        Self { count: 10_000, bytes: 4 << 30, age_ns: 30 * 24 * hour, least_ns: hour }
    }
}

/// A project has all that it may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Full {
    /// How much of what, for people.
    pub(super) kept: String,
    pub(super) retry_after: Duration,
}

/// What a project has.
#[derive(Debug, Default)]
struct Project {
    ids: BTreeSet<JobId>,
    finished: usize,
    bytes: u64,
}

impl Kept {
    fn bytes(&self) -> u64 {
        let spec = self.spec.as_ref().map_or(0, |spec| spec.bytes);
        let record = self.life.job.end.as_ref().map_or(0, |end| end.record_bytes);
        JOB_BYTES.saturating_add(spec).saturating_add(record)
    }

    fn is_finished(&self) -> bool {
        self.life.job.finished_at.is_some()
    }
}

/// Jobs by id, key, project and fence. Ids are of UUID version 7: their order is that of their making.
#[derive(Debug, Default)]
pub(super) struct Index {
    jobs: BTreeMap<JobId, Kept>,
    keys: HashMap<(String, IdempotencyKey), JobId>,
    projects: HashMap<Name, Project>,
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
        let life = kept.life.clone();
        let job = &life.job;
        if !self.jobs.contains_key(&job.id) {
            self.keys.insert((job.caller.subject.clone(), job.key.clone()), job.id.clone());
            let seen = self.fences.entry(life.fence).or_insert((0, job.id.clone()));
            if job.attempt >= seen.0 {
                *seen = (job.attempt, job.id.clone());
            }
        }
        let (bytes, finished) = (kept.bytes(), kept.is_finished());
        let of = self.projects.entry(job.project.clone()).or_default();
        of.ids.insert(job.id.clone());
        let before = self.jobs.insert(job.id.clone(), kept);
        if let Some(before) = before {
            of.bytes = of.bytes.saturating_sub(before.bytes());
            of.finished = of.finished.saturating_sub(usize::from(before.is_finished()));
        }
        of.bytes = of.bytes.saturating_add(bytes);
        of.finished = of.finished.saturating_add(usize::from(finished));
    }

    pub(super) fn remove(&mut self, id: &JobId) {
        let Some(kept) = self.jobs.remove(id) else { return };
        let job = &kept.life.job;
        self.keys.remove(&(job.caller.subject.clone(), job.key.clone()));
        if let Some(of) = self.projects.get_mut(&job.project) {
            of.ids.remove(id);
            of.bytes = of.bytes.saturating_sub(kept.bytes());
            of.finished = of.finished.saturating_sub(usize::from(kept.is_finished()));
            if of.ids.is_empty() {
                self.projects.remove(&job.project);
            }
        }
        if self.fences.get(&kept.life.fence).is_some_and(|(_, holder)| holder == id) {
            self.fences.remove(&kept.life.fence);
        }
    }

    /// Finished jobs whose retention is over, of each project the oldest end first.
    pub(super) fn expired(&self, retention: &Retention, now: UnixNanos) -> Vec<JobId> {
        let mut gone = Vec::new();
        for of in self.projects.values() {
            let ended = of.ids.iter().filter_map(|id| self.jobs.get(id));
            let ended = ended.filter_map(|kept| Some((kept.life.job.finished_at?, kept)));
            let mut ended: Vec<_> = ended.collect();
            ended
                .sort_unstable_by(|(a, one), (b, other)| (a, &one.life.job.id).cmp(&(b, &other.life.job.id)));
            let (mut count, mut bytes) = (of.finished, of.bytes);
            for (at, kept) in ended {
                let age = now.0.saturating_sub(at.0);
                let is_over = count > retention.count || bytes > retention.bytes;
                if age <= retention.age_ns && !(is_over && age >= retention.least_ns) {
                    break;
                }
                gone.push(kept.life.job.id.clone());
                (count, bytes) = (count.saturating_sub(1), bytes.saturating_sub(kept.bytes()));
            }
        }
        gone
    }

    /// Whether a project has so much that it may have no more: an eighth more than is kept of it.
    pub(super) fn full(&self, project: &Name, retention: &Retention, now: UnixNanos) -> Option<Full> {
        let of = self.projects.get(project)?;
        let count = retention.count.saturating_add((retention.count / usize::from(OVER)).max(1));
        let bytes = retention.bytes.saturating_add(retention.bytes / u64::from(OVER));
        let kept = if of.finished >= count {
            format!("{} finished jobs", of.finished)
        } else if of.bytes >= bytes {
            format!("{} bytes of jobs and records", of.bytes)
        } else {
            return None;
        };
        // Ids are in the order of their making, and so roughly in that of their ends.
        let first = of.ids.iter().filter_map(|id| self.jobs.get(id)?.life.job.finished_at).next();
        let wait = first.map_or(0, |at| at.0.saturating_add(retention.least_ns).saturating_sub(now.0));
        Some(Full { kept, retry_after: Duration::from_nanos(wait).max(SOON) })
    }

    /// Those that a list may have, newest first; filters that need a look at the job are for [`page`].
    pub(super) fn candidates(&self, wanted: &Wanted) -> Vec<Arc<Life>> {
        let before = |id: &JobId| wanted.before.as_ref().is_none_or(|before| id < before);
        match &wanted.project {
            Some(project) => {
                let ids = self.projects.get(project).into_iter().flat_map(|of| of.ids.iter().rev());
                let ids = ids.filter(|id| before(id));
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
