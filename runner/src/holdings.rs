//! What the launcher holds of the store for its client: everything that the client was told is there, until a job
//! that uses it has it.
//!
//! An object is read back when it is first held, as the policy says, and again for the next job. One that is damaged
//! goes into quarantine, and is not there any more: the client takes it in again.

use crate::admission::{Refusal, chain, refuse};
use ampoule_spec::wire::Content;
use ampoule_spec::{Blake3, Code, Damage, ReadPolicy, Sha256};
use ampoule_store::{Budget, Checked, Lease, Limits, Needed, Needs, Store, StoreError};
use std::collections::BTreeMap;

/// The most objects that are held for a client between two jobs: an image of 256 layers and 64 inputs, thrice.
const HELD_MAX: usize = 1024;
/// The most findings that are told to a job, and the most letters of each: they cross in one message.
const DAMAGED_MAX: usize = 16;
const REASON_LETTERS_MAX: usize = 500;

/// An object that a job uses.
#[derive(Debug)]
pub(crate) struct Used {
    /// What for, as in `RunReport::reread`.
    pub(crate) what: String,
    pub(crate) sha256: Sha256,
    pub(crate) lease: Lease,
    /// Among so many that are used together.
    pub(crate) parts: usize,
}

/// What is held, with how it was read back.
#[derive(Debug, Default)]
pub(crate) struct Holdings {
    held: BTreeMap<Blake3, (Lease, ReadPolicy)>,
    damaged: Vec<Damage>,
}

impl Holdings {
    /// Holds every object that a content consists of; nothing if one is not there, or was damaged.
    pub(crate) fn take(
        &mut self,
        store: &Store,
        content: &Content,
        policy: ReadPolicy,
    ) -> Result<Option<Vec<Needed>>, Refusal> {
        let failed = |e: &StoreError| refuse(e.code(), chain(e));
        let needed = match store.needs(content).map_err(|e| failed(&e))? {
            Needs::There(needed) => needed,
            Needs::Missing => return Ok(None),
            Needs::Damaged(damage) => {
                self.remember(damage);
                return Ok(None);
            }
        };
        // Here and not between two objects of one content: what is announced together is held together.
        if self.held.len().saturating_add(needed.len()) > HELD_MAX {
            self.held.clear();
        }
        let budget = Budget::OBJECT.share(needed.len());
        for one in &needed {
            if !self.hold(store, one.object, policy, budget).map_err(|e| failed(&e))? {
                return Ok(None);
            }
        }
        Ok(Some(needed))
    }

    /// Whether an object is held now.
    fn hold(
        &mut self,
        store: &Store,
        object: Blake3,
        policy: ReadPolicy,
        budget: Budget,
    ) -> Result<bool, StoreError> {
        // The policies are in order, the strictest first.
        if self.held.get(&object).is_some_and(|(_, done)| *done <= policy) {
            return Ok(true);
        }
        let Some(lease) = store.lease(object)? else { return Ok(false) };
        match lease.check(policy, budget, store.owner(), Limits::default())? {
            Checked::Sound(_) => {
                self.held.insert(object, (lease, policy));
                Ok(true)
            }
            Checked::Damaged(reason) => {
                self.held.remove(&object);
                store.quarantine_leased(&lease, &reason)?;
                self.remember(Damage { object: object.to_string(), reason });
                Ok(false)
            }
        }
    }

    fn remember(&mut self, damage: Damage) {
        if self.damaged.len() < DAMAGED_MAX {
            let reason = damage.reason.chars().take(REASON_LETTERS_MAX).collect();
            self.damaged.push(Damage { reason, ..damage });
        }
    }

    /// A lease of what is held, for a job.
    pub(crate) fn used(&self, needed: &Needed, what: String, parts: usize) -> Result<Used, Refusal> {
        let held = self.held.get(&needed.object);
        let (lease, _) = held.ok_or_else(|| refuse(Code::Internal, format!("{what} is not held")))?;
        let lease = lease.duplicate().map_err(|e| refuse(Code::Internal, chain(&e)))?;
        Ok(Used { what, sha256: needed.sha256(), lease, parts })
    }

    /// How many findings there are that no job was told of.
    pub(crate) fn found(&self) -> usize {
        self.damaged.len()
    }

    /// The findings since the last job, the last of them last.
    pub(crate) fn damaged(&self) -> &[Damage] {
        &self.damaged
    }

    /// A job has what it uses: it is held by its supervisor now, and the next job's is read back again.
    pub(crate) fn clear(&mut self) {
        self.held.clear();
        self.damaged.clear();
    }
}
