//! What a job leaves, on its way into the store: written once, by the supervisor, and read back before it has a name.
//!
//! [`Store::begin_output`] → bytes → [`Store::seal_output`], which makes it durable → [`Store::publish_output`]. What is
//! dropped in between is removed by a sweep, like an import that died.

use crate::beneath;
use crate::commit::Staging;
use crate::error::StoreError;
use crate::file_list::Sink;
use crate::lease::Lease;
use crate::limits::Limits;
use crate::pack::{PackError, Packed, copy_output};
use crate::receive::Received;
use crate::seal::{Owner, Sealed, Sealer};
use crate::store::{Store, TREE, shape};
use crate::target::{Attributes, ToTree, Watch};
use crate::worker::{CONTENT, Claims};
use ampoule_spec::Blake3;
use ampoule_spec::wire::Content;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use std::fs::File;

/// An object without a name that is being filled. Nobody else can reach it.
#[derive(Debug)]
pub struct Leaving {
    staging: Staging,
    give: Option<(Uid, Gid)>,
}

/// One that was read back and is on the disk. It has no name yet.
#[derive(Debug)]
pub struct SealedOutput {
    staging: Staging,
    content: Content,
    sealed: Sealed,
    received: Received,
}

impl SealedOutput {
    /// The object's name.
    pub fn object(&self) -> Blake3 {
        self.sealed.digest.blake3
    }
}

impl Leaving {
    /// A new file for an output that is a file, for writing; the only one.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn file(&self) -> Result<File, StoreError> {
        let made = beneath::create(self.staging.tree(), CONTENT);
        Ok(File::from(made.map_err(StoreError::io("make a file", TREE))?))
    }

    /// Copies a directory that nobody changes meanwhile, with `epoch` (seconds since 1970) as every time. `passed` hears
    /// of bytes as they are written, `watch` sees what is; each may end it.
    ///
    /// # Errors
    /// [`PackError`], by the rules of [`crate::pack::pack_output`].
    pub fn directory(
        &self,
        from: BorrowedFd<'_>,
        epoch: u64,
        limits: &Limits,
        passed: &mut dyn FnMut(u64) -> std::io::Result<()>,
        watch: &mut Watch<'_>,
    ) -> Result<Packed, PackError> {
        let root = self.staging.tree().try_clone().map_err(PackError::Write)?;
        let mut tree = ToTree::new(root, Attributes::new(epoch, self.give), passed);
        copy_output(from, &mut tree, limits, watch)
    }
}

impl Store {
    /// Begins an object for what a job leaves. It may take the room that imports leave free.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn begin_output(&self) -> Result<Leaving, StoreError> {
        let staging = self.stage(&Content::Directory { tree: None, epoch: 0 })?;
        let stat = rustix::fs::fstat(staging.tree()).map_err(StoreError::io("examine", TREE))?;
        let is_roots = (stat.st_uid, stat.st_gid) == (0, 0) && rustix::process::getegid().is_root();
        let shifted = matches!(self.owner, Owner::Mapped { .. }) && !is_roots;
        Ok(Leaving { staging, give: shifted.then_some((Uid::ROOT, Gid::ROOT)) })
    }

    /// Gives up an object that was being filled.
    ///
    /// # Errors
    /// When it cannot be removed; a later sweep tries again.
    pub fn give_up(&self, leaving: Leaving) -> Result<(), StoreError> {
        self.discard(leaving.staging)
    }

    /// Reads an object back, holds it against what was copied, and puts it on the disk. `content` has its digest.
    ///
    /// # Errors
    /// [`StoreError`]; nothing of it is left then.
    pub fn seal_output(&self, leaving: Leaving, content: Content) -> Result<SealedOutput, StoreError> {
        match self.sealed(&leaving, &content) {
            Ok((sealed, received)) => {
                Ok(SealedOutput { staging: leaving.staging, content, sealed, received })
            }
            Err(error) => {
                let _ = self.discard(leaving.staging);
                Err(error)
            }
        }
    }

    fn sealed(&self, leaving: &Leaving, content: &Content) -> Result<(Sealed, Received), StoreError> {
        let staging = &leaving.staging;
        let failed = |errno| StoreError::io("set the attributes of", TREE)(errno);
        if let Content::File { executable, epoch, .. } = content {
            let attributes = Attributes::new(*epoch, leaving.give);
            let file = beneath::open_file(staging.tree(), CONTENT).map_err(failed)?;
            attributes.set(&file, *executable).map_err(failed)?;
            attributes.set(staging.tree(), true).map_err(failed)?;
        }
        let root = beneath::open_dir(staging.dir(), TREE.as_bytes()).map_err(StoreError::io("open", TREE))?;
        // What a job may leave is bounded by its own limits, and was.
        let limits = Limits { bytes_max: u64::MAX, ..Limits::default() };
        let mut sealer = Sealer::new(self.owner, shape(content), limits, false);
        sealer.list_to(Sink::files(staging.dir()).map_err(StoreError::io("make a file", TREE))?);
        let (sealed, _) = sealer.seal_listed(root)?;
        let sha256 = match content {
            Content::File { sha256, .. } => *sha256,
            Content::Directory { tree, .. } => *tree,
            _ => None,
        };
        let unnamed = || StoreError::Damaged { entry: TREE.to_owned(), reason: "it has no name".to_owned() };
        let received = Received { sha256: sha256.ok_or_else(unnamed)?, bytes: sealed.bytes };
        self.identify(staging, content, &sealed, &received)?;
        self.finish(staging, &sealed)?;
        Ok((sealed, received))
    }

    /// Gives an object its names, durably, and keeps it for as long as the lease lives. One that was there before is kept
    /// if it is sound.
    ///
    /// # Errors
    /// [`StoreError`]; nothing of it is left then.
    pub fn publish_output(&self, output: SealedOutput) -> Result<Lease, StoreError> {
        let SealedOutput { staging, content, sealed, received } = output;
        let object = sealed.digest.blake3;
        let published = self.publish(&staging, &content, &sealed, &received, &Claims::default());
        let removed = self.discard(staging);
        published.and(removed)?;
        self.lease(object)?.ok_or_else(|| StoreError::Damaged {
            entry: object.to_string(),
            reason: "it vanished".to_owned(),
        })
    }

    /// Gives up what was sealed.
    ///
    /// # Errors
    /// When it cannot be removed; a later sweep tries again.
    pub fn discard_output(&self, output: SealedOutput) -> Result<(), StoreError> {
        self.discard(output.staging)
    }

    /// The content that the store has under the digest of this one: a file or directory whose times, and whether it may
    /// be executed, may be others. This one itself comes first.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn like(&self, content: &Content) -> Result<Option<Content>, StoreError> {
        let named = match content {
            Content::File { sha256: Some(sha256), .. } => format!("file-{sha256}-"),
            Content::Directory { tree: Some(tree), .. } => format!("directory-{tree}-"),
            _ => return Ok(None),
        };
        if let Ok(Some(record)) = self.present(content) {
            return Ok(Some(record.content));
        }
        let mut keys = crate::inventory::names(&self.index, "index")?;
        keys.retain(|key| key.starts_with(&named));
        keys.sort_unstable();
        for key in keys {
            if let Ok(Some(bytes)) = self.read_small(&self.index, &key)
                && let Ok(record) = crate::record::read::<crate::record::Record>(&key, &bytes)
                && crate::uses::is_of(&record, &key)
                && self.is_there(record.tree)
            {
                return Ok(Some(record.content));
            }
        }
        Ok(None)
    }
}

impl Lease {
    /// What a file or directory of the store's holds, for reading: the file itself, or the root of the tree.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn open(&self, is_file: bool) -> Result<OwnedFd, StoreError> {
        let name = self.object.to_string();
        let root = beneath::open_dir(&self.dir, TREE.as_bytes()).map_err(StoreError::io("open", &name))?;
        if !is_file {
            return Ok(root);
        }
        beneath::open_file(&root, CONTENT).map_err(StoreError::io("open", &name))
    }

    /// Says that the object is used now.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn touch(&self) -> Result<(), StoreError> {
        let failed = |errno: Errno| StoreError::io("set the time of", &self.object.to_string())(errno);
        crate::lease::touch(self.dir.as_fd()).map_err(failed)
    }
}
