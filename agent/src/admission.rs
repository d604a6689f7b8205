//! Who may do what: the operator's policy, asked in one place.
//!
//! What is guaranteed: a call that the policy does not allow in so many words is denied, also when the policy fails, gives
//! another answer than `true`, or takes too long; and every denied call is told to the audit log.

mod cases;
mod desk;
#[cfg(test)]
pub(crate) mod desk_tests;
mod policy;
mod question;

pub use cases::{CaseResult, run_cases};
pub use desk::{Desk, Scene};
pub use policy::{Decision, Policy, PolicyError};
pub use question::{Action, ImageKind, JobFacts, Question};
