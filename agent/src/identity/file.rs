//! `identities.toml`: certificates that are known by name, and issuers of tokens.

use crate::export::sha256_of;
use crate::files::read_operators;
use ampoule_spec::Sha256;
use jsonwebtoken::Algorithm;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The version of the format.
const FORMAT: u32 = 1;
/// The most issuers, and claims that are handed on of one.
const ITEMS_MAX: usize = 32;

/// Why `identities.toml` cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct IdentitiesError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub reason: String,
}

/// Where an issuer's keys are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// A file.
    File(PathBuf),
    /// An https URL.
    Https(String),
}

/// An issuer of tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issuer {
    /// Exactly the claim `iss`.
    pub issuer: String,
    /// Exactly the claim `aud`, or one of its.
    pub audience: String,
    /// What it may sign with; never a shared secret.
    pub algorithms: Vec<Algorithm>,
    /// Its keys.
    pub jwks: KeySource,
    /// Claims that the policy sees, beside `iss` and `sub`.
    pub claims: BTreeSet<String>,
}

/// What the file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdentitiesFile {
    /// Names of client certificates.
    pub certificates: BTreeSet<String>,
    /// Issuers.
    pub tokens: Vec<Issuer>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    format: u32,
    #[serde(default)]
    certificates: Vec<String>,
    #[serde(default)]
    tokens: Vec<RawIssuer>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawIssuer {
    issuer: String,
    audience: String,
    algorithms: Vec<String>,
    jwks: String,
    #[serde(default)]
    claims: Vec<String>,
}

impl IdentitiesFile {
    /// Reads the file; if it is not there, nobody is in it.
    ///
    /// # Errors
    /// [`IdentitiesError`].
    pub fn load(path: &Path) -> Result<Self, IdentitiesError> {
        Ok(Self::read(path)?.0)
    }

    /// The same, and the SHA-256 of the file if there is one.
    pub(super) fn read(path: &Path) -> Result<(Self, Option<Sha256>), IdentitiesError> {
        let wrong = |reason: String| IdentitiesError { path: path.to_owned(), reason };
        if let Err(e) = path.symlink_metadata()
            && e.kind() == std::io::ErrorKind::NotFound
        {
            return Ok((Self::default(), None));
        }
        let text = read_operators(path).map_err(|e| wrong(e.reason))?;
        let file = Self::parse(&text, path.parent().unwrap_or(Path::new(""))).map_err(wrong)?;
        Ok((file, Some(sha256_of(text.as_bytes()))))
    }

    /// Parses the file; relative paths in it are taken from `base`.
    ///
    /// # Errors
    /// A text that says what is wrong.
    pub fn parse(text: &str, base: &Path) -> Result<Self, String> {
        let raw: Raw = toml::from_str(text).map_err(|e| e.to_string())?;
        if raw.format != FORMAT {
            return Err(format!("format {} is not known; this build reads {FORMAT}", raw.format));
        }
        let mut file = Self::default();
        for name in raw.certificates {
            check_name(&name)?;
            if !file.certificates.insert(name.clone()) {
                return Err(format!("certificates: {name:?} is there twice"));
            }
        }
        if raw.tokens.len() > ITEMS_MAX {
            return Err(format!("tokens: at most {ITEMS_MAX} issuers"));
        }
        let mut seen = BTreeMap::new();
        for issuer in raw.tokens {
            let name = issuer.issuer.clone();
            if seen.insert(name.clone(), ()).is_some() {
                return Err(format!("tokens: the issuer {name:?} is there twice"));
            }
            file.tokens
                .push(self::issuer(issuer, base).map_err(|e| format!("tokens, issuer {name:?}: {e}"))?);
        }
        Ok(file)
    }
}

/// A name is one that a certificate can have, and looks like no pattern.
fn check_name(name: &str) -> Result<(), String> {
    let plain = !name.is_empty() && name.len() <= 2048 && name.bytes().all(|b| b.is_ascii_graphic());
    let kind = match name.strip_prefix("dns:") {
        Some(dns) => {
            dns.contains('.')
                && dns.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b))
        }
        None => name.split_once("://").is_some_and(|(scheme, rest)| !scheme.is_empty() && !rest.is_empty()),
    };
    if !plain || !kind || name.contains('*') {
        return Err(format!(
            "certificates: {name:?} is neither a URI (spiffe://corp.example/ci) nor a DNS name (dns:ci.corp.example); there are no patterns"
        ));
    }
    Ok(())
}

fn issuer(raw: RawIssuer, base: &Path) -> Result<Issuer, String> {
    for (field, text) in [("issuer", &raw.issuer), ("audience", &raw.audience)] {
        if text.is_empty() || text.len() > 2048 {
            return Err(format!("{field}: 1 to 2048 bytes"));
        }
    }
    if raw.issuer.contains('#') {
        return Err("issuer: without `#`, which stands between issuer and subject".to_owned());
    }
    let algorithms = raw.algorithms.iter().map(|name| algorithm(name)).collect::<Result<Vec<_>, _>>()?;
    if algorithms.is_empty() {
        return Err("algorithms: name those that it signs with".to_owned());
    }
    let jwks = match raw.jwks.split_once("://") {
        None => KeySource::File(base.join(&raw.jwks)),
        Some(("https", _)) => KeySource::Https(raw.jwks),
        Some(_) => return Err("jwks: a file or an https URL".to_owned()),
    };
    if raw.claims.len() > ITEMS_MAX {
        return Err(format!("claims: at most {ITEMS_MAX}"));
    }
    Ok(Issuer {
        issuer: raw.issuer,
        audience: raw.audience,
        algorithms,
        jwks,
        claims: raw.claims.into_iter().collect(),
    })
}

/// An algorithm with a public key (RFC 7518 §3.1, RFC 8037). A shared secret would make every verifier an issuer.
fn algorithm(name: &str) -> Result<Algorithm, String> {
    match name {
        "RS256" => Ok(Algorithm::RS256),
        "RS384" => Ok(Algorithm::RS384),
        "RS512" => Ok(Algorithm::RS512),
        "PS256" => Ok(Algorithm::PS256),
        "PS384" => Ok(Algorithm::PS384),
        "PS512" => Ok(Algorithm::PS512),
        "ES256" => Ok(Algorithm::ES256),
        "ES384" => Ok(Algorithm::ES384),
        "EdDSA" => Ok(Algorithm::EdDSA),
        _ => Err(format!(
            "algorithms: {name:?} is none of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn example_is_read_and_what_is_not_understood_is_refused() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/policy/identities.toml");
        assert_eq!(IdentitiesFile::load(&path).unwrap().certificates.len(), 3);
        assert_eq!(
            IdentitiesFile::load(Path::new("/none/identities.toml")).unwrap(),
            IdentitiesFile::default()
        );
        let token = |more: &str| {
            format!(
                "format = 1\n[[tokens]]\nissuer = \"https://i\"\naudience = \"a\"\nalgorithms = [\"ES256\"]\njwks = \"k.json\"\n{more}"
            )
        };
        let file = IdentitiesFile::parse(&token("claims = [\"ref\"]\n"), Path::new("/p")).unwrap();
        assert_eq!(file.tokens[0].jwks, KeySource::File("/p/k.json".into()));
        for text in [
            "",
            "format = 2",
            "format = 1\nmore = 1",
            "format = 1\ncertificates = [\"spiffe://a/*\"]",
            "format = 1\ncertificates = [\"^spiffe:\"]",
            "format = 1\ncertificates = [\"dns:CI.example\"]",
            "format = 1\ncertificates = [\"dns:*.example\"]",
            "format = 1\ncertificates = [\"spiffe://a/b\", \"spiffe://a/b\"]",
            "format = 1\ncertificates = [\"\"]",
            &token("more = 1\n"),
            &token("").replace("ES256", "HS256"),
            &token("").replace("ES256", "none"),
            &token("").replace("[\"ES256\"]", "[]"),
            &token("").replace("k.json", "http://i/keys"),
            &token("").replace("k.json", "file:///k.json"),
            &token("").replace("https://i", "a#b"),
            &token("").replace("audience = \"a\"\n", ""),
            &format!("{}{}", token(""), token("").replace("format = 1\n", "")),
        ] {
            assert!(IdentitiesFile::parse(text, Path::new("")).is_err(), "{text}");
        }
    }
}
