//! Whose evidence it is: the base of every type URI, and the builder ids below it.

use ampoule_spec::{Image, JobSpec};
use std::fmt;

const EXAMPLE: &str = "https://ampoule.example";

/// Why a text is not a base URI for types and builders.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("authority {text:?} is refused: {rule}")]
pub struct AuthorityError {
    /// The text, cut at 80 characters.
    pub text: String,
    /// The rule it breaks.
    pub rule: &'static str,
}

/// A base URI such as `https://ampoule.example`: `https`, a lower-case host, no trailing slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority(String);

impl Authority {
    /// Checks a text and takes it as a base URI.
    ///
    /// # Errors
    /// [`AuthorityError`] with the rule that the text breaks.
    pub fn parse(text: &str) -> Result<Self, AuthorityError> {
        match check(text) {
            Ok(()) => Ok(Self(text.to_owned())),
            Err(rule) => Err(AuthorityError { text: text.chars().take(80).collect(), rule }),
        }
    }

    /// The base of a builder id `<base>/builders/<mode>/v1`, with its mode.
    pub(crate) fn of_builder_id(id: &str) -> Option<(Self, BuilderMode)> {
        let (base, mode) = id.strip_suffix("/v1")?.rsplit_once("/builders/")?;
        let mode = BuilderMode::ALL.into_iter().find(|m| m.as_str() == mode)?;
        Some((Self::parse(base).ok()?, mode))
    }

    /// The base as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the placeholder that no production daemon may sign with.
    pub fn is_example(&self) -> bool {
        self.0 == EXAMPLE
    }

    /// The build type of a sandboxed job.
    pub fn build_type(&self) -> String {
        format!("{}/buildtypes/sandbox/v1", self.0)
    }

    /// The predicate type of a run attestation.
    pub fn run_predicate_type(&self) -> String {
        format!("{}/attestation/run/v1", self.0)
    }

    /// The id of the builder in a mode.
    pub fn builder_id(&self, mode: BuilderMode) -> String {
        format!("{}/builders/{}/v1", self.0, mode.as_str())
    }

    /// The URI of the runner's executable in one version.
    pub(crate) fn runner_uri(&self, version: &str) -> String {
        format!("{}/runner/{}", self.0, crate::uri::percent_encode(version))
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn check(text: &str) -> Result<(), &'static str> {
    let rest = text.strip_prefix("https://").ok_or("begin it with https://")?;
    if text.len() > 200 {
        return Err("at most 200 bytes");
    }
    let (host, path) = rest.split_once('/').map_or((rest, None), |(host, path)| (host, Some(path)));
    let (name, port) = host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
    let label = |l: &str| {
        !l.is_empty()
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    if !name.split('.').all(label) {
        return Err("give a host name in lower case, without user info");
    }
    if port.is_some_and(|p| p.is_empty() || p.len() > 5 || !p.bytes().all(|b| b.is_ascii_digit())) {
        return Err("a port is a number");
    }
    let segment = |s: &str| {
        !s.is_empty()
            && s != "."
            && s != ".."
            && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b))
    };
    if path.is_some_and(|path| !path.split('/').all(segment)) {
        return Err("a path has segments of a-z, 0-9, '-', '_' and '.', and no slash at the end");
    }
    Ok(())
}

/// The security properties that a builder id stands for. Each has its own page and its own key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum BuilderMode {
    /// No network; the root and every input are known by the digest of their content.
    Hermetic,
    /// As hermetic, but the root is the host's `/usr`, known by a package list alone.
    Host,
    /// A development key or the development profile: claims nothing.
    Dev,
}

impl BuilderMode {
    /// Every mode.
    pub const ALL: [Self; 3] = [Self::Hermetic, Self::Host, Self::Dev];

    /// The mode's spelling in a builder id.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hermetic => "hermetic",
            Self::Host => "host",
            Self::Dev => "dev",
        }
    }
}

/// A profile whose properties no builder id stands for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no builder stands for profile {profile:?}; only hermetic and dev have one")]
pub struct UnknownProfile {
    /// The profile's name.
    pub profile: String,
}

/// Who signs: the base of the types, and whether the key is a development key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issuer {
    /// The base of every type URI.
    pub authority: Authority,
    /// Whether the signing key is a development key. It makes every builder `dev`.
    pub development_key: bool,
}

impl Issuer {
    /// The mode that a job runs in.
    ///
    /// # Errors
    /// [`UnknownProfile`] if no builder id stands for the job's profile: a name alone says nothing about
    /// what a profile withholds.
    pub fn mode(&self, spec: &JobSpec) -> Result<BuilderMode, UnknownProfile> {
        match spec.profile.as_str() {
            _ if self.development_key => Ok(BuilderMode::Dev),
            "dev" => Ok(BuilderMode::Dev),
            "hermetic" if spec.image == Image::Host => Ok(BuilderMode::Host),
            "hermetic" => Ok(BuilderMode::Hermetic),
            other => Err(UnknownProfile { profile: other.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authority_good_bases_are_taken() {
        for text in [EXAMPLE, "https://a.b-c.example:8443", "https://h.example/ci/ampoule"] {
            assert_eq!(Authority::parse(text).unwrap().as_str(), text);
        }
        assert!(Authority::parse(EXAMPLE).unwrap().is_example());
    }

    #[test]
    fn authority_odd_bases_are_refused() {
        for text in [
            "",
            "http://a.example",
            "https://",
            "https://A.example",
            "https://u@a.example",
            "https://a.example/",
            "https://a.example/..",
            "https://a.example?x",
            "https://a.example/#f",
            "https://a..b",
            "https://-a.b",
            "https://a.example:port",
            "https://a.example:",
            "https://ä.example",
            " https://a.example",
        ] {
            assert!(Authority::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn builder_id_round_trips_and_others_are_none() {
        let base = Authority::parse("https://h.example/builders/x").unwrap();
        for mode in BuilderMode::ALL {
            assert_eq!(Authority::of_builder_id(&base.builder_id(mode)), Some((base.clone(), mode)));
        }
        for id in [
            "",
            "https://h.example/builders/root/v1",
            "https://h.example/builders/dev/v2",
            "x/builders/dev/v1",
        ] {
            assert_eq!(Authority::of_builder_id(id), None, "{id:?}");
        }
    }
}
