//! Content that jobs name by digest: what each project has shown to have, and its uploads.
//!
//! Guarantees: a project has a content only when bytes with its digest came from it, or were fetched for it; what others
//! have is not told, whatever the store has. An upload that was cut short goes on where it ended. No name in a request is
//! opened: files are named by hashes, below one directory ([`name`]).
//! What it has fetched from where is kept beside that ([`crate::visits`]).
//! Not guaranteed: that the store keeps what it has; what was collected meanwhile is missing again.

mod error;
mod import;
mod job;
mod known;
mod launcher;
mod limits;
pub mod name;
mod refs;
mod rpc;
mod spool;

pub use error::ContentError;
pub use import::{ImportError, Importer};
pub use job::{contents_of, uploaded};
pub use launcher::Launcher;
pub use limits::ContentLimits;
pub use refs::{content, content_ref};
pub use rpc::{Gate, Rpc, service};
pub use spool::Upload;

use crate::fair::Seats;
use crate::visits::{Source, Visit, Visits};
use ampoule_spec::wire::Content;
use ampoule_spec::{Code, JobSpec, Name};
use import::Finished;
use known::Known;
use rustix::fs::{CWD, Mode, OFlags, openat};
use spool::Spool;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long a lookup waits for its turn, and when it may be asked for again.
const LOOK_WITHIN: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_secs(2);

type Result<T> = std::result::Result<T, ContentError>;

/// The content of all projects of a host.
#[derive(Debug)]
pub struct Contents<I> {
    importer: Arc<I>,
    known: Arc<Known>,
    visits: Visits,
    spool: Spool,
    limits: ContentLimits,
    importing: Arc<Seats>,
    looking: Arc<Seats>,
}

/// What became of the header of an upload.
#[derive(Debug)]
pub enum Begun {
    /// The project has it already.
    Present,
    /// Its bytes are awaited.
    Open(Upload),
}

impl<I: Importer> Contents<I> {
    /// Opens the content below a directory of the agent's own, which is made if it is not there. Blocks.
    ///
    /// # Errors
    /// If the directory cannot be made or used.
    pub fn open(dir: &Path, importer: I, limits: ContentLimits) -> std::io::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let dir = openat(CWD, dir, flags, Mode::empty())?;
        Ok(Self {
            importer: Arc::new(importer),
            known: Arc::new(Known::open(&dir, limits.known_per_project)?),
            visits: Visits::below(&dir, limits.known_per_project)?,
            spool: Spool::open(&dir, limits)?,
            limits,
            importing: Seats::all_but_one(limits.imports),
            looking: Seats::all_but_one(limits.lookups),
        })
    }

    /// Which of these the project does not have, in their order.
    ///
    /// # Errors
    /// [`ContentError`] if the store cannot be asked, or as many ask it as may.
    pub async fn missing(&self, project: &Name, contents: Vec<Content>) -> Result<Vec<Content>> {
        let (known, of) = (Arc::clone(&self.known), project.clone());
        let (shown, mut missing): (Vec<_>, Vec<_>) =
            blocking(move || Ok(contents.into_iter().partition(|content| known.has(&of, content)))).await?;
        if shown.is_empty() {
            return Ok(missing);
        }
        let seat = self.looking.take_within(project.as_str(), LOOK_WITHIN).await.ok_or_else(|| {
            let text = "as much content of the project is looked up as may be at once";
            ContentError::later(Code::AdmissionBusy, text, LOOK_AGAIN)
        })?;
        let importer = Arc::clone(&self.importer);
        let (shown, present) = blocking(move || {
            // Until the store has answered, whoever still waits for that.
            let _seat = seat;
            let present = importer.present(&shown).map_err(ContentError::import)?;
            Ok((shown, present))
        })
        .await?;
        let lost = shown.into_iter().zip(present.into_iter().chain(std::iter::repeat(false)));
        missing.extend(lost.filter(|(_, present)| !present).map(|(content, _)| content));
        Ok(missing)
    }

    /// Turns of projects at what is only looked up in the store, for those who look there besides.
    pub fn lookups(&self) -> Arc<Seats> {
        Arc::clone(&self.looking)
    }

    /// What of the content that a job names the project does not have. What the host fetches for the job is not content.
    ///
    /// # Errors
    /// [`ContentError`] if the store cannot be asked.
    pub async fn check(&self, project: &Name, spec: &JobSpec) -> Result<Vec<Content>> {
        self.missing(project, contents_of(spec)).await
    }

    /// Whether the project has shown this content, whatever the store has now. Blocks for a moment.
    pub fn is_known(&self, project: &Name, content: &Content) -> bool {
        self.known.has(project, content)
    }

    /// Records that bytes with this digest came for the project: what was fetched for its job. Blocks for a moment.
    ///
    /// # Errors
    /// [`ContentError`] if it cannot be made durable.
    pub fn record(&self, project: &Name, content: &Content) -> Result<()> {
        self.known.record(project, content)
    }

    /// When the project has fetched this from there, if it has. Blocks for a moment.
    pub fn visit(&self, project: &Name, source: &Source) -> Option<Visit> {
        self.visits.get(project, source)
    }

    /// Records that the project has fetched this from there. Blocks for a moment.
    ///
    /// # Errors
    /// [`ContentError`] if it cannot be made durable.
    pub fn record_visit(&self, project: &Name, source: &Source, visit: &Visit) -> Result<()> {
        self.visits.put(project, source, visit).map_err(known::not_put)
    }

    /// How many bytes of an upload that was cut short are there; none if the project has the content.
    ///
    /// # Errors
    /// [`ContentError`] if the store cannot be asked.
    pub async fn offset(&self, project: &Name, content: Content) -> Result<Option<u64>> {
        if self.missing(project, vec![content.clone()]).await?.is_empty() {
            return Ok(None);
        }
        Ok(Some(self.spool.offset(project, &content)))
    }

    /// Begins an upload of `size` bytes, or goes on with it at `offset`.
    ///
    /// # Errors
    /// [`ContentError`]: a limit, another offset than [`Contents::offset`] says, or somebody else is at it.
    pub async fn begin(&self, project: &Name, content: Content, size: u64, offset: u64) -> Result<Begun> {
        if self.missing(project, vec![content.clone()]).await?.is_empty() {
            return Ok(Begun::Present);
        }
        let (spool, project) = (self.spool.clone(), project.clone());
        blocking(move || spool.begin(&project, content, size, offset).map(Begun::Open)).await
    }

    /// Takes a whole upload into the store and records that the project has it. It goes on when nobody waits any more.
    ///
    /// # Errors
    /// [`ContentError`]: other bytes than the digest says are dropped, as an archive that is refused; for any other reason
    /// the upload is kept.
    pub async fn finish(&self, upload: Upload) -> Result<()> {
        let seat = self.importing.take(upload.project.as_str()).await;
        let finished =
            Finished { importer: Arc::clone(&self.importer), known: Arc::clone(&self.known), seat };
        blocking(move || finished.take(upload)).await
    }

    /// Forgets what was left or not used for too long. Blocks; to be called now and then.
    pub fn sweep(&self) {
        self.spool.sweep();
        self.known.sweep(self.limits.known_age);
        self.visits.sweep(self.limits.known_age);
    }

    /// The limits.
    pub fn limits(&self) -> &ContentLimits {
        &self.limits
    }
}

/// Does something that blocks, away from the threads that serve.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(ContentError::new(Code::Internal, "the work on a content ended early")))
}
