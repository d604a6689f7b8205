//! The way of spans to the collector: a queue that takes them or drops them, and the task that empties it.

use opentelemetry::Context;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};
use prometheus_client::metrics::counter::Counter;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::transport::Channel;

/// The most spans that wait to be sent.
const WAITING_MAX: usize = 4096;
/// The most spans that are sent at once.
const BATCH_MAX: usize = 512;
/// How long a span waits for others that go along.
const GATHER: Duration = Duration::from_secs(1);
/// How long a collector may take.
const WITHIN: Duration = Duration::from_secs(10);

/// Spans that a collector has taken, and those that it has not or that were never sent.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// Taken.
    pub sent: Counter,
    /// Not.
    pub dropped: Counter,
}

/// Takes spans that have ended, without waiting.
#[derive(Debug)]
pub(super) struct Queue {
    spans: mpsc::Sender<SpanData>,
    counts: Counts,
}

/// A queue, and the task that sends what is in it. The task ends with the queue.
pub(super) fn begin(to: Channel, counts: Counts, resource: &Resource) -> (Queue, JoinHandle<()>) {
    let (spans, waiting) = mpsc::channel(WAITING_MAX);
    let task = tokio::spawn(send(waiting, to, counts.clone(), resource.into()));
    (Queue { spans, counts }, task)
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.spans.try_send(span).is_err() {
            self.counts.dropped.inc();
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

async fn send(
    mut waiting: mpsc::Receiver<SpanData>,
    to: Channel,
    counts: Counts,
    resource: ResourceAttributesWithSchema,
) {
    let (mut collector, mut is_away) = (TraceServiceClient::new(to), false);
    loop {
        let mut batch = Vec::new();
        if waiting.recv_many(&mut batch, BATCH_MAX).await == 0 {
            return;
        }
        let until = Instant::now() + GATHER;
        while let Some(room) = BATCH_MAX.checked_sub(batch.len()).filter(|room| *room > 0)
            && timeout_at(until, waiting.recv_many(&mut batch, room)).await.is_ok_and(|more| more > 0)
        {
        }
        let count = u64::try_from(batch.len()).unwrap_or(u64::MAX);
        let resource_spans = group_spans_by_resource_and_scope(batch, &resource);
        let sent = timeout(WITHIN, collector.export(ExportTraceServiceRequest { resource_spans })).await;
        let (taken, error) = match sent {
            Ok(Ok(answer)) => {
                let refused = answer.into_inner().partial_success.map_or(0, |part| part.rejected_spans);
                (count.saturating_sub(u64::try_from(refused).unwrap_or(0)), None)
            }
            Ok(Err(status)) => (0, Some(status.to_string())),
            Err(_) => (0, Some("no answer".to_owned())),
        };
        counts.sent.inc_by(taken);
        counts.dropped.inc_by(count.saturating_sub(taken));
        // Said once, and not each time.
        if let (Some(error), false) = (&error, is_away) {
            tracing::warn!(error, "the collector of traces takes no spans; they are dropped");
        }
        is_away = error.is_some();
    }
}

#[cfg(test)]
mod tests {
    use super::super::Traces;
    use super::*;
    use http::HeaderMap;
    use tokio::net::TcpListener;
    use tonic::transport::Endpoint;

    /// A collector that takes connections and answers nothing.
    async fn silent() -> (TcpListener, Channel) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy())
    }

    #[tokio::test(start_paused = true)]
    async fn spans_for_a_collector_that_does_not_answer_are_dropped_and_counted_and_nobody_waits() {
        let (_listener, channel) = silent().await;
        let counts = Counts::default();
        let (traces, task) = Traces::begin(channel, counts.clone());
        // Without a turn for the task: nothing is waited for.
        for _ in 0..WAITING_MAX + 1000 {
            drop(traces.call("s/m", &HeaderMap::new()));
        }
        assert_eq!((counts.dropped.get(), counts.sent.get()), (1000, 0));
        drop(traces);
        task.await.unwrap();
        assert_eq!(
            (counts.dropped.get(), counts.sent.get()),
            (u64::try_from(WAITING_MAX).unwrap() + 1000, 0)
        );
    }
}
