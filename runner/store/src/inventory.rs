//! What lies in the store.

use crate::beneath;
use crate::error::StoreError;
use crate::lease::used;
use crate::record::{self, Record, TreeMeta};
use crate::store::{META, Store};
use crate::uses::{is_of, kind_of};
use ampoule_spec::{Blake3, KindCount, StoreStat, StoredObject, UnixNanos};
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Dir, FlockOperation};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};

/// So many names of contents are told of one object.
const CONTENTS_MAX: usize = 8;

/// An object as a collection sees it.
#[derive(Debug, Clone)]
pub(crate) struct Object {
    pub(crate) name: Blake3,
    pub(crate) used: UnixNanos,
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
    /// The tree digest for the world, as text.
    pub(crate) tree_sha256: String,
    /// The names of its index entries.
    pub(crate) keys: Vec<String>,
    /// Whether its own description could be read.
    pub(crate) is_readable: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    pub(crate) objects: BTreeMap<Blake3, Object>,
    /// Index entries whose object is not there.
    pub(crate) dangling: Vec<String>,
}

impl Object {
    pub(crate) fn shown(&self) -> StoredObject {
        StoredObject {
            object: self.name,
            contents: self.keys.iter().take(CONTENTS_MAX).cloned().collect(),
            bytes: self.bytes,
            entries: self.entries,
            used: self.used,
        }
    }

    fn kind(&self) -> &str {
        let mut kinds = self.keys.iter().map(|key| kind_of(key));
        match kinds.next() {
            None => "unnamed",
            Some(first) if kinds.all(|kind| kind == first) => first,
            Some(_) => "shared",
        }
    }

    /// Whether this digest, as 64 digits, names the object or a content that it stands for.
    fn is_named(&self, digest: &str) -> bool {
        self.name.to_string() == digest
            || self.tree_sha256 == digest
            || self.keys.iter().any(|key| key.split('-').any(|part| part == digest))
    }
}

impl Store {
    /// Lists all objects with their index entries: the index first, so that an entry whose object comes meanwhile is
    /// not taken for one without.
    pub(crate) fn inventory(&self) -> Result<Inventory, StoreError> {
        let mut by_object: BTreeMap<Blake3, Vec<String>> = BTreeMap::new();
        for key in names(&self.index, "index")? {
            // What cannot be read is nobody's; whoever looks it up moves it aside.
            if let Ok(Some(bytes)) = self.read_small(&self.index, &key)
                && let Ok(record) = record::read::<Record>(&key, &bytes)
                && is_of(&record, &key)
            {
                by_object.entry(record.tree).or_default().push(key);
            }
        }
        let mut inventory = Inventory::default();
        for name in names(&self.trees, "trees")? {
            let Ok(object) = Blake3::parse(&name) else { continue };
            let keys = by_object.remove(&object).unwrap_or_default();
            if let Some(object) = self.object(object, keys)? {
                inventory.objects.insert(object.name, object);
            }
        }
        for (object, keys) in by_object {
            if !self.is_there(object) {
                inventory.dangling.extend(keys);
            }
        }
        Ok(inventory)
    }

    fn object(&self, object: Blake3, mut keys: Vec<String>) -> Result<Option<Object>, StoreError> {
        let name = object.to_string();
        let stat = match rustix::fs::statat(&self.trees, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(StoreError::io("examine", &name)(errno)),
        };
        let path = format!("{name}/{META}");
        let meta = self.read_small(&self.trees, &path).ok().flatten();
        let meta = meta.and_then(|bytes| record::read::<TreeMeta>(&path, &bytes).ok());
        keys.sort_unstable();
        Ok(Some(Object {
            name: object,
            used: used(&stat),
            bytes: meta.as_ref().map_or(0, |meta| meta.bytes),
            entries: meta.as_ref().map_or(0, |meta| meta.entries),
            tree_sha256: meta.as_ref().map(|meta| meta.tree_sha256.to_string()).unwrap_or_default(),
            keys,
            is_readable: meta.is_some(),
        }))
    }

    /// A page of the objects in the order of their names, and whether there are more.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn list(
        &self,
        after: Option<Blake3>,
        named: Option<&str>,
        page: usize,
    ) -> Result<(Vec<StoredObject>, bool), StoreError> {
        let inventory = self.inventory()?;
        let wanted = |object: &&Object| {
            after.is_none_or(|after| object.name > after) && named.is_none_or(|named| object.is_named(named))
        };
        let mut objects = inventory.objects.values().filter(wanted);
        let shown = objects.by_ref().take(page).map(Object::shown).collect();
        Ok((shown, objects.next().is_some()))
    }

    /// How much there is of what.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn stat(&self, kept: &BTreeSet<Blake3>) -> Result<StoreStat, StoreError> {
        let inventory = self.inventory()?;
        let room = self.room()?;
        let mut stat = StoreStat {
            free_bytes: room.free,
            reserve_bytes: room.reserve,
            quarantined: self.quarantined()?,
            staging: names(&self.staging, "staging")?.len() as u64,
            ..StoreStat::default()
        };
        let mut kinds: BTreeMap<&str, KindCount> = BTreeMap::new();
        for object in inventory.objects.values() {
            let kind = object.kind();
            let count = kinds.entry(kind).or_insert_with(|| KindCount {
                kind: kind.to_owned(),
                objects: 0,
                bytes: 0,
            });
            count.objects += 1;
            count.bytes += object.bytes;
            stat.objects += 1;
            stat.bytes += object.bytes;
            stat.contents += object.keys.len() as u64;
            stat.unreadable += u64::from(!object.is_readable);
            stat.oldest = Some(stat.oldest.map_or(object.used, |oldest| oldest.min(object.used)));
            stat.in_use += u64::from(self.is_leased(object.name)?);
            if kept.contains(&object.name) {
                stat.kept += 1;
                stat.kept_bytes += object.bytes;
            }
        }
        stat.kinds = kinds.into_values().collect();
        Ok(stat)
    }

    /// Whether somebody has a lease of an object.
    fn is_leased(&self, object: Blake3) -> Result<bool, StoreError> {
        let name = object.to_string();
        let Ok(dir) = beneath::open_dir(&self.trees, name.as_bytes()) else { return Ok(false) };
        match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(false),
            Err(Errno::WOULDBLOCK) => Ok(true),
            Err(errno) => Err(StoreError::io("lock", &name)(errno)),
        }
    }
}

/// The names in a directory of the store's. One that is not text is not the store's.
pub(crate) fn names(dir: &OwnedFd, shown: &str) -> Result<Vec<String>, StoreError> {
    let failed = |errno| StoreError::io("list", shown)(errno);
    let mut names = Vec::new();
    for entry in Dir::read_from(dir).map_err(failed)? {
        match entry.map_err(failed)?.file_name().to_str() {
            Ok("." | "..") | Err(_) => {}
            Ok(name) => names.push(name.to_owned()),
        }
    }
    Ok(names)
}
