//! A step's environment, built from nothing.

use ampoule_sandbox::init::StepPlan;
use ampoule_spec::JobSpec;
use std::collections::BTreeMap;

/// What every step finds, unless the job says otherwise (docs/job-file.md).
const DEFAULTS: [(&str, &str); 5] = [
    ("HOME", "/home/build"),
    ("LC_ALL", "C.UTF-8"),
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("TMPDIR", "/tmp"),
    ("TZ", "UTC"),
];

/// What init needs of each step of a job.
pub(crate) fn step_plans(job: &JobSpec) -> Vec<StepPlan> {
    let epoch = job.source_date_epoch.to_string();
    let mut base: BTreeMap<&str, &str> = DEFAULTS.into_iter().collect();
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
            }
        })
        .collect()
}
