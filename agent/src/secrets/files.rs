//! The files that `secrets.toml` names, looked at before anything relies on them.

use super::fitting::unfit;
use super::mapping::Source;
use super::{SecretsFile, read_credential, read_file};
use crate::chain::chain;
use crate::vault::Vault;
use std::path::Path;

impl SecretsFile {
    /// Looks at what is read before anything is served: authorities and certificates of servers. Blocks.
    ///
    /// # Errors
    /// Which cannot be used, and why.
    pub fn check_servers(&self) -> Result<(), String> {
        self.check_each(false)
    }

    /// Looks at all of it as whoever takes a secret does: also at files of logins, and at values of this host, which are dropped. Blocks.
    ///
    /// # Errors
    /// As [`Self::check_servers`].
    pub fn check_all(&self, credentials: Option<&Path>) -> Result<(), String> {
        self.check_each(true)?;
        for ((project, name), rule) in &self.mapping.rules {
            let value = match &rule.source {
                Source::File(path) => read_file(path),
                // Without a unit nobody knows what one will hand over.
                Source::Credential(of) if credentials.is_some() => read_credential(credentials, of),
                Source::Credential(_) | Source::Vault { .. } => continue,
            };
            let wrong = |why: String| format!("secret {name} of project {project}: {why}");
            let value = value.map_err(|e| wrong(chain(&e)))?;
            if let Some(why) = unfit(&value) {
                return Err(wrong(format!("its value {why}")));
            }
        }
        Ok(())
    }

    fn check_each(&self, login: bool) -> Result<(), String> {
        self.servers.iter().try_for_each(|(name, config)| {
            Vault::check_files(config, login).map_err(|e| format!("server.{name}: {}", chain(&e)))
        })
    }
}
