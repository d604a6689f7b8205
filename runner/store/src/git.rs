//! Whether a finished tree is the checkout of a commit, by git's own ids.
//!
//! The agent fetched the objects and is not believed: from the tree alone the ids are computed that git gives its files
//! and directories (SHA-1 with detection of collisions), and the commit object, whose own id names it, must name the
//! tree that comes out. So what is stored under a commit is that commit's, whoever sent it.

use crate::beneath;
use crate::digest::Git;
use crate::error::StoreError;
use crate::limits::{Limits, TARGET_BYTES_MAX};
use crate::refusal::{Refusal, shown};
use crate::walk::{Step, Walk, WalkError};
use ampoule_spec::{GIT_COMMIT_BYTES_MAX, GIT_LINKS_MAX, GitId, GitLink, GitProof};
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fs::File;

fn refuse(entry: &[u8], reason: impl Into<String>) -> StoreError {
    Refusal::NotTheCommit { entry: shown(entry), reason: reason.into() }.into()
}

fn failed(doing: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> StoreError {
    let entry = shown(path);
    move |errno| StoreError::Io { doing, entry, errno }
}

/// An entry of a tree object: git's mode, name, id.
type Entry = (&'static str, Vec<u8>, GitId);

struct Checker<'a> {
    links: BTreeMap<&'a [u8], &'a GitLink>,
    submodules: bool,
    used: usize,
    hasher: Git,
}

/// Holds a tree against a commit. Nobody may write to the tree meanwhile, and it was sealed before, so its sizes,
/// counts and modes are within the limits.
///
/// # Errors
/// [`Refusal::NotTheCommit`], whose code is `input.digest_mismatch`.
pub(crate) fn check(
    root: OwnedFd,
    commit: GitId,
    submodules: bool,
    proof: &GitProof,
    limits: &Limits,
) -> Result<(), StoreError> {
    if proof.links.len() > GIT_LINKS_MAX {
        return Err(refuse(b".", format!("more than {GIT_LINKS_MAX} submodules")));
    }
    let links = proof.links.iter().map(|link| (link.path.0.as_slice(), link)).collect::<BTreeMap<_, _>>();
    let mut checker = Checker { links, submodules, used: 0, hasher: Git::new() };
    let tree = checker.tree(root, limits)?;
    checker.is_commit(b".", &proof.object.0, commit, tree)?;
    if checker.used != proof.links.len() {
        return Err(refuse(b".", "a submodule that is not in the tree"));
    }
    Ok(())
}

impl Checker<'_> {
    /// The id that git gives the whole tree.
    fn tree(&mut self, root: OwnedFd, limits: &Limits) -> Result<GitId, StoreError> {
        let walk_failed = |error: WalkError, path: &[u8]| match error {
            WalkError::TooDeep => Refusal::TooDeep { entry: shown(path) }.into(),
            WalkError::TooMany => Refusal::TooMany { entries_max: limits.entries_max }.into(),
            WalkError::Io(errno) => failed("list", path)(errno),
        };
        let mut walk = Walk::new(root, limits.entries_max).map_err(|error| walk_failed(error, b"."))?;
        let mut open: Vec<Vec<Entry>> = vec![Vec::new()];
        while let Some(step) = walk.next_step() {
            match step {
                Step::Leave(name) => {
                    let entries = open.pop().unwrap_or_default();
                    let path = walk.path(&name);
                    let Some(parent) = open.last_mut() else { return self.directory(entries, b".") };
                    let entry = self.left(entries, name, &path)?;
                    parent.push(entry);
                }
                Step::Name(name) => {
                    let path = walk.path(&name);
                    if let Some(entry) = self.leaf(&walk, &name, &path)? {
                        if let Some(entries) = open.last_mut() {
                            entries.push(entry);
                        }
                        continue;
                    }
                    let dir = walk.dir().and_then(|dir| beneath::open_dir(dir, &name));
                    walk.enter(name, dir.map_err(failed("open", &path))?)
                        .map_err(|error| walk_failed(error, &path))?;
                    open.push(Vec::new());
                }
            }
        }
        Err(refuse(b".", "it has no root"))
    }

    /// A finished directory: a tree, or the place of a submodule.
    fn left(&mut self, entries: Vec<Entry>, name: Vec<u8>, path: &[u8]) -> Result<Entry, StoreError> {
        let Some(link) = self.links.get(path).copied() else {
            return Ok(("40000", name, self.directory(entries, path)?));
        };
        self.used += 1;
        match (&link.object, self.submodules) {
            (Some(object), true) => {
                let tree = self.directory(entries, path)?;
                self.is_commit(path, &object.0, link.commit, tree)?;
            }
            (None, false) if entries.is_empty() => {}
            _ => return Err(refuse(path, "a submodule is there that should not be, or the other way round")),
        }
        Ok(("160000", name, link.commit))
    }

    /// A file or link; nothing for a directory.
    fn leaf(&mut self, walk: &Walk, name: &[u8], path: &[u8]) -> Result<Option<Entry>, StoreError> {
        if name.eq_ignore_ascii_case(b".git") {
            return Err(refuse(path, "git never checks out a file of this name"));
        }
        let dir = walk.dir().map_err(failed("examine", path))?;
        let stat =
            rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("examine", path))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Ok(None),
            // Each name is hashed, so a file with many would cost more than the limits say.
            FileType::RegularFile if stat.st_nlink == 1 => {
                let file = beneath::open_file(dir, name).map_err(failed("open", path))?;
                let size = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
                let id = self.hasher.stream("blob", File::from(file), size);
                let id =
                    id.map_err(|e| failed("read", path)(Errno::from_io_error(&e).unwrap_or(Errno::IO)))?;
                let mode = if stat.st_mode & 0o100 != 0 { "100755" } else { "100644" };
                Ok(Some((mode, name.to_vec(), sound(id, path)?)))
            }
            FileType::Symlink => {
                let target =
                    rustix::fs::readlinkat(dir, name, Vec::new()).map_err(failed("read a link", path))?;
                let target = target.to_bytes();
                if target.len() > TARGET_BYTES_MAX {
                    return Err(refuse(path, "a link with a long target"));
                }
                Ok(Some(("120000", name.to_vec(), sound(Git::object("blob", target), path)?)))
            }
            _ => Err(refuse(path, "a file with several names, or no file")),
        }
    }

    /// The id of a directory. Git sorts a directory as if its name ended in `/`.
    fn directory(&self, mut entries: Vec<Entry>, path: &[u8]) -> Result<GitId, StoreError> {
        // A submodule is sorted as a file is (git's `S_ISDIR` of its mode is false).
        let key = |(mode, name, _): &Entry| {
            let mut key = name.clone();
            key.extend((*mode == "40000").then_some(b'/'));
            key
        };
        entries.sort_by_cached_key(key);
        let mut object = Vec::new();
        for (mode, name, id) in &entries {
            object.extend_from_slice(mode.as_bytes());
            object.push(b' ');
            object.extend_from_slice(name);
            object.push(0);
            object.extend_from_slice(id.as_bytes());
        }
        sound(Git::object("tree", &object), path)
    }

    /// That an object is this commit, and that its tree is this one.
    fn is_commit(&self, path: &[u8], object: &[u8], commit: GitId, tree: GitId) -> Result<(), StoreError> {
        if object.len() > GIT_COMMIT_BYTES_MAX {
            return Err(refuse(path, format!("a commit object of more than {GIT_COMMIT_BYTES_MAX} bytes")));
        }
        let actual = sound(Git::object("commit", object), path)?;
        if actual != commit {
            return Err(refuse(path, format!("the commit object's id is {actual}, expected {commit}")));
        }
        let named = object.strip_prefix(b"tree ").and_then(|rest| rest.split_at_checked(40));
        let named = named.filter(|(_, rest)| rest.starts_with(b"\n")).map(|(id, _)| id);
        let named = named.and_then(|id| GitId::parse(std::str::from_utf8(id).ok()?).ok());
        match named {
            Some(named) if named == tree => Ok(()),
            Some(named) => {
                Err(refuse(path, format!("commit {commit} has the tree {named}, the files are {tree}")))
            }
            None => Err(refuse(path, format!("commit {commit} names no tree"))),
        }
    }
}

/// A hash that nobody has tampered with.
fn sound(id: Option<GitId>, path: &[u8]) -> Result<GitId, StoreError> {
    id.ok_or_else(|| refuse(path, "its SHA-1 was attacked: the content is one of two with the same hash"))
}
