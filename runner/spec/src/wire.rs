//! What agent and launcher say to each other over their `SOCK_SEQPACKET` socket.
//!
//! One JSON message a packet, descriptors beside it by `SCM_RIGHTS`. The spec itself, manifests and
//! archives travel as descriptors, so no message needs more than [`MESSAGE_BYTES_MAX`].

use crate::{
    Blake3, Code, Collect, Collected, GitId, Isolation, JobId, LimitsRequest, Name, Sha256, SlotId, StepUser,
    StoreStat, StoredObject, UnixNanos,
};
use serde::{Deserialize, Serialize};

/// The largest message, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// The byte in a lifetime pipe, or the one packet on a job's [`CONTROL_SOCKET`], that cancels the job.
pub const CANCEL: u8 = b'c';
/// The socket in the directory of a job that belongs to no connection: `SOCK_SEQPACKET`, for the agent and root.
pub const CONTROL_SOCKET: &str = "control.sock";
/// The most jobs in one [`Reply::Jobs`]: what fits into a packet, with room to spare.
pub const JOBS_PAGE_MAX: usize = 500;

/// The most sessions of a launcher that listens which do whatever they are asked, at a time. The agent has no more of what
/// lasts than that: what it asks of jobs finds a place.
pub const SESSIONS_MAX: usize = 12;

/// What the agent asks of the launcher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Is this in the store?
    Find(Content),
    /// Take these bytes into the store. Descriptor: the bytes, a file or a pipe; for [`Content::Git`] a second one,
    /// a file with its [`crate::GitProof`].
    Import(Content),
    /// Open a file or directory of the store by its digest, for reading. Times, and whether a file may be executed, may be
    /// others than those that are named.
    Open(Content),
    /// Could a job with these demands be admitted here, as far as that is known before there is anything of it?
    Demand {
        /// Its profile.
        profile: Name,
        /// Who its steps are.
        user: StepUser,
        /// What it asks to use.
        limits: LimitsRequest,
    },
    /// Run a job. Descriptors: the spec; then, if `lifetime`, a pipe: [`CANCEL`] in it cancels the job, its end of
    /// file aborts it. Without one, and if the launcher [listens](Reply::Hello::listening), the job is nobody's: it goes
    /// on when the connection ends, and is cancelled by its [`CONTROL_SOCKET`].
    Run {
        /// Whether a lifetime pipe comes with the request.
        lifetime: bool,
    },
    /// Measure what this host can isolate for a profile.
    Doctor {
        /// The profile.
        profile: Name,
    },
    /// Remove a job's directory: its evidence is durable elsewhere. A listening launcher takes any job that is reported
    /// and not alive, and one that has no directory any more; another takes those that it holds for this connection.
    Forget {
        /// The job.
        job: JobId,
    },
    /// See to it that a job is never admitted, unless it has a directory: whoever still has a request for it is refused from
    /// now on. Of a listening launcher alone.
    Fence {
        /// The job.
        job: JobId,
    },
    /// Which jobs have a directory, in the order of their ids, a page at a time? Of a listening launcher alone. A job
    /// that is neither alive nor reported is recovered before the answer.
    Jobs {
        /// Those after this one.
        after: Option<JobId>,
        /// Only this one.
        only: Option<JobId>,
    },
    /// What is in the store?
    StoreStat,
    /// Which objects are in the store, in the order of their names, a page at a time?
    StoreList {
        /// Those after this one.
        after: Option<Blake3>,
        /// Only those that this digest names, as the world or the store calls them.
        named: Option<String>,
    },
    /// Read an object back.
    StoreVerify {
        /// The object.
        object: Blake3,
        /// Whether one that is damaged goes into quarantine.
        quarantine: bool,
    },
    /// Remove what nobody needs.
    StoreCollect(Collect),
}

/// Something in the store, named by what the world knows of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "content", rename_all = "snake_case", deny_unknown_fields)]
pub enum Content {
    /// A directory, streamed as a plain tar archive; named by its tree digest (docs/formats.md).
    Directory {
        /// The tree digest, if it is known beforehand; the import refuses another.
        tree: Option<Sha256>,
        /// Modification time of every entry, in seconds since 1970.
        epoch: u64,
    },
    /// A single file.
    File {
        /// SHA-256 of its bytes, if known beforehand.
        sha256: Option<Sha256>,
        /// Whether it may be executed.
        executable: bool,
        /// Its modification time, in seconds since 1970.
        epoch: u64,
    },
    /// A tar archive, plain, gzip or zstd, that is unpacked with normalised modes.
    Archive {
        /// SHA-256 of its bytes as they come.
        sha256: Sha256,
        /// Modification time of every entry, in seconds since 1970.
        epoch: u64,
    },
    /// The checkout of a commit, streamed as a plain tar archive. The launcher computes git's own ids from the finished
    /// tree and holds them against the commit object.
    Git {
        /// The commit.
        commit: GitId,
        /// Whether submodules are checked out; else their directories are empty.
        submodules: bool,
        /// Modification time of every entry, in seconds since 1970.
        epoch: u64,
    },
    /// A root file system in one tar archive.
    ImageTar {
        /// SHA-256 of its bytes as they come.
        sha256: Sha256,
    },
    /// An OCI image manifest. Its configuration and layers must be in the store before.
    OciManifest {
        /// SHA-256 of its bytes.
        sha256: Sha256,
    },
    /// An OCI image configuration.
    OciConfig {
        /// SHA-256 of its bytes.
        sha256: Sha256,
    },
    /// A layer of an OCI image as it is distributed: plain, gzip or zstd.
    OciLayer {
        /// SHA-256 of its bytes as they come.
        sha256: Sha256,
    },
}

/// What the launcher answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case", deny_unknown_fields)]
pub enum Reply {
    /// The first message on a connection.
    Hello {
        /// The runner's version.
        version: String,
        /// Whether the runner has the host's root privilege.
        privileged: bool,
        /// Jobs of an earlier run that were cleaned up now; none of a listening launcher's, which says them when it
        /// is asked for its jobs.
        recovered: Vec<Recovered>,
        /// Whether the launcher listens: jobs outlive the connection, and every connection sees all of them.
        listening: bool,
    },
    /// To [`Request::Find`]: what is there, or nothing.
    Found {
        /// It, if it is there.
        imported: Option<Imported>,
    },
    /// To [`Request::Import`].
    Imported(Imported),
    /// To [`Request::Open`]. Descriptor, if it is there: the file, or the root of the directory, whose bytes are to be held
    /// against the digest by whoever reads them.
    Opened {
        /// Whether it is there.
        found: bool,
    },
    /// To [`Request::Demand`]: nothing is in the way. Else the answer is the refusal that the job would get.
    Possible,
    /// The job is durable.
    Admitted {
        /// The job.
        job: JobId,
    },
    /// The job's report is durable.
    Finished {
        /// The job.
        job: JobId,
    },
    /// To [`Request::Doctor`].
    Measured {
        /// What was measured.
        isolation: Isolation,
        /// What the profile demands and the host does not give, with the remedy; empty: it can be met.
        missing: Vec<String>,
        /// Slots that are or were in quarantine since the last boot, the latest first.
        quarantined: Vec<Quarantined>,
    },
    /// To [`Request::Forget`].
    Forgotten,
    /// To [`Request::Fence`]. Durable until the next boot of the host, which no request survives.
    Fenced {
        /// Whether it never was admitted, and never will be. Else it has a directory.
        never: bool,
    },
    /// To [`Request::Jobs`].
    Jobs {
        /// A page of them, at most [`JOBS_PAGE_MAX`].
        jobs: Vec<ListedJob>,
        /// Whether there are more after the last.
        more: bool,
    },
    /// To [`Request::StoreStat`].
    StoreStat(StoreStat),
    /// To [`Request::StoreList`].
    StoreObjects {
        /// A page of them.
        objects: Vec<StoredObject>,
        /// Whether there are more after the last.
        more: bool,
    },
    /// To [`Request::StoreVerify`].
    StoreVerified {
        /// What is wrong with the object; none: nothing.
        damage: Option<String>,
        /// Whether it is in quarantine now.
        quarantined: bool,
        /// Bytes that were read.
        bytes: u64,
    },
    /// To [`Request::StoreCollect`].
    StoreCollected(Collected),
    /// The request was refused, or failed.
    Refused {
        /// Why.
        code: Code,
        /// For people.
        message: String,
    },
}

/// Something that lies in the store now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Imported {
    /// The digest that names it in the world: of the tree, file, archive, manifest or layer.
    pub sha256: Sha256,
    /// Bytes of all files in it.
    pub bytes: u64,
    /// Entries in it.
    pub entries: u64,
}

/// A slot of which something was left behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quarantined {
    /// The slot.
    pub slot: SlotId,
    /// Its job, if it had one.
    pub job: Option<JobId>,
    /// What was found to be left, for people.
    pub left: String,
    /// When.
    pub since: UnixNanos,
    /// How often it was looked at again.
    pub looks: u32,
    /// When nothing was found any more, and the slot was released.
    pub released: Option<UnixNanos>,
}

/// A job that has a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListedJob {
    /// The job.
    pub id: JobId,
    /// Whether somebody sees to it: its supervisor, or whoever recovers it.
    pub alive: bool,
    /// Whether its report can be read.
    pub reported: bool,
}

/// A job of an earlier run that was cleaned up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recovered {
    /// The job.
    pub job: JobId,
    /// What was found and removed.
    pub removed: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reply_crosses_the_wire() {
        let imported = Imported { sha256: Sha256::new([7; 32]), bytes: 1, entries: 2 };
        let job = crate::JobId::parse("01890a5d-ac96-774b-bcce-b302099a8057").unwrap();
        let recovered = vec![Recovered { job: job.clone(), removed: vec!["x".into()] }];
        for reply in [
            Reply::Hello { version: "1".into(), privileged: true, recovered, listening: true },
            Reply::Found { imported: None },
            Reply::Found { imported: Some(imported.clone()) },
            Reply::Imported(imported),
            Reply::Opened { found: true },
            Reply::Possible,
            Reply::Admitted { job: job.clone() },
            Reply::Jobs {
                jobs: vec![ListedJob { id: job.clone(), alive: true, reported: false }],
                more: true,
            },
            Reply::Finished { job },
            Reply::Measured { isolation: Isolation::default(), missing: vec![], quarantined: vec![] },
            Reply::Forgotten,
            Reply::Fenced { never: true },
            Reply::StoreStat(StoreStat::default()),
            Reply::StoreObjects { objects: vec![], more: true },
            Reply::StoreVerified { damage: Some("d".into()), quarantined: true, bytes: 3 },
            Reply::StoreCollected(Collected::default()),
            Reply::Refused { code: Code::Internal, message: "m".into() },
        ] {
            let text = serde_json::to_string(&reply).unwrap();
            assert_eq!(serde_json::from_str::<Reply>(&text).unwrap(), reply);
        }
    }

    #[test]
    fn page_of_jobs_fits_into_a_packet() {
        let id = crate::JobId::parse("01890a5d-ac96-774b-bcce-b302099a8057").unwrap();
        let jobs = vec![ListedJob { id, alive: false, reported: false }; JOBS_PAGE_MAX];
        let bytes = serde_json::to_vec(&Reply::Jobs { jobs, more: false }).unwrap().len();
        assert!(bytes <= MESSAGE_BYTES_MAX, "{bytes}");
    }
}
