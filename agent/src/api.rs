//! The wire: listeners, callers, and what clients send, checked field by field.

mod connection;
pub mod convert;
mod download;
mod error;
mod front;
mod git;
pub mod host;
mod incoming;
pub mod jobs;
mod known;
mod lane;
pub mod leases;
mod limits;
mod message;
mod places;
mod schema;
mod secret;
mod server;
mod shares;
mod show;
mod stream;
mod strict;
mod submit;
mod tls;

pub(crate) use error::DEFECT;
pub use error::{ApiError, grpc};
pub use front::Parts;
pub use known::{ContentGate, Known};
pub use limits::{Bound, Limits};
pub use server::{Listener, Server};
pub use tls::{NewTls, Tls, TlsError, TlsFiles};
