//! Checked names: every name that a tenant chooses is one of these types before anything uses it.
//!
//! No path on the host is ever built from a tenant's text except [`OutputName`], whose alphabet has no
//! separator (CVE-2026-33747 and its siblings).

use serde::{Deserialize, Deserializer, Serialize, de};
use std::fmt;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {text:?} is refused: {rule}")]
pub struct NameError {
    /// What the text was meant to name.
    pub kind: &'static str,
    /// The text, cut at 80 characters.
    pub text: String,
    /// The rule it breaks.
    pub rule: &'static str,
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $check:path) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Checks a text and takes it as a name.
            ///
            /// # Errors
            /// [`NameError`] with the rule that the text breaks.
            pub fn parse(text: &str) -> Result<Self, NameError> {
                match $check(text) {
                    Ok(()) => Ok(Self(text.to_owned())),
                    Err(rule) => Err(NameError { kind: $kind, text: text.chars().take(80).collect(), rule }),
                }
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = String::deserialize(d)?;
                Self::parse(&text).map_err(de::Error::custom)
            }
        }
    };
}

name!(
    /// The name of a job, step, input, secret, parameter or profile: `[a-z0-9][a-z0-9-]{0,63}`.
    Name,
    "name",
    check_name
);
name!(
    /// The name of an output: `[A-Za-z0-9][A-Za-z0-9._+-]{0,127}`, and never one that could be taken for
    /// evidence.
    OutputName,
    "output name",
    check_output
);
name!(
    /// The name of an environment variable: `[A-Za-z_][A-Za-z0-9_]{0,127}`.
    EnvName,
    "environment name",
    check_env
);
name!(
    /// A job's id: a UUIDv7 in its canonical lower-case spelling (RFC 9562 §5.7).
    JobId,
    "job id",
    check_job_id
);
name!(
    /// A slot's id, which names what a sandbox is made of on the host before it is known for which job: a UUIDv7.
    SlotId,
    "slot id",
    check_job_id
);

fn check_name(text: &str) -> Result<(), &'static str> {
    let rule = "use 1 to 64 of a-z, 0-9 and '-', beginning with a letter or digit";
    let first = text.bytes().next().ok_or(rule)?;
    let ok = text.len() <= 64
        && first != b'-'
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if ok { Ok(()) } else { Err(rule) }
}

fn check_output(text: &str) -> Result<(), &'static str> {
    let rule = "use 1 to 128 of A-Z, a-z, 0-9, '.', '_', '+' and '-', beginning with a letter or digit";
    let first = text.bytes().next().ok_or(rule)?;
    let tail = |b: u8| b.is_ascii_alphanumeric() || b".-_+".contains(&b);
    if text.len() > 128 || !first.is_ascii_alphanumeric() || !text.bytes().all(tail) {
        return Err(rule);
    }
    // `run.intoto.jsonl` is the run attestation; the other endings would let an output pass for evidence.
    if text == "run" || text.ends_with(".intoto.jsonl") || text.ends_with(".sigstore.json") {
        return Err("it could be taken for evidence; choose another name");
    }
    Ok(())
}

fn check_env(text: &str) -> Result<(), &'static str> {
    let rule = "use 1 to 128 of A-Z, a-z, 0-9 and '_', not beginning with a digit";
    let first = text.bytes().next().ok_or(rule)?;
    let ok = text.len() <= 128
        && !first.is_ascii_digit()
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if ok { Ok(()) } else { Err(rule) }
}

fn check_job_id(text: &str) -> Result<(), &'static str> {
    let rule = "an id is a lower-case UUID of version 7";
    if text.len() != 36 {
        return Err(rule);
    }
    for (at, byte) in text.bytes().enumerate() {
        let ok = match at {
            8 | 13 | 18 | 23 => byte == b'-',
            14 => byte == b'7',
            _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        };
        if !ok {
            return Err(rule);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_hostile_texts_are_refused() {
        let long = "a".repeat(65);
        for text in ["", "-a", "A", "..", "a/b", "a\0", "a b", "%2e", "a.b", "\u{2024}", long.as_str()] {
            assert!(Name::parse(text).is_err(), "{text:?}");
        }
        assert!(Name::parse("npm-publish").is_ok());
    }

    #[test]
    fn output_name_that_could_be_evidence_is_refused() {
        for text in ["run", "x.intoto.jsonl", "x.sigstore.json", ".hidden", "a/b", "..", ""] {
            assert!(OutputName::parse(text).is_err(), "{text:?}");
        }
        assert!(OutputName::parse("libz.so.1.3.1").is_ok());
    }

    #[test]
    fn job_id_must_be_version_seven() {
        assert!(JobId::parse("01890a5d-ac96-774b-bcce-b302099a8057").is_ok());
        assert!(JobId::parse("01890a5d-ac96-474b-bcce-b302099a8057").is_err());
        assert!(JobId::parse("../../../../../../../../../../etc/passwd").is_err());
    }
}
