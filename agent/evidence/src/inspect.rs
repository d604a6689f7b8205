//! An attestation for people to read. Nothing is verified, and the first line says so.

use crate::bundle::Attestation;
use crate::dsse::EnvelopeError;
use crate::statement::sha256;
use crate::strict::parse_strict;
use crate::verify::ATTESTATION_BYTES_MAX;
use serde_json::Value;
use std::fmt::Write as _;

/// A longer text is cut in the output, in characters.
const TEXT_MAX: usize = 2000;

/// An attestation for people, and the bytes that were signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// Lines without line feed; nothing in them drives a terminal.
    pub lines: Vec<String>,
    /// DSSE's pre-authentication encoding, for an outside tool.
    pub pae: Vec<u8>,
    /// The first signature.
    pub signature: Vec<u8>,
}

/// Renders an attestation of either kind and in either form.
///
/// # Errors
/// [`EnvelopeError`] if it is neither form, or larger than is read.
pub fn inspect(bytes: &[u8]) -> Result<Inspection, EnvelopeError> {
    if bytes.len() > ATTESTATION_BYTES_MAX {
        let reason = format!("it has more than {ATTESTATION_BYTES_MAX} bytes");
        return Err(EnvelopeError::Shape { reason });
    }
    let attestation = Attestation::parse(bytes)?;
    let envelope = attestation.envelope();
    let mut lines = vec!["signature not checked: use `ampoule verify`".to_owned()];
    lines.push(format!("form: {}", attestation.form()));
    match &attestation {
        Attestation::Bundle(bundle) => lines.push(format!("key hint: {}", escape(bundle.hint()))),
        Attestation::Dsse(envelope) => {
            lines.extend(envelope.signatures().iter().map(|s| format!("key id: {}", escape(&s.keyid))));
        }
    }
    lines.push(format!(
        "statement: {} bytes, sha256 {}",
        envelope.payload().len(),
        sha256(envelope.payload())
    ));
    match parse_strict(envelope.payload()) {
        Ok(value) => render("", &value, 0, &mut lines),
        Err(error) => lines.push(format!("the payload is not strict JSON: {}", escape(&error.to_string()))),
    }
    let signature = envelope.signatures().first().map(|s| s.bytes.clone()).unwrap_or_default();
    Ok(Inspection { lines, pae: envelope.pae(), signature })
}

/// Writes one value; the strict parser bounds the depth.
fn render(label: &str, value: &Value, indent: usize, lines: &mut Vec<String>) {
    let pad = "  ".repeat(indent);
    let head = if label.is_empty() { pad.clone() } else { format!("{pad}{label}: ") };
    match value {
        Value::Object(entries) if !entries.is_empty() => {
            let inner = open(label, &pad, indent, lines);
            for (name, item) in entries {
                render(&escape(name), item, inner, lines);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            let inner = open(label, &pad, indent, lines);
            for (at, item) in items.iter().enumerate() {
                render(&format!("[{at}]"), item, inner, lines);
            }
        }
        Value::Object(_) => lines.push(format!("{head}(none)")),
        Value::Array(_) => lines.push(format!("{head}(none)")),
        Value::String(text) => lines.push(format!("{head}{}", shorten(text))),
        Value::Null | Value::Bool(_) | Value::Number(_) => lines.push(format!("{head}{value}")),
    }
}

fn open(label: &str, pad: &str, indent: usize, lines: &mut Vec<String>) -> usize {
    if label.is_empty() {
        return indent;
    }
    lines.push(format!("{pad}{label}:"));
    indent + 1
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(TEXT_MAX) {
        Some((end, _)) => {
            let head = text.get(..end).unwrap_or_default();
            format!("{} (cut, {} bytes in all)", escape(head), text.len())
        }
        None => escape(text),
    }
}

/// Escapes everything that could drive a terminal or change how a line reads: control characters, line and
/// paragraph separators, bidirectional controls and characters without a glyph. A backslash is doubled, so an
/// escape cannot be forged.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c == '\\' {
            out.push_str("\\\\");
        } else if is_hidden(c) {
            // Writing to a String cannot fail.
            let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}

fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(u32::from(c),
            0xad | 0x34f | 0x61c | 0x70f | 0x115f | 0x1160 | 0x17b4 | 0x17b5 | 0x180b..=0x180f | 0x200b..=0x200f
            | 0x2028..=0x202e | 0x2060..=0x206f | 0x2800 | 0x3164 | 0xe000..=0xf8ff | 0xfe00..=0xfe0f | 0xfeff
            | 0xffa0 | 0xfff0..=0xffff | 0x1d173..=0x1d17a | 0xe0000..=0x10ffff)
}
