//! A sandbox from the outside: made by the supervisor, never entered by it.

use crate::cgroup::{Hierarchies, JobCgroup};
use crate::enter::{AssemblePlan, EnterPlan};
use crate::error::{Stage, StageError};
use crate::identity::Authority;
use crate::init::{self, Answer, Order, StepPlan};
use crate::probe::Layers;
use crate::rootfs::{self, IdMaps, MountPlan, RootPlan};
use crate::userns;
use ampoule_ipc::{Channel, IpcError};
use ampoule_spec::BUILD_ID;
use ampoule_spec::{JobId, Limits, Measured, Profile, SandboxPath};
use ampoule_sys::namespace::NamespaceHandle;
use ampoule_sys::process::{Child, Keep, Namespaces, spawn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// How long a set-up may take.
const SETUP_LIMIT: Duration = Duration::from_secs(60);
/// The namespaces of init that exist from the start.
const NAMESPACES: [&str; 6] = ["ipc", "mnt", "net", "pid", "user", "uts"];

/// Everything that is needed to make a sandbox.
pub struct SandboxPlan<'a> {
    /// The job.
    pub job: &'a JobId,
    /// Its profile.
    pub profile: &'a Profile,
    /// Its limits.
    pub limits: &'a Limits,
    /// Under which authority.
    pub authority: Authority,
    /// The host's control groups, if limits are to be set.
    pub hierarchies: Option<&'a Hierarchies>,
    /// The root and inputs.
    pub mounts: MountPlan,
    /// The steps.
    pub steps: &'a [StepPlan],
}

/// A sandbox with its init process, in which no step has run yet or some have.
#[derive(Debug)]
pub struct Sandbox {
    /// Init.
    pub init: Child,
    /// Its control groups, if it has any.
    pub cgroup: Option<JobCgroup>,
    /// What was measured.
    pub layers: Layers,
    /// Where the time of the set-up went: stage and microseconds.
    pub stages: Vec<(String, u64)>,
    /// Names of its namespaces that do not keep them alive; empty before Linux 6.18.
    pub(crate) handles: Vec<(String, NamespaceHandle)>,
    channel: Channel,
    root: OwnedFd,
}

/// A set-up that failed, with what had been made: it has to be destroyed like a whole sandbox.
#[derive(Debug)]
pub struct HalfMade {
    /// Why.
    pub error: StageError,
    /// Init, if it was made.
    pub init: Option<Child>,
    /// Control groups, if they were made.
    pub cgroup: Option<JobCgroup>,
}

impl Sandbox {
    /// Makes a sandbox. The calling process has to be single-threaded.
    ///
    /// # Errors
    /// The stage that failed and what is left to destroy.
    pub fn create(plan: SandboxPlan<'_>) -> Result<Self, Box<HalfMade>> {
        let mut half = HalfMade {
            error: StageError { stage: String::new(), errno: 0, unsupported: None },
            init: None,
            cgroup: None,
        };
        match build(plan, &mut half) {
            Ok(parts) => {
                let HalfMade { init: Some(init), cgroup, .. } = half else { return Err(Box::new(half)) };
                let Parts { channel, root, layers, stages, handles } = parts;
                Ok(Self { init, cgroup, layers, stages, handles, channel, root })
            }
            Err(error) => {
                half.error = error;
                Err(Box::new(half))
            }
        }
    }

    /// Starts a step; its streams go to these descriptors.
    ///
    /// # Errors
    /// If init is gone.
    pub fn start_step(
        &self,
        number: u32,
        out: BorrowedFd<'_>,
        err: BorrowedFd<'_>,
    ) -> Result<Answer, IpcError> {
        self.channel.send(&Order::Step { number }, &[out, err])?;
        self.answer()
    }

    /// Asks the step's program to end, or kills every process of the sandbox but init.
    ///
    /// # Errors
    /// If init is gone.
    pub fn order(&self, order: &Order) -> Result<(), IpcError> {
        self.channel.send(order, &[])
    }

    /// Receives init's next answer. Poll [`Sandbox::channel`] first to not wait.
    ///
    /// # Errors
    /// If init is gone.
    pub fn answer(&self) -> Result<Answer, IpcError> {
        self.channel.receive().map(|(answer, _)| answer)
    }

    /// Readable when init has answered or is gone.
    pub fn channel(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    /// The sandbox's root, for outputs. Only to be used when no process but init is left.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Proves that no process but init is left: every control group lists it alone. (Init has reaped all its
    /// children before it answered, so without control groups its word is the proof.)
    ///
    /// # Errors
    /// What is left, for people.
    pub fn quiesce(&self) -> Result<(), String> {
        for dir in self.cgroup.iter().flat_map(|group| group.dirs()) {
            let procs = std::fs::read_to_string(dir.join("cgroup.procs"))
                .map_err(|e| format!("a control group cannot be read: {e}"))?;
            let others = procs.lines().filter(|line| *line != self.init.pid.to_string()).count();
            if others != 0 {
                return Err(format!("{others} processes are left after the last step"));
            }
        }
        Ok(())
    }

    /// Bytes and inodes that are free in the writable layer.
    pub fn scratch_free(&self) -> Option<(u64, u64)> {
        let fs = rustix::fs::fstatvfs(&self.root).ok()?;
        Some((fs.f_bavail.saturating_mul(fs.f_frsize), fs.f_favail))
    }

    /// Gives everything up that keeps the sandbox alive besides its processes.
    pub(crate) fn into_remains(self) -> (Child, Option<JobCgroup>, Vec<(String, NamespaceHandle)>) {
        (self.init, self.cgroup, self.handles)
    }
}

struct Parts {
    channel: Channel,
    root: OwnedFd,
    layers: Layers,
    stages: Vec<(String, u64)>,
    handles: Vec<(String, NamespaceHandle)>,
}

fn build(plan: SandboxPlan<'_>, half: &mut HalfMade) -> Result<Parts, StageError> {
    let mut clock = crate::enter::StageClock::start();
    if let Some(hierarchies) = plan.hierarchies {
        half.cgroup = Some(JobCgroup::create(hierarchies, plan.job, plan.limits)?);
    }
    clock.mark("make control groups");
    let (mine, theirs) = Channel::pair().stage("init: channel")?;
    let namespaces = Namespaces { user: true, mount: true, pid: true, net: true, ipc: true, uts: true };
    let into = half.cgroup.as_ref().and_then(|c| c.into.as_ref()).map(AsFd::as_fd);
    let (profile, steps) = (plan.profile, plan.steps);
    let init = spawn(namespaces, into, Keep::Only(&[theirs.as_fd()]), || init::run(&theirs, profile, steps))
        .map_err(|error| clone_error(&error))?;
    drop(theirs);
    let pid = init.pid;
    half.init = Some(init);
    match expect(&mine)? {
        (Answer::Made, _) => {}
        (Answer::Failed(error), _) => return Err(error),
        _ => return Err(protocol()),
    }
    let (uid_map, gid_map) = plan.authority.id_maps();
    userns::write_maps(pid, &uid_map, &gid_map, !plan.authority.is_root())
        .stage("identity: write id maps")?;
    let (mut layers, handles) = namespaces_of(pid)?;
    clock.mark("clone and id maps");
    let (enter, mut descriptors) = prepare(&plan, pid)?;
    clock.mark("assemble mounts");
    if let Some(cgroup) = &mut half.cgroup {
        let mut join: Vec<OwnedFd> = cgroup.join.drain(..).collect();
        join.append(&mut descriptors);
        descriptors = join;
    }
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    mine.send(&Order::Enter(enter), &borrowed).stage("init: send the plan")?;
    drop(descriptors);
    let (answer, mut sent) = expect(&mine)?;
    match (answer, sent.pop()) {
        (Answer::Ready { layers: measured, cgroup_namespace, stages }, Some(root)) => {
            joined(half)?;
            clock.mark("enter and probe");
            let ours = rustix::fs::stat("/proc/self/ns/cgroup").stage("namespaces: look at cgroup")?.st_ino;
            layers.insert("namespace.cgroup".to_owned(), own_namespace("cgroup", ours != cgroup_namespace));
            layers.extend(measured);
            clock.stages.extend(stages.into_iter().map(|(s, t)| (format!("init: {s}"), t)));
            Ok(Parts { channel: mine, root, layers, stages: clock.stages, handles })
        }
        (Answer::Failed(error), _) => Err(error),
        _ => Err(protocol()),
    }
}

/// Init must be in every group whose limits are claimed.
fn joined(half: &HalfMade) -> Result<(), StageError> {
    let (Some(init), Some(cgroup)) = (&half.init, &half.cgroup) else { return Ok(()) };
    for dir in cgroup.dirs() {
        let procs = std::fs::read_to_string(dir.join("cgroup.procs")).stage("cgroup: see who is in it")?;
        if !procs.lines().any(|line| line == init.pid.to_string()) {
            return Err(Errno::SRCH).stage("cgroup: init is not in it");
        }
    }
    Ok(())
}

fn clone_error(error: &std::io::Error) -> StageError {
    let errno = error.raw_os_error().unwrap_or(0);
    if matches!(Errno::from_raw_os_error(errno), Errno::PERM | Errno::NOSPC | Errno::NOSYS) {
        let remedy = "this user cannot make user namespaces; check /proc/sys/user/max_user_namespaces, \
                      kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns";
        return StageError::unsupported("init: clone", remedy);
    }
    StageError { stage: "init: clone".into(), errno, unsupported: None }
}

fn protocol() -> StageError {
    StageError { stage: "init: an answer out of turn".into(), errno: 0, unsupported: None }
}

/// Waits for one answer, bounded.
fn expect(channel: &Channel) -> Result<(Answer, Vec<OwnedFd>), StageError> {
    let limit = Timespec { tv_sec: SETUP_LIMIT.as_secs().try_into().unwrap_or(60), tv_nsec: 0 };
    let mut ready = [PollFd::new(channel, PollFlags::IN)];
    loop {
        match poll(&mut ready, Some(&limit)) {
            Ok(0) => return Err(Errno::TIMEDOUT).stage("init: no answer"),
            Ok(_) => return channel.receive().stage("init: it died during set-up"),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).stage("init: wait for an answer"),
        }
    }
}

/// Makes the mounts, as host root; as an ordinary user init will, from the same plan.
fn prepare(plan: &SandboxPlan<'_>, pid: i32) -> Result<(EnterPlan, Vec<OwnedFd>), StageError> {
    let writable = plan.mounts.inputs.iter().filter(|i| i.writable).map(|i| i.target.clone()).collect();
    let (base, user) = match plan.authority {
        Authority::Root { base } => (Some(base), (0, 0)),
        Authority::User { uid, gid } => (None, (uid, gid)),
    };
    let mut enter = EnterPlan {
        base,
        user,
        join: plan.hierarchies.map_or(0, |h| h.job_paths(plan.job).len() - usize::from(h.unified.is_some())),
        cgroup_namespace: true,
        mounts: Vec::new(),
        assemble: None,
        writable,
        open_files: plan.limits.open_files,
    };
    let Some(base) = base else {
        let (assemble, descriptors) = hand_over(&plan.mounts).stage("mounts: hand over")?;
        enter.assemble = Some(assemble);
        return Ok((enter, descriptors));
    };
    let path = format!("/proc/{pid}/ns/user");
    let image = openat(rustix::fs::CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .stage("identity: open the user namespace")?;
    let inputs = match plan.mounts.inputs.is_empty() {
        true => None,
        false => Some(userns::with_map(&format!("0 {} 1", base + BUILD_ID))?),
    };
    let maps = IdMaps { image: Some(image), inputs };
    let assembled = rootfs::assemble(&plan.mounts, plan.authority, &maps)?;
    let (targets, mounts): (Vec<SandboxPath>, Vec<OwnedFd>) = assembled.mounts.into_iter().unzip();
    enter.mounts = targets;
    let mut descriptors = vec![assembled.root];
    descriptors.extend(mounts);
    Ok((enter, descriptors))
}

fn hand_over(mounts: &MountPlan) -> std::io::Result<(AssemblePlan, Vec<OwnedFd>)> {
    let (layers, trees): (_, &[OwnedFd]) = match &mounts.root {
        RootPlan::Host => (None, &[]),
        RootPlan::Layers(layers) => (Some(layers.len()), layers),
    };
    let inputs = mounts.inputs.iter();
    let descriptors = trees.iter().chain(inputs.clone().map(|input| &input.tree)).map(OwnedFd::try_clone);
    let descriptors: Vec<OwnedFd> = descriptors.collect::<Result<_, _>>()?;
    let places = descriptors
        .iter()
        .map(|fd| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())))
        .collect::<Result<_, _>>()?;
    let inputs = inputs.map(|input| (input.target.clone(), input.file, input.writable)).collect();
    let (disk_bytes, disk_inodes) = (mounts.disk_bytes, mounts.disk_inodes);
    Ok((AssemblePlan { layers, inputs, places, disk_bytes, disk_inodes }, descriptors))
}

fn own_namespace(name: &str, in_force: bool) -> Measured {
    Measured { in_force, detail: format!("a namespace of its own for {name}") }
}

/// Opens init's namespaces while that is still allowed: holds them against our own and keeps their names.
fn namespaces_of(pid: i32) -> Result<(Layers, Vec<(String, NamespaceHandle)>), StageError> {
    let mut layers = Layers::new();
    let mut handles = Vec::new();
    for name in NAMESPACES {
        let stage = format!("namespaces: look at {name}");
        let open = |who: &str| {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            openat(rustix::fs::CWD, format!("/proc/{who}/ns/{name}"), flags, Mode::empty()).stage(&stage)
        };
        let (own, theirs) = (open("self")?, open(&pid.to_string())?);
        let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|s| s.st_ino).stage(&stage);
        let in_force = inode(&own)? != inode(&theirs)?;
        layers.insert(format!("namespace.{name}"), own_namespace(name, in_force));
        if let Ok(handle) = NamespaceHandle::of(theirs.as_fd()) {
            handles.push((name.to_owned(), handle));
        }
    }
    Ok((layers, handles))
}
