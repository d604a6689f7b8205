//! Outputs: copied by descriptor after the last process is gone, hashed while they are copied, each into an object of the
//! store's that has no name before nothing is left of the job.

mod compressor;
mod sink;
mod tree;

pub(crate) use tree::Packing;

use crate::admission::chain;
use crate::search::Found;
use ampoule_sandbox::fault;
use ampoule_spec::wire::Content;
use ampoule_spec::{
    Code, Failure, JobSpec, Limits, Output, OutputForm, OutputName, OutputReport, OutputWhen,
};
use ampoule_store::pack::Seen;
use ampoule_store::{Lease, Leaving, SealedOutput, Store, StoreError};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat, openat2};
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

/// Where outputs go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Destination<'a> {
    pub(crate) store: &'a Store,
    /// A file whose length says how many bytes have passed.
    pub(crate) length: Option<&'a File>,
}

/// What was taken out.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    pub(crate) reports: Vec<OutputReport>,
    /// By the same names: what they are in the store, without names there.
    objects: Vec<(OutputName, SealedOutput)>,
}

impl Taken {
    fn keep(&mut self, store: &Store, wanted: impl Fn(&OutputName) -> bool) {
        self.reports.retain(|report| wanted(&report.name));
        for (name, object) in std::mem::take(&mut self.objects) {
            match wanted(&name) {
                true => self.objects.push((name, object)),
                // What stays is swept.
                false => drop(store.discard_output(object)),
            }
        }
    }

    /// Gives everything that `listed` still lists its names in the store, and removes the rest. The leases keep it.
    pub(crate) fn publish(mut self, store: &Store, listed: &[OutputReport]) -> Result<Vec<Lease>, Failure> {
        self.keep(store, |name| listed.iter().any(|report| report.name == *name));
        let mut leases = Vec::new();
        for (name, object) in std::mem::take(&mut self.objects) {
            let failed = |Refused { code, reason, .. }| {
                let message = format!("output {name} cannot be taken into the store: {reason}");
                Failure::new(code, message)
            };
            fault::point("outputs: publish").map_err(|e| failed(internal(std::io::Error::other(e))))?;
            let lease = store.publish_output(object).map_err(|e| failed(of_store(&e)))?;
            leases.push(lease);
        }
        Ok(leases)
    }
}

/// Takes the outputs out; stops at the first that a successful job must have and does not.
///
/// `stop` is asked before each buffer: whatever the outputs are, the job stays cancellable and bounded in time.
pub(crate) fn collect(
    job: &JobSpec,
    succeeded: bool,
    root: BorrowedFd<'_>,
    into: Destination<'_>,
    mut budget: Budget,
    packing: Packing<'_>,
    stop: &mut dyn FnMut() -> Option<Failure>,
) -> (Taken, Option<Failure>) {
    let mut taken = Taken::default();
    let stop = Stop::new(stop, into.length);
    let store = into.store;
    for output in job.outputs.iter().filter(|o| succeeded || o.when == OutputWhen::Always) {
        match take(output, root, store, &mut budget, packing, &stop) {
            Ok((report, object)) => {
                taken.reports.push(report);
                taken.objects.push((output.name.clone(), object));
            }
            Err(Refused { code: Code::OutputMissing, .. }) if output.optional || !succeeded => {}
            Err(Refused { stopped: Some(failure), .. }) => return (taken, Some(failure)),
            Err(Refused { code, reason, .. }) => {
                let message = format!("output {} at {}: {reason}", output.name, output.path);
                // The job has failed now: what it would have given had it succeeded is not taken out.
                taken.keep(store, |name| {
                    job.outputs.iter().any(|o| o.name == *name && o.when == OutputWhen::Always)
                });
                return (taken, Some(Failure::new(code, message)));
            }
        }
    }
    (taken, None)
}

#[derive(Debug)]
struct Refused {
    code: Code,
    reason: String,
    /// Why the whole job has to stop, if that is the reason.
    stopped: Option<Failure>,
}

fn refused(reason: impl Into<String>) -> Refused {
    Refused { code: Code::OutputRefused, reason: reason.into(), stopped: None }
}

fn of_store(error: &StoreError) -> Refused {
    with_remedy(error.code(), chain(error))
}

fn take(
    output: &Output,
    root: BorrowedFd<'_>,
    store: &Store,
    budget: &mut Budget,
    packing: Packing<'_>,
    stop: &Stop<'_>,
) -> Result<(OutputReport, SealedOutput), Refused> {
    let (source, stat) = open(root, output, budget)?;
    fault::point("outputs: begin").map_err(|e| internal(std::io::Error::other(e)))?;
    let leaving = store.begin_output().map_err(|e| of_store(&e))?;
    let copied = copy(output, source, &stat, &leaving, budget, packing, stop);
    let sealed = copied.and_then(|(content, copied)| {
        searched(packing, stop)?;
        fault::point("outputs: seal").map_err(|e| internal(std::io::Error::other(e)))?;
        Ok((content, copied))
    });
    match sealed {
        Ok((content, copied)) => {
            let object = store.seal_output(leaving, content).map_err(|e| of_store(&e))?;
            let report = OutputReport {
                name: output.name.clone(),
                path: output.path.clone(),
                kind: output.kind,
                form: copied.form,
                bytes: copied.bytes,
                entries: copied.entries,
                sha256: copied.sha256,
                blake3: object.object(),
                executable: copied.executable,
            };
            Ok((report, object))
        }
        Err(refused) => {
            // What stays is swept.
            let _ = store.give_up(leaving);
            Err(refused)
        }
    }
}

/// Refuses what has a secret in it. What it is or where is not said: that would be told to everybody who reads the report.
fn searched(packing: Packing<'_>, stop: &Stop<'_>) -> Result<(), Refused> {
    let Some(search) = packing.search else { return Ok(()) };
    let found = search.found(&|| stop.check(0)).map_err(|error| match stop.take() {
        Some(failure) => Refused { stopped: Some(failure), ..refused("stopped") },
        None => internal(error),
    });
    match found? {
        Found::Nothing => Ok(()),
        Found::Secret(name) => Err(Refused {
            code: Code::SecretInOutput,
            reason: format!(
                "secret {name}, a part of it or an encoding is in it, or in a name; it is not taken out. Keep it out of what the \
                 job leaves; if it was a part that is no secret, have the operator name a field"
            ),
            stopped: None,
        }),
        Found::Unknown => {
            Err(refused("the job's steps had more secrets than outputs can be searched for; name fewer"))
        }
        Found::Unfollowed => Err(refused(
            "more beginnings of secrets are in it than can be followed at once, as of values that repeat themselves; have the \
             operator replace such a value",
        )),
    }
}

/// What was copied.
struct Copied {
    form: OutputForm,
    bytes: u64,
    entries: Option<u64>,
    sha256: ampoule_spec::Sha256,
    executable: bool,
}

/// Copies what was opened, and says under which name the store is to have it.
fn copy(
    output: &Output,
    source: OwnedFd,
    stat: &Stat,
    leaving: &Leaving,
    budget: &mut Budget,
    packing: Packing<'_>,
    stop: &Stop<'_>,
) -> Result<(Content, Copied), Refused> {
    let epoch = packing.epoch;
    let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    let executable = !is_directory && stat.st_mode & 0o100 != 0;
    if is_directory && output.form != Some(OutputForm::TarZst) {
        let packed = tree::copy(source.as_fd(), leaving, packing, budget, stop)?;
        budget.entries = budget.entries.saturating_sub(packed.entries);
        budget.bytes = budget.bytes.saturating_sub(packed.bytes);
        let (form, entries) = (OutputForm::Tree, Some(packed.entries));
        let copied = Copied { form, bytes: packed.bytes, entries, sha256: packed.tree, executable };
        return Ok((Content::Directory { tree: Some(packed.tree), epoch }, copied));
    }
    let file = leaving.file().map_err(|e| of_store(&e))?;
    let (form, entries, sunk) = if is_directory {
        let (packed, sunk) = tree::compress(source.as_fd(), file, packing, budget, stop)?;
        budget.entries = budget.entries.saturating_sub(packed.entries);
        budget.bytes = budget.bytes.saturating_sub(packed.bytes);
        (OutputForm::TarZst, Some(packed.entries), sunk)
    } else {
        let sunk = copy_hashed(File::from(source), file, budget, packing, stop)?;
        budget.bytes = budget.bytes.saturating_sub(sunk.bytes);
        (OutputForm::File, None, sunk)
    };
    let copied = Copied { form, bytes: sunk.bytes, entries, sha256: sunk.sha256, executable };
    Ok((Content::File { sha256: Some(sunk.sha256), executable, epoch }, copied))
}

/// What failed on our side.
fn internal(error: std::io::Error) -> Refused {
    let is_full = matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
    let code = if is_full { Code::StoreFull } else { Code::Internal };
    with_remedy(code, format!("it cannot be copied: {error}"))
}

/// A disk that is full is no fault of the job's; it is said what helps.
fn with_remedy(code: Code, mut reason: String) -> Refused {
    if code == Code::StoreFull {
        reason += "; remove what is not needed (ampoule store gc --max-size SIZE), or give the state directory more room";
    }
    Refused { code, reason, stopped: None }
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
fn copy_hashed(
    mut from: File,
    into: File,
    budget: &Budget,
    packing: Packing<'_>,
    stop: &Stop<'_>,
) -> Result<Sunk, Refused> {
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
            if let Err(error) = packing.show(Seen::Bytes(part), stop).and_then(|()| sink.write_all(part)) {
                break Err(error);
            }
        }
    };
    copied.map_err(|error| match stop.take() {
        Some(failure) => Refused { stopped: Some(failure), ..refused("stopped") },
        None if error.kind() == ErrorKind::FileTooLarge => refused("it grew while it was copied"),
        None => internal(error),
    })
}

#[cfg(test)]
#[path = "outputs_tests.rs"]
mod tests;
