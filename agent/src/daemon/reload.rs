//! What can be read again while the daemon serves: first all of it is read, then it is written down, and then it is in force.

use super::config::Config;
use super::services::{self, Services, Trouble};
use crate::admission::Policy;
use crate::api::NewTls;
use crate::audit::{Action, AuditEvent, OURSELVES};
use crate::export::sha256_of;
use crate::identity::NewIdentities;
use crate::job::Sources;
use crate::job::queue::Rules;
use ampoule_spec::Sha256;

/// Everything that can be read again, good and not in force yet.
#[derive(Debug)]
pub(super) struct Ready {
    config: String,
    policy: Policy,
    identities: NewIdentities,
    tls: Option<NewTls>,
    sources: (Sources, Option<Sha256>),
    rules: Rules,
}

impl Ready {
    /// Reads it. Blocks.
    ///
    /// # Errors
    /// The field of the configuration and what is wrong with what it names.
    pub(super) fn read(of: &Config, services: &Services) -> Result<Self, Trouble> {
        let wrong = |field: &str, error: &dyn std::fmt::Display| Trouble::Config(format!("{field}: {error}"));
        Ok(Self {
            config: sha256_of(of.show().as_bytes()).to_string(),
            policy: services.desk.read().map_err(|e| wrong("policy", &e))?,
            identities: services.identities.read().map_err(|e| wrong("identities", &e))?,
            tls: services.tls.as_ref().map(|tls| tls.read()).transpose().map_err(|e| wrong("tls", &e))?,
            sources: services::sources(of)?,
            rules: services::rules(of, services.measured),
        })
    }

    /// What is written down before it is in force.
    pub(super) fn entries(&self) -> Vec<AuditEvent> {
        let entry = |action| AuditEvent::now(action, OURSELVES);
        let mut keys = entry(Action::KeysReloaded);
        if let Some(sha256) = self.identities.sha256() {
            keys = keys.with("identities", sha256.to_string());
        }
        if let Some(tls) = &self.tls {
            keys = keys.with("certificate", tls.sha256().to_string());
        }
        let mut sources = entry(Action::SourcesReloaded);
        if let Some(sha256) = self.sources.1 {
            sources = sources.with("sha256", sha256.to_string());
        }
        vec![
            entry(Action::ConfigReloaded).with("sha256", &self.config),
            entry(Action::PolicyReloaded).with("sha256", self.policy.sha256().to_string()),
            keys,
            sources,
        ]
    }

    /// Puts it in force.
    pub(super) async fn take(self, services: &Services) {
        services.desk.take(self.policy);
        services.identities.take(self.identities);
        if let (Some(tls), Some(new)) = (&services.tls, self.tls) {
            tls.take(new);
        }
        services.host.promise(self.rules.capacity);
        services.host.ask_again();
        services.keeper.set(self.sources.0, self.rules).await;
    }
}

/// What is in force after a reload: of the new configuration what can be changed in flight, of the one before the rest.
pub(super) fn in_force(before: &Config, new: Config) -> Config {
    let mut now = before.clone();
    let upload_bytes = now.limits.upload_bytes;
    (now.sources, now.registry_auth) = (new.sources, new.registry_auth);
    (now.limits, now.quota, now.projects) = (new.limits, new.quota, new.projects);
    now.limits.upload_bytes = upload_bytes;
    now.log.level = new.log.level;
    now
}
