//! What this host can isolate, measured by making a sandbox that runs no step.

use crate::admission::{self, Refusal, refuse};
use crate::profiles;
use crate::supervisor::limits_layer;
use ampoule_sandbox::rootfs::{MountPlan, RootPlan};
use ampoule_sandbox::{Sandbox, SandboxPlan, confine, teardown};
use ampoule_spec::{Code, Isolation, JobId, Measured, Name};
use std::path::Path;

/// Measures for a profile: the layers, and what the profile demands and does not get.
pub(crate) fn measure(name: &Name, profile_dir: Option<&Path>) -> Result<(Isolation, Vec<String>), Refusal> {
    let loaded = profiles::load(name, profile_dir).map_err(|e| refuse(e.code(), admission::chain(&e)))?;
    let profile = &loaded.profile;
    let mut isolation = Isolation::default();
    let mut missing = Vec::new();
    let hierarchies = admission::demand(profile).unwrap_or_else(|refusal| {
        missing.push(refusal.message);
        None
    });
    let (authority, _block) = admission::identity()?;
    let job = scratch_job()?;
    let plan = SandboxPlan {
        job: &job,
        profile,
        limits: &profile.limits,
        authority,
        hierarchies: hierarchies.as_ref(),
        mounts: MountPlan {
            root: RootPlan::Host,
            inputs: Vec::new(),
            disk_bytes: profile.limits.disk_bytes,
            disk_inodes: profile.limits.disk_inodes,
        },
        steps: &[],
    };
    let teardown = match Sandbox::create(plan) {
        Ok(sandbox) => {
            isolation.layers.extend(sandbox.layers.clone());
            isolation.layers.insert("limits".to_owned(), limits_layer(sandbox.cgroup.is_some()));
            teardown::destroy(sandbox, authority)
        }
        Err(half) => {
            missing.push(half.error.to_string());
            teardown::destroy_half(*half, authority)
        }
    };
    for check in &teardown.checks {
        let detail = check.how.clone();
        isolation
            .layers
            .insert(format!("teardown.{}", check.what), Measured { in_force: check.gone, detail });
    }
    let abi = confine::landlock_abi().unwrap_or(0);
    if let Some(landlock) = isolation.layers.get_mut("landlock") {
        landlock.detail = format!("ABI {abi} used; {}", landlock.detail);
    }
    missing.extend(admission::missing_layers(&isolation, profile));
    Ok((isolation, missing))
}

/// A name for the measurement's control groups that no other process uses.
fn scratch_job() -> Result<JobId, Refusal> {
    let text = format!("00000000-0000-7000-8000-{:012x}", std::process::id());
    JobId::parse(&text).map_err(|e| refuse(Code::Internal, e.to_string()))
}
