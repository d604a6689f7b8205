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
pub(crate) use error::hidden;
pub use error::{Detail, Kind, VaultError};
pub use lease::{Lease, LeaseId, LeaseInfo, Renewed, Revoked};
pub use outage::ServerState;
pub use preflight::{Health, LoggedIn, May, OfStep, StepTried};
pub use read::{Method, Read, Secrets, SshKind};
pub use signer::{TransitKey, TransitSigner};
pub use token::{Accessor, MINT_TTL, Minted, StepMeta, Token, TokenInfo};
pub use transit::{Transit, TransitSignature};
pub use value::{Data, Secret};
pub use wrapping::Wrapped;

use aws_lc_rs::digest::{Context, Digest, SHA256};
use call::Call;
use fleet::Fleet;
use login::Session;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use zeroize::Zeroizing;

/// What signs the agent's own JSON Web Token when it logs in with one.
pub trait Assertions: Send + Sync {
    /// A signed token for this audience, good for five minutes at most.
    ///
    /// # Errors
    /// Why there is none, for the daemon's log.
    fn assertion(&self, audience: &str) -> Result<Secret, String>;
}

/// What knows over restarts which wrapping tokens this agent has used.
pub trait Memory: Send + Sync {
    /// It has used the one with this SHA-256. Blocks.
    fn used(&self, sha256: &str);

    /// Whether it has. Blocks.
    fn has_used(&self, sha256: &str) -> bool;
}

tokio::task_local! {
    static UNTIL: Instant;
}

/// Has every call that something makes end by then, also where its budget is longer.
pub async fn by<T>(until: Instant, calls: impl Future<Output = T>) -> T {
    UNTIL.scope(until, calls).await
}

/// What is left of a time to somebody who may have less.
fn at_most(time: Duration) -> Duration {
    UNTIL.try_with(|until| until.saturating_duration_since(Instant::now()).min(time)).unwrap_or(time)
}

/// A client of one configured server, for all tasks of the process. Behind an [`Arc`].
///
/// Every call ends within `budget` of the configuration, whatever the server does.
pub struct Vault {
    config: Arc<Config>,
    fleet: Arc<Fleet>,
    assertions: Option<Arc<dyn Assertions>>,
    session: Arc<tokio::sync::Mutex<Option<Arc<Session>>>>,
    /// A wrapping token and the secret id that was in it: it can be unwrapped once, also by those who come after this client.
    unwrapped: Arc<tokio::sync::Mutex<Option<(Secret, Secret)>>>,
    memory: Option<Arc<dyn Memory>>,
    /// Nothing is asked by it any more.
    ended: Arc<std::sync::atomic::AtomicBool>,
    /// Of the files that were read.
    files: Digest,
    /// When a new login was refused the same as the one before.
    vain: Arc<std::sync::Mutex<Option<Instant>>>,
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
        // Read before what is used: a file that changes in between makes the next client another one.
        let files = digest_of(config.files());
        let fleet = Arc::new(Fleet::new(&config)?);
        let config = Arc::new(config);
        let (session, unwrapped, vain, ended) = Default::default();
        Ok(Self { config, fleet, assertions, session, unwrapped, memory: None, ended, files, vain })
    }

    /// This client once more, for a task that outlives whoever began it.
    fn same(&self) -> Self {
        Self {
            config: self.config.clone(),
            fleet: self.fleet.clone(),
            assertions: self.assertions.clone(),
            session: self.session.clone(),
            unwrapped: self.unwrapped.clone(),
            memory: self.memory.clone(),
            ended: self.ended.clone(),
            files: self.files,
            vain: self.vain.clone(),
        }
    }

    /// The same, with a memory that outlives the process.
    #[must_use]
    pub fn remembering(mut self, memory: Arc<dyn Memory>) -> Self {
        self.memory = Some(memory);
        self
    }

    /// Takes over what the client before it has unwrapped.
    pub(crate) fn after(mut self, before: &Self) -> Self {
        self.unwrapped = before.unwrapped.clone();
        self
    }

    /// Whether a new client of this configuration would be as this one. Reads its files.
    pub(crate) fn is_as(&self, config: &Config) -> bool {
        *self.config == *config && self.files.as_ref() == digest_of(config.files()).as_ref()
    }

    /// Looks at the files that a client of this configuration reads when it is made, and `login`: at those that it reads to log in.
    ///
    /// # Errors
    /// [`VaultError::Config`] and [`VaultError::File`].
    pub(crate) fn check_files(config: &Config, login: bool) -> Result<(), VaultError> {
        config.check()?;
        Fleet::new(config)?;
        if login { login::check_file(&config.login) } else { Ok(()) }
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
        self.session(None, at_most(self.config.wait_for_vault)).await.map(|_| ())
    }

    /// Which cluster answers, and in which namespace; none: it does not say. Two that differ know nothing of each other's tokens.
    ///
    /// # Errors
    /// [`VaultError`].
    pub async fn cluster(&self) -> Result<Option<String>, VaultError> {
        #[derive(serde::Deserialize)]
        struct Health {
            #[serde(default)]
            cluster_id: String,
        }
        let doing = "asking which cluster it is";
        let call = call::Call::get("sys/health".to_owned())
            .with_query("standbyok=true&perfstandbyok=true".to_owned());
        let ask = fleet::Ask { doing, token: None, once: false, budget: self.budget() };
        let reply = self.fleet.send(ask, &call).await?;
        let found = serde_json::from_slice::<Health>(&reply.body).ok().map(|health| health.cluster_id);
        let id = found.filter(|id| (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic()));
        Ok(id.map(|id| format!("{id}/{}", self.config.namespace.as_deref().unwrap_or_default())))
    }

    /// Asks every address how it is, without a token. The addresses are the configured ones, in their order.
    pub async fn states(&self) -> Vec<(String, ServerState)> {
        self.fleet.states().await
    }

    fn budget(&self) -> Duration {
        at_most(self.config.budget)
    }
}

/// Of what files hold; one that cannot be read is as an empty one.
fn digest_of<'a>(files: impl Iterator<Item = &'a Path>) -> Digest {
    let mut context = Context::new(&SHA256);
    for path in files {
        let bytes = Zeroizing::new(std::fs::read(path).unwrap_or_default());
        context.update(&(bytes.len() as u64).to_le_bytes());
        context.update(&bytes);
    }
    context.finish()
}
