//! What of a value is a secret by itself: the whole, its lines, and what stands in its JSON.
//!
//! Values and what is made of them are kept once, and overwritten when they are dropped.

use super::values::Wiped;
use ampoule_spec::SECRET_BYTES_MIN;
use std::ops::Range;

/// How deep JSON within a string of JSON is read.
const NESTED_MAX: usize = 3;
/// What lines are joined with where a program has changed their ends.
const JOINTS: [&[u8]; 5] = [b"\n", b"\r\n", b"\\n", b" ", b""];
const PEM_BEGIN: &[u8] = b"-----BEGIN ";
const PEM_END: &[u8] = b"-----END ";

/// What a text is of its value. The order is that in which forms are made where not all can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    /// The value, with and without the blanks at its end, and without those at its beginning.
    Whole,
    /// Its lines, joined by something else.
    Joined,
    /// A string or another scalar of its JSON.
    Leaf,
    /// One of its lines.
    Line,
    /// The lines of a leaf, joined by something else.
    JoinedLeaf,
}

/// A text that is looked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Text {
    /// Where it stands in the texts' bytes.
    start: u32,
    end: u32,
    pub(super) role: Role,
    /// Of which value.
    pub(super) of: u32,
}

impl Text {
    pub(super) fn at(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// All texts.
#[derive(Debug, Default)]
pub(super) struct Texts {
    bytes: Wiped,
    all: Vec<Text>,
    values: u32,
}

impl Texts {
    /// Adds a value; from which text on they are new.
    pub(super) fn add(&mut self, value: &[u8]) -> usize {
        let from = self.all.len();
        let at = self.bytes.extend(value);
        self.derive(at, Role::Whole, 0);
        self.values += 1;
        from
    }

    pub(super) fn all(&self) -> &[Text] {
        &self.all
    }

    pub(super) fn bytes(&self, at: Range<usize>) -> &[u8] {
        self.bytes.bytes().get(at).unwrap_or_default()
    }

    fn push(&mut self, at: Range<usize>, role: Role) {
        if at.len() >= SECRET_BYTES_MIN {
            let place = |at| u32::try_from(at).unwrap_or(u32::MAX);
            let (start, end) = (place(at.start), place(at.end));
            self.all.push(Text { start, end, role, of: self.values });
        }
    }

    fn derive(&mut self, at: Range<usize>, role: Role, depth: usize) {
        let whole = self.bytes(at.clone());
        let trimmed = at.start..at.start + whole.trim_ascii_end().len();
        let inner = trimmed.end - whole.trim_ascii().len()..trimmed.end;
        if trimmed.len() < SECRET_BYTES_MIN {
            return;
        }
        if trimmed != at {
            // Most programs lose the line's end.
            self.push(at, role);
        }
        self.push(trimmed.clone(), role);
        if inner != trimmed {
            // As a shell's `$(…)` has them, unless in quotation marks.
            self.push(inner, role);
        }
        self.lines(trimmed.clone(), if role == Role::Whole { Role::Joined } else { Role::JoinedLeaf });
        if depth < NESTED_MAX {
            for leaf in leaves(self.bytes(trimmed.clone())) {
                let at = match leaf {
                    Leaf::At(at) => trimmed.start + at.start..trimmed.start + at.end,
                    Leaf::Text(text) => self.bytes.extend(Wiped::new(text.into_bytes()).bytes()),
                };
                self.derive(at, Role::Leaf, depth + 1);
            }
        }
    }

    /// A text's lines, and what becomes of them together.
    fn lines(&mut self, at: Range<usize>, joined: Role) {
        let mut lines = Vec::new();
        let mut from = at.start;
        for line in self.bytes(at.clone()).split(|byte| *byte == b'\n') {
            lines.push(from..from + line.strip_suffix(b"\r").unwrap_or(line).len());
            from += line.len() + 1;
        }
        if lines.len() < 2 {
            return;
        }
        for line in &lines {
            let bytes = self.bytes(line.clone());
            let start = line.start + (bytes.len() - bytes.trim_ascii_start().len());
            let end = start + bytes.trim_ascii().len();
            self.push(start..end, Role::Line);
        }
        for joint in JOINTS {
            self.join(&lines, joint, at.clone(), joined);
        }
        for body in pem_bodies(&lines, |line| self.bytes(line)) {
            self.join(lines.get(body).unwrap_or_default(), b"", at.clone(), joined);
        }
    }

    /// Adds lines of a text, joined, if that is something else than the text.
    fn join(&mut self, lines: &[Range<usize>], joint: &[u8], text: Range<usize>, role: Role) {
        let whole = lines.iter().map(|line| line.len() + joint.len()).sum();
        let mut joined = Wiped::with_capacity(whole);
        for (number, line) in lines.iter().enumerate() {
            joined.extend(if number > 0 { joint } else { b"" });
            joined.extend(self.bytes(line.clone()));
        }
        if joined.bytes() != self.bytes(text) && joined.bytes().len() >= SECRET_BYTES_MIN {
            let at = self.bytes.extend(joined.bytes());
            self.push(at, role);
        }
    }
}

/// Which lines stand between those that begin and end something in PEM (RFC 7468).
fn pem_bodies<'t>(lines: &[Range<usize>], bytes: impl Fn(Range<usize>) -> &'t [u8]) -> Vec<Range<usize>> {
    let mut bodies = Vec::new();
    let mut from = None;
    for (number, line) in lines.iter().enumerate() {
        let line = bytes(line.clone());
        if line.starts_with(PEM_BEGIN) {
            from = Some(number + 1);
        } else if line.starts_with(PEM_END)
            && let Some(from) = from.take()
        {
            bodies.push(from..number);
        }
    }
    bodies
}

/// Whether a line only says that something in PEM begins or ends.
pub(super) fn is_armour(line: &[u8]) -> bool {
    line.ends_with(b"-----") && (line.starts_with(PEM_BEGIN) || line.starts_with(PEM_END))
}

/// A scalar of a JSON document that is no name.
enum Leaf {
    /// As it stands there.
    At(Range<usize>),
    /// What its escapes mean.
    Text(String),
}

/// The scalars of an object's or array's JSON that are long enough to be looked for. Nothing is built: what is no JSON
/// behind its first bracket has the strings that stand in it.
fn leaves(text: &[u8]) -> Vec<Leaf> {
    let mut leaves = Vec::new();
    let ends = (text.trim_ascii_start().first(), text.last());
    if !matches!(ends, (Some(b'{'), Some(b'}')) | (Some(b'['), Some(b']'))) {
        return leaves;
    }
    let byte = |at: usize| text.get(at).copied();
    let mut at = 0;
    while let Some(first) = byte(at) {
        let from = at;
        at += 1;
        if first == b'"' {
            while let Some(next) = byte(at).filter(|next| *next != b'"') {
                at += if next == b'\\' { 2 } else { 1 };
            }
            at = (at + 1).min(text.len());
            let rest = text.get(at..).unwrap_or_default();
            let is_name = rest.trim_ascii_start().first() == Some(&b':');
            let inner = from + 1..at.saturating_sub(1).max(from + 1);
            if is_name || inner.len() < SECRET_BYTES_MIN {
                continue;
            }
            let literal = text.get(from..at).unwrap_or_default();
            leaves.push(match serde_json::from_slice(literal) {
                Ok(meant) if literal.contains(&b'\\') => Leaf::Text(meant),
                _ => Leaf::At(inner),
            });
        } else if !is_punctuation(first) {
            while byte(at).is_some_and(|next| !is_punctuation(next) && next != b'"') {
                at += 1;
            }
            if at - from >= SECRET_BYTES_MIN {
                leaves.push(Leaf::At(from..at));
            }
        }
    }
    leaves
}

fn is_punctuation(byte: u8) -> bool {
    byte.is_ascii_whitespace() || b",:{}[]".contains(&byte)
}
