//! The sandbox's root and its mounts, as detached mounts that nobody can see.
//!
//! Nothing is attached to the host's mount table: a descriptor that is closed, by us or by the kernel when
//! the process dies, takes its mount with it. Every directory below is made in a new file system of ours before
//! any byte of an image or input is there, so no path of a tenant's is ever walked (CVE-2024-23651,
//! CVE-2026-1386).
//!
//! As host root, layers are id-mapped into the job's block of ids and the overlays belong to the initial user
//! namespace, so that in-sandbox root could not make them writable. As an ordinary user the same is done
//! inside the job's user namespace, with `userxattr`.

use crate::by_name::ByName;
use crate::copy;
use crate::error::{Stage, StageError};
use crate::host_image;
use crate::identity::Authority;
use crate::overlay::{self, Lower, Upper, id_mapped};
use crate::place::Place;
use crate::sandbox::PreparePart;
use crate::scratch::{Layer, Scratch};
use crate::skeleton::{self, DEVICES, EMPTY, Over, ROOT, ROOT_WORK};
use ampoule_spec::{BUILD_ID, Device, Profile, SandboxPath, Sealed, SlotId};
use ampoule_sys::mount::{Attributes, set_attributes, show_devices};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Name of the one entry of a tree that holds a single file.
pub const FILE_ENTRY: &str = "content";
/// A directory that the build user may write to but Landlock forbids: how the probe tells the two apart. It is there
/// only while a process measures itself.
pub const PROBE_DIR: &str = ".probe";

/// What a sandbox's root is made of.
#[derive(Debug)]
pub enum RootPlan {
    /// The host's `/usr`.
    Host,
    /// Image layers, the lowest first.
    Layers(Vec<OwnedFd>),
}

impl RootPlan {
    /// How it crosses to another process: the number of layers, none for the host's `/usr`, and their descriptors.
    pub fn parts(&self) -> (Option<usize>, &[OwnedFd]) {
        match self {
            Self::Host => (None, &[]),
            Self::Layers(layers) => (Some(layers.len()), layers),
        }
    }

    /// The same on the other side: takes as many descriptors as there are layers.
    pub fn take(layers: Option<usize>, descriptors: &mut impl Iterator<Item = OwnedFd>) -> Self {
        layers.map_or(Self::Host, |count| Self::Layers(descriptors.by_ref().take(count).collect()))
    }

    fn over(&self) -> Over {
        match self {
            Self::Host => Over::Host,
            Self::Layers(_) => Over::Image,
        }
    }
}

/// One input to be mounted.
#[derive(Debug)]
pub struct InputMount {
    /// Where.
    pub target: SandboxPath,
    /// The sealed tree.
    pub tree: OwnedFd,
    /// Whether the tree stands for the single file [`FILE_ENTRY`] in it.
    pub file: bool,
    /// Whether a copy-on-write layer lies over it.
    pub writable: bool,
}

/// Everything that is mounted into a sandbox.
#[derive(Debug)]
pub struct MountPlan {
    /// The root.
    pub root: RootPlan,
    /// The inputs.
    pub inputs: Vec<InputMount>,
}

/// The user namespaces by which mounts are id-mapped; none as an ordinary user.
#[derive(Debug, Default)]
pub struct IdMaps {
    /// The job's own namespace: on-disk ids become the block's.
    pub image: Option<OwnedFd>,
    /// On-disk root becomes the build user: the owner of inputs.
    pub inputs: Option<OwnedFd>,
}

/// A sandbox's mounts, ready to be moved into place.
#[derive(Debug)]
pub struct Assembled {
    /// The root.
    pub root: OwnedFd,
    /// What goes below it, in this order.
    pub mounts: Vec<(SandboxPath, OwnedFd)>,
}

/// A root in the making: the writable layer with what it has from the start.
#[derive(Debug)]
pub struct Rootfs {
    pub(crate) scratch: Scratch,
    skeleton: OwnedFd,
    authority: Authority,
    over: Over,
    sealed: Sealed,
    devices: Vec<Device>,
    /// Where overlays are made, on kernels before 6.15.
    by_name: Option<ByName>,
    /// Whether writable inputs are copies, because no overlay over them would do.
    copies: bool,
}

impl Rootfs {
    /// Makes a writable layer as host root, for in-sandbox ids that begin at `base`.
    ///
    /// # Errors
    /// The stage that failed; [`StageError::unsupported`] if the host cannot do it.
    pub(crate) fn prepare(part: &PreparePart<'_>, slot: &SlotId, base: u32) -> Result<Self, StageError> {
        let over = if part.host_image { Over::Host } else { Over::Image };
        let authority = Authority::Root { base };
        let entries = skeleton::entries(&part.profile.devices, over, authority)?;
        let layer = Layer {
            name: slot.as_str(),
            bytes: part.limits.disk_bytes,
            inodes: part.limits.disk_inodes,
            owner: base,
            entries: &entries,
        };
        let scratch = Scratch::on_loop(part.scratch_dir, &layer)?;
        Self::new(scratch, authority, over, part.profile)
    }

    /// Takes a writable layer with the skeleton for a root over `over`.
    fn new(
        scratch: Scratch,
        authority: Authority,
        over: Over,
        profile: &Profile,
    ) -> Result<Self, StageError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let skeleton =
            openat(scratch.mount(), ROOT, flags, Mode::empty()).stage("rootfs: open the root's skeleton")?;
        let by_name = match overlay::is_by_descriptor() {
            true => None,
            false => Some(ByName::set_up(scratch.mount(), authority)?),
        };
        let copies = !authority.is_root() && !scratch.keeps_user_attributes();
        let (sealed, devices) = (profile.mounts.sealed, profile.devices.clone());
        Ok(Self { scratch, skeleton, authority, over, sealed, devices, by_name, copies })
    }

    /// Makes the root, and the mounts of image and inputs.
    ///
    /// # Errors
    /// The stage that failed.
    pub(crate) fn assemble(
        &self,
        root: &RootPlan,
        inputs: &[InputMount],
        maps: &IdMaps,
    ) -> Result<Assembled, StageError> {
        // First the inputs: their mount points have to be there before an overlay lies over the skeleton.
        let inputs = self.inputs(inputs, maps)?;
        let (root, mut mounts) = match (root, self.over) {
            (RootPlan::Host, Over::Host) => self.host(maps)?,
            (RootPlan::Layers(layers), Over::Image) => (self.layers(layers, maps)?, Vec::new()),
            _ => return Err(internal("rootfs: the writable layer was made for another kind of image")),
        };
        mounts.extend(self.devices()?);
        mounts.extend(inputs);
        let attributes = Attributes { no_suid: true, no_dev: true, ..Attributes::default() };
        set_attributes(root.as_fd(), attributes, None).stage("rootfs: nosuid, nodev on the root")?;
        Ok(Assembled { root, mounts })
    }

    /// The sandbox's devices, each a mount of its own; none as an ordinary user, who has the host's ([`crate::enter`]).
    fn devices(&self) -> Result<Vec<(SandboxPath, OwnedFd)>, StageError> {
        if !self.authority.is_root() {
            return Ok(Vec::new());
        }
        let mount = |device: &Device| {
            let (name, ..) = device.node();
            let stage = "rootfs: make a device";
            let made = self.bind(&format!("{DEVICES}/{name}"), stage)?;
            let attributes = Attributes { no_suid: true, no_exec: true, ..Attributes::default() };
            set_attributes(made.as_fd(), attributes, None).stage(stage)?;
            show_devices(made.as_fd()).stage(stage)?;
            let target = SandboxPath::parse(&format!("/dev/{name}"));
            Ok((target.map_err(|_| internal("rootfs: name a mount point"))?, made))
        };
        self.devices.iter().map(mount).collect()
    }

    /// The root over the host's `/usr`, which is mounted below it.
    fn host(&self, maps: &IdMaps) -> Result<(OwnedFd, Vec<(SandboxPath, OwnedFd)>), StageError> {
        let mounts = self.host_mounts(maps.image.as_ref())?;
        Ok((self.bind(ROOT, "rootfs: clone the root")?, mounts))
    }

    /// The root as an overlay over an image's layers.
    fn layers(&self, layers: &[OwnedFd], maps: &IdMaps) -> Result<OwnedFd, StageError> {
        let lowers = layers
            .iter()
            .rev()
            .map(|layer| id_mapped(layer.as_fd(), maps.image.as_ref()).map(Lower::Tree))
            .collect::<Result<Vec<_>, _>>()?;
        self.overlay(&lowers, Some(Upper { upper: ROOT, work: ROOT_WORK }), None)
    }

    /// Makes the mount points of inputs, and their mounts.
    ///
    /// # Errors
    /// The stage that failed.
    pub(crate) fn inputs(
        &self,
        inputs: &[InputMount],
        maps: &IdMaps,
    ) -> Result<Vec<(SandboxPath, OwnedFd)>, StageError> {
        let within = self.within();
        let mount = |(at, input): (usize, &InputMount)| {
            mount_point(&within, input).stage("rootfs: make a mount point")?;
            Ok((input.target.clone(), self.input(at, input, maps)?))
        };
        inputs.iter().enumerate().map(mount).collect()
    }

    fn input(&self, at: usize, input: &InputMount, maps: &IdMaps) -> Result<OwnedFd, StageError> {
        let tree = id_mapped(input.tree.as_fd(), maps.inputs.as_ref())?;
        let entry = input.file.then_some(FILE_ENTRY);
        if input.writable && self.copies {
            self.copied(&format!("input-{at}"), tree.as_fd(), entry)
        } else if input.writable {
            let stage = "rootfs: make an input's writable layer";
            let (upper, work) = (format!("input-{at}-upper"), format!("input-{at}-work"));
            let scratch = Place { dir: self.scratch.mount(), authority: self.authority };
            scratch.dir(&upper, 0o755, BUILD_ID).stage(stage)?;
            scratch.dir(&work, 0o755, 0).stage(stage)?;
            self.overlay(&[Lower::Tree(tree)], Some(Upper { upper: &upper, work: &work }), entry)
        } else {
            self.sealed(tree, entry)
        }
    }

    /// A copy of a tree in the writable layer, or one entry of it.
    fn copied(&self, name: &str, tree: BorrowedFd<'_>, entry: Option<&str>) -> Result<OwnedFd, StageError> {
        let stage = "rootfs: copy an input";
        Place { dir: self.scratch.mount(), authority: self.authority }.dir(name, 0o755, 0).stage(stage)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let place = openat(self.scratch.mount(), name, flags, Mode::empty()).stage(stage)?;
        match copy::tree(tree, place.as_fd()) {
            Err(Errno::NOSPC | Errno::DQUOT) => {
                let remedy = "a writable input does not fit into limits.disk, and before Linux 6.6 an ordinary user's \
                              is a copy; raise limits.disk, or run as root";
                return Err(StageError::unsupported(stage, remedy));
            }
            copied => copied.stage(stage)?,
        }
        let taken = entry.map_or(name.to_owned(), |entry| format!("{name}/{entry}"));
        self.bind(&taken, stage)
    }

    /// A sealed tree: an overlay of lower layers alone, whose superblock is read-only for good. The kernel wants
    /// two of them.
    fn sealed(&self, tree: OwnedFd, entry: Option<&str>) -> Result<OwnedFd, StageError> {
        if self.sealed == Sealed::Bind {
            return self.read_only_bind(tree.as_fd(), entry);
        }
        self.overlay(&[Lower::Tree(tree), Lower::Scratch(EMPTY)], None, entry)
    }

    /// A tree as a read-only mount of its own: what no profile has, because whoever has CAP_SYS_ADMIN over it can make
    /// it writable.
    fn read_only_bind(&self, tree: BorrowedFd<'_>, entry: Option<&str>) -> Result<OwnedFd, StageError> {
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let clone = match &self.by_name {
            Some(by_name) => by_name.take(tree, entry)?,
            None => open_tree(tree, entry.unwrap_or_default(), flags).stage("rootfs: clone a tree")?,
        };
        let attributes = Attributes { read_only: true, no_suid: true, no_dev: true, ..Attributes::default() };
        set_attributes(clone.as_fd(), attributes, None).stage("rootfs: make a tree read-only")?;
        Ok(clone)
    }

    /// An overlay, or one entry of it.
    fn overlay(
        &self,
        lowers: &[Lower<'_>],
        upper: Option<Upper<'_>>,
        entry: Option<&str>,
    ) -> Result<OwnedFd, StageError> {
        if let Some(by_name) = &self.by_name {
            return by_name.overlay(lowers, upper, entry);
        }
        let made = overlay::overlay(self.scratch.mount(), lowers, upper, self.authority)?;
        match entry {
            Some(entry) => bind(made.as_fd(), entry).stage("rootfs: take a single file"),
            None => Ok(made),
        }
    }

    /// The host's directories that `image = "host"` shows, each a sealed tree.
    fn host_mounts(&self, map: Option<&OwnedFd>) -> Result<Vec<(SandboxPath, OwnedFd)>, StageError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let usr = openat(rustix::fs::CWD, "/usr", flags, Mode::empty());
        let usr = usr.stage("rootfs: open the host's /usr")?;
        let alternatives = host_image::alternatives().stage("rootfs: open the host's alternatives")?;
        let mut mounts = Vec::new();
        for (path, dir) in [("/usr", Some(usr)), (host_image::ALTERNATIVES, alternatives)] {
            let Some(dir) = dir else { continue };
            let target = SandboxPath::parse(path).map_err(|_| internal("rootfs: name a mount point"))?;
            mounts.push((target, self.sealed(id_mapped(dir.as_fd(), map)?, None)?));
        }
        Ok(mounts)
    }

    /// A clone of something in the writable layer as a mount of its own.
    fn bind(&self, name: &str, stage: &str) -> Result<OwnedFd, StageError> {
        match &self.by_name {
            Some(by_name) => by_name.bind(name),
            None => bind(self.scratch.mount(), name).stage(stage),
        }
    }

    fn within(&self) -> Place<'_> {
        Place { dir: self.skeleton.as_fd(), authority: self.authority }
    }
}

/// Makes a root and its mounts as an ordinary user, in the calling process's own mount namespace.
///
/// # Errors
/// The stage that failed.
pub(crate) fn assemble_as_user(
    mounts: &MountPlan,
    (disk_bytes, disk_inodes): (u64, u64),
    authority: Authority,
    profile: &Profile,
) -> Result<Assembled, StageError> {
    let over = mounts.root.over();
    let skeleton = skeleton::entries(&profile.devices, over, authority)?;
    let scratch = Scratch::on_tmpfs(disk_bytes, disk_inodes, BUILD_ID)?;
    Place { dir: scratch.mount(), authority }.make(&skeleton).stage("rootfs: make the root's skeleton")?;
    let rootfs = Rootfs::new(scratch, authority, over, profile)?;
    rootfs.assemble(&mounts.root, &mounts.inputs, &IdMaps::default())
}

fn internal(stage: &str) -> StageError {
    StageError { stage: stage.to_owned(), errno: 0, unsupported: None }
}

/// A clone of a subdirectory as a mount of its own.
fn bind(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    open_tree(dir, name, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
}

fn mount_point(root: &Place<'_>, input: &InputMount) -> Result<(), Errno> {
    let path = input.target.relative();
    if !input.file {
        return root.dir(path, 0o755, BUILD_ID);
    }
    match path.rsplit_once('/') {
        Some((parent, _)) => {
            root.dir(parent, 0o755, BUILD_ID)?;
            root.empty_file(path)
        }
        None => root.empty_file(path),
    }
}
