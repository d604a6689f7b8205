//! Health and metrics over HTTP, for whoever is on this host.
//!
//! What is guaranteed: nothing that is asked here changes anything, no request has a body that is read, and no more than
//! [`CONNECTIONS_MAX`] connections are held.

use super::config::MetricsListener;
use super::listen;
use super::metrics::CONTENT_TYPE;
use super::vitals::Vitals;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

/// The most connections at once; more wait.
const CONNECTIONS_MAX: usize = 32;
/// How long a request may take to be sent, and a connection to be idle.
const PATIENCE: Duration = Duration::from_secs(10);
/// The most bytes of a request's head.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// How long accepting is left alone after it failed, as without a free descriptor.
const AFTER_A_FAILURE: Duration = Duration::from_millis(200);

const TEXT: &str = "text/plain; charset=utf-8";

/// A listener that is bound.
pub(super) enum Bound {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Bound {
    /// Binds what the configuration names; none: nothing.
    ///
    /// # Errors
    /// As of bind(2).
    pub(super) fn bind(to: &MetricsListener) -> io::Result<Option<Self>> {
        match to {
            MetricsListener::Off => Ok(None),
            MetricsListener::Loopback(address) => {
                let listener = std::net::TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                Ok(Some(Self::Tcp(TcpListener::from_std(listener)?)))
            }
            MetricsListener::Unix(path) => Ok(Some(Self::Unix(UnixListener::from_std(listen::unix(path)?)?))),
        }
    }

    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Tcp(listener) => Box::new(listener.accept().await?.0),
            Self::Unix(listener) => Box::new(listener.accept().await?.0),
        })
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Answers until it is dropped.
pub(super) async fn serve(bound: Bound, vitals: Arc<Vitals>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // It is never closed.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let stream = match bound.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection for metrics could not be accepted");
                tokio::time::sleep(AFTER_A_FAILURE).await;
                continue;
            }
        };
        let vitals = vitals.clone();
        tokio::spawn(async move {
            let _place = place;
            let answer = service_fn(move |request| {
                let answer = answer(&request, &vitals);
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .max_buf_size(HEAD_BYTES_MAX)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), answer);
            // A client that goes away is its own affair.
            let _ = tokio::time::timeout(PATIENCE * 2, connection).await;
        });
    }
}

fn answer(request: &Request<Incoming>, vitals: &Vitals) -> Response<Full<Bytes>> {
    reply(request.method(), request.uri().path(), vitals)
}

fn reply(method: &Method, path: &str, vitals: &Vitals) -> Response<Full<Bytes>> {
    if method != Method::GET && method != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET alone\n".to_owned());
    }
    match path {
        "/metrics" => text(StatusCode::OK, CONTENT_TYPE, vitals.metrics.text()),
        "/livez" => text(StatusCode::OK, TEXT, "ok\n".to_owned()),
        "/readyz" => {
            let missing = vitals.not_ready();
            if missing.is_empty() {
                text(StatusCode::OK, TEXT, "ok\n".to_owned())
            } else {
                text(StatusCode::SERVICE_UNAVAILABLE, TEXT, missing.join("\n") + "\n")
            }
        }
        "/version" => {
            let version = serde_json::json!({ "ampouled": env!("CARGO_PKG_VERSION") });
            text(StatusCode::OK, "application/json", format!("{version}\n"))
        }
        "/jwks.json" => match vitals.jwks() {
            Some(jwks) => text(StatusCode::OK, "application/jwk-set+json", jwks),
            None => text(StatusCode::SERVICE_UNAVAILABLE, TEXT, "the daemon is starting\n".to_owned()),
        },
        "/" => text(StatusCode::OK, TEXT, "/metrics /livez /readyz /version /jwks.json\n".to_owned()),
        _ => text(StatusCode::NOT_FOUND, TEXT, "no such page\n".to_owned()),
    }
}

fn text(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response.headers_mut().insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
