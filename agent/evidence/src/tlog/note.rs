//! Signed notes (c2sp.org/signed-note) with Ed25519.

use aws_lc_rs::digest::{Context, SHA256};
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::fmt;

/// The most bytes of a note that is read.
pub const NOTE_BYTES_MAX: usize = 64 << 10;
/// The most signatures of a note that are looked at.
const SIGNATURES_MAX: usize = 64;
/// The type of an Ed25519 signature.
const ED25519_TYPE: u8 = 1;
/// What every signature line begins with: an em dash and a space.
const LINE_HEAD: &str = "\u{2014} ";

/// Signs notes; the key stays with whoever implements it.
pub trait NoteSigner {
    /// The key's name: what its signature lines begin with.
    fn name(&self) -> &str;

    /// The Ed25519 public key.
    fn public_key(&self) -> [u8; 32];

    /// The Ed25519 signature over a text, 64 bytes.
    fn sign(&self, text: &[u8]) -> [u8; 64];
}

/// Why a text is no note, no key, or not signed by a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// It is not in the form of a signed note.
    #[error("it is not a signed note: {0}")]
    Form(&'static str),
    /// It is not in the form of a verifier key.
    #[error("it is not a note's public key NAME+HASH+KEY: {0}")]
    Key(&'static str),
    /// The key has not signed it.
    #[error("it has no signature of {0}")]
    Unsigned(String),
    /// There is a signature that says it is the key's, and is not.
    #[error("its signature of {0} is not one of that key over this text")]
    Signature(String),
}

/// A public key for notes: a name and an Ed25519 key.
#[derive(Clone, PartialEq, Eq)]
pub struct NoteKey {
    name: String,
    key: [u8; 32],
}

impl fmt::Debug for NoteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NoteKey({self})")
    }
}

impl fmt::Display for NoteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key: Vec<u8> = std::iter::once(ED25519_TYPE).chain(self.key).collect();
        write!(f, "{}+{:08x}+{}", self.name, u32::from_be_bytes(self.id()), STANDARD.encode(key))
    }
}

fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() || name.contains('+') || name.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("a name is not empty and has no space and no '+'");
    }
    Ok(())
}

impl NoteKey {
    /// A key with a name.
    ///
    /// # Errors
    /// [`NoteError::Key`] for a name that notes cannot have.
    pub fn new(name: &str, key: [u8; 32]) -> Result<Self, NoteError> {
        check_name(name).map_err(NoteError::Key)?;
        Ok(Self { name: name.to_owned(), key })
    }

    /// Reads `NAME+HASH+KEY`.
    ///
    /// # Errors
    /// [`NoteError::Key`] with what is wrong.
    pub fn parse(text: &str) -> Result<Self, NoteError> {
        let mut parts = text.splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(NoteError::Key("it has not three parts"));
        };
        let key = STANDARD.decode(key).map_err(|_| NoteError::Key("the key is not base64"))?;
        let key = match key.split_first() {
            Some((&ED25519_TYPE, key)) => <[u8; 32]>::try_from(key).ok(),
            _ => None,
        };
        let key = Self::new(name, key.ok_or(NoteError::Key("it is no Ed25519 key"))?)?;
        if format!("{:08x}", u32::from_be_bytes(key.id())) != id {
            return Err(NoteError::Key("its hash is another key's"));
        }
        Ok(key)
    }

    /// The key's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its signatures begin with: the first bytes of SHA-256 of name, line feed, type and key.
    pub fn id(&self) -> [u8; 4] {
        let mut context = Context::new(&SHA256);
        for part in [self.name.as_bytes(), b"\n", &[ED25519_TYPE], &self.key] {
            context.update(part);
        }
        context.finish().as_ref().first_chunk().copied().unwrap_or_default()
    }

    /// The text of a note that this key has signed. Signatures of other keys are passed over.
    ///
    /// # Errors
    /// [`NoteError`] if it is no note, or this key has not signed it.
    pub fn open<'a>(&self, note: &'a [u8]) -> Result<&'a str, NoteError> {
        let note = Note::parse(note)?;
        for (name, signature) in &note.signatures {
            let Some((id, bytes)) = signature.split_first_chunk::<4>() else { continue };
            if *name != self.name || *id != self.id() {
                continue;
            }
            let key = UnparsedPublicKey::new(&ED25519, self.key);
            return match key.verify(note.text.as_bytes(), bytes) {
                Ok(()) => Ok(note.text),
                Err(_) => Err(NoteError::Signature(self.name.clone())),
            };
        }
        Err(NoteError::Unsigned(self.to_string()))
    }
}

/// A note, its signatures not checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note<'a> {
    /// The signed text, its last line feed included.
    pub text: &'a str,
    /// Names of keys, and the bytes of their signatures: the key's id and the signature itself.
    pub signatures: Vec<(&'a str, Vec<u8>)>,
}

impl<'a> Note<'a> {
    /// Takes a note apart.
    ///
    /// # Errors
    /// [`NoteError::Form`] with what is wrong.
    pub fn parse(note: &'a [u8]) -> Result<Self, NoteError> {
        if note.len() > NOTE_BYTES_MAX {
            return Err(NoteError::Form("it is too long"));
        }
        let note = std::str::from_utf8(note).map_err(|_| NoteError::Form("it is not UTF-8"))?;
        if note.chars().any(|c| c < ' ' && c != '\n') {
            return Err(NoteError::Form("it has a control character"));
        }
        let at = note.rfind("\n\n").ok_or(NoteError::Form("it has no blank line before its signatures"))?;
        let (text, lines) = (note.get(..at.saturating_add(1)), note.get(at.saturating_add(2)..));
        let (Some(text), Some(lines)) = (text, lines.and_then(|lines| lines.strip_suffix('\n'))) else {
            return Err(NoteError::Form("it does not end with a signature line"));
        };
        let mut signatures = Vec::new();
        for line in lines.split('\n') {
            let parts = line.strip_prefix(LINE_HEAD).and_then(|line| line.split_once(' '));
            let (name, signature) = parts.ok_or(NoteError::Form("a line is no signature line"))?;
            check_name(name).map_err(NoteError::Form)?;
            let signature =
                STANDARD.decode(signature).map_err(|_| NoteError::Form("a signature is not base64"))?;
            if signature.len() < 5 || signatures.len() == SIGNATURES_MAX {
                return Err(NoteError::Form("a signature is too short, or there are too many"));
            }
            signatures.push((name, signature));
        }
        Ok(Self { text, signatures })
    }
}

/// A text as a note of one signature.
///
/// # Errors
/// [`NoteError`] for a text or a key's name that a note cannot have.
pub fn sign_note(text: &str, signer: &impl NoteSigner) -> Result<String, NoteError> {
    let key = NoteKey::new(signer.name(), signer.public_key())?;
    if !text.ends_with('\n') || text.contains("\n\n") {
        return Err(NoteError::Form("its text does not end with a line, or has an empty one"));
    }
    let signature: Vec<u8> = key.id().into_iter().chain(signer.sign(text.as_bytes())).collect();
    let note = format!("{text}\n{LINE_HEAD}{} {}\n", key.name(), STANDARD.encode(signature));
    // A signer that signs something else is noticed here and not by whoever reads it in a year.
    key.open(note.as_bytes())?;
    Ok(note)
}
