//! The addresses of one cluster: which one is asked, again or another one, and until when.

use super::Token;
use super::config::Config;
use super::error::VaultError;
use super::outage::{Backoff, Breaker, ServerState};
use super::preflight::Health;
use super::wire::{Reply, Silence, Wire};
use reqwest::Url;
use rustify::Endpoint;
use rustify::endpoint::MiddleWare;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::Instant;
use vaultrs::api::EndpointMiddleware;
use zeroize::Zeroize;

/// With less left a server that was asked is not asked again.
const LEAST: Duration = Duration::from_millis(50);

/// What is asked, beside its endpoint.
#[derive(Clone, Copy)]
pub(super) struct Ask<'a> {
    /// For errors.
    pub(super) doing: &'static str,
    /// Who asks; none: nobody.
    pub(super) token: Option<&'a Token>,
    /// It must not be done twice: it is not tried again if a server may have got it.
    pub(super) once: bool,
    /// How long it may take, with all tries.
    pub(super) budget: Duration,
}

struct Server {
    url: Url,
    shown: String,
    breaker: Breaker,
}

/// All addresses of one cluster.
pub(super) struct Fleet {
    wire: Wire,
    servers: Vec<Server>,
    namespace: Option<String>,
    /// One request.
    timeout: Duration,
    /// Which address answered last.
    preferred: AtomicUsize,
}

/// What a try came to.
enum Tried {
    Answered(Reply),
    /// It sends to an address that is not ours.
    Elsewhere(String),
    Failed(Silence),
}

/// What is left of a call, and what it met.
struct Tries {
    until: Instant,
    count: u32,
    backoff: Backoff,
    address: String,
    last: Option<Silence>,
}

impl Tries {
    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    fn unavailable(self, ask: Ask<'_>) -> VaultError {
        let last = self.last.unwrap_or_else(|| Silence {
            state: ServerState::Failing,
            sent: false,
            reason: "no address could be asked in time".to_owned(),
        });
        VaultError::Unavailable {
            doing: ask.doing,
            address: self.address,
            state: last.state,
            tries: self.count,
            reason: last.reason,
        }
    }
}

impl Fleet {
    pub(super) fn new(config: &Config) -> Result<Self, VaultError> {
        let server =
            |url: Url| Server { shown: url.origin().ascii_serialization(), url, breaker: Breaker::default() };
        Ok(Self {
            wire: Wire::new(config)?,
            servers: config.urls()?.into_iter().map(server).collect(),
            namespace: config.namespace.clone(),
            timeout: config.timeout,
            preferred: AtomicUsize::new(0),
        })
    }

    /// Asks until somebody answers with something that trying again would not change, or the budget is used up.
    pub(super) async fn send<E: Endpoint>(&self, ask: Ask<'_>, endpoint: &E) -> Result<Reply, VaultError> {
        let (until, backoff) = (Instant::now() + ask.budget, Backoff::default());
        let mut tries = Tries { until, count: 0, backoff, address: String::new(), last: None };
        loop {
            let Some(server) = self.admitted(&mut tries).await else {
                return Err(tries.unavailable(ask));
            };
            let (server, tried) = self.try_at(server, ask, endpoint, &mut tries).await?;
            tries.address.clone_from(&server.shown);
            match tried {
                Tried::Answered(reply) => return Ok(reply),
                Tried::Elsewhere(to) if self.is_round(&tries) => {
                    let address = server.shown.clone();
                    return Err(VaultError::Redirected { doing: ask.doing, address, to });
                }
                Tried::Elsewhere(to) => {
                    let reason = format!("it sends its clients to {to}, which is not configured");
                    tries.last = Some(Silence { state: ServerState::Standby, sent: false, reason });
                }
                Tried::Failed(silence) => {
                    let spent = ask.once && silence.sent;
                    tries.last = Some(silence);
                    if spent {
                        return Err(tries.unavailable(ask));
                    }
                }
            }
            self.preferred.fetch_add(1, Ordering::Relaxed);
            // Another address is asked at once, and all of them again after a while.
            if self.is_round(&tries) {
                let wait = tries.backoff.next();
                if wait >= tries.left() {
                    return Err(tries.unavailable(ask));
                }
                tokio::time::sleep(wait).await;
            }
        }
    }

    fn is_round(&self, tries: &Tries) -> bool {
        (tries.count as usize).is_multiple_of(self.servers.len())
    }

    /// The first address, from the preferred one on, that may be asked; waits for one. None: there is no time left.
    async fn admitted(&self, tries: &mut Tries) -> Option<&Server> {
        loop {
            let now = Instant::now();
            // A request without time for an answer would say "hung" of a server that has said why it does not serve.
            let least = if tries.last.is_some() { LEAST } else { Duration::ZERO };
            if now + least >= tries.until {
                return None;
            }
            let first = self.preferred.load(Ordering::Relaxed) % self.servers.len().max(1);
            let mut soonest = tries.until;
            for server in self.servers.iter().cycle().skip(first).take(self.servers.len()) {
                match server.breaker.admit(now, self.timeout) {
                    None => return Some(server),
                    Some(until) => soonest = soonest.min(until),
                }
            }
            tokio::time::sleep_until(soonest).await;
        }
    }

    /// Asks one address, and the one to which it sends if that is configured too. (Two standbys that send to each other
    /// end here.)
    async fn try_at<'f, E: Endpoint>(
        &'f self,
        server: &'f Server,
        ask: Ask<'_>,
        endpoint: &E,
        tries: &mut Tries,
    ) -> Result<(&'f Server, Tried), VaultError> {
        let first = self.exchange(server, ask, endpoint, tries).await?;
        let Tried::Answered(reply) = &first else { return Ok((server, first)) };
        if !(300..400).contains(&reply.status) {
            return Ok((server, first));
        }
        let location = reply.location.as_deref().and_then(|to| server.url.join(to).ok());
        let to =
            location.as_ref().map_or_else(|| "nowhere".to_owned(), |to| to.origin().ascii_serialization());
        let known = location.filter(|_| matches!(reply.status, 307 | 308)).and_then(|to| {
            self.servers.iter().find(|other| other.url.origin() == to.origin() && other.shown != server.shown)
        });
        // What is asked there is what was asked here, whatever path it names: only its origin counts.
        let Some(other) = known else { return Ok((server, Tried::Elsewhere(to))) };
        let second = self.exchange(other, ask, endpoint, tries).await?;
        Ok(match second {
            Tried::Answered(reply) if (300..400).contains(&reply.status) => {
                let reason = "it sends on, and was sent to already".to_owned();
                (other, Tried::Failed(Silence { state: ServerState::Standby, sent: false, reason }))
            }
            second => (other, second),
        })
    }

    async fn exchange<E: Endpoint>(
        &self,
        server: &Server,
        ask: Ask<'_>,
        endpoint: &E,
        tries: &mut Tries,
    ) -> Result<Tried, VaultError> {
        let request = self.request(server, ask, endpoint)?;
        tries.count = tries.count.saturating_add(1);
        let reply = match self.wire.send(request, self.timeout.min(tries.left())).await {
            Ok(reply) => reply,
            Err(silence) => {
                server.breaker.failed(Instant::now());
                return Ok(Tried::Failed(silence));
            }
        };
        let Some(state) = ServerState::of_status(reply.status) else {
            server.breaker.succeeded();
            if let Some(at) = self.servers.iter().position(|other| other.shown == server.shown) {
                self.preferred.store(at, Ordering::Relaxed);
            }
            return Ok(Tried::Answered(reply));
        };
        // A quota is the caller's, and 500 mostly that of an engine whose backend is away: the server itself is up.
        if !matches!(reply.status, 412 | 429 | 500) {
            server.breaker.failed(Instant::now());
        }
        // It was not done, except perhaps where something failed inside.
        let sent = matches!(reply.status, 500 | 502 | 504);
        Ok(Tried::Failed(Silence { state, sent, reason: format!("status {}", reply.status) }))
    }

    /// The request as `vaultrs` makes it.
    fn request<E: Endpoint>(
        &self,
        server: &Server,
        ask: Ask<'_>,
        endpoint: &E,
    ) -> Result<http::Request<Vec<u8>>, VaultError> {
        let unmade = |_| VaultError::Answer {
            doing: ask.doing,
            reason: "the request cannot be made; a path or a field is none of Vault's".to_owned(),
        };
        let mut middleware = EndpointMiddleware {
            token: ask.token.map_or_else(String::new, |token| token.expose().to_owned()),
            version: "v1".to_owned(),
            wrap: None,
            namespace: self.namespace.clone(),
        };
        let request = endpoint.request(server.url.as_str()).and_then(|mut request| {
            middleware.request(endpoint, &mut request)?;
            Ok(request)
        });
        middleware.token.zeroize();
        request.map_err(unmade)
    }

    /// How every address is.
    pub(super) async fn states(&self) -> Vec<(String, ServerState)> {
        self.health().await.into_iter().map(|of| (of.address, of.state)).collect()
    }

    /// The same, and what time it has.
    pub(super) async fn health(&self) -> Vec<Health> {
        let health = super::call::Call::get("sys/health".to_owned());
        let ask = Ask { doing: "asking how it is", token: None, once: false, budget: self.timeout };
        let asked = self.servers.iter().map(|server| async {
            let (state, time, silence) = match self.request(server, ask, &health) {
                Ok(request) => match self.wire.send(request, self.timeout).await {
                    Ok(reply) => (ServerState::of_health(reply.status), time_of(&reply), None),
                    Err(silence) => (silence.state, None, Some(silence.reason)),
                },
                Err(error) => (ServerState::Failing, None, Some(error.to_string())),
            };
            Health { address: server.shown.clone(), state, time, silence }
        });
        futures_util::future::join_all(asked).await
    }
}

/// The time of a server, in seconds since 1970, as its health says it.
fn time_of(reply: &Reply) -> Option<u64> {
    #[derive(serde::Deserialize)]
    struct Said {
        server_time_utc: u64,
    }
    serde_json::from_slice::<Said>(&reply.body).ok().map(|said| said.server_time_utc)
}
