//! Outputs: copied by descriptor after the last process is gone, hashed while they are copied.

use ampoule_spec::{Blake3, Code, Failure, JobSpec, Output, OutputReport, OutputWhen, SandboxPath, Sha256};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;
use sha2::{Digest, Sha256 as Hasher};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

/// Bytes read at a time.
const BUFFER_BYTES: usize = 256 << 10;

/// How long taking the outputs out may last.
pub(crate) const TIME_LIMIT: Duration = Duration::from_secs(600);

/// Takes the outputs out; stops at the first that a successful job must have and does not.
///
/// `stop` is asked before each buffer: whatever the outputs are, the job stays cancellable and bounded in time.
pub(crate) fn collect(
    job: &JobSpec,
    succeeded: bool,
    root: BorrowedFd<'_>,
    into: BorrowedFd<'_>,
    bytes_max: u64,
    stop: &mut dyn FnMut() -> Option<Failure>,
) -> (Vec<OutputReport>, Option<Failure>) {
    let mut taken = Vec::new();
    let mut left = bytes_max;
    for output in job.outputs.iter().filter(|o| succeeded || o.when == OutputWhen::Always) {
        match take(output, root, into, left, stop) {
            Ok(report) => {
                left = left.saturating_sub(report.bytes);
                taken.push(report);
            }
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
    bytes_max: u64,
    stop: &mut dyn FnMut() -> Option<Failure>,
) -> Result<OutputReport, Refused> {
    let source = open_plain(root, &output.path, bytes_max)?;
    let stat = rustix::fs::fstat(&source).map_err(|e| refused(e.to_string()))?;
    let executable = stat.st_mode & 0o100 != 0;
    let mode = Mode::from_raw_mode(if executable { 0o700 } else { 0o600 });
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let copy = openat(into, output.name.as_str(), flags, mode).map_err(|e| internal(e.into()))?;
    let mut copy = File::from(copy);
    let (bytes, sha256, blake3) = copy_hashed(File::from(source), &mut copy, bytes_max, stop)?;
    copy.sync_data().map_err(internal)?;
    Ok(OutputReport {
        name: output.name.clone(),
        path: output.path.clone(),
        kind: output.kind,
        bytes,
        sha256,
        blake3,
        executable,
    })
}

fn internal(error: std::io::Error) -> Refused {
    Refused { code: Code::Internal, reason: format!("it cannot be copied: {error}"), stopped: None }
}

/// Opens a plain file below the sandbox's root without following anything.
fn open_plain(root: BorrowedFd<'_>, path: &SandboxPath, bytes_max: u64) -> Result<OwnedFd, Refused> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    // First only a handle: opening a FIFO would wait, opening a device would act.
    let look = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found =
        openat2(root, path.relative(), look, Mode::empty(), resolve).map_err(|errno| match errno {
            Errno::NOENT | Errno::NOTDIR => {
                Refused { code: Code::OutputMissing, reason: "no step has made it".to_owned(), stopped: None }
            }
            Errno::LOOP => refused("there is a symbolic link on the way; name the file itself"),
            errno => refused(errno.to_string()),
        })?;
    let stat = rustix::fs::fstat(&found).map_err(|e| refused(e.to_string()))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::Symlink => return Err(refused("it is a symbolic link; name the file itself")),
        FileType::Directory => {
            return Err(refused("it is a directory; this version takes files, so pack it in a step"));
        }
        FileType::CharacterDevice | FileType::BlockDevice => return Err(refused("it is a device")),
        FileType::Fifo => return Err(refused("it is a named pipe")),
        FileType::Socket => return Err(refused("it is a socket")),
        FileType::Unknown => return Err(refused("it is of an unknown type")),
    }
    if stat.st_mode & 0o6000 != 0 {
        return Err(refused("it has a set-user-id or set-group-id bit; remove it with chmod"));
    }
    if u64::try_from(stat.st_size).unwrap_or(u64::MAX) > bytes_max {
        return Err(refused(format!("outputs are larger than limits.disk allows ({bytes_max} bytes left)")));
    }
    if rustix::fs::fstatfs(&found).is_ok_and(|fs| fs.f_type == rustix::fs::PROC_SUPER_MAGIC) {
        return Err(refused("it lies in /proc"));
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened =
        openat2(root, path.relative(), flags, Mode::empty(), resolve).map_err(|e| refused(e.to_string()))?;
    let again = rustix::fs::fstat(&opened).map_err(|e| refused(e.to_string()))?;
    if (again.st_dev, again.st_ino) != (stat.st_dev, stat.st_ino) {
        return Err(refused("it changed while it was opened"));
    }
    Ok(opened)
}

/// Copies and hashes in one pass. Runs of zeros become holes, so that a sparse file does not fill the host.
fn copy_hashed(
    mut from: File,
    into: &mut File,
    bytes_max: u64,
    stop: &mut dyn FnMut() -> Option<Failure>,
) -> Result<(u64, Sha256, Blake3), Refused> {
    let (mut sha256, mut blake3) = (Hasher::new(), blake3::Hasher::new());
    let mut buffer = vec![0_u8; BUFFER_BYTES];
    let mut bytes = 0_u64;
    loop {
        if let Some(failure) = stop() {
            return Err(Refused { stopped: Some(failure), ..refused("stopped") });
        }
        let count = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(internal(error)),
        };
        let part = buffer.get(..count).unwrap_or_default();
        bytes += count as u64;
        if bytes > bytes_max {
            return Err(refused("it grew while it was copied"));
        }
        sha256.update(part);
        blake3.update(part);
        if part.iter().all(|byte| *byte == 0) {
            into.seek(SeekFrom::Current(i64::try_from(count).unwrap_or(0))).map_err(internal)?;
        } else {
            into.write_all(part).map_err(internal)?;
        }
    }
    into.set_len(bytes).map_err(internal)?;
    Ok((bytes, Sha256::new(sha256.finalize().into()), Blake3::new(*blake3.finalize().as_bytes())))
}

#[cfg(test)]
#[path = "outputs_tests.rs"]
mod tests;
