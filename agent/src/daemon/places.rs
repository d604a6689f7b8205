//! What the configuration names, looked at before anything relies on it.

use super::config::{Config, SigningKey};
use crate::jobfile::JobFileError;
use crate::signing::{FileSigner, SigningError};
use crate::sources::SourcesFile;
use std::path::{Path, PathBuf};

/// Why the daemon cannot work with what its configuration names.
#[derive(Debug, thiserror::Error)]
pub(super) enum PlaceError {
    /// A file that is read as strictly as the configuration.
    #[error("{0}")]
    File(#[from] JobFileError),
    /// The signing key.
    #[error("signing: {0}")]
    Signing(String),
    /// A credential without a unit that hands one over.
    #[error(
        "signing.credential: systemd has handed over no credential {0:?}; add LoadCredential={0}:FILE to the unit, or use \
         signing.key"
    )]
    Credential(String),
    /// A directory or file that cannot be used.
    #[error("{field}: {path} cannot be used: {reason}", path = .path.display())]
    Unusable {
        /// The field of the configuration.
        field: &'static str,
        /// What it names.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}

impl From<SigningError> for PlaceError {
    fn from(error: SigningError) -> Self {
        let because = std::error::Error::source(&error).map_or(String::new(), |e| format!(": {e}"));
        Self::Signing(format!("{error}{because}"))
    }
}

fn unusable(field: &'static str, path: &Path, reason: impl std::fmt::Display) -> PlaceError {
    PlaceError::Unusable { field, path: path.to_owned(), reason: reason.to_string() }
}

/// The operator's `sources.toml`, if there is one.
pub(super) fn sources(config: &Config) -> Result<Option<SourcesFile>, PlaceError> {
    Ok(config.sources.as_deref().map(SourcesFile::load).transpose()?)
}

/// The key to sign with. With `dev` and none named, one that is made in the state directory on first use.
pub(super) fn signer(config: &Config, make: bool) -> Result<Option<FileSigner>, PlaceError> {
    match &config.signing {
        Some(SigningKey::File(path)) => Ok(Some(FileSigner::load(path)?)),
        Some(SigningKey::Credential(name)) => {
            let directory = std::env::var_os("CREDENTIALS_DIRECTORY");
            let directory = directory.ok_or_else(|| PlaceError::Credential(name.clone()))?;
            let path = Path::new(&directory).join(name);
            if !path.exists() {
                return Err(PlaceError::Credential(name.clone()));
            }
            Ok(Some(FileSigner::load_credential(&path)?))
        }
        // Its server may be away now; its file is here.
        Some(SigningKey::Transit(path)) => {
            crate::vault::TransitKey::load(path).map_err(|e| PlaceError::Signing(format!("transit: {e}")))?;
            Ok(None)
        }
        None if make => {
            let keys = config.state.join("keys");
            std::fs::create_dir_all(&keys).map_err(|e| unusable("state", &keys, e))?;
            Ok(Some(FileSigner::load_or_create(&keys.join("development.pem"))?))
        }
        None => Ok(None),
    }
}

/// Looks at every file that is named, and changes nothing.
pub(super) fn check(config: &Config) -> Result<(), PlaceError> {
    sources(config)?;
    signer(config, false)?;
    if let Some(tls) = &config.tls {
        let files = [
            ("tls.certificate", Some(&tls.certificate)),
            ("tls.key", Some(&tls.key)),
            ("tls.client_ca", tls.client_ca.as_ref()),
        ];
        for (field, path) in files {
            if let Some(path) = path {
                std::fs::File::open(path).map_err(|e| unusable(field, path, e))?;
            }
        }
    }
    if !config.policy.is_dir() {
        return Err(unusable("policy", &config.policy, "there is no such directory"));
    }
    Ok(())
}

/// Looks at the state directory, if it is there, as the start does: what one user can read says nothing of what the daemon's can.
pub(super) fn check_state(path: &Path) -> Result<(), PlaceError> {
    match path.metadata() {
        Ok(meta) => is_ours(path, &meta),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(unusable("state", path, error)),
    }
}

fn is_ours(path: &Path, meta: &std::fs::Metadata) -> Result<(), PlaceError> {
    use std::os::unix::fs::MetadataExt;
    let (owner, us) = (meta.uid(), rustix::process::geteuid().as_raw());
    if owner != us {
        let reason = format!(
            "it belongs to user {owner}, and this is user {us}; run it as the daemon's user, or chown it to that"
        );
        return Err(unusable("state", path, reason));
    }
    if meta.mode() & 0o022 != 0 {
        return Err(unusable("state", path, "others can write to it; run chmod go-w on it"));
    }
    Ok(())
}

/// Makes the state directory if it is not there: ours, and for nobody else to look into.
pub(super) fn state(path: &Path) -> Result<(), PlaceError> {
    use std::os::unix::fs::DirBuilderExt;
    let cannot = |e: std::io::Error| unusable("state", path, e);
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(path).map_err(cannot)?;
    is_ours(path, &path.metadata().map_err(cannot)?)
}
