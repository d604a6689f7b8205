//! Imports: the launcher hashes and commits, a worker that is confined to one directory parses.
//!
//! The worker has a user namespace, a network namespace without network and a pid namespace of its own, two
//! pipes and one directory (Landlock). What a hostile archive could win in it is said in `ampoule_store::worker`.

use crate::admission::{Refusal, chain, is_privileged, refuse};
use crate::holdings::Holdings;
use ampoule_ipc::Channel;
use ampoule_sandbox::confine;
use ampoule_sandbox::fault;
use ampoule_sandbox::identity::{BLOCK_IDS, IMPORT_BASE};
use ampoule_sandbox::userns::write_maps;
use ampoule_spec::wire::{Content, Imported};
use ampoule_spec::{Code, GIT_PROOF_BYTES_MAX, GitProof, ReadPolicy};
use ampoule_store::worker::{self, RESULT_BYTES_MAX, WorkerResult};
use ampoule_store::{Limits, Needed, Owner, Store, StoreError, receive};
use ampoule_sys::process::{Child, End, Keep, Namespaces, Waited, Which, spawn, wait};
use rustix::fs::FileType;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, pidfd_send_signal};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The size of the pipe to a worker.
const PIPE_BYTES: usize = 1 << 20;
/// The exit status of a worker that has not read anything yet.
const UNCONFINED: i32 = 70;
/// With less room than this an import that failed is taken to have failed of that.
const LEAST_ROOM: u64 = 1 << 20;

/// Whose the files of the store are.
pub(crate) fn owner() -> Owner {
    if is_privileged() { Owner::Mapped { base: IMPORT_BASE } } else { Owner::Own }
}

fn store_refusal(error: &StoreError) -> Refusal {
    refuse(error.code(), chain(error))
}

/// Reads what shows that a checkout is its commit's.
pub(crate) fn proof(file: OwnedFd) -> Result<GitProof, Refusal> {
    let wrong = |text: String| refuse(Code::JobInvalid, format!("the commit objects: {text}"));
    let mut bytes = Vec::new();
    let read = File::from(file).take(GIT_PROOF_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|e| wrong(e.to_string()))?;
    if bytes.len() as u64 > GIT_PROOF_BYTES_MAX {
        return Err(wrong(format!("more than {GIT_PROOF_BYTES_MAX} bytes")));
    }
    serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))
}

/// A source is a file or a pipe: a device never ends, and a directory cannot be read. A file that is larger than an
/// import may be is refused before a byte of it is read.
pub(crate) fn examine(source: &OwnedFd, store: &Store) -> Result<(), Refusal> {
    let stat = rustix::fs::fstat(source).map_err(|e| refuse(Code::JobInvalid, format!("the bytes: {e}")))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo => Ok(()),
        FileType::RegularFile => {
            let bytes_max = store.limits().stream_bytes_max();
            if u64::try_from(stat.st_size).is_ok_and(|bytes| bytes <= bytes_max) {
                return Ok(());
            }
            let text = format!("the source has {} bytes; at most {bytes_max} are taken", stat.st_size);
            Err(refuse(Code::InputRefused, text))
        }
        _ => {
            Err(refuse(Code::JobInvalid, "the bytes came as a descriptor that is neither a file nor a pipe"))
        }
    }
}

/// Takes what `source` gives into the store, unless it is there, and holds it for the client. A [`Content::Git`] comes
/// with a proof.
pub(crate) fn import(
    store: &Store,
    holdings: &mut Holdings,
    content: &Content,
    source: OwnedFd,
    proof: Option<GitProof>,
) -> Result<Imported, Refusal> {
    let policy = ReadPolicy::default();
    let own = |needed: Vec<Needed>| needed.into_iter().next().map(|own| own.imported);
    if let Some(imported) = holdings.take(store, content, policy)?.and_then(own) {
        return Ok(imported);
    }
    let imported = receive_into(store, content, source, proof)?;
    // Nobody collects it before the job that it is for.
    let held = holdings.take(store, &named(content, &imported), policy)?.and_then(own);
    held.ok_or_else(|| {
        refuse(Code::InputDamaged, "what was taken in is not in the store any more; run again")
    })
}

/// A content with the digest that it was found to have.
fn named(content: &Content, imported: &Imported) -> Content {
    match content {
        Content::Directory { epoch, .. } => Content::Directory { tree: Some(imported.sha256), epoch: *epoch },
        Content::File { executable, epoch, .. } => {
            Content::File { sha256: Some(imported.sha256), executable: *executable, epoch: *epoch }
        }
        other => other.clone(),
    }
}

/// A source that ends as soon as there is no room for more: what else is imported meanwhile takes room too.
struct Watched<'a> {
    source: File,
    store: &'a Store,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.store.limits_now().is_err() {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.source.read(buffer)
    }
}

/// Why an import failed, if it is that there is no room any more. To be asked before what it has made is removed.
fn no_room(store: &Store, limits: &Limits, answer: Option<&WorkerResult>) -> Option<Refusal> {
    let room = store.room().ok()?;
    let too_large = matches!(answer, Some(WorkerResult::Refused { name, .. }) if name == "too_large");
    // More than there was room for is no fault of the content's.
    let is_short = too_large && limits.bytes_max < store.limits().bytes_max;
    let is_full = room.for_import().is_none_or(|left| left < LEAST_ROOM);
    let full = StoreError::Full { free: room.free, reserve: room.reserve };
    (is_short || is_full).then(|| store_refusal(&full))
}

fn receive_into(
    store: &Store,
    content: &Content,
    source: OwnedFd,
    proof: Option<GitProof>,
) -> Result<Imported, Refusal> {
    let limits = store.limits_now().map_err(|e| store_refusal(&e))?;
    let io = |what: &'static str| {
        move |e: rustix::io::Errno| refuse(Code::Internal, format!("import: {what}: {e}"))
    };
    let (source_read, source_write) = pipe_with(PipeFlags::CLOEXEC).map_err(io("pipe"))?;
    let (result_read, result_write) = pipe_with(PipeFlags::CLOEXEC).map_err(io("pipe"))?;
    // Fewer turns of three processes. A user may have used up what he may have of larger pipes.
    let _ = rustix::pipe::fcntl_setpipe_size(&source_write, PIPE_BYTES);
    let mut staging = store.begin(content).map_err(|e| store_refusal(&e))?;
    if let Some(proof) = proof {
        staging.prove(proof);
    }
    let dir = staging.worker_dir().map_err(|e| store_refusal(&e))?;
    let started = start(content, source_read, dir, result_write, &limits);
    let worker = match started {
        Ok(worker) => worker,
        Err(refusal) => {
            let _ = store.discard(staging);
            return Err(refusal);
        }
    };
    let source = Watched { source: File::from(source), store };
    let received = receive(source, File::from(source_write), store.limits().stream_bytes_max());
    let mut answer = Vec::new();
    let read = File::from(result_read).take(RESULT_BYTES_MAX as u64 + 1).read_to_end(&mut answer);
    let ended = end(&worker);
    let unconfined = ended == Some(End::Exited(UNCONFINED));
    let outcome = match (received, read) {
        _ if unconfined => {
            Err(refuse(Code::Internal, "import: the worker could not confine itself".to_owned()))
        }
        (Err(error), _) => {
            let code = match error {
                ampoule_store::ReceiveError::TooLarge { .. } => Code::InputRefused,
                ampoule_store::ReceiveError::Source(_) => Code::InputUnreachable,
                _ => Code::Internal,
            };
            Err(refuse(code, chain(&error)))
        }
        (Ok(_), Err(error)) => Err(refuse(Code::Internal, format!("import: the worker's answer: {error}"))),
        (Ok(received), Ok(_)) => match WorkerResult::from_json(&answer) {
            Ok(result) => {
                let no_room = no_room(store, &limits, Some(&result));
                return store.commit(staging, &result, &received).map_err(|error| match no_room {
                    Some(full) if error.code() != Code::InputDigestMismatch => full,
                    _ => store_refusal(&error),
                });
            }
            Err(reason) if ended == Some(End::Signalled(Signal::KILL.as_raw())) => {
                let text =
                    format!("somebody killed the import worker, or the kernel for want of memory: {reason}");
                Err(refuse(Code::JobAborted, text))
            }
            // It died of a limit or of what it read.
            Err(reason) => Err(refuse(Code::InputRefused, format!("the import worker failed: {reason}"))),
        },
    };
    let outcome = outcome.map_err(|refusal| no_room(store, &limits, None).unwrap_or(refusal));
    let _ = store.discard(staging);
    outcome
}

/// Kills and reaps the worker: nobody writes to the staging directory any more. Says how it ended.
fn end(worker: &Child) -> Option<End> {
    let _ = pidfd_send_signal(&worker.pidfd, Signal::KILL);
    match wait(Which::Pid(worker.pid), true) {
        Ok(Waited::Reaped(reaped)) => Some(reaped.end),
        _ => None,
    }
}

fn start(
    content: &Content,
    source: OwnedFd,
    dir: OwnedFd,
    result: OwnedFd,
    limits: &Limits,
) -> Result<Child, Refusal> {
    let (mine, theirs) = Channel::pair().map_err(|e| refuse(Code::Internal, chain(&e)))?;
    let namespaces = Namespaces { user: true, net: true, pid: true, ipc: true, ..Namespaces::default() };
    let privileged = is_privileged();
    let keep = [source.as_fd(), dir.as_fd(), result.as_fd(), theirs.as_fd()];
    let child = spawn(namespaces, None, Keep::Only(&keep), || {
        fault::role("import");
        let Ok((source, dir, result)) = duplicate(&source, &dir, &result) else { return UNCONFINED };
        if confine(&theirs, &dir, privileged, limits).is_err() {
            return UNCONFINED;
        }
        // Errors are those of the sync at the end.
        let whole = |file: BorrowedFd<'_>| drop(ampoule_sys::writeback::begin(file));
        let answer = worker::run_with(content, source, dir, limits, whole).to_json();
        i32::from(File::from(result).write_all(&answer).is_err())
    })
    .map_err(|e| {
        let text = format!("the import worker cannot have a user namespace of its own: {e}");
        refuse(Code::SandboxUnsupported, text)
    })?;
    let (uid_map, gid_map) = maps();
    let mapped = write_maps(child.pid, &uid_map, &gid_map, !is_privileged())
        .map_err(|e| refuse(Code::Internal, format!("import: id maps: {e}")))
        .and_then(|()| mine.send(&(), &[]).map_err(|e| refuse(Code::Internal, chain(&e))));
    match mapped {
        Ok(()) => Ok(child),
        Err(refusal) => {
            end(&child);
            Err(refusal)
        }
    }
}

fn maps() -> (String, String) {
    if is_privileged() {
        let line = format!("0 {IMPORT_BASE} {BLOCK_IDS}\n");
        return (line.clone(), line);
    }
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    (format!("0 {uid} 1\n"), format!("0 {gid} 1\n"))
}

fn duplicate(a: &OwnedFd, b: &OwnedFd, c: &OwnedFd) -> std::io::Result<(OwnedFd, OwnedFd, OwnedFd)> {
    Ok((a.try_clone()?, b.try_clone()?, c.try_clone()?))
}

/// Runs in the worker: waits for its ids, takes them, and gives up everything but its directory.
fn confine(channel: &Channel, dir: &OwnedFd, privileged: bool, limits: &Limits) -> Result<(), String> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(|e| e.to_string())?;
    channel.receive::<()>().map_err(|e| e.to_string())?;
    if privileged {
        let (uid, gid) = (nix::unistd::Uid::from_raw(0), nix::unistd::Gid::from_raw(0));
        nix::unistd::setgroups(&[]).map_err(|e| e.to_string())?;
        nix::unistd::setresgid(gid, gid, gid).map_err(|e| e.to_string())?;
        nix::unistd::setresuid(uid, uid, uid).map_err(|e| e.to_string())?;
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(|e| e.to_string())?;
    }
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(|e| e.to_string())?;
    confine::limit_worker(limits.bytes_max).map_err(|e| e.to_string())?;
    confine::confine_to_directory(dir.as_fd()).map_err(|e| e.to_string())
}
