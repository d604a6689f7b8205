//! Git inputs of a job: fetched at most once, verified, streamed to the import worker.

use super::download::{Came, Downloads};
use super::follow::Note;
use super::intake::{Intake, UntilCancelled, unusable};
use super::runner::{Runner, RunnerError};
use super::watch::Work;
use super::{Cancel, LocalError};
use crate::files::read_file;
use crate::git::{AllowedSigners, GitFetch, GitLimits, GitPlace, Snapshot, commit_time};
use crate::inputs::{Guard, GuardOptions, InputError};
use crate::jobfile::{GitPlan, InputPlan, SourcePlan};
use crate::visits::{Source, Visit};
use ampoule_spec::wire::{Content, Imported};
use ampoule_spec::{GIT_COMMIT_BYTES_MAX, GitSigner, InputSource};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

type Result<T> = std::result::Result<T, LocalError>;

/// The git inputs of a job, by their place.
pub(super) struct GitIntakes<'a>(BTreeMap<usize, GitIntake<'a>>);

impl<'a> GitIntakes<'a> {
    pub(super) fn new(inputs: &[InputPlan], with: &'a Intake) -> Self {
        let inputs = inputs.iter().enumerate();
        let intakes = inputs.filter_map(|(at, input)| match &input.source {
            SourcePlan::Git(plan) => Some((at, GitIntake::new(plan.clone(), with))),
            _ => None,
        });
        Self(intakes.collect())
    }

    /// The time of the commit of the first one.
    pub(super) fn epoch(&mut self, inputs: &[InputPlan], say: &mut dyn FnMut(Note)) -> Result<Option<u64>> {
        let Some((at, intake)) = self.0.iter_mut().next() else { return Ok(None) };
        if let Some(input) = inputs.get(*at).filter(|_| intake.known_commit().is_none()) {
            say(Note::Importing { what: format!("input {}", input.name) });
        }
        intake.epoch().map(Some)
    }

    /// Whether the input at a place is in the store, and its repository need not be asked, neither for its commit's signature.
    pub(super) fn has(&self, at: usize, epoch: u64, runner: &Runner) -> Result<bool> {
        let Some(intake) = self.0.get(&at).filter(|intake| intake.plan.allowed_signers.is_none()) else {
            return Ok(false);
        };
        let (commit, submodules) = (intake.plan.commit, intake.plan.submodules);
        Ok(intake.had(&Content::Git { commit, submodules, epoch }, runner)?.1.is_some())
    }

    /// Takes the input at a place, if it is a git input.
    pub(super) fn take(
        &mut self,
        at: usize,
        epoch: u64,
        runner: &Runner,
        downloads: &Downloads,
        importing: &mut dyn FnMut(),
    ) -> Option<Result<InputSource>> {
        // What was fetched takes room until it is dropped.
        self.0.remove(&at).map(|mut intake| {
            let (source, came) = intake.take(epoch, runner, importing)?;
            came.into_iter().for_each(|came| downloads.came(came));
            Ok(source)
        })
    }
}

/// A stream that goes on when nobody reads it any more: the store may have had it all along, and what has not come whole
/// from its repository was not fetched from there.
struct ToItsEnd(Option<File>);

impl Write for ToItsEnd {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let Some(out) = &mut self.0 else { return Ok(bytes.len()) };
        match out.write(bytes) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
                self.0 = None;
                Ok(bytes.len())
            }
            written => written,
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.as_mut().map_or(Ok(()), Write::flush)
    }
}

/// One git input.
struct GitIntake<'a> {
    plan: GitPlan,
    with: &'a Intake,
    limits: GitLimits,
    fetched: Option<Snapshot>,
}

impl<'a> GitIntake<'a> {
    fn new(plan: GitPlan, with: &'a Intake) -> Self {
        Self { plan, with, limits: GitLimits::default(), fetched: None }
    }

    /// The time of the commit.
    fn epoch(&mut self) -> Result<u64> {
        let object = self.commit_object()?;
        let time = commit_time(self.plan.commit, &object).map_err(|reason| self.refused(reason))?;
        Ok(time)
    }

    /// Takes the checkout into the store, if it is not there or its repository was not asked for it by this project, and
    /// says what it is in the spec and where it came from.
    fn take(
        &mut self,
        epoch: u64,
        runner: &Runner,
        importing: &mut dyn FnMut(),
    ) -> Result<(InputSource, Option<Came>)> {
        let (commit, submodules) = (self.plan.commit, self.plan.submodules);
        let content = Content::Git { commit, submodules, epoch };
        let url = self.url();
        let origin = self.origin();
        let (visit, found) = self.had(&content, runner)?;
        if found.is_none() {
            importing();
        }
        // Before anything goes into the store.
        let signer = self.signer()?;
        let (imported, came) = match found {
            Some(found) => (found, visit.map(|visit| Came { visit, earlier: true })),
            None => {
                let imported = self.import(content, runner)?;
                let visit = url.clone().map(Visit::now);
                if let (Some(origin), Some(visit)) = (&origin, &visit) {
                    self.with.memory.keep(origin, visit);
                }
                (imported, visit.map(|visit| Came { visit, earlier: false }))
            }
        };
        Ok((InputSource::Git { url, commit, submodules, tree: Some(imported.sha256), signer }, came))
    }

    fn url(&self) -> Option<String> {
        match &self.plan.place {
            GitPlace::Url(url) => Some(url.clone()),
            GitPlace::Path(_) => None,
        }
    }

    fn origin(&self) -> Option<Source> {
        let (commit, submodules) = (self.plan.commit, self.plan.submodules);
        self.url().map(|url| Source::Git { url, commit, submodules })
    }

    /// When the project has had the checkout from its repository, and what the store has of it then. A repository here is
    /// nobody's word: what is checked out is what the commit says.
    fn had(&self, content: &Content, runner: &Runner) -> Result<(Option<Visit>, Option<Imported>)> {
        let origin = self.origin();
        let visit = origin.as_ref().and_then(|origin| self.with.memory.visit(origin));
        let found = match origin.is_none() || visit.is_some() {
            true => runner.find(content.clone())?,
            false => None,
        };
        Ok((visit, found))
    }

    fn what(&self) -> String {
        match &self.plan.place {
            GitPlace::Url(url) => format!("{url}@{}", self.plan.commit),
            GitPlace::Path(path) => format!("{}@{}", path.display(), self.plan.commit),
        }
    }

    fn refused(&self, reason: String) -> LocalError {
        InputError::Refused { what: self.what(), reason }.into()
    }

    fn snapshot(&mut self) -> Result<&Snapshot> {
        if self.fetched.is_none() {
            let fetch = GitFetch {
                place: &self.plan.place,
                commit: self.plan.commit,
                tag: self.plan.tag.as_deref(),
                submodules: self.plan.submodules,
            };
            let cancel = &self.with.cancel;
            let guard = Guard::new(self.with.sources.clone(), GuardOptions::default());
            let received = AtomicU64::new(0);
            let meter = RefCell::new(self.with.watch.begin(Work::Fetch));
            let stop = || {
                meter.borrow_mut().at(received.load(Ordering::Relaxed), None);
                cancel.is_cancelled()
            };
            let snapshot = fetch.run(&guard, &self.limits, &stop, &received);
            let snapshot = snapshot.map_err(|error| cancelled_or(cancel, error.into()))?;
            // What is lost here is fetched again.
            if let Some(kept) = self.kept_commit() {
                let _ = self.keep(&kept, snapshot.object());
            }
            if let (Some(tag), Some(kept)) = (snapshot.tag(), self.kept_tag()) {
                let _ = self.keep(&kept, tag);
            }
            self.fetched = Some(snapshot);
        }
        self.fetched.as_ref().ok_or_else(|| RunnerError::OutOfTurn.into())
    }

    fn import(&mut self, content: Content, runner: &Runner) -> Result<Imported> {
        let (cancel, limits, watch) = (&self.with.cancel, self.limits, &self.with.watch);
        let failed =
            |error: std::io::Error| LocalError::file("the stream of", Path::new("a git input"), &error);
        let snapshot = self.snapshot()?;
        let proof = serde_json::to_vec(&snapshot.proof()).map_err(|e| failed(e.into()))?;
        let (read, write) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        let (imported, written) = std::thread::scope(|scope| {
            let importing = scope.spawn(move || runner.import_git(content, read, &proof));
            let out = UntilCancelled { out: ToItsEnd(Some(File::from(write))), cancel, watch };
            let out = BufWriter::with_capacity(256 << 10, out);
            let written = snapshot.write(out, &limits, &|| cancel.is_cancelled());
            (importing.join(), written)
        });
        match (imported, written) {
            (_, _) if cancel.is_cancelled() => Err(LocalError::Cancelled),
            // The runner refused, so nobody read the rest of the stream: its error is the cause.
            (Ok(Err(error)), Ok(()) | Err(InputError::File { .. })) => Err(error.into()),
            (_, Err(error)) => Err(error.into()),
            (Ok(Ok(imported)), Ok(())) => Ok(imported),
            (Err(_), Ok(())) => Err(RunnerError::OutOfTurn.into()),
        }
    }

    /// Who signed, if the job wants to know.
    fn signer(&mut self) -> Result<Option<GitSigner>> {
        let Some(file) = self.plan.allowed_signers.clone() else { return Ok(None) };
        let bytes = read_capped(&file, AllowedSigners::BYTES_MAX)?;
        let wrong = |reason| InputError::Refused { what: file.display().to_string(), reason };
        let allowed = AllowedSigners::parse(&bytes).map_err(wrong)?;
        let commit = self.plan.commit;
        let signer = match self.plan.tag.clone() {
            None => allowed.verify_commit(commit, &self.commit_object()?),
            Some(tag) => {
                let kept = self.kept_tag().and_then(|kept| self.kept(&kept));
                match kept.and_then(|object| allowed.verify_tag(commit, &tag, &object).ok()) {
                    Some(signer) => Ok(signer),
                    // The tag may have been made anew since.
                    None => {
                        let object = self.snapshot()?.tag().map(<[u8]>::to_vec);
                        allowed.verify_tag(commit, &tag, &object.unwrap_or_default())
                    }
                }
            }
        };
        let unsigned = |reason| InputError::Unsigned { what: self.what(), reason };
        signer.map(Some).map_err(|reason| unsigned(reason).into())
    }

    /// The commit, if nobody has to be asked for it. Its name is its hash, so what was kept needs no trust.
    fn known_commit(&self) -> Option<Vec<u8>> {
        self.kept(&self.kept_commit()?).filter(|object| commit_time(self.plan.commit, object).is_ok())
    }

    fn commit_object(&mut self) -> Result<Vec<u8>> {
        match self.known_commit() {
            Some(object) => Ok(object),
            None => Ok(self.snapshot()?.object().to_vec()),
        }
    }

    fn kept_commit(&self) -> Option<PathBuf> {
        Some(self.with.commits.as_ref()?.join(self.plan.commit.to_string()))
    }

    /// A tag's name has no `%`.
    fn kept_tag(&self) -> Option<PathBuf> {
        let tag = self.plan.tag.as_ref()?.replace('/', "%");
        Some(self.with.commits.as_ref()?.join(format!("{}-{tag}", self.plan.commit)))
    }

    fn kept(&self, path: &Path) -> Option<Vec<u8>> {
        read_capped(path, GIT_COMMIT_BYTES_MAX as u64).ok()
    }

    /// Keeps an object for the next run, which then need not fetch it to know the commit's time or signature.
    fn keep(&self, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
        let Some(dir) = path.parent() else { return Ok(()) };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        // Others keep the same one at the same time.
        let new = dir.join(format!(".new-{}", uuid::Uuid::now_v7()));
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
        let kept = file.write_all(bytes).and_then(|()| std::fs::rename(&new, path));
        if kept.is_err() {
            let _ = std::fs::remove_file(&new);
        }
        kept
    }
}

fn cancelled_or(cancel: &Cancel, error: LocalError) -> LocalError {
    if cancel.is_cancelled() { LocalError::Cancelled } else { error }
}

fn read_capped(path: &Path, bytes_max: u64) -> Result<Vec<u8>> {
    read_file(path, bytes_max).map_err(|error| unusable(path, error))
}
