//! After the last step: is what the job used still what it was?
//!
//! The kernel keeps jobs from writing to their inputs, and the host's own root does not. What somebody changed under a
//! job is found here, before anything is claimed of it: what an overlay shows of a lower layer that changes is undefined
//! (Documentation/filesystems/overlayfs.rst), and a hole in the kernel may let a job write to a page cache
//! (CVE-2026-31431), which outlives it.

use crate::admission::chain;
use crate::recorder::Recorder;
use crate::report::Draft;
use ampoule_sandbox::host_changes::{FileTime, host_changes};
use ampoule_sandbox::host_image;
use ampoule_spec::{Blake3, Code, Damage, Failure, HowRead, ReadPolicy, Reread, Sha256};
use ampoule_store::{Budget, Checked, Lease, Limits};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

/// So many objects are named in one message to a supervisor, each with a descriptor.
pub(crate) const OBJECTS_MAX: usize = 64;

/// An object that a job uses, as it is named to the supervisor. Its lease comes as a descriptor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ObjectName {
    /// As in `Reread::what`.
    pub(crate) what: String,
    pub(crate) sha256: Sha256,
    pub(crate) object: Blake3,
    /// Among so many that are used together.
    pub(crate) parts: usize,
}

/// The objects that a job uses. Nobody removes one as long as this lives.
#[derive(Debug, Default)]
pub(crate) struct Objects(Vec<(ObjectName, Lease)>);

/// The host before the first step: a moment, and its package list by everything that the kernel changes when somebody
/// writes to it or replaces it.
#[derive(Debug)]
pub(crate) struct HostBefore {
    at: FileTime,
    packages: Option<PackageList>,
}

#[derive(Debug, PartialEq, Eq)]
struct PackageList {
    file: (u64, u64, u64),
    times: (i64, i64, i64, i64),
}

impl Objects {
    /// Takes over what one message named.
    pub(crate) fn add(&mut self, names: Vec<ObjectName>, leases: Vec<OwnedFd>) -> Result<(), String> {
        if names.len() != leases.len() {
            return Err("a lease is missing".to_owned());
        }
        let held = names.into_iter().zip(leases).map(|(name, lease)| {
            let lease = Lease::of(lease, name.object);
            (name, lease)
        });
        self.0.extend(held);
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Reads all of them back, and says in the report what was found.
    pub(crate) fn reread(&self, policy: ReadPolicy, recorder: &mut Recorder, draft: &mut Draft) {
        for (name, lease) in &self.0 {
            let budget = Budget::OBJECT.share(name.parts);
            let checked = lease.check(policy, budget, crate::import::owner(), Limits::default());
            let (how, files, bytes, damage) = match checked {
                Ok(Checked::Sound(read)) => (read.how, read.files, read.bytes, None),
                Ok(Checked::Damaged(reason)) => (HowRead::All, 0, 0, Some(reason)),
                Err(error) => {
                    let message = format!("{} cannot be read back: {}", name.what, chain(&error));
                    refuse(recorder, draft, Code::Internal, message);
                    return;
                }
            };
            let (what, sha256, unchanged) = (name.what.clone(), name.sha256, damage.is_none());
            draft.report.reread.push(Reread { what, sha256, how, files, bytes, unchanged });
            if let Some(reason) = damage {
                // The next who looks it up moves it aside.
                let _ = lease.condemn(&reason);
                draft.report.damaged.push(Damage { object: name.object.to_string(), reason: reason.clone() });
                let message =
                    format!("{} was changed on the host while the job used it: {reason}", name.what);
                refuse(recorder, draft, Code::InputChanged, message);
            }
        }
    }
}

/// Nothing is claimed of what the job made.
fn refuse(recorder: &mut Recorder, draft: &mut Draft, code: Code, message: String) {
    draft.report.outputs.clear();
    draft.fail(recorder, Failure::new(code, message));
}

impl HostBefore {
    /// As it is now.
    pub(crate) fn now() -> Self {
        Self { at: FileTime::now(), packages: PackageList::now() }
    }
}

impl PackageList {
    /// As it is now; nothing where there is none.
    fn now() -> Option<Self> {
        let (path, _) = host_image::package_database().ok()?;
        let meta = std::fs::metadata(path).ok()?;
        Some(Self {
            file: (meta.dev(), meta.ino(), meta.len()),
            times: (meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()),
        })
    }
}

/// Looks at the host again: at its package list, and where everything is to be read back, at each of its files.
pub(crate) fn reread_host(
    before: Option<&HostBefore>,
    policy: ReadPolicy,
    recorder: &mut Recorder,
    draft: &mut Draft,
) {
    // Without an image in the report there is a failure already.
    let Some(sha256) = draft.report.image.as_ref().map(|image| image.sha256) else { return };
    let packages = before.and_then(|before| before.packages.as_ref());
    let mut changed = (packages.is_none() || PackageList::now().as_ref() != packages).then(|| {
        "somebody installed, removed or configured packages of the host while the job used them".to_owned()
    });
    let (mut how, mut files) = (HowRead::PackageList, 1);
    if let (ReadPolicy::Always, Some(before)) = (policy, before) {
        match host_changes(before.at) {
            Ok(found) => {
                (how, files) = (HowRead::HostTimes, found.entries + 1);
                let path = found.changed;
                changed = changed.or_else(|| {
                    path.map(|path| format!("{path} was changed on the host while the job used it"))
                });
            }
            Err(errno) => {
                let message = format!("the files of the host cannot be looked at again: {errno}");
                refuse(recorder, draft, Code::Internal, message);
                return;
            }
        }
    }
    let (what, unchanged) = ("host".to_owned(), changed.is_none());
    draft.report.reread.push(Reread { what, sha256, how, files, bytes: 0, unchanged });
    if let Some(message) = changed {
        refuse(recorder, draft, Code::InputChanged, message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_leases_as_names_are_taken() {
        let lease = || OwnedFd::from(std::fs::File::open("/").unwrap());
        let name = || ObjectName {
            what: "input src".to_owned(),
            sha256: Sha256::new([1; 32]),
            object: Blake3::new([2; 32]),
            parts: 1,
        };
        let mut objects = Objects::default();
        objects.add(vec![name()], vec![lease()]).unwrap();
        objects.add(vec![name()], vec![]).unwrap_err();
        objects.add(vec![], vec![lease()]).unwrap_err();
        assert_eq!(objects.len(), 1);
        // The longest message fits.
        let mut longest = name();
        longest.what = "x".repeat(100);
        assert!(serde_json::to_vec(&longest).unwrap().len() * OBJECTS_MAX < 32 << 10);
    }
}
