//! Getting a commit and its submodules, from a server or from a repository here.

use super::http::Http;
use super::limits::{GitLimits, SUBMODULE_DEPTH_MAX};
use super::local::Repository;
use super::modules::{self, MODULES_BYTES_MAX, Module};
use super::object::{Kind, shown};
use super::pack::Pack;
use super::remote::{Ref, Remote};
use super::snapshot::{Counts, Objects, Snapshot};
use crate::block::with_runtime;
use crate::inputs::{Guard, InputError, scratch_file};
use ampoule_spec::{GIT_COMMIT_BYTES_MAX, GIT_LINKS_MAX, GitId};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

type Result<T> = std::result::Result<T, InputError>;

/// How long everything of one input may take, its submodules included.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(3600);

/// How long a server may take to say what its references name.
const REFS_TIMEOUT: Duration = Duration::from_secs(300);

/// Where a repository lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GitPlace {
    /// On a server.
    Url(String),
    /// Here.
    Path(PathBuf),
}

/// A commit that is wanted.
#[derive(Debug, Clone, Copy)]
pub struct GitFetch<'a> {
    /// Where.
    pub place: &'a GitPlace,
    /// Which.
    pub commit: GitId,
    /// An annotated tag of it that is wanted too.
    pub tag: Option<&'a str>,
    /// Whether submodules are wanted.
    pub submodules: bool,
}

impl GitFetch<'_> {
    /// Fetches the commit. Blocks; `stop` is asked again and again whether somebody wants it to end, and `received` counts
    /// the bytes of packs.
    ///
    /// # Errors
    /// [`InputError`].
    pub fn run(
        &self,
        guard: &Guard,
        limits: &GitLimits,
        stop: &dyn Fn() -> bool,
        received: &AtomicU64,
    ) -> Result<Snapshot> {
        let failed = |source| InputError::File { what: "the file for a download".to_owned(), source };
        let done = with_runtime(|runtime| self.run_with(runtime, guard, limits, stop, received));
        done.map_err(failed)?
    }

    fn run_with(
        &self,
        runtime: &Runtime,
        guard: &Guard,
        limits: &GitLimits,
        stop: &dyn Fn() -> bool,
        received: &AtomicU64,
    ) -> Result<Snapshot> {
        let deadline = Instant::now() + TOTAL_TIMEOUT;
        let stop = || stop() || Instant::now() >= deadline;
        let stop: &dyn Fn() -> bool = &stop;
        let before = received.load(Ordering::Relaxed);
        let getter = Getter { http: Http::new(guard), runtime, limits, stop, received, before, deadline };
        let mut counts = Counts { limits, entries: 0, bytes: 0, stop };
        let mut links = 0;
        let mut snapshot = match self.place {
            GitPlace::Url(url) => getter.remote(url, self.commit, self.tag, &mut counts)?,
            GitPlace::Path(path) => getter.local(path, self.commit, self.tag, false, &mut counts)?,
        };
        getter.submodules(&mut snapshot, self.place, self.submodules, 0, &mut links, &mut counts)?;
        Ok(snapshot)
    }
}

/// What a branch or tag of a server names now: the commit, also where that is behind an annotated tag.
///
/// `reference` is a full name (`refs/heads/main`), the name of a tag or branch, or `HEAD`.
///
/// # Errors
/// [`InputError`]; `input.missing` if there is none of this name, `input.refused` if it is a tag and a branch that
/// differ.
pub async fn resolve_ref(guard: &Guard, url: &str, reference: &str) -> Result<GitId> {
    let late = |_| InputError::Unreachable {
        url: url.to_owned(),
        reason: format!("no answer after {} s", REFS_TIMEOUT.as_secs()),
        source: None,
    };
    tokio::time::timeout(REFS_TIMEOUT, find_ref(guard, url, reference)).await.map_err(late)?
}

async fn find_ref(guard: &Guard, url: &str, reference: &str) -> Result<GitId> {
    let http = Http::new(guard);
    let remote = Remote::open(&http, url).await?;
    let names = names_of(reference);
    let refs = remote.refs(&names).await?;
    let found = refs.iter().filter(|r| names.contains(&r.name)).map(|r| r.peeled.unwrap_or(r.id));
    only(format!("{url} {}", shown(reference.as_bytes())), found)
}

/// The full names that a reference may have.
pub(super) fn names_of(reference: &str) -> Vec<String> {
    match reference {
        full if full == "HEAD" || full.starts_with("refs/") => vec![full.to_owned()],
        short => vec![format!("refs/tags/{short}"), format!("refs/heads/{short}")],
    }
}

/// The one commit that all of them are.
pub(super) fn only(what: String, mut found: impl Iterator<Item = GitId>) -> Result<GitId> {
    match (found.next(), found.next()) {
        (None, _) => {
            Err(InputError::Missing { what, reason: "there is no branch or tag of this name".to_owned() })
        }
        (Some(one), Some(other)) if one != other => {
            let reason = "a branch and a tag have this name; write refs/heads/… or refs/tags/…".to_owned();
            Err(InputError::Refused { what, reason })
        }
        (Some(one), _) => Ok(one),
    }
}

struct Getter<'a> {
    http: Http<'a>,
    runtime: &'a Runtime,
    limits: &'a GitLimits,
    stop: &'a dyn Fn() -> bool,
    received: &'a AtomicU64,
    /// What `received` was when this input began.
    before: u64,
    deadline: Instant,
}

impl Getter<'_> {
    fn remote(
        &self,
        url: &str,
        commit: GitId,
        tag: Option<&str>,
        counts: &mut Counts<'_>,
    ) -> Result<Snapshot> {
        let failed = |source| InputError::File { what: "the file for a download".to_owned(), source };
        let mut file = scratch_file(&std::env::temp_dir()).map_err(failed)?;
        // Packs of submodules count together with those before them.
        let received = self.received.load(Ordering::Relaxed).saturating_sub(self.before);
        let left = self.limits.pack_bytes_max.saturating_sub(received);
        let limits = GitLimits { pack_bytes_max: left, ..*self.limits };
        let fetching = async {
            let remote = Remote::open(&self.http, url).await?;
            let tag = match tag {
                Some(name) => Some(named(url, name, &remote.refs(&[format!("refs/tags/{name}")]).await?)?),
                None => None,
            };
            let wants: Vec<GitId> = std::iter::once(commit).chain(tag).collect();
            remote.fetch(&wants, &mut file, &limits, self.received).await?;
            Ok(tag)
        };
        let tag = self.runtime.block_on(async {
            let stopped = async {
                while !(self.stop)() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            let end = |reason: &str| InputError::Unreachable {
                url: url.to_owned(),
                reason: reason.to_owned(),
                source: None,
            };
            tokio::select! {
                fetched = fetching => fetched,
                () = stopped => Err(end(match Instant::now() >= self.deadline {
                    true => "not complete after an hour",
                    false => "cancelled",
                })),
            }
        })?;
        let of = |fault: super::fault::Fault| fault.of(url, false);
        let objects = Objects::Fetched(Pack::scan(file, *self.limits, self.stop).map_err(of)?);
        let tag = tag
            .map(|id| objects.read(&id, Kind::Tag, GIT_COMMIT_BYTES_MAX as u64))
            .transpose()
            .map_err(of)?;
        let mut snapshot = Snapshot::of(url, commit, objects, counts).map_err(of)?;
        snapshot.tag = tag.map(|tag| tag.to_vec());
        Ok(snapshot)
    }

    fn local(
        &self,
        path: &std::path::Path,
        commit: GitId,
        tag: Option<&str>,
        nested: bool,
        counts: &mut Counts<'_>,
    ) -> Result<Snapshot> {
        let what = path.display().to_string();
        let of = |fault: super::fault::Fault| fault.of(&what, true);
        let opened = match nested {
            true => Repository::open_module(path, *self.limits),
            false => Repository::open(path, *self.limits),
        };
        let repository = opened.map_err(of)?;
        let tag = match tag {
            Some(name) => Some(repository.tag(name).map_err(of)?.ok_or_else(|| no_tag(&what, name))?),
            None => None,
        };
        let objects = Objects::Here(repository);
        let tag = tag
            .map(|id| objects.read(&id, Kind::Tag, GIT_COMMIT_BYTES_MAX as u64))
            .transpose()
            .map_err(of)?;
        let mut snapshot = Snapshot::of(&what, commit, objects, counts).map_err(of)?;
        snapshot.tag = tag.map(|tag| tag.to_vec());
        Ok(snapshot)
    }

    /// Fetches the submodules of a snapshot, and theirs.
    fn submodules(
        &self,
        snapshot: &mut Snapshot,
        place: &GitPlace,
        wanted: bool,
        depth: usize,
        links: &mut usize,
        counts: &mut Counts<'_>,
    ) -> Result<()> {
        let what = snapshot.what.clone();
        let refused = |reason: String| InputError::Refused { what: what.clone(), reason };
        *links += snapshot.links.len();
        if *links > GIT_LINKS_MAX {
            return Err(refused(format!("more than {GIT_LINKS_MAX} submodules")));
        }
        if !wanted || snapshot.links.is_empty() {
            return Ok(());
        }
        if depth == SUBMODULE_DEPTH_MAX {
            return Err(refused(format!("submodules are nested more than {SUBMODULE_DEPTH_MAX} times")));
        }
        let is_here = snapshot.objects.is_here();
        let file = snapshot.root_file(b".gitmodules", MODULES_BYTES_MAX);
        let file = file.map_err(|fault| fault.at(b".gitmodules").of(&what, is_here))?;
        let modules = modules::parse(file.as_deref().unwrap_or_default()).map_err(refused)?;
        let paths: Vec<(Vec<u8>, GitId)> =
            snapshot.links.iter().map(|(path, (commit, _))| (path.clone(), *commit)).collect();
        for (path, commit) in paths {
            let module = modules.iter().find(|m| m.path.as_deref().map(str::as_bytes) == Some(&path));
            let below = self.module(snapshot, place, module, &path);
            let below = below.map_err(|reason| refused(format!("submodule {}: {reason}", shown(&path))))?;
            let mut nested = match &below {
                GitPlace::Url(url) => {
                    self.http.keeps_credentials(place, url).map_err(refused)?;
                    self.remote(url, commit, None, counts)?
                }
                GitPlace::Path(path) => self.local(path, commit, None, true, counts)?,
            };
            self.submodules(&mut nested, &below, wanted, depth + 1, links, counts)?;
            snapshot.links.insert(path, (commit, Some(nested)));
        }
        Ok(())
    }

    /// Where a submodule's repository lies. A repository here has those of its submodules within itself; nothing in it
    /// leads to another place of this host.
    fn module(
        &self,
        snapshot: &Snapshot,
        place: &GitPlace,
        module: Option<&Module>,
        path: &[u8],
    ) -> std::result::Result<GitPlace, String> {
        let none = || {
            format!(".gitmodules has no URL for it; write submodules = false to leave {} empty", shown(path))
        };
        let module = module.ok_or_else(none)?;
        let url = module.url.as_deref().ok_or_else(none)?;
        match (place, &snapshot.objects) {
            (GitPlace::Url(parent), _) => modules::resolve(parent, url).map(GitPlace::Url),
            (GitPlace::Path(_), Objects::Here(repository)) => match repository.module(&module.name) {
                Some(within) => Ok(GitPlace::Path(within)),
                None => modules::resolve("", url)
                    .ok()
                    .filter(|url| url.starts_with("http"))
                    .map(GitPlace::Url)
                    .ok_or_else(|| {
                        "it is not in this repository; run `git submodule update --init --recursive`"
                            .to_owned()
                    }),
            },
            (GitPlace::Path(_), Objects::Fetched(_)) => Err("it lies nowhere".to_owned()),
        }
    }
}

/// The tag object of this name.
fn named(url: &str, name: &str, refs: &[Ref]) -> Result<GitId> {
    let found = refs.iter().find(|r| r.name == format!("refs/tags/{name}"));
    match found {
        Some(tag) if tag.peeled.is_some() => Ok(tag.id),
        Some(_) => {
            let reason = format!("the tag {} is not annotated, so nobody signed it", shown(name.as_bytes()));
            Err(InputError::Unsigned { what: url.to_owned(), reason })
        }
        None => Err(no_tag(url, name)),
    }
}

fn no_tag(what: &str, name: &str) -> InputError {
    let reason = format!("there is no tag {}", shown(name.as_bytes()));
    InputError::Missing { what: what.to_owned(), reason }
}
