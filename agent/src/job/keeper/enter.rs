//! From a submission to a place in the queue: promised before anything is written, kept whoever stops waiting for the answer.

use super::inner::{Inner, now, whole};
use super::{RETRY_AFTER, error, intake};
use crate::job::ledger::LedgerError;
use crate::job::model::{State, Submission};
use crate::job::queue::{Amount, NotQueued, Queue};
use crate::job::service::{JobsError, Submitted};
use ampoule_spec::{Code, Name};
use std::sync::Arc;

/// A place in the queue for a job that is being written down: it counts against the quotas like one that waits.
struct Promise {
    inner: Arc<Inner>,
    /// Whose; none: the place was taken.
    project: Option<Name>,
}

impl Promise {
    fn make(inner: &Arc<Inner>, project: &Name, needs: &Amount) -> Result<Self, NotQueued> {
        inner.queue().promise(project, needs)?;
        Ok(Self { inner: inner.clone(), project: Some(project.clone()) })
    }

    /// Gives the place up, in the same moment in which whoever holds the queue takes it.
    fn redeem(mut self, queue: &mut Queue) {
        if let Some(project) = self.project.take() {
            queue.redeem(&project);
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        if let Some(project) = self.project.take() {
            self.inner.queue().redeem(&project);
        }
    }
}

impl Inner {
    /// Takes a job, or finds the one that the caller has submitted under the key.
    ///
    /// # Errors
    /// [`JobsError`].
    pub(super) async fn enter(self: &Arc<Self>, submission: Submission) -> Result<Submitted, JobsError> {
        let found = self.ledger.find(&submission.caller.subject, &submission.key);
        let promise = match found {
            Some(_) => None,
            None => {
                if let Some(why) = self.holds.refusal() {
                    let text = format!("no new jobs are taken: {why}");
                    return Err(JobsError {
                        retry_after: Some(RETRY_AFTER),
                        ..error(Code::AdmissionBusy, text)
                    });
                }
                intake::check_wire(&submission.spec).map_err(|f| error(f.code, f.message))?;
                let needs = self.options.needs.of(&submission.spec);
                Some(Promise::make(self, &submission.project, &needs)?)
            }
        };
        whole(self.clone().write_and_queue(submission, promise)).await
    }

    async fn write_and_queue(
        self: Arc<Self>,
        submission: Submission,
        promise: Option<Promise>,
    ) -> Result<Submitted, JobsError> {
        let spec = submission.spec.clone();
        let entered = self.ledger.submit(submission, now()).await.inspect_err(|error| {
            if matches!(error, LedgerError::Kept { .. }) {
                self.full.notify_one();
            }
        })?;
        let life = &entered.life;
        // Also one that was there before: whoever wrote it down may have died on the way to the queue.
        if life.job.state == State::Queued {
            let entry = self.entry(life, &spec);
            let mut queue = self.queue();
            if let Some(promise) = promise {
                promise.redeem(&mut queue);
            }
            queue.enter(entry);
            // Whoever ended it meanwhile did not find it in the queue.
            if self.ledger.get(&life.job.id).is_none_or(|life| life.job.state != State::Queued) {
                queue.leave(&life.job.id);
            }
            drop(queue);
            self.turn.notify_one();
        }
        Ok(Submitted { job: life.job.clone(), attached: entered.attached })
    }
}

#[cfg(test)]
mod tests {
    use crate::job::keeper::testing::{keeper, submission};
    use crate::job::service::Jobs;

    #[tokio::test]
    async fn job_that_waits_and_is_in_no_queue_is_there_when_it_is_submitted_again() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = keeper(dir.path());
        let id = keeper.submit(submission()).await.unwrap().job.id;
        // What somebody leaves behind who dies between the ledger and the queue.
        assert!(keeper.inner.queue().leave(&id));
        assert_eq!(keeper.queue_position(&id), None);
        for _ in 0..2 {
            assert!(keeper.submit(submission()).await.unwrap().attached);
            assert_eq!((keeper.queue_position(&id), keeper.load()), (Some(0), (true, 0, 1)));
        }
    }
}
