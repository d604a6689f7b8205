//! The sandbox's root and its mounts, as detached mounts that nobody can see.
//!
//! Nothing is attached to the host's mount table: a descriptor that is closed, by us or by the kernel when
//! the process dies, takes its mount with it. Every directory below is made in a new tmpfs of ours before
//! any byte of an image or input is there, so no path of a tenant's is ever walked (CVE-2024-23651,
//! CVE-2026-1386).
//!
//! As host root, layers are id-mapped into the job's block of ids and the overlays belong to the initial user
//! namespace, so that in-sandbox root could not make them writable. As an ordinary user the same is done
//! inside the job's user namespace, with `userxattr`.

use crate::error::{Stage, StageError};
use crate::host_image;
use crate::identity::Authority;
use ampoule_spec::BUILD_ID;
use ampoule_spec::SandboxPath;
use ampoule_sys::mount::{Attributes, set_attributes};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, chownat, mkdirat, openat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_fd,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, open_tree,
};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Name of the one entry of a tree that holds a single file.
pub const FILE_ENTRY: &str = "content";
/// A directory that the build user may write to but Landlock forbids: how the probe tells the two apart.
pub const PROBE_DIR: &str = ".probe";

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
    /// Size of the writable layer in bytes.
    pub disk_bytes: u64,
    /// Inodes in the writable layer.
    pub disk_inodes: u64,
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
struct Scratch<'a> {
    dir: BorrowedFd<'a>,
    authority: Authority,
}

impl Scratch<'_> {
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

/// Devices of a sandbox, with their numbers: nothing else in `/dev` is a device.
pub const DEVICES: [(&str, u32, u32); 5] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9)];

/// Makes all mounts of a sandbox.
///
/// # Errors
/// The stage that failed.
pub fn assemble(plan: &MountPlan, authority: Authority, maps: &IdMaps) -> Result<Assembled, StageError> {
    let scratch = scratch(plan, authority)?;
    let skeleton_name = match plan.root {
        RootPlan::Host => "root",
        RootPlan::Layers(_) => "root-upper",
    };
    let skeleton = subdir(scratch.as_fd(), skeleton_name, authority).stage("rootfs: make the root")?;
    let within = Scratch { dir: skeleton.as_fd(), authority };
    populate(&within).stage("rootfs: make the root's directories")?;
    for input in &plan.inputs {
        mount_point(&within, input).stage("rootfs: make a mount point")?;
    }
    let mut mounts = Vec::new();
    let root = match &plan.root {
        RootPlan::Host => {
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
            mounts = host_mounts(scratch.as_fd(), authority, maps.image.as_ref())?;
            bind(scratch.as_fd(), skeleton_name).stage("rootfs: clone the root")?
        }
        RootPlan::Layers(layers) => {
            let work =
                subdir(scratch.as_fd(), "root-work", authority).stage("rootfs: make a work directory")?;
            let lowers = layers
                .iter()
                .rev()
                .map(|layer| id_mapped(layer.as_fd(), maps.image.as_ref()))
                .collect::<Result<Vec<_>, _>>()?;
            overlay(&lowers, Some((skeleton.as_fd(), work.as_fd())), authority)?
        }
    };
    for (at, input) in plan.inputs.iter().enumerate() {
        mounts.push((input.target.clone(), mount_input(scratch.as_fd(), at, input, authority, maps)?));
    }
    let attributes = Attributes { no_suid: true, no_dev: true, ..Attributes::default() };
    set_attributes(root.as_fd(), attributes, None).stage("rootfs: nosuid, nodev on the root")?;
    Ok(Assembled { root, mounts })
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

/// The writable layer: a tmpfs of its own, limited in bytes and inodes.
fn scratch(plan: &MountPlan, authority: Authority) -> Result<OwnedFd, StageError> {
    let stage = "rootfs: make the writable layer";
    let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).stage(stage)?;
    let id = match authority {
        Authority::Root { base } => base,
        Authority::User { .. } => BUILD_ID,
    };
    let options = [
        ("size", plan.disk_bytes.to_string()),
        ("nr_inodes", plan.disk_inodes.to_string()),
        ("mode", "0755".to_owned()),
        ("uid", id.to_string()),
        ("gid", id.to_string()),
    ];
    for (key, value) in &options {
        fsconfig_set_string(&fs, *key, value.as_str()).stage(stage)?;
    }
    fsconfig_create(&fs).stage(stage)?;
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, flags).stage(stage)
}

fn subdir(scratch: BorrowedFd<'_>, name: &str, authority: Authority) -> Result<OwnedFd, Errno> {
    Scratch { dir: scratch, authority }.dir(name, 0o755, 0)?;
    openat(scratch, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// A clone of a subdirectory as a mount of its own.
fn bind(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    open_tree(dir, name, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
}

/// What every root has, whatever the image: our own places, and nothing of the host's.
fn populate(root: &Scratch<'_>) -> Result<(), Errno> {
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
        (PROBE_DIR, 0o755, BUILD_ID),
    ] {
        root.dir(path, mode, id)?;
    }
    for (name, _, _) in DEVICES {
        root.file(&format!("dev/{name}"), b"")?;
    }
    root.link("/proc/self/fd", "dev/fd")?;
    root.link("/proc/self/fd/0", "dev/stdin")?;
    root.link("/proc/self/fd/1", "dev/stdout")?;
    root.link("/proc/self/fd/2", "dev/stderr")?;
    root.file("etc/hostname", b"ampoule\n")?;
    root.file("etc/hosts", b"127.0.0.1 localhost ampoule\n::1 localhost ampoule\n")
}

fn mount_point(root: &Scratch<'_>, input: &InputMount) -> Result<(), Errno> {
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
fn chown_tree(root: &Scratch<'_>, name: &str) -> Result<(), Errno> {
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

/// The host's directories that `image = "host"` shows, each a sealed tree.
fn host_mounts(
    scratch: BorrowedFd<'_>,
    authority: Authority,
    map: Option<&OwnedFd>,
) -> Result<Vec<(SandboxPath, OwnedFd)>, StageError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let usr = openat(rustix::fs::CWD, "/usr", flags, Mode::empty()).stage("rootfs: open the host's /usr")?;
    let alternatives = host_image::alternatives().stage("rootfs: open the host's alternatives")?;
    let mut mounts = Vec::new();
    for (path, dir) in [("/usr", Some(usr)), (host_image::ALTERNATIVES, alternatives)] {
        let Some(dir) = dir else { continue };
        let target = SandboxPath::parse(path).map_err(|_| internal("rootfs: name a mount point"))?;
        let dir = id_mapped(dir.as_fd(), map)?;
        mounts.push((target, lower_only(scratch, dir.as_fd(), authority)?));
    }
    Ok(mounts)
}

/// A layer as an overlay takes it: as host root a read-only, id-mapped clone; else the directory itself.
fn id_mapped(dir: BorrowedFd<'_>, map: Option<&OwnedFd>) -> Result<OwnedFd, StageError> {
    let Some(map) = map else { return dir.try_clone_to_owned().stage("rootfs: duplicate a layer") };
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let clone = open_tree(dir, "", flags).stage("rootfs: clone a layer")?;
    let attributes = Attributes { read_only: true, ..Attributes::default() };
    set_attributes(clone.as_fd(), attributes, Some(map.as_fd())).map_err(|error| {
        if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) {
            let remedy = "the file system of this layer cannot be id-mapped; keep /usr and the state \
                          directory on ext4, xfs, btrfs or tmpfs";
            return StageError::unsupported("rootfs: id-map a layer", remedy);
        }
        StageError {
            stage: "rootfs: id-map a layer".into(),
            errno: error.raw_os_error().unwrap_or(0),
            unsupported: None,
        }
    })?;
    Ok(clone)
}

/// An overlay over these lower layers, the highest first, and an upper and a work directory if it is writable.
fn overlay(
    lowers: &[OwnedFd],
    upper: Option<(BorrowedFd<'_>, BorrowedFd<'_>)>,
    authority: Authority,
) -> Result<OwnedFd, StageError> {
    let stage = "rootfs: overlay";
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).stage(stage)?;
    for lower in lowers {
        fsconfig_set_fd(&fs, "lowerdir+", lower.as_fd()).stage("rootfs: overlay's lower layer")?;
    }
    if let Some((upper, work)) = upper {
        fsconfig_set_fd(&fs, "upperdir", upper).stage("rootfs: overlay's upper layer")?;
        fsconfig_set_fd(&fs, "workdir", work).stage("rootfs: overlay's work directory")?;
        // Nothing of it outlives the job, so nothing of it need reach a disk.
        fsconfig_set_flag(&fs, "volatile").stage(stage)?;
    }
    if authority.is_root() {
        // Renaming a directory of a lower layer is EXDEV without it.
        fsconfig_set_string(&fs, "redirect_dir", "on").stage(stage)?;
    } else {
        fsconfig_set_flag(&fs, "userxattr").stage(stage)?;
    }
    fsconfig_create(&fs).stage(stage)?;
    let mut flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    if upper.is_none() {
        flags |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, flags).stage(stage)
}

/// A sealed tree: an overlay of lower layers alone, whose superblock is read-only for good. The kernel wants
/// two of them.
fn lower_only(
    scratch: BorrowedFd<'_>,
    tree: BorrowedFd<'_>,
    authority: Authority,
) -> Result<OwnedFd, StageError> {
    let empty = subdir(scratch, "empty", authority).stage("rootfs: make an empty layer")?;
    let tree = tree.try_clone_to_owned().stage("rootfs: duplicate a layer")?;
    overlay(&[tree, empty], None, authority)
}

fn mount_input(
    scratch: BorrowedFd<'_>,
    at: usize,
    input: &InputMount,
    authority: Authority,
    maps: &IdMaps,
) -> Result<OwnedFd, StageError> {
    let tree = id_mapped(input.tree.as_fd(), maps.inputs.as_ref())?;
    let mounted = if input.writable {
        let stage = "rootfs: make an input's writable layer";
        let upper = subdir(scratch, &format!("input-{at}-upper"), authority).stage(stage)?;
        Scratch { dir: scratch, authority }.chown(&format!("input-{at}-upper"), BUILD_ID).stage(stage)?;
        let work = subdir(scratch, &format!("input-{at}-work"), authority).stage(stage)?;
        overlay(&[tree], Some((upper.as_fd(), work.as_fd())), authority)?
    } else {
        lower_only(scratch, tree.as_fd(), authority)?
    };
    if input.file {
        return bind(mounted.as_fd(), FILE_ENTRY).stage("rootfs: take a single file");
    }
    Ok(mounted)
}
