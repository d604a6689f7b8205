//! `ampoule job check`.

use crate::args::CheckArgs;
use crate::failure::Failed;
use crate::{run, show};
use ampoule_agent::jobfile;
use serde_json::json;
use std::path::Path;

/// Validates a job file.
pub(crate) fn check(args: &CheckArgs) -> Result<u8, Failed> {
    let file = jobfile::load(&args.job)?;
    let base = args.job.parent().unwrap_or(Path::new(""));
    let plan = file.plan(base, &run::params(&args.params)?)?;
    if args.json {
        show::json(&json!({
            "valid": true, "name": plan.name, "profile": plan.profile, "inputs": plan.inputs.len(),
            "steps": plan.steps.len(), "outputs": plan.outputs.len(), "params": plan.params,
        }));
    } else {
        show::line(&format!(
            "{}: valid: job {}, profile {}, {} inputs, {} steps, {} outputs",
            args.job.display(),
            plan.name,
            plan.profile,
            plan.inputs.len(),
            plan.steps.len(),
            plan.outputs.len()
        ));
    }
    Ok(0)
}
