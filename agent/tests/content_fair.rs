//! Imports of one project beside those of another.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use ampoule_agent::content::{Begun, ContentLimits, Contents, ImportError, Importer};
use ampoule_spec::wire::{Content, Imported};
use ampoule_spec::{Name, Sha256};
use aws_lc_rs::digest::{SHA256, digest};
use std::fs::File;
use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(10);

/// A launcher whose imports of what begins with `slow` last until they are let go.
#[derive(Debug, Clone, Default)]
struct Slow {
    under_way: Arc<AtomicUsize>,
    go: Arc<(Mutex<bool>, Condvar)>,
}

impl Slow {
    fn let_go(&self) {
        *self.go.0.lock().unwrap() = true;
        self.go.1.notify_all();
    }
}

impl Importer for Slow {
    fn present(&self, contents: &[Content]) -> Result<Vec<bool>, ImportError> {
        Ok(vec![false; contents.len()])
    }

    fn import(&self, content: Content, mut bytes: File) -> Result<Imported, ImportError> {
        let mut all = Vec::new();
        bytes.read_to_end(&mut all).unwrap();
        if all.starts_with(b"slow") {
            self.under_way.fetch_add(1, Ordering::SeqCst);
            let guard = self.go.0.lock().unwrap();
            drop(self.go.1.wait_while(guard, |go| !*go).unwrap());
        }
        let Content::File { sha256: Some(sha256), .. } = content else { panic!("{content:?}") };
        Ok(Imported { sha256, bytes: all.len() as u64, entries: 1 })
    }
}

async fn upload(contents: &Contents<Slow>, project: &str, bytes: &[u8]) {
    let sha256 = Some(Sha256::new(digest(&SHA256, bytes).as_ref().try_into().unwrap()));
    let content = Content::File { sha256, executable: false, epoch: 0 };
    let project = Name::parse(project).unwrap();
    let Begun::Open(open) = contents.begin(&project, content, bytes.len() as u64, 0).await.unwrap() else {
        panic!("it is there")
    };
    contents.finish(open.append(bytes.to_vec()).await.unwrap()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn import_of_another_project_is_not_behind_all_of_one() {
    let dir = tempfile::tempdir().unwrap();
    let slow = Slow::default();
    let limits = ContentLimits { imports: 2, ..ContentLimits::default() };
    let contents = Arc::new(Contents::open(dir.path(), slow.clone(), limits).unwrap());
    let many: Vec<_> = (0..6)
        .map(|at| {
            let contents = contents.clone();
            tokio::spawn(async move { upload(&contents, "a", format!("slow {at}").as_bytes()).await })
        })
        .collect();
    let before = Instant::now();
    while slow.under_way.load(Ordering::SeqCst) == 0 {
        assert!(before.elapsed() < SOON, "nothing is imported");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for at in 0..3 {
        let bytes = format!("quick {at}");
        let other = upload(&contents, "b", bytes.as_bytes());
        let done = tokio::time::timeout(SOON, other).await;
        if done.is_err() {
            slow.let_go();
            panic!("it waits for the imports of another project");
        }
    }
    assert_eq!(slow.under_way.load(Ordering::SeqCst), 1, "one project has both");
    slow.let_go();
    for one in many {
        tokio::time::timeout(SOON, one).await.unwrap().unwrap();
    }
}
