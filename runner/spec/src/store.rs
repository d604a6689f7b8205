//! The store as both sides speak of it: how it is read back, what lies in it, what a collection did.

use crate::{Blake3, Sha256, UnixNanos};
use serde::{Deserialize, Serialize};

/// When an object of the store is read back: before a job uses it, and again after the job.
///
/// Whatever the policy, something that looks wrong has the whole object read, and that alone decides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadPolicy {
    /// Every byte and attribute, each time.
    Always,
    /// Names, sizes and change times of a few files drawn at random, and the bytes of those that are small.
    #[default]
    Sampled,
    /// Names, sizes and change times of a few files drawn at random.
    Suspicion,
}

impl ReadPolicy {
    /// The policy's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Sampled => "sampled",
            Self::Suspicion => "suspicion",
        }
    }

    /// Whether it is the default; a profile that has it need not say so.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// How much of an object was read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HowRead {
    /// All of it.
    All,
    /// A sample, bytes included.
    Sample,
    /// A sample without bytes.
    Attributes,
    /// The host's package list, by everything that the kernel changes when somebody writes to it.
    PackageList,
    /// That, and the change time of every file and directory of the host that a job sees.
    HostTimes,
}

/// Something that a job used and that was read back after its last step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reread {
    /// What: `host`, `image`, `image layer N` from 0, or `input NAME`.
    pub what: String,
    /// The digest by which the world names it; of the host, of its package list.
    pub sha256: Sha256,
    /// How much of it was read.
    pub how: HowRead,
    /// Files that were looked at.
    pub files: u64,
    /// Bytes that were hashed.
    pub bytes: u64,
    /// Whether it is as it was.
    pub unchanged: bool,
}

/// An object that was found damaged and put into quarantine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Damage {
    /// The object's name in the store.
    pub object: String,
    /// What is wrong with it, for people.
    pub reason: String,
}

/// An object of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredObject {
    /// Its name in the store.
    pub object: Blake3,
    /// What the world calls it, the first few: the names of its index entries.
    pub contents: Vec<String>,
    /// Bytes of all files in it, each counted under each of its names.
    pub bytes: u64,
    /// Entries in it.
    pub entries: u64,
    /// When it was last used.
    pub used: UnixNanos,
}

/// How much of a kind there is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KindCount {
    /// `directory`, `file`, `archive`, `git`, `image-tar`, `oci-layer`, `oci-config`, `oci-manifest`; `shared` where several
    /// kinds name one object, `unnamed` where none does.
    pub kind: String,
    /// Objects.
    pub objects: u64,
    /// Bytes of all files in them.
    pub bytes: u64,
}

/// What is in the store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreStat {
    /// Objects.
    pub objects: u64,
    /// Bytes of all files in them.
    pub bytes: u64,
    /// Names of contents.
    pub contents: u64,
    /// The same by kind.
    pub kinds: Vec<KindCount>,
    /// When the object was used that was not used for longest.
    pub oldest: Option<UnixNanos>,
    /// Objects that something uses now.
    pub in_use: u64,
    /// Objects that the evidence of a job needs which is kept here.
    pub kept: u64,
    /// Bytes of all files in them.
    pub kept_bytes: u64,
    /// Objects and index entries in quarantine.
    pub quarantined: u64,
    /// What imports and collections that died had left in staging: removed when the launcher began.
    pub swept: u64,
    /// What imports and collections have in staging that are under way.
    pub staging: u64,
    /// Objects whose own description cannot be read; `store verify` says more.
    pub unreadable: u64,
    /// Bytes that are free on the file system for this user.
    pub free_bytes: u64,
    /// Bytes that imports leave free.
    pub reserve_bytes: u64,
}

/// What a collection may remove. Neither: nothing but what belongs to nobody.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Collect {
    /// So many bytes may stay; what was not used for longest goes first.
    pub max_bytes: Option<u64>,
    /// What was not used for so many seconds goes.
    pub max_age_seconds: Option<u64>,
    /// Say what would go, and remove nothing.
    pub dry_run: bool,
}

/// What a collection did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Collected {
    /// Objects that were removed.
    pub removed: u64,
    /// Bytes of all files in them.
    pub removed_bytes: u64,
    /// The first of them.
    pub objects: Vec<StoredObject>,
    /// Objects that would have gone, and that something uses or used meanwhile.
    pub in_use: u64,
    /// Objects that would have gone, and that the evidence of a job needs.
    pub kept: u64,
    /// Imports that had died.
    pub swept: u64,
    /// Index entries of objects that are not there.
    pub dangling: u64,
    /// Objects that are left.
    pub left: u64,
    /// Bytes of all files in them.
    pub left_bytes: u64,
}
