//! A daemon's client: what `ampoule submit` and its like are made of.
//!
//! No rules of its own: what a job is, is decided by the job file's reader and the daemon. What comes back is untrusted until
//! it is held against the attestation.

mod channel;
mod error;

pub use channel::{Bearer, Calls, Client, Credentials, Server};
pub use error::ClientError;
