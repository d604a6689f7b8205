//! From a submission to a place in the queue: promised before anything is written, kept whoever stops waiting for the answer.

use super::inner::{Inner, now};
use super::options::ProjectFiles;
use super::{RETRY_AFTER, error, intake, proof};
use crate::job::ledger::LedgerError;
use crate::job::model::{State, Submission};
use crate::job::queue::{Amount, NotQueued, Queue};
use crate::job::service::{JobsError, Promised, Submitted};
use crate::job::state::Life;
use crate::secrets::Denied;
use ampoule_spec::{Code, JobSpec, Name};
use std::sync::Arc;
use std::time::Duration;

/// How long somebody may wait for his project's turn at verifying.
const TURN_WITHIN: Duration = Duration::from_secs(20);

/// A place in the queue for a job that is being written down: it counts against the quotas like one that waits.
#[derive(Debug)]
pub struct Place {
    inner: Arc<Inner>,
    /// Whose; none: the place was taken.
    project: Option<Name>,
}

impl Place {
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

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(project) = self.project.take() {
            self.inner.queue().redeem(&project);
        }
    }
}

impl Inner {
    /// Promises a place to a job, or finds the one that the caller has submitted under the key.
    ///
    /// # Errors
    /// [`JobsError`].
    pub(super) async fn promise(
        self: &Arc<Self>,
        submission: &Submission,
    ) -> Result<Promised<Place>, JobsError> {
        if let Some(attached) = self.attach(submission)? {
            return Ok(Promised::Attached(Box::new(attached)));
        }
        self.holds()?;
        let files = self.sources().files_of(&submission.project);
        intake::check_asked(&submission.spec, &files).map_err(|f| error(f.code, f.message))?;
        self.may_have_secrets(submission)?;
        self.believe(submission, files).await?;
        let retention = &self.options.ledger.retention;
        let room = self.ledger.has_room(&submission.project, retention, now());
        room.inspect_err(|error| self.is_full(error))?;
        let needs = self.options.needs.of(&submission.spec);
        Ok(Promised::Place(Place::make(self, &submission.project, &needs)?))
    }

    /// Whether the operator gives the job what its steps name. It is asked again when a step waits for it.
    fn may_have_secrets(&self, submission: &Submission) -> Result<(), JobsError> {
        let denied = |denied: Denied| error(Code::SecretDenied, denied.told);
        match (&self.options.secrets, submission.spec.secrets.first()) {
            (Some(secrets), _) => secrets.check(submission).map_err(denied),
            (None, None) => Ok(()),
            (None, Some(secret)) => Err(denied(Denied::new(&secret.name, "the daemon has no secrets"))),
        }
    }

    /// Verifies the provenance that came with a request, in the turn of its project: a request may have hundreds of signatures.
    async fn believe(&self, submission: &Submission, files: ProjectFiles) -> Result<(), JobsError> {
        if !proof::is_needed(&submission.spec) {
            return Ok(());
        }
        let seat = self.options.lookups.take_within(submission.project.as_str(), TURN_WITHIN).await;
        let seat = seat.ok_or_else(|| {
            let text = "as much is verified for the project as may be at once".to_owned();
            JobsError { retry_after: Some(RETRY_AFTER), ..error(Code::AdmissionBusy, text) }
        })?;
        let (spec, proofs) = (submission.spec.clone(), submission.proofs.clone());
        let verified = tokio::task::spawn_blocking(move || {
            let _seat = seat;
            proof::check(&spec, &proofs, &files)
        });
        let verified = verified.await.map_err(|_| error(Code::Internal, crate::api::DEFECT.to_owned()))?;
        verified.map_err(|f| error(f.code, f.message))
    }

    /// What is over and old enough goes when somebody is refused for it.
    fn is_full(&self, error: &LedgerError) {
        if matches!(error, LedgerError::Kept { .. }) {
            self.full.notify_one();
        }
    }

    /// The job that the caller has submitted under the key, if there is one. Nothing is written.
    ///
    /// # Errors
    /// [`JobsError`] if it was another request.
    pub(super) fn attach(self: &Arc<Self>, submission: &Submission) -> Result<Option<Submitted>, JobsError> {
        let found = self.ledger.find(&submission.caller.subject, &submission.key);
        let Some(life) = found else { return Ok(None) };
        if life.job.request != submission.request {
            return Err(LedgerError::OtherRequest { job: life.job.id.clone() }.into());
        }
        // Whoever wrote it down may have died on the way to the queue.
        self.queue_up(&life, &submission.spec, None);
        Ok(Some(Submitted { job: life.job.clone(), attached: true }))
    }

    /// Whether jobs are taken.
    fn holds(&self) -> Result<(), JobsError> {
        let Some(why) = self.holds.refusal() else { return Ok(()) };
        let text = format!("no new jobs are taken: {why}");
        Err(JobsError { retry_after: Some(RETRY_AFTER), ..error(Code::AdmissionBusy, text) })
    }

    /// Writes a job down, and puts it into the queue in the place that was promised.
    ///
    /// # Errors
    /// [`JobsError`].
    pub(super) async fn write_and_queue(
        self: Arc<Self>,
        submission: Submission,
        place: Place,
    ) -> Result<Submitted, JobsError> {
        // A drain that comes from here on waits until this job waits; one that came meanwhile is seen.
        let _entering = self.holds.enter().await;
        self.holds()?;
        let spec = submission.spec.clone();
        let entered = self.ledger.submit(submission, now()).await;
        let entered = entered.inspect_err(|error| self.is_full(error))?;
        self.queue_up(&entered.life, &spec, Some(place));
        Ok(Submitted { job: entered.life.job.clone(), attached: entered.attached })
    }

    /// Puts a job that waits into the queue, if it is not there.
    fn queue_up(self: &Arc<Self>, life: &Arc<Life>, spec: &JobSpec, place: Option<Place>) {
        if life.job.state != State::Queued {
            return;
        }
        let entry = self.entry(life, spec);
        let mut queue = self.queue();
        if let Some(place) = place {
            place.redeem(&mut queue);
        }
        queue.enter(entry);
        // Whoever ended it meanwhile did not find it in the queue.
        if self.ledger.get(&life.job.id).is_none_or(|life| life.job.state != State::Queued) {
            queue.leave(&life.job.id);
        }
        drop(queue);
        self.turn.notify_one();
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
