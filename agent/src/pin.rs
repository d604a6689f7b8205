//! `ampoule pin`: a job file's tags and URLs become digests, in place.
//!
//! What is guaranteed: nothing but what is not pinned changes in the file, comments and layout stay; the result is a valid job
//! file, or the file stays as it was; it is replaced as a whole, and not if somebody else has written to it meanwhile. What
//! is not: that the bytes are the right ones. Whoever pins believes what the sources say at that moment.

mod edit;
mod paths;
mod resolve;
mod write;

use crate::files::code_of;
use crate::inputs::InputError;
use crate::jobfile::{JobFile, JobFileError, PathDigest, parse, shown};
use crate::registry::AuthFile;
use crate::sources::Policy;
use ampoule_spec::Code;
use edit::Document;
use std::path::{Path, PathBuf};

pub use edit::Unpinned;
pub use paths::Stale;

/// What was resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned {
    /// The field, as in `input[0].http`.
    pub field: String,
    /// What it names: an image, a URL without its query, or a path.
    pub what: String,
    /// What it is pinned to: `sha256:` and digits, or the id of a commit.
    pub pin: String,
    /// Where it was looked up, if that is another place.
    pub from: Option<String>,
}

/// Why a job file cannot be pinned; it is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PinError {
    /// The job file.
    #[error(transparent)]
    Job(#[from] JobFileError),
    /// A source, at a field.
    #[error("{field}")]
    Source {
        /// The field.
        field: String,
        /// The cause.
        source: InputError,
    },
    /// The file cannot be replaced.
    #[error("{path}: {reason}")]
    File {
        /// `file.unusable` or `file.full`.
        code: Code,
        /// The file.
        path: PathBuf,
        /// Why not, and what to do.
        reason: String,
    },
}

impl PinError {
    /// The bounded code.
    pub fn code(&self) -> Code {
        match self {
            Self::Job(error) => error.code(),
            Self::Source { source, .. } => source.code(),
            Self::File { code, .. } => *code,
        }
    }
}

/// A job file whose digests may be missing.
#[derive(Debug)]
pub struct PinFile {
    path: PathBuf,
    name: String,
    text: String,
    document: Document,
    /// What the file says, with drafts of the digests that are missing.
    job: JobFile,
}

impl PinFile {
    /// Reads the job file at `path`. Everything in it but the missing digests must be right.
    ///
    /// # Errors
    /// As of [`load`](crate::jobfile::load), `input.unpinned` excepted.
    pub fn load(path: &Path) -> Result<Self, JobFileError> {
        let (text, name) = crate::jobfile::read_text(path)?;
        let document = match Document::parse(&text) {
            Ok(document) => document,
            // The reader of job files says it better.
            Err(reason) => {
                parse(text.as_bytes(), &name)?;
                return Err(JobFileError::whole(Code::JobInvalid, &name, "", reason, ""));
            }
        };
        // Whatever else is wrong is said before anything is fetched.
        let mut draft = document.clone();
        for unpinned in document.unpinned() {
            draft.pin(&unpinned, &unpinned.draft());
        }
        let job = parse(draft.text().as_bytes(), &name)?;
        Ok(Self { path: path.to_owned(), name, text, document, job })
    }

    /// Which paths with a digest do not hold what it says, in the order of the file. Reads all of them.
    ///
    /// # Errors
    /// [`PinError::Source`] for one that cannot be read.
    pub fn stale(&self) -> Result<Vec<Stale>, PinError> {
        let base = self.base();
        let mut stale = Vec::new();
        for here in paths::all(&self.job) {
            let Some(pinned) = here.digest else { continue };
            let field = here.field(pinned);
            let failed = |source| PinError::Source { field: field.clone(), source };
            let found = here.now(base).map_err(failed)?;
            if found != pinned {
                let (what, input) = (here.path.to_owned(), here.input.name.to_string());
                stale.push(Stale { field, what, input, pinned, found });
            }
        }
        Ok(stale)
    }

    /// What is not pinned, in the order of the file.
    pub fn unpinned(&self) -> Vec<Unpinned> {
        self.document.unpinned()
    }

    /// Resolves what is not pinned, and pins the inputs called `paths` to what lies at their paths now; then replaces the
    /// file. Registries are shown the credentials of `auth`. `say` hears of each as it is resolved. Blocks; not to be called
    /// on an async worker thread.
    ///
    /// # Errors
    /// [`PinError`]; nothing was written then.
    pub fn pin(
        mut self,
        policy: &Policy,
        auth: Option<AuthFile>,
        paths: &[String],
        say: &mut dyn FnMut(&Pinned),
    ) -> Result<Vec<Pinned>, PinError> {
        let unpinned = self.unpinned();
        let base = self.base().to_owned();
        let here = self.look_at(paths)?;
        let resolver = resolve::Resolver::new(policy.clone(), auth, base);
        let mut done = Vec::new();
        for one in unpinned {
            let failed = |source| PinError::Source { field: one.field().to_owned(), source };
            let (digits, from) = resolver.resolve(&one).map_err(failed)?;
            self.document.pin(&one, &digits);
            let what = one.what().to_owned();
            let pinned = Pinned {
                field: one.field().to_owned(),
                from: from.filter(|from| *from != what),
                what,
                pin: one.spelt(&digits),
            };
            say(&pinned);
            done.push(pinned);
        }
        for (at, digest, pinned) in here {
            self.document.pin_path(at, digest);
            say(&pinned);
            done.push(pinned);
        }
        let text = self.document.text();
        if text == self.text {
            return Ok(done);
        }
        parse(text.as_bytes(), &self.name)?;
        write::replace(&self.path, self.text.as_bytes(), text.as_bytes()).map_err(|e| self.cannot(&e))?;
        Ok(done)
    }

    /// What lies at the paths of these inputs.
    fn look_at(&self, names: &[String]) -> Result<Vec<(usize, PathDigest, Pinned)>, PinError> {
        let look = |name: &String| {
            let Some(here) = paths::all(&self.job).find(|here| here.input.name.as_str() == name) else {
                let reason = format!("no input with a path is called {}", shown(name));
                let error = JobFileError::whole(Code::Usage, &self.name, "--path", reason, "");
                return Err(error.into());
            };
            let failed = |source| PinError::Source { field: format!("input[{}].path", here.at), source };
            let digest = here.now(self.base()).map_err(failed)?;
            let pin = format!("sha256:{}", digest.sha256());
            let pinned = Pinned { field: here.field(digest), what: here.path.to_owned(), pin, from: None };
            Ok((here.at, digest, pinned))
        };
        names.iter().map(look).collect()
    }

    /// Where relative paths are taken from.
    fn base(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    fn cannot(&self, error: &std::io::Error) -> PinError {
        PinError::File { code: code_of(error), path: self.path.clone(), reason: error.to_string() }
    }
}

#[cfg(test)]
#[path = "pin_tests.rs"]
mod tests;
