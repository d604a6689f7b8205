//! Tests that need more than one file of the crate.

pub(crate) mod fixture;

mod clean;
mod envelopes;
mod forgeries;
mod git;
mod golden;
mod keys;
mod made_by;
mod parameters;
mod runs;
mod schema;
mod seals;
mod trees;
mod tricks;
mod verifying;
