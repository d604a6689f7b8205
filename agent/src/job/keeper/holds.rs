//! Why this host takes no jobs, or starts none: each reason is held by itself, and ends by itself.
//!
//! Guarantees: what an operator has drained stays drained over restarts, until an operator says otherwise; while the host
//! has drifted, or was not looked at since its launcher came up, no job that waits is given to the runner.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{RwLock, RwLockReadGuard, watch};

/// A file of the state directory. That it is there says that the host is drained; what is in it says nothing.
const FILE: &str = "drained";

#[derive(Debug)]
pub(super) struct Holds {
    state: PathBuf,
    /// Held by whoever changes the file, so that it and `drained` say the same.
    order: tokio::sync::Mutex<()>,
    drained: AtomicBool,
    /// Shared by whoever enters a job, from asking whether jobs are taken until it waits in the queue.
    entering: RwLock<()>,
    host: watch::Sender<Host>,
    /// How often the launcher came up. None: nobody looks at the host.
    launchers: Option<watch::Receiver<u64>>,
}

/// The host as it was when somebody looked last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Host {
    drifted: bool,
    /// How often the launcher had come up before that look began.
    under: u64,
}

impl Holds {
    /// As it was left. Whether the host has drifted, before any launcher was there; none: nobody looks. Blocks for a moment.
    ///
    /// # Errors
    /// If it cannot be seen whether the host is drained: then nobody may guess.
    pub(super) fn open(
        state: &Path,
        drifted: Option<bool>,
        launchers: watch::Receiver<u64>,
    ) -> io::Result<Self> {
        let drained = match std::fs::symlink_metadata(state.join(FILE)) {
            Ok(_) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        Ok(Self {
            state: state.to_owned(),
            order: tokio::sync::Mutex::default(),
            drained: drained.into(),
            entering: RwLock::default(),
            host: watch::Sender::new(Host { drifted: drifted == Some(true), under: 0 }),
            launchers: drifted.map(|_| launchers),
        })
    }

    /// Held by whoever enters a job: as long as it is, a drain that has begun has not ended.
    pub(super) async fn enter(&self) -> RwLockReadGuard<'_, ()> {
        self.entering.read().await
    }

    /// Drains the host, or ends that. Durable when it returns. The intake stops even if that cannot be made durable, and
    /// goes on only after it was. A job that was being entered waits in the queue by then, or was refused: whoever drains counts
    /// and ends all that there are.
    ///
    /// # Errors
    /// If it cannot be made durable.
    pub(super) async fn drain(&self, drain: bool) -> io::Result<()> {
        let _alone = self.order.lock().await;
        if drain {
            self.drained.store(true, Ordering::Relaxed);
            drop(self.entering.write().await);
        }
        let state = self.state.clone();
        let kept = tokio::task::spawn_blocking(move || keep(&state, drain)).await;
        kept.map_err(io::Error::other)??;
        self.drained.store(drain, Ordering::Relaxed);
        Ok(())
    }

    /// Says whether the host has drifted, by a look that began when the launcher had come up so often; whether that is news.
    pub(super) fn set_drifted(&self, drifted: bool, under: u64) -> bool {
        let host = Host { drifted, under };
        self.host.send_if_modified(|before| std::mem::replace(before, host) != host)
    }

    /// Why no new jobs are taken; none: they are.
    pub(super) fn refusal(&self) -> Option<&'static str> {
        if self.drained.load(Ordering::Relaxed) {
            Some("this host is being drained")
        } else if self.host.borrow().drifted {
            Some("this host is not what its baseline says; its operator has to look at it")
        } else {
            None
        }
    }

    /// Whether jobs that wait may be started. A drained host is emptied by running them. One whose launcher has come up since the
    /// last look may be another, in an instant in which nobody looks: the next look is what they wait for.
    pub(super) fn is_steady(&self) -> bool {
        self.is_so(&self.host.borrow())
    }

    fn is_so(&self, host: &Host) -> bool {
        let is_seen = |launchers: &watch::Receiver<u64>| *launchers.borrow() == host.under;
        !host.drifted && self.launchers.as_ref().is_none_or(is_seen)
    }

    /// Waits until jobs may be started.
    pub(super) async fn until_steady(&self) {
        let mut host = self.host.subscribe();
        // The sender is ours, so this ends with a look that finds nothing.
        let _ = host.wait_for(|host| self.is_so(host)).await;
    }
}

fn keep(state: &Path, drain: bool) -> io::Result<()> {
    let path = state.join(FILE);
    if drain {
        File::options().write(true).create(true).truncate(false).mode(0o600).open(&path)?.sync_all()?;
    } else {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    File::open(state)?.sync_all()
}
