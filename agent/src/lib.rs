//! The unprivileged side of Ampoule: it reads what people and clients write, fetches bytes, and decides.
//!
//! Nothing here holds privilege: no mount, no clone. It unpacks nothing but the runner's own archive of an output. What
//! it learns it hands to the runner as data and descriptors.

pub mod admission;
pub mod api;
pub mod artifact;
pub mod audit;
pub mod audit_sink;
mod block;
pub mod chain;
pub mod client;
pub mod content;
pub mod daemon;
pub mod export;
pub mod fair;
pub mod files;
pub mod git;
pub mod identity;
pub mod inputs;
pub mod job;
pub mod jobfile;
pub mod local;
pub mod pin;
pub mod registry;
pub mod secrets;
mod shelf;
pub mod signing;
pub mod sources;
pub mod traces;
pub mod trusted;
pub mod vault;
pub mod visits;
