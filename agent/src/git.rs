//! Git inputs: a commit's files, without git.
//!
//! What is guaranteed: what is given is the tree that the commit names, byte for byte as its blobs are. No program is run, no
//! hook or filter, no attribute and no configuration is looked at, because nothing here knows them. Nothing but the
//! commits that are named is fetched. Each limit of [`GitLimits`] holds before it is spent.
//!
//! What is not: a commit's id is SHA-1, with known collisions refused. And nothing here is believed by the launcher,
//! which computes git's ids from the finished tree itself.

mod delta;
mod fault;
mod fetch;
mod http;
mod limits;
mod local;
mod modules;
mod object;
mod pack;
mod packet;
mod remote;
mod signature;
mod signers;
mod snapshot;

pub use fetch::{GitFetch, GitPlace, resolve_ref};
pub use limits::GitLimits;
pub use local::resolve_here;
pub use snapshot::Snapshot;

use ampoule_spec::{GitId, GitSigner, Sha256};
use object::Kind;

/// The time of a commit object, in seconds since 1970, if the bytes are that commit's.
///
/// # Errors
/// A sentence, if they are not, or have no time that a file can have.
pub fn commit_time(commit: GitId, object: &[u8]) -> Result<u64, String> {
    if object::id_of(Kind::Commit, object) != Some(commit) {
        return Err("the object is not that commit".to_owned());
    }
    let time = object::commit(object)?.time;
    u64::try_from(time).map_err(|_| format!("the commit's time is {time}, before 1970"))
}

/// An allowed-signers file (ssh-keygen(1)).
#[derive(Debug, Clone)]
pub struct AllowedSigners {
    signers: Vec<signers::Signer>,
    sha256: Sha256,
}

impl AllowedSigners {
    /// The most bytes of such a file.
    pub const BYTES_MAX: u64 = signers::SIGNERS_BYTES_MAX;

    /// Reads the file's bytes.
    ///
    /// # Errors
    /// A sentence that names the line.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
        let digest = <[u8; 32]>::try_from(digest.as_ref()).map_err(|e| e.to_string())?;
        Ok(Self { signers: signers::parse(text)?, sha256: Sha256::new(digest) })
    }

    /// Verifies a commit's own signature, at the commit's time.
    ///
    /// # Errors
    /// Why it does not count.
    pub fn verify_commit(&self, commit: GitId, object: &[u8]) -> Result<GitSigner, String> {
        if object::id_of(Kind::Commit, object) != Some(commit) {
            return Err("the object is not that commit".to_owned());
        }
        let parsed = object::commit(object)?;
        let verified = signature::verify(&parsed.signed, parsed.time, &self.signers)?;
        Ok(self.signer(verified, None))
    }

    /// Verifies an annotated tag of a commit, at the tag's time.
    ///
    /// # Errors
    /// Why it does not count.
    pub fn verify_tag(&self, commit: GitId, name: &str, object: &[u8]) -> Result<GitSigner, String> {
        let parsed = object::tag(object)?;
        if parsed.object != commit {
            return Err(format!("the tag {name} is of the commit {}", parsed.object));
        }
        if parsed.name != name.as_bytes() {
            return Err(format!("the tag's own name is {}", object::shown(&parsed.name)));
        }
        let verified = signature::verify(&parsed.signed, parsed.time, &self.signers)?;
        Ok(self.signer(verified, Some(name.to_owned())))
    }

    fn signer(&self, verified: signature::Verified, tag: Option<String>) -> GitSigner {
        let signature::Verified { principal, key } = verified;
        GitSigner { principal, key, allowed_signers: self.sha256, tag }
    }
}
