//! Sandboxes that are made before they are needed. Each is used once.

use crate::admission::{self, Admitted};
use crate::jobdir::{JobLock, Office, State};
use crate::profiles::{Loaded, Profiles};
use crate::recovery;
use crate::slot::{FromSlot, Kind, Making, Slot};
use ampoule_spec::{Limits, Name};
use ampoule_store::Store;
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// The profile of the first sandboxes, before anybody has asked for one.
const FIRST_PROFILE: &str = "hermetic";

/// After so many failures in a row none is made ahead any more, until something else is wanted: a job will say what fails.
const FAILURES_MAX: u32 = 3;

/// Slots that wait for a job, and supervisors on their way out.
pub(crate) struct Pool {
    /// How many are kept ready.
    target: usize,
    /// Of many launchers over one state directory, one keeps some ready: the first of those that are there that has run
    /// a job, as long as it lives. None: this one is the only one, or not yet it.
    office: Option<OwnedFd>,
    /// Whether it still has to ask for that.
    is_shy: bool,
    waiting: Vec<Slot>,
    /// Their jobs are done, or they have none; they are reaped when they have ended.
    leaving: Vec<Slot>,
    /// What the last job wanted: the next one will want the same, as a rule.
    wanted: Option<Wanted>,
    /// How many in a row came to nothing.
    failures: u32,
}

struct Wanted {
    kind: Kind,
    profile: Rc<Loaded>,
    limits: Limits,
}

impl Pool {
    pub(crate) fn new(target: usize) -> Self {
        let (waiting, leaving) = (Vec::new(), Vec::new());
        Self { target, office: None, is_shy: false, waiting, leaving, wanted: None, failures: 0 }
    }

    /// A pool that stays empty until the launcher has run a job and no other keeps one.
    pub(crate) fn shy(target: usize) -> Self {
        Self { is_shy: true, ..Self::new(target) }
    }

    /// The slots that may have something to say.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = &Slot> {
        self.waiting.iter()
    }

    /// Whether a slot should be made.
    pub(crate) fn wants_more(&self) -> bool {
        !self.is_shy && self.failures < FAILURES_MAX && self.fitting() < self.target
    }

    fn fitting(&self) -> usize {
        self.waiting.iter().filter(|slot| self.fits(slot)).count()
    }

    /// Whether a slot is of the kind that is wanted.
    fn fits(&self, slot: &Slot) -> bool {
        self.wanted.as_ref().is_none_or(|wanted| wanted.kind == slot.kind)
    }

    /// Takes out a slot that fits; one that is ready, if there is one.
    pub(crate) fn take(&mut self, kind: &Kind) -> Option<Slot> {
        let fits = |slot: &Slot| slot.kind == *kind;
        let ready = self.waiting.iter().position(|slot| fits(slot) && slot.is_ready);
        let at = ready.or_else(|| self.waiting.iter().position(fits))?;
        Some(self.waiting.remove(at))
    }

    /// Takes back a slot that was not used after all.
    pub(crate) fn give_back(&mut self, slot: Slot) {
        self.waiting.push(slot);
    }

    /// Remembers what a job wanted.
    pub(crate) fn wish(&mut self, admitted: &Admitted, kind: Kind, state: &State) {
        if self.target == 0 {
            return;
        }
        if self.is_shy {
            self.office = state.sole(Office::Preparer).ok().flatten();
            self.is_shy = self.office.is_none();
        }
        if self.wanted.as_ref().is_none_or(|wanted| wanted.kind != kind) {
            self.failures = 0;
            let (profile, limits) = (admitted.profile.clone(), admitted.limits.clone());
            self.wanted = Some(Wanted { kind, profile, limits });
        }
    }

    /// Makes one slot of the kind that is wanted.
    pub(crate) fn make_one(&mut self, state: &State, store: &Store, profiles: &mut Profiles) {
        self.reap(state);
        let made = self.wanted(profiles).and_then(|wanted| {
            let Wanted { kind, profile, limits } = wanted;
            let making = Making { state, store, profile, host_image: kind.host_image, limits };
            Slot::make(&making, None).ok()
        });
        let Some(slot) = made else {
            self.failures += 1;
            return;
        };
        self.waiting.push(slot);
        // What nobody has asked for lately gives way.
        while self.waiting.len() > self.target {
            let Some(other) = self.waiting.iter().position(|slot| !self.fits(slot)) else { break };
            let other = self.waiting.remove(other);
            self.dismiss(other);
        }
    }

    fn wanted(&mut self, profiles: &mut Profiles) -> Option<&Wanted> {
        if self.wanted.is_none() && admission::is_privileged() {
            let name = Name::parse(FIRST_PROFILE).ok()?;
            let profile = admission::usable(&name, profiles).ok()?;
            let limits = profile.profile.limits.clone();
            let kind = Kind::of(&profile, true, &limits);
            self.wanted = Some(Wanted { kind, profile, limits });
        }
        self.wanted.as_ref()
    }

    /// Listens to the slots that wait.
    pub(crate) fn hear(&mut self) {
        let mut at = 0;
        while let Some(slot) = self.waiting.get_mut(at) {
            if !slot.has_something_to_say() {
                at += 1;
                continue;
            }
            match slot.receive() {
                Ok(FromSlot::Ready) => {
                    slot.is_ready = true;
                    self.failures = 0;
                    at += 1;
                }
                _ => {
                    self.failures += 1;
                    let slot = self.waiting.remove(at);
                    self.dismiss(slot);
                }
            }
        }
    }

    /// Lets a slot go that has no job: its supervisor destroys what it has made.
    pub(crate) fn dismiss(&mut self, slot: Slot) {
        slot.close();
        self.leaving.push(slot);
    }

    /// Takes over a slot whose job is done; its lock, if it has it still, stays with whoever holds the job's record.
    pub(crate) fn retire(&mut self, slot: Slot, state: &State) -> std::io::Result<Option<JobLock>> {
        let lock = slot.lock.as_ref().map(JobLock::duplicate).transpose();
        self.leaving.push(slot);
        self.reap(state);
        lock
    }

    fn reap(&mut self, state: &State) {
        self.leaving.retain(|slot| {
            let is_there = !slot.has_ended();
            if !is_there {
                clear(state, slot);
            }
            is_there
        });
    }

    /// Lets all slots go, and waits for the end of every supervisor.
    pub(crate) fn close(&mut self, state: &State) {
        while let Some(slot) = self.waiting.pop() {
            self.dismiss(slot);
        }
        for slot in self.leaving.drain(..) {
            slot.reap();
            clear(state, &slot);
        }
    }
}

/// A supervisor that had no job removes its directory last. One that could not has left what its intent names.
fn clear(state: &State, slot: &Slot) {
    if slot.dir.is_slots() && slot.dir.record().is_ok_and(|record| !record.admitted) {
        // What cannot be removed now is found again by the next start.
        let _ = recovery::discard(state, &slot.dir);
    }
}
