//! `ampoule submit`.

use super::args::{OnSignal, SubmitArgs};
use super::printer::{Printer, job_json};
use super::signals::{self, Count};
use super::{Remote, jobs};
use crate::failure::Failed;
use crate::{bar, run, show};
use ampoule_agent::client::{Fetch, Fetched, Follow, Requesting, exit_of};
use ampoule_agent::jobfile::{self, JobPlan};
use ampoule_agent::local::{Cancel, Watch};
use ampoule_agent::trusted::Believed;
use ampoule_evidence::TrustedKey;
use ampoule_proto::v1 as proto;
use ampoule_spec::{Code, Exit, Name};
use serde_json::json;
use std::path::Path;
use std::time::Duration;

/// After a signal, a submission that is under way has so long to be answered.
const ANSWERED: Duration = Duration::from_secs(2);

/// Submits a job, and waits for it if that is wanted.
pub(crate) fn submit(args: &SubmitArgs) -> Result<u8, Failed> {
    let plan = plan(args)?;
    let project =
        Name::parse(&args.project).map_err(|e| Failed::new(Code::Usage, format!("--project: {e}")))?;
    let trusted = trusted(args)?;
    if let Some(out) = &args.out {
        Fetch::check(out)?;
    }
    let remote = Remote::new(&args.server)?;
    let cancel = Cancel::default();
    let mut signals = signals::listen(&remote.runtime, args.on_signal, &cancel)?;
    let watch = watch(args);
    let requesting = Requesting {
        client: remote.client.clone(),
        runtime: remote.runtime.handle().clone(),
        project: &project,
        cancel: &cancel,
        watch: &watch,
    };
    let job = requesting.request(plan, &mut |what| match args.json {
        true => show::json(&json!({"event": "uploading", "what": what})),
        false => show::line(&format!("uploading {what}")),
    });
    bar::clear();
    let request = request(args, job?)?;
    let job = send(&remote, args, &request, &mut signals)?;
    if !args.wait {
        if !args.json {
            show::data(&job.id);
        }
        return Ok(Exit::Success as u8);
    }
    let Some(job) = wait(&remote, args, &job, signals)? else {
        show::line(&format!("ampoule: leaving; the job goes on: ampoule watch {}", job.id));
        return Ok(Exit::TryAgain as u8);
    };
    let Some(out) = &args.out else {
        jobs::end(&job, args.json);
        return Ok(exit_of(&job));
    };
    let fetch = Fetch {
        client: &remote.client,
        runtime: remote.runtime.handle(),
        out,
        trusted: trusted.as_deref(),
        allow_dev: args.allow_dev,
    };
    let fetched = fetch.fetch(&job)?;
    finish(args, out, &job, &fetched);
    Ok(fetched.exit)
}

fn watch(args: &SubmitArgs) -> Watch {
    if !args.json && bar::can_be_drawn() { Watch::new(bar::show) } else { Watch::default() }
}

fn plan(args: &SubmitArgs) -> Result<JobPlan, Failed> {
    let file = jobfile::load(&args.job)?;
    let base = args.job.parent().unwrap_or(Path::new(""));
    let mut plan = file.plan(base, &run::params(&args.params)?)?;
    if let Some(profile) = &args.profile {
        plan.profile =
            Name::parse(profile).map_err(|e| Failed::new(Code::Usage, format!("--profile: {e}")))?;
    }
    Ok(plan)
}

fn trusted(args: &SubmitArgs) -> Result<Option<Vec<TrustedKey>>, Failed> {
    let believed = match (&args.trust, &args.key) {
        (Some(path), _) => Believed::Trust(path),
        (None, Some(path)) => Believed::Key(path),
        (None, None) => return Ok(None),
    };
    let keys = believed.keys().map_err(|error| {
        let code = if error.unreadable { Code::FileUnusable } else { Code::Usage };
        Failed::new(code, error.to_string())
    })?;
    Ok(Some(keys))
}

fn request(args: &SubmitArgs, job: proto::JobRequest) -> Result<proto::SubmitJobRequest, Failed> {
    let mut labels = std::collections::BTreeMap::new();
    for (name, value) in &args.labels {
        if labels.insert(name.clone(), value.clone()).is_some() {
            return Err(Failed::new(Code::Usage, format!("--label {name} is given twice")));
        }
    }
    let key = args.idempotency_key.clone().unwrap_or_else(|| format!("ampoule-{}", uuid::Uuid::now_v7()));
    Ok(proto::SubmitJobRequest {
        idempotency_key: key,
        project: args.project.clone(),
        job: Some(job),
        priority: args.priority,
        labels,
        queue_timeout_ms: 0,
    })
}

/// Submits. Whether a request that was not answered was taken is not known: the key finds out.
fn send(
    remote: &Remote,
    args: &SubmitArgs,
    request: &proto::SubmitJobRequest,
    signals: &mut Count,
) -> Result<proto::Job, Failed> {
    let key = &request.idempotency_key;
    let submitted = remote.runtime.block_on(async {
        let submitting = remote.client.submit(request);
        tokio::select! {
            submitted = submitting => Some(submitted),
            () = async { signals::first(signals).await; tokio::time::sleep(ANSWERED).await } => None,
        }
    });
    let (job, attached) = match submitted {
        Some(submitted) => submitted?,
        None => {
            let text = format!(
                "it is not known whether the job was taken; submit again with --idempotency-key {key}"
            );
            return Err(Failed::new(Code::ServerUnreachable, text));
        }
    };
    match args.json {
        true => show::json(
            &json!({"event": "submitted", "attached": attached, "key": key, "job": job_json(&job)}),
        ),
        false => {
            let how = if attached { "was there before" } else { "submitted" };
            show::line(&format!("job {} {how}; key {key}", job.id));
        }
    }
    Ok(job)
}

/// Waits for a job; none: a signal said to leave it alone.
fn wait(
    remote: &Remote,
    args: &SubmitArgs,
    job: &proto::Job,
    mut signals: Count,
) -> Result<Option<proto::Job>, Failed> {
    let mut printer = Printer::new(args.json);
    let mut follow = Follow::new(remote.client.clone(), &job.id, true, true);
    let ended = remote.runtime.block_on(async {
        let mut tell = |told| printer.tell(told);
        let following = follow.run(&mut tell);
        tokio::pin!(following);
        tokio::select! {
            ended = &mut following => return ended.map(Some),
            () = signals::first(&mut signals) => {}
        }
        if args.on_signal == OnSignal::Detach {
            return Ok(None);
        }
        let (client, id) = (remote.client.clone(), job.id.clone());
        tokio::spawn(async move {
            match client.cancel(&id, "the client got a signal").await {
                Ok(_) => show::line("ampoule: the cancel is durable"),
                Err(error) => show::line(&format!("ampoule: the job is not cancelled: {error}")),
            }
        });
        following.await.map(Some)
    });
    printer.rest();
    Ok(ended?)
}

fn finish(args: &SubmitArgs, out: &Path, job: &proto::Job, fetched: &Fetched) {
    let Fetched { outcome, failure, outputs, builder, key, provenance, exit } = fetched;
    if args.json {
        return show::json(&json!({
            "event": "result", "job": job.id, "outcome": outcome, "exit": exit,
            "code": failure.as_ref().map(|f| f.code), "out": out, "outputs": outputs, "builder": builder, "key": key,
            "provenance": provenance,
        }));
    }
    for output in outputs {
        show::line(&format!("output {}: {} bytes, sha256:{}", output.name, output.bytes, output.sha256));
    }
    let code = failure.as_ref().map(|f| format!(" [{}]", f.code)).unwrap_or_default();
    if let Some(failure) = failure {
        show::line(&format!("failed: {}{code}", failure.message));
    }
    show::line(&format!("job {}{code}; builder {builder}", outcome.as_str()));
    let whose = if args.key.is_some() || args.trust.is_some() { "" } else { ", as the daemon says" };
    show::line(&format!("outputs and evidence: {}, verified with key {key}{whose}", out.display()));
}
