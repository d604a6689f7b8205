//! A job's directory: the wire back to the agent, and what is left when everything else has crashed.
//!
//! `spec.json` (as it arrived), `events` (a journal), `outputs/`, `report.json` (by rename, never replaced).
//! A lock on the directory is held by the job's supervisor as long as it lives.

use ampoule_journal::{Next, Reader, Writer};
use ampoule_spec::{Event, FRAME_EVENT, JobId, RunReport};
use rustix::fs::{
    AtFlags, FlockOperation, Mode, OFlags, RenameFlags, flock, mkdirat, openat, renameat_with, unlinkat,
};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// The state directory: jobs and store.
#[derive(Debug)]
pub(crate) struct State {
    jobs: OwnedFd,
    /// The store's directory.
    pub(crate) store: OwnedFd,
}

/// A job's directory.
#[derive(Debug)]
pub(crate) struct JobDir {
    pub(crate) id: JobId,
    dir: OwnedFd,
}

/// A lock on a job's directory, shared by every process that inherits the descriptor.
#[derive(Debug)]
pub(crate) struct JobLock(OwnedFd);

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

/// Beginning of the name of a job's directory that is being removed; no job id begins so.
const GONE: &str = ".gone-";

const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

impl State {
    /// Opens the state directory, and makes what is missing of it.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let root = openat(rustix::fs::CWD, path, DIR, Mode::empty())?;
        let stat = rustix::fs::fstat(&root)?;
        if stat.st_uid != rustix::process::geteuid().as_raw() || stat.st_mode & 0o022 != 0 {
            let text = "the state directory belongs to somebody else or can be written by others";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
        Ok(Self { jobs: subdir(&root, "jobs")?, store: subdir(&root, "store")? })
    }

    /// Makes a job's directory. Its id must be new.
    pub(crate) fn create_job(&self, id: &JobId) -> io::Result<(JobDir, JobLock)> {
        mkdirat(&self.jobs, id.as_str(), Mode::RWXU)?;
        let dir = openat(&self.jobs, id.as_str(), DIR, Mode::empty())?;
        let lock = lock(&self.jobs, id)?.ok_or(Errno::AGAIN)?;
        mkdirat(&dir, "outputs", Mode::RWXU)?;
        Ok((JobDir { id: id.clone(), dir }, lock))
    }

    /// Opens a job's directory if nobody holds it.
    pub(crate) fn open_idle(&self, id: &JobId) -> io::Result<Option<(JobDir, JobLock)>> {
        match lock(&self.jobs, id)? {
            None => Ok(None),
            Some(lock) => {
                let dir = openat(&self.jobs, id.as_str(), DIR, Mode::empty())?;
                Ok(Some((JobDir { id: id.clone(), dir }, lock)))
            }
        }
    }

    /// The ids of all jobs that have a directory, oldest first: they begin with their time.
    pub(crate) fn jobs(&self) -> io::Result<Vec<JobId>> {
        let mut ids = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.jobs)? {
            let entry = entry?;
            ids.extend(entry.file_name().to_str().ok().and_then(|name| JobId::parse(name).ok()));
        }
        ids.sort_unstable();
        Ok(ids)
    }

    /// Removes a job's directory with everything in it: first by name, so that a crash in between leaves no job
    /// that looks like another.
    pub(crate) fn forget(&self, id: &JobId) -> io::Result<()> {
        let gone = format!("{GONE}{id}");
        renameat_with(&self.jobs, id.as_str(), &self.jobs, &gone, RenameFlags::NOREPLACE)?;
        rustix::fs::fsync(&self.jobs)?;
        self.remove(&gone)
    }

    /// Removes what a crash left of jobs that were being forgotten.
    pub(crate) fn sweep(&self) -> io::Result<()> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.jobs)? {
            names.extend(entry?.file_name().to_str().ok().filter(|n| n.starts_with(GONE)).map(str::to_owned));
        }
        names.iter().try_for_each(|name| self.remove(name))
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

fn subdir(parent: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    match mkdirat(parent, name, Mode::RWXU) {
        Ok(()) => rustix::fs::fsync(parent)?,
        Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    Ok(openat(parent, name, DIR, Mode::empty())?)
}

fn lock(jobs: &OwnedFd, id: &JobId) -> io::Result<Option<JobLock>> {
    // A description of its own: the lock lives exactly as long as the processes that inherit it.
    let fd = openat(jobs, id.as_str(), DIR, Mode::empty())?;
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
    /// Writes `spec.json`, durable once the directory is.
    pub(crate) fn write_spec(&self, bytes: &[u8]) -> io::Result<()> {
        let mut file = self.create("spec.json")?;
        file.write_all(bytes)?;
        file.sync_data()
    }

    /// Makes the events file.
    pub(crate) fn create_events(&self) -> io::Result<Writer> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::APPEND | OFlags::CLOEXEC;
        let file = File::from(openat(&self.dir, "events", flags, Mode::RUSR | Mode::WUSR)?);
        Writer::create(file).map_err(io::Error::other)
    }

    /// Makes the names of a new job durable: after its files, so that there is one commit instead of several.
    pub(crate) fn sync_new(&self, state: &State) -> io::Result<()> {
        self.sync()?;
        Ok(rustix::fs::fsync(&state.jobs)?)
    }

    /// Makes everything that was created in the directory durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.dir)?)
    }

    /// The directory for outputs.
    pub(crate) fn outputs(&self) -> io::Result<OwnedFd> {
        Ok(openat(&self.dir, "outputs", DIR, Mode::empty())?)
    }

    /// Whether the job has its report.
    pub(crate) fn has_report(&self) -> bool {
        rustix::fs::accessat(&self.dir, "report.json", rustix::fs::Access::EXISTS, AtFlags::empty()).is_ok()
    }

    /// Writes the report, durable when this returns. A report that is there is never replaced: whoever came
    /// first has said how the job ended.
    pub(crate) fn write_report(&self, report: &RunReport) -> io::Result<()> {
        let _ = unlinkat(&self.dir, "report.tmp", AtFlags::empty());
        let mut file = self.create("report.tmp")?;
        file.write_all(&serde_json::to_vec_pretty(report)?)?;
        file.sync_data()?;
        match renameat_with(&self.dir, "report.tmp", &self.dir, "report.json", RenameFlags::NOREPLACE) {
            Ok(()) => self.sync(),
            Err(Errno::EXIST) => Ok(unlinkat(&self.dir, "report.tmp", AtFlags::empty())?),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Reads a file of the directory, bounded.
    pub(crate) fn read(&self, name: &str, limit: u64) -> io::Result<Vec<u8>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut bytes = Vec::new();
        File::from(openat(&self.dir, name, flags, Mode::empty())?).take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// The lifecycle events so far. What a crash has cut off at the end is left out.
    pub(crate) fn read_events(&self) -> io::Result<Vec<Event>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(openat(&self.dir, "events", flags, Mode::empty())?);
        let mut reader = Reader::new(file);
        let mut events = Vec::new();
        while let Ok(Next::Frame(frame)) = reader.next_frame() {
            if frame.kind == FRAME_EVENT {
                events.extend(serde_json::from_slice::<Event>(&frame.payload));
            }
        }
        Ok(events)
    }

    fn create(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        Ok(File::from(openat(&self.dir, name, flags, Mode::RUSR | Mode::WUSR)?))
    }
}
