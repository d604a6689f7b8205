//! Git's objects as they are hashed: trees, commits, tags.

use ampoule_spec::GitId;
use sha1_checked::{CollisionResult, Digest, Sha1};

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Commit,
    Tree,
    Blob,
    Tag,
}

impl Kind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::Tree => "tree",
            Self::Blob => "blob",
            Self::Tag => "tag",
        }
    }

    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        [Self::Commit, Self::Tree, Self::Blob, Self::Tag].into_iter().find(|k| k.as_str().as_bytes() == text)
    }
}

/// The id of an object while its bytes come in.
pub(crate) struct Hasher(Sha1);

impl Hasher {
    pub(crate) fn new(kind: Kind, size: u64) -> Self {
        let mut hash = Sha1::new();
        hash.update(format!("{} {size}\0", kind.as_str()));
        Self(hash)
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The id; none where the bytes are one half of a SHA-1 collision.
    pub(crate) fn finish(self) -> Option<GitId> {
        match self.0.try_finalize() {
            CollisionResult::Ok(id) => Some(GitId::new(id.into())),
            _ => None,
        }
    }
}

/// The id of an object; none where its bytes are one half of a SHA-1 collision.
pub(crate) fn id_of(kind: Kind, bytes: &[u8]) -> Option<GitId> {
    let mut hasher = Hasher::new(kind, bytes.len() as u64);
    hasher.update(bytes);
    hasher.finish()
}

/// What a name in a tree stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Directory,
    File,
    Executable,
    Link,
    /// A submodule's commit.
    Submodule,
}

/// One name in a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) mode: Mode,
    pub(crate) name: Vec<u8>,
    pub(crate) id: GitId,
}

/// Reads a tree and holds it against the rules of `git fsck` that matter outside git: modes, names, order.
pub(crate) fn tree(bytes: &[u8]) -> Result<Vec<Entry>, String> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (entry, after) = tree_entry(rest)?;
        rest = after;
        if let Some(last) = entries.last()
            && sort_key(last) >= sort_key(&entry)
        {
            return Err(format!("the name {} is there twice or out of order", shown(&entry.name)));
        }
        entries.push(entry);
    }
    // `a` and `a/` sort apart, with `a.b` between them: the same name as file and as directory.
    let mut names: Vec<&[u8]> = entries.iter().map(|entry| entry.name.as_slice()).collect();
    names.sort_unstable();
    match names.iter().zip(names.iter().skip(1)).find(|(a, b)| a == b) {
        Some((name, _)) => Err(format!("the name {} is there twice", shown(name))),
        None => Ok(entries),
    }
}

fn tree_entry(bytes: &[u8]) -> Result<(Entry, &[u8]), String> {
    let cut = || "a tree object that is cut off".to_owned();
    let space = bytes.iter().take(8).position(|byte| *byte == b' ').ok_or_else(cut)?;
    let (mode, rest) = bytes.split_at_checked(space).ok_or_else(cut)?;
    let rest = rest.get(1..).ok_or_else(cut)?;
    let end = rest.iter().position(|byte| *byte == 0).ok_or_else(cut)?;
    let (name, rest) = rest.split_at_checked(end).ok_or_else(cut)?;
    let (id, rest) = rest.get(1..).and_then(<[u8]>::split_first_chunk::<20>).ok_or_else(cut)?;
    let mode = match mode {
        b"40000" => Mode::Directory,
        b"100644" => Mode::File,
        b"100755" => Mode::Executable,
        b"120000" => Mode::Link,
        b"160000" => Mode::Submodule,
        // Git itself has written 100664 before 2005 was over; its checkout has no name for what that was.
        other => return Err(format!("{}: the mode {} is not accepted", shown(name), shown(other))),
    };
    check_name(name)?;
    Ok((Entry { mode, name: name.to_vec(), id: GitId::new(*id) }, rest))
}

/// The names that `git fsck` calls errors, `.git` in any case among them.
fn check_name(name: &[u8]) -> Result<(), String> {
    let reason = match name {
        b"" => "an empty name",
        b"." | b".." => "a name that is a directory's own or its parent's",
        _ if name.contains(&b'/') => "a name with '/' in it",
        _ if name.eq_ignore_ascii_case(b".git") => "a name that is git's own",
        _ if name.len() > ampoule_store::NAME_BYTES_MAX => "a name of more than 255 bytes",
        _ => return Ok(()),
    };
    Err(format!("{}: {reason} is not accepted", shown(name)))
}

fn sort_key(entry: &Entry) -> Vec<u8> {
    let mut key = entry.name.clone();
    key.extend((entry.mode == Mode::Directory).then_some(b'/'));
    key
}

/// A name for people: printable ASCII and not long.
pub(crate) fn shown(name: &[u8]) -> String {
    let cut = name.get(..200).unwrap_or(name);
    cut.escape_ascii().to_string()
}

/// What is read of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Commit {
    pub(crate) tree: GitId,
    /// When it was committed, in seconds since 1970.
    pub(crate) time: i64,
    pub(crate) signed: Signed,
}

/// What is signed, and by what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Signed {
    pub(crate) payload: Vec<u8>,
    pub(crate) signature: Option<Vec<u8>>,
}

/// Reads a commit object.
pub(crate) fn commit(bytes: &[u8]) -> Result<Commit, String> {
    let cut = || "a commit object without tree or committer".to_owned();
    let tree = bytes.strip_prefix(b"tree ").and_then(|rest| rest.split_at_checked(40)).ok_or_else(cut)?;
    let tree = std::str::from_utf8(tree.0).map_err(|_| cut())?;
    let tree = GitId::parse(tree).map_err(|e| format!("a commit object whose tree is no id: {e}"))?;
    let mut signed = Signed::default();
    let mut signature = Vec::new();
    let (mut in_signature, mut in_body, mut signatures) = (false, false, 0);
    let mut committer = None;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        if in_body {
            signed.payload.extend_from_slice(line);
            continue;
        }
        if in_signature && let Some(more) = line.strip_prefix(b" ") {
            signature.extend_from_slice(more);
            continue;
        }
        in_signature = false;
        if let Some(first) = line.strip_prefix(b"gpgsig ") {
            in_signature = true;
            signatures += 1;
            signature.extend_from_slice(first);
            continue;
        }
        if line.starts_with(b"gpgsig-sha256 ") {
            return Err("a commit with a signature over its SHA-256 form is not supported".to_owned());
        }
        if let Some(rest) = line.strip_prefix(b"committer ") {
            committer = committer.or(Some(time_of(rest)?));
        }
        in_body = line == b"\n";
        signed.payload.extend_from_slice(line);
    }
    match signatures {
        0 => {}
        1 => signed.signature = Some(signature),
        _ => return Err("a commit with more than one signature is not accepted".to_owned()),
    }
    Ok(Commit { tree, time: committer.ok_or_else(cut)?, signed })
}

/// What is read of an annotated tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tag {
    pub(crate) object: GitId,
    pub(crate) name: Vec<u8>,
    pub(crate) time: i64,
    pub(crate) signed: Signed,
}

/// Reads a tag object that names a commit.
pub(crate) fn tag(bytes: &[u8]) -> Result<Tag, String> {
    let cut = || "a tag object that is cut off".to_owned();
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let mut field = |name: &[u8]| {
        let line = lines.next().and_then(|line| line.strip_prefix(name));
        line.and_then(|line| line.strip_prefix(b" ")).ok_or_else(cut)
    };
    let object = std::str::from_utf8(field(b"object")?).map_err(|_| cut())?;
    let object = GitId::parse(object).map_err(|e| format!("a tag object of no id: {e}"))?;
    if field(b"type")? != b"commit" {
        return Err("a tag of something else than a commit is not accepted".to_owned());
    }
    let name = field(b"tag")?.to_vec();
    let time = time_of(field(b"tagger")?)?;
    const BEGIN: [&[u8]; 2] = [b"-----BEGIN SSH SIGNATURE-----\n", b"-----BEGIN PGP SIGNATURE-----\n"];
    // Git takes the last line that begins a signature.
    let starts = (0..bytes.len()).rev().find(|at| {
        let here = bytes.get(*at..).unwrap_or_default();
        let line = *at == 0 || bytes.get(at - 1) == Some(&b'\n');
        line && BEGIN.iter().any(|begin| here.starts_with(begin))
    });
    let signed = match starts.and_then(|at| bytes.split_at_checked(at)) {
        Some((payload, signature)) => {
            Signed { payload: payload.to_vec(), signature: Some(signature.to_vec()) }
        }
        None => Signed { payload: bytes.to_vec(), signature: None },
    };
    Ok(Tag { object, name, time, signed })
}

/// The seconds in `Name <address> seconds zone`.
fn time_of(line: &[u8]) -> Result<i64, String> {
    let text = line.trim_ascii_end();
    let rest = text.rsplitn(3, |byte| *byte == b' ').nth(1);
    let seconds = rest.and_then(|text| std::str::from_utf8(text).ok()).and_then(|text| text.parse().ok());
    seconds.ok_or_else(|| "an object whose time cannot be read".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let line = |(mode, name): &(&str, &[u8])| [mode.as_bytes(), b" ", name, b"\0", &[1; 20]].concat();
        entries.iter().flat_map(line).collect()
    }

    #[test]
    fn tree_names_modes_and_order_are_gits() {
        let good = raw(&[("100644", b"a.b"), ("40000", b"a"), ("120000", b"b\xff"), ("160000", b"c")]);
        assert_eq!(tree(&good).unwrap().len(), 4);
        for bad in [
            raw(&[("100644", b".git")]),
            raw(&[("40000", b".GiT")]),
            raw(&[("100644", b"..")]),
            raw(&[("100644", b".")]),
            raw(&[("100644", b"")]),
            raw(&[("100644", b"a/b")]),
            raw(&[("100644", b"b"), ("100644", b"a")]),
            raw(&[("100644", b"a"), ("100644", b"a")]),
            raw(&[("100644", b"a"), ("100644", b"a.b"), ("40000", b"a")]),
            raw(&[("100664", b"a")]),
            raw(&[("040000", b"a")]),
            raw(&[("100600", b"a")]),
            raw(&[("100644", &[b'x'; 256])]),
            raw(&[("100644", b"a")])[..20].to_vec(),
            b"100644".to_vec(),
        ] {
            assert!(tree(&bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn commit_gives_its_time_and_what_was_signed() {
        let tree = "0".repeat(40);
        let head = format!("tree {tree}\nauthor A <a> 1 +0000\ncommitter C D <c@d> 1700000000 +0100\n");
        let body = "\ngpgsig is no header here\n\n x\n";
        let signed = format!("{head}gpgsig -----B\n one\n \n two\n{body}");
        let commit = commit(signed.as_bytes()).unwrap();
        assert_eq!(
            (commit.time, commit.signed.payload),
            (1_700_000_000, format!("{head}{body}").into_bytes())
        );
        assert_eq!(commit.signed.signature.unwrap(), b"-----B\none\n\ntwo\n");
        for bad in
            [format!("{head}gpgsig a\ngpgsig b\n\n"), format!("tree {tree}\n\n"), "tree x\n".to_owned()]
        {
            assert!(super::commit(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
