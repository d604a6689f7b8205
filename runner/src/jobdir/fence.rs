//! Jobs that are never to be admitted: a file has the name that the job's directory would have.
//!
//! Guaranteed: whoever still has a request for such a job finds the name taken, whatever kept him from looking before: the
//! name is taken by one system call, and a directory gets it by one. A fence is durable when its making returns. It is
//! lifted by the first listener after a boot, which none of those who had a request has survived.

use super::{State, read_bounded};
use ampoule_sandbox::fault;
use ampoule_spec::JobId;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;

/// Says which boot this is (random(4)).
const BOOT: &str = "/proc/sys/kernel/random/boot_id";
/// The most fences of one boot. One is made for each job that an agent had asked for when it died.
const FENCES_MAX: usize = 1 << 16;

/// Who has a name among the jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder {
    Nobody,
    /// A job, or somebody who makes or removes one.
    Directory,
    /// A fence: no job can have it.
    Fence,
}

fn boot() -> io::Result<String> {
    std::fs::read_to_string(BOOT)
}

/// Sees to it that a job is never admitted. Whether that is so now; else it has a directory.
///
/// # Errors
/// It cannot be made durable, or there are too many: whether the job is admitted yet is not known then.
pub(crate) fn fence(state: &State, job: &JobId) -> io::Result<bool> {
    match state.holder(job.as_str())? {
        Holder::Directory => return Ok(false),
        Holder::Fence => {}
        Holder::Nobody if state.fences()?.len() >= FENCES_MAX => {
            return Err(io::Error::other(format!(
                "{FENCES_MAX} jobs are fenced already; the next boot of this host lifts them"
            )));
        }
        Holder::Nobody => {
            if !state.take_name(job.as_str(), boot()?.as_bytes())?
                && state.holder(job.as_str())? != Holder::Fence
            {
                return Ok(false);
            }
        }
    }
    // Also one that somebody else has made just now is durable before anybody is told.
    state.sync()?;
    Ok(true)
}

/// Lifts those of earlier boots.
pub(crate) fn lift(state: &State) {
    let Ok(boot) = boot() else { return };
    for job in state.fences().unwrap_or_default() {
        if state.read_fence(&job, boot.len() as u64 + 1).is_ok_and(|of| of != boot.as_bytes()) {
            let _ = state.lift(&job);
        }
    }
}

impl State {
    /// The ids of all jobs that are fenced, in the same order.
    fn fences(&self) -> io::Result<Vec<JobId>> {
        self.ids(|kind| kind == FileType::RegularFile)
    }

    /// Who has a name.
    fn holder(&self, name: &str) -> io::Result<Holder> {
        match rustix::fs::statat(&self.jobs, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => Ok(Holder::Fence),
            Ok(_) => Ok(Holder::Directory),
            Err(Errno::NOENT) => Ok(Holder::Nobody),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Gives a name to a file with these bytes, if nobody has it; whether it got it. Durable with [`State::sync`].
    fn take_name(&self, name: &str, bytes: &[u8]) -> io::Result<bool> {
        let point = |stage| fault::point(stage).map_err(io::Error::other);
        point("fence: make")?;
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = File::from(openat(&self.scratch, ".", flags, Mode::RUSR | Mode::WUSR)?);
        (&file).write_all(bytes)?;
        rustix::fs::fsync(&file)?;
        point("fence: take the name")?;
        let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
        match rustix::fs::linkat(rustix::fs::CWD, unnamed, &self.jobs, name, AtFlags::SYMLINK_FOLLOW) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// What stands in a fence.
    fn read_fence(&self, job: &JobId, limit: u64) -> io::Result<Vec<u8>> {
        read_bounded(&self.jobs, job.as_str(), limit)
    }

    /// Removes a fence.
    fn lift(&self, job: &JobId) -> io::Result<()> {
        Ok(unlinkat(&self.jobs, job.as_str(), AtFlags::empty())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobdir::slot_name;
    use ampoule_spec::SlotId;

    fn state() -> (tempfile::TempDir, State) {
        let base = tempfile::tempdir().unwrap();
        std::fs::set_permissions(base.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let state = State::open(base.path(), None).unwrap();
        (base, state)
    }

    fn job(number: u8) -> JobId {
        JobId::parse(&format!("01890a5d-ac96-774b-bcce-b302099a80{number:02x}")).unwrap()
    }

    #[test]
    fn fenced_job_gets_no_directory_made_or_assigned_and_is_no_job() {
        let (base, state) = state();
        for _ in 0..2 {
            assert!(fence(&state, &job(1)).unwrap());
        }
        assert_eq!(state.create(job(1).as_str()).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        let slot = SlotId::parse("01890a5d-ac96-774b-bcce-b302099a8057").unwrap();
        let (mut dir, _lock) = state.create(&slot_name(&slot)).unwrap();
        assert_eq!(state.assign(&mut dir, &job(1)).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(state.jobs().unwrap(), []);
        state.assign(&mut dir, &job(2)).unwrap();
        // In time for the one and too late for the other.
        assert!(!fence(&state, &job(2)).unwrap());
        assert_eq!((state.jobs().unwrap(), state.fences().unwrap()), (vec![job(2)], vec![job(1)]));
        // Nothing of it lies about under another name.
        assert_eq!(std::fs::read_dir(base.path().join("scratch")).unwrap().count(), 0);
    }

    #[test]
    fn fence_is_lifted_after_a_boot_and_not_before() {
        let (base, state) = state();
        assert!(fence(&state, &job(1)).unwrap() && fence(&state, &job(2)).unwrap());
        std::fs::write(base.path().join("jobs").join(job(2).as_str()), "an earlier boot's\n").unwrap();
        lift(&state);
        assert_eq!(state.fences().unwrap(), [job(1)]);
        state.create(job(2).as_str()).unwrap();
    }
}
