//! One commit with its submodules: fetched, looked at, and streamed as an archive.

use super::fault::Fault;
use super::limits::{GitLimits, TREE_BYTES_MAX};
use super::local::Repository;
use super::object::{self, Entry, Kind, Mode};
use super::pack::Pack;
use crate::inputs::InputError;
use ampoule_spec::{GIT_COMMIT_BYTES_MAX, GitId, GitLink, GitProof, HexBytes};
use ampoule_store::{ArchiveWriter, DEPTH_MAX, PATH_BYTES_MAX, TARGET_BYTES_MAX};
use std::collections::BTreeMap;
use std::io::Write;
use std::rc::Rc;

type Result<T> = std::result::Result<T, Fault>;

/// Where objects lie.
pub(super) enum Objects {
    Fetched(Pack),
    Here(Repository),
}

impl Objects {
    /// Reads an object of one kind and at most so many bytes.
    pub(super) fn read(&self, id: &GitId, wanted: Kind, bytes_max: u64) -> Result<Rc<[u8]>> {
        let (kind, bytes) = match self {
            Self::Fetched(pack) => pack.read(id)?,
            Self::Here(repository) => repository.read(id)?,
        };
        if kind != wanted {
            let (kind, wanted) = (kind.as_str(), wanted.as_str());
            return Err(Fault::Refused(format!("the object {id} is a {kind} and not a {wanted}")));
        }
        if bytes.len() as u64 > bytes_max {
            return Err(Fault::Refused(format!(
                "the {} {id} has more than {bytes_max} bytes",
                kind.as_str()
            )));
        }
        Ok(bytes)
    }

    pub(super) fn is_here(&self) -> bool {
        matches!(self, Self::Here(_))
    }
}

/// A commit whose objects are all at hand, and those of its submodules.
pub struct Snapshot {
    /// For messages: the URL or path.
    pub(super) what: String,
    pub(super) commit: GitId,
    pub(super) object: Vec<u8>,
    pub(super) tree: GitId,
    pub(super) objects: Objects,
    /// Submodules by their path in this repository; those without a snapshot are left empty.
    pub(super) links: BTreeMap<Vec<u8>, (GitId, Option<Snapshot>)>,
    /// The tag object, where one was wanted.
    pub(super) tag: Option<Vec<u8>>,
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot")
            .field("what", &self.what)
            .field("commit", &self.commit)
            .finish_non_exhaustive()
    }
}

/// What is counted over a whole checkout.
pub(super) struct Counts<'a> {
    pub(super) limits: &'a GitLimits,
    pub(super) entries: u64,
    pub(super) bytes: u64,
    pub(super) stop: &'a dyn Fn() -> bool,
}

impl Counts<'_> {
    fn entry(&mut self, path: &[u8]) -> Result<()> {
        if (self.stop)() {
            return Err(Fault::Stopped);
        }
        self.entries += 1;
        let most = self.limits.entries_max;
        if self.entries > most {
            return Err(Fault::Refused(format!("more than {most} names")));
        }
        if path.len() > PATH_BYTES_MAX {
            return Err(Fault::Refused(format!("a path of more than {PATH_BYTES_MAX} bytes")));
        }
        if path.split(|byte| *byte == b'/').count() > DEPTH_MAX {
            return Err(Fault::Refused(format!("a path of more than {DEPTH_MAX} components")));
        }
        Ok(())
    }

    fn file(&mut self, bytes: usize) -> Result<()> {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        let most = self.limits.bytes_max;
        if self.bytes > most {
            return Err(Fault::Refused(format!("files of more than {most} bytes")));
        }
        Ok(())
    }
}

impl Snapshot {
    /// Takes a commit out of a repository's objects and looks at all its trees. Submodules are only noted.
    pub(super) fn of(what: &str, commit: GitId, objects: Objects, counts: &mut Counts<'_>) -> Result<Self> {
        let object = objects.read(&commit, Kind::Commit, GIT_COMMIT_BYTES_MAX as u64)?;
        let tree = object::commit(&object)?.tree;
        let mut links = BTreeMap::new();
        each(&objects, tree, b"", counts, &mut |path, entry, _| {
            if entry.mode == Mode::Submodule {
                links.insert(path.to_vec(), (entry.id, None));
            }
            Ok(())
        })?;
        let what = what.to_owned();
        Ok(Self { what, commit, object: object.to_vec(), tree, objects, links, tag: None })
    }

    /// A file at the root.
    pub(super) fn root_file(&self, name: &[u8], bytes_max: u64) -> Result<Option<Rc<[u8]>>> {
        let tree = self.objects.read(&self.tree, Kind::Tree, TREE_BYTES_MAX)?;
        let entry = object::tree(&tree)?.into_iter().find(|entry| entry.name == name);
        match entry {
            None => Ok(None),
            Some(entry) if matches!(entry.mode, Mode::File | Mode::Executable) => {
                self.objects.read(&entry.id, Kind::Blob, bytes_max).map(Some)
            }
            Some(_) => Err(Fault::Refused(format!("{} is not a file", object::shown(name)))),
        }
    }

    /// The bytes of the commit object, by which the commit's id can be computed.
    pub fn object(&self) -> &[u8] {
        &self.object
    }

    /// The bytes of the tag object, where one was wanted.
    pub fn tag(&self) -> Option<&[u8]> {
        self.tag.as_deref()
    }

    /// What lets the launcher see for itself that the archive's tree is this commit's.
    pub fn proof(&self) -> GitProof {
        let mut links = Vec::new();
        self.collect(b"", &mut links);
        GitProof { object: HexBytes(self.object.clone()), links }
    }

    fn collect(&self, prefix: &[u8], into: &mut Vec<GitLink>) {
        for (path, (commit, snapshot)) in &self.links {
            let path = join(prefix, path);
            let object = snapshot.as_ref().map(|snapshot| HexBytes(snapshot.object.clone()));
            into.push(GitLink { path: HexBytes(path.clone()), commit: *commit, object });
            if let Some(snapshot) = snapshot {
                snapshot.collect(&path, into);
            }
        }
    }

    /// Streams the checkout as a tar archive: every file with the bytes that the commit has, unfiltered.
    ///
    /// # Errors
    /// [`InputError`]; the archive is incomplete then, and refused by whoever reads it.
    pub fn write(
        &self,
        out: impl Write,
        limits: &GitLimits,
        stop: &dyn Fn() -> bool,
    ) -> std::result::Result<(), InputError> {
        let mut archive = ArchiveWriter::new(out);
        let mut counts = Counts { limits, entries: 0, bytes: 0, stop };
        let written = self.write_below(b"", &mut archive, &mut counts);
        let written = written.and_then(|()| archive.finish().map_err(Fault::File));
        written.map_err(|fault| fault.of(&self.what, self.objects.is_here()))
    }

    fn write_below<W: Write>(
        &self,
        prefix: &[u8],
        archive: &mut ArchiveWriter<W>,
        counts: &mut Counts<'_>,
    ) -> Result<()> {
        each(&self.objects, self.tree, prefix, counts, &mut |path, entry, counts| {
            let blob = || self.objects.read(&entry.id, Kind::Blob, counts.limits.object_bytes_max);
            match entry.mode {
                Mode::Directory => archive.directory(path).map_err(Fault::File),
                Mode::File | Mode::Executable => {
                    let bytes = blob()?;
                    counts.file(bytes.len())?;
                    archive.file(path, entry.mode == Mode::Executable, &bytes).map_err(Fault::File)
                }
                Mode::Link => {
                    let target = blob()?;
                    if target.is_empty() || target.len() > TARGET_BYTES_MAX || target.contains(&0) {
                        return Err(Fault::Refused("a link whose target is no path".to_owned()));
                    }
                    archive.link(path, &target).map_err(Fault::File)
                }
                Mode::Submodule => {
                    archive.directory(path).map_err(Fault::File)?;
                    let own = path.get(if prefix.is_empty() { 0 } else { prefix.len() + 1 }..);
                    match own.and_then(|own| self.links.get(own)) {
                        Some((_, Some(snapshot))) => snapshot.write_below(path, archive, counts),
                        _ => Ok(()),
                    }
                }
            }
        })
    }
}

fn join(prefix: &[u8], name: &[u8]) -> Vec<u8> {
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

type Visit<'v> = dyn FnMut(&[u8], &Entry, &mut Counts<'_>) -> Result<()> + 'v;

/// Visits every name below a tree, a directory before what is in it. How deep it goes is bounded by [`Counts::entry`].
fn each(
    objects: &Objects,
    tree: GitId,
    prefix: &[u8],
    counts: &mut Counts<'_>,
    visit: &mut Visit<'_>,
) -> Result<()> {
    let bytes = objects.read(&tree, Kind::Tree, TREE_BYTES_MAX)?;
    for entry in object::tree(&bytes).map_err(|reason| Fault::Refused(reason).at(shown_root(prefix)))? {
        let path = join(prefix, &entry.name);
        counts.entry(&path).and_then(|()| visit(&path, &entry, counts)).map_err(|fault| {
            match entry.mode {
                // The fault inside a submodule names its own place.
                Mode::Submodule => fault,
                _ => fault.at(&path),
            }
        })?;
        if entry.mode == Mode::Directory {
            each(objects, entry.id, &path, counts, visit)?;
        }
    }
    Ok(())
}

fn shown_root(prefix: &[u8]) -> &[u8] {
    if prefix.is_empty() { b"." } else { prefix }
}
