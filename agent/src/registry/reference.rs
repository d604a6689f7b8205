//! What `docker://HOST[:PORT]/REPO[:TAG][@sha256:DIGEST]` names.
//!
//! The host is part of the name: a short name such as `debian` means another registry on another machine, and
//! whoever owns that name there decides what is built with (dependency confusion). There is no default.

use ampoule_spec::Sha256;
use std::fmt;

/// The scheme with which a reference to a registry begins.
pub const SCHEME: &str = "docker://";
/// The longest repository with its host, in bytes (distribution's reference grammar).
const NAME_BYTES_MAX: usize = 255;

/// A repository on a registry, and perhaps a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The registry's host in lower case, with the port if one was given.
    pub host: String,
    /// The repository.
    pub repository: String,
    /// The tag.
    pub tag: Option<String>,
}

/// Why a text is no reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}; {remedy}")]
pub struct ReferenceError {
    /// What is wrong.
    pub reason: String,
    /// What to write instead.
    pub remedy: String,
}

const FORM: &str = "write docker://HOST[:PORT]/REPO[:TAG]@sha256:DIGEST";

fn wrong(reason: impl Into<String>, remedy: impl Into<String>) -> ReferenceError {
    ReferenceError { reason: reason.into(), remedy: remedy.into() }
}

impl Reference {
    /// Reads a reference with its digest, if it has one.
    ///
    /// # Errors
    /// What is wrong, and what to write instead.
    pub fn parse(text: &str) -> Result<(Self, Option<Sha256>), ReferenceError> {
        let rest =
            text.strip_prefix(SCHEME).ok_or_else(|| wrong("it does not begin with docker://", FORM))?;
        let (name, sha256) = match rest.split_once('@') {
            None => (rest, None),
            Some((name, digest)) => (name, Some(digest_of(digest)?)),
        };
        let (host, path) = match name.split_once('/') {
            Some((host, path)) if is_host(host) => (host.to_ascii_lowercase(), path),
            _ => return Err(no_host(name)),
        };
        let (repository, tag) = match path.rsplit_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (path, None),
        };
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            let rule = "a tag has letters, digits, '_', '.' and '-', begins with none of the last two, and has at \
                        most 128 of them";
            return Err(wrong(format!("{tag:?} is no tag"), rule));
        }
        if host.len() + 1 + repository.len() > NAME_BYTES_MAX || !repository.split('/').all(is_component) {
            let rule = "a repository has components of lower-case letters and digits, separated by '.', '_', '__' \
                        or '-', and '/' between them";
            return Err(wrong(format!("{repository:?} is no repository"), rule));
        }
        Ok((Self { host, repository: repository.to_owned(), tag: tag.map(str::to_owned) }, sha256))
    }

    /// The repository without a tag, as messages name it.
    pub(crate) fn repository_name(&self) -> String {
        format!("{SCHEME}{}/{}", self.host, self.repository)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.host, self.repository)?;
        match &self.tag {
            Some(tag) => write!(f, ":{tag}"),
            None => Ok(()),
        }
    }
}

fn digest_of(text: &str) -> Result<Sha256, ReferenceError> {
    let hex = text.strip_prefix("sha256:");
    let hex =
        hex.ok_or_else(|| wrong("only sha256 digests are read", "write @sha256: and 64 hexadecimal digits"))?;
    Sha256::parse(hex).map_err(|e| wrong(e.to_string(), "write @sha256: and 64 hexadecimal digits"))
}

fn no_host(name: &str) -> ReferenceError {
    let name: String = name.chars().take(120).collect();
    wrong(
        format!("{name:?} names no registry"),
        "write the registry's host before the repository, docker://HOST/REPO@sha256:DIGEST: there is no default \
         registry, and a host has a '.', a port, or is localhost",
    )
}

/// Whether the first component is a host and not the first part of a short name: the rule that Docker and
/// containers/image share.
fn is_host(text: &str) -> bool {
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, "")) if address.parse::<std::net::Ipv6Addr>().is_ok() => return true,
            Some((address, rest)) if address.parse::<std::net::Ipv6Addr>().is_ok() => {
                ("", rest.strip_prefix(':'))
            }
            _ => return false,
        },
        None => match text.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (text, None),
        },
    };
    let port_ok = |port: &str| port.parse::<u16>().is_ok_and(|n| n > 0 && n.to_string() == port);
    let label = |label: &str| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        !label.is_empty() && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    let named = name.split('.').all(label);
    match port {
        Some(port) => port_ok(port) && (named || text.starts_with('[')),
        None => named && (name.contains('.') || name == "localhost"),
    }
}

fn is_component(text: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separator = |s: &str| matches!(s, "" | "." | "_" | "__") || s.bytes().all(|b| b == b'-');
    text.starts_with(alphanumeric) && text.ends_with(alphanumeric) && text.split(alphanumeric).all(separator)
}

/// Whether a text is a tag (distribution-spec 1.1).
pub(crate) fn is_tag(text: &str) -> bool {
    let tail = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    text.len() <= 128
        && text.bytes().all(tail)
        && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    #[test]
    fn references_with_a_host_are_read_and_hosts_lowered() {
        for (text, host, repository, tag) in [
            ("docker://Registry.Example/base", "registry.example", "base", None),
            ("docker://localhost/base:v1", "localhost", "base", Some("v1")),
            (
                "docker://registry:5000/team/base.x_y__z-w:1.2",
                "registry:5000",
                "team/base.x_y__z-w",
                Some("1.2"),
            ),
            ("docker://[::1]:5000/a", "[::1]:5000", "a", None),
            ("docker://127.0.0.1:5000/a/b/c", "127.0.0.1:5000", "a/b/c", None),
        ] {
            let (reference, sha256) = Reference::parse(text).unwrap();
            assert_eq!((reference.host.as_str(), reference.repository.as_str()), (host, repository));
            assert_eq!((reference.tag.as_deref(), sha256), (tag, None));
            let pinned = Reference::parse(&format!("{text}@sha256:{D}")).unwrap();
            assert_eq!(pinned, (reference, Some(Sha256::parse(D).unwrap())));
        }
        assert_eq!(Reference::parse("docker://h.x/a:t").unwrap().0.to_string(), "docker://h.x/a:t");
    }

    #[test]
    fn short_names_have_no_registry() {
        for text in
            ["docker://debian", "docker://library/debian", "docker://debian:12", "docker:///a", "docker://"]
        {
            let error = Reference::parse(text).unwrap_err();
            assert!(error.to_string().contains("there is no default registry"), "{text}: {error}");
        }
    }

    #[test]
    fn anything_else_is_no_reference() {
        for text in [
            "debian",
            "docker:h.x/a",
            "docker://h.x/",
            "docker://h.x/A",
            "docker://h.x/a//b",
            "docker://h.x/a/../b",
            "docker://h.x/a:",
            "docker://h.x/a:-t",
            "docker://h.x/a:t/b",
            "docker://u:p@h.x/a",
            "docker://h.x/a?x=y",
            "docker://h.x:0/a",
            "docker://h.x:99999/a",
            "docker://h.x:05000/a",
            "docker://-h.x/a",
            "docker://h..x/a",
            "docker://[::1/a",
            "docker://h.x/a@sha512:00",
            "docker://h.x/a@sha256:00",
            "docker://h.x/a b",
            "docker://h.x/a\u{e4}",
            "docker://h.x/a_-b",
            "docker://h.x/a.",
        ] {
            assert!(Reference::parse(text).is_err(), "{text}");
        }
        let long = format!("docker://h.x/{}", "a".repeat(255));
        assert!(Reference::parse(&long).is_err());
    }
}
