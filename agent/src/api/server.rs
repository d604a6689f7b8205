//! The listeners: connections in bounded numbers, each looked after until it ends.
//!
//! Guarantees: over TCP nothing is read but TLS 1.3; an accept that fails never ends the loop; a connection that does nothing
//! ends; a stop lets calls in flight end, up to a deadline.

use super::connection::Connection;
use super::error::ApiError;
use super::front::{Front, Parts};
use super::places::Place;
use super::shares::Share;
use super::stream::Streams;
use super::tls::Tls;
use crate::admission::{Desk, Scene};
use crate::audit::{self, AuditEvent};
use crate::identity::Shown;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How often files of certificates are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often a connection is looked at.
const TICK: Duration = Duration::from_millis(500);
/// How long a connection that is to end and has no call may take.
const GRACE: Duration = Duration::from_secs(30);
/// How long a stranger's may take, with or without a call: one may be without end.
const STRANGER_GRACE: Duration = Duration::from_secs(5);
/// How much of a response is kept for one stream until its reader takes it.
const SEND_BUFFER_BYTES: usize = 256 << 10;
/// How much of a request a peer may send ahead, by stream and in all.
const WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;

/// Where callers come in.
#[derive(Debug)]
pub enum Listener {
    /// A local socket.
    Unix(UnixListener),
    /// An address, with TLS.
    Tcp(TcpListener, Arc<Tls>),
}

/// A connection that was accepted.
enum Accepted {
    Unix(UnixStream),
    Tcp(TcpStream, IpAddr),
}

/// What a connection holds from the beginning.
enum Entry {
    /// One of its user's share.
    Peer(u32, Share),
    /// A place until it has proven something.
    Stranger(Place),
}

/// Serves calls on listeners.
pub struct Server {
    front: Arc<Front>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Server")
    }
}

impl Server {
    /// A server of these services.
    ///
    /// # Errors
    /// `internal` if a descriptor that was compiled in cannot be read.
    pub fn new(parts: Parts) -> Result<Arc<Self>, ApiError> {
        Ok(Arc::new(Self { front: Arc::new(Front::new(parts)?) }))
    }

    /// Serves until `stop`; then calls in flight have the drain's time. The socket's file is the caller's to remove.
    pub async fn serve(self: Arc<Self>, listener: Listener, stop: CancellationToken) {
        let (tasks, kill) = (TaskTracker::new(), CancellationToken::new());
        if let Listener::Tcp(_, tls) = &listener {
            tasks.spawn(look_after(Arc::clone(tls), Arc::clone(&self.front.desk), stop.clone()));
        }
        let mut reserve = Reserve::new();
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                accepted = accept(&listener) => accepted,
            };
            match accepted {
                Ok(accepted) => {
                    let (server, listener_tls) = (Arc::clone(&self), tls_of(&listener));
                    let (stop, kill) = (stop.clone(), kill.clone());
                    if let Some(work) = server.admit(accepted, listener_tls, stop, kill) {
                        tasks.spawn(work);
                    }
                }
                Err(error) => reserve.after(&error, &listener).await,
            }
        }
        drop(listener);
        tasks.close();
        let drained = tokio::time::timeout(self.front.limits.drain, tasks.wait()).await;
        kill.cancel();
        if drained.is_err() {
            tracing::warn!("calls in flight were cut off: the drain's time is over");
            tasks.wait().await;
        }
    }

    /// Takes a connection: of a local peer if there may be one more of his, and over TCP in any case.
    fn admit(
        self: Arc<Self>,
        accepted: Accepted,
        tls: Option<Arc<Tls>>,
        stop: CancellationToken,
        kill: CancellationToken,
    ) -> Option<impl Future<Output = ()> + Send + 'static> {
        let (peer, entry): (Arc<str>, Entry) = match &accepted {
            Accepted::Unix(stream) => {
                let uid = stream.peer_cred().ok()?.uid();
                let Some(share) = self.front.lane(true).accepted.take(&format!("uid:{uid}"), 1) else {
                    tracing::debug!(uid, "a connection was closed: there are too many");
                    return None;
                };
                ("unix".into(), Entry::Peer(uid, share))
            }
            Accepted::Tcp(_, address) => {
                let place = self.front.lane(false).handshakes.take(&neighbours(*address));
                (address.to_string().into(), Entry::Stranger(place))
            }
        };
        Some(async move {
            match (accepted, entry, tls) {
                (Accepted::Unix(stream), Entry::Peer(uid, share), _) => {
                    let _share = share;
                    let connection = Connection::new(Shown::Peer(uid), peer);
                    self.connection(stream, connection, None, stop, kill).await;
                }
                (Accepted::Tcp(stream, _), Entry::Stranger(place), Some(tls)) => {
                    self.tls(stream, (peer, place), &tls, stop, kill).await;
                }
                _ => {}
            }
        })
    }

    /// Serves a connection once it has proven what it can.
    async fn tls(
        &self,
        stream: TcpStream,
        (peer, accepted): (Arc<str>, Place),
        tls: &Tls,
        stop: CancellationToken,
        kill: CancellationToken,
    ) {
        let version = tls.version();
        let (_, given_up) = (stream.set_nodelay(true), accepted.given_up());
        let shaken = tokio::select! {
            shaken = tokio::time::timeout(self.front.limits.handshake, tls.accept(stream)) => shaken,
            () = given_up.cancelled() => return,
            () = stop.cancelled() => return,
        };
        let shaken = shaken.unwrap_or_else(|_| Err("the handshake took too long".to_owned()));
        match shaken {
            Ok((stream, shown)) => {
                let connection = Connection::new(shown, peer);
                // Whoever is known needs no place among those who are not, and finds his own however many they are.
                if self.front.identities.holder(&connection.shown).is_none() {
                    let peer = connection.peer.as_ref();
                    let holder = peer.parse().map_or_else(|_| peer.to_owned(), neighbours);
                    connection.is_strangers(self.front.lane(false).strangers.take(&holder));
                }
                drop(accepted);
                self.connection(stream, connection, Some(version), stop, kill).await;
            }
            Err(reason) => self.front.desk.unidentified(Scene { peer: &peer, call: "tls" }, &reason),
        }
    }

    /// Serves a connection to its end.
    async fn connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        stream: S,
        connection: Connection,
        mut version: Option<watch::Receiver<u64>>,
        stop: CancellationToken,
        kill: CancellationToken,
    ) {
        let limits = self.front.limits;
        if let Some(holder) = self.front.identities.holder(&connection.shown)
            && !connection.belongs_to(&holder, &self.front.lane(connection.is_local()).callers)
        {
            return;
        }
        let given_up = connection.given_up();
        let connection = Arc::new(connection);
        let streams_over = kill.child_token();
        let _guard = streams_over.clone().drop_guard();
        let streams = Streams {
            stall: limits.stall,
            call: limits.call,
            kill: streams_over,
            active: Arc::clone(&connection.active),
        };
        let (front, of) = (Arc::clone(&self.front), Arc::clone(&connection));
        let service = service_fn(move |request| Arc::clone(&front).call(Arc::clone(&of), request));
        let mut serving = pin!(builder(streams, &limits).serve_connection(TokioIo::new(stream), service));
        let mut life = Life::new(&connection);
        let mut tick = tokio::time::interval(TICK);
        loop {
            let end = tokio::select! {
                served = serving.as_mut() => {
                    if let Err(error) = served {
                        tracing::debug!(peer = &*connection.peer, error = crate::chain::chain(&error), "a connection ended");
                    }
                    return;
                }
                () = kill.cancelled() => return,
                () = cancelled(given_up.as_ref()) => return,
                () = stop.cancelled(), if !life.is_ending() => Some(End::Gracefully),
                () = changed(&mut version), if !life.is_ending() => Some(End::Gracefully),
                _ = tick.tick() => life.look(&limits),
            };
            match end {
                Some(End::Now) => return,
                Some(End::Gracefully) => {
                    life.ending();
                    serving.as_mut().graceful_shutdown();
                }
                None => {}
            }
        }
    }
}

/// How a connection is to end.
enum End {
    Gracefully,
    Now,
}

/// What a connection has done so far.
struct Life<'a> {
    of: &'a Connection,
    born: Instant,
    busy: Instant,
    calls: u64,
    ending: Option<Instant>,
}

impl<'a> Life<'a> {
    fn new(of: &'a Connection) -> Self {
        let now = Instant::now();
        Self { of, born: now, busy: now, calls: 0, ending: None }
    }

    fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    fn ending(&mut self) {
        self.ending = Some(Instant::now());
    }

    fn look(&mut self, limits: &super::Limits) -> Option<End> {
        let calls = self.of.calls.load(Ordering::Relaxed);
        if self.of.active.load(Ordering::Relaxed) > 0 || calls != self.calls {
            (self.busy, self.calls) = (Instant::now(), calls);
        }
        let idle = self.busy.elapsed();
        match self.ending {
            Some(since) if self.of.is_stranger() && since.elapsed() >= STRANGER_GRACE => Some(End::Now),
            Some(since) if since.elapsed() >= GRACE && idle >= TICK => Some(End::Now),
            Some(_) => None,
            None if calls == 0 && self.born.elapsed() >= limits.first_call => Some(End::Now),
            None if self.of.is_stranger() && self.born.elapsed() >= limits.stranger_age => {
                Some(End::Gracefully)
            }
            None if idle >= limits.idle || self.born.elapsed() >= limits.age => Some(End::Gracefully),
            None => None,
        }
    }
}

fn builder(streams: Streams, limits: &super::Limits) -> http2::Builder<Streams> {
    let mut builder = http2::Builder::new(streams);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(limits.header_bytes)
        .max_pending_accept_reset_streams(limits.pending_resets)
        .max_local_error_reset_streams(limits.pending_resets)
        .keep_alive_interval(limits.keep_alive)
        .keep_alive_timeout(limits.keep_alive_answer)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    builder
}

/// Returns when it is; never without one.
async fn cancelled(token: Option<&CancellationToken>) {
    match token {
        Some(token) => token.cancelled().await,
        None => std::future::pending().await,
    }
}

/// Returns when other certificates are in force; never without any.
async fn changed(version: &mut Option<watch::Receiver<u64>>) {
    let has_changed = match version {
        Some(version) => version.changed().await.is_ok(),
        None => false,
    };
    if !has_changed {
        std::future::pending().await
    }
}

fn tls_of(listener: &Listener) -> Option<Arc<Tls>> {
    match listener {
        Listener::Unix(_) => None,
        Listener::Tcp(_, tls) => Some(Arc::clone(tls)),
    }
}

/// Whose connections count together: those of one address, and of version 6 those of one network of 64 bits, since whoever has one
/// address there has all of them (RFC 6177).
fn neighbours(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).to_string()
        }
    }
}

async fn accept(listener: &Listener) -> io::Result<Accepted> {
    match listener {
        Listener::Unix(listener) => Ok(Accepted::Unix(listener.accept().await?.0)),
        Listener::Tcp(listener, _) => {
            let (stream, address) = listener.accept().await?;
            Ok(Accepted::Tcp(stream, address.ip().to_canonical()))
        }
    }
}

/// Reads certificates again when their files are others. They are in force when that is written down.
async fn look_after(tls: Arc<Tls>, desk: Arc<Desk>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let of = Arc::clone(&tls);
        let looked = tokio::task::spawn_blocking(move || of.has_changed().then(|| of.read())).await;
        match looked {
            Ok(Some(Ok(new))) => {
                let entry = AuditEvent::now(audit::Action::KeysReloaded, audit::OURSELVES);
                let entry = entry.with("certificate", new.sha256().to_string());
                // What is not in force is read again the next time.
                if desk.write(&entry).await.is_ok() {
                    tls.take(new);
                    tracing::info!("other certificates are in force");
                }
            }
            Ok(Some(Err(error))) => {
                tracing::error!(
                    error = error.to_string(),
                    "certificates cannot be used; those before stay in force"
                );
            }
            _ => {}
        }
    }
}

/// A descriptor that is given up when there is none left: to take the connection that waits, and close it.
struct Reserve(Option<std::fs::File>);

impl Reserve {
    fn new() -> Self {
        Self(std::fs::File::open("/dev/null").ok())
    }

    /// After an accept that failed. The errors of accept(2) that are of one connection pass at once; at the limit of
    /// descriptors those who wait are told so by a close, instead of the loop being told the same error forever.
    async fn after(&mut self, error: &io::Error, listener: &Listener) {
        use rustix::io::Errno;
        match Errno::from_io_error(error) {
            Some(Errno::MFILE | Errno::NFILE) => {
                tracing::warn!("no descriptor is left: connections are closed");
                drop(self.0.take());
                let refused = tokio::time::timeout(Duration::from_millis(10), accept(listener)).await;
                drop(refused);
                *self = Self::new();
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Some(Errno::CONNABORTED | Errno::INTR | Errno::PROTO | Errno::CONNRESET) => {}
            _ => {
                tracing::warn!(error = error.to_string(), "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_network_count_as_one() {
        let of = |text: &str| neighbours(text.parse::<IpAddr>().unwrap().to_canonical());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
