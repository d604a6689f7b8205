//! A step's environment, built from nothing.

use ampoule_sandbox::protocol::{Handed, StepPlan};
use ampoule_spec::{Delivery, ENV_DEFAULTS, JobSpec, Secret};
use std::collections::BTreeMap;

/// What the process of each step of a job is told.
pub(crate) fn step_plans(job: &JobSpec, open_files: u64) -> Vec<StepPlan> {
    let epoch = job.source_date_epoch.to_string();
    let mut base: BTreeMap<&str, &str> = ENV_DEFAULTS.into_iter().collect();
    base.insert("SOURCE_DATE_EPOCH", &epoch);
    base.extend(job.env.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    job.steps
        .iter()
        .map(|step| {
            let mut env = base.clone();
            env.extend(step.env.iter().map(|(name, value)| (name.as_str(), value.as_str())));
            StepPlan {
                run: step.run.clone(),
                cwd: step.cwd.clone(),
                env: env.into_iter().map(|(name, value)| format!("{name}={value}")).collect(),
                open_files,
                secrets: job.secrets_of(step).into_iter().filter_map(handed).collect(),
            }
        })
        .collect()
}

/// What a step's process makes of a secret's descriptor; none for one that is a file.
pub(crate) fn handed(secret: &Secret) -> Option<Handed> {
    match &secret.delivery {
        Delivery::File(_) => None,
        Delivery::Fd(name) => Some(Handed::Fd(name.clone())),
        Delivery::Env(name) => Some(Handed::Env(name.clone())),
    }
}
