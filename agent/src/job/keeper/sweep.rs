//! Retention: directories of finished jobs go by age and size, then their records with the ledger's own retention.
//!
//! Guarantees: what one project has here takes nothing from another that has no more than an equal part of the bytes; records
//! go by project alone.

use super::inner::{Inner, now};
use super::launcher::{Listed, Removals};
use super::options::Keep;
use crate::job::model::State;
use ampoule_spec::{JobId, Name, UnixNanos};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The least time between two sweeps.
const SWEEP_GAP: Duration = Duration::from_secs(5);

/// The directory of a finished job, and its outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kept {
    id: JobId,
    project: Name,
    ended: UnixNanos,
    bytes: u64,
}

impl Inner {
    /// Sweeps now and then, for as long as it is polled.
    pub(super) async fn keep_sweeping(self: Arc<Self>) {
        loop {
            self.sweep().await;
            // Whoever is refused for what is old asks for the next one; that is no way to keep the launcher busy.
            let gap = self.options.keep.every.min(SWEEP_GAP);
            tokio::time::sleep(gap).await;
            tokio::select! {
                () = tokio::time::sleep(self.options.keep.every.saturating_sub(gap)) => {}
                () = self.full.notified() => {}
            }
        }
    }

    /// Removes what is not kept any longer. Nothing that the ledger does not know is touched: it is reported.
    async fn sweep(self: &Arc<Self>) {
        if !self.launcher.is_up() {
            return;
        }
        let inner = self.clone();
        let removed = tokio::task::spawn_blocking(move || inner.remove_what_is_over()).await;
        for id in removed.unwrap_or_default() {
            if let Err(error) = self.ledger.forget(&id).await {
                tracing::warn!(job = %id, %error, "a job whose retention is over is not forgotten");
            }
        }
    }

    /// Removes directories, and records with theirs. The jobs of which nothing is left but what the ledger has. Blocks.
    fn remove_what_is_over(&self) -> Vec<JobId> {
        let Ok(mut listed) = self.launcher.jobs() else { return Vec::new() };
        self.note_unknown(&listed);
        let mut removals = self.launcher.removals();
        for id in over(self.kept(&listed), &self.options.keep, now()) {
            if forget(&mut removals, &id) {
                listed.remove(&id);
            }
        }
        let mut expired = self.ledger.expired(&self.options.ledger.retention, now());
        expired.retain(|id| !listed.contains_key(id) || forget(&mut removals, id));
        drop(removals);
        // The record last: while there is one, the ledger knows of it.
        expired.retain(|id| self.records.remove(id).is_ok());
        expired
    }

    fn note_unknown(&self, listed: &Listed) {
        let unknown: BTreeSet<_> =
            listed.keys().filter(|id| self.ledger.get(id).is_none()).cloned().collect();
        let mut trouble = self.trouble();
        for id in unknown.difference(&trouble.unknown) {
            tracing::error!(job = %id, "the launcher has a job that the ledger does not know; it is left as it is");
        }
        trouble.unknown = unknown;
    }

    /// Directories of finished jobs that may be removed. With one goes what keeps the job's outputs in the store.
    fn kept(&self, listed: &Listed) -> Vec<Kept> {
        let kept = listed.values().filter(|job| job.reported && !job.alive).filter_map(|job| {
            let life = self.ledger.get(&job.id).filter(|life| life.job.state == State::Finished)?;
            let outputs = life.job.end.iter().flat_map(|end| &end.outputs);
            let outputs = outputs.fold(0_u64, |sum, one| sum.saturating_add(one.bytes));
            let bytes = bytes_in(&self.launcher.job_dir(&job.id)).saturating_add(outputs);
            let project = life.job.project.clone();
            Some(Kept { id: job.id.clone(), project, ended: life.job.finished_at?, bytes })
        });
        kept.collect()
    }
}

fn forget(removals: &mut Removals<'_>, id: &JobId) -> bool {
    let forgotten = removals.forget(id);
    if let Err(error) = &forgotten {
        tracing::warn!(job = %id, %error, "the directory of a finished job is not removed now");
    }
    forgotten.is_ok()
}

/// Those that go: first by age, then of whoever has the most bytes the oldest, until the rest fits.
fn over(mut kept: Vec<Kept>, keep: &Keep, now: UnixNanos) -> Vec<JobId> {
    kept.sort_by(|a, b| (a.ended, &a.id).cmp(&(b.ended, &b.id)));
    let age = u64::try_from(keep.age.as_nanos()).unwrap_or(u64::MAX);
    let young = kept.partition_point(|one| now.0.saturating_sub(one.ended.0) > age);
    let rest = kept.split_off(young);
    let mut gone: Vec<JobId> = kept.into_iter().map(|one| one.id).collect();
    let mut projects: BTreeMap<Name, (u64, VecDeque<Kept>)> = BTreeMap::new();
    for one in rest {
        let (bytes, of) = projects.entry(one.project.clone()).or_default();
        *bytes = bytes.saturating_add(one.bytes);
        of.push_back(one);
    }
    while projects.values().fold(0_u64, |sum, (bytes, _)| sum.saturating_add(*bytes)) > keep.bytes {
        let most = projects.iter().max_by_key(|(_, (bytes, _))| *bytes).map(|(name, _)| name.clone());
        let Some((bytes, of)) = most.and_then(|name| projects.get_mut(&name)) else { break };
        let Some(oldest) = of.pop_front() else { break };
        *bytes = bytes.saturating_sub(oldest.bytes);
        gone.push(oldest.id);
    }
    gone
}

/// The bytes of a job's directory, which can be entered and not read: its files by name.
fn bytes_in(dir: &Path) -> u64 {
    let named = ["events", "spec.json", "report.json"].map(|name| std::fs::metadata(dir.join(name)));
    named.into_iter().flatten().fold(0, |sum, meta| sum.saturating_add(meta.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(n: u8, ended: u64, bytes: u64) -> Kept {
        let id = JobId::parse(&format!("01890a5d-ac96-774b-bcce-b3020{n:07}")).unwrap();
        let project = Name::parse("p").unwrap();
        Kept { id, project, ended: UnixNanos(ended * 1_000_000_000), bytes }
    }

    #[test]
    fn oldest_go_first_by_age_and_by_size_and_no_more_than_must() {
        let keep = |age, bytes| Keep { age: Duration::from_secs(age), bytes, every: Duration::from_secs(1) };
        let jobs = vec![kept(3, 30, 5), kept(1, 10, 5), kept(2, 20, 5)];
        let ids = |from: &[Kept]| from.iter().map(|one| one.id.clone()).collect::<Vec<_>>();
        let now = UnixNanos(40_000_000_000);
        let gone = |age, bytes| over(jobs.clone(), &keep(age, bytes), now);
        assert_eq!(gone(100, 100), []);
        assert_eq!(gone(100, 15), []);
        assert_eq!(gone(100, 14), ids(&[jobs[1].clone()]));
        assert_eq!(gone(100, 5), ids(&[jobs[1].clone(), jobs[2].clone()]));
        assert_eq!(gone(100, 0), ids(&[jobs[1].clone(), jobs[2].clone(), jobs[0].clone()]));
        assert_eq!(gone(15, 100), ids(&[jobs[1].clone(), jobs[2].clone()]));
        assert_eq!(gone(30, 100), []);
    }

    #[test]
    fn project_that_has_the_most_loses_its_own_oldest_and_no_other_does() {
        let keep = Keep { age: Duration::from_secs(100), bytes: 30, every: Duration::from_secs(1) };
        let of = |name: &str, one: Kept| Kept { project: Name::parse(name).unwrap(), ..one };
        // The oldest of all is another's, and its part is small.
        let mut jobs = vec![of("small", kept(0, 1, 9)), of("small", kept(1, 2, 1))];
        jobs.extend((2..50).map(|n| of("large", kept(n, u64::from(n) + 10, 7))));
        let gone = over(jobs.clone(), &keep, UnixNanos(70_000_000_000));
        let left: Vec<_> = jobs.iter().filter(|one| !gone.contains(&one.id)).collect();
        assert_eq!(left.iter().filter(|one| one.project.as_str() == "small").count(), 2);
        let large: Vec<_> = left.iter().filter(|one| one.project.as_str() == "large").collect();
        assert_eq!(large, [&&jobs[48], &&jobs[49]]);
    }
}
