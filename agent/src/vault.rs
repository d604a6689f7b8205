//! One configured server of the Vault API (HashiCorp Vault, OpenBao): logins, tokens, reads, leases, Transit.
//!
//! What is guaranteed: only configured addresses are spoken to, over TLS under the configured authority alone, without a
//! proxy and without following anybody elsewhere; nothing is taken from the environment; every answer is bounded in
//! time and bytes; no `Debug` and no error prints a token or a value. What is not: the HTTP and TLS libraries have
//! buffers of their own, which are not overwritten after use.
//!
//! `vaultrs` builds requests (its endpoints and its middleware). It sends none: its client follows redirects with the
//! token, honours proxies and reads `VAULT_SKIP_VERIFY`.

mod answer;
mod call;
mod config;
mod error;
mod fleet;
mod lease;
mod login;
mod outage;
mod preflight;
mod read;
mod signer;
mod token;
mod transit;
mod value;
mod wire;
mod wrapping;

pub use config::{ApproleLogin, CertLogin, Config, ConfigError, JwtLogin, KubernetesLogin, Login, StepLogin};
pub use error::{Kind, VaultError};
pub use lease::{Lease, LeaseId, LeaseInfo, Renewed, Revoked};
pub use outage::ServerState;
pub use preflight::{Health, LoggedIn, May, OfStep, StepTried};
pub use read::{Method, Read, Secrets, SshKind};
pub use signer::{TransitKey, TransitSigner};
pub use token::{Accessor, MINT_TTL, Minted, StepMeta, Token, TokenInfo};
pub use transit::{Transit, TransitSignature};
pub use value::{Data, Secret};
pub use wrapping::Wrapped;

use call::Call;
use fleet::Fleet;
use login::Session;
use std::sync::Arc;
use std::time::Duration;

/// What signs the agent's own JSON Web Token when it logs in with one.
pub trait Assertions: Send + Sync {
    /// A signed token for this audience, good for five minutes at most.
    ///
    /// # Errors
    /// Why there is none, for the daemon's log.
    fn assertion(&self, audience: &str) -> Result<Secret, String>;
}

/// A client of one configured server, for all tasks of the process. Behind an [`Arc`].
///
/// Every call ends within `budget` of the configuration, whatever the server does.
pub struct Vault {
    config: Config,
    fleet: Fleet,
    assertions: Option<Arc<dyn Assertions>>,
    session: tokio::sync::Mutex<Option<Arc<Session>>>,
    /// A wrapping token and the secret id that was in it: it can be unwrapped once.
    unwrapped: tokio::sync::Mutex<Option<(Secret, Secret)>>,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vault").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Vault {
    /// Reads the authority and the client's certificate; asks nobody yet. `assertions` is needed for a login by JWT.
    ///
    /// # Errors
    /// [`VaultError::Config`] and [`VaultError::File`].
    pub fn new(config: Config, assertions: Option<Arc<dyn Assertions>>) -> Result<Self, VaultError> {
        config.check()?;
        if matches!(config.login, Login::Jwt(_)) && assertions.is_none() {
            return Err(
                ConfigError::new("login.jwt", "this process signs no tokens", "use another login").into()
            );
        }
        let fleet = Fleet::new(&config)?;
        let (session, unwrapped) = Default::default();
        Ok(Self { config, fleet, assertions, session, unwrapped })
    }

    /// What was configured.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Waits until the agent is logged in, for `wait_for_vault` at most. New steps wait here; revokes do not.
    ///
    /// # Errors
    /// [`VaultError`]: at once if waiting does not help.
    pub async fn ready(&self) -> Result<(), VaultError> {
        self.session(None, self.config.wait_for_vault).await.map(|_| ())
    }

    /// Asks every address how it is, without a token. The addresses are the configured ones, in their order.
    pub async fn states(&self) -> Vec<(String, ServerState)> {
        self.fleet.states().await
    }

    fn budget(&self) -> Duration {
        self.config.budget
    }
}
