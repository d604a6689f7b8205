//! Fuzz targets: each module's `run` takes a stranger's bytes, and panics if something that is promised does not hold.
//!
//! `cargo xtask fuzz` builds them with coverage and runs them under libFuzzer. A test here runs each over its seeds and
//! over every input that once broke something (`regressions/`), without libFuzzer.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a property that does not hold is a panic here"
)]

pub mod jobfile;
pub mod journal;
pub mod oci;
mod place;
pub mod tar;
pub mod tree;
pub mod wire;

/// A target: its name, and what takes the bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("tar", tar::run),
    ("tree", tree::run),
    ("oci", oci::run),
    ("jobfile", jobfile::run),
    ("wire", wire::run),
    ("journal", journal::run),
];
