//! Handing a job to the supervisor of a slot.

use crate::admission::{self, Admitted};
use crate::control;
use crate::holdings::Used;
use crate::launcher::Agent;
use crate::lifetime::Leash;
use crate::reread::{OBJECTS_MAX, ObjectName};
use crate::slot::{Assignment, Slot, ToSlot};
use ampoule_ipc::IpcError;
use ampoule_spec::Damage;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Tells a supervisor of its job, and by what it can be ended from outside: the lifetime pipe if there is one, else the
/// control socket of a listening launcher's job. One that is gone is noticed by the end of its channel; any other
/// failure leaves one that waits.
pub(crate) fn hand_over(
    slot: &Slot,
    admitted: &Admitted,
    damaged: &[Damage],
    pipe: Option<&OwnedFd>,
    agent: Option<Agent>,
) -> Result<(), String> {
    let socket = match (pipe, agent) {
        (None, Some(_)) => Some(control::make(&slot.dir).map_err(|e| format!("the control socket: {e}"))?),
        _ => None,
    };
    let (leash, end) = match (pipe, agent) {
        (Some(pipe), _) => (Leash::Pipe, Some(pipe)),
        (None, Some(agent)) => (Leash::Socket { agent: agent.uid }, socket.as_ref()),
        (None, None) => (Leash::None, None),
    };
    let tell = |message: &ToSlot, descriptors: &[BorrowedFd<'_>]| match slot
        .channel
        .send_all(message, descriptors)
    {
        Ok(()) | Err(IpcError::Closed) => Ok(()),
        Err(error) => Err(format!("the supervisor cannot be told of its job: {}", admission::chain(&error))),
    };
    let (layers, trees) = admitted.mounts.root.parts();
    let inputs = &admitted.mounts.inputs;
    let assignment = Assignment {
        at: admitted.at,
        job: admitted.job.id.clone(),
        spec: admitted.spec_sha256,
        limits: admitted.limits.clone(),
        leash,
        layers,
        files: inputs.iter().map(|input| input.file).collect(),
        objects: admitted.used.len(),
        damaged: damaged.to_vec(),
    };
    let descriptors = end.into_iter().chain(trees).chain(inputs.iter().map(|input| &input.tree));
    let descriptors: Vec<_> = descriptors.map(AsFd::as_fd).collect();
    tell(&ToSlot::Assign(assignment), &descriptors)?;
    for part in admitted.used.chunks(OBJECTS_MAX) {
        let name = |used: &Used| ObjectName {
            what: used.what.clone(),
            sha256: used.sha256,
            object: used.lease.object(),
            parts: used.parts,
        };
        let leases: Vec<_> = part.iter().map(|used| used.lease.as_fd()).collect();
        tell(&ToSlot::Objects(part.iter().map(name).collect()), &leases)?;
    }
    Ok(())
}
