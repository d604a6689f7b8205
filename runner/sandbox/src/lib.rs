//! Stages of making, measuring and destroying a sandbox.
//!
//! The order of a set-up, as the supervisor ([`sandbox`]) and init ([`init`]) share it: control groups →
//! process with namespaces of its own → id maps → writable layer ([`scratch`]) → root and mounts as detached
//! descriptors ([`rootfs`]) → enter ([`enter`]) → the steps' own namespaces ([`inner`]) → confine ([`confine`]) →
//! measure ([`probe`]) → steps → destroy ([`teardown`]).

mod account;
mod by_name;
pub mod cgroup;
mod clock;
pub mod confine;
mod copy;
mod enter;
pub mod error;
pub mod ext4;
pub mod fault;
pub mod host_changes;
pub mod host_image;
pub mod identity;
mod init;
mod inner;
mod looks;
mod overlay;
mod place;
mod prepared;
pub mod probe;
pub mod protocol;
pub mod rootfs;
pub mod sandbox;
pub mod scratch;
pub mod secrets;
pub mod skeleton;
pub mod teardown;
pub mod uid_block;
pub mod userns;

pub use error::StageError;
pub use sandbox::{PreparePart, Sandbox};
