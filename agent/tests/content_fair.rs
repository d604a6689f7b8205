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

/// A launcher whose imports of what begins with `slow` last until they are let go, and so do its answers what is there.
#[derive(Debug, Clone, Default)]
struct Slow {
    under_way: Arc<AtomicUsize>,
    asked: Arc<AtomicUsize>,
    go: Arc<(Mutex<bool>, Condvar)>,
}

impl Slow {
    fn wait(&self, count: &AtomicUsize) {
        count.fetch_add(1, Ordering::SeqCst);
        let guard = self.go.0.lock().unwrap();
        drop(self.go.1.wait_while(guard, |go| !*go).unwrap());
    }

    fn let_go(&self) {
        *self.go.0.lock().unwrap() = true;
        self.go.1.notify_all();
    }
}

impl Importer for Slow {
    fn present(&self, contents: &[Content]) -> Result<Vec<bool>, ImportError> {
        self.wait(&self.asked);
        Ok(vec![true; contents.len()])
    }

    fn import(&self, content: Content, mut bytes: File) -> Result<Imported, ImportError> {
        let mut all = Vec::new();
        bytes.read_to_end(&mut all).unwrap();
        if all.starts_with(b"slow") {
            self.wait(&self.under_way);
        }
        let Content::File { sha256: Some(sha256), .. } = content else { panic!("{content:?}") };
        Ok(Imported { sha256, bytes: all.len() as u64, entries: 1 })
    }
}

fn content(bytes: &[u8]) -> Content {
    let sha256 = Some(Sha256::new(digest(&SHA256, bytes).as_ref().try_into().unwrap()));
    Content::File { sha256, executable: false, epoch: 0 }
}

async fn until(count: &AtomicUsize, at_least: usize) {
    let before = Instant::now();
    while count.load(Ordering::SeqCst) < at_least {
        assert!(before.elapsed() < SOON, "{count:?} and not {at_least}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn upload(contents: &Contents<Slow>, project: &str, bytes: &[u8]) {
    let project = Name::parse(project).unwrap();
    let Begun::Open(open) = contents.begin(&project, content(bytes), bytes.len() as u64, 0).await.unwrap()
    else {
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
    until(&slow.under_way, 1).await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_to_the_launcher_are_few_and_one_project_has_not_all_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let slow = Slow::default();
    let contents = Arc::new(Contents::open(dir.path(), slow.clone(), ContentLimits::default()).unwrap());
    let [a, b] = ["a", "b"].map(|project| Name::parse(project).unwrap());
    for project in [&a, &b] {
        contents.record(project, &content(b"x")).unwrap();
    }
    // Whatever way a call asks it, and whoever has given up waiting since.
    let mut asking = Vec::new();
    for at in 0..30 {
        let (contents, a) = (contents.clone(), a.clone());
        asking.push(tokio::spawn(async move {
            match at % 3 {
                0 => drop(contents.missing(&a, vec![content(b"x")]).await.unwrap()),
                1 => drop(contents.offset(&a, content(b"x")).await.unwrap()),
                _ => drop(contents.begin(&a, content(b"x"), 1, 0).await.unwrap()),
            }
        }));
    }
    until(&slow.asked, 1).await;
    for given_up in asking.drain(..10) {
        given_up.abort();
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(slow.asked.load(Ordering::SeqCst), 1, "one project has more than its share of sessions");
    // Of what a project has never shown nobody is asked.
    let missing = tokio::time::timeout(SOON, contents.missing(&a, vec![content(b"y")]));
    assert_eq!(missing.await.expect("it waits").unwrap().len(), 1);
    let other = tokio::spawn({
        let contents = contents.clone();
        async move { contents.missing(&b, vec![content(b"x")]).await.unwrap() }
    });
    until(&slow.asked, 2).await;
    slow.let_go();
    assert!(tokio::time::timeout(SOON, other).await.expect("it waits").unwrap().is_empty());
    for one in asking {
        tokio::time::timeout(SOON, one).await.expect("its turn never comes").unwrap();
    }
}
