//! Removing what nobody needs, beside imports and jobs of other processes.
//!
//! An object goes with every index entry that names it, in this order: the entries, made durable; then the object's
//! name, to where imports are made; then what it consists of. A crash leaves an object without a name in the index,
//! which the next import finds and the next collection removes, or a directory in staging, which every start sweeps.
//!
//! Nobody loses what it was promised. Who uses an object has a lease of it; who just took it in says that it is used
//! now, under a lock that keeps collections out; so an object that is neither leased nor used since it was chosen is
//! nobody's.

use crate::beneath;
use crate::commit::random_name;
use crate::error::StoreError;
use crate::inventory::Object;
use crate::lease::used;
use crate::remove::remove;
use crate::store::Store;
use ampoule_spec::{Blake3, Collect, Collected, UnixNanos};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, FlockOperation, RenameFlags};
use rustix::io::Errno;
use std::collections::BTreeSet;

/// So many objects are removed between two waits for the disk.
const BATCH: usize = 32;
/// So many are told by name.
const TOLD_MAX: usize = 32;

/// What becomes of an object that was chosen.
enum Fate {
    /// It is locked, and nobody can lease it any more.
    Doomed(OwnedFd),
    /// Somebody uses it, or used it since.
    InUse,
    /// Somebody else removed it or moved it aside.
    Gone,
}

impl Store {
    /// Removes objects by age and until the rest is small enough, what was not used for longest first; and always what
    /// imports left that died, and index entries of objects that are not there. `kept` are objects that stay whatever
    /// was asked, `now` the time when this began, `point` a place where a test may end it all.
    ///
    /// # Errors
    /// [`StoreError::Io`]; what was removed until then is removed.
    pub fn collect(
        &self,
        wanted: &Collect,
        kept: &BTreeSet<Blake3>,
        now: UnixNanos,
        point: &mut dyn FnMut(&'static str) -> Result<(), StoreError>,
    ) -> Result<Collected, StoreError> {
        let mut done = Collected::default();
        if !wanted.dry_run {
            done.swept = self.sweep_staging()?.removed;
        }
        let inventory = self.inventory()?;
        done.dangling = inventory.dangling.len() as u64;
        if !wanted.dry_run {
            self.drop_dangling(&inventory.dangling)?;
        }
        done.left = inventory.objects.len() as u64;
        done.left_bytes = inventory.objects.values().map(|object| object.bytes).sum();
        let mut objects: Vec<Object> = inventory.objects.into_values().collect();
        objects.sort_by_key(|object| object.used);
        let mut batch: Vec<Object> = Vec::new();
        // What is chosen and not yet removed.
        let mut pending = 0_u64;
        for object in objects {
            let too_much = wanted.max_bytes.is_some_and(|max| done.left_bytes.saturating_sub(pending) > max);
            let age = now.0.saturating_sub(object.used.0) / 1_000_000_000;
            let too_old = wanted.max_age_seconds.is_some_and(|max| age > max);
            let nobodys = object.keys.is_empty() && object.is_readable;
            // One whose description cannot be read is damaged, and that is for `store verify` to say.
            if !(too_much || too_old || nobodys) || !object.is_readable {
                continue;
            }
            if kept.contains(&object.name) {
                done.kept += 1;
                continue;
            }
            // Used since this began: an import may have named it meanwhile.
            if object.used >= now {
                done.in_use += 1;
                continue;
            }
            pending += object.bytes;
            batch.push(object);
            if batch.len() >= BATCH {
                self.remove_batch(std::mem::take(&mut batch), wanted.dry_run, &mut done, point)?;
                pending = 0;
            }
        }
        self.remove_batch(batch, wanted.dry_run, &mut done, point)?;
        Ok(done)
    }

    fn remove_batch(
        &self,
        batch: Vec<Object>,
        dry_run: bool,
        done: &mut Collected,
        point: &mut dyn FnMut(&'static str) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        let alone = self.trees_gate(FlockOperation::LockExclusive)?;
        let mut doomed = Vec::new();
        for object in batch {
            match self.fate(&object)? {
                Fate::Doomed(lock) => doomed.push((object, lock)),
                Fate::InUse => done.in_use += 1,
                // Another collection has it.
                Fate::Gone => {
                    done.left -= 1;
                    done.left_bytes = done.left_bytes.saturating_sub(object.bytes);
                }
            }
        }
        let told = TOLD_MAX.saturating_sub(done.objects.len());
        done.objects.extend(doomed.iter().take(told).map(|(object, _)| object.shown()));
        let mut moved = Vec::new();
        if !dry_run {
            for key in doomed.iter().flat_map(|(object, _)| &object.keys) {
                point("collect: remove an index entry")?;
                self.unlink_entry(key)?;
            }
            point("collect: sync the index")?;
            rustix::fs::fsync(&self.index).map_err(StoreError::io("sync", "index"))?;
            for (object, _) in &doomed {
                point("collect: take an object's name")?;
                moved.push(self.take_out(object.name)?);
            }
        }
        drop(alone);
        for (object, _) in &doomed {
            done.removed += 1;
            done.removed_bytes += object.bytes;
            done.left -= 1;
            done.left_bytes = done.left_bytes.saturating_sub(object.bytes);
        }
        // The locks live until here: a sweep beside us leaves these alone.
        for name in moved {
            point("collect: remove an object")?;
            remove(self.staging.as_fd(), &name).map_err(StoreError::io("remove", &name))?;
        }
        Ok(())
    }

    /// With the gate closed: takes an object's lock, if nobody has it and nobody used it since it was chosen.
    fn fate(&self, object: &Object) -> Result<Fate, StoreError> {
        let name = object.name.to_string();
        let dir = match beneath::open_dir(&self.trees, name.as_bytes()) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(Fate::Gone),
            Err(errno) => return Err(StoreError::io("open", &name)(errno)),
        };
        match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(Fate::InUse),
            Err(errno) => return Err(StoreError::io("lock", &name)(errno)),
        }
        if !self.is_still(&name, &dir)? {
            return Ok(Fate::Gone);
        }
        let stat = rustix::fs::fstat(&dir).map_err(StoreError::io("examine", &name))?;
        Ok(if used(&stat) == object.used { Fate::Doomed(dir) } else { Fate::InUse })
    }

    /// Moves an object to staging, under a name that says nothing.
    fn take_out(&self, object: Blake3) -> Result<String, StoreError> {
        let (name, aside) = (object.to_string(), random_name()?);
        rustix::fs::renameat_with(&self.trees, &name, &self.staging, &aside, RenameFlags::NOREPLACE)
            .map_err(StoreError::io("rename", &name))?;
        Ok(aside)
    }

    /// Index entries whose object is not there, unless it came back.
    fn drop_dangling(&self, keys: &[String]) -> Result<(), StoreError> {
        if keys.is_empty() {
            return Ok(());
        }
        let _alone = self.trees_gate(FlockOperation::LockExclusive)?;
        for key in keys {
            let Ok(Some(bytes)) = self.read_small(&self.index, key) else { continue };
            let Ok(record) = crate::record::read::<crate::record::Record>(key, &bytes) else { continue };
            if !self.is_there(record.tree) {
                self.unlink_entry(key)?;
            }
        }
        rustix::fs::fsync(&self.index).map_err(StoreError::io("sync", "index"))
    }

    fn unlink_entry(&self, key: &str) -> Result<(), StoreError> {
        match rustix::fs::unlinkat(&self.index, key, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(StoreError::io("remove", key)(errno)),
        }
    }
}
