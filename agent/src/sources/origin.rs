//! An origin: a prefix of URLs, the addresses that it may have, and what is shown to it.

use super::address::{self, Forbidden};
use ipnet::IpNet;
use percent_encoding::percent_decode;
use reqwest::Url;
use std::borrow::Cow;
use std::net::IpAddr;
use std::path::PathBuf;
use url::Host;

/// Who wants to fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// An `http` input or one of its mirrors.
    Http,
    /// A registry's client.
    Registry,
    /// A git client.
    Git,
}

/// What an origin knows us by: the file that holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Auth {
    /// `USER:PASSWORD` (RFC 7617).
    Basic(PathBuf),
    /// A token (RFC 6750).
    Bearer(PathBuf),
    /// The value of a header of this name.
    Header(String, PathBuf),
}

impl Auth {
    /// The file.
    pub fn file(&self) -> &PathBuf {
        match self {
            Self::Basic(file) | Self::Bearer(file) | Self::Header(_, file) => file,
        }
    }
}

/// An allowed origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Its name in the file.
    pub name: String,
    /// The authorities that its certificate may come from, instead of the host's.
    pub ca: Option<PathBuf>,
    /// What is shown to it, and to no other.
    pub auth: Option<Auth>,
    /// For whom it is; none: for all.
    pub(super) purpose: Option<Purpose>,
    pub(super) prefix: Prefix,
    /// All addresses that it may have; none: every public one.
    pub(super) addresses: Option<Vec<IpNet>>,
    /// What it is a mirror of.
    pub(super) mirror_of: Vec<Prefix>,
}

impl Origin {
    /// Whether this origin may have an address.
    ///
    /// # Errors
    /// What the address is.
    pub fn may_have(&self, address: IpAddr) -> Result<(), Forbidden> {
        match &self.addresses {
            Some(nets) => address::listed(address, nets),
            None => address::public(address),
        }
    }

    /// Whether somebody may use it.
    pub(super) fn serves(&self, purpose: Purpose) -> bool {
        self.purpose.is_none_or(|own| own == purpose)
    }
}

/// A prefix of URLs: scheme, host, port and the first segments of the path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Prefix {
    pub(super) url: Url,
    host: Host,
    port: u16,
    /// Decoded.
    segments: Vec<Vec<u8>>,
    /// Whether the segments are those of a repository below `/v2/`.
    registry: bool,
}

/// How a URL stands to a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    /// It is another origin's.
    No,
    /// It begins with the prefix, which has so many segments.
    Yes(usize),
    /// It is on the same host, and servers may read its path in two ways.
    TwoWays,
}

impl Prefix {
    /// Reads a prefix of URLs.
    ///
    /// # Errors
    /// What is wrong and what to write instead.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let url = crate::inputs::parse_url(text)?;
        if url.query().is_some() || url.fragment().is_some() {
            return Err("a prefix of URLs has no query and no fragment".to_owned());
        }
        if !matches!(url.scheme(), "https" | "http") {
            return Err("write https://HOST/PATH/ or http://HOST/PATH/".to_owned());
        }
        // The parser has read `..` away, and a reader of the file might have meant something else by it.
        let path = text.split_once("://").and_then(|(_, rest)| rest.split_once('/'));
        if two_ways(path.map_or("", |(_, path)| path)) {
            return Err("the path has a part that servers read in two ways; write it without . and .. and \
                        encoded slashes"
                .to_owned());
        }
        let (Some(host), Some(port)) = (host_of(&url), url.port_or_known_default()) else {
            return Err("the host is missing; write https://HOST/PATH/".to_owned());
        };
        if let Host::Domain(name) = &host
            && name.contains(['*', '?'])
        {
            return Err("a host is written in full; there are no patterns".to_owned());
        }
        Ok(Self { segments: segments(&url), url, host, port, registry: false })
    }

    /// Reads `HOST[:PORT][/REPOSITORY]`, with `http://` before it for a registry without TLS.
    ///
    /// # Errors
    /// What is wrong and what to write instead.
    pub(super) fn parse_registry(text: &str) -> Result<Self, String> {
        let whole = if text.contains("://") { Cow::Borrowed(text) } else { format!("https://{text}").into() };
        Ok(Self { registry: true, ..Self::parse(&whole)? })
    }

    /// The host, if the prefix names it by its address.
    pub(super) fn address(&self) -> Option<IpAddr> {
        address_of(&self.host)
    }

    /// Whether what is shown to it could be read on the way.
    pub(super) fn is_plain(&self) -> bool {
        self.url.scheme() == "http"
    }

    /// How `url` stands to this prefix.
    pub(super) fn fit(&self, url: &Url) -> Fit {
        let same = url.scheme() == self.url.scheme()
            && url.port_or_known_default() == Some(self.port)
            && host_of(url).is_some_and(|host| host == self.host);
        if !same {
            return Fit::No;
        }
        let path = segments(url);
        let mut rest = path.as_slice();
        if self.registry {
            match rest.split_first() {
                Some((first, below)) if first == b"v2" => rest = below,
                _ => return Fit::No,
            }
            if rest.is_empty() {
                return Fit::Yes(self.segments.len());
            }
        }
        if !rest.starts_with(&self.segments) {
            return Fit::No;
        }
        if (self.registry || !self.segments.is_empty()) && two_ways(url.path()) {
            return Fit::TwoWays;
        }
        Fit::Yes(self.segments.len())
    }

    /// Where this prefix has what `url` has below `of`; none if `url` is not below `of`.
    pub(super) fn instead_of(&self, of: &Self, url: &Url) -> Option<Url> {
        if !matches!(of.fit(url), Fit::Yes(_)) || two_ways(url.path()) {
            return None;
        }
        let rest: Vec<&str> = url.path_segments()?.skip(of.segments.len()).collect();
        let base = self.url.as_str().trim_end_matches('/');
        let mut mirrored = Url::parse(&format!("{base}/{}", rest.join("/"))).ok()?;
        mirrored.set_query(url.query());
        matches!(self.fit(&mirrored), Fit::Yes(_)).then_some(mirrored)
    }
}

/// The address in a host's place.
pub(super) fn address_of(host: &Host) -> Option<IpAddr> {
    match host {
        Host::Ipv4(address) => Some((*address).into()),
        Host::Ipv6(address) => Some((*address).into()),
        Host::Domain(_) => None,
    }
}

/// The host, without the dot that says that a name is whole.
pub(super) fn host_of(url: &Url) -> Option<Host> {
    Some(match url.host()? {
        Host::Domain(name) => Host::Domain(name.strip_suffix('.').unwrap_or(name).to_owned()),
        Host::Ipv4(address) => Host::Ipv4(address),
        Host::Ipv6(address) => Host::Ipv6(address),
    })
}

/// The path's segments, decoded; an empty last one is none.
fn segments(url: &Url) -> Vec<Vec<u8>> {
    let parts = url.path_segments().into_iter().flatten();
    let mut segments: Vec<Vec<u8>> = parts.map(|part| percent_decode(part.as_bytes()).collect()).collect();
    if segments.last().is_some_and(Vec::is_empty) {
        segments.pop();
    }
    segments
}

/// Whether some server takes this path for another one: an encoded slash or dot segment, however often it is encoded, or
/// a dot segment with a parameter.
fn two_ways(path: &str) -> bool {
    let mut path = path.as_bytes().to_vec();
    let slashes = |path: &[u8]| path.iter().filter(|byte| matches!(byte, b'/' | b'\\')).count();
    let written = path.iter().filter(|byte| **byte == b'/').count();
    loop {
        let dots = |part: &[u8]| {
            let name = part.split(|byte| *byte == b';').next().unwrap_or_default();
            matches!(name, b"." | b"..")
        };
        let odd = path.split(|byte| matches!(byte, b'/' | b'\\')).any(dots);
        if odd || slashes(&path) != written || path.iter().any(u8::is_ascii_control) {
            return true;
        }
        let decoded: Vec<u8> = percent_decode(&path).collect();
        if decoded.len() == path.len() {
            return false;
        }
        path = decoded;
    }
}

#[cfg(test)]
#[path = "origin_tests.rs"]
mod tests;
