//! Jobs of the daemon: what they are, what may be asked of them, and how none of them is lost.

mod keeper;
pub mod ledger;
mod model;
pub mod queue;
mod service;
pub mod state;

pub use keeper::{
    Health, Intakes, Keep, Keeper, KeeperError, Needs, Options, Place, ProjectFiles, Shown, ShownToAll,
    Sources, Unwitnessed, Witness,
};
pub use model::{Caller, CancelWish, End, IdempotencyKey, Job, Labels, Means, Proofs, State, Submission};
pub use service::{
    EVIDENCE_BYTES_MAX, EvidenceFile, EvidenceFiles, Jobs, JobsError, OpenedOutput, Page, Promised,
    Submitted, Wanted, Watched, WatchedEvent,
};
