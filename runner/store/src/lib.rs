//! The digest-addressed store and its import worker.
//!
//! Two sides that never share a process:
//! - [`worker`] decompresses and unpacks what a stranger wrote, in a process that may be lost to it;
//! - [`Store`] (and [`receive`]) runs with the launcher's privilege, parses no archive, and takes a worker's tree
//!   only after it has read it back: [`Store::begin`] → [`receive`] beside [`worker::run`] → [`Store::commit`].
//!
//! [`mod@pack`] is for the unprivileged side: it streams a client's directory as an archive that the worker reads. The
//! supervisor packs a job's directories with it, and [`mod@unpack`] is how they are released.
//!
//! Guarantees: what the store returns for a content is what its digest names; every limit holds before memory,
//! disk or recursion is spent; what [`Store::commit`] returned survives `kill -9` and power loss. Not guaranteed:
//! that nobody with the store's own uid edits it (then [`Store::verify`] says so), nor room on the disk.

mod archive_out;
mod beneath;
mod check;
mod collect;
mod commit;
pub mod compress;
mod digest;
mod durable;
mod entry_path;
mod error;
mod file_list;
mod git;
mod inventory;
mod lease;
mod leaving;
mod limits;
mod magic;
mod oci;
mod outward;
pub mod pack;
mod quarantine;
mod receive;
mod record;
mod refusal;
mod remove;
mod room;
mod seal;
mod store;
mod stream;
mod tar;
mod target;
mod tree_digest;
pub mod unpack;
mod uses;
mod walk;
pub mod worker;

pub use archive_out::ArchiveWriter;
pub use check::{Budget, Checked, ReadBack};
pub use commit::Staging;
pub use digest::digests;
pub use error::StoreError;
pub use lease::Lease;
pub use leaving::{Leaving, SealedOutput};
pub use limits::{DEPTH_MAX, DOCUMENT_BYTES_MAX, Limits, NAME_BYTES_MAX, PATH_BYTES_MAX, TARGET_BYTES_MAX};
pub use receive::{ReceiveError, Received, receive};
pub use refusal::Refusal;
pub use room::Room;
pub use seal::Owner;
pub use store::{Store, StoredTree, Swept};
pub use target::Holey;
pub use uses::{Needed, Needs};
