//! What can be read again while the daemon serves: first all of it is read, then it is written down, and then it is in force.

use super::config::Config;
use super::secret;
use super::services::{self, Services, Trouble};
use crate::admission::Policy;
use crate::api::NewTls;
use crate::audit::{Action, AuditEvent, OURSELVES, Rate};
use crate::export::sha256_of;
use crate::identity::NewIdentities;
use crate::job::Sources;
use crate::job::queue::Rules;
use crate::secrets::NewRules;
use ampoule_spec::{Name, Sha256};

/// Everything that can be read again, good and not in force yet.
#[derive(Debug)]
pub(super) struct Ready {
    config: String,
    policy: Policy,
    identities: NewIdentities,
    tls: Option<NewTls>,
    sources: (Sources, Option<Sha256>),
    rules: Rules,
    secrets: (NewRules, Option<Sha256>),
    profiles: Vec<Name>,
    rate: Rate,
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
            secrets: secret::rules(of, &services.secrets)?,
            profiles: of.profiles.clone(),
            rate: of.audit,
        })
    }

    /// What is written down before it is in force: one entry, so that no part of it stands there alone.
    pub(super) fn entry(&self) -> AuditEvent {
        let entry = AuditEvent::now(Action::ConfigReloaded, OURSELVES)
            .with("config", &self.config)
            .with("policy", self.policy.sha256().to_string());
        let more = [
            ("identities", self.identities.sha256().map(|sha256| sha256.to_string())),
            ("certificate", self.tls.as_ref().map(|tls| tls.sha256().to_string())),
            ("secrets", self.secrets.1.map(|sha256| sha256.to_string())),
            ("sources", self.sources.1.map(|sha256| sha256.to_string())),
        ];
        more.into_iter()
            .filter_map(|(name, sha256)| Some((name, sha256?)))
            .fold(entry, |entry, (name, sha256)| entry.with(name, sha256))
    }

    /// Puts it in force.
    pub(super) async fn take(self, services: &Services) {
        services.desk.take(self.policy);
        services.identities.take(self.identities);
        if let (Some(tls), Some(new)) = (&services.tls, self.tls) {
            tls.take(new);
        }
        services.host.promise(self.rules.capacity);
        services.host.allow(self.profiles);
        services.recorder.set_rate(self.rate);
        services.secrets.take(self.secrets.0);
        services.keeper.set(self.sources.0, self.rules).await;
    }
}

/// What is in force after a reload: of the new configuration what can be changed in flight, of the one before the rest.
pub(super) fn in_force(before: &Config, new: Config) -> Config {
    let mut now = before.clone();
    let upload_bytes = now.limits.upload_bytes;
    (now.sources, now.files, now.profiles) = (new.sources, new.files, new.profiles);
    (now.limits, now.quota, now.projects) = (new.limits, new.quota, new.projects);
    now.limits.upload_bytes = upload_bytes;
    (now.audit, now.secrets) = (new.audit, new.secrets);
    now.log.level = new.log.level;
    now
}
