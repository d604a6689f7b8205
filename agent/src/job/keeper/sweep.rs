//! Retention: directories of finished jobs go by age and size, then their records with the ledger's own retention.

use super::inner::{Inner, now};
use super::launcher::Listed;
use super::options::Keep;
use crate::job::model::State;
use ampoule_spec::{JobId, UnixNanos};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

/// The directory of a finished job, and its outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kept {
    id: JobId,
    ended: UnixNanos,
    bytes: u64,
}

impl Inner {
    /// Sweeps now and then, for as long as it is polled.
    pub(super) async fn keep_sweeping(self: Arc<Self>) {
        loop {
            self.sweep().await;
            tokio::time::sleep(self.options.keep.every).await;
        }
    }

    /// Removes what is not kept any longer. Nothing that the ledger does not know is touched: it is reported.
    async fn sweep(self: &Arc<Self>) {
        if !self.launcher.is_up() {
            return;
        }
        let inner = self.clone();
        let listed = tokio::task::spawn_blocking(move || {
            let listed = inner.launcher.jobs().ok()?;
            inner.note_unknown(&listed);
            let over = over(inner.kept(&listed), &inner.options.keep, now());
            let forgotten = over.into_iter().filter(|id| inner.forget(id)).collect::<BTreeSet<_>>();
            Some(listed.into_keys().filter(|id| !forgotten.contains(id)).collect::<BTreeSet<_>>())
        });
        let Ok(Some(listed)) = listed.await else { return };
        for id in self.ledger.expired(&self.options.ledger.retention, now()) {
            let (inner, gone, there) = (self.clone(), id.clone(), listed.contains(&id));
            // The record last: while there is one, the ledger knows of it.
            let removed = tokio::task::spawn_blocking(move || {
                (!there || inner.forget(&gone)) && inner.records.remove(&gone).is_ok()
            });
            if removed.await.unwrap_or(false)
                && let Err(error) = self.ledger.forget(&id).await
            {
                tracing::warn!(job = %id, %error, "a job whose retention is over is not forgotten");
            }
        }
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
            Some(Kept { id: job.id.clone(), ended: life.job.finished_at?, bytes })
        });
        kept.collect()
    }

    fn forget(&self, id: &JobId) -> bool {
        let forgotten = self.launcher.forget(id);
        if let Err(error) = &forgotten {
            tracing::warn!(job = %id, %error, "the directory of a finished job is not removed now");
        }
        forgotten.is_ok()
    }
}

/// Those that go, oldest first.
fn over(mut kept: Vec<Kept>, keep: &Keep, now: UnixNanos) -> Vec<JobId> {
    kept.sort_by(|a, b| (a.ended, &a.id).cmp(&(b.ended, &b.id)));
    let mut bytes = kept.iter().fold(0_u64, |sum, one| sum.saturating_add(one.bytes));
    let age = u64::try_from(keep.age.as_nanos()).unwrap_or(u64::MAX);
    let goes = kept.into_iter().take_while(|one| {
        let over = bytes > keep.bytes || now.0.saturating_sub(one.ended.0) > age;
        bytes = bytes.saturating_sub(one.bytes);
        over
    });
    goes.map(|one| one.id).collect()
}

/// The bytes of a job's directory, which can be entered and not read: its files by name.
fn bytes_in(dir: &Path) -> u64 {
    let named = ["events", "spec.json", "report.json"].map(|name| std::fs::metadata(dir.join(name)));
    named.into_iter().flatten().fold(0, |sum, meta| sum.saturating_add(meta.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn kept(n: u8, ended: u64, bytes: u64) -> Kept {
        let id = JobId::parse(&format!("01890a5d-ac96-774b-bcce-b3020{n:07}")).unwrap();
        Kept { id, ended: UnixNanos(ended * 1_000_000_000), bytes }
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
}
