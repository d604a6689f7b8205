//! The tree digest of a directory that stays where it is, by as many threads as there are processors.
//!
//! One thread walks and feeds each directory's digest in the order of names; files are read in batches of one directory, by
//! whoever claims a batch first: a thread, or the walker when it comes to it and nobody has begun.

use crate::digest::{FileHasher, NodeKind, WorldNode};
use crate::entry_path::EntryPath;
use crate::limits::{Limits, TARGET_BYTES_MAX};
use crate::pack::{PackError, Packed, failed, same};
use crate::refusal::{Refusal, shown};
use crate::walk::{Step, Walk, WalkError};
use ampoule_spec::Sha256;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{Builder, Scope};

/// The most files of a batch.
const BATCH_FILES: usize = 64;
/// Fewer are read by the walker: waking somebody takes as long.
const HANDED_FILES: usize = 8;
/// Batches that wait for a thread.
const BATCHES: usize = 8;
/// The most events that wait for one before them: what bounds the memory when one file is very large.
const WAITING_MAX: usize = 4096;
/// The most threads for one directory.
const THREADS_MAX: usize = 4;

/// Whether a path (of a directory or not) is left out.
type Exclude<'a> = &'a (dyn Fn(&[u8], bool) -> bool + Sync);

/// The tree digest of a directory, as [`pack_filtered`](crate::pack::pack_filtered) gives it with the same rules, and nothing
/// else. `stop` is asked now and then.
///
/// # Errors
/// [`PackError`]; [`PackError::Stopped`] if `stop` said so.
pub fn tree_digest(
    dir: BorrowedFd<'_>,
    exclude: Exclude<'_>,
    stop: &(dyn Fn() -> bool + Sync),
    limits: &Limits,
) -> Result<Packed, PackError> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
    let bounds = Bounds { limits: *limits, bytes: AtomicU64::new(0), stop };
    std::thread::scope(|scope| {
        let packed = Packed { tree: Sha256::new([0; 32]), bytes: 0, entries: 0 };
        let mut reading = Reading {
            bounds: &bounds,
            exclude,
            hasher: FileHasher::new(),
            batches: start(scope, &bounds, threads),
            batch: None,
            events: VecDeque::new(),
            nodes: vec![WorldNode::new()],
            packed,
        };
        let walked = reading.walk(dir);
        reading.hand_on();
        // What is wrong with an entry before the one that ended the walk is said, whoever reads it when.
        reading.settle(0)?;
        walked?;
        reading.packed.bytes = bounds.bytes.load(Ordering::Relaxed);
        Ok(reading.packed)
    })
}

/// What holds for all threads together.
struct Bounds<'a> {
    limits: Limits,
    bytes: AtomicU64,
    stop: &'a (dyn Fn() -> bool + Sync),
}

/// A file's digest, and whether it may be executed.
type Read1 = Result<(NodeKind, Sha256), PackError>;

/// Files of one directory.
struct Batch {
    dir: Arc<OwnedFd>,
    /// The directory's path with a slash behind it, or nothing.
    prefix: Vec<u8>,
    names: Vec<Vec<u8>>,
    claimed: AtomicBool,
    read: Mutex<Option<VecDeque<Read1>>>,
    done: Condvar,
}

/// Says at its end that a batch is read, however that went: somebody waits for it.
struct Claim<'a>(&'a Batch, VecDeque<Read1>);

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        *self.0.read.lock().unwrap_or_else(PoisonError::into_inner) = Some(std::mem::take(&mut self.1));
        self.0.done.notify_one();
    }
}

impl Batch {
    /// Reads it, unless somebody else does.
    fn read(&self, bounds: &Bounds<'_>, hasher: &mut FileHasher) {
        if self.claimed.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut claim = Claim(self, VecDeque::with_capacity(self.names.len()));
        for name in &self.names {
            let read =
                if (bounds.stop)() { Err(PackError::Stopped) } else { self.file(bounds, hasher, name) };
            let failed = read.is_err();
            claim.1.push_back(read);
            if failed {
                return;
            }
        }
    }

    /// What was read.
    fn wait(&self) -> VecDeque<Read1> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(read) = read.take() {
                return read;
            }
            read = self.done.wait(read).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn is_read(&self) -> bool {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn path(&self, name: &[u8]) -> Vec<u8> {
        [self.prefix.as_slice(), name].concat()
    }

    fn file(&self, bounds: &Bounds<'_>, hasher: &mut FileHasher, name: &[u8]) -> Read1 {
        let failed = |errno| failed(&self.path(name))(errno);
        let changed = || PackError::Changed { path: shown(&self.path(name)) };
        // Without O_NONBLOCK, a FIFO that took the file's place would hang us.
        let file = open(self.dir.as_fd(), name, OFlags::NONBLOCK).map_err(failed)?;
        let before = rustix::fs::fstat(&file).map_err(failed)?;
        if FileType::from_raw_mode(before.st_mode) != FileType::RegularFile {
            return Err(changed());
        }
        let size = u64::try_from(before.st_size).unwrap_or(0);
        let bytes_max = bounds.limits.bytes_max;
        let bytes = bounds.bytes.fetch_add(size, Ordering::Relaxed);
        if bytes.checked_add(size).is_none_or(|bytes| bytes > bytes_max) {
            return Err(Refusal::TooLarge { bytes_max }.into());
        }
        let file = File::from(file);
        let until = Until { from: (&file).take(size), stop: bounds.stop };
        let hashed = hasher.sha256(until, size);
        if (bounds.stop)() {
            return Err(PackError::Stopped);
        }
        let (digest, bytes) =
            hashed.map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        let after = rustix::fs::fstat(&file).map_err(failed)?;
        if bytes != size || !same(&before, &after) {
            return Err(changed());
        }
        let executable = before.st_mode & 0o100 != 0;
        Ok((if executable { NodeKind::Executable } else { NodeKind::File }, digest))
    }
}

/// Ends when it is to stop: a file may be large.
struct Until<'a, R> {
    from: R,
    stop: &'a (dyn Fn() -> bool + Sync),
}

impl<R: Read> Read for Until<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if (self.stop)() { Ok(0) } else { self.from.read(buffer) }
    }
}

fn open(dir: BorrowedFd<'_>, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

/// Starts the threads; nothing where there may be one only, or no thread is to be had.
fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
    bounds: &'scope Bounds<'_>,
    threads: usize,
) -> Option<SyncSender<Arc<Batch>>> {
    let (batches, waiting) = sync_channel::<Arc<Batch>>(BATCHES);
    let waiting = Arc::new(Mutex::new(waiting));
    let mut started = 0;
    for _ in 1..threads {
        let waiting = Arc::clone(&waiting);
        started += usize::from(Builder::new().spawn_scoped(scope, move || serve(bounds, &waiting)).is_ok());
    }
    (started > 0).then_some(batches)
}

/// What a thread does until there are no more batches.
fn serve(bounds: &Bounds<'_>, waiting: &Mutex<Receiver<Arc<Batch>>>) {
    let mut hasher = FileHasher::new();
    loop {
        let next = waiting.lock().ok().and_then(|waiting| waiting.recv().ok());
        let Some(batch) = next else { return };
        batch.read(bounds, &mut hasher);
    }
}

/// What the walk met, in its order.
enum Event {
    Enter,
    Leave(Vec<u8>),
    Files(Arc<Batch>),
    Link(Vec<u8>, Vec<u8>),
}

/// A directory while it is read.
struct Reading<'a> {
    bounds: &'a Bounds<'a>,
    exclude: Exclude<'a>,
    hasher: FileHasher,
    batches: Option<SyncSender<Arc<Batch>>>,
    batch: Option<Batch>,
    events: VecDeque<Event>,
    /// From the root to the directory of the event that is taken next.
    nodes: Vec<WorldNode>,
    packed: Packed,
}

impl Reading<'_> {
    fn walk(&mut self, dir: BorrowedFd<'_>) -> Result<(), PackError> {
        let entries_max = self.bounds.limits.entries_max;
        let walk_failed = |error: WalkError, path: &[u8]| match error {
            WalkError::TooDeep => Refusal::TooDeep { entry: shown(path) }.into(),
            WalkError::TooMany => Refusal::TooMany { entries_max }.into(),
            WalkError::Io(errno) => failed(path)(errno),
        };
        let root = open(dir, b".", OFlags::DIRECTORY).map_err(failed(b"."))?;
        let mut walk = Walk::new(root, entries_max).map_err(|error| walk_failed(error, b"."))?;
        while let Some(step) = walk.next_step() {
            match step {
                Step::Leave(name) => {
                    self.hand_on();
                    self.events.push_back(Event::Leave(name));
                }
                Step::Name(name) => {
                    let path = walk.path(&name);
                    if let Some(dir) = self.name(&walk, &name, &path)? {
                        self.events.push_back(Event::Enter);
                        walk.enter(name, dir).map_err(|error| walk_failed(error, &path))?;
                    }
                }
            }
            self.settle(WAITING_MAX)?;
        }
        Ok(())
    }

    /// One name; a directory is to be entered.
    fn name(&mut self, walk: &Walk, name: &[u8], path: &[u8]) -> Result<Option<OwnedFd>, PackError> {
        let dir = walk.dir().map_err(failed(path))?;
        let kind = match walk.kind() {
            FileType::Unknown => {
                let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed(path))?;
                FileType::from_raw_mode(stat.st_mode)
            }
            known => known,
        };
        if (self.exclude)(path, kind == FileType::Directory) {
            return Ok(None);
        }
        EntryPath::parse(path)?;
        self.packed.entries += 1;
        if kind == FileType::RegularFile {
            self.want(dir, name, path);
            return Ok(None);
        }
        self.hand_on();
        let kind = match kind {
            FileType::Directory => {
                return open(dir.as_fd(), name, OFlags::DIRECTORY).map(Some).map_err(failed(path));
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(dir, name, Vec::new()).map_err(failed(path))?;
                let target = target.to_bytes();
                if target.is_empty() || target.len() > TARGET_BYTES_MAX {
                    return Err(Refusal::LinkTooLong { entry: shown(path) }.into());
                }
                self.events.push_back(Event::Link(name.to_vec(), target.to_vec()));
                return Ok(None);
            }
            FileType::Fifo => "FIFO",
            FileType::Socket => "socket",
            _ => "device",
        };
        Err(PackError::Special { path: shown(path), kind })
    }

    /// Has a file read, by whoever has time.
    fn want(&mut self, dir: &Arc<OwnedFd>, name: &[u8], path: &[u8]) {
        let batch = self.batch.get_or_insert_with(|| Batch {
            dir: Arc::clone(dir),
            prefix: path.get(..path.len().saturating_sub(name.len())).unwrap_or_default().to_vec(),
            names: Vec::with_capacity(BATCH_FILES),
            claimed: AtomicBool::new(false),
            read: Mutex::new(None),
            done: Condvar::new(),
        });
        batch.names.push(name.to_vec());
        if batch.names.len() >= BATCH_FILES {
            self.hand_on();
        }
    }

    /// Offers the batch to the threads. If all of them have enough, the walker reads it when it comes to it.
    fn hand_on(&mut self) {
        let Some(batch) = self.batch.take().map(Arc::new) else { return };
        if batch.names.len() >= HANDED_FILES
            && let Some(batches) = &self.batches
        {
            let _ = batches.try_send(Arc::clone(&batch));
        }
        self.events.push_back(Event::Files(batch));
    }

    /// Takes events in their order as far as they are known. If more than so many are left, reads or waits.
    fn settle(&mut self, waiting_max: usize) -> Result<(), PackError> {
        let batches_max = waiting_max / BATCH_FILES;
        while let Some(event) = self.events.pop_front() {
            if let Event::Files(batch) = &event
                && !batch.is_read()
            {
                if self.events.len() < batches_max {
                    self.events.push_front(event);
                    return Ok(());
                }
                batch.read(self.bounds, &mut self.hasher);
            }
            if let Err(error) = self.take(event) {
                // What comes behind is of no interest: the first in order is said.
                self.events.clear();
                return Err(error);
            }
        }
        Ok(())
    }

    fn take(&mut self, event: Event) -> Result<(), PackError> {
        match event {
            Event::Enter => self.nodes.push(WorldNode::new()),
            Event::Leave(name) => {
                let Some(digest) = self.nodes.pop().map(WorldNode::finish) else { return Ok(()) };
                match self.nodes.last_mut() {
                    Some(parent) => parent.add(NodeKind::Directory, &name, Some(&digest)),
                    None => self.packed.tree = digest,
                }
            }
            Event::Link(name, target) => {
                if let Some(node) = self.nodes.last_mut() {
                    node.add_link(&name, &target);
                }
            }
            Event::Files(batch) => {
                let mut read = batch.wait();
                for name in &batch.names {
                    let lost = || Err(failed(&batch.path(name))(Errno::CANCELED));
                    let (kind, digest) = read.pop_front().unwrap_or_else(lost)?;
                    if let Some(node) = self.nodes.last_mut() {
                        node.add(kind, name, Some(&digest));
                    }
                }
            }
        }
        Ok(())
    }
}
