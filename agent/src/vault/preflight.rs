//! A server looked at before a step needs it: how each address is, whether the agent's login works, and what it and a step's token may do.
//!
//! No secret is read. What is made for it, a login and a token, is ended before the answer; a crash in between leaves the token for
//! [`super::MINT_TTL`] and the login for what its role gives.

use super::config::{Login, StepLogin};
use super::error::VaultError;
use super::fleet::Ask;
use super::lease::Revoked;
use super::outage::ServerState;
use super::token::{Accessor, StepMeta, Token};
use super::{Call, Vault};
use std::time::Duration;

/// Paths that are asked about in one call.
const PATHS_AT_ONCE: usize = 64;

/// What a token may do, by path.
pub type May = Result<Vec<(String, Vec<String>)>, VaultError>;

/// One address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// The address, as it is configured.
    pub address: String,
    /// How it is.
    pub state: ServerState,
    /// The time there, in seconds since 1970, if it has said.
    pub time: Option<u64>,
    /// Why it did not answer.
    pub silence: Option<String>,
}

/// What the agent's login came to.
#[derive(Debug)]
pub struct LoggedIn {
    /// How long it lives.
    pub ttl: Duration,
    /// What it may do.
    pub may: May,
    /// Whether it was ended again; none: it is somebody else's.
    pub ended: Option<Result<(), VaultError>>,
}

/// What a step's token came to.
#[derive(Debug)]
pub struct OfStep {
    /// Its accessor.
    pub accessor: Accessor,
    /// How long it lives if nobody renews it.
    pub ttl: Duration,
    /// Its policies.
    pub policies: Vec<String>,
    /// What it may do.
    pub may: May,
    /// Whether it was ended again.
    pub ended: Result<Revoked, VaultError>,
}

/// Where steps' tokens come from, and what one came to.
#[derive(Debug)]
pub enum StepTried {
    /// From nowhere: the configuration names nothing.
    Nowhere,
    /// From each step's own login, which cannot be made without a step.
    ByStep,
    /// From a token role.
    Role {
        /// Which.
        name: String,
        /// One that was made.
        made: Result<Box<OfStep>, VaultError>,
    },
}

impl Vault {
    /// Asks every address how it is and what time it has, without a token.
    pub async fn health(&self) -> Vec<Health> {
        self.fleet.health().await
    }

    /// Logs the agent in anew, beside whatever login it has, asks what that may do at these paths, and ends it.
    ///
    /// # Errors
    /// [`VaultError`] if there is no login.
    pub async fn try_login(&self, paths: &[String]) -> Result<LoggedIn, VaultError> {
        let (this, paths, budget) = (self.same(), paths.to_vec(), self.budget());
        // A task of its own: whoever is dropped in the middle would leave a token that nobody knows.
        let tried = tokio::spawn(async move { this.try_login_whole(&paths, budget).await });
        let defect = || VaultError::Answer {
            doing: "trying the agent's login",
            reason: "a defect: it ended early".to_owned(),
        };
        tried.await.unwrap_or_else(|_| Err(defect()))
    }

    async fn try_login_whole(&self, paths: &[String], budget: Duration) -> Result<LoggedIn, VaultError> {
        let session = self.log_in(budget).await?;
        let may = self.may(&session.token, paths).await;
        let is_ours = !matches!(self.config.login, Login::Token { .. });
        let ended = if is_ours { Some(self.end_own(&session.token).await) } else { None };
        Ok(LoggedIn { ttl: session.ttl(), may, ended })
    }

    /// Makes a token as for a step, asks what it may do at these paths, and ends it.
    pub async fn try_step(&self, meta: &StepMeta, paths: &[String]) -> StepTried {
        let name = match &self.config.step {
            StepLogin::Nowhere => return StepTried::Nowhere,
            StepLogin::Jwt(_) => return StepTried::ByStep,
            StepLogin::TokenRole { name } => name.clone(),
        };
        let minted = match self.mint(None, meta).await {
            Ok(minted) => minted,
            Err(error) => return StepTried::Role { name, made: Err(error) },
        };
        let may = self.may(&minted.token, paths).await;
        let ended = self.revoke_accessor(&minted.accessor).await;
        let (accessor, ttl, policies) = (minted.accessor, minted.ttl, minted.policies);
        StepTried::Role { name, made: Ok(Box::new(OfStep { accessor, ttl, policies, may, ended })) }
    }

    async fn may(&self, token: &Token, paths: &[String]) -> May {
        let mut all = Vec::new();
        for some in paths.chunks(PATHS_AT_ONCE) {
            let some: Vec<&str> = some.iter().map(String::as_str).collect();
            all.extend(self.capabilities(token, &some).await?);
        }
        Ok(all)
    }

    pub(super) async fn end_own(&self, token: &Token) -> Result<(), VaultError> {
        let (doing, path) = ("ending a login", "auth/token/revoke-self");
        let ask = Ask { doing, token: Some(token), once: false, budget: self.budget() };
        let reply = self.fleet.send(ask, &Call::do_it(path.to_owned())).await?;
        if reply.is_success() { Ok(()) } else { Err(reply.error(doing, path, true)) }
    }
}
