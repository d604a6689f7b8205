//! What is asked of a server, and no more: the seam behind which the client of Vault's is, and a test's server.

use super::acquire::Step;
use super::identity::{Identity, Workload};
use super::judge::{Asks, Tried};
use super::mapping::reference;
use super::service::seconds;
use crate::vault::{
    Accessor, Assertions, LeaseId, Minted, Read, Renewed, Revoked, Secret, Secrets, ServerState, StepLogin,
    StepMeta, Token, Vault, VaultError,
};
use futures_util::future::BoxFuture;
use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

type Answer<'a, T> = BoxFuture<'a, Result<T, VaultError>>;

/// How long is waited for a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// By a new step, in all.
    pub wait: Duration,
    /// For one request.
    pub request: Duration,
}

/// One server, or one cluster of them.
pub trait Server: Debug + Send + Sync + 'static {
    /// Waits until it serves, for as long as a new step may wait.
    fn ready(&self) -> Answer<'_, ()>;

    /// Which cluster it is, by its own word; none: it does not say.
    fn cluster(&self) -> Answer<'_, Option<String>>;

    /// How long is waited for it.
    fn times(&self) -> Times;

    /// The file that the agent logs in with, if it logs in with one.
    fn login_file(&self) -> Option<&Path> {
        None
    }

    /// What an operator does about an error, where that does not say it.
    fn remedy(&self, _: &VaultError) -> Option<String> {
        None
    }

    /// Logs the agent out for good.
    fn end(&self) -> Answer<'_, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// The client of Vault's, if it is one.
    fn vault(&self) -> Option<&Vault> {
        None
    }

    /// Makes a token for a step, with seconds to live.
    fn mint<'a>(&'a self, step: &'a Step, identity: &'a Identity) -> Answer<'a, Minted>;

    /// Has a token live for so long from now on.
    fn renew<'a>(&'a self, accessor: &'a Accessor, ttl: Duration) -> Answer<'a, Renewed>;

    /// Reads once.
    fn read<'a>(&'a self, token: &'a Token, what: &'a Read) -> Answer<'a, Secrets>;

    /// Has a lease run for so long from now on.
    fn renew_lease<'a>(&'a self, lease: &'a LeaseId, ttl: Duration) -> Answer<'a, Renewed>;

    /// Whether there is such a token.
    fn knows<'a>(&'a self, accessor: &'a Accessor) -> Answer<'a, bool>;

    /// Ends a token; one that is unknown has ended.
    fn revoke<'a>(&'a self, accessor: &'a Accessor) -> Answer<'a, Revoked>;

    /// Ends a lease, likewise.
    fn revoke_lease<'a>(&'a self, lease: &'a LeaseId) -> Answer<'a, Revoked>;

    /// The token role of steps, if they have one.
    fn token_role(&self) -> Option<&str>;

    /// Looks at it without a step; reads no secret, and ends what it makes.
    fn preflight<'a>(&'a self, asks: &'a Asks, meta: &'a StepMeta) -> BoxFuture<'a, Tried>;
}

impl Server for Vault {
    fn ready(&self) -> Answer<'_, ()> {
        Box::pin(Vault::ready(self))
    }

    fn cluster(&self) -> Answer<'_, Option<String>> {
        Box::pin(Vault::cluster(self))
    }

    fn times(&self) -> Times {
        Times { wait: self.config().wait_for_vault, request: self.config().timeout }
    }

    fn login_file(&self) -> Option<&Path> {
        self.config().login.file()
    }

    fn remedy(&self, error: &VaultError) -> Option<String> {
        Vault::remedy(self, error)
    }

    fn end(&self) -> Answer<'_, ()> {
        Box::pin(Vault::end(self))
    }

    fn vault(&self) -> Option<&Vault> {
        Some(self)
    }

    fn mint<'a>(&'a self, step: &'a Step, identity: &'a Identity) -> Answer<'a, Minted> {
        Box::pin(async move {
            let StepLogin::Jwt(login) = &self.config().step else {
                let meta = StepMeta {
                    job: step.job.to_string(),
                    step: step.name.to_string(),
                    project: step.project.to_string(),
                };
                return Vault::mint(self, None, &meta).await;
            };
            let of = Workload {
                job: &step.job,
                step: &step.name,
                project: &step.project,
                profile: &step.profile,
                caller: &step.caller.subject,
                reference: reference(&step.caller),
            };
            let jwt = identity
                .token(&of, &login.audience, seconds())
                .map_err(|error| VaultError::Answer { doing: "a step's login", reason: error.to_string() })?;
            self.login_step(None, &jwt).await
        })
    }

    fn renew<'a>(&'a self, accessor: &'a Accessor, ttl: Duration) -> Answer<'a, Renewed> {
        Box::pin(self.renew_accessor(accessor, ttl))
    }

    fn read<'a>(&'a self, token: &'a Token, what: &'a Read) -> Answer<'a, Secrets> {
        Box::pin(Vault::read(self, token, what))
    }

    fn renew_lease<'a>(&'a self, lease: &'a LeaseId, ttl: Duration) -> Answer<'a, Renewed> {
        Box::pin(Vault::renew_lease(self, lease, ttl))
    }

    fn knows<'a>(&'a self, accessor: &'a Accessor) -> Answer<'a, bool> {
        Box::pin(async move { Ok(self.lookup_accessor(accessor).await?.is_some()) })
    }

    fn revoke<'a>(&'a self, accessor: &'a Accessor) -> Answer<'a, Revoked> {
        Box::pin(self.revoke_accessor(accessor))
    }

    fn revoke_lease<'a>(&'a self, lease: &'a LeaseId) -> Answer<'a, Revoked> {
        Box::pin(Vault::revoke_lease(self, lease))
    }

    fn token_role(&self) -> Option<&str> {
        match &self.config().step {
            StepLogin::TokenRole { name } => Some(name),
            StepLogin::Jwt(_) | StepLogin::Nowhere => None,
        }
    }

    fn preflight<'a>(&'a self, asks: &'a Asks, meta: &'a StepMeta) -> BoxFuture<'a, Tried> {
        Box::pin(async move {
            let health = self.health().await;
            if !health.iter().any(|of| of.state == ServerState::Up) {
                return Tried::Away(health);
            }
            match self.try_login(&asks.of_agent()).await {
                Ok(login) => Tried::Asked { health, login, step: self.try_step(meta, &asks.of_step()).await },
                Err(error) => Tried::Outside(health, error),
            }
        })
    }
}

/// The agent's own login by a token that it signs.
pub(super) struct OfAgent(pub(super) Arc<Identity>);

impl Assertions for OfAgent {
    fn assertion(&self, audience: &str) -> Result<Secret, String> {
        self.0.agent_token(audience, seconds()).map_err(|error| error.to_string())
    }
}
