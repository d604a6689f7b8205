//! A sandbox from the outside: made by the supervisor, never entered by it.
//!
//! It is made in two parts. [`Sandbox::prepare`] makes what is the same for every job of a profile and can wait in a
//! pool; [`Sandbox::furnish`] adds what one job needs. Whatever fails, what was made until then is in the
//! [`Sandbox`] and has to be destroyed ([`crate::teardown::destroy`]).

use crate::account::on_account_of;
use crate::cgroup::{Hierarchies, JobCgroup};
use crate::clock::StageClock;
use crate::error::{Stage, StageError};
use crate::identity::Authority;
use crate::init;
use crate::probe::Layers;
use crate::protocol::{Answer, AssemblePlan, EnterPlan, Order, PreparePlan};
use crate::rootfs::{IdMaps, InputMount, MountPlan, RootPlan, Rootfs};
use crate::scratch::Remains;
use crate::secrets::SecretFiles;
use crate::teardown::Traces;
use crate::userns;
use ampoule_ipc::{Channel, IpcError};
use ampoule_spec::{BUILD_ID, Limits, Measured, Namespace, Profile, SandboxPath, SlotId};
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

/// What is the same for every job of a profile.
pub struct PreparePart<'a> {
    /// The profile.
    pub profile: &'a Profile,
    /// The host's control groups, if limits are to be set.
    pub hierarchies: Option<&'a Hierarchies>,
    /// Limits to begin with.
    pub limits: &'a Limits,
    /// Where the file behind the writable layer is made; host root only.
    pub scratch_dir: BorrowedFd<'a>,
    /// Whether it will be the host's own `/usr`: then the root is entered now.
    pub host_image: bool,
}

/// A sandbox, whole or in part.
#[derive(Debug)]
pub struct Sandbox {
    /// What everything of it on the host is named after.
    pub slot: SlotId,
    /// Under which authority it is made.
    pub authority: Authority,
    /// Init.
    pub(crate) init: Option<Child>,
    /// Its control groups.
    pub(crate) cgroup: Option<JobCgroup>,
    /// Names of its namespaces that do not keep them alive; empty before Linux 6.18.
    pub(crate) handles: Vec<(String, NamespaceHandle)>,
    /// What its root is made of, as host root.
    pub(crate) rootfs: Option<Rootfs>,
    pub(crate) maps: IdMaps,
    channel: Option<Channel>,
    root: Option<OwnedFd>,
    /// What was measured.
    pub layers: Layers,
    /// Where the time of the set-up went: stage and microseconds.
    pub stages: Vec<(String, u64)>,
}

impl Sandbox {
    /// A sandbox of which nothing is there yet.
    pub fn new(slot: SlotId, authority: Authority) -> Self {
        Self {
            slot,
            authority,
            init: None,
            cgroup: None,
            handles: Vec::new(),
            rootfs: None,
            maps: IdMaps::default(),
            channel: None,
            root: None,
            layers: Layers::new(),
            stages: Vec::new(),
        }
    }

    /// Makes control groups, namespaces, the writable layer and init; with the host's image, the root too. The calling
    /// process has to be single-threaded.
    ///
    /// # Errors
    /// The stage that failed.
    pub fn prepare(&mut self, part: &PreparePart<'_>) -> Result<(), StageError> {
        let mut clock = StageClock::start();
        own_keyring()?;
        if let Some(hierarchies) = part.hierarchies {
            let mut group = JobCgroup::new(hierarchies, &self.slot);
            let made = group.create(part.limits);
            self.cgroup = Some(group);
            made?;
        }
        clock.mark("control groups");
        self.clone_init(part)?;
        clock.mark("clone and id maps");
        let tasks = self.cgroup.as_mut().map(JobCgroup::take_tasks).unwrap_or_default();
        self.send(&Order::Join, &tasks)?;
        // Meanwhile, because there are two to do it.
        if let Authority::Root { base } = self.authority {
            self.rootfs = Some(Rootfs::prepare(part, &self.slot, base)?);
            clock.mark("writable layer");
        }
        let (cgroup_namespace, stages) = self.hear(|answer, _| match answer {
            Answer::Joined { cgroup_namespace, stages } => Some((cgroup_namespace, stages)),
            _ => None,
        })?;
        clock.stages.extend(inner_stages(stages));
        let ours = rustix::fs::stat("/proc/self/ns/cgroup").stage("namespaces: look at cgroup")?.st_ino;
        let cgroup = own_namespace("cgroup", ours != cgroup_namespace);
        self.layers.insert("namespace.cgroup".to_owned(), cgroup);
        self.check_joined()?;
        clock.mark("join and names");
        if self.authority.is_root() && part.host_image {
            self.enter(&RootPlan::Host, &[], &mut clock)?;
        }
        self.stages.append(&mut clock.stages);
        Ok(())
    }

    /// Clones init, maps its ids, and looks at its namespaces.
    fn clone_init(&mut self, part: &PreparePart<'_>) -> Result<(), StageError> {
        let (mine, theirs) = Channel::pair().stage("init: channel")?;
        let own = |namespace| part.profile.has(namespace);
        let namespaces = Namespaces {
            user: true,
            mount: true,
            pid: true,
            net: own(Namespace::Net),
            ipc: own(Namespace::Ipc),
            uts: own(Namespace::Uts),
        };
        let into = self.cgroup.as_ref().and_then(JobCgroup::into).map(AsFd::as_fd);
        let (profile, authority) = (part.profile, self.authority);
        let child = on_account_of(authority, || {
            spawn(namespaces, into, Keep::Only(&[theirs.as_fd()]), || init::run(&theirs, profile, authority))
        });
        let child = child?.map_err(|error| clone_error(&error))?;
        drop(theirs);
        let pid = child.pid;
        self.init = Some(child);
        self.channel = Some(mine);
        self.hear(|answer, _| matches!(answer, Answer::Made).then_some(()))?;
        let (uid_map, gid_map) = self.authority.id_maps();
        userns::write_maps(pid, &uid_map, &gid_map, !self.authority.is_root())
            .stage("identity: write id maps")?;
        self.look_at_namespaces(pid)?;
        if self.authority.is_root() {
            self.maps.image = Some(open_namespace(&pid.to_string(), "user")?);
        }
        Ok(())
    }

    /// Opens init's namespaces while that is still allowed: holds them against our own and keeps their names.
    fn look_at_namespaces(&mut self, pid: i32) -> Result<(), StageError> {
        for name in NAMESPACES {
            let (own, theirs) = (open_namespace("self", name)?, open_namespace(&pid.to_string(), name)?);
            let inode =
                |fd: &OwnedFd| rustix::fs::fstat(fd).map(|s| s.st_ino).stage("namespaces: look at one");
            let in_force = inode(&own)? != inode(&theirs)?;
            self.layers.insert(format!("namespace.{name}"), own_namespace(name, in_force));
            // The host's will be there when the job is not.
            if in_force {
                self.keep_handle(&format!("{name} namespace"), theirs.as_fd());
            }
        }
        Ok(())
    }

    fn keep_handle(&mut self, name: &str, namespace: BorrowedFd<'_>) {
        if let Ok(handle) = NamespaceHandle::of(namespace) {
            self.handles.push((name.to_owned(), handle));
        }
    }

    /// Init must be in every group whose limits are claimed.
    fn check_joined(&self) -> Result<(), StageError> {
        let (Some(init), Some(cgroup)) = (&self.init, &self.cgroup) else { return Ok(()) };
        match cgroup.without(init.pid).stage("cgroup: see who is in it")? {
            None => Ok(()),
            Some(_) => Err(Errno::SRCH).stage("cgroup: init is not in it"),
        }
    }

    /// Adds what one job needs: its limits, its image and its inputs.
    ///
    /// # Errors
    /// The stage that failed.
    pub fn furnish(&mut self, limits: &Limits, mounts: &MountPlan) -> Result<(), StageError> {
        let mut clock = StageClock::start();
        if let Some(cgroup) = &mut self.cgroup {
            cgroup.adjust(limits)?;
        }
        if self.root.is_none() {
            match self.authority {
                Authority::Root { .. } => self.enter(&mounts.root, &mounts.inputs, &mut clock)?,
                Authority::User { .. } => self.enter_as_user(limits, mounts, &mut clock)?,
            }
            self.stages.append(&mut clock.stages);
            return Ok(());
        }
        if mounts.inputs.is_empty() {
            return Ok(());
        }
        self.map_inputs()?;
        let rootfs = self.rootfs.as_ref().ok_or_else(protocol)?;
        let (targets, inputs): (Vec<SandboxPath>, Vec<OwnedFd>) =
            rootfs.inputs(&mounts.inputs, &self.maps)?.into_iter().unzip();
        self.send(&Order::Attach { targets }, &inputs)?;
        self.hear(|answer, _| matches!(answer, Answer::Attached).then_some(()))?;
        clock.mark("attach inputs");
        self.stages.append(&mut clock.stages);
        Ok(())
    }

    fn map_inputs(&mut self) -> Result<(), StageError> {
        if let (Authority::Root { base }, None) = (self.authority, &self.maps.inputs) {
            self.maps.inputs = Some(userns::with_map(&format!("0 {} 1", base + BUILD_ID))?);
        }
        Ok(())
    }

    /// Assembles the root as host root and has init enter it.
    fn enter(
        &mut self,
        root: &RootPlan,
        inputs: &[InputMount],
        clock: &mut StageClock,
    ) -> Result<(), StageError> {
        if !inputs.is_empty() {
            self.map_inputs()?;
        }
        let rootfs = self.rootfs.as_ref().ok_or_else(protocol)?;
        let assembled = rootfs.assemble(root, inputs, &self.maps)?;
        clock.mark("assemble mounts");
        let (mounts, mut trees): (Vec<SandboxPath>, Vec<OwnedFd>) = assembled.mounts.into_iter().unzip();
        trees.insert(0, assembled.root);
        self.send(&Order::Enter(EnterPlan::Mounted { mounts }), &trees)?;
        self.entered(clock)
    }

    /// As an ordinary user init makes the mounts, from the same plan.
    fn enter_as_user(
        &mut self,
        limits: &Limits,
        mounts: &MountPlan,
        clock: &mut StageClock,
    ) -> Result<(), StageError> {
        let (plan, descriptors) = hand_over(limits, mounts).stage("mounts: hand over")?;
        self.send(&Order::Enter(EnterPlan::Assemble(plan)), &descriptors)?;
        self.entered(clock)
    }

    fn entered(&mut self, clock: &mut StageClock) -> Result<(), StageError> {
        let (root, stages) = self.hear(|answer, descriptors| match (answer, descriptors.pop()) {
            (Answer::Entered { stages }, Some(root)) => Some((root, stages)),
            _ => None,
        })?;
        self.root = Some(root);
        clock.mark("enter");
        clock.stages.extend(inner_stages(stages));
        Ok(())
    }

    /// Makes the process of the next step, and does `meanwhile` what else is to be done. What the process measured, if
    /// it did, is in [`Sandbox::layers`].
    ///
    /// # Errors
    /// The stage that failed.
    pub fn prepare_step<T>(
        &mut self,
        plan: PreparePlan,
        streams: [BorrowedFd<'_>; 3],
        meanwhile: impl FnOnce() -> Result<T, StageError>,
    ) -> Result<T, StageError> {
        let mut clock = StageClock::start();
        let channel = self.channel.as_ref().ok_or_else(protocol)?;
        channel.send_all(&Order::Prepare(plan), &streams).stage("init: send an order")?;
        let done = meanwhile()?;
        let (layers, stages, namespaces) = self.hear(|answer, descriptors| match answer {
            Answer::Prepared { layers, stages } => Some((layers, stages, std::mem::take(descriptors))),
            _ => None,
        })?;
        for (name, namespace) in
            ["user namespace of the steps", "mnt namespace of the steps"].iter().zip(&namespaces)
        {
            self.keep_handle(name, namespace.as_fd());
        }
        self.layers.extend(layers);
        clock.mark("process of a step");
        clock.stages.extend(inner_stages(stages));
        self.stages.append(&mut clock.stages);
        Ok(done)
    }

    /// Shows the next step the files of its secrets. Its process must not be there yet.
    ///
    /// # Errors
    /// The stage that failed.
    pub fn show_secrets(&self, files: &SecretFiles) -> Result<(), StageError> {
        let channel = self.channel.as_ref().ok_or_else(protocol)?;
        channel.send_all(&Order::Secrets, &[files.mount()]).stage("init: send an order")?;
        self.hear(|answer, _| matches!(answer, Answer::Attached).then_some(()))
    }

    /// Takes them away, when the step has ended.
    ///
    /// # Errors
    /// The stage that failed.
    pub fn hide_secrets(&self) -> Result<(), StageError> {
        self.send(&Order::NoSecrets, &[])?;
        self.hear(|answer, _| matches!(answer, Answer::Attached).then_some(()))
    }

    /// Ends a process that was made and told nothing.
    ///
    /// # Errors
    /// If init is gone.
    pub fn discard_step(&self) -> Result<(), StageError> {
        self.send(&Order::Discard, &[])?;
        // It may have ended by itself meanwhile, which init has said then.
        let discarded = |answer| match answer {
            Answer::Discarded => Some(true),
            Answer::Ended { .. } => Some(false),
            _ => None,
        };
        while !self.hear(|answer, _| discarded(answer))? {}
        Ok(())
    }

    /// Asks the step's program to end, or kills every process of the sandbox but init.
    ///
    /// # Errors
    /// If init is gone.
    pub fn order(&self, order: &Order) -> Result<(), IpcError> {
        self.channel.as_ref().ok_or(IpcError::Closed)?.send_all(order, &[])
    }

    /// Receives init's next answer. Poll [`Sandbox::channel`] first to not wait.
    ///
    /// # Errors
    /// If init is gone.
    pub fn answer(&self) -> Result<Answer, IpcError> {
        self.channel.as_ref().ok_or(IpcError::Closed)?.receive_all().map(|(answer, _)| answer)
    }

    /// Readable when init has answered or is gone.
    pub fn channel(&self) -> Option<BorrowedFd<'_>> {
        self.channel.as_ref().map(AsFd::as_fd)
    }

    /// The sandbox's root, for outputs. Only to be used when no process but init is left.
    pub fn root(&self) -> Option<BorrowedFd<'_>> {
        self.root.as_ref().map(AsFd::as_fd)
    }

    /// Its control groups, if it has any.
    pub fn cgroup(&self) -> Option<&JobCgroup> {
        self.cgroup.as_ref()
    }

    /// What it is found by when this process is gone.
    pub fn traces(&self) -> Traces {
        let handles = self.handles.iter();
        Traces {
            slot: self.slot.clone(),
            cgroups: self.cgroup.iter().flat_map(JobCgroup::dirs).cloned().collect(),
            uid_base: self.authority.base(),
            namespaces: handles.map(|(name, handle)| (name.clone(), handle.to_bytes())).collect(),
        }
    }

    /// Gives away what keeps the sandbox's mounts and namespaces besides its processes.
    pub(crate) fn let_go(&mut self) -> Held {
        self.channel = None;
        Held { root: self.root.take(), maps: std::mem::take(&mut self.maps), rootfs: self.rootfs.take() }
    }

    fn send(&self, order: &Order, descriptors: &[OwnedFd]) -> Result<(), StageError> {
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        let channel = self.channel.as_ref().ok_or_else(protocol)?;
        channel.send_all(order, &borrowed).stage("init: send an order")
    }

    /// Waits for one answer, bounded, and takes of it what was asked for.
    fn hear<T>(&self, take: impl FnOnce(Answer, &mut Vec<OwnedFd>) -> Option<T>) -> Result<T, StageError> {
        let channel = self.channel.as_ref().ok_or_else(protocol)?;
        let limit = Timespec { tv_sec: SETUP_LIMIT.as_secs().try_into().unwrap_or(60), tv_nsec: 0 };
        let mut ready = [PollFd::new(channel, PollFlags::IN)];
        loop {
            match poll(&mut ready, Some(&limit)) {
                Ok(0) => return Err(Errno::TIMEDOUT).stage("init: no answer"),
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).stage("init: wait for an answer"),
            }
        }
        match channel.receive_all().stage("init: it died during set-up")? {
            (Answer::Failed(error), _) => Err(error),
            (answer, mut descriptors) => take(answer, &mut descriptors).ok_or_else(protocol),
        }
    }
}

/// What keeps a sandbox's mounts when its processes are gone.
pub(crate) struct Held {
    root: Option<OwnedFd>,
    maps: IdMaps,
    rootfs: Option<Rootfs>,
}

impl Held {
    /// By what the writable layer is found.
    pub(crate) fn remains(&self) -> Option<Remains> {
        self.rootfs.as_ref().map(|rootfs| rootfs.scratch.remains())
    }

    /// Lets go of all of it. What was written is of no use to anybody any more, and need not reach a disk.
    pub(crate) fn discard(self) {
        drop((self.root, self.maps));
        if let Some(rootfs) = self.rootfs {
            rootfs.scratch.discard();
        }
    }
}

/// A session keyring that nobody else has, empty: a job must not find a key of its caller's. It is the supervisor's, and
/// inherited: one that init had made would belong to the job's ids, and the kernel takes tens of milliseconds to
/// collect it, for which every teardown would have to wait.
fn own_keyring() -> Result<(), StageError> {
    match ampoule_sys::keyring::new_session() {
        Err(error) if error.raw_os_error() == Some(Errno::NOSYS.raw_os_error()) => Ok(()),
        other => other.stage("identity: session keyring"),
    }
}

fn inner_stages(stages: Vec<(String, u64)>) -> impl Iterator<Item = (String, u64)> {
    stages.into_iter().map(|(stage, micros)| (format!("init: {stage}"), micros))
}

fn open_namespace(who: &str, name: &str) -> Result<OwnedFd, StageError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    openat(rustix::fs::CWD, format!("/proc/{who}/ns/{name}"), flags, Mode::empty())
        .stage("namespaces: open one")
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

fn hand_over(limits: &Limits, mounts: &MountPlan) -> std::io::Result<(AssemblePlan, Vec<OwnedFd>)> {
    let (layers, trees) = mounts.root.parts();
    let inputs = mounts.inputs.iter();
    let descriptors = trees.iter().chain(inputs.clone().map(|input| &input.tree)).map(OwnedFd::try_clone);
    let descriptors: Vec<OwnedFd> = descriptors.collect::<Result<_, _>>()?;
    let places = descriptors
        .iter()
        .map(|fd| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())))
        .collect::<Result<_, _>>()?;
    let inputs = inputs.map(|input| (input.target.clone(), input.file, input.writable)).collect();
    let (disk_bytes, disk_inodes) = (limits.disk_bytes, limits.disk_inodes);
    Ok((AssemblePlan { layers, inputs, places, disk_bytes, disk_inodes }, descriptors))
}

fn own_namespace(name: &str, in_force: bool) -> Measured {
    Measured { in_force, detail: format!("a namespace of its own for {name}") }
}
