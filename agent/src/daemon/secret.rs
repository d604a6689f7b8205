//! What the daemon has to do with secrets of steps: their rules, and what is looked at before.

use super::config::Config;
use super::record::Recorder;
use super::services::{Trouble, config};
use super::vitals::Vitals;
use crate::secrets::{self, NewRules, Secrets, SecretsFile};
use ampoule_spec::Sha256;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked whether the identity of steps needs another key.
const IDENTITY_EVERY: Duration = Duration::from_secs(3600);

/// The directory of the unit's credentials.
fn credentials() -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").map(Into::into)
}

/// Opens what steps' secrets are kept by, with the rules of the configuration in force.
pub(super) fn open(of: &Config, vitals: &Vitals, recorder: &Recorder) -> Result<Arc<Secrets>, Trouble> {
    let secrets = Secrets::open(secrets::Options {
        dir: of.state.join("secrets"),
        issuer: of.authority.as_str().to_owned(),
        credentials: credentials(),
        audit: Arc::new(recorder.clone()),
        counts: vitals.metrics.secrets.clone(),
    });
    let secrets = secrets.map_err(|e| Trouble::Host(crate::chain::chain(&e)))?;
    secrets.take(rules(of, &secrets)?.0);
    vitals.set_jwks(secrets.identity().jwks());
    Ok(secrets)
}

/// The rules of the configuration, and the SHA-256 of the file that says them.
pub(super) fn rules(of: &Config, secrets: &Secrets) -> Result<(NewRules, Option<Sha256>), Trouble> {
    let file = file(of)?;
    Ok((secrets.ready(&file).map_err(|e| config("secrets.file")(&e))?, file.sha256))
}

/// Has the next key of the identity made and published when it is time.
pub(super) async fn keep_identity(secrets: Arc<Secrets>, vitals: Arc<Vitals>) {
    let mut clock = tokio::time::interval(IDENTITY_EVERY);
    loop {
        clock.tick().await;
        let looked = secrets.clone();
        let _ = tokio::task::spawn_blocking(move || looked.look_at_identity()).await;
        vitals.set_jwks(secrets.identity().jwks());
    }
}

/// Which secrets projects have.
fn file(of: &Config) -> Result<SecretsFile, Trouble> {
    let Some(path) = &of.secrets else { return Ok(SecretsFile::default()) };
    SecretsFile::load(path).map_err(|e| config("secrets.file")(&e))
}

/// Looks at the file and at what a client of a server reads when it is made.
///
/// # Errors
/// What is wrong with it.
pub(super) fn check(of: &Config) -> Result<(), Trouble> {
    file(of)?.check_servers().map_err(|e| config("secrets.file")(&e))
}

/// Looks at every file that it names, as who takes a secret.
///
/// # Errors
/// What is wrong with one.
pub(super) fn check_all(of: &Config) -> Result<(), Trouble> {
    file(of)?.check_all(credentials().as_deref()).map_err(|e| config("secrets.file")(&e))
}
