//! Reading many files on as many threads as there are processors.
//!
//! The launcher has one thread and forks; these live only while a tree is read back, and are joined before that ends.

use super::failed;
use super::rules::{Content, Rules};
use crate::beneath;
use crate::digest::FileHasher;
use crate::error::StoreError;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::Stat;
use rustix::io::Errno;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{Builder, Scope};

/// A batch is handed on with so many files, or so many bytes.
const BATCH_FILES: usize = 32;
const BATCH_BYTES: u64 = 1 << 20;
/// Batches that wait for a thread. What does not fit is read by the thread that wanted it read.
const BATCHES: usize = 4;

/// Stands for a file until it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ticket(u64);

/// A file to be read: its name in the batch's directory, and its path for messages.
struct Wanted {
    ticket: Ticket,
    name: Vec<u8>,
    path: Vec<u8>,
}

#[derive(Default)]
struct Batch {
    dir: Option<Arc<OwnedFd>>,
    files: Vec<Wanted>,
    bytes: u64,
}

type Answer = (Ticket, Result<Content, StoreError>);

/// The threads, and what they have read.
pub(super) struct Readers<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    rules: &'env Rules,
    hasher: FileHasher,
    batch: Batch,
    /// Nothing before there is work for more than one.
    threads: Option<Threads>,
    /// How many there may be, the first included.
    threads_max: usize,
    next: u64,
    answers: HashMap<Ticket, Result<Content, StoreError>>,
}

struct Threads {
    batches: SyncSender<Batch>,
    waiting: Arc<Mutex<Receiver<Batch>>>,
    answers: Receiver<Answer>,
}

impl<'scope, 'env> Readers<'scope, 'env> {
    pub(super) fn new(scope: &'scope Scope<'scope, 'env>, rules: &'env Rules, threads_max: usize) -> Self {
        let (hasher, batch) = (FileHasher::new(), Batch::default());
        let answers = HashMap::new();
        Self { scope, rules, hasher, batch, threads: None, threads_max, next: 0, answers }
    }

    /// Has a file read that has one name, by whoever has time.
    pub(super) fn want(&mut self, dir: &Arc<OwnedFd>, name: &[u8], path: &[u8], bytes: u64) -> Ticket {
        if self.batch.dir.as_ref().is_none_or(|known| !Arc::ptr_eq(known, dir)) {
            self.hand_on();
            self.batch.dir = Some(Arc::clone(dir));
        }
        let ticket = Ticket(self.next);
        self.next += 1;
        self.batch.files.push(Wanted { ticket, name: name.to_vec(), path: path.to_vec() });
        self.batch.bytes = self.batch.bytes.saturating_add(bytes);
        if self.batch.files.len() >= BATCH_FILES || self.batch.bytes >= BATCH_BYTES {
            self.hand_on();
        }
        ticket
    }

    /// Reads an examined file here and now.
    pub(super) fn read_now(
        &mut self,
        file: OwnedFd,
        stat: &Stat,
        path: &[u8],
    ) -> Result<Content, StoreError> {
        self.rules.read(&mut self.hasher, file, stat, path)
    }

    /// What was read of a file; nothing if it was not yet.
    pub(super) fn take(&mut self, ticket: Ticket) -> Option<Result<Content, StoreError>> {
        if let Some(answer) = self.answers.remove(&ticket) {
            return Some(answer);
        }
        while let Some((of, answer)) = self.threads.as_ref().and_then(|t| t.answers.try_recv().ok()) {
            if of == ticket {
                return Some(answer);
            }
            self.answers.insert(of, answer);
        }
        None
    }

    /// The same, and waits for it.
    pub(super) fn wait(&mut self, ticket: Ticket) -> Result<Content, StoreError> {
        self.hand_on();
        loop {
            if let Some(answer) = self.take(ticket) {
                return answer;
            }
            let Some(threads) = &self.threads else { break };
            // Nobody has begun with it: then we do.
            let unread = threads.waiting.try_lock().ok().and_then(|waiting| waiting.try_recv().ok());
            if let Some(batch) = unread {
                self.read_here(batch);
            } else if let Ok((of, answer)) = threads.answers.recv() {
                self.answers.insert(of, answer);
            } else {
                break;
            }
        }
        Err(failed("read", b".")(Errno::CANCELED))
    }

    /// Gives the batch to a thread, or reads it here if all of them have enough.
    fn hand_on(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        if batch.files.is_empty() {
            return;
        }
        // The first batch of a tree may be its only one.
        let first = batch.files.first().is_some_and(|wanted| wanted.ticket == Ticket(0));
        if self.threads.is_none() && !first {
            self.threads = Threads::start(self.scope, self.rules, self.threads_max);
        }
        let batch = match &self.threads {
            Some(threads) => match threads.batches.try_send(batch) {
                Ok(()) => return,
                Err(TrySendError::Full(batch) | TrySendError::Disconnected(batch)) => batch,
            },
            None => batch,
        };
        self.read_here(batch);
    }

    fn read_here(&mut self, batch: Batch) {
        let (rules, hasher, answers) = (self.rules, &mut self.hasher, &mut self.answers);
        read(rules, hasher, batch, |ticket, answer| drop(answers.insert(ticket, answer)));
    }
}

impl Threads {
    /// Starts them; nothing where there may be one only, or no thread is to be had.
    fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        rules: &'scope Rules,
        threads_max: usize,
    ) -> Option<Self> {
        let (batches, waiting) = sync_channel(BATCHES);
        let waiting = Arc::new(Mutex::new(waiting));
        let (said, answers) = channel();
        let mut started = 0;
        for _ in 1..threads_max {
            let (waiting, said) = (Arc::clone(&waiting), Sender::clone(&said));
            let thread = Builder::new().spawn_scoped(scope, move || serve(rules, &waiting, &said));
            started += usize::from(thread.is_ok());
        }
        (started > 0).then_some(Self { batches, waiting, answers })
    }
}

/// What a thread does until there are no more batches.
fn serve(rules: &Rules, waiting: &Mutex<Receiver<Batch>>, said: &Sender<Answer>) {
    let mut hasher = FileHasher::new();
    loop {
        let next = waiting.lock().ok().and_then(|waiting| waiting.recv().ok());
        let Some(batch) = next else { return };
        read(rules, &mut hasher, batch, |ticket, answer| drop(said.send((ticket, answer))));
    }
}

/// Reads a batch; every file gets an answer, or its reader would wait for ever.
fn read(
    rules: &Rules,
    hasher: &mut FileHasher,
    batch: Batch,
    mut say: impl FnMut(Ticket, Result<Content, StoreError>),
) {
    let Some(dir) = batch.dir else { return };
    for wanted in batch.files {
        let one = AssertUnwindSafe(|| one(rules, hasher, &dir, &wanted));
        let answer = catch_unwind(one).unwrap_or_else(|_| Err(failed("read", &wanted.path)(Errno::CANCELED)));
        say(wanted.ticket, answer);
    }
}

fn one(
    rules: &Rules,
    hasher: &mut FileHasher,
    dir: &OwnedFd,
    wanted: &Wanted,
) -> Result<Content, StoreError> {
    let path = &wanted.path;
    let file = beneath::open_file(dir, &wanted.name).map_err(failed("open", path))?;
    let stat = rules.examine(file.as_fd(), path)?;
    // It had one name when it was listed, and nobody is there to give it another.
    if stat.st_nlink != 1 {
        return Err(super::refuse(path, "a file that changes while it is read"));
    }
    rules.read(hasher, file, &stat, path)
}
