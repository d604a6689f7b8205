//! A daemon's client: what `ampoule submit` and its like are made of.
//!
//! No rules of its own: what a job is, is decided by the job file's reader and the daemon. What comes back is untrusted until
//! it is held against the attestation.

pub(crate) mod channel;
mod download;
mod error;
mod follow;
mod jobs;
mod logs;
mod out;
mod request;
mod retry;
mod trust;
mod upload;

pub use channel::{Bearer, Calls, Client, Credentials, Server};
pub use error::ClientError;
pub use follow::{Follow, Told, is_finished};
pub use jobs::exit_of;
pub use out::{Fetch, Fetched};
pub use request::Requesting;
pub use upload::Uploader;
