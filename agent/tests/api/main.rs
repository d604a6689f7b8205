//! The network face of the daemon through real sockets. What stands behind it is made up here; nothing in front of it is.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod answers;
mod audit;
mod downloads;
mod fake;
mod fixture;
mod host;
mod hostile;
mod lanes;
mod matrix;
mod raw;
mod reload;
mod submit;
