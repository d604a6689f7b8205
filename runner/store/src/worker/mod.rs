//! What the import worker does: one source in, one tree below its staging directory out.
//!
//! The worker is a process of its own for each import, in its own user namespace, without network, without a
//! secret, and with two descriptors: the source and an empty staging directory. It decompresses and parses what
//! a stranger wrote, so it is the process that a hostile archive would take over. What that could win:
//! - It sees one source, and writes only its own staging directory: never another entry of the store.
//! - Nothing it *says* names content. The source's digest comes from [`crate::receive`], which another process
//!   runs and which parses nothing; tree digests are computed by [`crate::Store::commit`] from the finished
//!   tree after the worker is dead; the shape of the tree (types, modes, owners, times, attributes, depth,
//!   counts) is checked there too.
//! - So a taken-over worker can put wrong files into the one entry that is named by the digest of the very
//!   archive that took it over, and can say a wrong [`Claims::stream_sha256`] for that same archive. Entries
//!   named by a tree digest or a file's digest it cannot corrupt at all: those are checked against their name.
//!
//! All writing goes through descriptors with `openat2` (beneath, no links, no other file system). The process
//! is expected to be confined to its staging directory besides (mount namespace or Landlock): a descriptor of a
//! directory alone does not keep a taken-over process from asking for `..`.

mod archive;
mod place;
mod single;

pub(crate) use single::CONTENT;

use crate::limits::Limits;
use crate::refusal::{Refusal, shown};
use ampoule_spec::wire::Content;
use ampoule_spec::{Code, Sha256};
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// The largest [`WorkerResult`] as JSON; the launcher reads no more from its worker.
pub const RESULT_BYTES_MAX: usize = 16 << 10;
/// The most bytes of a message that a launcher passes on.
const MESSAGE_BYTES_MAX: usize = 1024;

/// Why a worker stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkError {
    #[error("{0}")]
    Refused(#[from] Refusal),
    #[error("the source cannot be read: {0}")]
    Source(Errno),
    #[error("{entry}: cannot {doing} in the store: {errno}")]
    Store { doing: &'static str, entry: String, errno: Errno },
}

impl WorkError {
    pub(crate) fn source(error: std::io::Error) -> Self {
        Self::Source(Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }

    /// For `map_err` on a system call that concerns an entry.
    pub(crate) fn store(doing: &'static str, entry: &[u8]) -> impl FnOnce(Errno) -> Self {
        let entry = shown(entry);
        move |errno| Self::Store { doing, entry, errno }
    }
}

/// What an honest worker found. Nothing in it names content (see the module's page).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// SHA-256 of a layer's decompressed bytes: what an image's configuration calls its diff id.
    pub stream_sha256: Option<Sha256>,
    /// Bytes after decompression.
    pub stream_bytes: u64,
    /// Owners that could not be kept, because the worker has one id only.
    pub owners_left: u64,
    /// Devices and FIFOs below an image's `/dev` that were left out.
    pub devices_skipped: u64,
    /// Directories that the archive only implied; in a layer they hide the attributes of those below them.
    pub implied_directories: u64,
}

/// What a worker sends to its launcher, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case", deny_unknown_fields)]
pub enum WorkerResult {
    /// The staging directory holds the tree.
    Done(Claims),
    /// The content was refused, or something failed. What lies in the staging directory is rubbish.
    Refused {
        /// The code for the reply.
        code: Code,
        /// [`Refusal::name`], or `io`.
        name: String,
        /// For people.
        message: String,
    },
}

impl WorkerResult {
    /// The result as one JSON document.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads what a worker sent. It may be hostile: sizes are bounded, and its texts lose control characters.
    ///
    /// # Errors
    /// A sentence, when it is too long or no [`WorkerResult`].
    pub fn from_json(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > RESULT_BYTES_MAX {
            return Err(format!("the worker's result has more than {RESULT_BYTES_MAX} bytes"));
        }
        let result = serde_json::from_slice(bytes)
            .map_err(|error| format!("the worker's result is not readable: {error}"))?;
        Ok(match result {
            Self::Refused { code, name, message } => {
                let name = if Refusal::NAMES.contains(&name.as_str()) { name } else { "io".to_owned() };
                Self::Refused { code, name, message: clean(&message) }
            }
            done @ Self::Done(_) => done,
        })
    }

    fn failed(error: &WorkError) -> Self {
        let (code, name) = match error {
            WorkError::Refused(refusal) => (refusal.code(), refusal.name()),
            WorkError::Source(_) => (Code::InputUnreachable, "io"),
            WorkError::Store { .. } => (Code::Internal, "io"),
        };
        Self::Refused { code, name: name.to_owned(), message: clean(&error.to_string()) }
    }
}

/// A text without control characters and with an end.
fn clean(text: &str) -> String {
    let mut out = String::new();
    for letter in text.chars() {
        if out.len() >= MESSAGE_BYTES_MAX {
            break;
        }
        if letter.is_ascii_graphic() || letter == ' ' {
            out.push(letter);
        } else {
            out.extend(letter.escape_unicode());
        }
    }
    out
}

/// Imports `source` into the empty directory `staging` and says how it went. Runs in the worker's process.
///
/// The tree is complete when it returns [`WorkerResult::Done`], but not durable, and nobody relies on it before
/// [`crate::Store::commit`]. It neither panics nor allocates by what the source announces.
pub fn run(content: &Content, source: OwnedFd, staging: OwnedFd, limits: &Limits) -> WorkerResult {
    run_with(content, source, staging, limits, |_| {})
}

/// The same, and tells of every larger file that is whole, so that writing it to the disk can begin.
pub fn run_with(
    content: &Content,
    source: OwnedFd,
    staging: OwnedFd,
    limits: &Limits,
    whole: fn(BorrowedFd<'_>),
) -> WorkerResult {
    match import(content, source, staging, limits, whole) {
        Ok(claims) => WorkerResult::Done(claims),
        Err(error) => WorkerResult::failed(&error),
    }
}

fn import(
    content: &Content,
    source: OwnedFd,
    staging: OwnedFd,
    limits: &Limits,
    whole: fn(BorrowedFd<'_>),
) -> Result<Claims, WorkError> {
    use crate::stream::Stream;
    use place::{Place, Policy};
    let limits = *limits;
    match content {
        Content::Directory { epoch, .. } | Content::Git { epoch, .. } => {
            let place = Place::new(staging, Policy::Input { epoch: *epoch }, limits)?;
            archive::unpack(Stream::plain(source, limits), place, whole)
        }
        Content::Archive { epoch, .. } => {
            let place = Place::new(staging, Policy::Input { epoch: *epoch }, limits)?;
            archive::unpack(Stream::detect(source, limits)?, place, whole)
        }
        Content::ImageTar { .. } => {
            let place = Place::new(staging, Policy::Image, limits)?;
            archive::unpack(Stream::detect(source, limits)?, place, whole)
        }
        Content::OciLayer { .. } => {
            let place = Place::new(staging, Policy::Layer, limits)?;
            archive::unpack(Stream::detect(source, limits)?.hashed(), place, whole)
        }
        Content::File { executable, epoch, .. } => {
            single::file(Stream::plain(source, limits), staging, *executable, *epoch, limits)
        }
        Content::OciManifest { .. } => {
            single::document(source, staging, limits, |bytes| crate::oci::manifest(bytes).map(drop))
        }
        Content::OciConfig { .. } => {
            single::document(source, staging, limits, |bytes| crate::oci::diff_ids(bytes).map(drop))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_of_a_hostile_worker_is_bounded_and_clean() {
        let hostile = WorkerResult::Refused {
            code: Code::InputRefused,
            name: "\u{1b}]0;".to_owned(),
            message: format!("a\u{1b}[2J\nb\u{202e}{}", "x".repeat(5000)),
        };
        let Ok(WorkerResult::Refused { name, message, .. }) = WorkerResult::from_json(&hostile.to_json())
        else {
            panic!("refused stays refused");
        };
        assert_eq!(name, "io");
        assert!(message.len() < 1100 && message.chars().all(|c| c.is_ascii_graphic() || c == ' '));
        assert!(WorkerResult::from_json(&vec![b' '; RESULT_BYTES_MAX + 1]).is_err());
        assert!(WorkerResult::from_json(b"{\"result\":\"done\",\"more\":1}").is_err());
        assert!(WorkerResult::from_json(b"").is_err());
    }

    #[test]
    fn result_round_trips() {
        let done = WorkerResult::Done(Claims { stream_bytes: 7, ..Claims::default() });
        assert_eq!(WorkerResult::from_json(&done.to_json()), Ok(done));
    }
}
