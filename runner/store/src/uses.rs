//! Which objects a content consists of.

use crate::commit::read_document;
use crate::error::StoreError;
use crate::oci;
use crate::record::{self, Record};
use crate::store::Store;
use ampoule_spec::wire::{Content, Imported};
use ampoule_spec::{Blake3, Damage, Sha256};
use rustix::fs::AtFlags;

/// An object that a content needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needed {
    /// What it is there as.
    pub content: Content,
    /// Its name.
    pub object: Blake3,
    /// What the index says of it.
    pub imported: Imported,
}

impl Needed {
    fn of(record: Record) -> Self {
        Self { content: record.content, object: record.tree, imported: record.imported }
    }

    /// The digest by which the world names it.
    pub fn sha256(&self) -> Sha256 {
        self.imported.sha256
    }
}

/// What is there of a content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Needs {
    /// It is not there, or not all of it is.
    Missing,
    /// What is there was damaged, and is in quarantine now.
    Damaged(Damage),
    /// All of it: the content's own object first, then an image's configuration, then its layers, the lowest first.
    There(Vec<Needed>),
}

impl Store {
    /// Looks up every object that a content consists of. Index entries and documents that are damaged go into
    /// quarantine.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn needs(&self, content: &Content) -> Result<Needs, StoreError> {
        match self.try_needs(content) {
            Ok(Some(all)) => Ok(Needs::There(all)),
            Ok(None) => Ok(Needs::Missing),
            Err(StoreError::Damaged { entry, reason }) => {
                match Blake3::parse(&entry) {
                    Ok(object) => self.quarantine(object, &reason)?,
                    Err(_) => self.quarantine_entry(&entry)?,
                }
                Ok(Needs::Damaged(Damage { object: entry, reason }))
            }
            Err(other) => Err(other),
        }
    }

    fn try_needs(&self, content: &Content) -> Result<Option<Vec<Needed>>, StoreError> {
        let Some(own) = self.present(content)? else { return Ok(None) };
        let object = own.tree;
        let mut all = vec![Needed::of(own)];
        if let Content::OciManifest { sha256 } = content {
            // Errors of the object's own name it, so that it is known what to move aside.
            let of_object = |error| match error {
                StoreError::Damaged { reason, .. } => {
                    StoreError::Damaged { entry: object.to_string(), reason }
                }
                StoreError::Refused(refusal) => {
                    StoreError::Damaged { entry: object.to_string(), reason: refusal.to_string() }
                }
                other => other,
            };
            let document = read_document(&self.open_tree(object)?, *sha256).map_err(of_object)?;
            let manifest = oci::manifest(&document).map_err(|refusal| of_object(refusal.into()))?;
            let config = Content::OciConfig { sha256: manifest.config.sha256 };
            let layers = manifest.layers.iter().map(|part| Content::OciLayer { sha256: part.sha256 });
            for part in std::iter::once(config).chain(layers) {
                let Some(record) = self.present(&part)? else { return Ok(None) };
                all.push(Needed::of(record));
            }
        }
        Ok(Some(all))
    }

    /// The record of a content whose object is there.
    pub(crate) fn present(&self, content: &Content) -> Result<Option<Record>, StoreError> {
        let Some(record) = self.record(content)? else { return Ok(None) };
        Ok(self.is_there(record.tree).then_some(record))
    }

    pub(crate) fn is_there(&self, object: Blake3) -> bool {
        let name = object.to_string();
        rustix::fs::accessat(&self.trees, &name, rustix::fs::Access::EXISTS, AtFlags::empty()).is_ok()
    }

    /// The objects of a content as far as they are there, for whoever keeps them from being removed.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn objects_of(&self, content: &Content) -> Result<Vec<Blake3>, StoreError> {
        let mut objects = Vec::new();
        let mut contents = vec![content.clone()];
        while let Some(content) = contents.pop() {
            let record = match self.present(&content) {
                Ok(Some(record)) => record,
                Ok(None) | Err(StoreError::Damaged { .. }) => continue,
                Err(other) => return Err(other),
            };
            objects.push(record.tree);
            if let Content::OciManifest { sha256 } = content
                && let Ok(document) = read_document(&self.open_tree(record.tree)?, sha256)
                && let Ok(manifest) = oci::manifest(&document)
            {
                contents.push(Content::OciConfig { sha256: manifest.config.sha256 });
                contents.extend(manifest.layers.iter().map(|p| Content::OciLayer { sha256: p.sha256 }));
            }
        }
        Ok(objects)
    }
}

/// The kind of a content by the name of its index entry.
pub(crate) fn kind_of(key: &str) -> &str {
    const KINDS: [&str; 8] =
        ["directory", "file", "archive", "git", "image-tar", "oci-layer", "oci-config", "oci-manifest"];
    KINDS
        .into_iter()
        .find(|kind| key.strip_prefix(kind).is_some_and(|rest| rest.starts_with('-')))
        .unwrap_or("other")
}

/// Whether a name in the index is one that this version could have given.
pub(crate) fn is_of(record: &Record, key: &str) -> bool {
    record::key(&record.content).as_deref() == Some(key)
}
