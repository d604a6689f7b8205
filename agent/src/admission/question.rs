//! What a policy is asked: computed from the decoded message, by nothing else.

use crate::job::{Caller, Job, Submission};
use ampoule_spec::{Image, StepUser};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What a caller wants to do. Its spelling is the policy's `input.action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Submit a job.
    Submit,
    /// See a job: its state, events and logs. Without it a job does not exist for the caller.
    Read,
    /// Ask for a job's end.
    Cancel,
    /// Take a job's signed evidence.
    Evidence,
    /// Take a job's outputs.
    Download,
    /// Upload content, and ask what is missing.
    Upload,
    /// See what the host can do.
    Capabilities,
    /// Stop and resume the intake.
    Drain,
    /// See what steps have of secrets: names, servers and times.
    Leases,
    /// Have what steps have taken back.
    Revoke,
    /// Have servers looked at, and where each secret comes from.
    Check,
    /// See the schema by reflection.
    Describe,
}

impl Action {
    /// Every action.
    pub const ALL: [Self; 12] = [
        Self::Submit,
        Self::Read,
        Self::Cancel,
        Self::Evidence,
        Self::Download,
        Self::Upload,
        Self::Capabilities,
        Self::Drain,
        Self::Leases,
        Self::Revoke,
        Self::Check,
        Self::Describe,
    ];

    /// Its spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Submit => "submit",
            Self::Read => "read",
            Self::Cancel => "cancel",
            Self::Evidence => "evidence",
            Self::Download => "download",
            Self::Upload => "upload",
            Self::Capabilities => "capabilities",
            Self::Drain => "drain",
            Self::Leases => "leases",
            Self::Revoke => "revoke",
            Self::Check => "check",
            Self::Describe => "describe",
        }
    }
}

/// What a job's root is made of, as the policy sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageKind {
    /// The host's own.
    Host,
    /// An OCI image.
    Oci,
    /// A tar archive.
    Tar,
}

/// More about a job that is submitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JobFacts<'a> {
    name: &'a str,
    attempt: u32,
    priority: u8,
    labels: &'a BTreeMap<String, String>,
    /// `build` or `root`.
    user: &'static str,
}

/// A question to the policy.
#[derive(Debug, Clone)]
pub struct Question<'a> {
    /// Who asks.
    pub caller: &'a Caller,
    /// What for.
    pub action: Action,
    /// Whose job or content; none for the host.
    pub project: Option<&'a str>,
    /// The job's profile.
    pub profile: Option<&'a str>,
    /// What its root is made of; only when it is submitted.
    pub image: Option<ImageKind>,
    /// Who has submitted it; not when it is submitted.
    pub owner: Option<&'a str>,
    /// More about it; only when it is submitted.
    pub job: Option<JobFacts<'a>>,
}

impl<'a> Question<'a> {
    /// About the host.
    pub fn host(caller: &'a Caller, action: Action) -> Self {
        Self { caller, action, project: None, profile: None, image: None, owner: None, job: None }
    }

    /// About a project's content.
    pub fn project(caller: &'a Caller, action: Action, project: &'a str) -> Self {
        Self { project: Some(project), ..Self::host(caller, action) }
    }

    /// About a job that is there.
    pub fn job(caller: &'a Caller, action: Action, job: &'a Job) -> Self {
        Self {
            profile: Some(job.profile.as_str()),
            owner: Some(&job.caller.subject),
            ..Self::project(caller, action, job.project.as_str())
        }
    }

    /// About a job that is submitted.
    pub fn submission(submission: &'a Submission) -> Self {
        let spec = &submission.spec;
        let image = match spec.image {
            Image::Host => ImageKind::Host,
            Image::Oci { .. } => ImageKind::Oci,
            Image::Tar { .. } => ImageKind::Tar,
        };
        let user = match spec.user {
            StepUser::Build => "build",
            StepUser::Root => "root",
        };
        let facts = JobFacts {
            name: spec.name.as_str(),
            attempt: spec.attempt,
            priority: submission.priority,
            labels: &submission.labels,
            user,
        };
        Self {
            profile: Some(spec.profile.as_str()),
            image: Some(image),
            job: Some(facts),
            ..Self::project(&submission.caller, Action::Submit, submission.project.as_str())
        }
    }

    /// The policy's `input`. What does not apply is not there, so that a rule that needs it is undefined.
    pub fn input(&self) -> Value {
        let caller = json!({
            "means": self.caller.means,
            "subject": self.caller.subject,
            "claims": self.caller.claims,
        });
        let mut input = json!({ "caller": caller, "action": self.action.as_str() });
        let facts = [
            ("project", self.project.map(|text| json!(text))),
            ("profile", self.profile.map(|text| json!(text))),
            ("image", self.image.map(|kind| json!(kind))),
            ("owner", self.owner.map(|text| json!(text))),
            ("job", self.job.as_ref().map(|facts| json!(facts))),
        ];
        if let Some(object) = input.as_object_mut() {
            object.extend(facts.into_iter().filter_map(|(name, fact)| Some((name.to_owned(), fact?))));
        }
        input
    }
}
