//! The lives of jobs as spans: one for the job, and below it one for each part.

use super::{JOB, PROJECT, Traces};
use crate::job::State;
use crate::job::state::{Life, state_text};
use ampoule_spec::{JobId, Outcome, UnixNanos};
use opentelemetry::trace::{SpanBuilder, Status, TraceContextExt, Tracer as _};
use opentelemetry::{Context, KeyValue};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

/// A job that has not ended.
struct Under {
    job: Context,
    state: State,
    part: Context,
}

/// Tells of changes until there are no more.
pub async fn tell(traces: Traces, mut changes: Receiver<Arc<Life>>) {
    let mut lives = HashMap::new();
    loop {
        match changes.recv().await {
            Ok(life) => traces.change(&mut lives, &life, SystemTime::now()),
            // What was missed may have been an end: those spans end without an outcome.
            Err(RecvError::Lagged(_)) => lives.clear(),
            Err(RecvError::Closed) => return,
        }
    }
}

fn time(of: UnixNanos) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(of.0)
}

impl Traces {
    fn change(&self, lives: &mut HashMap<JobId, Under>, life: &Life, now: SystemTime) {
        let job = &life.job;
        if let Some(before) = lives.get_mut(&job.id) {
            if before.state == job.state {
                return;
            }
            before.part.span().end_with_timestamp(now);
            if job.state == State::Finished {
                finish(&before.job, life, now);
                lives.remove(&job.id);
            } else {
                (before.state, before.part) = (job.state, self.part(&before.job, job.state, now));
            }
        } else if job.state != State::Finished {
            let context = self.job(life);
            // Nothing is known of parts that are over.
            let begun = if job.state == State::Queued { time(job.submitted_at) } else { now };
            let part = self.part(&context, job.state, begun);
            lives.insert(job.id.clone(), Under { job: context, state: job.state, part });
        }
    }

    /// The span of a job, below that of the call that it came by, if that is known.
    fn job(&self, life: &Life) -> Context {
        let job = &life.job;
        let parent = self.0.as_ref().and_then(|making| making.submitted().remove(&job.id));
        let attributes = [
            KeyValue::new(JOB, job.id.to_string()),
            KeyValue::new(PROJECT, job.project.to_string()),
            KeyValue::new("ampoule.job.name", job.name.to_string()),
            KeyValue::new("ampoule.job.attempt", i64::from(job.attempt)),
            KeyValue::new("ampoule.profile", job.profile.to_string()),
        ];
        let builder = SpanBuilder::from_name("job").with_attributes(attributes);
        self.begin_span(builder, &parent.unwrap_or_default(), time(job.submitted_at))
    }

    fn part(&self, job: &Context, state: State, begun: SystemTime) -> Context {
        self.begin_span(SpanBuilder::from_name(state_text(state)), job, begun)
    }

    fn begin_span(&self, builder: SpanBuilder, parent: &Context, begun: SystemTime) -> Context {
        let Some(making) = &self.0 else { return Context::new() };
        let span = making.tracer.build_with_context(builder.with_start_time(begun), parent);
        Context::new().with_span(span)
    }
}

fn finish(context: &Context, life: &Life, now: SystemTime) {
    let span = context.span();
    if let Some(end) = &life.job.end {
        span.set_attribute(KeyValue::new("ampoule.outcome", end.outcome.as_str()));
        if let Some(failure) = &end.failure {
            span.set_attribute(KeyValue::new("ampoule.failure.code", failure.code.as_str()));
        }
        // What a job prints and its failure's text are not told: a code is: a code is.
        if end.outcome != Outcome::Succeeded {
            span.set_status(Status::error(end.outcome.as_str()));
        }
    }
    span.end_with_timestamp(life.job.finished_at.map_or(now, time));
}
