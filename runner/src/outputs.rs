//! Outputs: copied by descriptor after the last process is gone, hashed while they are copied.

mod compressor;
mod sink;
mod tree;

pub(crate) use tree::Packing;

use ampoule_spec::{
    Blake3, Code, Failure, JobSpec, Limits, Output, OutputForm, OutputReport, OutputWhen, Sha256,
};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat, openat, openat2};
use rustix::io::Errno;
use sink::{Sink, Stop, Sunk};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// Bytes read at a time.
const BUFFER_BYTES: usize = 256 << 10;

/// How long taking the outputs out may last.
pub(crate) const TIME_LIMIT: Duration = Duration::from_secs(600);

/// What all outputs together may still have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    /// Bytes.
    pub(crate) bytes: u64,
    /// Entries of directories.
    pub(crate) entries: u64,
}

impl Budget {
    /// The most that a job with these limits may take out: what its writable layer could hold. A tree has at most so
    /// many entries that it can be an input again.
    pub(crate) fn of(limits: &Limits) -> Self {
        let entries = ampoule_store::Limits::default().entries_max;
        Self { bytes: limits.disk_bytes, entries: limits.disk_inodes.min(entries) }
    }

    fn too_large(&self) -> Refused {
        refused(format!("outputs are larger than limits.disk allows ({} bytes left)", self.bytes))
    }
}

/// Takes the outputs out; stops at the first that a successful job must have and does not.
///
/// `stop` is asked before each buffer: whatever the outputs are, the job stays cancellable and bounded in time.
pub(crate) fn collect(
    job: &JobSpec,
    succeeded: bool,
    root: BorrowedFd<'_>,
    into: BorrowedFd<'_>,
    mut budget: Budget,
    packing: Packing,
    stop: &mut dyn FnMut() -> Option<Failure>,
) -> (Vec<OutputReport>, Option<Failure>) {
    let mut taken = Vec::new();
    let mut stop = Stop::new(stop);
    for output in job.outputs.iter().filter(|o| succeeded || o.when == OutputWhen::Always) {
        match take(output, root, into, &mut budget, packing, &mut stop) {
            Ok(report) => taken.push(report),
            Err(Refused { code: Code::OutputMissing, .. }) if output.optional || !succeeded => {}
            Err(Refused { stopped: Some(failure), .. }) => return (taken, Some(failure)),
            Err(Refused { code, reason, .. }) => {
                let message = format!("output {} at {}: {reason}", output.name, output.path);
                // The job has failed now: what it would have given had it succeeded is not taken out.
                taken.retain(|report| {
                    job.outputs.iter().any(|o| o.name == report.name && o.when == OutputWhen::Always)
                });
                return (taken, Some(Failure { code, message, step: None, teardown: None }));
            }
        }
    }
    (taken, None)
}

struct Refused {
    code: Code,
    reason: String,
    /// Why the whole job has to stop, if that is the reason.
    stopped: Option<Failure>,
}

fn refused(reason: impl Into<String>) -> Refused {
    Refused { code: Code::OutputRefused, reason: reason.into(), stopped: None }
}

fn take(
    output: &Output,
    root: BorrowedFd<'_>,
    into: BorrowedFd<'_>,
    budget: &mut Budget,
    packing: Packing,
    stop: &mut Stop<'_>,
) -> Result<OutputReport, Refused> {
    let (source, stat) = open(root, output, budget)?;
    let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    let executable = !is_directory && stat.st_mode & 0o100 != 0;
    let mode = Mode::from_raw_mode(if executable { 0o700 } else { 0o600 });
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let copy = openat(into, output.name.as_str(), flags, mode).map_err(|e| internal(e.into()))?;
    crate::readers::share(into, copy.as_fd()).map_err(internal)?;
    let copy = File::from(copy);
    let mut report = OutputReport {
        name: output.name.clone(),
        path: output.path.clone(),
        kind: output.kind,
        form: output.form.unwrap_or(if is_directory { OutputForm::Tree } else { OutputForm::File }),
        bytes: 0,
        entries: None,
        sha256: Sha256::new([0; 32]),
        blake3: Blake3::new([0; 32]),
        executable,
    };
    let sunk = if is_directory {
        let (packed, sunk) = tree::take(source.as_fd(), report.form, copy, packing, budget, stop)?;
        budget.entries = budget.entries.saturating_sub(packed.entries);
        budget.bytes = budget.bytes.saturating_sub(packed.bytes);
        report.entries = Some(packed.entries);
        (report.bytes, report.sha256) = match report.form {
            OutputForm::TarZst => (sunk.bytes, sunk.sha256),
            OutputForm::File | OutputForm::Tree => (packed.bytes, packed.tree),
        };
        sunk
    } else {
        let sunk = copy_hashed(File::from(source), copy, budget, stop)?;
        budget.bytes = budget.bytes.saturating_sub(sunk.bytes);
        (report.bytes, report.sha256) = (sunk.bytes, sunk.sha256);
        sunk
    };
    report.blake3 = sunk.blake3;
    Ok(report)
}

fn internal(error: std::io::Error) -> Refused {
    Refused { code: Code::Internal, reason: format!("it cannot be copied: {error}"), stopped: None }
}

/// Opens what lies at an output's path, below the sandbox's root, without following anything; only a file or
/// directory, and only one of the form that was asked for.
fn open(root: BorrowedFd<'_>, output: &Output, budget: &Budget) -> Result<(OwnedFd, Stat), Refused> {
    let path = output.path.relative();
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    // First only a handle: opening a FIFO would wait, opening a device would act.
    let look = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = openat2(root, path, look, Mode::empty(), resolve).map_err(|errno| match errno {
        Errno::NOENT | Errno::NOTDIR => {
            Refused { code: Code::OutputMissing, reason: "no step has made it".to_owned(), stopped: None }
        }
        Errno::LOOP => refused("there is a symbolic link on the way; name the file itself"),
        errno => refused(errno.to_string()),
    })?;
    let stat = rustix::fs::fstat(&found).map_err(|e| refused(e.to_string()))?;
    let kind = match (FileType::from_raw_mode(stat.st_mode), output.form) {
        (FileType::RegularFile, None | Some(OutputForm::File)) => OFlags::NONBLOCK,
        (FileType::Directory, None | Some(OutputForm::Tree | OutputForm::TarZst)) => OFlags::DIRECTORY,
        (FileType::RegularFile, Some(_)) => {
            return Err(refused("it is a file; leave `form` out, or name a directory"));
        }
        (FileType::Directory, Some(OutputForm::File)) => {
            return Err(refused("it is a directory; `form` can be \"tree\" or \"tar.zst\""));
        }
        (FileType::Symlink, _) => return Err(refused("it is a symbolic link; name the file itself")),
        (FileType::CharacterDevice | FileType::BlockDevice, _) => return Err(refused("it is a device")),
        (FileType::Fifo, _) => return Err(refused("it is a named pipe")),
        (FileType::Socket, _) => return Err(refused("it is a socket")),
        (FileType::Unknown, _) => return Err(refused("it is of an unknown type")),
    };
    if kind != OFlags::DIRECTORY {
        if stat.st_mode & 0o6000 != 0 {
            return Err(refused("it has a set-user-id or set-group-id bit; remove it with chmod"));
        }
        if u64::try_from(stat.st_size).unwrap_or(u64::MAX) > budget.bytes {
            return Err(budget.too_large());
        }
    }
    if rustix::fs::fstatfs(&found).is_ok_and(|fs| fs.f_type == rustix::fs::PROC_SUPER_MAGIC) {
        return Err(refused("it lies in /proc"));
    }
    let flags = kind | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = openat2(root, path, flags, Mode::empty(), resolve).map_err(|e| refused(e.to_string()))?;
    let again = rustix::fs::fstat(&opened).map_err(|e| refused(e.to_string()))?;
    if (again.st_dev, again.st_ino) != (stat.st_dev, stat.st_ino) {
        return Err(refused("it changed while it was opened"));
    }
    Ok((opened, again))
}

/// Copies a file and hashes it in one pass.
fn copy_hashed(mut from: File, into: File, budget: &Budget, stop: &mut Stop<'_>) -> Result<Sunk, Refused> {
    let copied = {
        let mut sink = Sink::new(into, budget.bytes, stop);
        let mut buffer = vec![0_u8; BUFFER_BYTES];
        loop {
            let part = match from.read(&mut buffer) {
                Ok(0) => break sink.check().and_then(|()| sink.finish()),
                Ok(count) => buffer.get(..count).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => break Err(error),
            };
            if let Err(error) = sink.write_all(part) {
                break Err(error);
            }
        }
    };
    copied.map_err(|error| match stop.said.take() {
        Some(failure) => Refused { stopped: Some(failure), ..refused("stopped") },
        None if error.kind() == ErrorKind::FileTooLarge => refused("it grew while it was copied"),
        None => internal(error),
    })
}

#[cfg(test)]
#[path = "outputs_tests.rs"]
mod tests;
