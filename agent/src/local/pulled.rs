//! An image from a registry: its layers go through a pipe into the runner's store while they arrive.

use super::LocalError;
use super::download::Came;
use super::follow::Note;
use super::intake::{Intake, UntilCancelled};
use super::runner::{Runner, RunnerError};
use crate::block::with_runtime;
use crate::inputs::{Blob, InputError, scratch_file};
use crate::registry::{Access, AuthFile, Document, Purpose, Reference, Session};
use crate::visits::{Source, Visit};
use ampoule_spec::Sha256;
use ampoule_spec::wire::Content;
use rustix::pipe::{PipeFlags, pipe_with};
use std::fs::File;
use std::future::Future;
use std::io::{Seek, Write};
use std::time::Duration;
use tokio::runtime::Runtime;

type Result<T> = std::result::Result<T, LocalError>;

/// How often a download looks whether the run was cancelled.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// An image that is to be in the store.
pub(super) struct Pull<'a> {
    pub(super) reference: &'a Reference,
    pub(super) pinned: &'a Sha256,
    pub(super) runner: &'a Runner,
    pub(super) with: &'a Intake,
}

impl Pull<'_> {
    /// Takes the image into the store, unless it is there, and gives the digest of its manifest and where it came from.
    /// This repository is asked for everything that the project has not had from it before, whatever the store has; for
    /// a layer that the project has shown nobody is asked.
    pub(super) fn take(&self, say: &mut dyn FnMut(Note)) -> Result<(Sha256, Came)> {
        if let Some(visit) = self.had()? {
            return Ok((*self.pinned, Came { visit, earlier: true }));
        }
        let auth = self.with.registry_auth.as_deref().map(AuthFile::read).transpose()?;
        let access = Access::new(self.with.sources.clone(), auth);
        let mut session = Session::new(&access, self.reference, Purpose::Pull)?;
        let sha256 = with_runtime(|runtime| self.pull(runtime, &mut session, say)).map_err(scratch)??;
        Ok((sha256, Came { visit: self.visit(), earlier: false }))
    }

    /// When the project has had the whole image from this repository, if it has and the store has it still.
    pub(super) fn had(&self) -> Result<Option<Visit>> {
        let pinned = Content::OciManifest { sha256: *self.pinned };
        match self.with.memory.visit(&self.source(&pinned)) {
            Some(visit) if self.has(pinned)? => Ok(Some(visit)),
            _ => Ok(None),
        }
    }

    fn source(&self, part: &Content) -> Source {
        Source::Registry { repository: self.reference.repository_name(), part: part.clone() }
    }

    fn visit(&self) -> Visit {
        Visit::now(self.reference.repository_name())
    }

    /// The project has had this from the repository now, every byte of it.
    fn keep(&self, part: &Content) {
        self.with.memory.keep(&self.source(part), &self.visit());
    }

    /// Whether a layer need not be asked for.
    fn is_known(&self, layer: &Content) -> Result<bool> {
        let memory = &self.with.memory;
        Ok((memory.has_bytes(layer) || memory.visit(&self.source(layer)).is_some())
            && self.has(layer.clone())?)
    }

    fn pull(
        &self,
        runtime: &Runtime,
        session: &mut Session<'_>,
        say: &mut dyn FnMut(Note),
    ) -> Result<Sha256> {
        let manifest = self.wait(runtime, session.manifest_of(self.pinned))?;
        let sha256 = manifest.sha256;
        let content = Content::OciManifest { sha256 };
        // Of an index, the manifest that it names may be known.
        if self.with.memory.visit(&self.source(&content)).is_some() && self.has(content.clone())? {
            return Ok(sha256);
        }
        say(Note::Importing { what: format!("the image {}", self.reference) });
        let image = self.wait(runtime, session.image_of(manifest))?;
        for layer in &image.layers {
            let content = Content::OciLayer { sha256: layer.sha256 };
            if !self.is_known(&content)? {
                self.layer(runtime, session, layer)?;
                self.keep(&content);
            }
        }
        self.document(Content::OciConfig { sha256: image.config.sha256 }, &image.config)?;
        self.document(content.clone(), &image.manifest)?;
        // Last: a manifest that is known stands for its whole image.
        self.keep(&content);
        Ok(sha256)
    }

    fn has(&self, content: Content) -> Result<bool> {
        Ok(self.runner.find(content)?.is_some())
    }

    /// Runs a request to its end, or until the run is cancelled.
    fn wait<T>(
        &self,
        runtime: &Runtime,
        request: impl Future<Output = std::result::Result<T, InputError>>,
    ) -> Result<T> {
        let cancelled = async {
            while !self.with.cancel.is_cancelled() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        runtime.block_on(async {
            tokio::select! {
                done = request => done.map_err(LocalError::from),
                () = cancelled => Err(LocalError::Cancelled),
            }
        })
    }

    /// Downloads and imports a layer at the same time, to its end even if the store has had it all along. Each side hashes what passes: a registry that sends other bytes is
    /// named as the cause, and an agent that does is found out by the runner.
    fn layer(&self, runtime: &Runtime, session: &mut Session<'_>, layer: &Blob) -> Result<()> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| scratch(e.into()))?;
        let content = Content::OciLayer { sha256: layer.sha256 };
        let watch = &self.with.watch;
        watch.about(format_args!("layer sha256:{:.12}", layer.sha256.to_string()));
        watch.expects(layer.bytes);
        let (received, imported) = std::thread::scope(|scope| {
            let receiving = scope.spawn(move || {
                let mut out = UntilCancelled { out: File::from(write), cancel: &self.with.cancel, watch };
                self.wait(runtime, session.blob("layer", layer, &mut out))
            });
            let imported = self.runner.import(content, read);
            (receiving.join(), imported)
        });
        if self.with.cancel.is_cancelled() {
            return Err(LocalError::Cancelled);
        }
        match (received, imported) {
            (Ok(Ok(())), Ok(_)) => Ok(()),
            (Ok(Err(error)), _) => Err(error),
            (_, Err(error)) => {
                Err(error.within(&format!("{}, layer sha256:{}", self.reference, layer.sha256)).into())
            }
            (Err(_), Ok(_)) => Err(RunnerError::OutOfTurn.into()),
        }
    }

    fn document(&self, content: Content, document: &Document) -> Result<()> {
        let mut file = scratch_file(&std::env::temp_dir()).map_err(scratch)?;
        file.write_all(&document.bytes).and_then(|()| file.rewind()).map_err(scratch)?;
        self.runner.import(content, file.into()).map(drop).map_err(LocalError::from)
    }
}

fn scratch(source: std::io::Error) -> LocalError {
    InputError::File { what: "a temporary file".to_owned(), source }.into()
}
