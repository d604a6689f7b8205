//! What each project has fetched from where, over runs: only what it has fetched from a place is not asked there again.
//!
//! Provenance names an origin of an input. So that this is true, content that the store has counts as fetched from a place
//! only if this project has seen its bytes come from there; that somebody has uploaded it, or fetched it elsewhere or for
//! another project, does not count. A record that is lost or cannot be read has the place asked again.

use crate::shelf::{NotPut, Shelf, hashed};
use ampoule_spec::wire::Content;
use ampoule_spec::{GitId, Name, Sha256, UnixNanos};
use serde::{Deserialize, Serialize};
use std::fmt::Debug;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// Something at a place, by the digest that it was found to have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Bytes at a URL.
    Http {
        /// The URL, with its query.
        url: String,
        /// Of the bytes.
        sha256: Sha256,
    },
    /// A commit of a repository.
    Git {
        /// The repository.
        url: String,
        /// The commit.
        commit: GitId,
        /// Whether its submodules came with it.
        submodules: bool,
    },
    /// A manifest, configuration or layer of a registry's repository. A manifest stands for its whole image.
    Registry {
        /// `docker://HOST/REPOSITORY`.
        repository: String,
        /// What it is.
        part: Content,
    },
}

impl Source {
    /// The name of its record.
    fn name(&self) -> String {
        // Plain data: writing it as JSON cannot fail, and two sources never give the same text.
        hashed(&serde_json::to_vec(self).unwrap_or_default())
    }
}

/// When and where something was fetched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Visit {
    /// When it was whole.
    pub at: UnixNanos,
    /// Where it came from in the end, redirects followed and without a query.
    pub from: String,
}

impl Visit {
    /// A visit that ends now.
    pub(crate) fn now(from: impl Into<String>) -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { at: UnixNanos(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)), from: from.into() }
    }
}

/// What is known of one project when something is taken in for it.
pub(crate) trait Memory: Debug + Send + Sync {
    /// When the project has fetched this, if it has.
    fn visit(&self, source: &Source) -> Option<Visit>;

    /// It has fetched this now. What cannot be kept is fetched again.
    fn keep(&self, source: &Source, visit: &Visit);

    /// Whether the project has shown to have these bytes, wherever they came from.
    fn has_bytes(&self, content: &Content) -> bool;
}

/// Of one that takes nothing in from afar.
impl Memory for () {
    fn visit(&self, _: &Source) -> Option<Visit> {
        None
    }

    fn keep(&self, _: &Source, _: &Visit) {}

    fn has_bytes(&self, _: &Content) -> bool {
        false
    }
}

/// The records of all projects.
#[derive(Debug)]
pub(crate) struct Visits(Shelf);

impl Visits {
    /// Opens the records in a directory below another one. A project has at most `max`.
    pub(crate) fn below(dir: impl AsFd, max: u64) -> std::io::Result<Self> {
        Ok(Self(Shelf::below(dir, "visits", max)?))
    }

    /// When the project has fetched this, if it has.
    pub(crate) fn get(&self, project: &Name, source: &Source) -> Option<Visit> {
        serde_json::from_slice(&self.0.read(project, &source.name())?).ok()
    }

    /// Records it. Durable when it returns.
    pub(crate) fn put(&self, project: &Name, source: &Source, visit: &Visit) -> Result<(), NotPut> {
        let bytes = serde_json::to_vec(visit).map_err(std::io::Error::from)?;
        self.0.put(project, &source.name(), &bytes)
    }

    /// Removes what was not used for so long.
    pub(crate) fn sweep(&self, age: Duration) {
        self.0.sweep(age);
    }
}

/// Records of a run on this host alone, in a directory that is made when there is one to keep. The store is the caller's
/// own, and so are all bytes in it.
#[derive(Debug)]
pub(crate) struct Here {
    /// The directory.
    pub(crate) dir: PathBuf,
    /// Whose rules of sources hold.
    pub(crate) project: String,
}

impl Here {
    /// The records, if there may be any.
    fn open(&self) -> Option<(Visits, Name)> {
        let shelf = Shelf::open(&self.dir, u64::MAX).ok()?;
        Some((Visits(shelf), Name::parse(&self.project).ok()?))
    }
}

impl Memory for Here {
    fn visit(&self, source: &Source) -> Option<Visit> {
        if !self.dir.exists() {
            return None;
        }
        let (visits, project) = self.open()?;
        visits.get(&project, source)
    }

    fn keep(&self, source: &Source, visit: &Visit) {
        if let Some((visits, project)) = self.open() {
            // Then it is asked again.
            let _ = visits.put(&project, source, visit);
        }
    }

    fn has_bytes(&self, _: &Content) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(url: &str, byte: u8) -> Source {
        Source::Http { url: url.to_owned(), sha256: Sha256::new([byte; 32]) }
    }

    #[test]
    fn visit_is_of_one_project_one_place_and_one_digest() {
        let dir = tempfile::tempdir().unwrap();
        let here = |project: &str| Here { dir: dir.path().join("visits"), project: project.to_owned() };
        let source = http("https://h.example/a?t=1", 1);
        assert_eq!(here("a").visit(&source), None);
        assert!(!dir.path().join("visits").exists());
        let visit = Visit::now("https://h.example/a");
        here("a").keep(&source, &visit);
        assert_eq!(here("a").visit(&source), Some(visit));
        assert_eq!(here("b").visit(&source), None);
        let commit = GitId::parse(&"1".repeat(40)).unwrap();
        let git = |submodules| Source::Git { url: "https://h.example/a".to_owned(), commit, submodules };
        let part =
            |repository: &str, part: Content| Source::Registry { repository: repository.to_owned(), part };
        let sha256 = Sha256::new([1; 32]);
        let others = [
            http("https://h.example/a?t=2", 1),
            http("https://h.example/a", 1),
            http("https://h.example/a?t=1", 2),
            git(false),
            git(true),
            part("docker://h.example/a", Content::OciManifest { sha256 }),
            part("docker://h.example/a", Content::OciLayer { sha256 }),
            part("docker://h.example/b", Content::OciLayer { sha256 }),
        ];
        for other in &others {
            assert_eq!(here("a").visit(other), None, "{other:?}");
            here("a").keep(other, &Visit::now("x"));
            assert_eq!(here("a").visit(other).unwrap().from, "x");
        }
        let mut names: Vec<_> = others.iter().map(Source::name).collect();
        names.push(source.name());
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 9);
    }

    #[test]
    fn record_that_cannot_be_read_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let here = Here { dir: dir.path().to_owned(), project: "a".to_owned() };
        let source = http("https://h.example/a", 1);
        here.keep(&source, &Visit::now("x"));
        let path = dir.path().join(hashed(b"a")).join(source.name());
        let whole = std::fs::read(&path).unwrap();
        // What a crash leaves: every part of it, and zeros.
        for half in (0..whole.len()).map(|to| whole[..to].to_vec()).chain([vec![0; whole.len()]]) {
            std::fs::write(&path, half).unwrap();
            assert_eq!(here.visit(&source), None);
        }
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", &path).unwrap();
        assert_eq!(here.visit(&source), None);
        here.keep(&source, &Visit::now("x"));
        assert!(std::fs::symlink_metadata(&path).unwrap().is_symlink());
    }
}
