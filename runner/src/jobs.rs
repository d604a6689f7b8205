//! The jobs of a listening launcher, which belong to no connection: which there are, and forgetting one.

use crate::admission::{Refusal, chain, refuse};
use crate::clock::Moment;
use crate::jobdir::{State, fence};
use crate::kept;
use crate::recovery::{self, Found};
use ampoule_spec::wire::{JOBS_PAGE_MAX, ListedJob, Reply};
use ampoule_spec::{Code, JobId};
use std::io::Error;
use std::time::Duration;

fn internal(error: &Error) -> Refusal {
    refuse(Code::Internal, chain(error))
}

/// A page of the jobs after one. What is neither alive nor reported is recovered first.
pub(crate) fn list(state: &State, after: Option<&JobId>) -> Result<Reply, Refusal> {
    let mut rest =
        state.jobs().map_err(|e| internal(&e))?.into_iter().filter(|id| after.is_none_or(|after| id > after));
    let mut jobs = Vec::new();
    while jobs.len() < JOBS_PAGE_MAX {
        let Some(id) = rest.next() else { break };
        jobs.extend(look_at(state, id)?);
    }
    Ok(Reply::Jobs { jobs, more: rest.next().is_some() })
}

/// A job, if it has a directory.
pub(crate) fn one(state: &State, job: JobId) -> Result<Reply, Refusal> {
    Ok(Reply::Jobs { jobs: look_at(state, job)?.into_iter().collect(), more: false })
}

/// What is to be said of a job; none if it was never admitted, or is gone meanwhile.
fn look_at(state: &State, id: JobId) -> Result<Option<ListedJob>, Refusal> {
    let Ok(dir) = state.look_into(id.as_str()) else { return Ok(None) };
    let listed = |alive, reported| Some(ListedJob { id: id.clone(), alive, reported });
    if !dir.has_report() {
        return Ok(match recovery::settle(state, &id) {
            // It may have been written between the two looks.
            Found::Alive => listed(true, dir.has_report()),
            Found::Reported => listed(false, true),
            Found::Unreported => listed(false, false),
            Found::Nothing => None,
        });
    }
    match state.is_held(id.as_str()) {
        Ok(alive) => Ok(listed(alive, true)),
        Err(error) if recovery::is_no_job(&error) => Ok(None),
        Err(error) => Err(internal(&error)),
    }
}

/// How long a supervisor is waited for that has written its report and has not ended yet.
const PARTING_LIMIT: Duration = Duration::from_secs(2);
/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Sees to it that a job is never admitted, unless it has a directory.
pub(crate) fn fence(state: &State, job: &JobId) -> Result<Reply, Refusal> {
    fence::fence(state, job).map(|never| Reply::Fenced { never }).map_err(|e| internal(&e))
}

/// Removes a job that is reported and not alive. One that has no directory is forgotten already: whoever asks may have
/// died between the answer and noting it down.
pub(crate) fn forget(state: &State, job: &JobId) -> Result<Reply, Refusal> {
    let until = Moment::now().after(PARTING_LIMIT);
    let held = loop {
        match state.open_idle(job.as_str()) {
            Err(error) if recovery::is_no_job(&error) => return Ok(Reply::Forgotten),
            Err(error) => return Err(internal(&error)),
            Ok(Some(held)) => break Some(held),
            Ok(None) => {}
        }
        let is_parting = state.look_into(job.as_str()).is_ok_and(|dir| dir.has_report());
        if !is_parting || until.left().is_zero() {
            break None;
        }
        std::thread::sleep(LOOK_EVERY);
    };
    let Some((dir, _lock)) = held else {
        return Err(refuse(
            Code::JobInvalid,
            format!("job {job} is alive; cancel it, and wait for its report"),
        ));
    };
    if !dir.is_reported() {
        let text = format!("job {job} has no report yet; ask which jobs there are, and it is recovered");
        return Err(refuse(Code::JobInvalid, text));
    }
    kept::remember(state, job).map_err(|text| refuse(Code::Internal, text))?;
    state.forget(job.as_str()).map_err(|e| internal(&e))?;
    Ok(Reply::Forgotten)
}
