//! Jobs of the daemon: what they are, and what may be asked of them.

mod model;
mod service;

pub use model::{Caller, CancelWish, End, IdempotencyKey, Job, Labels, Means, State, Submission};
pub use service::{EvidenceFiles, Jobs, JobsError, Page, Submitted, Wanted, Watched, WatchedEvent};
