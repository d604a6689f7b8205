//! A repository here: its objects, and nothing else of it.
//!
//! Neither configuration nor hooks, references or the index are looked at. What is read is held against the id that
//! names it, so a link or a file that somebody else put there gives nothing that was not asked for. Objects that lie
//! with another repository (`objects/info/alternates`) are not followed (CVE-2022-39253).

use super::fault::Fault;
use super::fetch::{names_of, only};
use super::limits::GitLimits;
use super::object::{self, Kind, id_of};
use super::pack::{Index, PackFile};
use crate::inputs::InputError;
use ampoule_spec::GitId;
use flate2::read::ZlibDecoder;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

type Result<T> = std::result::Result<T, Fault>;

/// The most packs of one repository.
const PACKS_MAX: usize = 10_000;
/// The most bytes of its references.
const REFS_BYTES_MAX: u64 = 64 << 20;
/// So many references or tags are followed from one to the next.
const REFS_DEEP_MAX: usize = 8;
/// The header and fan-out table of an index of version 2.
const FANOUT: u64 = 8;
const IDS: u64 = FANOUT + 4 * 256;

/// A repository here.
pub(super) struct Repository {
    dir: PathBuf,
    packs: Vec<(PackIndex, PackFile)>,
    limits: GitLimits,
}

/// The index of a pack.
struct PackIndex {
    file: File,
    count: u64,
}

impl Repository {
    /// Finds the objects of the repository in a directory: bare, with `.git`, or a worktree of another.
    pub(super) fn open(path: &Path, limits: GitLimits) -> Result<Self> {
        Self::at(git_dir(path)?, limits)
    }

    /// Takes the directory of a submodule's repository as it is: nothing in it says that the objects are elsewhere.
    pub(super) fn open_module(dir: &Path, limits: GitLimits) -> Result<Self> {
        Self::at(dir.to_owned(), limits)
    }

    fn at(dir: PathBuf, limits: GitLimits) -> Result<Self> {
        let objects = dir.join("objects");
        let alternates = objects.join("info/alternates");
        match std::fs::metadata(&alternates) {
            Ok(meta) if meta.len() > 0 => {
                return Err(Fault::Refused(
                    "its objects lie with another repository (objects/info/alternates); run `git repack -a -d` in it and \
                     remove that file"
                        .to_owned(),
                ));
            }
            _ => {}
        }
        let mut packs = Vec::new();
        let names = match std::fs::read_dir(objects.join("pack")) {
            Ok(names) => names.collect::<std::io::Result<Vec<_>>>().map_err(Fault::File)?,
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(Fault::File(error)),
        };
        let mut names: Vec<PathBuf> = names.into_iter().map(|entry| entry.path()).collect();
        names.sort();
        for index in names.iter().filter(|path| path.extension().is_some_and(|e| e == "idx")) {
            if packs.len() == PACKS_MAX {
                return Err(Fault::Refused(format!("it has more than {PACKS_MAX} packs; run `git gc`")));
            }
            // A pack may be gone since, or have no pack beside it.
            let Some(pack) = open(&index.with_extension("pack"))? else { continue };
            let Some(index) = open(index)? else { continue };
            let (pack, _) = PackFile::open(pack, limits)?;
            packs.push((PackIndex::open(index)?, pack));
        }
        Ok(Self { dir, packs, limits })
    }

    /// The directory of a submodule's repository within this one, if it is there and no link leads to it.
    pub(super) fn module(&self, name: &str) -> Option<PathBuf> {
        use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(CWD, &self.dir, flags, Mode::empty()).ok()?;
        let within = Path::new("modules").join(name);
        let objects = within.join("objects");
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        openat2(&dir, &objects, flags, Mode::empty(), resolve).ok()?;
        Some(self.dir.join(within))
    }

    /// What a tag names: the tag object, if it is an annotated one.
    pub(super) fn tag(&self, name: &str) -> Result<Option<GitId>> {
        self.reference(&format!("refs/tags/{name}"))
    }

    /// What a reference names by its full name. One that names another is followed.
    fn reference(&self, name: &str) -> Result<Option<GitId>> {
        let mut name = name.to_owned();
        for _ in 0..REFS_DEEP_MAX {
            if !is_reference(&name) {
                return Ok(None);
            }
            let loose = text(open(&self.dir.join(&name))?)?;
            if let Ok(id) = GitId::parse(loose.trim_end()) {
                return Ok(Some(id));
            }
            let Some(other) = loose.trim_end().strip_prefix("ref: ") else {
                let packed = text(open(&self.dir.join("packed-refs"))?)?;
                let line = packed.lines().find_map(|line| line.strip_suffix(&name)?.strip_suffix(' '));
                return Ok(line.and_then(|id| GitId::parse(id).ok()));
            };
            name = other.to_owned();
        }
        Ok(None)
    }

    /// What is checked out in a directory: a worktree has a `HEAD` of its own.
    fn head(&self, path: &Path) -> Result<Option<GitId>> {
        let own = pointer(&path.join(".git"), "gitdir: ", path)?;
        let head = text(open(&own.unwrap_or_else(|| self.dir.clone()).join("HEAD"))?)?;
        match head.trim_end().strip_prefix("ref: ") {
            Some(name) => self.reference(name),
            None => Ok(GitId::parse(head.trim_end()).ok()),
        }
    }

    /// The commit that something is, or that a tag leads to.
    fn commit_behind(&self, mut id: GitId) -> Result<GitId> {
        for _ in 0..REFS_DEEP_MAX {
            match self.read(&id)? {
                (Kind::Commit, _) => return Ok(id),
                (Kind::Tag, bytes) => id = object::tag(&bytes)?.object,
                (kind, _) => return Err(Fault::Refused(format!("it names a {}", kind.as_str()))),
            }
        }
        Err(Fault::Refused("it is a tag of tags of tags".to_owned()))
    }

    pub(super) fn read(&self, id: &GitId) -> Result<(Kind, Rc<[u8]>)> {
        let (kind, bytes) = match self.loose(id)? {
            Some(found) => found,
            None => self.packed(id)?.ok_or(Fault::Missing(*id))?,
        };
        if id_of(kind, &bytes) != Some(*id) {
            return Err(Fault::Refused(format!("the object {id} is damaged; run `git fsck`")));
        }
        Ok((kind, bytes))
    }

    fn packed(&self, id: &GitId) -> Result<Option<(Kind, Rc<[u8]>)>> {
        for (index, pack) in &self.packs {
            if let Some(at) = index.offset(id)? {
                return pack.object(at, index).map(Some);
            }
        }
        Ok(None)
    }

    fn loose(&self, id: &GitId) -> Result<Option<(Kind, Rc<[u8]>)>> {
        let text = id.to_string();
        let (first, rest) = text.split_at(2);
        let Some(file) = open(&self.dir.join("objects").join(first).join(rest))? else { return Ok(None) };
        let damaged = || Fault::Refused(format!("the object {id} is damaged; run `git fsck`"));
        let most = self.limits.object_bytes_max;
        let mut decoder = ZlibDecoder::new(file).take(most + 64);
        let mut bytes = Vec::new();
        decoder.read_to_end(&mut bytes).map_err(|_| damaged())?;
        let end = bytes.iter().take(64).position(|byte| *byte == 0).ok_or_else(damaged)?;
        let head = bytes.get(..end).unwrap_or_default();
        let space = head.iter().position(|byte| *byte == b' ').ok_or_else(damaged)?;
        let kind = Kind::parse(head.get(..space).unwrap_or_default()).ok_or_else(damaged)?;
        let body = bytes.get(end + 1..).unwrap_or_default();
        if body.len() as u64 > most {
            return Err(Fault::Refused(format!("an object of more than {most} bytes")));
        }
        Ok(Some((kind, body.into())))
    }
}

impl PackIndex {
    fn open(file: File) -> Result<Self> {
        let mut head = [0; FANOUT as usize];
        let read = file.read_exact_at(&mut head, 0);
        if read.is_err() || head != [0xff, b't', b'O', b'c', 0, 0, 0, 2] {
            return Err(Fault::Refused(
                "a pack's index is not of version 2; run `git repack -a -d`".to_owned(),
            ));
        }
        let mut index = Self { file, count: 0 };
        index.count = u64::from(index.number(FANOUT + 4 * 255)?);
        Ok(index)
    }

    fn number(&self, at: u64) -> Result<u32> {
        let mut bytes = [0; 4];
        self.file.read_exact_at(&mut bytes, at).map_err(Fault::File)?;
        Ok(u32::from_be_bytes(bytes))
    }
}

impl Index for PackIndex {
    fn offset(&self, id: &GitId) -> Result<Option<u64>> {
        let [first, ..] = *id.as_bytes();
        let first = u64::from(first);
        let mut low = if first == 0 { 0 } else { u64::from(self.number(FANOUT + 4 * (first - 1))?) };
        let mut high = u64::from(self.number(FANOUT + 4 * first)?).min(self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            let mut found = [0; 20];
            self.file.read_exact_at(&mut found, IDS + 20 * middle).map_err(Fault::File)?;
            match found.cmp(id.as_bytes()) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => {
                    let offsets = IDS + 24 * self.count;
                    let offset = self.number(offsets + 4 * middle)?;
                    if offset & 0x8000_0000 == 0 {
                        return Ok(Some(offset.into()));
                    }
                    let large = offsets + 4 * self.count + 8 * u64::from(offset & 0x7fff_ffff);
                    let (upper, lower) = (self.number(large)?, self.number(large + 4)?);
                    return Ok(Some(u64::from(upper) << 32 | u64::from(lower)));
                }
            }
        }
        Ok(None)
    }
}

/// What a branch or tag of a repository here names now, as [`resolve_ref`](super::resolve_ref) of one elsewhere.
///
/// # Errors
/// As of that.
pub fn resolve_here(path: &Path, reference: &str) -> std::result::Result<GitId, InputError> {
    let what = format!("{} {}", path.display(), object::shown(reference.as_bytes()));
    let found = || -> Result<Vec<GitId>> {
        let repository = Repository::open(path, GitLimits::default())?;
        let mut found = Vec::new();
        for name in names_of(reference) {
            let id = if name == "HEAD" { repository.head(path)? } else { repository.reference(&name)? };
            if let Some(id) = id {
                found.push(repository.commit_behind(id)?);
            }
        }
        Ok(found)
    };
    only(what.clone(), found().map_err(|fault| fault.of(&what, true))?.into_iter())
}

/// Whether this is the full name of a reference, and no other path within the repository.
fn is_reference(name: &str) -> bool {
    let odd = |part: &str| matches!(part, "" | "." | "..") || part.chars().any(char::is_control);
    name.starts_with("refs/") && !name.split('/').any(odd)
}

fn text(file: Option<File>) -> Result<String> {
    let mut text = String::new();
    let Some(file) = file else { return Ok(text) };
    let read = file.take(REFS_BYTES_MAX).read_to_string(&mut text);
    read.map(|_| text).map_err(|e| Fault::Refused(format!("its references cannot be read: {e}")))
}

/// A regular file, if it is there. A FIFO in its place does not make anybody wait.
fn open(path: &Path) -> Result<Option<File>> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits();
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(path);
    match file {
        Ok(file) if file.metadata().map_err(Fault::File)?.is_file() => Ok(Some(file)),
        Ok(_) => Err(Fault::Refused("an object is no regular file".to_owned())),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(Fault::File(error)),
    }
}

/// The directory that has the objects.
fn git_dir(path: &Path) -> Result<PathBuf> {
    let has = |dir: &Path| dir.join("objects").is_dir() && dir.join("HEAD").is_file();
    let within = path.join(".git");
    if has(path) {
        return Ok(path.to_owned());
    }
    if has(&within) {
        return Ok(within);
    }
    // A worktree or submodule: one line says where, and there another says where the objects are.
    let elsewhere = pointer(&within, "gitdir: ", path)?;
    let dir = match &elsewhere {
        Some(dir) if has(dir) => return Ok(dir.clone()),
        Some(dir) => pointer(&dir.join("commondir"), "", dir)?,
        None => None,
    };
    dir.filter(|dir| has(dir)).ok_or_else(|| Fault::Refused("there is no git repository".to_owned()))
}

fn pointer(file: &Path, prefix: &str, from: &Path) -> Result<Option<PathBuf>> {
    let Some(file) = (if file.is_dir() { None } else { open(file)? }) else { return Ok(None) };
    let mut text = String::new();
    if file.take(8 << 10).read_to_string(&mut text).is_err() {
        return Ok(None);
    }
    let target = text.trim_end().strip_prefix(prefix).filter(|target| !target.is_empty());
    Ok(target.map(|target| from.join(target)))
}
