//! A process that works with a ledger, says what was acknowledged, and dies at a call of its choice: for `tests/ledger_crash.rs`.
//!
//! `ledger_child DIR WORK HOW CALL`: at the ledger's write, sync or cut number CALL it kills itself with SIGKILL, `HOW`: `before` or `after` the call, in
//! the middle of it (`half`), or as if the power failed there: `lost` (nothing that was not synced is kept), `even` and `odd` (of what was
//! not synced, every second sector is zeros). With the work `compacting` the file is written anew again and again. `fail`: the sync says that it failed. `never`: it works to the end.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::expect_used)]

#[path = "../tests/common/jobs.rs"]
mod jobs;

use ampoule_agent::job::CancelWish;
use ampoule_agent::job::ledger::{Entered, Ledger, Options};
use ampoule_agent::job::state::Change;
use ampoule_journal::Medium;
use ampoule_spec::UnixNanos;
use jobs::{end, open_submission, resolved, submission};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a disk may lose at once.
const SECTOR: u64 = 512;

/// Calls so far, of all files.
static CALLS: AtomicU64 = AtomicU64::new(0);

/// A file that dies.
struct Dying {
    file: File,
    how: String,
    call: u64,
    written: u64,
    synced: u64,
}

impl Dying {
    fn counts(&self) -> bool {
        CALLS.fetch_add(1, Ordering::SeqCst) == self.call
    }

    fn die(&mut self) -> ! {
        // O_APPEND would make every write one at the end.
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let file = File::options().write(true).open(path).unwrap();
        match self.how.as_str() {
            "lost" => file.set_len(self.synced).unwrap(),
            "even" | "odd" => {
                let odd = u64::from(self.how == "odd");
                let mut at = self.synced;
                while at < self.written {
                    let next = self.written.min((at / SECTOR + 1) * SECTOR);
                    if (at / SECTOR) % 2 == odd {
                        file.write_all_at(&vec![0; usize::try_from(next - at).unwrap()], at).unwrap();
                    }
                    at = next;
                }
            }
            _ => {}
        }
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
        loop {
            std::thread::park();
        }
    }

    /// Does a call, and dies around it if it is the one.
    fn around<T>(&mut self, call: impl FnOnce(&mut Self) -> io::Result<T>) -> io::Result<T> {
        let now = self.counts() && self.how != "never";
        if now && self.how == "before" {
            self.die();
        }
        let result = call(self);
        if now && self.how != "fail" {
            self.die();
        }
        result
    }
}

impl Medium for Dying {
    fn write_once(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.around(|dying| {
            let half = dying.how == "half" && CALLS.load(Ordering::SeqCst) == dying.call + 1;
            let count = dying.file.write(if half { &bytes[..bytes.len() / 2] } else { bytes })?;
            dying.written += u64::try_from(count).unwrap();
            Ok(count)
        })
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.how == "fail" && CALLS.load(Ordering::SeqCst) >= self.call {
            return Err(io::Error::other("the disk is gone"));
        }
        // Dying in the middle of a sync, or after one that nobody was told of: what was written may be there or not.
        self.around(|dying| dying.file.sync_data())?;
        self.synced = self.written;
        Ok(())
    }

    fn cut(&mut self, bytes: u64) -> io::Result<()> {
        self.around(|dying| dying.file.set_len(bytes))
    }
}

fn say(text: &str) {
    let mut out = io::stdout().lock();
    out.write_all(format!("{text}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

fn now() -> UnixNanos {
    UnixNanos(1)
}

/// Three lives one after another; the last leaves something to be found.
async fn in_turn(ledger: &Ledger) {
    for number in 0..3 {
        let asked = if number == 2 { open_submission(number) } else { submission(number) };
        let Entered { life, attached } = ledger.submit(asked, now()).await.unwrap();
        say(&format!("job {number} {} {attached}", life.job.id));
        let wish = CancelWish { by: "b".to_owned(), reason: String::new(), at: now() };
        let changes = match number {
            0 => vec![
                Change::Began,
                Change::Asked { runner: life.job.id.clone() },
                Change::Reported { admitted: now() },
                Change::Finished { at: now(), end: Box::new(end()) },
            ],
            1 => vec![Change::CancelWished { wish }],
            _ => vec![Change::Began],
        };
        for change in changes {
            // What a life before this one has done is not done again.
            if let Ok((life, _)) = ledger.change(&life.job.id, change).await {
                say(&format!("state {number} {}", serde_json::to_string(&life.job.state).unwrap()));
            }
        }
        if number == 2 {
            let life = ledger.resolve(&life.job.id, &resolved(number)).await.unwrap();
            say(&format!("resolved {number} {}", life.spec));
        }
    }
}

/// Many at once, twice each, so that batches are long and keys meet in them.
async fn at_once(ledger: Arc<Ledger>, from: u32) {
    let mut tasks = tokio::task::JoinSet::new();
    for number in (from..from + 24).flat_map(|number| [number, number]) {
        let ledger = ledger.clone();
        tasks.spawn(async move {
            let mut submission = submission(number);
            let drawn = uuid::Uuid::now_v7().to_string();
            submission.spec.id = ampoule_spec::JobId::parse(&drawn).unwrap();
            let entered = ledger.submit(submission, now()).await.unwrap();
            say(&format!("job {number} {} {}", entered.life.job.id, entered.attached));
        });
    }
    tasks.join_all().await;
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, work, how, call] = args.as_slice() else { panic!("ledger_child DIR WORK HOW CALL") };
    let (dir, call) = (PathBuf::from(dir), call.parse().unwrap());
    // So little that it is written anew after almost every job.
    let compact_bytes = if work == "compacting" { 1 } else { 64 << 20 };
    let options = Options { reserve_bytes: 64 << 10, compact_bytes, ..Options::default() };
    let dies = how.clone();
    let dying = move |file| Dying { file, how: dies.clone(), call, written: 0, synced: 0 };
    let ledger = Ledger::open_on(&dir, &options, now(), dying);
    let ledger = Arc::new(ledger.unwrap());
    say("open");
    match work.as_str() {
        "in-turn" => in_turn(&ledger).await,
        "compacting" => {
            in_turn(&ledger).await;
            // A second time it finds what it has done, and writes less.
            assert!(ledger.compactions() > 0 || ledger.generation() > 1, "it was never written anew");
        }
        "at-once" => at_once(ledger, 0).await,
        // Until somebody kills it.
        _ => {
            for round in 0.. {
                at_once(ledger.clone(), round * 24).await;
            }
        }
    }
}
