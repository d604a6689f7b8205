//! What this host can isolate, measured by making a sandbox that runs no step.

use crate::admission::{self, Refusal};
use crate::jobdir::State;
use crate::profiles::Loaded;
use crate::quarantine;
use crate::slot;
use crate::steps::StepProcess;
use crate::supervisor::limits_layer;
use ampoule_sandbox::cgroup::Hierarchies;
use ampoule_sandbox::protocol::PreparePlan;
use ampoule_sandbox::rootfs::{MountPlan, RootPlan};
use ampoule_sandbox::{PreparePart, Sandbox, StageError, confine, teardown};
use ampoule_spec::{CheckState, Isolation, Measured, Profile, StepUser};
use std::os::fd::AsFd;
use std::rc::Rc;

/// Measures for a profile: the layers, and what the profile demands and does not get.
pub(crate) fn measure(profile: &Rc<Loaded>, state: &State) -> Result<(Isolation, Vec<String>), Refusal> {
    let demands = &profile.profile;
    let mut isolation = Isolation::default();
    let mut missing = Vec::new();
    let hierarchies = admission::demand(demands).unwrap_or_else(|refusal| {
        missing.push(refusal.message);
        None
    });
    let id = slot::new_id()?;
    let (authority, dir, _lock, _) = slot::intend(state, &id, hierarchies.as_ref(), None)?;
    let mut sandbox = Sandbox::new(id, authority);
    let made = make(&mut sandbox, demands, hierarchies.as_ref(), state);
    if let Err(error) = &made {
        missing.push(error.to_string());
    }
    isolation.layers.extend(sandbox.layers.clone());
    isolation.layers.insert("limits".to_owned(), limits_layer(&sandbox));
    drop(made);
    let traces = sandbox.traces();
    let destroyed = teardown::destroy(sandbox);
    quarantine::settle(traces, None, &destroyed);
    for check in &destroyed.checks {
        let in_force = check.state != CheckState::Left;
        let detail = match check.state {
            CheckState::Unconfirmed => format!("not confirmed: {}", check.how),
            CheckState::Gone | CheckState::Left => check.how.clone(),
        };
        isolation.layers.insert(format!("teardown.{}", check.what), Measured { in_force, detail });
    }
    let abi = confine::landlock_abi().unwrap_or(0);
    if let Some(landlock) = isolation.layers.get_mut("landlock") {
        landlock.detail = format!("ABI {abi} used; {}", landlock.detail);
    }
    missing.extend(admission::missing_layers(&isolation, demands));
    // What cannot be removed now, the next start does.
    let _ = state.forget(dir.name());
    Ok((isolation, missing))
}

/// Makes a sandbox as far as a process of a step that is never told what to run.
fn make(
    sandbox: &mut Sandbox,
    profile: &Profile,
    hierarchies: Option<&Hierarchies>,
    state: &State,
) -> Result<StepProcess, StageError> {
    sandbox.prepare(&PreparePart {
        profile,
        hierarchies,
        limits: &profile.limits,
        scratch_dir: state.scratch.as_fd(),
        host_image: true,
    })?;
    sandbox.furnish(&profile.limits, &MountPlan { root: RootPlan::Host, inputs: Vec::new() })?;
    let plan = PreparePlan { user: StepUser::Build, writable: Vec::new(), measure: true };
    StepProcess::prepare(sandbox, plan)
}
