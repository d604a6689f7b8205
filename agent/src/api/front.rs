//! What every call goes through: who calls, one whole message, strict, and then the service.

use super::connection::Connection;
use super::error::ApiError;
use super::known::Known;
use super::lane::Lane;
use super::limits::Limits;
use super::schema::{Method, Schema};
use super::shares::{Share, Shares, WithAnswer};
use super::stream::{Outgoing, end_in, whole};
use super::{incoming, message, strict};
use crate::admission::{Action, Desk, Question, Scene};
use crate::identity::Identities;
use crate::traces::{Call, Traces};
use ampoule_spec::Code;
use futures_util::FutureExt;
use http::header::AUTHORIZATION;
use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service;

/// Health is told to everybody who can connect: it says nothing but that the daemon serves.
const HEALTH: &str = "grpc.health.v1.Health/";
const REFLECTION: &str = "grpc.reflection.";
/// The longest path of a call that is recorded.
const PATH_BYTES_MAX: usize = 128;

/// What a front is made of.
#[derive(Debug)]
pub struct Parts {
    /// The services, without health and reflection.
    pub routes: Routes,
    /// Who is known.
    pub identities: Arc<Identities>,
    /// Who may do what.
    pub desk: Arc<Desk>,
    /// What is told of health.
    pub health: tonic_health::server::HealthReporter,
    /// Whether the schema can be asked for over TCP as well; on local sockets it can.
    pub reflection: bool,
    /// What one client may cost.
    pub limits: Limits,
    /// Makes spans of calls.
    pub traces: Traces,
}

/// Serves calls.
pub(super) struct Front {
    routes: Routes,
    schema: Arc<Schema>,
    pub(super) identities: Arc<Identities>,
    pub(super) desk: Arc<Desk>,
    reflection: bool,
    pub(super) limits: Limits,
    traces: Traces,
    local: Lane,
    remote: Lane,
}

/// Who a call is from, as far as its shares go.
struct Holder<'a> {
    name: String,
    bytes: &'a Arc<Shares>,
    /// The largest message.
    most: usize,
    /// Held until the answer has ended.
    call: Option<Share>,
}

impl Front {
    /// # Errors
    /// `internal` if a descriptor that was compiled in cannot be read.
    pub(super) fn new(parts: Parts) -> Result<Self, ApiError> {
        let defect = |e: &dyn std::fmt::Display| ApiError::new(Code::Internal, e.to_string());
        let sets: [&[u8]; 4] = [
            ampoule_proto::FILE_DESCRIPTOR_SET,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ];
        let schema = Arc::new(Schema::read(&sets).map_err(|e| defect(&e))?);
        let described = || {
            let [ours, health, ..] = sets;
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(ours)
                .register_encoded_file_descriptor_set(health)
        };
        let health = tonic_health::server::HealthService::from_health_reporter(parts.health);
        let routes = parts
            .routes
            .add_service(tonic_health::pb::health_server::HealthServer::new(health))
            .add_service(described().build_v1().map_err(|e| defect(&e))?)
            .add_service(described().build_v1alpha().map_err(|e| defect(&e))?);
        let limits = parts.limits;
        Ok(Self {
            routes: routes.prepare(),
            schema,
            identities: parts.identities,
            desk: parts.desk,
            reflection: parts.reflection,
            limits,
            traces: parts.traces,
            local: Lane::new(&limits),
            remote: Lane::new(&limits),
        })
    }

    /// What the callers of a kind of listener share.
    pub(super) fn lane(&self, is_local: bool) -> &Lane {
        if is_local { &self.local } else { &self.remote }
    }

    /// Answers a call, whatever happens in it. What it holds of memory it holds until its reader has had the answer.
    pub(super) async fn call(
        self: Arc<Self>,
        connection: Arc<Connection>,
        request: Request<Incoming>,
    ) -> Result<Response<Outgoing>, Infallible> {
        connection.called();
        let mut span = Call::default();
        let answered = AssertUnwindSafe(self.answer(&connection, request, &mut span)).catch_unwind().await;
        let failed = |error: ApiError| (Status::from(error).into_http(), Vec::new());
        let (mut response, mut shares) = match answered {
            Ok(answered) => answered.unwrap_or_else(failed),
            Err(_) => failed(ApiError::new(Code::Internal, "a call panicked")),
        };
        shares.extend(WithAnswer::of(response.extensions_mut()));
        if let Some(status) = Status::from_header_map(response.headers()) {
            span.answered(status.code());
        }
        Ok(response.map(|body| Outgoing::new(body, shares, span)))
    }

    async fn answer(
        &self,
        connection: &Connection,
        request: Request<Incoming>,
        span: &mut Call,
    ) -> Result<(Response<Body>, Vec<Arc<Share>>), ApiError> {
        let path = request.uri().path().trim_start_matches('/').to_owned();
        let (mut head, body) = request.into_parts();
        let method = self.schema.methods.get(&path);
        let holder = match method {
            Some(method) if method.path.starts_with(HEALTH) => self.health(connection)?,
            _ => {
                let mut known = self.identify(connection, &head.headers, &path).await?;
                // Strangers make none, and neither does a call that is none.
                if let Some(method) = method {
                    *span = self.traces.call(&method.path, &head.headers);
                    known.span = span.clone();
                }
                let holder = self.caller(connection, &known);
                self.may_describe(connection, &known, method)?;
                head.extensions.insert(known);
                holder
            }
        };
        // Nothing behind this knows or logs it.
        head.headers.remove(AUTHORIZATION);
        let method = method.ok_or_else(|| ApiError::new(Code::CallUnknown, "there is no such call"))?;
        let limit = deadline(&head.headers)?;
        if let Some(limit) = limit {
            end_in(limit.saturating_add(Duration::from_secs(1)));
        }
        let Holder { name, bytes: shares, most, call } = holder;
        let (body, share) = if method.streams_in {
            let schema = Arc::clone(&self.schema);
            (incoming::messages(body, schema, method.input, &self.limits, shares, name), None)
        } else {
            let (bytes, share) = message::read(body, most, &self.limits, shares, &name).await?;
            strict::check(&self.schema, method.input, message::payload(&bytes)).map_err(strict::refused)?;
            (whole(bytes), Some(share))
        };
        let answering = self.routes.clone().call(Request::from_parts(head, body));
        let limit = limit.unwrap_or(self.limits.call).min(self.limits.call);
        let answered = tokio::time::timeout(limit, answering).await;
        match answered {
            // The request's share as well: some answers are as large as what was asked.
            Ok(Ok(response)) => Ok((response, call.into_iter().chain(share).map(Arc::new).collect())),
            Err(_) => Err(ApiError::new(Code::CallTimeout, "the call was not answered within its time")),
        }
    }

    /// A call that needs no identity. Over a connection that belongs to somebody it takes nothing that is of strangers, over
    /// another one nothing that is of those who are known.
    fn health(&self, connection: &Connection) -> Result<Holder<'_>, ApiError> {
        let lane = self.lane(connection.is_local());
        let (name, calls, bytes) = match connection.caller().filter(|_| !connection.is_local()) {
            Some(caller) => (caller, &lane.health_calls, &lane.bytes),
            None => (connection.address(), &lane.stranger_calls, &lane.stranger_bytes),
        };
        let call = calls.take(&name, 1).ok_or_else(|| {
            let text = "too many calls without an identity from there";
            ApiError::later(Code::CallBusy, text, Duration::from_secs(1))
        })?;
        Ok(Holder { name, bytes, most: self.limits.stranger_message_bytes, call: Some(call) })
    }

    fn caller(&self, connection: &Connection, known: &Known) -> Holder<'_> {
        let bytes = &self.lane(connection.is_local()).bytes;
        Holder { name: known.caller.subject.clone(), bytes, most: self.limits.message_bytes, call: None }
    }

    async fn identify(
        &self,
        connection: &Connection,
        headers: &HeaderMap,
        path: &str,
    ) -> Result<Known, ApiError> {
        let shown: Vec<&[u8]> = headers.get_all(AUTHORIZATION).iter().map(|value| value.as_bytes()).collect();
        let path: String = path.chars().take(PATH_BYTES_MAX).collect();
        let caller = self.identities.who(&connection.shown, &shown).await.map_err(|error| {
            let scene = Scene { peer: &connection.peer, call: &path };
            self.desk.unidentified(scene, &crate::chain::chain(&error));
            ApiError::new(
                Code::CallerUnknown,
                "it is not known who calls: show a client certificate or a token that this host knows",
            )
        })?;
        if !connection.belongs_to(&caller.subject, &self.lane(connection.is_local()).callers) {
            let after = Duration::from_secs(5);
            return Err(ApiError::later(Code::CallBusy, "too many connections of this caller", after));
        }
        let (caller, peer) = (Arc::new(caller), Arc::clone(&connection.peer));
        Ok(Known { caller, peer, call: path.into(), span: Call::default() })
    }

    /// Reflection is for local peers, or for those whom the operator lets, and for callers with a role.
    fn may_describe(
        &self,
        connection: &Connection,
        known: &Known,
        method: Option<&Method>,
    ) -> Result<(), ApiError> {
        if !method.is_some_and(|method| method.path.starts_with(REFLECTION)) {
            return Ok(());
        }
        if !connection.is_local() && !self.reflection {
            return Err(ApiError::new(Code::CallUnknown, "there is no such call"));
        }
        known.ask(&self.desk, &Question::host(&known.caller, Action::Describe), None)
    }
}

/// The client's deadline: at most eight digits and a unit (gRPC over HTTP/2, `Timeout`).
fn deadline(headers: &HeaderMap) -> Result<Option<Duration>, ApiError> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(None) };
    let read = || {
        let text = value.to_str().ok()?;
        let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let number: u64 = digits.parse().ok()?;
        match unit {
            "H" => Some(Duration::from_secs(number * 3600)),
            "M" => Some(Duration::from_secs(number * 60)),
            "S" => Some(Duration::from_secs(number)),
            "m" => Some(Duration::from_millis(number)),
            "u" => Some(Duration::from_micros(number)),
            "n" => Some(Duration::from_nanos(number)),
            _ => None,
        }
    };
    let wrong = || ApiError::new(Code::CallInvalid, "the header grpc-timeout is none");
    read().map(Some).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadline_is_what_the_header_says_or_refused() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            deadline(&headers)
        };
        assert_eq!(deadline(&HeaderMap::new()).unwrap(), None);
        assert_eq!(of("5S").unwrap(), Some(Duration::from_secs(5)));
        assert_eq!(of("99999999H").unwrap(), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(of("20m").unwrap(), Some(Duration::from_millis(20)));
        for text in ["", "S", "5", "5s", "-5S", "+5S", "123456789S", "5 S", "1.5S"] {
            assert!(of(text).is_err(), "{text}");
        }
    }
}
