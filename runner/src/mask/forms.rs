//! The forms in which a text is looked for: itself, and what programs make of it before they print it.
//!
//! No form is stored. Each is made again from its text, a few bytes at a time, wherever it is compared: so the forms of
//! 64 KiB need no more room than those of 8 bytes.

mod base64;

pub(super) use base64::Base64;
use base64::base64s;
use std::collections::BTreeSet;

const LOWER: &[u8; 16] = b"0123456789abcdef";
const UPPER: &[u8; 16] = b"0123456789ABCDEF";
/// Percent encodings as the usual libraries have them: they differ in what else they leave as it is.
const LEFT: [&[u8]; 7] = [b"-_.~", b"-_.~/", b"-_.", b"-_./", b"-_.!~*'()", b"-_.*", b"-_.!~*'();/?:@&=+$,#"];
/// How shells' words are quoted: see [`shell_quoted`].
const SHELLS: u8 = 6;
/// What JSON's libraries write as an escape.
const ESCAPED: [Escaped; 6] = [
    Escaped { slash: false, ascii: false, more: b"" },
    Escaped { slash: false, ascii: true, more: b"" },
    // PHP's.
    Escaped { slash: true, ascii: true, more: b"" },
    Escaped { slash: true, ascii: false, more: b"" },
    // Go's: what HTML reads.
    Escaped { slash: false, ascii: false, more: b"<>&" },
    // System.Text.Json of .NET, which writes a quotation mark by its number too.
    Escaped { slash: false, ascii: true, more: b"<>&\"'+`\x7f" },
];

/// What one of them writes so though it need not, or not in that way.
#[derive(Debug, Clone, Copy, Default)]
struct Escaped {
    /// `/` as `\/`.
    slash: bool,
    /// What is not ASCII as numbers.
    ascii: bool,
    /// These as numbers; where there are any, the ends of lines and paragraphs of Unicode too.
    more: &'static [u8],
}

/// One encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Raw,
    Reversed,
    /// By characters.
    ReversedText,
    Hex {
        upper: bool,
    },
    /// Every byte as `%XX`.
    Percent {
        upper: bool,
    },
    Url {
        left: u8,
        plus: bool,
        upper: bool,
    },
    Json {
        which: u8,
        upper: bool,
    },
    Shell(u8),
    Base64(Base64),
    /// Base64 of a base64.
    Twice {
        inner: Base64,
        outer: Base64,
    },
}

/// Bytes of a form that are made at a time.
const PART_BYTES: usize = 64;
/// The most that one unit makes: two escapes of JSON.
const UNIT_BYTES_MAX: usize = 12;

/// The next bytes of a form.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    bytes: [u8; PART_BYTES],
    len: usize,
}

impl Part {
    pub(super) fn new() -> Self {
        Self { bytes: [0; PART_BYTES], len: 0 }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    fn push(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.len) {
            *place = byte;
            self.len += 1;
        }
    }

    fn extend(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.push(*byte));
    }
}

impl Kind {
    /// The next bytes of the form from a place in it, and the place behind them; no bytes at its end. Places are counted in
    /// what the form is made of: bytes, or digits.
    pub(super) fn part(self, text: &[u8], mut place: usize) -> (Part, usize) {
        let mut part = Part::new();
        if self == Self::Raw {
            let rest = text.get(place..).unwrap_or_default();
            let count = rest.len().min(PART_BYTES);
            part.bytes.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
            part.len = count;
            return (part, place + count);
        }
        let end = match self {
            Self::Base64(base64) => base64.len(text.len()),
            Self::Twice { inner, outer } => outer.len(inner.len(text.len())),
            _ => text.len(),
        };
        while place < end && part.len + UNIT_BYTES_MAX <= PART_BYTES {
            place += self.unit(text, place, &mut part);
        }
        (part, place)
    }

    /// Makes one unit; how many places it is long.
    fn unit(self, text: &[u8], place: usize, part: &mut Part) -> usize {
        let byte = text.get(place).copied().unwrap_or_default();
        match self {
            Self::Raw => part.push(byte),
            Self::Reversed => {
                let at = text.len().saturating_sub(place + 1);
                part.push(text.get(at).copied().unwrap_or_default());
            }
            Self::ReversedText => {
                let left = text.get(..text.len().saturating_sub(place)).unwrap_or_default();
                let from = left.iter().rposition(|byte| byte & 0xc0 != 0x80).unwrap_or(0);
                let character = left.get(from..).unwrap_or_default();
                part.extend(character);
                return character.len().max(1);
            }
            Self::Hex { upper } => part.extend(&hex(byte, upper)),
            Self::Percent { upper } => percent(byte, upper, part),
            Self::Url { left, plus, upper } => {
                let left = LEFT.get(usize::from(left)).copied().unwrap_or_default();
                match byte {
                    b' ' if plus => part.push(b'+'),
                    byte if byte.is_ascii_alphanumeric() || left.contains(&byte) => part.push(byte),
                    byte => percent(byte, upper, part),
                }
            }
            Self::Json { which, upper } => return json_escaped(text, place, which, upper, part),
            Self::Shell(how) => shell_quoted(byte, how, part),
            Self::Base64(base64) => {
                let byte_at = |at: usize| text.get(at).copied().unwrap_or_default();
                part.push(base64.at(text.len(), place, byte_at));
            }
            Self::Twice { inner, outer } => {
                let byte_at = |at: usize| text.get(at).copied().unwrap_or_default();
                let digit_at = |at: usize| inner.at(text.len(), at, byte_at);
                part.push(outer.at(inner.len(text.len()), place, digit_at));
            }
        }
        1
    }
}

/// Itself, and backwards.
pub(super) fn plain(text: &[u8]) -> Vec<Kind> {
    let mut kinds = vec![Kind::Raw, Kind::Reversed];
    if !text.is_ascii() && std::str::from_utf8(text).is_ok() {
        kinds.push(Kind::ReversedText);
    }
    kinds
}

/// Base64 and hexadecimal.
pub(super) fn digits(text: &[u8]) -> Vec<Kind> {
    let mut kinds: Vec<Kind> = base64s(text.len()).into_iter().map(Kind::Base64).collect();
    kinds.extend([false, true].map(|upper| Kind::Hex { upper }));
    kinds
}

/// What is written in URLs, JSON and shells; of what comes out the same for this text the first.
pub(super) fn quoted(text: &[u8]) -> Vec<Kind> {
    let mut occurs = [false; 256];
    for byte in text {
        if let Some(occurs) = occurs.get_mut(usize::from(*byte)) {
            *occurs = true;
        }
    }
    let occurring: Vec<u8> = (0..=255).filter(|byte| occurs.get(usize::from(*byte)) == Some(&true)).collect();
    let is_text = std::str::from_utf8(text).is_ok();
    let mut kinds: Vec<Kind> = (0..SHELLS).map(Kind::Shell).collect();
    for upper in [false, true] {
        kinds.push(Kind::Percent { upper });
        for left in 0..LEFT.len() as u8 {
            kinds.extend([false, true].map(|plus| Kind::Url { left, plus, upper }));
        }
        kinds.extend((0..ESCAPED.len() as u8).filter(|_| is_text).map(|which| Kind::Json { which, upper }));
    }
    // All of these but JSON's write a byte in the same way wherever it stands.
    let mut seen = BTreeSet::new();
    kinds.retain(|kind| match kind {
        Kind::Json { .. } if !text.is_ascii() => true,
        kind => {
            let written = |byte: &u8| kind.part(&[*byte], 0).0.bytes().to_vec();
            seen.insert(occurring.iter().map(written).collect::<Vec<_>>())
        }
    });
    kinds
}

/// Base64 of each base64.
pub(super) fn doubled(text: &[u8]) -> Vec<Kind> {
    let inner = base64s(text.len());
    let outer = |inner: Base64| base64s(inner.len(text.len())).into_iter().map(move |outer| (inner, outer));
    inner.into_iter().flat_map(outer).map(|(inner, outer)| Kind::Twice { inner, outer }).collect()
}

fn hex(byte: u8, upper: bool) -> [u8; 2] {
    let digits = if upper { UPPER } else { LOWER };
    let digit = |at: u8| digits.get(usize::from(at)).copied().unwrap_or_default();
    [digit(byte >> 4), digit(byte & 15)]
}

fn percent(byte: u8, upper: bool, part: &mut Part) {
    part.push(b'%');
    part.extend(&hex(byte, upper));
}

/// Inside the quotation marks of a JSON string, as the usual libraries write it: one character of a text.
fn json_escaped(text: &[u8], place: usize, which: u8, upper: bool, part: &mut Part) -> usize {
    let escaped = ESCAPED.get(usize::from(which)).copied().unwrap_or_default();
    let rest = text.get(place..).unwrap_or_default();
    let bytes = match rest.first() {
        Some(0xf0..) => 4,
        Some(0xe0..) => 3,
        Some(0xc0..) => 2,
        _ => 1,
    };
    let character = rest.get(..bytes).and_then(|character| std::str::from_utf8(character).ok());
    let Some(c) = character.and_then(|character| character.chars().next()) else {
        part.extend(rest.get(..1).unwrap_or_default());
        return 1;
    };
    let by_number = match u8::try_from(c) {
        Ok(byte) if byte.is_ascii() => escaped.more.contains(&byte),
        _ => escaped.ascii || !escaped.more.is_empty() && matches!(c, '\u{2028}' | '\u{2029}'),
    };
    match c {
        _ if by_number => numbers(c, upper, part),
        '"' => part.extend(b"\\\""),
        '\\' => part.extend(b"\\\\"),
        '\n' => part.extend(b"\\n"),
        '\r' => part.extend(b"\\r"),
        '\t' => part.extend(b"\\t"),
        '\u{8}' => part.extend(b"\\b"),
        '\u{c}' => part.extend(b"\\f"),
        '/' if escaped.slash => part.extend(b"\\/"),
        c if u32::from(c) < 0x20 => numbers(c, upper, part),
        _ => part.extend(rest.get(..bytes).unwrap_or_default()),
    }
    bytes
}

/// As JSON's `\uXXXX`, by UTF-16.
fn numbers(c: char, upper: bool, part: &mut Part) {
    for unit in c.encode_utf16(&mut [0; 2]) {
        part.extend(b"\\u");
        unit.to_be_bytes().iter().for_each(|byte| part.extend(&hex(*byte, upper)));
    }
}

/// As in a word of a shell's, without the marks around it.
fn shell_quoted(byte: u8, how: u8, part: &mut Part) {
    let bare = byte.is_ascii_alphanumeric() || b"-_./:=@%+,".contains(&byte) || !byte.is_ascii();
    let quoted: &[u8] = match (how, byte) {
        (0, b'\'') => br"'\''",
        (1, b'\'') => br#"'"'"'"#,
        (2, b'"' | b'\\' | b'$' | b'`') => b"\\",
        (3, b'"' | b'\\' | b'$' | b'`' | b'!') => b"\\",
        (4, byte) if !bare && byte != b'\n' => b"\\",
        (5, b'\n') => b"\\n",
        (5, b'\r') => b"\\r",
        (5, b'\t') => b"\\t",
        (5, b'\'' | b'\\') => b"\\",
        _ => b"",
    };
    part.extend(quoted);
    // A mark alone goes before the byte; anything else stands for it.
    if quoted.len() < 2 {
        part.push(byte);
    }
}
