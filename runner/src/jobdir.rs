//! A job's directory: the wire back to the agent, and what is left when everything else has crashed.
//!
//! `events` is a journal and alone what counts: intent, spec, admission, events, log bytes, report. `spec.json` and
//! `report.json` are copies of what stands in it, for whoever reads a job; after a cut of power they are written
//! again. A directory begins as that of a slot and gets the job's name when there is a job. A lock on it is held by
//! the supervisor as long as it lives.

pub(crate) mod fence;

use crate::readers;
use crate::record::Record;
use ampoule_journal::{Reader, Writer};
use ampoule_sandbox::fault;
use ampoule_spec::{JobId, REPORT_BYTES_MAX, SlotId};
use rustix::fs::{
    AtFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, flock, mkdirat, openat, renameat_with,
    unlinkat,
};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// The state directory: jobs and store.
#[derive(Debug)]
pub(crate) struct State {
    root: OwnedFd,
    jobs: OwnedFd,
    /// The store's directory.
    pub(crate) store: OwnedFd,
    /// Where files without a name are made.
    pub(crate) scratch: OwnedFd,
    /// What evidence needs of the store, by job.
    kept: OwnedFd,
    /// The group that reads jobs, if one does.
    readers: Option<u32>,
}

/// What only one process of a state directory is at a time.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Office {
    /// It takes connections.
    Listener,
    /// It prepares sandboxes before they are asked for.
    Preparer,
}

/// The directory of a job or of a slot.
#[derive(Debug)]
pub(crate) struct JobDir {
    /// Its name: a job's id, or what [`slot_name`] makes of a slot's.
    name: String,
    dir: OwnedFd,
}

/// A lock on a job's directory, shared by every process that inherits the descriptor.
#[derive(Debug)]
pub(crate) struct JobLock(OwnedFd);

impl JobLock {
    /// Another descriptor of the same lock.
    pub(crate) fn duplicate(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }
}

impl AsFd for JobLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for JobDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

impl AsFd for State {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.jobs.as_fd()
    }
}

/// Beginning of the name of a directory that is being removed; no job id begins so.
const GONE: &str = ".gone-";
/// Beginning of the name of a slot's directory.
const SLOT: &str = ".slot-";

const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// The name of a slot's directory until it has a job.
pub(crate) fn slot_name(slot: &SlotId) -> String {
    format!("{SLOT}{slot}")
}

impl State {
    /// Opens the state directory, and makes what is missing of it. With `readers` that group reads the jobs that are made,
    /// and nothing else.
    pub(crate) fn open(path: &Path, readers: Option<u32>) -> io::Result<Self> {
        let root = openat(rustix::fs::CWD, path, DIR, Mode::empty())?;
        let stat = rustix::fs::fstat(&root)?;
        if stat.st_uid != rustix::process::geteuid().as_raw() || stat.st_mode & 0o022 != 0 {
            let text = "the state directory belongs to somebody else or can be written by others";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
        let (jobs, store) = (subdir(&root, "jobs")?, subdir(&root, "store")?);
        let (scratch, kept) = (subdir(&root, "scratch")?, subdir(&root, "kept")?);
        if let Some(group) = readers {
            readers::admit(&root, group)?;
            readers::admit(&jobs, group)?;
        }
        Ok(Self { root, jobs, store, scratch, kept, readers })
    }

    /// Makes a directory. Its name must be new.
    pub(crate) fn create(&self, name: &str) -> io::Result<(JobDir, JobLock)> {
        fault::point("job directory: create").map_err(io::Error::other)?;
        let unlocked = self.gate(FlockOperation::LockShared)?;
        mkdirat(&self.jobs, name, Mode::RWXU)?;
        let dir = openat(&self.jobs, name, DIR, Mode::empty())?;
        let lock = lock(&self.jobs, name)?.ok_or(Errno::AGAIN)?;
        drop(unlocked);
        if let Some(group) = self.readers {
            readers::admit(&dir, group)?;
        }
        readers::make_dir(dir.as_fd(), "outputs")?;
        Ok((JobDir { name: name.to_owned(), dir }, lock))
    }

    /// Gives a slot's directory to a job, whose id must be new. Durable with [`State::sync`].
    pub(crate) fn assign(&self, dir: &mut JobDir, job: &JobId) -> io::Result<()> {
        fault::point("job directory: assign").map_err(io::Error::other)?;
        renameat_with(&self.jobs, &dir.name, &self.jobs, job.as_str(), RenameFlags::NOREPLACE)?;
        dir.name = job.to_string();
        Ok(())
    }

    /// Makes the names of all jobs durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.jobs)?)
    }

    /// Lets nobody look for idle directories while there is one that has no lock yet, and the other way round.
    fn gate(&self, operation: FlockOperation) -> io::Result<OwnedFd> {
        // A description of its own: the lock belongs to that, and ours is every child's too.
        let gate = openat(&self.jobs, ".", DIR, Mode::empty())?;
        flock(&gate, operation)?;
        Ok(gate)
    }

    /// Opens a directory if nobody holds it.
    pub(crate) fn open_idle(&self, name: &str) -> io::Result<Option<(JobDir, JobLock)>> {
        let gate = self.gate(FlockOperation::LockExclusive)?;
        let lock = lock(&self.jobs, name)?;
        drop(gate);
        match lock {
            None => Ok(None),
            Some(lock) => {
                let dir = openat(&self.jobs, name, DIR, Mode::empty())?;
                Ok(Some((JobDir { name: name.to_owned(), dir }, lock)))
            }
        }
    }

    /// Whether somebody holds a directory: its supervisor, or whoever recovers or forgets it. Nobody takes the time of
    /// looking for holding it.
    pub(crate) fn is_held(&self, name: &str) -> io::Result<bool> {
        let _gate = self.gate(FlockOperation::LockExclusive)?;
        Ok(lock(&self.jobs, name)?.is_none())
    }

    /// Lets one process at a time be the listener of this directory, or the one that prepares sandboxes ahead; as long as
    /// it keeps what it is given. None: another is.
    pub(crate) fn sole(&self, office: Office) -> io::Result<Option<OwnedFd>> {
        let dir = match office {
            Office::Listener => &self.root,
            Office::Preparer => &self.scratch,
        };
        Ok(lock(dir, ".")?.map(|JobLock(fd)| fd))
    }

    /// The ids of all jobs that have a directory, oldest first: they begin with their time.
    pub(crate) fn jobs(&self) -> io::Result<Vec<JobId>> {
        self.ids(|kind| kind != FileType::RegularFile)
    }

    fn ids(&self, wanted: impl Fn(FileType) -> bool) -> io::Result<Vec<JobId>> {
        let mut ids = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.jobs)? {
            let entry = entry?;
            let id = entry.file_name().to_str().ok().and_then(|name| JobId::parse(name).ok());
            ids.extend(id.filter(|_| wanted(entry.file_type())));
        }
        ids.sort_unstable();
        Ok(ids)
    }

    /// Opens a job's directory, whoever holds it, to look into it.
    pub(crate) fn look_into(&self, name: &str) -> io::Result<JobDir> {
        Ok(JobDir { name: name.to_owned(), dir: openat(&self.jobs, name, DIR, Mode::empty())? })
    }

    /// Whether a job has a directory.
    pub(crate) fn has_directory(&self, job: &JobId) -> bool {
        exists(&self.jobs, job.as_str())
    }

    /// Whether evidence of a job is kept here.
    pub(crate) fn has_evidence(&self, job: &JobId) -> bool {
        exists(&self.root, &format!("runs/{job}")) || exists(&self.root, &format!("records/{job}"))
    }

    /// Makes a list of what a job's evidence needs, durable.
    pub(crate) fn keep(&self, job: &JobId, bytes: &[u8]) -> io::Result<()> {
        fault::point("kept: write").map_err(io::Error::other)?;
        let aside = format!(".{job}");
        let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(openat(&self.kept, &aside, flags, Mode::RUSR | Mode::WUSR)?);
        (&file).write_all(bytes)?;
        rustix::fs::fsync(&file)?;
        fault::point("kept: publish").map_err(io::Error::other)?;
        rustix::fs::renameat(&self.kept, &aside, &self.kept, job.as_str())?;
        Ok(rustix::fs::fsync(&self.kept)?)
    }

    /// The jobs that have such a list.
    pub(crate) fn kept(&self) -> io::Result<Vec<JobId>> {
        let names = names_in(&self.kept)?;
        Ok(names.iter().filter_map(|name| JobId::parse(name).ok()).collect())
    }

    /// A job's list.
    pub(crate) fn read_kept(&self, job: &JobId, limit: u64) -> io::Result<Vec<u8>> {
        read_bounded(&self.kept, job.as_str(), limit)
    }

    /// Removes a job's list.
    pub(crate) fn unkeep(&self, job: &JobId) -> io::Result<()> {
        match unlinkat(&self.kept, job.as_str(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The names of the directories of slots that have no job.
    pub(crate) fn slots(&self) -> io::Result<Vec<String>> {
        Ok(self.names()?.into_iter().filter(|name| name.starts_with(SLOT)).collect())
    }

    fn names(&self) -> io::Result<Vec<String>> {
        names_in(&self.jobs)
    }

    /// Removes a directory with everything in it: first by name, so that a crash in between leaves none that
    /// looks like another.
    pub(crate) fn forget(&self, name: &str) -> io::Result<()> {
        let point = |stage| fault::point(stage).map_err(io::Error::other);
        point("job directory: forget")?;
        let gone = format!("{GONE}{}", name.trim_start_matches('.'));
        renameat_with(&self.jobs, name, &self.jobs, &gone, RenameFlags::NOREPLACE)?;
        point("job directory: remove")?;
        match self.remove(&gone) {
            // Whoever sweeps was quicker.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Removes what a crash left of directories that were being forgotten.
    pub(crate) fn sweep(&self) -> io::Result<()> {
        for name in self.names()?.iter().filter(|name| name.starts_with(GONE)) {
            match self.remove(name) {
                // Whoever forgets it was quicker.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let dir = openat(&self.jobs, name, DIR, Mode::empty())?;
        match openat(&dir, "outputs", DIR, Mode::empty()) {
            Ok(outputs) => {
                remove_files(outputs.as_fd())?;
                unlinkat(&dir, "outputs", AtFlags::REMOVEDIR)?;
            }
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        remove_files(dir.as_fd())?;
        Ok(unlinkat(&self.jobs, name, AtFlags::REMOVEDIR)?)
    }
}

fn names_in(dir: &OwnedFd) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        names.extend(entry?.file_name().to_str().ok().map(str::to_owned));
    }
    Ok(names)
}

fn read_bounded(dir: &OwnedFd, name: &str, limit: u64) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut bytes = Vec::new();
    File::from(openat(dir, name, flags, Mode::empty())?).take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn exists(dir: &OwnedFd, path: &str) -> bool {
    rustix::fs::accessat(dir, path, rustix::fs::Access::EXISTS, AtFlags::empty()).is_ok()
}

fn subdir(parent: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    match mkdirat(parent, name, Mode::RWXU) {
        Ok(()) => rustix::fs::fsync(parent)?,
        Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    Ok(openat(parent, name, DIR, Mode::empty())?)
}

fn lock(jobs: &OwnedFd, name: &str) -> io::Result<Option<JobLock>> {
    // A description of its own: the lock lives exactly as long as the processes that inherit it.
    let fd = openat(jobs, name, DIR, Mode::empty())?;
    match flock(&fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(JobLock(fd))),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Removes the files directly in a directory of ours.
fn remove_files(dir: BorrowedFd<'_>) -> io::Result<()> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let name = entry?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    for name in names {
        unlinkat(dir, &name, AtFlags::empty())?;
    }
    Ok(())
}

impl JobDir {
    /// Its name: a job's id, or a slot's with something before it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is a slot's that has no job.
    pub(crate) fn is_slots(&self) -> bool {
        self.name.starts_with(SLOT)
    }

    /// Another handle of the same directory.
    pub(crate) fn duplicate(&self) -> io::Result<Self> {
        Ok(Self { name: self.name.clone(), dir: self.dir.try_clone()? })
    }

    /// Makes the events file.
    pub(crate) fn create_events(&self) -> io::Result<Writer> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::APPEND | OFlags::CLOEXEC;
        let file = File::from(openat(&self.dir, "events", flags, Mode::RUSR | Mode::WUSR)?);
        readers::share(self.as_fd(), file.as_fd())?;
        Writer::create(file).map_err(io::Error::other)
    }

    /// Opens the events file to go on with it; what a crash has cut off at its end is removed.
    pub(crate) fn resume_events(&self) -> io::Result<Writer> {
        let flags = OFlags::RDWR | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(openat(&self.dir, "events", flags, Mode::empty())?);
        Writer::resume(file).map(|resumed| resumed.writer).map_err(io::Error::other)
    }

    /// The same of a dead supervisor's: what is damaged is removed, too. Says how many bytes that was.
    pub(crate) fn salvage_events(&self) -> io::Result<(Writer, u64)> {
        let flags = OFlags::RDWR | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(openat(&self.dir, "events", flags, Mode::empty())?);
        let salvaged = Writer::salvage(file).map_err(io::Error::other)?;
        Ok((salvaged.writer, salvaged.cut_bytes))
    }

    /// Makes everything that was created in the directory durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.dir)?)
    }

    /// A file whose length says how many bytes of outputs were copied so far: for whoever follows the job.
    pub(crate) fn outputs_length(&self) -> io::Result<File> {
        let dir = openat(&self.dir, "outputs", DIR, Mode::empty())?;
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&dir, "length", flags, Mode::RUSR | Mode::WUSR)?;
        readers::share(dir.as_fd(), file.as_fd())?;
        Ok(File::from(file))
    }

    /// Puts a copy of what stands in the events where others read it, whole or not at all. Not durable: it can be
    /// made again. A copy that is there already stays.
    pub(crate) fn publish(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let point = |stage| fault::point(stage).map_err(io::Error::other);
        point("job directory: write a copy")?;
        let aside = format!("{name}.tmp");
        let _ = unlinkat(&self.dir, &aside, AtFlags::empty());
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = openat(&self.dir, &aside, flags, Mode::RUSR | Mode::WUSR)?;
        readers::share(self.as_fd(), file.as_fd())?;
        File::from(file).write_all(bytes)?;
        point("job directory: publish a copy")?;
        match renameat_with(&self.dir, &aside, &self.dir, name, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => Ok(unlinkat(&self.dir, &aside, AtFlags::empty())?),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Whether the report has been published.
    pub(crate) fn has_report(&self) -> bool {
        rustix::fs::accessat(&self.dir, "report.json", rustix::fs::Access::EXISTS, AtFlags::empty()).is_ok()
    }

    /// Whether the report has been published whole. A cut of power may leave a name without bytes; nobody but us writes it.
    pub(crate) fn is_reported(&self) -> bool {
        let bytes = self.read("report.json", REPORT_BYTES_MAX).unwrap_or_default();
        serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).is_ok()
    }

    /// Puts a copy in place of one that does not say what the events say.
    pub(crate) fn publish_again(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        if self.read(name, bytes.len() as u64 + 1).is_ok_and(|found| found == bytes) {
            return Ok(());
        }
        match unlinkat(&self.dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => self.publish(name, bytes),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Reads a file of the directory, bounded.
    pub(crate) fn read(&self, name: &str, limit: u64) -> io::Result<Vec<u8>> {
        read_bounded(&self.dir, name, limit)
    }

    /// What stands in the events so far. What a crash has cut off at the end is left out.
    pub(crate) fn record(&self) -> io::Result<Record> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(&self.dir, "events", flags, Mode::empty()) {
            Ok(file) => Ok(Record::read(&mut Reader::new(io::BufReader::new(File::from(file))))),
            Err(Errno::NOENT) => Ok(Record::default()),
            Err(errno) => Err(errno.into()),
        }
    }
}
