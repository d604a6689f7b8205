//! Getting the bytes of inputs: the unprivileged, network-facing side.
//!
//! What is guaranteed: bytes that are handed on have the digest that the job names, and no more than the
//! cap was ever written. What is not: nothing is unpacked and no archive is read here, so a hostile one
//! reaches only the import worker of the runner.

mod digest;
mod error;
pub mod exclude;
mod fetch;
mod guard;
mod mirrors;
pub(crate) mod oci_documents;
mod oci_layout;
mod url;

pub use error::InputError;
pub use fetch::{Counted, FetchOptions, Fetched, Fetcher, scratch_file};
pub use guard::{Guard, GuardOptions, Lookup, SystemLookup};
pub use mirrors::PassedOver;
pub use oci_documents::Blob;
pub use oci_layout::{LayoutImage, OciLayout};
pub use url::parse_url;

use ampoule_spec::Sha256;

/// The digest in the 32 bytes of a finished hash.
pub(crate) fn sha256_of(bytes: &[u8]) -> Result<Sha256, InputError> {
    let bytes: [u8; 32] = bytes.try_into().map_err(|_| InputError::File {
        what: "a hash".to_owned(),
        source: std::io::Error::other("not 32 bytes"),
    })?;
    Ok(Sha256::new(bytes))
}
