//! One driver per job: it does what the job's state asks for until the job is finished, and writes down first.
//!
//! The driver holds no state of its own that counts: after a restart another one begins where the ledger says.

use super::inner::Inner;
use super::intake::{NotReady, Preparation, Prepared};
use super::intake_places::Had;
use super::launcher::Answer;
use super::line::Ending;
use super::secrets::Tended;
use crate::fair::Seat;
use crate::job::ledger::LedgerError;
use crate::job::model::State;
use crate::job::state::{Change, Life};
use crate::local::intake::Intake;
use crate::local::{Cancel, Note, Progress, Watch};
use ampoule_evidence::AgentClaims;
use ampoule_spec::{Code, Failure, Image, JobId};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// How often a job that runs is looked at: its session may end and say nothing, and its report is there before that is said.
const LOOK_EVERY: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));
/// How often a cancel that nobody took is offered again.
const OFFER_EVERY: Duration = Duration::from_millis(250);
/// How long to wait before something is tried again: doubled each time.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(30));

/// By what others hold a driver.
#[derive(Debug)]
pub(super) struct Reins {
    /// Ends the intake.
    pub(super) cancel: Cancel,
    /// Somebody wishes the job's end.
    pub(super) wished: Notify,
    /// What is fetched now, for people.
    pub(super) progress: watch::Sender<Option<String>>,
}

impl Reins {
    pub(super) fn new() -> Self {
        Self { cancel: Cancel::default(), wished: Notify::new(), progress: watch::Sender::new(None) }
    }
}

/// A time to wait that grows.
struct Pause(Duration);

impl Pause {
    fn new() -> Self {
        Self(PAUSE.0)
    }

    async fn wait(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(PAUSE.1);
    }
}

/// What the runner has of a job.
enum Taken {
    /// It is admitted.
    Yes,
    /// It never was.
    No(Failure),
}

pub(super) struct Driver {
    pub(super) inner: Arc<Inner>,
    pub(super) id: JobId,
    pub(super) reins: Arc<Reins>,
    /// Whether it was us who wrote down that the runner is asked; else somebody before us may have asked it.
    pub(super) asked_here: bool,
    /// Who sees to the job's secrets while it runs.
    pub(super) tended: Option<Tended>,
}

impl Driver {
    /// Drives the job to its end. Ends early only when the ledger is closed.
    pub(super) async fn drive(mut self) {
        let mut pause = Pause::new();
        loop {
            let Some(life) = self.inner.ledger.get(&self.id) else { return };
            let done = match life.job.state {
                State::Queued | State::Finished => return,
                State::Preparing => self.prepare(&life).await,
                State::Running => self.run(&life).await,
                State::Attesting => self.attest(&life).await,
            };
            match done {
                Ok(()) => pause = Pause::new(),
                Err(LedgerError::Closed) => return,
                // Somebody was first, as with a cancel: the state says what is next.
                Err(LedgerError::Illegal(_)) => {}
                Err(error) => {
                    tracing::error!(job = %self.id, %error, "the job does not go on for now");
                    pause.wait().await;
                }
            }
        }
    }

    async fn prepare(&mut self, life: &Arc<Life>) -> Result<(), LedgerError> {
        let prepared = self.take_in(life).await?;
        self.reins.progress.send_replace(None);
        match prepared {
            Ok(Prepared { claims, resolved }) => {
                self.inner.records.keep_claims(&self.id, &claims);
                if let Some(spec) = resolved
                    && let Err(error) = self.inner.ledger.resolve(&self.id, &spec).await
                {
                    return self.unresolved(error).await;
                }
                // The host may have become another while inputs were fetched.
                tokio::select! {
                    () = self.inner.holds.until_steady() => {}
                    () = self.reins.wished.notified() => {}
                }
                self.asked_here = true;
                self.inner.change(&self.id, Change::Asked { runner: self.id.clone() }).await.map(drop)
            }
            Err(NotReady::Failed(failure)) => self.refuse(failure).await,
            // Who cancelled has written it down; or the daemon ends, and the next one prepares the job again.
            Err(NotReady::Cancelled | NotReady::Again | NotReady::Fetches) => {
                let ends = self.inner.ledger.get(&self.id).is_some_and(|l| l.job.state == State::Preparing);
                if ends { Err(LedgerError::Closed) } else { Ok(()) }
            }
        }
    }

    /// What was found is not written down: it is found again, unless it never can be.
    async fn unresolved(&self, error: LedgerError) -> Result<(), LedgerError> {
        match error {
            LedgerError::Oversize { .. } => {
                self.refuse(Failure::new(Code::JobInvalid, error.to_string())).await
            }
            other => Err(other),
        }
    }

    /// Sees to it that everything is there that the job names. It is looked up first whether anything has to be fetched: who has
    /// everything waits for nobody's source.
    async fn take_in(&self, life: &Arc<Life>) -> Result<Result<Prepared, NotReady>, LedgerError> {
        let (inner, of) = (self.inner.clone(), life.clone());
        let nothing = tokio::task::spawn_blocking(move || names_nothing(&inner, &of)).await.unwrap_or(false);
        let mut takes = if nothing { Takes::Nothing } else { Takes::WhatIsThere };
        let mut pause = Pause::new();
        loop {
            let seat = tokio::select! {
                seat = self.turn_to_take(life, takes) => seat?,
                () = self.reins.wished.notified() => return Ok(Err(NotReady::Cancelled)),
            };
            if self.reins.cancel.is_cancelled() {
                return Ok(Err(NotReady::Cancelled));
            }
            let Some(seat) = seat else {
                return Ok(Ok(Prepared { claims: AgentClaims::new(), resolved: None }));
            };
            match self.intake(life, seat, takes == Takes::Everything).await {
                Err(NotReady::Fetches) => takes = Takes::Everything,
                Err(NotReady::Again) => tokio::select! {
                    () = pause.wait() => {}
                    () = self.reins.wished.notified() => return Ok(Err(NotReady::Cancelled)),
                },
                other => return Ok(other),
            }
        }
    }

    /// Waits for the launcher, and for a seat if there is something to take in.
    async fn turn_to_take(&self, life: &Life, takes: Takes) -> Result<Option<Seat>, LedgerError> {
        let (inner, project) = (&self.inner, life.job.project.as_str());
        let turn = async {
            inner.launcher.until_up().await;
            match takes {
                Takes::Nothing => None,
                Takes::WhatIsThere => Some(inner.options.lookups.take(project).await),
                Takes::Everything => Some(inner.places.take(project).await),
            }
        };
        tokio::select! {
            seat = turn => Ok(seat),
            () = self.inner.ended.cancelled() => Err(LedgerError::Closed),
        }
    }

    /// Takes the inputs in, for as long as it may last. The seat is given back when that has ended, whoever waits for it.
    async fn intake(&self, life: &Arc<Life>, seat: Seat, fetches: bool) -> Result<Prepared, NotReady> {
        let (inner, of, reins) = (self.inner.clone(), life.clone(), self.reins.clone());
        let (cancel, had) = (self.reins.cancel.of_a_part(), Arc::new(Had::default()));
        let attempt = Attempt { fetches, cancel: cancel.clone(), had: had.clone() };
        let mut preparing = tokio::task::spawn_blocking(move || {
            let _seat = seat;
            make_ready(&inner, &of, &reins, attempt)
        });
        let lost = |_| Err(defect("the intake ended early"));
        let gives_way = tokio::select! {
            prepared = &mut preparing => return prepared.unwrap_or_else(lost),
            gives_way = self.inner.places.until_over(life.job.project.as_str(), &had), if fetches => gives_way,
        };
        cancel.cancel();
        match preparing.await.unwrap_or_else(lost) {
            Err(NotReady::Cancelled) if !self.reins.cancel.is_cancelled() => {
                Err(NotReady::Failed(gives_way.failure))
            }
            other => other,
        }
    }

    async fn refuse(&self, failure: Failure) -> Result<(), LedgerError> {
        self.inner.change(&self.id, Change::Refused { failure }).await.map(drop)
    }

    async fn run(&mut self, life: &Arc<Life>) -> Result<(), LedgerError> {
        // Before the runner is asked: the job may be over before we know that it was taken.
        let ending = self.inner.launcher.ending(&self.id);
        if life.job.started_at.is_none() {
            let taken = if self.asked_here { self.ask().await } else { self.find().await };
            match taken {
                Taken::No(failure) => return self.refuse(failure).await,
                Taken::Yes => {
                    // If that cannot be written down now, the runner is not asked again: it has the job.
                    self.asked_here = false;
                    let at = super::follow::admitted_at(&self.inner.launcher.job_dir(&self.id));
                    let at = at.unwrap_or_else(super::inner::now);
                    self.inner.change(&self.id, Change::Admitted { at }).await?;
                }
            }
        }
        if self.tended.is_none() {
            self.tended = self.inner.tend(life);
        }
        let admitted = self.until_reported(&ending).await?;
        self.inner.change(&self.id, Change::Reported { admitted }).await.map(drop)
    }

    /// Asks the runner to take the job.
    async fn ask(&self) -> Taken {
        let mut pause = Pause::new();
        loop {
            // A wish that comes before there is somebody to ask ends the job here. The launcher may be another than the one under
            // which the inputs were fetched, and the host too.
            let may_ask = async {
                self.inner.launcher.until_up().await;
                self.inner.holds.until_steady().await;
            };
            tokio::select! {
                () = may_ask => {}
                () = self.reins.wished.notified() => {}
            }
            if let Some(failure) = self.wished() {
                return Taken::No(failure);
            }
            let (inner, id) = (self.inner.clone(), self.id.clone());
            let asked = tokio::task::spawn_blocking(move || {
                let internal = |message| Answer::Refused { code: Code::Internal, message };
                let spec = inner.ledger.spec_bytes(&id).map_err(|error| internal(error.to_string()))?;
                let spec = spec.ok_or_else(|| internal("its spec is gone".to_owned()))?;
                inner.launcher.ask(&spec, &id, || inner.holds.is_steady())
            });
            let answer = match asked.await {
                Ok(Ok(answer)) => answer.await.unwrap_or(Answer::Silent),
                Ok(Err(answer)) => answer,
                Err(_) => Answer::Silent,
            };
            match answer {
                Answer::Admitted => return Taken::Yes,
                Answer::Refused { code: Code::AdmissionBusy, .. } | Answer::NotThere => pause.wait().await,
                Answer::Refused { code, message } => return Taken::No(Failure::new(code, message)),
                Answer::Silent => return self.find().await,
            }
        }
    }

    /// Finds out what became of a job that the runner was asked to take, by us or by an agent before us. A session that still
    /// has the question may be busy or stopped for as long as it likes: the launcher sees to it that none admits the job any
    /// more, or says that it is admitted.
    async fn find(&self) -> Taken {
        let mut pause = Pause::new();
        loop {
            self.inner.launcher.until_up().await;
            let (inner, id) = (self.inner.clone(), self.id.clone());
            match tokio::task::spawn_blocking(move || inner.launcher.fence(&id)).await {
                Ok(Ok(false)) => return Taken::Yes,
                Ok(Ok(true)) => {
                    let message = "the agent or the launcher died before the runner had taken the job";
                    return Taken::No(Failure::new(Code::JobAborted, message.to_owned()));
                }
                Ok(Err(error)) => {
                    tracing::warn!(job = %self.id, error = crate::chain::chain(&error), "it is not known yet whether the runner has the job");
                    pause.wait().await;
                }
                Err(_) => pause.wait().await,
            }
        }
    }

    /// The failure of a job whose end was wished before the runner was asked.
    fn wished(&self) -> Option<Failure> {
        let life = self.inner.ledger.get(&self.id)?;
        let wish = life.job.cancel.as_ref()?;
        Some(Failure::new(Code::JobCancelled, format!("cancelled by {} before it ran", wish.by)))
    }

    /// Waits for the report, and hands a cancel on. Says when the runner admitted the job.
    async fn until_reported(&self, ending: &Ending) -> Result<ampoule_spec::UnixNanos, LedgerError> {
        let dir = self.inner.launcher.job_dir(&self.id);
        let (begun, mut cancelled, mut said) = (tokio::time::Instant::now(), false, false);
        let mut offered = tokio::time::Instant::now() - OFFER_EVERY;
        loop {
            let reported = dir.join("report.json").try_exists();
            if let (Err(error), false) = (&reported, said) {
                said = true;
                tracing::error!(job = %self.id, %error, dir = %dir.display(), "the job's directory cannot be looked into; does it belong to this agent's group?");
            }
            if reported.unwrap_or(false) || self.is_gone(&dir).await {
                let life = self.inner.ledger.get(&self.id);
                let started = life.and_then(|life| life.job.started_at);
                return Ok(started.unwrap_or_else(super::inner::now));
            }
            let wished = self.inner.ledger.get(&self.id).is_some_and(|life| life.job.cancel.is_some());
            if wished && !cancelled && offered.elapsed() >= OFFER_EVERY {
                offered = tokio::time::Instant::now();
                cancelled = self.inner.launcher.cancel(&self.id).is_ok();
            }
            tokio::select! {
                () = tokio::time::sleep(super::audience::pause(begun.elapsed(), LOOK_EVERY)) => {}
                () = ending.told() => {}
                () = self.reins.wished.notified() => {}
                () = self.inner.ended.cancelled() => return Err(LedgerError::Closed),
            }
        }
    }

    /// Whether somebody has removed the directory of a job that the runner has: neither it nor we do that.
    async fn is_gone(&self, dir: &std::path::Path) -> bool {
        if !dir.try_exists().is_ok_and(|there| !there) {
            return false;
        }
        let (inner, id) = (self.inner.clone(), self.id.clone());
        matches!(tokio::task::spawn_blocking(move || inner.launcher.has(&id)).await, Ok(Ok(false)))
    }

    async fn attest(&mut self, life: &Arc<Life>) -> Result<(), LedgerError> {
        let mut pause = Pause::new();
        // What a step had is taken back first: the record says whether it was.
        let is_back = self.inner.take_back(life, self.tended.take()).await;
        let end = loop {
            let (inner, of) = (self.inner.clone(), life.clone());
            let made = tokio::task::spawn_blocking(move || {
                let dir = inner.launcher.job_dir(&of.job.id);
                let had = inner.had_secrets(&of.job.id, is_back);
                inner.records.attest(&inner.ledger, &of, &dir, &had, super::inner::now())
            });
            match made.await {
                Ok(Ok(end)) => match self.inner.options.witness.ends(&life.job, &end).await {
                    Ok(()) => break end,
                    Err(error) => {
                        tracing::error!(job = %self.id, error, "the job's end cannot be written down now")
                    }
                },
                Ok(Err(error)) => {
                    tracing::error!(job = %self.id, %error, "the job's record cannot be made now")
                }
                Err(_) => tracing::error!(job = %self.id, "making the job's record ended early"),
            }
            self.inner.stuck(&self.id, true);
            tokio::select! {
                () = pause.wait() => {}
                () = self.inner.ended.cancelled() => return Err(LedgerError::Closed),
            }
        };
        self.inner.stuck(&self.id, false);
        let finished = Change::Finished { at: super::inner::now(), end: Box::new(end) };
        self.inner.change(&self.id, finished).await.map(drop)
    }
}

pub(super) fn defect(what: &str) -> NotReady {
    NotReady::Failed(Failure::new(Code::Internal, what.to_owned()))
}

/// What a job takes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Takes {
    /// It names nothing.
    Nothing,
    /// What the store has; nothing is fetched.
    WhatIsThere,
    /// What has to be fetched too.
    Everything,
}

/// Whether a job names nothing that has to be looked up or fetched. Blocks.
fn names_nothing(inner: &Inner, life: &Life) -> bool {
    let spec = inner.ledger.spec(&life.job.id);
    spec.is_ok_and(|spec| spec.is_some_and(|spec| spec.image == Image::Host && spec.inputs.is_empty()))
}

/// One attempt at an intake.
struct Attempt {
    /// Whether something may be fetched.
    fetches: bool,
    /// Ends it.
    cancel: Cancel,
    /// How much it has had.
    had: Arc<Had>,
}

/// Takes in everything that a job names. Blocks.
fn make_ready(
    inner: &Inner,
    life: &Life,
    reins: &Arc<Reins>,
    attempt: Attempt,
) -> Result<Prepared, NotReady> {
    let spec = inner.ledger.spec(&life.job.id);
    let Ok(Some(spec)) = spec else { return Err(defect("its spec cannot be read back from the ledger")) };
    let (told, had) = (Arc::clone(reins), attempt.had);
    let sources = inner.sources();
    let files = sources.files_of(&life.job.project);
    let with = Intake {
        sources: sources.of(&life.job.project),
        registry_auth: files.registry_auth.clone(),
        // Whose time or signature is asked for is fetched again: nobody sweeps what would be kept.
        commits: None,
        watch: Watch::new(move |progress| {
            had.hear(progress);
            told.progress.send_replace(Some(shown(progress)));
        }),
        cancel: attempt.cancel,
        memory: Arc::new(super::intake::OfProject {
            project: life.job.project.clone(),
            shown: inner.options.shown.clone(),
        }),
    };
    let mut runner = inner.launcher.connect().map_err(crate::local::LocalError::from)?;
    runner.watch(&with.watch);
    let preparation = Preparation {
        spec: &spec,
        project: &life.job.project,
        runner: &runner,
        with: &with,
        fetches: attempt.fetches,
        shown: &*inner.options.shown,
        files: &files,
    };
    preparation.make(&mut |note| {
        let text = match note {
            Note::Importing { what } => format!("importing {what}"),
            Note::PassedOver { input, passed } => format!("input {input}: {}", passed.reason),
            _ => return,
        };
        reins.progress.send_replace(Some(text));
    })
}

fn shown(progress: &Progress) -> String {
    let work = progress.work.as_str();
    match progress.total {
        Some(total) => format!("{work} {}: {} of {total} bytes", progress.what, progress.bytes),
        None => format!("{work} {}: {} bytes", progress.what, progress.bytes),
    }
}
