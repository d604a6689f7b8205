//! Where a host keeps its control groups.

use super::CONTROLLERS;
use super::above::SHARED;
use super::files::write;
use ampoule_spec::SlotId;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where this host keeps its control groups, seen from the calling process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hierarchies {
    /// The version 2 directory under which jobs get theirs, with the controllers that it can give.
    pub unified: Option<(PathBuf, Vec<String>)>,
    /// Where that directory is one that is made for jobs and removed with the last of them: the root of the tree that it
    /// is made in.
    pub root: Option<PathBuf>,
    /// The version 1 directory under which jobs get theirs, by controller.
    pub legacy: BTreeMap<String, PathBuf>,
}

/// The group of a delegated subtree that its own processes are in: a group that holds processes hands no controllers
/// down (cgroups(7), "no internal processes").
const LEAF: &str = "launcher";
/// Attributes by which systemd says that a subtree is somebody's own (`Delegate=`).
const DELEGATED: [&str; 2] = ["trusted.delegate", "user.delegate"];

impl Hierarchies {
    /// Reads them from `/proc/self`.
    ///
    /// On version 2, jobs get their groups in the subtree that was delegated to this process, if there is one; else,
    /// for host root, in a group at the root of the tree. In a delegated subtree the calling process moves into a group
    /// of its own first, and takes its parent along if that is alone with it.
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub fn of_host() -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let mine = fs::read_to_string("/proc/self/cgroup")?;
        let (mut found, own) = Self::parse(&mounts, &mine);
        if let Some((path, controllers)) = &mut found.unified {
            let delegated = own.and_then(|own| delegated(&own));
            let is_delegated = delegated.is_some();
            *path = delegated.unwrap_or_else(|| path.clone());
            let text = fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default();
            *controllers = text.split_whitespace().map(str::to_owned).collect();
            // Where version 1 has the controllers, none is handed down that could be taken back.
            if !is_delegated && controllers.iter().any(|c| CONTROLLERS.contains(&c.as_str())) {
                let shared = path.join(SHARED);
                found.root = Some(std::mem::replace(path, shared));
            }
        }
        Ok(found)
    }

    /// Finds the directories in the texts of `mountinfo` and `cgroup` (proc(5), cgroups(7)), and the version 2 group
    /// that the calling process is in.
    fn parse(mountinfo: &str, cgroup: &str) -> (Self, Option<PathBuf>) {
        let mine: BTreeMap<&str, &str> = cgroup
            .lines()
            .filter_map(|line| {
                let mut parts = line.splitn(3, ':').skip(1);
                Some((parts.next()?, parts.next()?))
            })
            .flat_map(|(controllers, path)| controllers.split(',').map(move |c| (c, path)))
            .collect();
        let mut found = Self::default();
        let mut own = None;
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let mut left = left.split(' ').skip(3);
            let (Some(root), Some(point)) = (left.next(), left.next()) else { continue };
            let mut right = right.split(' ');
            let (kind, options) = (right.next(), right.nth(1).unwrap_or_default());
            let at = |controller: &str| {
                let own = mine.get(controller).copied().unwrap_or("/");
                let below = own.strip_prefix(root.trim_end_matches('/')).unwrap_or(own);
                Path::new(point).join(below.trim_start_matches('/'))
            };
            match kind {
                Some("cgroup2") if found.unified.is_none() => {
                    found.unified = Some((PathBuf::from(point), Vec::new()));
                    own = Some(at(""));
                }
                Some("cgroup") => {
                    for controller in options.split(',').filter(|o| CONTROLLERS.contains(o)) {
                        found.legacy.entry(controller.to_owned()).or_insert_with(|| at(controller));
                    }
                }
                _ => {}
            }
        }
        (found, own)
    }

    /// The controllers that this host cannot give a job.
    pub fn missing(&self) -> Vec<&'static str> {
        let unified = |c: &&str| self.unified.as_ref().is_some_and(|(_, have)| have.iter().any(|h| h == c));
        CONTROLLERS.into_iter().filter(|c| !unified(c) && !self.legacy.contains_key(*c)).collect()
    }

    /// The directories that a job's groups will be, to be named in its intent.
    pub fn paths(&self, slot: &SlotId) -> Vec<PathBuf> {
        let name = format!("ampoule-{slot}");
        let unified = self.unified.iter().map(|(path, _)| path.join(&name));
        let mut legacy: Vec<_> = CONTROLLERS
            .iter()
            .filter(|c| !self.gives_unified(c))
            .filter_map(|c| self.legacy.get(*c))
            .map(|path| path.join(&name))
            .collect();
        legacy.dedup();
        unified.chain(legacy).collect()
    }

    pub(super) fn gives_unified(&self, controller: &str) -> bool {
        self.unified.as_ref().is_some_and(|(_, have)| have.iter().any(|h| h == controller))
    }

    pub(super) fn dir_of(&self, controller: &str, slot: &SlotId) -> Option<(PathBuf, bool)> {
        let name = format!("ampoule-{slot}");
        if self.gives_unified(controller) {
            return self.unified.as_ref().map(|(path, _)| (path.join(name), true));
        }
        self.legacy.get(controller).map(|path| (path.join(name), false))
    }
}

/// The subtree that this process was given, cleared of processes, if it was given one. A subtree that somebody else's
/// processes are in is of no use.
fn delegated(own: &Path) -> Option<PathBuf> {
    let is_delegated =
        |dir: &Path| DELEGATED.iter().any(|name| rustix::fs::getxattr(dir, *name, &mut [0_u8; 8]).is_ok());
    if own.ends_with(LEAF) {
        return own.parent().filter(|parent| is_delegated(parent)).map(Path::to_path_buf);
    }
    if !is_delegated(own) {
        return None;
    }
    let leaf = own.join(LEAF);
    match fs::create_dir(&leaf) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return None,
        _ => {}
    }
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().to_string());
    if clear(own, &leaf, parent.as_deref()) {
        return Some(own.to_path_buf());
    }
    // Back to where we were found.
    let _ = write(own.join("cgroup.procs"), "0");
    let _ = fs::remove_dir(&leaf);
    None
}

/// Moves the calling process into the leaf, and its parent if nobody else is there: the command line, of which it is a
/// part. False if others are left; the parent is where it was then.
fn clear(own: &Path, leaf: &Path, parent: Option<&str>) -> bool {
    let others = || fs::read_to_string(own.join("cgroup.procs")).map(|text| text.trim().to_owned());
    if write(leaf.join("cgroup.procs"), "0").is_err() {
        return false;
    }
    match (others(), parent) {
        (Ok(others), _) if others.is_empty() => return true,
        (Ok(others), Some(parent)) if others == parent => {}
        _ => return false,
    }
    let moved = write(leaf.join("cgroup.procs"), parent.unwrap_or_default());
    if moved.is_ok() && others().is_ok_and(|others| others.is_empty()) {
        return true;
    }
    let _ = write(own.join("cgroup.procs"), parent.unwrap_or_default());
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

    #[test]
    fn parse_hybrid_host_finds_legacy_controllers_below_our_own_group() {
        let mounts = "30 24 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      31 24 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      32 24 0:28 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
                      33 24 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let mine = "4:memory:/a/b\n3:cpu,cpuacct:/\n2:pids:/\n0::/\n";
        let (found, own) = Hierarchies::parse(mounts, mine);
        assert_eq!(own, Some(PathBuf::from("/sys/fs/cgroup/unified/")));
        assert!(found.missing().is_empty());
        let slot = SlotId::parse(SLOT).unwrap();
        let paths = found.paths(&slot);
        assert_eq!(paths[0], Path::new(&format!("/sys/fs/cgroup/unified/ampoule-{SLOT}")));
        assert_eq!(paths[1], Path::new(&format!("/sys/fs/cgroup/memory/a/b/ampoule-{SLOT}")));
        assert_eq!(paths.len(), 4);
    }

    #[test]
    fn parse_container_mount_root_is_not_repeated() {
        let mounts = "30 24 0:26 /docker/x /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        let (found, own) = Hierarchies::parse(mounts, "4:memory:/docker/x/y\n");
        assert_eq!(own, None);
        assert_eq!(found.legacy["memory"], Path::new("/sys/fs/cgroup/memory/y"));
        assert_eq!(found.missing(), ["pids", "cpu"]);
    }

    #[test]
    fn parse_unified_host_finds_the_group_that_we_are_in() {
        let mounts = "30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let (found, own) = Hierarchies::parse(mounts, "0::/system.slice/ampoule-runner.service\n");
        assert_eq!(found.unified, Some((PathBuf::from("/sys/fs/cgroup"), vec![])));
        assert_eq!(own, Some(PathBuf::from("/sys/fs/cgroup/system.slice/ampoule-runner.service")));
    }
}
