//! The forms in which a value is looked for: itself, and what programs make of it before they print it.

use ampoule_spec::SECRET_BYTES_MIN;
use std::collections::BTreeSet;

const STANDARD: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const URL: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const LOWER: &[u8; 16] = b"0123456789abcdef";
const UPPER: &[u8; 16] = b"0123456789ABCDEF";
/// Where coreutils' base64 and OpenSSL's break their lines.
const WIDTHS: [usize; 2] = [76, 64];

/// Every form of a value that is long enough to be looked for.
pub(crate) fn of(value: &[u8]) -> BTreeSet<Vec<u8>> {
    let mut forms = BTreeSet::new();
    // Most programs lose the line's end.
    for text in [value, value.trim_ascii_end()] {
        encodings(text, &mut forms);
    }
    let lines: Vec<&[u8]> = value.split(|byte| *byte == b'\n').map(|line| line.trim_ascii()).collect();
    if lines.len() > 1 {
        for line in lines {
            forms.insert(line.to_vec());
            forms.insert(line.iter().rev().copied().collect());
        }
    }
    forms.retain(|form| form.len() >= SECRET_BYTES_MIN);
    forms
}

fn encodings(text: &[u8], forms: &mut BTreeSet<Vec<u8>>) {
    forms.insert(text.to_vec());
    forms.extend(reversed(text));
    for digits in [LOWER, UPPER] {
        forms.insert(text.iter().flat_map(|byte| hex(*byte, digits)).collect());
        forms.extend(url_encoded(text, digits));
    }
    forms.extend(json_escaped(text));
    forms.extend(shell_quoted(text));
    let once = base64(text);
    for inner in &once {
        forms.extend(base64(inner));
    }
    forms.extend(once);
}

fn hex(byte: u8, digits: &[u8; 16]) -> [u8; 2] {
    let digit = |at: u8| digits.get(usize::from(at)).copied().unwrap_or_default();
    [digit(byte >> 4), digit(byte & 15)]
}

fn reversed(text: &[u8]) -> Vec<Vec<u8>> {
    let mut out = vec![text.iter().rev().copied().collect()];
    if let Ok(text) = std::str::from_utf8(text) {
        out.push(text.chars().rev().collect::<String>().into_bytes());
    }
    out
}

/// What of a text stands in the base64 of anything that it is a part of, at each of three places; and with its end, where
/// nothing follows.
fn base64(text: &[u8]) -> BTreeSet<Vec<u8>> {
    let mut out = BTreeSet::new();
    for alphabet in [STANDARD, URL] {
        for before in 0..3_usize {
            let mut bytes = vec![0; before];
            bytes.extend_from_slice(text);
            let digits = digits_of(&bytes, alphabet);
            // The first digits are of what stands before, wholly or in part.
            let first = (before * 8).div_ceil(6);
            let whole = bytes.len() * 8 / 6;
            let mut rest = digits.get(first..).unwrap_or_default().to_vec();
            out.insert(digits.get(first..whole).unwrap_or_default().to_vec());
            out.insert(rest.clone());
            if before == 0 {
                rest.extend(std::iter::repeat_n(b'=', digits.len().next_multiple_of(4) - digits.len()));
                out.extend(WIDTHS.map(|width| wrapped(&rest, width)));
                out.insert(rest);
            } else {
                rest.extend(std::iter::repeat_n(b'=', digits.len().next_multiple_of(4) - digits.len()));
                out.insert(rest);
            }
        }
    }
    out
}

/// The digits of bytes, the last one filled up with zero bits.
fn digits_of(bytes: &[u8], alphabet: &[u8; 64]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() * 4 / 3 + 1);
    let (mut bits, mut count) = (0_u32, 0);
    let mut push = |six: u32| out.push(alphabet.get((six & 63) as usize).copied().unwrap_or_default());
    for byte in bytes {
        bits = (bits << 8 | u32::from(*byte)) & 0xffff;
        count += 8;
        while count >= 6 {
            count -= 6;
            push(bits >> count);
        }
    }
    if count > 0 {
        push(bits << (6 - count));
    }
    out
}

fn wrapped(text: &[u8], width: usize) -> Vec<u8> {
    text.chunks(width).collect::<Vec<_>>().join(&b'\n')
}

/// Percent encodings as the usual libraries have them: they differ in what else they leave as it is.
fn url_encoded(text: &[u8], digits: &[u8; 16]) -> Vec<Vec<u8>> {
    let encode = |left: &[u8], plus: bool| -> Vec<u8> {
        let one = |byte: &u8| match byte {
            b' ' if plus => vec![b'+'],
            byte if byte.is_ascii_alphanumeric() || left.contains(byte) => vec![*byte],
            byte => {
                let [high, low] = hex(*byte, digits);
                vec![b'%', high, low]
            }
        };
        text.iter().flat_map(one).collect()
    };
    let all: Vec<u8> =
        text.iter().flat_map(|byte| [[b'%'].as_slice(), &hex(*byte, digits)].concat()).collect();
    let mut out = vec![all];
    for left in [&b"-_.~"[..], b"-_.~/", b"-_.", b"-_./", b"-_.!~*'()", b"-_.*", b"-_.!~*'();/?:@&=+$,#"] {
        out.extend([encode(left, false), encode(left, true)]);
    }
    out
}

/// Inside the quotation marks of a JSON string, as the usual libraries write it.
fn json_escaped(text: &[u8]) -> Vec<Vec<u8>> {
    let Ok(text) = std::str::from_utf8(text) else { return Vec::new() };
    let escape = |slash: bool, ascii: bool, html: bool, digits: &[u8; 16]| -> Vec<u8> {
        let mut out = Vec::new();
        let unicode = |out: &mut Vec<u8>, unit: u16| {
            let [high, low] = unit.to_be_bytes();
            out.extend([b"\\u".as_slice(), &hex(high, digits), &hex(low, digits)].concat());
        };
        for c in text.chars() {
            match c {
                '"' => out.extend_from_slice(b"\\\""),
                '\\' => out.extend_from_slice(b"\\\\"),
                '\n' => out.extend_from_slice(b"\\n"),
                '\r' => out.extend_from_slice(b"\\r"),
                '\t' => out.extend_from_slice(b"\\t"),
                '\u{8}' => out.extend_from_slice(b"\\b"),
                '\u{c}' => out.extend_from_slice(b"\\f"),
                '/' if slash => out.extend_from_slice(b"\\/"),
                c if u32::from(c) < 0x20
                    || (html && matches!(c, '<' | '>' | '&' | '\u{2028}' | '\u{2029}'))
                    || (ascii && !c.is_ascii()) =>
                {
                    let mut units = [0; 2];
                    c.encode_utf16(&mut units).iter().for_each(|unit| unicode(&mut out, *unit));
                }
                c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        out
    };
    let mut out = Vec::new();
    for digits in [LOWER, UPPER] {
        for (slash, ascii, html) in [
            (false, false, false),
            (false, true, false),
            (true, true, false),
            (true, false, false),
            (false, false, true),
        ] {
            out.push(escape(slash, ascii, html, digits));
        }
    }
    out
}

/// As a word of a shell's, without the marks around it.
fn shell_quoted(text: &[u8]) -> Vec<Vec<u8>> {
    let replaced = |special: &dyn Fn(u8) -> Option<Vec<u8>>| -> Vec<u8> {
        text.iter().flat_map(|byte| special(*byte).unwrap_or_else(|| vec![*byte])).collect()
    };
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=@%+,".contains(&byte) || !byte.is_ascii();
    let ansi = |byte: u8| match byte {
        b'\n' => Some(b"\\n".to_vec()),
        b'\r' => Some(b"\\r".to_vec()),
        b'\t' => Some(b"\\t".to_vec()),
        b'\'' | b'\\' => Some(vec![b'\\', byte]),
        _ => None,
    };
    vec![
        replaced(&|byte| (byte == b'\'').then(|| br"'\''".to_vec())),
        replaced(&|byte| (byte == b'\'').then(|| br#"'"'"'"#.to_vec())),
        replaced(&|byte| b"\"\\$`".contains(&byte).then(|| vec![b'\\', byte])),
        replaced(&|byte| b"\"\\$`!".contains(&byte).then(|| vec![b'\\', byte])),
        replaced(&|byte| (!bare(byte) && byte != b'\n').then(|| vec![b'\\', byte])),
        replaced(&ansi),
    ]
}
