//! Types that cross Ampoule's privilege boundary.
//!
//! Everything here is data: parsed at the door, checked by [`JobSpec::validate`], and carried unchanged
//! from the agent's side to the runner's and back. The crate does no IO, reads no clock and draws no
//! randomness, so both sides and the offline verifier can share it.

mod code;
pub mod control;
mod defaults;
mod digest;
mod event;
mod git;
mod input;
mod job;
mod limits;
mod name;
mod output;
mod path;
mod profile;
mod report;
mod secret;
mod store;
pub mod wire;

pub use code::{Code, Exit, Fault};
pub use defaults::{BUILD_ID, ENV_DEFAULTS, HOSTNAME, INIT_ID, PUMP_ID, UMASK};
pub use digest::{Blake3, DigestError, Sha256};
pub use event::{
    Event, FRAME_EVENT, FRAME_LOG, FRAME_REPORT_END, FRAME_REPORT_PART, FRAME_SPEC, LogChunk, Stream,
};
pub use git::{
    GIT_COMMIT_BYTES_MAX, GIT_LINKS_MAX, GIT_PROOF_BYTES_MAX, GitId, GitIdError, GitLink, GitProof,
    GitSigner, HexBytes,
};
pub use input::{Input, InputSource, MadeBy};
pub use job::{
    ITEMS_MAX, Image, ImageLayer, JobSpec, LogOverflow, MIRRORS_MAX, ParamValue, STEP_TIMEOUT_MS_MAX,
    SpecError, Step, StepUser, TEXT_BYTES_MAX,
};
pub use limits::{LimitRefused, Limits, LimitsRequest, Unit};
pub use name::{EnvName, JobId, Name, NameError, OutputName, SlotId};
pub use output::{Output, OutputForm, OutputKind, OutputWhen};
pub use path::{PathError, SandboxPath};
pub use profile::{
    Capabilities, Device, LandlockRules, Mounts, Namespace, Network, Proc, Profile, Requirements, Sealed,
    Seccomp, SeccompProgram,
};
pub use report::{
    Check, CheckState, Failure, HostFacts, ImageReport, Isolation, LogReport, Measured, Outcome,
    OutputReport, PhaseTime, RunReport, StepEnd, StepReport, TeardownReport, Timeline, UnixNanos, Usage,
};
pub use secret::{
    Delivery, RotateSignal, SECRET_BYTES_MAX, SECRET_BYTES_MIN, SECRETS_DIR, SECRETS_MAX,
    STEP_SECRET_BYTES_MAX, Secret,
};
pub use store::{
    Collect, Collected, Damage, HowRead, KindCount, ReadPolicy, Reread, StoreStat, StoredObject,
};

/// The largest `spec.json` either side accepts, in bytes.
pub const SPEC_BYTES_MAX: u64 = 1 << 20;
/// The largest `report.json` either side accepts, in bytes.
pub const REPORT_BYTES_MAX: u64 = 4 << 20;
/// The version of [`JobSpec`], [`RunReport`] and the job file that this build reads and writes.
pub const FORMAT: u32 = 1;
