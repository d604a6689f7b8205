//! Reading tar archives: one strict subset of ustar, GNU, version 7 and PAX.
//!
//! Guarantees: an archive that two common programs would list differently is refused instead of read one way
//! (CVE-2025-62518, CVE-2026-33055); nothing is kept in memory but one header and its bounded extensions.
//! Not guaranteed: that every archive in the world is read.

mod header;
mod pax;
mod reader;

pub(crate) use header::Kind;
pub(crate) use reader::{Archive, Entry};
