//! How far something is that lasts: told from the second second on, ten times a second, and only if somebody looks.
//!
//! Whoever works counts bytes where they pass, or looks at an offset or a length that is there anyway. Without a
//! watcher no clock is read.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What is quicker is not told of.
const QUIET: Duration = Duration::from_secs(1);
/// How often something is told.
const EVERY: Duration = Duration::from_millis(100);

/// What lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Bytes come from a source.
    Fetch,
    /// Bytes go into the store.
    Import,
    /// Outputs are copied out of the sandbox.
    Outputs,
    /// Outputs are copied to where they are released.
    Release,
}

impl Work {
    /// Its spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            Self::Import => "import",
            Self::Outputs => "outputs",
            Self::Release => "release",
        }
    }
}

/// How far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// What lasts.
    pub work: Work,
    /// Which thing it is about, as in `input src`.
    pub what: String,
    /// Bytes so far.
    pub bytes: u64,
    /// How many there will be, where that is known.
    pub total: Option<u64>,
    /// Whether it has ended. Nothing more is told of it.
    pub ended: bool,
}

type Tell = dyn Fn(&Progress) + Send + Sync;

/// Who looks, if anybody does.
#[derive(Clone, Default)]
pub struct Watch(Option<Arc<Shared>>);

struct Shared {
    tell: Box<Tell>,
    what: Mutex<String>,
    piped: AtomicU64,
    /// 0: nobody knows.
    expected: AtomicU64,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Watch(somebody)" } else { "Watch(nobody)" })
    }
}

impl Watch {
    /// Tells `tell` from the thread that works.
    pub fn new(tell: impl Fn(&Progress) + Send + Sync + 'static) -> Self {
        let (what, piped, expected) = (Mutex::default(), AtomicU64::new(0), AtomicU64::new(0));
        Self(Some(Arc::new(Shared { tell: Box::new(tell), what, piped, expected })))
    }

    /// Whether somebody looks.
    pub(super) fn is_watched(&self) -> bool {
        self.0.is_some()
    }

    /// Names what comes next.
    pub(crate) fn about(&self, what: impl fmt::Display) {
        if let Some(shared) = &self.0 {
            *shared.what.lock().unwrap_or_else(PoisonError::into_inner) = what.to_string();
            shared.piped.store(0, Ordering::Relaxed);
            shared.expected.store(0, Ordering::Relaxed);
        }
    }

    /// Counts bytes that pass from here through a pipe.
    pub(super) fn passed(&self, bytes: usize) {
        if let Some(shared) = &self.0 {
            shared.piped.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    /// Says how many bytes will pass.
    pub(super) fn expects(&self, bytes: u64) {
        if let Some(shared) = &self.0 {
            shared.expected.store(bytes, Ordering::Relaxed);
        }
    }

    /// How many will, if that is known.
    pub(super) fn expected(&self) -> Option<u64> {
        let shared = self.0.as_ref()?;
        Some(shared.expected.load(Ordering::Relaxed)).filter(|bytes| *bytes > 0)
    }

    /// How many bytes have passed since something was named.
    pub(super) fn piped(&self) -> u64 {
        self.0.as_ref().map_or(0, |shared| shared.piped.load(Ordering::Relaxed))
    }

    /// Begins something.
    pub(super) fn begin(&self, work: Work) -> Meter {
        let running = self.0.as_ref().map(|shared| {
            let what = shared.what.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let progress = Progress { work, what, bytes: 0, total: None, ended: false };
            Running { shared: Arc::clone(shared), progress, next: Instant::now() + QUIET, told: false }
        });
        Meter(running)
    }
}

/// One thing that lasts. Dropping it ends it.
pub(super) struct Meter(Option<Running>);

struct Running {
    shared: Arc<Shared>,
    progress: Progress,
    next: Instant,
    told: bool,
}

impl Meter {
    /// Whether it is time to tell something; to find out how far it is may cost something.
    pub(super) fn is_due(&self) -> bool {
        self.0.as_ref().is_some_and(|running| Instant::now() >= running.next)
    }

    /// Says how far it is, if it is time.
    pub(super) fn at(&mut self, bytes: u64, total: Option<u64>) {
        let Some(running) = &mut self.0 else { return };
        (running.progress.bytes, running.progress.total) = (bytes, total);
        let now = Instant::now();
        if now >= running.next {
            (running.next, running.told) = (now + EVERY, true);
            (running.shared.tell)(&running.progress);
        }
    }
}

impl Drop for Meter {
    /// Whoever was told of it hears of its end.
    fn drop(&mut self) {
        if let Some(running) = self.0.as_mut().filter(|running| running.told) {
            running.progress.ended = true;
            (running.shared.tell)(&running.progress);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_told_in_the_first_second_and_then_ten_times_a_second_with_an_end() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&told);
        let watch = Watch::new(move |progress| heard.lock().unwrap().push(progress.clone()));
        watch.about("input src");
        drop(watch.begin(Work::Fetch));
        let mut meter = watch.begin(Work::Import);
        let begun = Instant::now();
        let mut asked = 0;
        while begun.elapsed() < Duration::from_millis(1500) {
            if begun.elapsed() < Duration::from_millis(900) {
                assert!(told.lock().unwrap().is_empty());
            }
            asked += 1;
            meter.at(asked, Some(7));
            std::thread::sleep(Duration::from_millis(2));
        }
        drop(meter);
        let told = told.lock().unwrap();
        assert!((3..=7).contains(&told.len()), "{} times", told.len());
        assert!(told.windows(2).all(|pair| pair[0].bytes <= pair[1].bytes));
        let end = told.last().unwrap();
        let expected = Progress {
            work: Work::Import,
            what: "input src".to_owned(),
            bytes: asked,
            total: Some(7),
            ended: true,
        };
        assert_eq!(*end, expected);
        assert!(told.iter().rev().skip(1).all(|progress| !progress.ended));
    }

    #[test]
    fn what_passes_is_counted_for_what_was_named_last() {
        let watch = Watch::new(|_| ());
        watch.about("layer a");
        watch.expects(9);
        watch.passed(4);
        watch.passed(3);
        assert_eq!((watch.piped(), watch.expected()), (7, Some(9)));
        watch.about("input b");
        assert_eq!((watch.piped(), watch.expected()), (0, None));
    }

    #[test]
    fn nobody_is_told_anything_when_nobody_looks() {
        let watch = Watch::default();
        watch.about("x");
        watch.passed(5);
        let mut meter = watch.begin(Work::Release);
        meter.at(1, None);
        assert!(!meter.is_due() && !watch.is_watched() && watch.piped() == 0);
    }
}
