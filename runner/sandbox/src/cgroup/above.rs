//! The version 2 group above the jobs', which hands controllers down to them.

use super::files::write;
use crate::error::{Stage, StageError};
use rustix::io::Errno;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The group that is made for all jobs at the root of the tree, if no subtree was delegated.
///
/// systemd(1) looks after the root's `cgroup.subtree_control`, and takes a controller back that no unit of its own needs,
/// as `cpu` at a `daemon-reload`: a job's limit would go with it. The kernel refuses that for as long as a child of the
/// root hands the controller down itself (cgroups(7)), which a group that holds a job's processes cannot do.
pub(super) const SHARED: &str = "ampoule";

/// How often a group is tried to be made while others take away what it needs: another launcher's last job the group
/// above, or systemd(1) a controller.
const ATTEMPTS: u32 = 16;

const STAGE: &str = "cgroup: create";

/// The group above the jobs'.
#[derive(Debug, Clone)]
pub(super) struct Above {
    /// Its directory.
    pub(super) dir: PathBuf,
    /// Where it is [`SHARED`], which is ours to make: the directory that it is in.
    pub(super) root: Option<PathBuf>,
    /// What it hands down.
    pub(super) controllers: Vec<&'static str>,
}

impl Above {
    /// Makes a job's group below it.
    ///
    /// # Errors
    /// The stage that failed; [`StageError::unsupported`] where controllers cannot be handed down.
    pub(super) fn make(&self, group: &Path) -> Result<(), StageError> {
        for _ in 1..ATTEMPTS {
            match self.try_to_make(group) {
                Err(error) if is_gone(&error) => {}
                made => return done(made),
            }
        }
        done(self.try_to_make(group))
    }

    fn try_to_make(&self, group: &Path) -> io::Result<()> {
        if let Some(root) = &self.root {
            self.hand_down(root)?;
            match fs::create_dir(&self.dir) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        self.hand_down(&self.dir)?;
        fs::create_dir(group)
    }

    /// Reads first: a write waits for groups that are being removed, even if it changes nothing.
    fn hand_down(&self, dir: &Path) -> io::Result<()> {
        let file = dir.join("cgroup.subtree_control");
        let text = fs::read_to_string(&file)?;
        let is_missing = |c: &&&str| !text.split_whitespace().any(|have| have == **c);
        let missing: Vec<String> =
            self.controllers.iter().filter(is_missing).map(|c| format!("+{c}")).collect();
        if missing.is_empty() { Ok(()) } else { write(file, &missing.join(" ")) }
    }
}

/// Removes the group above a job's that was removed, if it was [`SHARED`] and the last job's.
pub(super) fn leave(group: &Path) {
    if let Some(above) = group.parent().filter(|above| above.ends_with(SHARED)) {
        // It stays while there are other jobs.
        let _ = fs::remove_dir(above);
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::NODEV))
}

fn done(made: io::Result<()>) -> Result<(), StageError> {
    let remedy = match made.as_ref().err().and_then(Errno::from_io_error) {
        Some(Errno::BUSY) => {
            "the control group that jobs would be in holds processes, and so hands no controllers down (cgroups(7)); \
             run below a unit with a subtree of its own: systemd-run --scope -p Delegate=yes"
        }
        Some(Errno::ROFS | Errno::ACCESS | Errno::PERM) => {
            "the control groups of this host may not be written here; mount cgroup2 for writing, or run below a \
             unit with Delegate=yes"
        }
        _ => return made.stage(STAGE),
    };
    Err(StageError::unsupported(STAGE, remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(errno: Errno) -> io::Result<()> {
        Err(errno.into())
    }

    #[test]
    fn group_that_hands_nothing_down_is_unsupported_with_a_remedy() {
        for errno in [Errno::BUSY, Errno::ROFS, Errno::ACCESS] {
            let error = done(error(errno)).unwrap_err();
            assert!(error.unsupported.is_some_and(|remedy| remedy.contains("Delegate=yes")));
        }
        let error = done(error(Errno::NOSPC)).unwrap_err();
        assert_eq!((error.unsupported, error.errno), (None, Errno::NOSPC.raw_os_error()));
    }

    #[test]
    fn make_hands_down_only_what_is_missing() {
        let root = tempfile::tempdir().unwrap();
        let above = Above {
            dir: root.path().join(SHARED),
            root: Some(root.path().to_owned()),
            controllers: vec!["memory", "cpu"],
        };
        let control = |dir: &Path| dir.join("cgroup.subtree_control");
        std::fs::create_dir(&above.dir).unwrap();
        std::fs::write(control(root.path()), "cpuset memory").unwrap();
        std::fs::write(control(&above.dir), "memory cpu").unwrap();
        above.make(&above.dir.join("job")).unwrap();
        assert!(above.dir.join("job").is_dir());
        // A real file would say what is handed down; this one says what was written to it.
        assert!(std::fs::read_to_string(control(root.path())).unwrap().starts_with("+cpu"));
        assert_eq!(std::fs::read_to_string(control(&above.dir)).unwrap(), "memory cpu");
    }

    #[test]
    fn leave_removes_the_shared_group_when_it_is_empty_and_no_other() {
        let root = tempfile::tempdir().unwrap();
        let (shared, other) = (root.path().join(SHARED), root.path().join("other"));
        std::fs::create_dir_all(shared.join("job")).unwrap();
        std::fs::create_dir(&other).unwrap();
        leave(&shared.join("gone"));
        assert!(shared.exists());
        std::fs::remove_dir(shared.join("job")).unwrap();
        leave(&shared.join("job"));
        leave(&other.join("job"));
        assert!(!shared.exists() && other.exists());
    }
}
