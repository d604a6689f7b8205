//! Who calls: what a transport has proven, as a caller that the policy knows.
//!
//! What is guaranteed: a caller is the kernel's word about a local peer, a certificate with a name that stands in the operator's
//! list exactly, or a token that an issuer of the operator's has signed for this daemon and this time. Nothing else is one.

mod certificate;
mod file;
mod jwks;
mod token;

#[cfg(test)]
pub(crate) use certificate::tests as certificate_tests;
pub use certificate::{Certificate, SanError};
pub use file::{IdentitiesError, IdentitiesFile, Issuer, KeySource};
pub use jwks::{Fetch, FetchKeys};
pub use token::TokenError;

use crate::job::{Caller, Means};
use ampoule_spec::Sha256;
use jwks::KeySet;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

/// What a connection has proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// A local socket's peer: its uid at the time of connect(2), `SO_PEERCRED` of unix(7).
    Peer(u32),
    /// TLS with this client certificate, whose chain was verified.
    Certificate(Arc<Certificate>),
    /// TLS without a client certificate.
    Nothing,
}

/// Why it is not known who calls. The text is for the operator; callers are told no more than that they are not known.
#[derive(Debug, thiserror::Error)]
pub enum Unidentified {
    /// Neither a certificate nor a token.
    #[error("neither a client certificate nor a token was shown")]
    Nothing,
    /// The `authorization` header is none of ours.
    #[error("the authorization header is not one `Bearer` token")]
    Header,
    /// The certificate.
    #[error(transparent)]
    Certificate(#[from] SanError),
    /// The token.
    #[error("the token is refused: {0}")]
    Token(#[from] TokenError),
}

/// Those who are known.
pub struct Identities {
    path: PathBuf,
    fetch: Arc<dyn FetchKeys>,
    known: RwLock<Arc<Directory>>,
}

/// What a file says of who is known, and is not in force yet.
#[derive(Debug)]
pub struct NewIdentities(Directory);

impl NewIdentities {
    /// SHA-256 of the file; none: there is none.
    pub fn sha256(&self) -> Option<Sha256> {
        self.0.sha256
    }
}

#[derive(Debug)]
struct Directory {
    sha256: Option<Sha256>,
    file: IdentitiesFile,
    keys: BTreeMap<String, Arc<KeySet>>,
}

impl std::fmt::Debug for Identities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identities").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Identities {
    /// Reads `identities.toml`; without the file only local peers are known. Keys of issuers are read when they are needed
    /// first.
    ///
    /// # Errors
    /// [`IdentitiesError`]: a file that cannot be used.
    pub fn open(path: &Path, fetch: Arc<dyn FetchKeys>) -> Result<Self, IdentitiesError> {
        let known = RwLock::new(Arc::new(Directory::read(path, &fetch)?));
        Ok(Self { path: path.to_owned(), fetch, known })
    }

    /// Reads the file again, and every issuer's keys when they are needed next; what cannot be used changes nothing.
    ///
    /// # Errors
    /// As [`Identities::open`].
    pub fn reload(&self) -> Result<(), IdentitiesError> {
        self.take(self.read()?);
        Ok(())
    }

    /// Reads the file as it is now; who is in it is not known yet.
    ///
    /// # Errors
    /// As [`Identities::open`].
    pub fn read(&self) -> Result<NewIdentities, IdentitiesError> {
        Ok(NewIdentities(Directory::read(&self.path, &self.fetch)?))
    }

    /// Puts what was read in force.
    pub fn take(&self, new: NewIdentities) {
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new.0);
    }

    fn known(&self) -> Arc<Directory> {
        Arc::clone(&self.known.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Who calls with this connection and these `authorization` headers. A token outweighs what the connection has shown: a
    /// bad one is not saved by it.
    ///
    /// # Errors
    /// [`Unidentified`].
    pub async fn who(&self, shown: &Shown, authorization: &[&[u8]]) -> Result<Caller, Unidentified> {
        let known = self.known();
        let now = now();
        match (authorization, shown) {
            ([], Shown::Peer(uid)) => Ok(caller(Means::Peer, format!("uid:{uid}"))),
            ([], Shown::Certificate(certificate)) => {
                let name = certificate.name_in(&known.file.certificates, now)?;
                Ok(caller(Means::Certificate, name))
            }
            ([], Shown::Nothing) => Err(Unidentified::Nothing),
            ([header], _) => {
                let token = bearer(header).ok_or(Unidentified::Header)?;
                Ok(token::caller(token, &known.file.tokens, &known.keys, now).await?)
            }
            _ => Err(Unidentified::Header),
        }
    }

    /// Who a connection belongs to, before a call is there: for limits, and for nothing else.
    pub(crate) fn holder(&self, shown: &Shown) -> Option<String> {
        match shown {
            Shown::Peer(uid) => Some(format!("uid:{uid}")),
            Shown::Certificate(certificate) => {
                certificate.name_in(&self.known().file.certificates, now()).ok()
            }
            Shown::Nothing => None,
        }
    }
}

impl Directory {
    fn read(path: &Path, fetch: &Arc<dyn FetchKeys>) -> Result<Self, IdentitiesError> {
        let (file, sha256) = IdentitiesFile::read(path)?;
        let keys = file.tokens.iter().map(|issuer| {
            let keys = KeySet::new(issuer.jwks.clone(), Arc::clone(fetch));
            (issuer.issuer.clone(), Arc::new(keys))
        });
        Ok(Self { keys: keys.collect(), file, sha256 })
    }
}

fn caller(means: Means, subject: String) -> Caller {
    Caller { means, subject, claims: BTreeMap::new() }
}

/// The token of a header `Bearer TOKEN` (RFC 6750 §2.1).
fn bearer(header: &[u8]) -> Option<&str> {
    let (scheme, token) = header.split_at_checked("Bearer ".len())?;
    let token = std::str::from_utf8(token).ok()?;
    (scheme.eq_ignore_ascii_case(b"bearer ")
        && !token.is_empty()
        && token.bytes().all(|b| b.is_ascii_graphic()))
    .then_some(token)
}

/// Seconds since 1970. A clock before that is one at which everything has expired.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(u64::MAX, |since| since.as_secs())
}

#[cfg(test)]
#[path = "identity/tests.rs"]
mod tests;
