//! A repository on a server: git's smart HTTP protocol, version 2 (gitprotocol-v2(5), gitprotocol-http(5)).
//!
//! Two requests are made: what the server can do, and the objects of exactly the commits that are wanted, without
//! their history. Branches and tags are asked for only where somebody wants to know what they name.

use super::http::Http;
use super::limits::GitLimits;
use super::packet::{Packet, Packets, line};
use crate::inputs::InputError;
use ampoule_spec::GitId;
use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};
use std::fs::File;
use std::io::{Seek, Write};
use std::sync::atomic::{AtomicU64, Ordering};

type Result<T> = std::result::Result<T, InputError>;

/// The most bytes of an answer about capabilities or references.
const LIST_BYTES_MAX: u64 = 64 << 20;
/// What progress and framing may add to a pack: one part in eight, and this.
const FRAMING_BYTES_MAX: u64 = 16 << 20;
/// The most references that are looked at.
const REFS_MAX: usize = 10_000;
/// The hash at a pack's end.
const TAIL_BYTES: usize = 20;

/// A repository that has said what it can do.
pub(super) struct Remote<'a> {
    http: &'a Http<'a>,
    /// Where it lies, after redirects.
    url: String,
    what: String,
}

/// A reference and what it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ref {
    pub(super) name: String,
    pub(super) id: GitId,
    /// What an annotated tag names in the end.
    pub(super) peeled: Option<GitId>,
}

impl<'a> Remote<'a> {
    /// Asks a server what it can do with a repository.
    pub(super) async fn open(http: &'a Http<'a>, url: &str) -> Result<Self> {
        let what = url.to_owned();
        let (response, url) = http.discover(url).await?;
        let mut packets = Packets::new(&what, response, LIST_BYTES_MAX);
        let mut first = packets.text().await?;
        if first.as_deref() == Some("# service=git-upload-pack") {
            packets.text().await?;
            first = packets.text().await?;
        }
        if first.as_deref() != Some("version 2") {
            return Err(packets.refused(
                "the server does not speak version 2 of git's protocol (git 2.18 of 2018 and later do); use another mirror",
            ));
        }
        let mut can_fetch = false;
        let mut format = None;
        while let Some(capability) = packets.text().await? {
            match capability.split_once('=').unwrap_or((&capability, "")) {
                ("fetch", features) => can_fetch = features.split(' ').any(|f| f == "shallow"),
                ("object-format", name) => format = Some(name.to_owned()),
                _ => {}
            }
        }
        match format.as_deref() {
            None | Some("sha1") => {}
            Some(_) => {
                return Err(packets.refused("repositories that name objects by SHA-256 are not supported"));
            }
        }
        if !can_fetch {
            return Err(packets.refused("the server does not give a commit without its history (shallow)"));
        }
        Ok(Self { http, url, what })
    }

    fn request(command: &str) -> Vec<u8> {
        let mut body = Vec::new();
        line(&mut body, &format!("command={command}"));
        line(&mut body, concat!("agent=ampoule/", env!("CARGO_PKG_VERSION")));
        line(&mut body, "object-format=sha1");
        body.extend_from_slice(b"0001");
        body
    }

    async fn ask(&self, mut body: Vec<u8>, bytes_max: u64) -> Result<Packets> {
        body.extend_from_slice(b"0000");
        let response = self.http.ask(&self.url, body).await?;
        Ok(Packets::new(&self.what, response, bytes_max))
    }

    /// The references whose names begin so.
    pub(super) async fn refs(&self, prefixes: &[String]) -> Result<Vec<Ref>> {
        let mut body = Self::request("ls-refs");
        line(&mut body, "peel");
        prefixes.iter().for_each(|prefix| line(&mut body, &format!("ref-prefix {prefix}")));
        let mut packets = self.ask(body, LIST_BYTES_MAX).await?;
        let mut refs = Vec::new();
        while let Some(text) = packets.text().await? {
            if refs.len() == REFS_MAX {
                return Err(packets.refused(format!("more than {REFS_MAX} references begin so")));
            }
            refs.extend(reference(&text));
        }
        Ok(refs)
    }

    /// Fetches what belongs to these objects, without history, as one pack into an empty file.
    pub(super) async fn fetch(
        &self,
        wants: &[GitId],
        into: &mut File,
        limits: &GitLimits,
        received: &AtomicU64,
    ) -> Result<()> {
        let mut body = Self::request("fetch");
        for option in ["no-progress", "ofs-delta", "deepen 1"] {
            line(&mut body, option);
        }
        wants.iter().for_each(|want| line(&mut body, &format!("want {want}")));
        line(&mut body, "done");
        let most = limits.pack_bytes_max;
        let mut packets = self.ask(body, most + most / 8 + FRAMING_BYTES_MAX).await?;
        while let Some(section) = packets.text().await? {
            if section == "packfile" {
                return self.pack(&mut packets, into, most, received).await;
            }
            // What is shallow is what was asked to be; other sections do not come without being asked for.
            while packets.text().await?.is_some() {}
        }
        Err(packets.refused("the server's answer has no pack in it"))
    }

    /// Takes a pack out of its bands and holds it against the hash at its end.
    async fn pack(
        &self,
        packets: &mut Packets,
        into: &mut File,
        bytes_max: u64,
        received: &AtomicU64,
    ) -> Result<()> {
        let scratch = |source| InputError::File { what: "the file for a download".to_owned(), source };
        let mut hash = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
        let mut out = std::io::BufWriter::with_capacity(1 << 20, &*into);
        let mut tail: Vec<u8> = Vec::new();
        let mut bytes = 0_u64;
        loop {
            let part = match packets.next().await? {
                Packet::Data(part) => part,
                _ => break,
            };
            match part.split_first() {
                Some((1, part)) => {
                    bytes += part.len() as u64;
                    received.fetch_add(part.len() as u64, Ordering::Relaxed);
                    if bytes > bytes_max {
                        return Err(InputError::TooLarge { url: self.what.clone(), bytes_max });
                    }
                    tail.extend_from_slice(part);
                    let known = tail.len().saturating_sub(TAIL_BYTES);
                    hash.update(tail.get(..known).unwrap_or_default());
                    tail.drain(..known);
                    out.write_all(part).map_err(scratch)?;
                }
                Some((2, _)) => {}
                Some((3, message)) => return Err(packets.error(message)),
                _ => return Err(packets.refused("the pack comes in an unknown band")),
            }
        }
        out.flush().map_err(scratch)?;
        drop(out);
        if hash.finish().as_ref() != tail {
            let reason = "the pack is not complete, or damaged: its hash is another one".to_owned();
            return Err(InputError::Unreachable { url: self.what.clone(), reason, source: None });
        }
        into.rewind().map_err(scratch)
    }
}

/// `<id> <name>[ <attribute>…]`; one that is not born yet has no id, and is left out.
fn reference(text: &str) -> Option<Ref> {
    let mut words = text.split(' ');
    let id = GitId::parse(words.next()?).ok()?;
    let name = words.next()?.to_owned();
    let peeled = words.find_map(|word| word.strip_prefix("peeled:"));
    Some(Ref { name, id, peeled: peeled.and_then(|id| GitId::parse(id).ok()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_and_unborn_ones_left_out() {
        let (a, b) = ("a".repeat(40), "b".repeat(40));
        let tag = reference(&format!("{a} refs/tags/v1 peeled:{b}")).unwrap();
        assert_eq!(
            (tag.name.as_str(), tag.id.to_string(), tag.peeled.unwrap().to_string()),
            ("refs/tags/v1", a, b)
        );
        assert_eq!(reference("unborn HEAD symref-target:refs/heads/main"), None);
    }
}
