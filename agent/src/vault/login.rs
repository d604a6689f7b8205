//! The agent's own login: once for all tasks, again before it ends, and once more when it is refused.

use super::answer::{Auth, life};
use super::call::Call;
use super::config::{ApproleLogin, CertLogin, JwtLogin, KubernetesLogin, Login};
use super::error::{APPROLE, VaultError};
use super::fleet::Ask;
use super::token::without;
use super::value::{Data, Secret};
use super::wire::{Reply, read_line};
use super::wrapping::Wrapped;
use super::{Token, Vault};
use crate::export::sha256_of;
use rustify::Endpoint;
use serde::Serialize;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;
use vaultrs::api::token::requests::{LookupTokenSelfRequest, RenewTokenSelfRequest};

/// A token without an end is looked at again after so long.
const ENDLESS: Duration = Duration::from_secs(3600);
/// For how long no other login is tried after one that was refused the same as the one before.
const VAIN: Duration = Duration::from_secs(60);

const LOGGED_OUT: &str = "the agent has logged out, and asks nothing more";

/// A login.
pub(super) struct Session {
    pub(super) token: Token,
    /// From when on another one is made.
    until: Instant,
    /// When it ends.
    end: Instant,
}

impl Session {
    fn new(token: Token, ttl: Duration) -> Self {
        let ttl = if ttl.is_zero() { ENDLESS } else { ttl };
        // Two thirds: what is begun with it can be finished with it.
        let now = Instant::now();
        Self { token, until: now + ttl * 2 / 3, end: now + ttl }
    }

    /// How long it lives from now on.
    pub(super) fn ttl(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }
}

/// Bodies of logins: not those of `vaultrs`, which leaves copies behind.
#[derive(Serialize)]
struct Body<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jwt: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    role_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret_id: Option<&'a str>,
}

/// Reads the file of a login as the login does. (A certificate is read when a client is made.)
pub(super) fn check_file(login: &Login) -> Result<(), VaultError> {
    match login {
        Login::Approle(login) => read_line("login.approle.secret_id", &login.secret_id).map(drop),
        Login::Kubernetes(login) => read_line("login.kubernetes.token", &login.token).map(drop),
        Login::Token { file } => read_line("login.token.file", file).map(drop),
        Login::Jwt(_) | Login::Cert(_) => Ok(()),
    }
}

const NOTHING: Body<'_> = Body { role: None, name: None, jwt: None, role_id: None, secret_id: None };

impl Vault {
    /// Asks with the agent's own token, and with a new one if that is refused.
    pub(super) async fn own<E: Endpoint>(
        &self,
        doing: &'static str,
        endpoint: &E,
    ) -> Result<Reply, VaultError> {
        let until = Instant::now() + self.budget();
        let left = || until.saturating_duration_since(Instant::now());
        let mut refused = None;
        loop {
            let session = self.session(refused.as_ref(), left()).await?;
            let ask = Ask { doing, token: Some(&session.token), once: false, budget: left() };
            let reply = self.fleet.send(ask, endpoint).await?;
            if reply.is_success() {
                return Ok(reply);
            }
            let helps = refused.is_none() && !self.login_helps_not();
            if reply.status != 403 || !helps {
                if reply.status == 403 && refused.is_some() {
                    self.note_that_login_helps_not();
                }
                return Err(reply.error(doing, &endpoint.path(), true));
            }
            refused = Some(session);
        }
    }

    /// Whether a new login was refused the same lately: its policy is what is wrong, and each more would leave a token.
    fn login_helps_not(&self) -> bool {
        let vain = self.vain.lock().unwrap_or_else(PoisonError::into_inner);
        vain.is_some_and(|at| at.elapsed() < VAIN)
    }

    fn note_that_login_helps_not(&self) {
        *self.vain.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// The login, made if there is none, if it nears its end, or if it is the one that was refused.
    pub(super) async fn session(
        &self,
        refused: Option<&Arc<Session>>,
        budget: Duration,
    ) -> Result<Arc<Session>, VaultError> {
        let until = Instant::now() + budget;
        let away = |reason: &str| self.no_login(reason);
        // One task logs in; the others wait for it, and not for longer than they would for the server.
        let Ok(held) = tokio::time::timeout(budget, self.session.clone().lock_owned()).await else {
            return Err(away("another task logs in all the time"));
        };
        if self.ended.load(Ordering::Relaxed) {
            return Err(away(LOGGED_OUT));
        }
        let old = held.clone().filter(|old| !refused.is_some_and(|refused| Arc::ptr_eq(refused, old)));
        if let Some(old) = old.as_ref().filter(|old| Instant::now() < old.until) {
            return Ok(Arc::clone(old));
        }
        let left = until.saturating_duration_since(Instant::now());
        let (this, refused) = (self.same(), refused.cloned());
        // A task of its own, with the lock: whoever is dropped in the middle would leave a token that nobody knows, or lose what can be unwrapped once.
        let mut login = tokio::spawn(async move { this.log_in_for_all(held, refused, left).await });
        let done =
            if self.is_wrapped() { tokio::time::timeout(left, &mut login).await } else { Ok(login.await) };
        let done = match done {
            Ok(Ok(done)) => done,
            Ok(Err(_)) => Err(away("a defect: the login ended early")),
            Err(_) => Err(away("the login is under way still")),
        };
        // A revocation must not fail because a login does, while there is a token that can do it.
        done.or_else(|error| old.filter(|old| Instant::now() < old.end).ok_or(error))
    }

    fn no_login(&self, reason: &str) -> VaultError {
        VaultError::Unavailable {
            doing: "the agent's login",
            address: self.config.addresses.first().cloned().unwrap_or_default(),
            state: super::ServerState::Failing,
            tries: 0,
            reason: reason.to_owned(),
        }
    }

    fn is_wrapped(&self) -> bool {
        matches!(&self.config.login, Login::Approle(ApproleLogin { wrapped: Some(_), .. }))
    }

    async fn log_in_for_all(
        &self,
        mut held: OwnedMutexGuard<Option<Arc<Session>>>,
        refused: Option<Arc<Session>>,
        budget: Duration,
    ) -> Result<Arc<Session>, VaultError> {
        let session = Arc::new(self.log_in(budget).await?);
        let is_ours = !matches!(self.config.login, Login::Token { .. });
        // Somebody may have logged out for good meanwhile, and not have waited for this.
        let is_over = self.ended.load(Ordering::Relaxed);
        if !is_over {
            *held = Some(Arc::clone(&session));
        }
        // One that is refused something may live all the same.
        let surplus = if is_over { Some(&session) } else { refused.as_ref() };
        if let Some(surplus) = surplus.filter(|_| is_ours) {
            let _ = tokio::time::timeout(self.config.timeout, self.end_own(&surplus.token)).await;
        }
        if is_over { Err(self.no_login(LOGGED_OUT)) } else { Ok(session) }
    }

    /// Ends the agent's own token. Steps' tokens are orphans and live on. Nothing, if it is not logged in.
    ///
    /// # Errors
    /// [`VaultError`].
    pub async fn log_out(&self) -> Result<(), VaultError> {
        let doing = "the agent's logout";
        let Some(session) = self.session.lock().await.take() else { return Ok(()) };
        if matches!(self.config.login, Login::Token { .. }) {
            // It is somebody else's to end.
            return Ok(());
        }
        let call = Call::do_it("auth/token/revoke-self".to_owned());
        let ask = Ask { doing, token: Some(&session.token), once: false, budget: self.budget() };
        let reply = self.fleet.send(ask, &call).await?;
        // A token that is none any more has ended.
        if reply.is_success() || reply.status == 403 {
            return Ok(());
        }
        Err(reply.error(doing, "auth/token/revoke-self", true))
    }

    /// Logs out, and makes no other login from now on.
    ///
    /// # Errors
    /// [`VaultError`]: the token lives until its end.
    pub async fn end(&self) -> Result<(), VaultError> {
        self.ended.store(true, Ordering::Relaxed);
        self.log_out().await
    }

    /// Never to be dropped.
    pub(super) async fn log_in(&self, budget: Duration) -> Result<Session, VaultError> {
        // What can be unwrapped once is not asked for in the last moment of somebody's time.
        let budget = if self.is_wrapped() { budget.max(self.config.budget) } else { budget };
        let auth = match &self.config.login {
            Login::Jwt(login) => {
                let jwt = self.assertion(login)?;
                self.login_by_jwt(login, &jwt, budget).await?
            }
            Login::Approle(login) => self.login_by_approle(login, budget).await?,
            Login::Cert(CertLogin { mount, role, .. }) => {
                let body = Body { name: Some(role), ..NOTHING };
                self.log_in_at("certificate", mount, &body, budget).await?
            }
            Login::Kubernetes(KubernetesLogin { mount, role, token }) => {
                let jwt = read_line("login.kubernetes.token", token)?;
                let body = Body { role: Some(role), jwt: jwt.expose_text(), ..NOTHING };
                self.log_in_at("Kubernetes", mount, &body, budget).await?
            }
            Login::Token { file } => return self.session_of_file(file, budget).await,
        };
        let token = Token::new(auth.client_token).ok_or_else(|| without("logging in", "usable token"))?;
        Ok(Session::new(token, life(auth.lease_duration)))
    }

    fn assertion(&self, login: &JwtLogin) -> Result<Secret, VaultError> {
        let refused = |detail: String| VaultError::Login { method: "JWT", status: 0, detail: detail.into() };
        let Some(assertions) = &self.assertions else {
            return Err(refused("this process signs no tokens".to_owned()));
        };
        assertions.assertion(&login.audience).map_err(refused)
    }

    pub(super) async fn login_by_jwt(
        &self,
        login: &JwtLogin,
        jwt: &Secret,
        budget: Duration,
    ) -> Result<Auth, VaultError> {
        let body = Body { role: Some(&login.role), jwt: jwt.expose_text(), ..NOTHING };
        self.log_in_at("JWT", &login.mount, &body, budget).await
    }

    async fn login_by_approle(&self, login: &ApproleLogin, budget: Duration) -> Result<Auth, VaultError> {
        let secret_id = self.secret_id(login, budget).await?;
        let body = Body { role_id: Some(&login.role_id), secret_id: secret_id.expose_text(), ..NOTHING };
        self.log_in_at(APPROLE, &login.mount, &body, budget).await
    }

    /// The secret id of the file, or the one that was in its wrapping token, which can be unwrapped once.
    async fn secret_id(&self, login: &ApproleLogin, budget: Duration) -> Result<Secret, VaultError> {
        let text = read_line("login.approle.secret_id", &login.secret_id)?;
        let Some(creation_path) = &login.wrapped else { return Ok(text) };
        let mut unwrapped = self.unwrapped.lock().await;
        if let Some((wrapping, secret_id)) = unwrapped.as_ref()
            && wrapping.expose() == text.expose()
        {
            return Ok(secret_id.clone());
        }
        let doing = "unwrapping the secret id";
        let wrapped = Wrapped { token: text.clone(), creation_path: creation_path.clone() };
        let data: Data = match self.unwrap_within(&wrapped, budget).await {
            Err(VaultError::Intercepted { .. }) if self.has_used(&text).await => {
                return Err(VaultError::Spent { path: login.secret_id.clone() });
            }
            other => other?,
        };
        let secret_id = data.field("secret_id").ok_or_else(|| without(doing, "secret_id"))?;
        // First of all: there is no other.
        *unwrapped = Some((text.clone(), secret_id.clone()));
        // Not before: who dies in between leaves a false alarm, and never a theft that is taken for our own doing. A disk that hangs stops no login.
        let _ = tokio::time::timeout(self.config.timeout, self.remember(&text)).await;
        Ok(secret_id)
    }

    async fn remember(&self, wrapping: &Secret) {
        let Some(memory) = self.memory.clone() else { return };
        let sha256 = sha256_of(wrapping.expose()).to_string();
        let _ = tokio::task::spawn_blocking(move || memory.used(&sha256)).await;
    }

    async fn has_used(&self, wrapping: &Secret) -> bool {
        let Some(memory) = self.memory.clone() else { return false };
        let sha256 = sha256_of(wrapping.expose()).to_string();
        tokio::task::spawn_blocking(move || memory.has_used(&sha256)).await.unwrap_or(false)
    }

    /// What an operator does about a login that fails, where the error does not say it.
    pub(crate) fn remedy(&self, error: &VaultError) -> Option<String> {
        let file = self.config.login.file().map(|path| path.display().to_string()).unwrap_or_default();
        Some(match (error, &self.config.login) {
            (VaultError::Intercepted { .. }, _) => {
                format!(
                    "a daemon that was restarted needs a new wrapping token: write one to {file}; if it was not, somebody else has used this one"
                )
            }
            (VaultError::Login { .. }, Login::Approle(_)) => {
                format!("write a new secret id to {file}, and see the AppRole's role")
            }
            (VaultError::Login { .. }, Login::Token { .. }) => format!("write a new token to {file}"),
            (VaultError::Login { .. }, _) => "see the login's role at the server".to_owned(),
            (VaultError::Unavailable { .. }, _) => {
                "it is tried again; new steps with secrets of this server wait for it".to_owned()
            }
            _ => return None,
        })
    }

    async fn log_in_at(
        &self,
        method: &'static str,
        mount: &str,
        body: &Body<'_>,
        budget: Duration,
    ) -> Result<Auth, VaultError> {
        let doing = "logging in";
        let call = Call::post(format!("auth/{mount}/login"), body);
        let reply = self.fleet.send(Ask { doing, token: None, once: false, budget }, &call).await?;
        if !reply.is_success() {
            let (status, detail) = (reply.status, reply.detail());
            return Err(VaultError::Login { method, status, detail });
        }
        reply.parse::<Data>(doing)?.auth.ok_or_else(|| without(doing, "auth"))
    }

    /// Somebody else's token: looked up for its end, and prolonged if it can be.
    async fn session_of_file(&self, file: &Path, budget: Duration) -> Result<Session, VaultError> {
        let doing = "looking up the agent's token";
        let token =
            Token::new(read_line("login.token.file", file)?).ok_or_else(|| without(doing, "token"))?;
        let ask = Ask { doing, token: Some(&token), once: false, budget };
        let reply = self.fleet.send(ask, &LookupTokenSelfRequest {}).await?;
        if !reply.is_success() {
            let (status, detail) = (reply.status, reply.detail());
            return Err(VaultError::Login { method: "token file", status, detail });
        }
        let data: Data = reply.parse(doing)?.data.ok_or_else(|| without(doing, "data"))?;
        let mut ttl = data.number("ttl").unwrap_or(0);
        if data.field("renewable").is_some_and(|flag| flag.expose() == b"true") {
            let reply = self.fleet.send(ask, &RenewTokenSelfRequest { increment: None }).await?;
            if reply.is_success() {
                ttl = reply.parse::<Data>(doing)?.auth.map_or(ttl, |auth| auth.lease_duration);
            }
        }
        Ok(Session::new(token, life(ttl)))
    }
}
