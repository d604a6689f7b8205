//! The writable layer of one job: a detached mount that goes when the last descriptor of it is closed.
//!
//! As host root it is an ext4 of its own on a loop device over a sparse file: what a job writes is page cache that
//! the kernel can write out, not memory that stays, and the limits are the size of the file system. An ordinary
//! user may mount no ext4 and gets a tmpfs.
//!
//! Guaranteed: nothing has a name but the loop device. The backing file is unlinked, the file system is mounted
//! nowhere, and the device lets go of the file by itself; so the death of whoever holds a [`Scratch`] removes all
//! of it.
//!
//! Not guaranteed: that the host's disk has the room. The backing file is sparse, and where the disk is full or
//! broken, bytes of the job are lost; [`Scratch::sync`] says so.

use crate::error::{Stage, StageError};
use crate::ext4::{self, Contents, Label, Layout};
use crate::fault;
use crate::skeleton::{Entry, Kind};
use ampoule_sys::{loopdev, writeback};
use rustix::fs::{
    Advice, AtFlags, CWD, Mode, OFlags, XattrFlags, fadvise, fremovexattr, fsetxattr, fstatvfs, openat,
    unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen,
};
use rustix::rand::{GetRandomFlags, getrandom};
use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{SystemTime, UNIX_EPOCH};

const BACKING: &str = "writable layer: make the backing file";
const FORMAT: &str = "writable layer: format the backing file";
const DEVICE: &str = "writable layer: bind a loop device";
const MOUNT: &str = "writable layer: mount";

/// The kernel gives everybody who asks the same free device, and who binds it second asks again. A round has one
/// winner, so this many jobs can start at once.
const BIND_ATTEMPTS: u32 = 64;

/// With fewer bytes than this in use, writing out what is dirty is cheaper than not to: a shutdown has a line in
/// the kernel's log, which costs a millisecond on a serial console.
const SHUTDOWN_BYTES: u64 = 4 << 20;

/// How the file system is mounted. It is thrown away, so nothing has to survive a crash: no cache of a disk is
/// flushed (`nobarrier`), no file is written out because it was renamed (`noauto_da_alloc`), times stay in memory
/// (`lazytime`). No thread of the kernel has to zero inode tables that are zeros (`noinit_itable`) or to read
/// bitmaps of empty groups (`no_prefetch_block_bitmaps`, Linux 5.13).
const EXT4_FLAGS: [&str; 5] =
    ["nobarrier", "noauto_da_alloc", "lazytime", "noinit_itable", "no_prefetch_block_bitmaps"];

/// A writable layer.
#[derive(Debug)]
pub struct Scratch {
    mount: OwnedFd,
    /// The root directory, because `mount` is a path descriptor, which neither ioctl(2) nor syncfs(2) takes. As it
    /// was open before anything was written, syncfs(2) on it misses no error.
    root: OwnedFd,
    backing: Option<Backing>,
}

/// What a writable layer of host root's is to be.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// The loop device's name, in at most [`loopdev::NAME_BYTES_MAX`] bytes; give no two layers the same.
    pub name: &'a str,
    /// Bytes that a job has, besides the entries.
    pub bytes: u64,
    /// Inodes that a job has, besides the entries.
    pub inodes: u64,
    /// The user and group of the host that is in-sandbox id 0: to whom the root directory belongs, with mode 0755.
    pub owner: u32,
    /// What is there from the start, in the order of [`Contents::of`].
    pub entries: &'a [Entry],
}

#[derive(Debug)]
struct Backing {
    /// The backing file, opened apart from the loop device's own, which takes errors for itself when it syncs.
    file: File,
    device: Device,
}

/// What a loop device is found by.
#[derive(Debug, Clone)]
struct Device {
    number: u32,
    name: String,
}

/// What may be left of a writable layer that was discarded.
#[derive(Debug)]
pub struct Remains {
    device: Option<Device>,
}

impl Scratch {
    /// An ext4 over a file without a name in `dir`. The mount is nosuid and nodev.
    ///
    /// # Errors
    /// The stage that failed; [`StageError::unsupported`] for limits that no ext4 has, and on a host without loop
    /// devices or ext4. `EPERM` unless host root calls.
    pub fn on_loop(dir: BorrowedFd<'_>, layer: &Layer<'_>) -> Result<Self, StageError> {
        let Layer { name, bytes, inodes, owner, entries } = *layer;
        let contents = Contents::of(entries).map_err(|error| StageError {
            stage: format!("{FORMAT}: {error}"),
            errno: Errno::INVAL.raw_os_error(),
            unsupported: None,
        })?;
        let layout = Layout::for_limits(bytes, inodes, &contents)
            .map_err(|error| StageError::unsupported(FORMAT, error.to_string()))?;
        let file = backing_file(dir, name).stage(BACKING)?;
        let mut uuid = [0; 16];
        getrandom(&mut uuid, GetRandomFlags::empty()).stage(FORMAT)?;
        let label = Label { owner, uuid, time_secs: now_secs() };
        ext4::format(&file, &layout, &contents, &label).stage(FORMAT)?;
        let (number, device) = bind(&file, name)?;
        for (offset, bytes) in ext4::hot_ranges(&layout, &contents) {
            // Without it they are read one by one when they are needed.
            let _ = fadvise(&device, offset, NonZeroU64::new(bytes), Advice::WillNeed);
        }
        let mount = mount_ext4(number)?;
        read_ahead(mount.as_fd(), entries);
        // From here on the mount alone keeps the device bound.
        drop(device);
        let device = Device { number, name: name.to_owned() };
        Self::opened(mount, Some(Backing { file, device }))
    }

    /// A tmpfs with this many bytes and inodes, whose pages count as memory of the job.
    ///
    /// The root directory has mode 0755 and belongs to user and group `owner_inside` of the caller's user namespace.
    /// The mount is nosuid and nodev.
    ///
    /// # Errors
    /// The stage that failed.
    pub fn on_tmpfs(bytes: u64, inodes: u64, owner_inside: u32) -> Result<Self, StageError> {
        let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).stage(MOUNT)?;
        for (key, value) in [
            ("size", bytes.to_string()),
            ("nr_inodes", inodes.to_string()),
            ("mode", "0755".to_owned()),
            ("uid", owner_inside.to_string()),
            ("gid", owner_inside.to_string()),
        ] {
            fsconfig_set_string(&fs, key, value.as_str()).stage(MOUNT)?;
        }
        Self::opened(detached(&fs)?, None)
    }

    fn opened(mount: OwnedFd, backing: Option<Backing>) -> Result<Self, StageError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(&mount, ".", flags, Mode::empty()).stage(MOUNT)?;
        Ok(Self { mount, root, backing })
    }

    /// The detached mount, as a path descriptor.
    pub fn mount(&self) -> BorrowedFd<'_> {
        self.mount.as_fd()
    }

    /// The bytes and inodes that a job can still have; none if the kernel does not say.
    pub fn free(&self) -> Option<(u64, u64)> {
        let stat = fstatvfs(&self.root).ok()?;
        Some((stat.f_bavail.saturating_mul(stat.f_frsize), stat.f_favail))
    }

    /// Whether files in it keep extended attributes of users, as an overlay without privilege needs them of its upper
    /// layer: a tmpfs does since Linux 6.6.
    pub(crate) fn keeps_user_attributes(&self) -> bool {
        let name = "user.overlay.ampoule";
        let set = !fault::user_attributes_are_lost()
            && fsetxattr(&self.root, name, b"y", XattrFlags::CREATE).is_ok();
        set && fremovexattr(&self.root, name).is_ok()
    }

    /// Writes what is dirty to the backing file, and says whether bytes were lost on the way there or from there to
    /// the host's disk.
    ///
    /// What is still in the page cache cannot have been lost: ask after outputs were read, and what was read is what
    /// was written. The backing file is not synced, because it need not survive.
    ///
    /// # Errors
    /// That of the lost bytes, once: `EIO`, `ENOSPC`, `EDQUOT`.
    pub fn sync(&self) -> io::Result<()> {
        rustix::fs::syncfs(&self.root)?;
        self.lost()
    }

    /// Says whether bytes were lost on the way from the backing file to the host's disk, as far as that was gone already.
    ///
    /// # Errors
    /// That of the lost bytes, once: `EIO`, `ENOSPC`, `EDQUOT`.
    pub fn lost(&self) -> io::Result<()> {
        self.backing.as_ref().map_or(Ok(()), |backing| writeback::check(backing.file.as_fd()))
    }

    /// Has the backing file read and written past the host's page cache from now on; a tmpfs stays as it is.
    ///
    /// Through that cache a layer is made and discarded without waiting for the disk. But every byte that a job
    /// writes is there a second time, as memory of the host and not of the job, and is copied once more. So this is
    /// for jobs that have lived for a while. It waits for an fsync(2) of the backing file.
    ///
    /// # Errors
    /// `EINVAL` if the host's file system has no direct I/O: nothing has changed then.
    pub fn bypass_host_cache(&self) -> io::Result<()> {
        let Some(Backing { device, .. }) = &self.backing else { return Ok(()) };
        // Not opened for writing: udev(7) looks anew at a disk that was, and holds it meanwhile.
        loopdev::set_direct_io(open_device(device.number, OFlags::RDONLY)?.as_fd())
    }

    /// By what the layer is found when it was thrown away.
    pub fn remains(&self) -> Remains {
        Remains { device: self.backing.as_ref().map(|backing| backing.device.clone()) }
    }

    /// Throws the layer away. It is gone when nobody else has a mount or a descriptor of it.
    ///
    /// Whoever has, is answered `EIO` from now on if more than a few megabytes were in use: what is dirty is dropped
    /// and not written out.
    pub fn discard(self) {
        let used = fstatvfs(&self.root)
            .map_or(0, |stat| stat.f_blocks.saturating_sub(stat.f_bfree).saturating_mul(stat.f_frsize));
        if self.backing.is_some() && used > SHUTDOWN_BYTES {
            // Without it the end takes longer and is the same.
            let _ = ampoule_sys::ext4::shutdown(self.root.as_fd());
        }
    }
}

impl Remains {
    /// Whether the loop device no longer has our name: then nobody has a mount or a descriptor of the layer.
    ///
    /// A tmpfs has no name to look for and counts as gone.
    ///
    /// # Errors
    /// Why the device cannot be asked.
    pub fn is_gone(&self) -> io::Result<bool> {
        let Some(Device { number, name }) = &self.device else { return Ok(true) };
        match open_device(*number, OFlags::RDONLY) {
            Ok(device) => Ok(loopdev::name(device.as_fd())?.as_ref() != Some(name)),
            Err(Errno::NOENT) => Ok(true),
            // It is on its way out, or was removed and only its node is left.
            Err(Errno::NXIO | Errno::NODEV) => Ok(!std::fs::exists(format!("/sys/block/loop{number}"))?),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Whether no loop device has the name. It finds what the death of whoever held a [`Scratch`] leaves for a while.
///
/// # Errors
/// Why the host's devices cannot be listed or one of them cannot be asked.
pub fn none_is_named(name: &str) -> io::Result<bool> {
    for entry in std::fs::read_dir("/sys/block")? {
        let entry = entry?.file_name();
        let number = entry.to_str().and_then(|name| name.strip_prefix("loop")?.parse().ok());
        let Some(number) = number else { continue };
        let device = Device { number, name: name.to_owned() };
        if !(Remains { device: Some(device) }).is_gone()? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn now_secs() -> u32 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
}

/// An empty file that no path leads to.
fn backing_file(dir: BorrowedFd<'_>, name: &str) -> Result<File, Errno> {
    // With TMPFILE, EXCL means that it cannot be given a name later (open(2)).
    let flags = OFlags::TMPFILE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    match openat(dir, ".", flags, Mode::RUSR | Mode::WUSR) {
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => unlinked_file(dir, &format!(".scratch-{name}")),
        result => result.map(File::from),
    }
}

/// The same where the file system has no files without a name. One is left behind if the process dies in between.
fn unlinked_file(dir: BorrowedFd<'_>, name: &str) -> Result<File, Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::RDWR | OFlags::CLOEXEC;
    let file = openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?;
    unlinkat(dir, name, AtFlags::empty())?;
    Ok(file.into())
}

/// Binds the file to a free device, which is returned open: else it would let go of the file again.
fn bind(file: &File, name: &str) -> Result<(u32, OwnedFd), StageError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let again = openat(CWD, format!("/proc/self/fd/{}", file.as_raw_fd()), flags, Mode::empty())
        .stage("writable layer: open the backing file again")?;
    let control = openat(CWD, "/dev/loop-control", flags, Mode::empty()).map_err(no_devices)?;
    let mut last = Errno::BUSY;
    for _ in 0..BIND_ATTEMPTS {
        let number = loopdev::free_number(control.as_fd()).stage(DEVICE)?;
        let device = match open_device(number, OFlags::RDWR) {
            Ok(device) => device,
            // Somebody is taking it down or removing it.
            Err(errno @ (Errno::NXIO | Errno::NODEV | Errno::BUSY)) => {
                last = errno;
                continue;
            }
            Err(errno) => return Err(no_devices(errno)),
        };
        match loopdev::configure(device.as_fd(), again.as_fd(), name) {
            Ok(()) => return Ok((number, device)),
            Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => last = Errno::BUSY,
            Err(error) => return Err(error).stage(DEVICE),
        }
    }
    Err(last).stage(DEVICE)
}

fn open_device(number: u32, access: OFlags) -> Result<OwnedFd, Errno> {
    let flags = access | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    openat(CWD, format!("/dev/loop{number}"), flags, Mode::empty())
}

fn no_devices(errno: Errno) -> StageError {
    let remedy = match errno {
        Errno::NOENT | Errno::NXIO | Errno::NODEV => {
            "this host has no loop devices: load the kernel module `loop`, with devtmpfs on /dev"
        }
        Errno::ACCESS | Errno::PERM => {
            "the runner may not open loop devices: allow it /dev/loop-control and /dev/loop*, to read and write"
        }
        _ => return StageError { stage: DEVICE.into(), errno: errno.raw_os_error(), unsupported: None },
    };
    StageError::unsupported(DEVICE, remedy)
}

fn mount_ext4(number: u32) -> Result<OwnedFd, StageError> {
    let fs = match fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC) {
        Err(Errno::NODEV) => {
            let remedy = "this host has no ext4: load the kernel module `ext4`";
            return Err(StageError::unsupported(MOUNT, remedy));
        }
        result => result.stage(MOUNT)?,
    };
    fsconfig_set_string(&fs, "source", format!("/dev/loop{number}")).stage(MOUNT)?;
    for flag in EXT4_FLAGS {
        fsconfig_set_flag(&fs, flag).stage(MOUNT)?;
    }
    detached(&fs)
}

/// Has long files read before somebody waits for them. Nothing depends on it.
fn read_ahead(mount: BorrowedFd<'_>, entries: &[Entry]) {
    for Entry { path, kind, .. } in entries {
        if let Kind::File { bytes, .. } = kind
            && bytes.len() > ext4::BLOCK_BYTES as usize
            && let Ok(file) =
                openat(mount, path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        {
            let _ = fadvise(&file, 0, None, Advice::WillNeed);
        }
    }
}

fn detached(fs: &OwnedFd) -> Result<OwnedFd, StageError> {
    fsconfig_create(fs).stage(MOUNT)?;
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    fsmount(fs, FsMountFlags::FSMOUNT_CLOEXEC, flags).stage(MOUNT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ampoule_spec::Code;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn backing_file_has_no_name_either_way() {
        let folder = tempfile::tempdir().unwrap();
        let dir = File::open(folder.path()).unwrap();
        for file in [backing_file(dir.as_fd(), "job"), unlinked_file(dir.as_fd(), ".scratch-job")] {
            let file = file.unwrap();
            file.write_all_at(b"abc", 1).unwrap();
            let meta = file.metadata().unwrap();
            assert_eq!((meta.nlink(), meta.mode() & 0o7777, meta.len()), (0, 0o600, 4));
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn unlinked_file_takes_no_file_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let dir = File::open(folder.path()).unwrap();
        std::fs::write(folder.path().join("there"), "kept").unwrap();
        assert_eq!(unlinked_file(dir.as_fd(), "there").unwrap_err(), Errno::EXIST);
        assert_eq!(std::fs::read_to_string(folder.path().join("there")).unwrap(), "kept");
    }

    #[test]
    fn missing_devices_are_unsupported_with_a_remedy_and_other_errors_are_not() {
        for errno in [Errno::NOENT, Errno::NXIO, Errno::NODEV, Errno::PERM, Errno::ACCESS] {
            assert_eq!(no_devices(errno).code(), Code::SandboxUnsupported);
        }
        let error = no_devices(Errno::MFILE);
        assert_eq!((error.code(), error.errno), (Code::SandboxSetupFailed, Errno::MFILE.raw_os_error()));
    }

    #[test]
    fn limits_that_no_ext4_has_are_unsupported() {
        let dir = File::open(std::env::temp_dir()).unwrap();
        let layer = Layer { name: "job", bytes: 1 << 50, inodes: 1, owner: 0, entries: &[] };
        let error = Scratch::on_loop(dir.as_fd(), &layer).unwrap_err();
        assert_eq!(error.code(), Code::SandboxUnsupported);
        assert!(error.to_string().contains("ask for less than 16 TiB"), "{error}");
    }
}
