//! Stages of making, measuring and destroying a sandbox.
//!
//! The order of a set-up, as the supervisor ([`sandbox`]) and init ([`init`]) share it: control groups →
//! process with namespaces of its own → id maps → root and mounts as detached descriptors ([`rootfs`]) →
//! enter ([`enter`]) → confine ([`confine`]) → measure ([`probe`]) → steps → destroy ([`teardown`]).

pub mod cgroup;
pub mod confine;
pub mod enter;
pub mod error;
pub mod host_image;
pub mod identity;
pub mod init;
pub mod probe;
pub mod rootfs;
pub mod sandbox;
pub mod teardown;
pub mod userns;

pub use error::StageError;
pub use sandbox::{Sandbox, SandboxPlan};
