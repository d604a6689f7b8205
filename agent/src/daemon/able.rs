//! What this host can do for jobs, as the launcher says it: asked again and again, because neither host nor launcher stays.
//!
//! Guarantees: a profile that the operator does not let jobs ask for, that the launcher does not have, or that the host does not
//! meet is refused at the submission, and not by a job that has waited. As long as the launcher has never answered, nothing is
//! taken.

use super::config::Config;
use crate::api::host::{Host, HostFacts};
use crate::job::JobsError;
use crate::job::queue::Amount;
use crate::local::{Runner, RunnerError};
use ampoule_spec::{Code, Fault, Name};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// When a launcher is asked again that gave no answer, or said that something is missing.
const SOON: Duration = Duration::from_secs(30);
/// When one is asked again that can do everything.
const LATER: Duration = Duration::from_secs(600);
/// How long a submission waits for the first answer about its profile, after a start or a reload that names it.
const FIRST_WITHIN: Duration = Duration::from_secs(5);

/// What a launcher said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Said {
    runner_version: String,
    profiles: BTreeMap<Name, Answer>,
}

/// What it said of a profile.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    /// What the profile demands and the host does not give, with the remedy; empty: it can be met.
    Lacks(Vec<String>),
    /// It does not have the profile, or never runs it.
    Refuses(Code, String),
}

impl Said {
    fn is_all_good(&self) -> bool {
        self.profiles.values().all(|answer| *answer == Answer::Lacks(Vec::new()))
    }
}

/// What the host can do, as far as it is known.
#[derive(Debug)]
pub(super) struct ThisHost {
    /// What the operator lets jobs ask for.
    profiles: Mutex<Vec<Name>>,
    socket: PathBuf,
    capacity: Mutex<Amount>,
    said: watch::Sender<Option<Arc<Said>>>,
    again: Notify,
}

impl ThisHost {
    pub(super) fn new(of: &Config, capacity: Amount) -> Self {
        let (profiles, socket) = (Mutex::new(of.profiles.clone()), of.runner.socket.clone());
        let (said, again) = (watch::Sender::new(None), Notify::new());
        Self { profiles, socket, capacity: Mutex::new(capacity), said, again }
    }

    /// It promises so much from now on.
    pub(super) fn promise(&self, capacity: Amount) {
        *self.capacity.lock().unwrap_or_else(PoisonError::into_inner) = capacity;
    }

    /// The operator lets jobs ask for these from now on. What the launcher says of them is asked now.
    pub(super) fn allow(&self, profiles: Vec<Name>) {
        *self.profiles.lock().unwrap_or_else(PoisonError::into_inner) = profiles;
        self.ask_again();
    }

    fn allowed(&self) -> Vec<Name> {
        self.profiles.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has the launcher asked now: another one may have come, or the operator has changed something.
    pub(super) fn ask_again(&self) {
        self.again.notify_one();
    }

    /// Asks the launcher for as long as it is polled.
    pub(super) async fn keep_asking(self: Arc<Self>) {
        loop {
            let host = self.clone();
            let asked = tokio::task::spawn_blocking(move || host.ask()).await;
            let pause = match asked {
                Ok(Ok(said)) => {
                    let pause = if said.is_all_good() { LATER } else { SOON };
                    self.hear(said);
                    pause
                }
                // What it said before stands: jobs wait for a launcher that is away.
                _ => SOON,
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.again.notified() => {}
            }
        }
    }

    /// Keeps what the launcher said. What is not good is told once.
    fn hear(&self, said: Said) {
        let before = self.said.send_replace(Some(Arc::new(said.clone())));
        if before.as_deref() == Some(&said) {
            return;
        }
        for (profile, answer) in &said.profiles {
            let profile = profile.as_str();
            match answer {
                Answer::Lacks(missing) if missing.is_empty() => {}
                Answer::Lacks(missing) => tracing::warn!(profile, ?missing, "a profile cannot be met"),
                Answer::Refuses(_, reason) => tracing::warn!(profile, reason, "a profile is refused"),
            }
        }
    }

    fn ask(&self) -> Result<Said, RunnerError> {
        let runner = Runner::connect(&self.socket)?;
        let mut said = Said { runner_version: runner.version().to_owned(), profiles: BTreeMap::new() };
        for profile in self.allowed() {
            let answer = match runner.doctor(profile.clone()) {
                Ok(measured) => Answer::Lacks(measured.missing),
                Err(RunnerError::Refused { code, message }) if is_final(code) => {
                    Answer::Refuses(code, message)
                }
                Err(error) => return Err(error),
            };
            said.profiles.insert(profile, answer);
        }
        Ok(said)
    }

    /// Whether jobs with this profile are taken.
    ///
    /// # Errors
    /// `admission.denied` for one that the operator does not let jobs ask for, the launcher's code for one that it does not
    /// have, `sandbox.unsupported` for one that the host does not meet, `admission.busy` if the launcher has not said yet.
    pub(super) async fn takes(&self, profile: &Name) -> Result<(), JobsError> {
        let refuse = |code, message: String| Err(JobsError { code, message, retry_after: None });
        let allowed = self.allowed();
        if !allowed.contains(profile) {
            let known: Vec<&str> = allowed.iter().map(Name::as_str).collect();
            let known = known.join(", ");
            let text = format!("profile {profile} is not allowed on this host; allowed: {known}");
            return refuse(Code::AdmissionDenied, text);
        }
        let mut said = self.said.subscribe();
        let is_known =
            |said: &Option<Arc<Said>>| said.as_ref().is_some_and(|said| said.profiles.contains_key(profile));
        let asked = tokio::time::timeout(FIRST_WITHIN, said.wait_for(is_known)).await;
        let answer = match asked {
            Ok(Ok(said)) => said.as_ref().and_then(|said| said.profiles.get(profile).cloned()),
            _ => None,
        };
        match answer {
            Some(Answer::Lacks(missing)) if missing.is_empty() => Ok(()),
            Some(Answer::Lacks(missing)) => {
                let text = format!("profile {profile} cannot be met on this host: {}", missing.join("; "));
                refuse(Code::SandboxUnsupported, text)
            }
            Some(Answer::Refuses(code, reason)) => refuse(code, reason),
            None => Err(JobsError {
                code: Code::AdmissionBusy,
                message: format!("the launcher has not said yet whether it has the profile {profile}"),
                retry_after: Some(FIRST_WITHIN),
            }),
        }
    }
}

/// Whether the launcher will say the same when it is asked again in a moment.
fn is_final(code: Code) -> bool {
    !code.retryable() && code.fault() != Fault::Platform
}

impl Host for ThisHost {
    async fn facts(&self) -> HostFacts {
        let said = self.said.borrow().clone().unwrap_or_default();
        let allowed = self.allowed();
        let profiles =
            said.profiles.iter().filter(|(name, _)| allowed.contains(name)).map(|(name, answer)| {
                let missing = match answer {
                    Answer::Lacks(missing) => missing.clone(),
                    Answer::Refuses(_, reason) => vec![reason.clone()],
                };
                (name.to_string(), missing)
            });
        let capacity = *self.capacity.lock().unwrap_or_else(PoisonError::into_inner);
        HostFacts {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            runner_version: said.runner_version.clone(),
            profiles: profiles.collect(),
            cpu_millis: capacity.cpu_millis,
            memory_bytes: capacity.memory_bytes,
            disk_bytes: capacity.disk_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn host() -> ThisHost {
        let text = "dev = true\nprofiles = [\"hermetic\", \"dev\", \"ours\"]\n[listen]\nunix = \"s\"\n[runner]\nsocket = \"/nowhere\"\n";
        ThisHost::new(&Config::parse(text, "c", Path::new("/")).unwrap(), Amount::default())
    }

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn profile_is_what_operator_launcher_and_host_all_have() {
        let host = host();
        let of = async |profile: &str| host.takes(&name(profile)).await.map_err(|e| (e.code, e.message));
        // Not the operator's, whatever the launcher has.
        let (code, text) = of("fetch").await.unwrap_err();
        assert_eq!(code, Code::AdmissionDenied);
        assert!(text.contains("allowed: hermetic, dev, ours"), "{text}");
        let unknown = host.takes(&name("hermetic")).await.unwrap_err();
        assert_eq!((unknown.code, unknown.retry_after), (Code::AdmissionBusy, Some(FIRST_WITHIN)));

        let lacks = Answer::Lacks(vec!["no loop device; modprobe loop".to_owned()]);
        let refuses = Answer::Refuses(Code::JobInvalid, "there is no profile ours".to_owned());
        let profiles =
            [(name("hermetic"), Answer::Lacks(vec![])), (name("dev"), lacks), (name("ours"), refuses)];
        let said = Said { runner_version: "9".to_owned(), profiles: profiles.into() };
        assert!(!said.is_all_good());
        host.hear(said);
        assert_eq!(of("hermetic").await, Ok(()));
        let (code, text) = of("dev").await.unwrap_err();
        assert_eq!(code, Code::SandboxUnsupported);
        assert!(text.contains("modprobe loop"), "{text}");
        assert_eq!(of("ours").await.unwrap_err(), (Code::JobInvalid, "there is no profile ours".to_owned()));
        let facts = host.facts().await;
        assert_eq!(facts.runner_version, "9");
        let missing: Vec<_> =
            facts.profiles.iter().map(|(name, lacks)| (name.as_str(), lacks.len())).collect();
        assert_eq!(missing, [("dev", 1), ("hermetic", 0), ("ours", 1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn profiles_are_those_that_were_allowed_last_and_a_new_one_is_waited_for() {
        let host = Arc::new(host());
        let lacks_nothing = |names: &[&str]| {
            let profiles = names.iter().map(|text| (name(text), Answer::Lacks(vec![])));
            Said { profiles: profiles.collect(), ..Said::default() }
        };
        host.hear(lacks_nothing(&["hermetic", "dev", "ours"]));
        host.allow(vec![name("hermetic"), name("fetch")]);
        assert_eq!(host.takes(&name("dev")).await.unwrap_err().code, Code::AdmissionDenied);
        assert_eq!(host.facts().await.profiles, [("hermetic".to_owned(), vec![])]);
        let asks = tokio::spawn({
            let host = host.clone();
            async move { host.takes(&name("fetch")).await }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        host.hear(lacks_nothing(&["hermetic", "fetch"]));
        asks.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn submission_waits_a_moment_for_the_first_answer() {
        let host = Arc::new(host());
        let asks = tokio::spawn({
            let host = host.clone();
            async move { host.takes(&name("dev")).await }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        let profiles = [(name("dev"), Answer::Lacks(vec![]))];
        host.hear(Said { profiles: profiles.into(), ..Said::default() });
        asks.await.unwrap().unwrap();
    }
}
