//! What lies here: a file or a directory goes into the store, or is there by its digest already.

use super::LocalError;
use super::intake::{Intake, UntilCancelled, open, unusable};
use super::runner::RunnerError;
use super::take::Taker;
use crate::inputs::InputError;
use crate::inputs::exclude::Excludes;
use crate::jobfile::{InputPlan, PathDigest};
use ampoule_spec::wire::Content;
use ampoule_spec::{Code, InputSource, Name, Sha256};
use ampoule_store::Limits;
use ampoule_store::pack::{PackError, pack_filtered, tree_digest};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

type Result<T> = std::result::Result<T, LocalError>;

/// An input that lies here.
pub(crate) struct PathIntake<'a> {
    name: &'a Name,
    path: &'a Path,
    exclude: Excludes,
    epoch: u64,
    taker: &'a dyn Taker,
    with: &'a Intake,
}

impl<'a> PathIntake<'a> {
    pub(crate) fn new(
        input: &'a InputPlan,
        path: &'a Path,
        epoch: u64,
        taker: &'a dyn Taker,
        with: &'a Intake,
    ) -> Self {
        let exclude = Excludes::new(&input.exclude);
        Self { name: &input.name, path, exclude, epoch, taker, with }
    }

    /// Takes it in. What has a digest and is in the store is not read: the digest says what it is, and not the path.
    pub(crate) fn take(
        &self,
        digest: Option<PathDigest>,
        importing: &mut dyn FnMut(),
    ) -> Result<InputSource> {
        if let Some(PathDigest::Tree(tree)) = digest
            && self.has_tree(tree)?
        {
            return Ok(InputSource::Directory { tree });
        }
        let file = open(self.path)?;
        let meta = file.metadata().map_err(|e| unusable(self.path, e))?;
        let wrong = |found: &str| {
            LocalError::Input(InputError::Refused {
                what: self.path.display().to_string(),
                reason: format!("it is {found} now; run `ampoule pin --path {} JOB.toml`", self.name),
            })
        };
        match digest {
            None if meta.is_dir() => self.directory(&file, importing),
            Some(PathDigest::Tree(tree)) if meta.is_dir() => self.import(&file, Some(tree), importing),
            Some(PathDigest::Tree(_)) => Err(wrong("no directory")),
            Some(PathDigest::File(_)) if meta.is_dir() => Err(wrong("a directory")),
            None => self.file(file, meta.mode(), None, importing),
            Some(PathDigest::File(sha256)) => self.file(file, meta.mode(), Some(sha256), importing),
        }
    }

    fn has_tree(&self, tree: Sha256) -> Result<bool> {
        self.taker.has(&Content::Directory { tree: Some(tree), epoch: self.epoch })
    }

    fn file(
        &self,
        file: File,
        mode: u32,
        sha256: Option<Sha256>,
        importing: &mut dyn FnMut(),
    ) -> Result<InputSource> {
        let executable = mode & 0o100 != 0;
        let content = Content::File { sha256, executable, epoch: self.epoch };
        if let Some(sha256) = sha256
            && self.taker.has(&content)?
        {
            return Ok(InputSource::File { sha256, executable });
        }
        importing();
        let sha256 = self.taker.take_file(content, file).map_err(|error| self.told(error))?;
        Ok(InputSource::File { sha256, executable })
    }

    /// A refusal for another digest says what to do about it.
    fn told(&self, error: LocalError) -> LocalError {
        if error.code() != Code::InputDigestMismatch {
            return error;
        }
        let remedy = InputError::pin_anew(self.name);
        let message = format!("{}: {error}; {remedy}", self.path.display());
        RunnerError::Refused { code: Code::InputDigestMismatch, message }.into()
    }

    fn refused(&self, error: &PackError) -> RunnerError {
        RunnerError::Refused {
            code: Code::InputRefused,
            message: format!("{}: {error}", self.path.display()),
        }
    }

    /// A directory of which nobody says what is in it. Its digest first: a tree that is in the store need not be packed,
    /// unpacked and thrown away once more.
    fn directory(&self, dir: &File, importing: &mut dyn FnMut()) -> Result<InputSource> {
        let exclude = &self.exclude;
        let excluded = |path: &[u8], is_dir: bool| exclude.has(path, is_dir);
        let cancel = &self.with.cancel;
        let cancelled = || cancel.is_cancelled();
        let digested = tree_digest(dir.as_fd(), &excluded, &cancelled, &Limits::default());
        if self.with.cancel.is_cancelled() {
            return Err(LocalError::Cancelled);
        }
        let tree = digested.map_err(|error| self.refused(&error))?.tree;
        if self.has_tree(tree)? {
            return Ok(InputSource::Directory { tree });
        }
        // It may change until it is packed: then what is packed counts, and is what both sides call it.
        self.import(dir, None, importing)
    }

    /// Streams a directory to who takes it. What that computed from the stream must be what we computed from the files, and
    /// what the job names.
    fn import(&self, dir: &File, tree: Option<Sha256>, importing: &mut dyn FnMut()) -> Result<InputSource> {
        importing();
        let (cancel, watch) = (&self.with.cancel, &self.with.watch);
        let exclude = &self.exclude;
        let excluded = |path: &[u8], is_dir: bool| exclude.has(path, is_dir);
        let pack = |out: &mut dyn Write| {
            let mut out = BufWriter::with_capacity(256 << 10, UntilCancelled { out, cancel, watch });
            pack_filtered(dir.as_fd(), &mut out, &excluded, &Limits::default())
        };
        let content = Content::Directory { tree, epoch: self.epoch };
        let (packed, taken) = self.taker.take_packed(content, &pack)?;
        if self.with.cancel.is_cancelled() {
            return Err(LocalError::Cancelled);
        }
        match (packed, taken) {
            (Ok(packed), _) if tree.is_some_and(|tree| tree != packed.tree) => {
                let expected = tree.unwrap_or(packed.tree);
                let remedy = InputError::pin_anew(self.name);
                Err(LocalError::Input(InputError::OtherObjects {
                    what: self.path.display().to_string(),
                    reason: format!("expected sha256:{expected}, found sha256:{}; {remedy}", packed.tree),
                }))
            }
            (Ok(packed), Ok(taken)) if packed.tree == taken => Ok(InputSource::Directory { tree: taken }),
            // It was not taken, so nobody read the rest of the stream: that error is the cause.
            (Ok(_) | Err(PackError::Write(_)), Err(error)) => Err(error),
            (Err(error), _) => Err(self.refused(&error).into()),
            _ => Err(RunnerError::OutOfTurn.into()),
        }
    }
}
