//! Whose turn it is: a pure queue. It reads no clock; the same calls give the same answers.
//!
//! - **Across projects** the one goes next whose running jobs hold the smallest share of the host for its weight. A job's share is that of
//!   the resource that it takes most of (dominant resource fairness, Ghodsi et al., NSDI 2011). At a tie the oldest waiting job decides.
//! - **Within a project** priority decides, then age.
//! - **A job starts** when its limits fit in what is promised to nobody. One that does not fit is passed by others that do, but not for
//!   ever: after [`Rules::patience`] starts that passed it, nothing else starts until it has. What runs ends (every job has a time
//!   limit), so room comes, and a job never asks for more than the whole host.
//! - **Priority is the project's own**: its low ones wait as long as it submits higher ones. A queue timeout bounds that.

use ampoule_spec::{JobId, Limits, Name, UnixNanos};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

/// How many jobs of one project are looked at for one that fits.
const LOOK_MAX: usize = 64;
/// Bounds of the time after which a caller should ask again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What jobs are promised of the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// Thousandths of a processor.
    pub cpu_millis: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes of disk.
    pub disk_bytes: u64,
}

impl From<&Limits> for Amount {
    fn from(limits: &Limits) -> Self {
        let Limits { cpu_millis, memory_bytes, disk_bytes, .. } = *limits;
        Self { cpu_millis, memory_bytes, disk_bytes }
    }
}

impl Amount {
    fn parts(self) -> [u64; 3] {
        [self.cpu_millis, self.memory_bytes, self.disk_bytes]
    }

    fn zip(self, other: Self, f: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            cpu_millis: f(self.cpu_millis, other.cpu_millis),
            memory_bytes: f(self.memory_bytes, other.memory_bytes),
            disk_bytes: f(self.disk_bytes, other.disk_bytes),
        }
    }

    fn plus(self, other: Self) -> Self {
        self.zip(other, u64::saturating_add)
    }

    fn minus(self, other: Self) -> Self {
        self.zip(other, u64::saturating_sub)
    }

    /// Whether it is no more than `whole` in any part.
    pub fn fits(self, whole: Self) -> bool {
        self.parts().iter().zip(whole.parts()).all(|(part, whole)| *part <= whole)
    }

    /// The largest part of `whole` that it is, in millionths.
    fn share(self, whole: Self) -> u128 {
        let of = |(part, whole): (u64, u64)| u128::from(part) * 1_000_000 / u128::from(whole.max(1));
        self.parts().into_iter().zip(whole.parts()).map(of).max().unwrap_or_default()
    }
}

/// What a project may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Jobs that run at once.
    pub running: u32,
    /// Jobs that wait.
    pub queued: u32,
    /// Its weight among projects, at least 1: with twice the weight it runs twice as much.
    pub weight: u32,
}

/// What the queue goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// What there is to promise.
    pub capacity: Amount,
    /// Jobs that run at once, all projects together.
    pub running: u32,
    /// Jobs that wait, all projects together.
    pub queued: u32,
    /// How many starts may pass a job that does not fit.
    pub patience: u32,
    /// Quota of a project that has none of its own.
    pub quota: Quota,
    /// Quotas of projects.
    pub projects: BTreeMap<Name, Quota>,
}

impl Rules {
    fn quota(&self, project: &Name) -> Quota {
        self.projects.get(project).copied().unwrap_or(self.quota)
    }
}

/// A job that asks to wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The job.
    pub id: JobId,
    /// Whose.
    pub project: Name,
    /// 0 to 9.
    pub priority: u8,
    /// Since when it waits: when it was acknowledged.
    pub since: UnixNanos,
    /// Its limits.
    pub needs: Amount,
    /// Milliseconds after which it waits no more.
    pub timeout_ms: Option<u64>,
}

/// Why a job may not wait here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotQueued {
    /// The host's queue is full.
    #[error("the queue of this host is full; ask again in {} s", retry_after.as_secs())]
    Full {
        /// When to ask again.
        retry_after: Duration,
    },
    /// The project's part of it is full.
    #[error("{queued} jobs of project {project} wait, which is its quota; ask again in {} s", retry_after.as_secs())]
    Quota {
        /// Whose.
        project: Name,
        /// How many of its wait.
        queued: u32,
        /// When to ask again.
        retry_after: Duration,
    },
    /// It would never fit.
    #[error("limits.{limit}: {asked} is more than this host gives to jobs ({most}); ask for less")]
    TooLarge {
        /// The limit.
        limit: &'static str,
        /// What was asked.
        asked: u64,
        /// What there is.
        most: u64,
    },
}

/// The order within a project.
type Order = (Reverse<u8>, UnixNanos, JobId);

#[derive(Debug, Clone)]
struct Waiting {
    entry: Entry,
    /// How many starts have passed it although its project's turn had come.
    passed: u32,
}

impl Waiting {
    fn order(&self) -> Order {
        (Reverse(self.entry.priority), self.entry.since, self.entry.id.clone())
    }

    fn deadline(&self) -> Option<UnixNanos> {
        let wait = self.entry.timeout_ms?.saturating_mul(1_000_000);
        Some(UnixNanos(self.entry.since.0.saturating_add(wait)))
    }
}

#[derive(Debug, Default)]
struct Project {
    waiting: BTreeMap<Order, Waiting>,
    running: u32,
    used: Amount,
}

/// Jobs that wait, and what those that run were promised.
#[derive(Debug)]
pub struct Queue {
    rules: Rules,
    projects: BTreeMap<Name, Project>,
    /// Where each waiting job is.
    places: HashMap<JobId, (Name, Order)>,
    running: HashMap<JobId, (Name, Amount)>,
    used: Amount,
    /// Places of jobs that are being written down, by project.
    promised: BTreeMap<Name, u32>,
    deadlines: BTreeSet<(UnixNanos, JobId)>,
    last_start: Option<UnixNanos>,
    /// Nanoseconds between two starts, lately.
    pace: u64,
}

impl Queue {
    /// An empty queue.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            projects: BTreeMap::new(),
            places: HashMap::new(),
            running: HashMap::new(),
            used: Amount::default(),
            promised: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            last_start: None,
            pace: 5_000_000_000,
        }
    }

    /// Other rules from now on. What runs goes on; what waits and would never fit is in [`Queue::unfit`].
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// Promises a place to a job that is about to be written down: until [`Queue::redeem`] it counts as one that waits, so that two
    /// who ask at once do not both get the last one.
    ///
    /// # Errors
    /// [`NotQueued`], with a time where waiting helps.
    pub fn promise(&mut self, project: &Name, needs: &Amount) -> Result<(), NotQueued> {
        self.may_enter(project, needs)?;
        let promised = self.promised.entry(project.clone()).or_default();
        *promised = promised.saturating_add(1);
        Ok(())
    }

    /// Gives a promised place back: the job is entered in the same moment, or does not come.
    pub fn redeem(&mut self, project: &Name) {
        if let Some(promised) = self.promised.get_mut(project) {
            *promised = promised.saturating_sub(1);
            if *promised == 0 {
                self.promised.remove(project);
            }
        }
    }

    /// Whether a job may wait here, now.
    ///
    /// # Errors
    /// [`NotQueued`], with a time where waiting helps.
    fn may_enter(&self, project: &Name, needs: &Amount) -> Result<(), NotQueued> {
        let limits = ["cpus", "memory", "disk"];
        let parts = needs.parts().into_iter().zip(self.rules.capacity.parts()).zip(limits);
        for ((asked, most), limit) in parts {
            if asked > most {
                return Err(NotQueued::TooLarge { limit, asked, most });
            }
        }
        let retry_after = Duration::from_nanos(self.pace).clamp(RETRY.0, RETRY.1);
        let promised = self.promised.values().fold(0, |sum: u32, one| sum.saturating_add(*one));
        if self.queued().saturating_add(promised) >= self.rules.queued {
            return Err(NotQueued::Full { retry_after });
        }
        let of_project = self.projects.get(project).map_or(0, |p| count(p.waiting.len()));
        let of_project = of_project.saturating_add(self.promised.get(project).copied().unwrap_or_default());
        if of_project >= self.rules.quota(project).queued {
            return Err(NotQueued::Quota { project: project.clone(), queued: of_project, retry_after });
        }
        Ok(())
    }

    /// Puts a job in. Whether it may was asked before: one that is durable, as after a restart, waits in any case.
    pub fn enter(&mut self, entry: Entry) {
        if self.places.contains_key(&entry.id) || self.running.contains_key(&entry.id) {
            return;
        }
        let waiting = Waiting { entry, passed: 0 };
        let (id, name) = (waiting.entry.id.clone(), waiting.entry.project.clone());
        self.places.insert(id.clone(), (name.clone(), waiting.order()));
        self.deadlines.extend(waiting.deadline().map(|at| (at, id)));
        self.projects.entry(name).or_default().waiting.insert(waiting.order(), waiting);
    }

    /// Sets aside what a job needs that runs already, as after a restart: even beyond the capacity.
    pub fn resume(&mut self, id: &JobId, project: &Name, needs: Amount) {
        self.leave(id);
        if self.running.contains_key(id) {
            return;
        }
        self.used = self.used.plus(needs);
        let of = self.projects.entry(project.clone()).or_default();
        of.used = of.used.plus(needs);
        of.running = of.running.saturating_add(1);
        self.running.insert(id.clone(), (project.clone(), needs));
    }

    /// The job that starts now, if any does: it leaves the queue, and what it needs is set aside. Ask again until there is none.
    pub fn next(&mut self, now: UnixNanos) -> Option<JobId> {
        if count(self.running.len()) >= self.rules.running {
            return None;
        }
        let id = match self.impatient() {
            Some(waiting) if self.has_room(&waiting.entry.needs) => waiting.entry.id.clone(),
            Some(_) => return None,
            None => self.fair()?,
        };
        let (project, order) = self.places.get(&id)?;
        let needs = self.projects.get(project)?.waiting.get(order)?.entry.needs;
        let project = project.clone();
        self.resume(&id, &project, needs);
        if let Some(last) = self.last_start.replace(now) {
            let gap = now.0.saturating_sub(last.0);
            self.pace = self.pace.saturating_mul(7).saturating_add(gap) / 8;
        }
        Some(id)
    }

    /// The job that has been passed too often, the oldest of several. Only if its project may run one more.
    fn impatient(&self) -> Option<&Waiting> {
        let projects = self.projects.iter().filter(|(name, of)| self.may_run(name, of));
        let waiting = projects.flat_map(|(_, of)| of.waiting.values());
        let impatient = waiting.filter(|w| w.passed >= self.rules.patience && self.can_fit(w));
        impatient.min_by_key(|w| (w.entry.since, &w.entry.id))
    }

    /// The first job in fair order that fits; those before it were passed.
    fn fair(&mut self) -> Option<JobId> {
        let mut passed = Vec::new();
        let found = self.turns().into_iter().find_map(|name| {
            let waiting = &self.projects.get(&name)?.waiting;
            for (order, job) in waiting.iter().take(LOOK_MAX) {
                if self.has_room(&job.entry.needs) {
                    return Some(job.entry.id.clone());
                }
                passed.push((name.clone(), order.clone()));
            }
            None
        })?;
        for (name, order) in passed {
            if let Some(job) = self.projects.get_mut(&name).and_then(|of| of.waiting.get_mut(&order)) {
                job.passed = job.passed.saturating_add(1);
            }
        }
        Some(found)
    }

    /// Projects that have a job waiting and may run one more, by whose turn it is.
    fn turns(&self) -> Vec<Name> {
        let projects = self.projects.iter().filter(|(name, of)| self.may_run(name, of));
        let mut turns: Vec<_> = projects
            .filter_map(|(name, of)| {
                let oldest = of.waiting.values().map(|w| (w.entry.since, &w.entry.id)).min()?;
                let weight = u128::from(self.rules.quota(name).weight.max(1));
                // Scaled first: the shares of a large weight must stay apart.
                let share = of.used.share(self.rules.capacity).saturating_mul(1_000_000) / weight;
                Some((share, oldest, name))
            })
            .collect();
        turns.sort_unstable();
        turns.into_iter().map(|(_, _, name)| name.clone()).collect()
    }

    fn may_run(&self, name: &Name, of: &Project) -> bool {
        of.running < self.rules.quota(name).running
    }

    fn can_fit(&self, job: &Waiting) -> bool {
        job.entry.needs.fits(self.rules.capacity)
    }

    fn has_room(&self, needs: &Amount) -> bool {
        self.used.plus(*needs).fits(self.rules.capacity)
    }

    /// Takes a job out that waits; false if it does not.
    pub fn leave(&mut self, id: &JobId) -> bool {
        let Some((name, order)) = self.places.remove(id) else { return false };
        if let Some(of) = self.projects.get_mut(&name)
            && let Some(job) = of.waiting.remove(&order)
        {
            if let Some(at) = job.deadline() {
                self.deadlines.remove(&(at, id.clone()));
            }
            self.drop_empty(&name);
        }
        true
    }

    /// Gives back what was set aside for a job; false if nothing was.
    pub fn free(&mut self, id: &JobId) -> bool {
        let Some((name, needs)) = self.running.remove(id) else { return false };
        self.used = self.used.minus(needs);
        if let Some(of) = self.projects.get_mut(&name) {
            of.used = of.used.minus(needs);
            of.running = of.running.saturating_sub(1);
        }
        self.drop_empty(&name);
        true
    }

    fn drop_empty(&mut self, name: &Name) {
        if self.projects.get(name).is_some_and(|of| of.waiting.is_empty() && of.running == 0) {
            self.projects.remove(name);
        }
    }

    /// Takes out and names the jobs that have waited longer than they wanted to.
    pub fn timed_out(&mut self, now: UnixNanos) -> Vec<JobId> {
        let over = self.deadlines.iter().take_while(|(at, _)| *at <= now);
        let over: Vec<_> = over.map(|(_, id)| id.clone()).collect();
        for id in &over {
            self.leave(id);
        }
        over
    }

    /// When the next job has waited long enough.
    pub fn next_timeout(&self) -> Option<UnixNanos> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Jobs that wait and would never fit, since the rules have changed.
    pub fn unfit(&self) -> Vec<JobId> {
        let waiting = self.projects.values().flat_map(|of| of.waiting.values());
        waiting.filter(|job| !self.can_fit(job)).map(|job| job.entry.id.clone()).collect()
    }

    /// How many jobs of its own project are ahead of one that waits. How much others wait for is theirs to know.
    pub fn position(&self, id: &JobId) -> Option<u32> {
        let (name, order) = self.places.get(id)?;
        Some(count(self.projects.get(name)?.waiting.range(..order).count()))
    }

    /// How many jobs wait.
    pub fn queued(&self) -> u32 {
        count(self.places.len())
    }

    /// How many jobs run.
    pub fn running(&self) -> u32 {
        count(self.running.len())
    }

    /// What is promised to jobs that run.
    pub fn used(&self) -> Amount {
        self.used
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
