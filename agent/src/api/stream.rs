//! One HTTP/2 stream as a task: ended when its reader takes nothing, or when it lasts too long.
//!
//! hyper polls a response's body when there is room for what it gave before. A body that has given something and is not polled
//! again has a reader that takes nothing. Nobody polls then, so a second future beside the stream's looks at it; when it drops
//! the stream's, h2 sends RST_STREAM.

use super::shares::Share;
use crate::traces::Call;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Frame;

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;

/// The most bytes that are given to HTTP/2 at once: what it has, a reader that never reads keeps.
const PIECE_BYTES_MAX: usize = 16 << 10;

tokio::task_local! {
    static LOOK: Arc<Look>;
}

/// What is seen of a stream from beside it.
#[derive(Debug)]
struct Look {
    born: Instant,
    /// Milliseconds after `born` at which something was given that was not asked on from; 0: it was.
    given: AtomicU64,
    /// Milliseconds after `born` at which the call is over.
    over: AtomicU64,
}

impl Look {
    fn ms(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
    }

    /// Returns when the stream is to be ended.
    async fn end(&self, stall: Duration) {
        let stall = u64::try_from(stall.as_millis()).unwrap_or(u64::MAX);
        let often = Duration::from_millis((stall / 8).clamp(10, 1000));
        loop {
            tokio::time::sleep(often).await;
            let (now, given) = (self.ms(), self.given.load(Ordering::Relaxed));
            if now >= self.over.load(Ordering::Relaxed) || given > 0 && now.saturating_sub(given) >= stall {
                return;
            }
        }
    }
}

/// Runs the streams of one connection.
#[derive(Debug, Clone)]
pub(super) struct Streams {
    pub(super) stall: Duration,
    pub(super) call: Duration,
    pub(super) kill: CancellationToken,
    pub(super) active: Arc<AtomicUsize>,
}

/// Counts a stream for as long as it is there.
struct Active(Arc<AtomicUsize>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let over = u64::try_from(self.call.as_millis()).unwrap_or(u64::MAX);
        let look =
            Arc::new(Look { born: Instant::now(), given: AtomicU64::new(0), over: AtomicU64::new(over) });
        let (stall, kill) = (self.stall, self.kill.clone());
        self.active.fetch_add(1, Ordering::Relaxed);
        let active = Active(Arc::clone(&self.active));
        tokio::spawn(LOOK.scope(Arc::clone(&look), async move {
            let _active = active;
            tokio::select! {
                () = stream => {}
                () = look.end(stall) => tracing::debug!("a stream was reset: its reader takes nothing, or it lasts too long"),
                () = kill.cancelled() => {}
            }
        }));
    }
}

/// Ends the stream whose task this is after this time, if that is sooner than it would end anyway.
pub(super) fn end_in(time: Duration) {
    let _ = LOOK.try_with(|look| {
        let at = look.ms().saturating_add(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        look.over.fetch_min(at, Ordering::Relaxed);
    });
}

/// What a body answers.
type Polled = Poll<Option<Result<Frame<Bytes>, Status>>>;

/// A response's body in pieces, which says when it was asked.
pub(super) struct Outgoing {
    inner: Body,
    rest: Bytes,
    look: Option<Arc<Look>>,
    /// Held until it has ended.
    _shares: Vec<Arc<Share>>,
    /// Ends with it.
    span: Call,
}

impl Outgoing {
    pub(super) fn new(inner: Body, shares: Vec<Arc<Share>>, span: Call) -> Self {
        Self { inner, rest: Bytes::new(), look: LOOK.try_with(Arc::clone).ok(), _shares: shares, span }
    }

    fn seen(&self, given: bool) {
        if let Some(look) = &self.look {
            look.given.store(if given { look.ms() } else { 0 }, Ordering::Relaxed);
        }
    }

    fn piece(&mut self) -> Option<Polled> {
        if self.rest.is_empty() {
            return None;
        }
        let piece = self.rest.split_to(self.rest.len().min(PIECE_BYTES_MAX));
        self.seen(true);
        Some(Poll::Ready(Some(Ok(Frame::data(piece)))))
    }
}

impl hyper::body::Body for Outgoing {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        this.seen(false);
        if let Some(piece) = this.piece() {
            return piece;
        }
        // A defect in a stream is that stream's alone.
        let polled = catch_unwind(AssertUnwindSafe(|| Pin::new(&mut this.inner).poll_frame(cx)));
        let Ok(polled) = polled else {
            tracing::error!("a stream of a call panicked");
            this.inner = Body::empty();
            return Poll::Ready(Some(Err(Status::internal("a defect of the daemon"))));
        };
        match polled {
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => {
                    this.rest = data;
                    this.piece().unwrap_or_else(|| Poll::Ready(Some(Ok(Frame::data(Bytes::new())))))
                }
                Err(frame) => {
                    if let Some(status) = frame.trailers_ref().and_then(Status::from_header_map) {
                        this.span.answered(status.code());
                    }
                    Poll::Ready(Some(Ok(frame)))
                }
            },
            other => other,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }
}

/// A body of bytes that are there.
pub(super) fn whole(bytes: Bytes) -> Body {
    Body::new(http_body_util::Full::new(bytes).map_err(|never| match never {}))
}
