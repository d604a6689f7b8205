//! Checkpoints (c2sp.org/tlog-checkpoint): which log, how many entries, which root.

use super::note::{NoteError, NoteKey, NoteSigner, sign_note};
use super::tree::Hash;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A log as it was at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The log's name.
    pub origin: String,
    /// How many entries it has.
    pub size: u64,
    /// The root of its tree.
    pub root: Hash,
}

/// Why a text is no checkpoint of a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// It is no note that the key has signed.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// It is a note and no checkpoint.
    #[error("it is not a checkpoint: {0}")]
    Form(&'static str),
    /// It is another log's.
    #[error("it is a checkpoint of {0}")]
    Origin(String),
}

impl Checkpoint {
    /// The text that is signed.
    pub fn text(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, STANDARD.encode(self.root))
    }

    /// Reads the text that is signed. Lines after the third are extensions, and passed over.
    ///
    /// # Errors
    /// [`CheckpointError::Form`] with what is wrong.
    pub fn parse(text: &str) -> Result<Self, CheckpointError> {
        let form = CheckpointError::Form;
        let mut lines = text.strip_suffix('\n').ok_or(form("its last line has no end"))?.split('\n');
        let (Some(origin), Some(size), Some(root)) = (lines.next(), lines.next(), lines.next()) else {
            return Err(form("it has not three lines"));
        };
        if origin.is_empty() || lines.any(str::is_empty) {
            return Err(form("it has an empty line"));
        }
        let number: u64 = size.parse().map_err(|_| form("its size is no number"))?;
        if number.to_string() != size {
            return Err(form("its size is not written plainly"));
        }
        let root = STANDARD.decode(root).ok().and_then(|root| Hash::try_from(root).ok());
        let root = root.ok_or(form("its root is not the base64 of 32 bytes"))?;
        Ok(Self { origin: origin.to_owned(), size: number, root })
    }

    /// The checkpoint as a note. The key has the log's name.
    ///
    /// # Errors
    /// [`NoteError`] for an origin that a note cannot have.
    pub fn sign(&self, signer: &impl NoteSigner) -> Result<String, NoteError> {
        sign_note(&self.text(), signer)
    }

    /// Reads a note that a log's key has signed; the log has the key's name.
    ///
    /// # Errors
    /// [`CheckpointError`] for any other note.
    pub fn open(note: &[u8], key: &NoteKey) -> Result<Self, CheckpointError> {
        let checkpoint = Self::parse(key.open(note)?)?;
        if checkpoint.origin != key.name() {
            return Err(CheckpointError::Origin(checkpoint.origin));
        }
        Ok(checkpoint)
    }
}
