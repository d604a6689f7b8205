//! Taking a finished import into the store.

use crate::beneath;
use crate::check::{Budget, Checked};
use crate::error::StoreError;
use crate::file_list::Sink;
use crate::git;
use crate::lease::touch;
use crate::limits::DOCUMENT_BYTES_MAX;
use crate::oci;
use crate::receive::Received;
use crate::record::{self, Record, TreeMeta};
use crate::refusal::Refusal;
use crate::remove::remove;
use crate::seal::{Owner, Sealed, Sealer};
use crate::store::{META, Store, StoredTree, TREE, read_capped, shape};
use crate::worker::{CONTENT, Claims, WorkerResult};
use ampoule_spec::wire::{Content, Imported};
use ampoule_spec::{Blake3, GitProof, ReadPolicy, Sha256};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{FlockOperation, Gid, Mode, RenameFlags, Uid};
use rustix::io::Errno;
use std::fs::File;
use std::io::Write;

/// An import under way: a directory that nobody else knows, locked as long as this lives.
///
/// Dropping it leaves the directory for [`Store::sweep_staging`]; [`Store::discard`] removes it at once.
///
/// The lock belongs to an open file, so a process that was forked meanwhile and keeps its descriptors keeps the
/// lock too: whoever forks without exec closes them, or what a dead importer left behind counts as live.
#[derive(Debug)]
pub struct Staging {
    content: Content,
    name: String,
    /// Holds the lock.
    dir: OwnedFd,
    tree: OwnedFd,
    /// Git: what shows that the tree is the commit's.
    proof: Option<GitProof>,
}

impl Staging {
    /// A descriptor of the empty directory that the worker fills, which belongs to the worker's first id.
    ///
    /// The lock is on another descriptor, so a worker that keeps this one does not keep the lock.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn worker_dir(&self) -> Result<OwnedFd, StoreError> {
        self.tree.try_clone().map_err(|error| {
            StoreError::io("duplicate", TREE)(Errno::from_io_error(&error).unwrap_or(Errno::MFILE))
        })
    }

    /// The object's own directory.
    pub(crate) fn dir(&self) -> &OwnedFd {
        &self.dir
    }

    /// The tree in it.
    pub(crate) fn tree(&self) -> &OwnedFd {
        &self.tree
    }

    /// Says what shows that the tree is a commit's checkout; without it no [`Content::Git`] is taken.
    pub fn prove(&mut self, proof: GitProof) {
        self.proof = Some(proof);
    }
}

/// What is said of a content that was taken in.
fn imported(content: &Content, sealed: &Sealed, received: &Received) -> Imported {
    let sha256 = match content {
        Content::Directory { .. } | Content::Git { .. } => sealed.digest.sha256,
        _ => received.sha256,
    };
    Imported { sha256, bytes: sealed.bytes, entries: sealed.entries }
}

impl Store {
    /// Begins an import.
    ///
    /// # Errors
    /// [`StoreError::Full`] if there is no room for it, others when the directory cannot be made.
    pub fn begin(&self, content: &Content) -> Result<Staging, StoreError> {
        self.limits_now()?;
        let staging = self.stage(content)?;
        if let Owner::Mapped { base } = self.owner
            && base != 0
        {
            rustix::fs::fchown(&staging.tree, Some(Uid::from_raw(base)), Some(Gid::from_raw(base)))
                .map_err(StoreError::io("set the owner", &staging.name))?;
        }
        Ok(staging)
    }

    /// A new directory in staging that is locked, with an empty tree in it.
    pub(crate) fn stage(&self, content: &Content) -> Result<Staging, StoreError> {
        let name = random_name()?;
        let no_sweep = self.gate(FlockOperation::LockShared)?;
        rustix::fs::mkdirat(&self.staging, &name, Mode::RWXU)
            .map_err(StoreError::io("make a directory", &name))?;
        let dir = beneath::open_dir(&self.staging, name.as_bytes()).map_err(StoreError::io("open", &name))?;
        rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive)
            .map_err(StoreError::io("lock", &name))?;
        drop(no_sweep);
        rustix::fs::mkdirat(&dir, TREE, Mode::RWXU).map_err(StoreError::io("make a directory", &name))?;
        let tree = beneath::open_dir(&dir, TREE.as_bytes()).map_err(StoreError::io("open", &name))?;
        Ok(Staging { content: content.clone(), name, dir, tree, proof: None })
    }

    /// Takes a worker's tree into the store, if it is what its name says.
    ///
    /// Call it when the worker is dead. It reads every byte of the tree once, so call it in the import's own
    /// process (the one that ran [`crate::receive`]), not in the launcher's loop. Whatever happens, the staging
    /// directory is gone afterwards. Acknowledged means durable: the files and `meta.json`, then the
    /// tree's name, then the index, each synced before the next.
    ///
    /// A content that came into the store meanwhile is fine; that one is kept.
    ///
    /// # Errors
    /// [`StoreError::Refused`] and [`StoreError::Worker`] for the content, others for the store.
    pub fn commit(
        &self,
        staging: Staging,
        result: &WorkerResult,
        received: &Received,
    ) -> Result<Imported, StoreError> {
        let done = self.commit_in(&staging, result, received);
        // Where the tree was taken over, its name in staging is gone already.
        let removed = self.discard(staging);
        let imported = done?;
        removed?;
        Ok(imported)
    }

    /// Ends an import without a result.
    ///
    /// # Errors
    /// When it cannot be removed; a later sweep tries again.
    pub fn discard(&self, staging: Staging) -> Result<(), StoreError> {
        remove(self.staging.as_fd(), &staging.name).map_err(StoreError::io("remove", &staging.name))
    }

    fn commit_in(
        &self,
        staging: &Staging,
        result: &WorkerResult,
        received: &Received,
    ) -> Result<Imported, StoreError> {
        // The digest first: whatever the worker made of wrong bytes, that they are wrong is what matters.
        if let Some(expected) = source_digest(&staging.content)
            && expected != received.sha256
        {
            return Err(Refusal::DigestMismatch { expected, actual: received.sha256 }.into());
        }
        let claims = match result {
            WorkerResult::Done(claims) => claims,
            WorkerResult::Refused { code, name, message } => {
                let (code, name, message) = (*code, name.clone(), message.clone());
                return Err(StoreError::Worker { code, name, message });
            }
        };
        let root = beneath::open_dir(&staging.dir, TREE.as_bytes())
            .map_err(StoreError::io("open", &staging.name))?;
        let mut sealer = Sealer::new(self.owner, shape(&staging.content), self.limits, true);
        sealer.list_to(Sink::files(&staging.dir).map_err(StoreError::io("make a file", &staging.name))?);
        let (sealed, _) = sealer.seal_listed(root)?;
        let content = self.identify(staging, &staging.content, &sealed, received)?;
        self.finish(staging, &sealed)?;
        self.publish(staging, &content, &sealed, received, claims)?;
        // Not looked up: it may have been collected meanwhile, and was there.
        Ok(imported(&content, &sealed, received))
    }

    /// Holds a tree against the content's name and gives the content with its digest filled in.
    pub(crate) fn identify(
        &self,
        staging: &Staging,
        content: &Content,
        sealed: &Sealed,
        received: &Received,
    ) -> Result<Content, StoreError> {
        let content = content.clone();
        match content {
            Content::Directory { tree, epoch } => {
                let actual = sealed.digest.sha256;
                if let Some(expected) = tree
                    && expected != actual
                {
                    return Err(Refusal::TreeMismatch { expected, actual }.into());
                }
                return Ok(Content::Directory { tree: Some(actual), epoch });
            }
            Content::Git { commit, submodules, .. } => {
                let proof = staging.proof.as_ref().ok_or_else(|| Refusal::NotTheCommit {
                    entry: ".".to_owned(),
                    reason: "no commit object came with it".to_owned(),
                })?;
                let root = beneath::open_dir(&staging.dir, TREE.as_bytes())
                    .map_err(StoreError::io("open", &staging.name))?;
                git::check(root, commit, submodules, proof, &self.limits)?;
            }
            Content::File { executable, epoch, .. } => {
                expect_single(sealed, executable, received)?;
                return Ok(Content::File { sha256: Some(received.sha256), executable, epoch });
            }
            Content::OciConfig { .. } => expect_single(sealed, false, received)?,
            Content::OciManifest { .. } => {
                expect_single(sealed, false, received)?;
                let root = beneath::open_dir(&staging.dir, TREE.as_bytes())
                    .map_err(StoreError::io("open", &staging.name))?;
                self.check_image(&read_document(&root, received.sha256)?)?;
            }
            Content::Archive { .. } | Content::ImageTar { .. } | Content::OciLayer { .. } => {}
        }
        Ok(content)
    }

    /// That everything an image consists of is here, and that its layers are those of its configuration.
    fn check_image(&self, document: &[u8]) -> Result<(), StoreError> {
        let manifest = oci::manifest(document)?;
        let sha256 = manifest.config.sha256;
        let config = self.present(&Content::OciConfig { sha256 })?;
        let config = config.ok_or(Refusal::PartMissing { what: "configuration", sha256 })?;
        let root = self.open_tree(config.tree)?;
        let diff_ids = oci::diff_ids(&read_document(&root, sha256)?)?;
        let size = |what, is: u64, says: u64| match is == says {
            true => Ok(()),
            false => Err(Refusal::Document { what, reason: format!("a size is {is}, it says {says}") }),
        };
        size("manifest", config.source_bytes, manifest.config.bytes)?;
        if diff_ids.len() != manifest.layers.len() {
            let reason = "it names another number of layers than the manifest".to_owned();
            return Err(Refusal::Document { what: "configuration", reason }.into());
        }
        for (layer, (part, expected)) in manifest.layers.iter().zip(diff_ids).enumerate() {
            let sha256 = part.sha256;
            let record = self.present(&Content::OciLayer { sha256 })?;
            let record = record.ok_or(Refusal::PartMissing { what: "layer", sha256 })?;
            size("manifest", record.source_bytes, part.bytes)?;
            let actual = record.claims.stream_sha256.unwrap_or(Sha256::new([0; 32]));
            if actual != expected {
                return Err(Refusal::DiffId { layer, expected, actual }.into());
            }
        }
        Ok(())
    }

    /// An imported image's layers, the lowest first.
    ///
    /// A layer may occur twice, as the empty one does in many images; overlayfs refuses the same directory twice.
    ///
    /// # Errors
    /// [`Refusal::PartMissing`] if the image or a layer is not in the store.
    pub fn image_layers(&self, manifest: Sha256) -> Result<Vec<StoredTree>, StoreError> {
        let record = self.present(&Content::OciManifest { sha256: manifest })?;
        let record = record.ok_or(Refusal::PartMissing { what: "manifest", sha256: manifest })?;
        let document = read_document(&self.open_tree(record.tree)?, manifest)?;
        let layer = |part: &oci::Part| {
            let sha256 = part.sha256;
            let tree = self.tree(&Content::OciLayer { sha256 })?;
            tree.ok_or_else(|| Refusal::PartMissing { what: "layer", sha256 }.into())
        };
        oci::manifest(&document)?.layers.iter().map(layer).collect()
    }

    /// Gives a finished object its names. One that has been there is kept if it is sound; otherwise this one takes its
    /// place, which is how what was damaged is healed.
    pub(crate) fn publish(
        &self,
        staging: &Staging,
        content: &Content,
        sealed: &Sealed,
        received: &Received,
        claims: &Claims,
    ) -> Result<(), StoreError> {
        let object = sealed.digest.blake3;
        for _ in 0..3 {
            let gate = self.trees_gate(FlockOperation::LockShared)?;
            let is_new = self.store_tree(staging, object)?;
            self.store_record(content, sealed, received, claims)?;
            if is_new {
                // Last: a collection that chose it by an older time lets it be.
                return touch(&staging.dir).map_err(StoreError::io("set the time of", &staging.name));
            }
            // While somebody has one alone, the gate must be open.
            drop(gate);
            let Some(lease) = self.lease(object)? else { continue };
            match lease.check(ReadPolicy::Sampled, Budget::OBJECT, self.owner, self.limits)? {
                Checked::Sound(_) => return Ok(()),
                Checked::Damaged(reason) => self.quarantine_leased(&lease, &reason)?,
            }
        }
        Err(StoreError::Damaged { entry: object.to_string(), reason: "it does not stay".to_owned() })
    }

    /// What lies beside the tree, and all of it on the disk. `meta.json` is the last that is made: nothing of the object
    /// is changed after it.
    pub(crate) fn finish(&self, staging: &Staging, sealed: &Sealed) -> Result<(), StoreError> {
        let meta = record::write(&TreeMeta {
            tree_sha256: sealed.digest.sha256,
            blake3: sealed.digest.blake3,
            bytes: sealed.bytes,
            entries: sealed.entries,
            whiteouts: sealed.whiteouts,
            opaque_directories: sealed.opaque,
        });
        write_new(&staging.dir, META, &meta)?;
        let name = sealed.digest.blake3.to_string();
        crate::durable::flush(&staging.dir, sealed.entries).map_err(StoreError::io("sync", &name))
    }

    /// Whether it was not there before.
    fn store_tree(&self, staging: &Staging, object: Blake3) -> Result<bool, StoreError> {
        let name = object.to_string();
        let flags = RenameFlags::NOREPLACE;
        let is_new = match rustix::fs::renameat_with(&self.staging, &staging.name, &self.trees, &name, flags)
        {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(StoreError::io("rename", &name)(errno)),
        };
        rustix::fs::fsync(&self.trees).map_err(StoreError::io("sync", "trees"))?;
        Ok(is_new)
    }

    fn store_record(
        &self,
        content: &Content,
        sealed: &Sealed,
        received: &Received,
        claims: &Claims,
    ) -> Result<(), StoreError> {
        let bytes = record::write(&Record {
            content: content.clone(),
            imported: imported(content, sealed, received),
            tree: sealed.digest.blake3,
            source_bytes: received.bytes,
            source_sha256: received.sha256,
            claims: claims.clone(),
        });
        let key = record::key(content).unwrap_or_default();
        let name = random_name()?;
        let no_sweep = self.gate(FlockOperation::LockShared)?;
        let file = write_new(&self.staging, &name, &bytes)?;
        drop(no_sweep);
        rustix::fs::fsync(&file).map_err(StoreError::io("sync", &key))?;
        match rustix::fs::renameat_with(&self.staging, &name, &self.index, &key, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            // An entry that cannot be read, or whose object is gone, gives way.
            Err(Errno::EXIST) if !matches!(self.present(content), Ok(Some(_))) => {
                rustix::fs::renameat(&self.staging, &name, &self.index, &key)
                    .map_err(StoreError::io("rename", &key))?;
            }
            Err(Errno::EXIST) => {
                remove(self.staging.as_fd(), &name).map_err(StoreError::io("remove", &name))?;
            }
            Err(errno) => return Err(StoreError::io("rename", &key)(errno)),
        }
        rustix::fs::fsync(&self.index).map_err(StoreError::io("sync", "index"))
    }
}

/// The digest that the source's bytes must have.
fn source_digest(content: &Content) -> Option<Sha256> {
    match content {
        Content::Directory { .. } | Content::Git { .. } => None,
        Content::File { sha256, .. } => *sha256,
        Content::Archive { sha256, .. }
        | Content::ImageTar { sha256 }
        | Content::OciManifest { sha256 }
        | Content::OciConfig { sha256 }
        | Content::OciLayer { sha256 } => Some(*sha256),
    }
}

/// That a tree is nothing but one file with the bytes that were received. Its tree digest says that at once.
fn expect_single(sealed: &Sealed, executable: bool, received: &Received) -> Result<(), Refusal> {
    use crate::digest::{NodeKind, WorldNode};
    let mut node = WorldNode::new();
    let kind = if executable { NodeKind::Executable } else { NodeKind::File };
    node.add(kind, CONTENT, Some(&received.sha256));
    if node.finish() == sealed.digest.sha256 {
        return Ok(());
    }
    Err(Refusal::Shape { entry: "content".to_owned(), reason: "not the file that was received" })
}

/// An image's document, checked once more against its name.
pub(crate) fn read_document(root: &OwnedFd, sha256: Sha256) -> Result<Vec<u8>, StoreError> {
    let name = "content";
    let file = beneath::open_file(root, CONTENT).map_err(StoreError::io("open", name))?;
    let bytes = read_capped(File::from(file), DOCUMENT_BYTES_MAX).map_err(StoreError::io("read", name))?;
    let actual = Sha256::new(<sha2::Sha256 as sha2::Digest>::digest(&bytes).into());
    if actual == sha256 {
        return Ok(bytes);
    }
    Err(StoreError::Damaged { entry: sha256.to_string(), reason: format!("its sha256 is {actual}") })
}

/// A new file of the launcher's own, locked while it is in staging.
fn write_new(dir: &OwnedFd, name: &str, bytes: &[u8]) -> Result<OwnedFd, StoreError> {
    let file = beneath::create(dir, name.as_bytes()).map_err(StoreError::io("make a file", name))?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(StoreError::io("lock", name))?;
    let mut file = File::from(file);
    file.write_all(bytes)
        .map_err(|error| StoreError::io("write", name)(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
    Ok(file.into())
}

/// 128 random bits as 32 digits.
pub(crate) fn random_name() -> Result<String, StoreError> {
    let mut bytes = [0_u8; 16];
    let mut filled = 0;
    while filled < bytes.len() {
        let rest = bytes.get_mut(filled..).unwrap_or_default();
        match rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(StoreError::io("draw a random name", "staging")(errno)),
        }
    }
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}
