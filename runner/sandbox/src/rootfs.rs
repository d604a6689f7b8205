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

use crate::bench::Bench;
use crate::copy;
use crate::error::{Stage, StageError};
use crate::host_image;
use crate::identity::Authority;
use crate::overlay::{self, Lower, Upper, id_mapped};
use crate::scratch::Scratch;
use ampoule_spec::{BUILD_ID, Device, Profile, SandboxPath, Sealed};
use ampoule_sys::mount::{Attributes, set_attributes};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, chownat, mkdirat, openat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Name of the one entry of a tree that holds a single file.
pub const FILE_ENTRY: &str = "content";
/// A directory that the build user may write to but Landlock forbids: how the probe tells the two apart. It is there
/// only while a process measures itself.
pub const PROBE_DIR: &str = ".probe";
/// The directory of the writable layer that becomes the root, or its upper layer.
const ROOT: &str = "root";

/// What a sandbox's root is made of.
#[derive(Debug)]
pub enum RootPlan {
    /// The host's `/usr`.
    Host,
    /// Image layers, the lowest first.
    Layers(Vec<OwnedFd>),
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

/// A directory of the writable layer that is still ours alone, and to whom new entries belong.
struct Place<'a> {
    dir: BorrowedFd<'a>,
    authority: Authority,
}

impl Place<'_> {
    /// The host ids of an in-sandbox id; an ordinary user owns everything.
    fn chown(&self, path: &str, id: u32) -> Result<(), Errno> {
        let Authority::Root { base } = self.authority else { return Ok(()) };
        let id = base + id;
        chownat(self.dir, path, Some(Uid::from_raw(id)), Some(Gid::from_raw(id)), AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Makes a directory, whatever the umask, with its parents.
    fn dir(&self, path: &str, mode: u32, id: u32) -> Result<(), Errno> {
        let mut parent = String::new();
        for part in path.split('/') {
            if !parent.is_empty() {
                parent.push('/');
            }
            parent.push_str(part);
            let last = parent.len() == path.len();
            match mkdirat(self.dir, &parent, Mode::from_raw_mode(0o755)) {
                Ok(()) => {
                    let (mode, id) = if last { (mode, id) } else { (0o755, 0) };
                    self.chown(&parent, id)?;
                    rustix::fs::chmodat(self.dir, &parent, Mode::from_raw_mode(mode), AtFlags::empty())?;
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    fn file(&self, path: &str, content: &[u8]) -> Result<(), Errno> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let fd = openat(self.dir, path, flags, Mode::from_raw_mode(0o644))?;
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o644))?;
        std::fs::File::from(fd)
            .write_all(content)
            .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        self.chown(path, 0)
    }

    fn link(&self, target: &str, path: &str) -> Result<(), Errno> {
        symlinkat(target, self.dir, path)?;
        self.chown(path, 0)
    }
}

/// A root in the making: the writable layer, and in it what every root has, whatever the image.
#[derive(Debug)]
pub struct Rootfs {
    pub(crate) scratch: Scratch,
    skeleton: OwnedFd,
    authority: Authority,
    sealed: Sealed,
    /// Where overlays are made, on kernels before 6.15.
    bench: Option<Bench>,
    /// Whether writable inputs are copies, because no overlay over them would do.
    copies: bool,
}

impl Rootfs {
    /// Makes the skeleton in an empty writable layer.
    ///
    /// # Errors
    /// The stage that failed.
    pub(crate) fn new(scratch: Scratch, authority: Authority, profile: &Profile) -> Result<Self, StageError> {
        let skeleton = subdir(scratch.mount(), ROOT, authority).stage("rootfs: make the root")?;
        populate(&Place { dir: skeleton.as_fd(), authority }, &profile.devices)
            .stage("rootfs: make the root's directories")?;
        let bench = match overlay::is_by_descriptor() {
            true => None,
            false => Some(Bench::set_up(scratch.mount(), authority)?),
        };
        let copies = !authority.is_root() && !scratch.keeps_user_attributes();
        Ok(Self { scratch, skeleton, authority, sealed: profile.mounts.sealed, bench, copies })
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
        let (root, mut mounts) = match root {
            RootPlan::Host => self.host(maps)?,
            RootPlan::Layers(layers) => (self.layers(layers, maps)?, Vec::new()),
        };
        mounts.extend(inputs);
        let attributes = Attributes { no_suid: true, no_dev: true, ..Attributes::default() };
        set_attributes(root.as_fd(), attributes, None).stage("rootfs: nosuid, nodev on the root")?;
        Ok(Assembled { root, mounts })
    }

    /// The root over the host's `/usr`, which is mounted below it.
    fn host(&self, maps: &IdMaps) -> Result<(OwnedFd, Vec<(SandboxPath, OwnedFd)>), StageError> {
        let within = self.within();
        host_image::populate_etc(&within.dir).map_err(etc_error)?;
        for name in host_image::MERGED {
            match within.chown(name, 0) {
                Err(errno) if errno != Errno::NOENT => {
                    return Err(errno).stage("rootfs: give a link to root");
                }
                _ => {}
            }
        }
        chown_tree(&within, "etc").stage("rootfs: give /etc to root")?;
        let mounts = self.host_mounts(maps.image.as_ref())?;
        let root = match &self.bench {
            Some(bench) => bench.bind(ROOT)?,
            None => bind(self.scratch.mount(), ROOT).stage("rootfs: clone the root")?,
        };
        Ok((root, mounts))
    }

    /// The root as an overlay over an image's layers.
    fn layers(&self, layers: &[OwnedFd], maps: &IdMaps) -> Result<OwnedFd, StageError> {
        let work = "root-work";
        self.subdir(work).stage("rootfs: make a work directory")?;
        let lowers = layers
            .iter()
            .rev()
            .map(|layer| id_mapped(layer.as_fd(), maps.image.as_ref()).map(Lower::Tree))
            .collect::<Result<Vec<_>, _>>()?;
        self.overlay(&lowers, Some(Upper { upper: ROOT, work }), None)
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
            for name in [&upper, &work] {
                self.subdir(name).stage(stage)?;
            }
            let scratch = Place { dir: self.scratch.mount(), authority: self.authority };
            scratch.chown(&upper, BUILD_ID).stage(stage)?;
            self.overlay(&[Lower::Tree(tree)], Some(Upper { upper: &upper, work: &work }), entry)
        } else {
            self.sealed(tree, entry)
        }
    }

    /// A copy of a tree in the writable layer, or one entry of it.
    fn copied(&self, name: &str, tree: BorrowedFd<'_>, entry: Option<&str>) -> Result<OwnedFd, StageError> {
        let stage = "rootfs: copy an input";
        let place = self.subdir(name).stage(stage)?;
        match copy::tree(tree, place.as_fd()) {
            Err(Errno::NOSPC | Errno::DQUOT) => {
                let remedy = "a writable input does not fit into limits.disk, and before Linux 6.6 an ordinary user's \
                              is a copy; raise limits.disk, or run as root";
                return Err(StageError::unsupported(stage, remedy));
            }
            copied => copied.stage(stage)?,
        }
        let taken = entry.map_or(name.to_owned(), |entry| format!("{name}/{entry}"));
        match &self.bench {
            Some(bench) => bench.bind(&taken),
            None => bind(self.scratch.mount(), &taken).stage(stage),
        }
    }

    /// A sealed tree: an overlay of lower layers alone, whose superblock is read-only for good. The kernel wants
    /// two of them.
    fn sealed(&self, tree: OwnedFd, entry: Option<&str>) -> Result<OwnedFd, StageError> {
        if self.sealed == Sealed::Bind {
            return self.read_only_bind(tree.as_fd(), entry);
        }
        let empty = "empty";
        self.subdir(empty).stage("rootfs: make an empty layer")?;
        self.overlay(&[Lower::Tree(tree), Lower::Scratch(empty)], None, entry)
    }

    /// A tree as a read-only mount of its own: what no profile has, because whoever has CAP_SYS_ADMIN over it can make
    /// it writable.
    fn read_only_bind(&self, tree: BorrowedFd<'_>, entry: Option<&str>) -> Result<OwnedFd, StageError> {
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let clone = match &self.bench {
            Some(bench) => bench.take(tree, entry)?,
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
        if let Some(bench) = &self.bench {
            return bench.overlay(lowers, upper, entry);
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

    fn within(&self) -> Place<'_> {
        Place { dir: self.skeleton.as_fd(), authority: self.authority }
    }

    fn subdir(&self, name: &str) -> Result<OwnedFd, Errno> {
        subdir(self.scratch.mount(), name, self.authority)
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
    let scratch = Scratch::on_tmpfs(disk_bytes, disk_inodes, BUILD_ID)?;
    let rootfs = Rootfs::new(scratch, authority, profile)?;
    rootfs.assemble(&mounts.root, &mounts.inputs, &IdMaps::default())
}

fn subdir(scratch: BorrowedFd<'_>, name: &str, authority: Authority) -> Result<OwnedFd, Errno> {
    Place { dir: scratch, authority }.dir(name, 0o755, 0)?;
    openat(scratch, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn etc_error(errno: Errno) -> StageError {
    if errno == Errno::NOSYS {
        let remedy = "image = \"host\" needs a host whose /bin and /lib are links into /usr";
        return StageError::unsupported("rootfs: make /etc", remedy);
    }
    StageError { stage: "rootfs: make /etc".into(), errno: errno.raw_os_error(), unsupported: None }
}

fn internal(stage: &str) -> StageError {
    StageError { stage: stage.to_owned(), errno: 0, unsupported: None }
}

/// A clone of a subdirectory as a mount of its own.
fn bind(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    open_tree(dir, name, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
}

/// What every root has, whatever the image: our own places, and nothing of the host's.
fn populate(root: &Place<'_>, devices: &[Device]) -> Result<(), Errno> {
    for (path, mode, id) in [
        ("build", 0o755, BUILD_ID),
        ("dev/shm", 0o1777, 0),
        ("etc", 0o755, 0),
        ("home/build", 0o755, BUILD_ID),
        ("proc", 0o555, 0),
        ("run", 0o755, BUILD_ID),
        ("tmp", 0o1777, 0),
        ("usr", 0o755, 0),
        ("var/tmp", 0o1777, 0),
    ] {
        root.dir(path, mode, id)?;
    }
    for device in devices {
        root.file(&format!("dev/{}", device.node().0), b"")?;
    }
    root.link("/proc/self/fd", "dev/fd")?;
    root.link("/proc/self/fd/0", "dev/stdin")?;
    root.link("/proc/self/fd/1", "dev/stdout")?;
    root.link("/proc/self/fd/2", "dev/stderr")?;
    root.file("etc/hostname", b"ampoule\n")?;
    root.file("etc/hosts", b"127.0.0.1 localhost ampoule\n::1 localhost ampoule\n")
}

fn mount_point(root: &Place<'_>, input: &InputMount) -> Result<(), Errno> {
    let path = input.target.relative();
    if !input.file {
        return root.dir(path, 0o755, BUILD_ID);
    }
    match path.rsplit_once('/') {
        Some((parent, _)) => {
            root.dir(parent, 0o755, BUILD_ID)?;
            root.file(path, b"")
        }
        None => root.file(path, b""),
    }
}

/// Gives what [`host_image`] made to in-sandbox root.
fn chown_tree(root: &Place<'_>, name: &str) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = openat(root.dir, name, flags, Mode::empty())?;
    for entry in rustix::fs::Dir::read_from(&dir)? {
        let entry = entry?;
        let Ok(child) = entry.file_name().to_str() else { continue };
        if matches!(child, "." | "..") {
            continue;
        }
        let path = format!("{name}/{child}");
        root.chown(&path, 0)?;
        if entry.file_type() == rustix::fs::FileType::Directory {
            chown_tree(root, &path)?;
        }
    }
    Ok(())
}
