//! Uploads that are not finished: one file each, whose length is how far it is.

use super::limits::ContentLimits;
use super::{ContentError, Result, blocking, name};
use crate::shelf::{below, names, now};
use ampoule_spec::wire::Content;
use ampoule_spec::{Code, Name};
use ampoule_store::Room;
use rustix::fs::{AtFlags, Mode, OFlags, openat, statat, unlinkat};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const FLAGS: OFlags = OFlags::RDWR.union(OFlags::CREATE).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);
/// When to ask again for something that somebody else is at, or that is full.
const SOON: Duration = Duration::from_secs(1);
const LATER: Duration = Duration::from_secs(30);

/// The uploads of all projects.
#[derive(Debug, Clone)]
pub(super) struct Spool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    dir: OwnedFd,
    limits: ContentLimits,
    uploads: Mutex<BTreeMap<Key, Entry>>,
}

/// File names of a project and of a content.
type Key = (String, String);

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Bytes that are there.
    there: u64,
    /// How many it counts with: those, and some of what is to come while somebody is at it.
    counted: u64,
    /// Whether somebody is at it.
    busy: bool,
    /// When it was left, in seconds since 1970.
    left: u64,
}

impl Entry {
    /// One that nobody is at.
    fn left(there: u64, left: u64) -> Self {
        Self { there, counted: there, busy: false, left }
    }

    fn outstanding(&self) -> u64 {
        self.counted.saturating_sub(self.there)
    }
}

/// Why an upload may not count with so much.
enum Full {
    /// Its project has as much as it may.
    Project(ContentError),
    /// All projects together have.
    All(ContentError),
    /// Something that no upload could make room for.
    Else(ContentError),
}

/// An upload that somebody is at. Dropping it leaves what is there, to be gone on with.
#[derive(Debug)]
pub struct Upload {
    spool: Spool,
    key: Key,
    pub(super) project: Name,
    pub(super) content: Content,
    file: File,
    size: u64,
    there: u64,
    discard: bool,
}

impl Spool {
    pub(super) fn open(dir: &OwnedFd, limits: ContentLimits) -> io::Result<Self> {
        let dir = below(dir, "spool")?;
        let mut uploads = BTreeMap::new();
        for project in names(&dir)? {
            for upload in names(below(&dir, &project)?)? {
                let stat = statat(&dir, format!("{project}/{upload}"), AtFlags::SYMLINK_NOFOLLOW)?;
                let there = u64::try_from(stat.st_size).unwrap_or(0);
                let left = u64::try_from(stat.st_mtime).unwrap_or(0);
                uploads.insert((project.clone(), upload), Entry::left(there, left));
            }
        }
        Ok(Self(Arc::new(Shared { dir, limits, uploads: Mutex::new(uploads) })))
    }

    fn uploads(&self) -> MutexGuard<'_, BTreeMap<Key, Entry>> {
        self.0.uploads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many bytes are there.
    pub(super) fn offset(&self, project: &Name, content: &Content) -> u64 {
        let key = (name::of_project(project), name::of_content(content));
        self.uploads().get(&key).map_or(0, |entry| entry.there)
    }

    /// Begins an upload, or goes on with it.
    pub(super) fn begin(&self, project: &Name, content: Content, size: u64, offset: u64) -> Result<Upload> {
        let most = self.0.limits.upload_bytes;
        if size > most {
            return Err(ContentError::wrong(
                "header.size_bytes",
                format!("{size} bytes; at most {most} are taken"),
            ));
        }
        let key = (name::of_project(project), name::of_content(&content));
        let mut uploads = self.uploads();
        let entry = uploads.get(&key).copied().unwrap_or(Entry::left(0, 0));
        if entry.busy {
            let text = "the same content is being uploaded to the project by somebody else";
            return Err(ContentError::later(Code::AdmissionBusy, text, SOON));
        }
        if offset != 0 && offset != entry.there || offset > size {
            let text = format!("{offset}; {} of {size} bytes are there", entry.there);
            let wrong = ContentError::wrong("header.offset", text);
            return Err(ContentError { status: Some(tonic::Code::OutOfRange), ..wrong });
        }
        let entry = Entry { there: offset, counted: self.ahead(offset, size), busy: true, ..entry };
        self.make_room(&mut uploads, &key, &entry)?;
        let file = self.file(&key, offset).map_err(|e| ContentError::io("an upload", e))?;
        uploads.insert(key.clone(), entry);
        drop(uploads);
        let spool = self.clone();
        Ok(Upload {
            spool,
            key,
            project: project.clone(),
            content,
            file,
            size,
            there: offset,
            discard: false,
        })
    }

    /// What an upload counts with when so much is there.
    fn ahead(&self, there: u64, size: u64) -> u64 {
        size.min(there.saturating_add(self.0.limits.window))
    }

    /// Counts bytes that are about to be there.
    fn count(&self, key: &Key, there: u64, size: u64) -> Result<()> {
        let mut uploads = self.uploads();
        let entry = uploads.get(key).copied();
        let entry = entry.ok_or_else(|| ContentError::internal("an upload that nobody counts"))?;
        if there > entry.counted {
            let new = Entry { counted: self.ahead(there, size), ..entry };
            self.make_room(&mut uploads, key, &new)?;
            uploads.insert(key.clone(), new);
        }
        Ok(())
    }

    /// Sees to it that an upload may count with so much. What was left makes room for what comes: else those who have begun
    /// and went away would keep a project's others out for as long as that is kept.
    fn make_room(&self, uploads: &mut BTreeMap<Key, Entry>, key: &Key, new: &Entry) -> Result<()> {
        loop {
            let (error, left) = match self.check_limits(uploads, key, new) {
                Ok(()) => return Ok(()),
                Err(Full::Project(error)) => (error, oldest_left(uploads, key, &|project| project == key.0)),
                Err(Full::All(error)) => {
                    let of = |project: &str| bytes_of(uploads, project, key);
                    let own = of(&key.0).saturating_add(new.counted);
                    // Who has less than the one who comes loses nothing to him.
                    let may = |project: &str| project == key.0 || of(project) > own;
                    (error, oldest_left(uploads, key, &may))
                }
                Err(Full::Else(error)) => return Err(error),
            };
            let left = left.ok_or(error)?;
            self.remove(&left);
            uploads.remove(&left);
        }
    }

    fn check_limits(
        &self,
        uploads: &BTreeMap<Key, Entry>,
        key: &Key,
        new: &Entry,
    ) -> std::result::Result<(), Full> {
        let limits = &self.0.limits;
        let busy = |text: &str| ContentError::later(Code::AdmissionBusy, text, LATER);
        let many = || busy("too many uploads are not finished; finish them, or wait");
        let large = || busy("the uploads that are not finished are too large; finish them, or wait");
        let others = || uploads.iter().filter(|(other, _)| *other != key);
        let own = || others().filter(|(other, _)| other.0 == key.0);
        let charged = |bytes: u64| bytes.saturating_add(new.counted);
        let (own_bytes, all_bytes) =
            (own().map(|(_, e)| e.counted).sum::<u64>(), others().map(|(_, e)| e.counted).sum::<u64>());
        if own().count() >= limits.project_uploads {
            return Err(Full::Project(many()));
        }
        if charged(own_bytes) > limits.project_bytes {
            return Err(Full::Project(large()));
        }
        if others().count() >= limits.uploads {
            return Err(Full::All(many()));
        }
        if charged(all_bytes) > limits.bytes {
            return Err(Full::All(large()));
        }
        let room = Room::at(&self.0.dir).map_err(|e| Full::Else(ContentError::io("the spool", e)))?;
        let wanted = others().map(|(_, e)| e.outstanding()).sum::<u64>().saturating_add(new.outstanding());
        if room.for_import().is_none_or(|left| left < wanted) {
            let text = format!("the disk has no room for {} bytes more", new.outstanding());
            return Err(Full::Else(ContentError::later(Code::StoreFull, text, LATER)));
        }
        Ok(())
    }

    /// Opens the file and shortens it to what is gone on from.
    fn file(&self, key: &Key, offset: u64) -> io::Result<File> {
        let dir = below(&self.0.dir, &key.0)?;
        let mut file = File::from(openat(&dir, &key.1, FLAGS, Mode::from_raw_mode(0o600))?);
        if file.metadata()?.len() < offset {
            return Err(io::Error::other("it is shorter than it was"));
        }
        file.set_len(offset)?;
        file.seek(SeekFrom::Start(offset))?;
        Ok(file)
    }

    fn remove(&self, key: &Key) {
        let _ = unlinkat(&self.0.dir, format!("{}/{}", key.0, key.1), AtFlags::empty());
    }

    /// Removes what was left too long ago.
    pub(super) fn sweep(&self) {
        let oldest = now().saturating_sub(self.0.limits.age.as_secs());
        // Under the lock, so that nobody goes on with what is being removed.
        self.uploads().retain(|key, entry| {
            let keep = entry.busy || entry.left >= oldest;
            if !keep {
                self.remove(key);
            }
            keep
        });
    }
}

/// What a project's uploads count with, without this one.
fn bytes_of(uploads: &BTreeMap<Key, Entry>, project: &str, without: &Key) -> u64 {
    let own = uploads.iter().filter(|(key, _)| key.0 == project && *key != without);
    own.map(|(_, entry)| entry.counted).sum()
}

/// What was left the longest ago of these projects.
fn oldest_left(
    uploads: &BTreeMap<Key, Entry>,
    without: &Key,
    projects: &dyn Fn(&str) -> bool,
) -> Option<Key> {
    let left = uploads.iter().filter(|(key, entry)| !entry.busy && *key != without && projects(&key.0));
    left.min_by_key(|(_, entry)| entry.left).map(|(key, _)| key.clone())
}

impl Upload {
    /// How many bytes are there.
    pub fn there(&self) -> u64 {
        self.there
    }

    /// How many there will be.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Takes bytes.
    ///
    /// # Errors
    /// [`ContentError`] if there are more than were announced, upon which all are dropped, there is no room for them now, or
    /// they cannot be written.
    pub async fn append(mut self, bytes: Vec<u8>) -> Result<Self> {
        // The upload goes with the work: whoever stops waiting leaves it only when nothing is written any more.
        blocking(move || {
            let there = self.there.saturating_add(bytes.len() as u64);
            if there > self.size {
                self.discard = true;
                let text = format!("more than the {} bytes that were announced; they are dropped", self.size);
                return Err(ContentError::wrong("data", text));
            }
            self.spool.count(&self.key, there, self.size)?;
            if let Err(error) = self.file.write_all(&bytes) {
                // What was written of them is cut off when somebody goes on.
                return Err(ContentError::io("an upload", error));
            }
            self.there = there;
            if let Some(entry) = self.spool.uploads().get_mut(&self.key) {
                entry.there = there;
            }
            Ok(self)
        })
        .await
    }

    /// The bytes from their beginning.
    pub(super) fn bytes(&self) -> io::Result<File> {
        let mut file = self.file.try_clone()?;
        file.seek(SeekFrom::Start(0))?;
        Ok(file)
    }

    /// Has the bytes removed when it is dropped.
    pub(super) fn discard(&mut self) {
        self.discard = true;
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let mut uploads = self.spool.uploads();
        if self.discard || self.there == 0 {
            self.spool.remove(&self.key);
            uploads.remove(&self.key);
        } else {
            uploads.insert(self.key.clone(), Entry::left(self.there, now()));
        }
    }
}
