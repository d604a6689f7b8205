//! The wire: what clients send, checked field by field.

pub mod convert;
mod git;
