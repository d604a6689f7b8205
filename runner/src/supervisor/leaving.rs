//! What a job leaves: taken out when no process of it is left, and given its names in the store when nothing of it is.

use super::{Job, Post, lost_bytes};
use crate::clock::Moment;
use crate::jobdir::JobDir;
use crate::lifetime::Wish;
use crate::outputs::{self, Taken};
use crate::recorder::Recorder;
use crate::report::{Draft, phase};
use crate::search::Searched;
use crate::secrets::Given;
use ampoule_sandbox::Sandbox;
use ampoule_spec::{Code, Failure, JobSpec, PUMP_ID};
use ampoule_store::Lease;

/// Has the outputs searched for what a step had, once it has ended.
pub(super) fn search_for(
    spec: &JobSpec,
    searched: &mut Searched,
    secrets: Option<&Given>,
    sandbox: &Sandbox,
) -> Result<(), Failure> {
    let Some(secrets) = secrets.filter(|_| !spec.outputs.is_empty()) else { return Ok(()) };
    let authority = sandbox.authority;
    let run_as = authority.is_root().then(|| authority.host_id(PUMP_ID));
    searched
        .add(secrets.all(), run_as)
        .map_err(|e| Failure::new(Code::Internal, format!("outputs cannot be searched for secrets: {e}")))
}

/// Takes the outputs out.
pub(super) fn take_outputs(
    post: &Post<'_>,
    sandbox: &Sandbox,
    job: &mut Job,
    dir: &JobDir,
    recorder: &mut Recorder,
    draft: &mut Draft,
) -> Taken {
    // Without a living init nobody can say that no process of the sandbox is left.
    let lost = draft.report.failure.as_ref().is_some_and(|f| f.code.fault() != ampoule_spec::Fault::Tenant);
    let lost = lost || job.searched.is_lost();
    let Some(root) = sandbox.root().filter(|_| !lost && !job.spec.outputs.is_empty()) else {
        return Taken::default();
    };
    let begun = Moment::now();
    phase(recorder, "quiesce");
    if let Err(message) = sandbox.quiesce() {
        draft.fail(recorder, Failure::new(Code::TeardownUnclean, message));
        return Taken::default();
    }
    phase(recorder, "outputs");
    let succeeded = draft.report.failure.is_none();
    let (lifetime, budget) = (&mut job.lifetime, outputs::Budget::of(&job.assignment.limits));
    let authority = sandbox.authority;
    let packing = outputs::Packing {
        epoch: job.spec.source_date_epoch,
        compress_as: authority.is_root().then(|| authority.host_id(PUMP_ID)),
        search: job.searched.search(),
    };
    let mut stop = || {
        if begun.since() > outputs::TIME_LIMIT {
            let message = "taking the outputs out lasted longer than 10 minutes";
            return Some(Failure::new(Code::LimitTimeout, message));
        }
        lifetime.wish_now().map(Wish::failure)
    };
    // Nobody needs to know how far it is.
    let length = dir.outputs_length().ok();
    let into = outputs::Destination { store: post.store, length: length.as_ref() };
    let (taken, failed) = outputs::collect(&job.spec, succeeded, root, into, budget, packing, &mut stop);
    // Nobody needs the values any more.
    job.searched = Searched::default();
    draft.report.outputs.clone_from(&taken.reports);
    if let Some(failed) = failed {
        draft.fail(recorder, failed);
    }
    if !draft.report.outputs.is_empty()
        && let Err(error) = sandbox.sync_scratch()
    {
        draft.report.outputs.clear();
        draft.fail(recorder, lost_bytes(&error));
    }
    draft.phase("outputs", begun);
    taken
}

/// Gives what was taken out its names in the store: what a report lists is there before the report is. Of a job that
/// left something behind nothing goes in.
pub(super) fn publish(
    post: &Post<'_>,
    taken: Taken,
    is_clean: bool,
    recorder: &mut Recorder,
    draft: &mut Draft,
) -> Vec<Lease> {
    if taken.reports.is_empty() {
        return Vec::new();
    }
    let begun = Moment::now();
    let listed = if is_clean { draft.report.outputs.as_slice() } else { &[] };
    let published = taken.publish(post.store, listed);
    draft.phase("publish", begun);
    published.unwrap_or_else(|failure| {
        draft.report.outputs.clear();
        draft.fail(recorder, failure);
        Vec::new()
    })
}
