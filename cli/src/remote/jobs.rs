//! `ampoule watch`, `logs`, `cancel`, `list` and `get`.

use super::Remote;
use super::args::{CancelArgs, GetArgs, ListArgs, LogsArgs, WatchArgs};
use super::printer::{Printer, job_json, outcome, state};
use crate::failure::Failed;
use crate::show;
use ampoule_agent::client::{Follow, exit_of};
use ampoule_evidence::escape;
use ampoule_proto::v1 as proto;
use ampoule_spec::Exit;
use serde_json::json;

/// Jobs in one page.
const PAGE: u32 = 1000;

/// Follows a job to its end; its exit status is the job's.
pub(crate) fn watch(args: &WatchArgs) -> Result<u8, Failed> {
    let remote = Remote::new(&args.server)?;
    let mut printer = Printer::new(args.json);
    let mut follow = Follow::new(remote.client.clone(), &args.job, true, true);
    let job = remote.ask(follow.run(&mut |told| printer.tell(told)))?;
    printer.rest();
    end(&job, args.json);
    Ok(exit_of(&job))
}

/// Says how a job ended.
pub(super) fn end(job: &proto::Job, as_json: bool) {
    if as_json {
        return show::json(&json!({"event": "result", "exit": exit_of(job), "job": job_json(job)}));
    }
    let code = if job.code.is_empty() { String::new() } else { format!(" [{}]", job.code) };
    if !job.message.is_empty() {
        show::line(&format!("failed: {}{code}", job.message));
    }
    show::line(&format!("job {}{code}", outcome(job).unwrap_or_else(|| state(job))));
}

/// Shows what a job has written.
pub(crate) fn logs(args: &LogsArgs) -> Result<u8, Failed> {
    let remote = Remote::new(&args.server)?;
    let mut printer = Printer::of_logs(args.raw);
    let mut follow = Follow::new(remote.client.clone(), &args.job, true, args.follow);
    remote.ask(follow.run(&mut |told| printer.tell(told)))?;
    printer.rest();
    Ok(Exit::Success as u8)
}

/// Asks for a job's end.
pub(crate) fn cancel(args: &CancelArgs) -> Result<u8, Failed> {
    let remote = Remote::new(&args.server)?;
    let job = remote.ask(remote.client.cancel(&args.job, &args.reason))?;
    tell(&job, args.json);
    Ok(Exit::Success as u8)
}

/// Shows a job.
pub(crate) fn get(args: &GetArgs) -> Result<u8, Failed> {
    let remote = Remote::new(&args.server)?;
    tell(&remote.ask(remote.client.get(&args.job))?, args.json);
    Ok(Exit::Success as u8)
}

fn tell(job: &proto::Job, as_json: bool) {
    if as_json { show::json(&job_json(job)) } else { show::data(&line(job)) }
}

/// Lists jobs.
pub(crate) fn list(args: &ListArgs) -> Result<u8, Failed> {
    let remote = Remote::new(&args.server)?;
    let mut request = proto::ListJobsRequest {
        project: args.project.clone().unwrap_or_default(),
        labels: args.labels.iter().cloned().collect(),
        ..proto::ListJobsRequest::default()
    };
    let mut left = args.limit;
    while left > 0 {
        request.page_size = left.min(PAGE);
        let page = remote.ask(remote.client.list(&request))?;
        page.jobs.iter().for_each(|job| tell(job, args.json));
        left = left.saturating_sub(u32::try_from(page.jobs.len()).unwrap_or(u32::MAX));
        if page.next_page_token.is_empty() || page.jobs.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    Ok(Exit::Success as u8)
}

fn line(job: &proto::Job) -> String {
    let how = outcome(job).unwrap_or_else(|| state(job));
    let code = if job.code.is_empty() { "-" } else { &job.code };
    escape(&format!("{}  {how:<15} {code:<22} {}/{}", job.id, job.project, job.name))
}
