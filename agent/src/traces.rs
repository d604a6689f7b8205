//! Spans of calls and of jobs, for an OpenTelemetry collector.
//!
//! Guaranteed: no call and no job waits for a collector. A span that has ended goes into a queue of a fixed length, or is dropped and
//! counted; one task sends what is there, and what a collector does not take in its time is dropped and counted, too. Unless it was
//! begun there is none of this.
//!
//! Not guaranteed: that a trace is whole. What was under way at a restart is told from there on alone.

mod lives;
mod send;

pub use lives::tell;
pub use send::Counts;

use ampoule_spec::{JobId, Name};
use http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{SpanKind, Status, TraceContextExt, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider, SpanLimits};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::task::JoinHandle;
use tonic::transport::Channel;

/// The most submissions whose jobs have not been seen yet.
const SUBMITTED_MAX: usize = 4096;
/// The job that a span is about, and whose that is.
const JOB: &str = "ampoule.job.id";
const PROJECT: &str = "ampoule.project";

/// Makes spans, if it was begun.
#[derive(Debug, Clone, Default)]
pub struct Traces(Option<Arc<Making>>);

#[derive(Debug)]
struct Making {
    tracer: SdkTracer,
    /// The calls by which jobs come that have not been seen yet.
    submitted: Mutex<HashMap<JobId, Context>>,
}

impl Making {
    fn submitted(&self) -> MutexGuard<'_, HashMap<JobId, Context>> {
        self.submitted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The span of a call. It ends with the last copy.
#[derive(Debug, Clone, Default)]
pub struct Call(Option<(Arc<Making>, Context)>);

/// The headers of a call, as those who read them want them.
struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        // What vendors add (`tracestate`) would be in every span, and as large as a caller likes.
        (key == "traceparent").then(|| self.0.get(key))??.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent"]
    }
}

impl Traces {
    /// Makes spans from now on, and sends them there. Within a runtime. The task ends when nobody makes spans any more.
    pub fn begin(to: Channel, counts: Counts) -> (Self, JoinHandle<()>) {
        let resource = Resource::builder_empty()
            .with_service_name("ampouled")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let (queue, task) = send::begin(to, counts, &resource);
        let provider = SdkTracerProvider::builder()
            .with_resource(resource)
            // What is not said here is read from the environment, which decides nothing in this daemon.
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::AlwaysOn)))
            .with_span_limits(SpanLimits::default())
            .with_span_processor(queue)
            .build();
        let tracer = provider.tracer("ampouled");
        (Self(Some(Arc::new(Making { tracer, submitted: Mutex::default() }))), task)
    }

    /// Begins the span of a call whose caller is known. Its parent is what the caller's headers say (W3C Trace Context).
    pub fn call(&self, path: &str, headers: &HeaderMap) -> Call {
        let Some(making) = &self.0 else { return Call(None) };
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers));
        let (service, method) = path.rsplit_once('/').unwrap_or_default();
        let span = making
            .tracer
            .span_builder(path.to_owned())
            .with_kind(SpanKind::Server)
            .with_attributes([
                KeyValue::new("rpc.system", "grpc"),
                KeyValue::new("rpc.service", service.to_owned()),
                KeyValue::new("rpc.method", method.to_owned()),
            ])
            .start_with_context(&making.tracer, &parent);
        Call(Some((making.clone(), parent.with_span(span))))
    }
}

impl Call {
    /// Says which job the call is about.
    pub fn about(&self, job: &JobId, project: &Name) {
        if let Some((_, context)) = &self.0 {
            context.span().set_attributes([
                KeyValue::new(JOB, job.to_string()),
                KeyValue::new(PROJECT, project.to_string()),
            ]);
        }
    }

    /// Says that a job is about to come by this call: the spans of its life are below that of the call.
    pub fn submits(&self, job: &JobId) {
        if let Some((making, context)) = &self.0 {
            let mut submitted = making.submitted();
            if submitted.len() >= SUBMITTED_MAX {
                // Of some nobody has heard; they are told as jobs that came by no call.
                submitted.clear();
            }
            // Not the span itself: it ends with its call.
            let parent = Context::new().with_remote_span_context(context.span().span_context().clone());
            submitted.insert(job.clone(), parent);
        }
    }

    /// Says that it did not.
    pub fn submits_not(&self, job: &JobId) {
        if let Some((making, _)) = &self.0 {
            making.submitted().remove(job);
        }
    }

    /// Says what was answered.
    pub fn answered(&self, code: tonic::Code) {
        if let Some((_, context)) = &self.0 {
            let span = context.span();
            span.set_attribute(KeyValue::new("rpc.grpc.status_code", i64::from(i32::from(code))));
            if code != tonic::Code::Ok {
                span.set_status(Status::error(code.description()));
            }
        }
    }
}
