//! The writable layer on a real kernel: needs root, loop devices and e2fsck(8).
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use ampoule_sandbox::ext4::{Contents, Layout};
use ampoule_sandbox::scratch::{Layer, Remains, Scratch, none_is_named};
use ampoule_sandbox::skeleton::{Entry, Kind};
use ampoule_sys::loopdev;
use rustix::fs::{Mode, OFlags, StatVfsMountFlags, fstatvfs};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// A user that owns nothing else on the host.
const OWNER: u32 = 1_879_114_728;

/// A name that nothing else has.
fn name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("ampoule-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

fn layer(name: &str, bytes: u64, inodes: u64) -> Layer<'_> {
    Layer { name, bytes, inodes, owner: OWNER, entries: &[] }
}

fn on_loop(bytes: u64, inodes: u64) -> Scratch {
    let folder = tempfile::tempdir().unwrap();
    let dir = File::open(folder.path()).unwrap();
    let scratch = Scratch::on_loop(dir.as_fd(), &layer(&name(), bytes, inodes)).unwrap();
    // The file has no name: its folder can be removed.
    folder.close().unwrap();
    scratch
}

/// Where a descriptor can be reached by this process.
fn path(fd: BorrowedFd<'_>) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

/// A shell command, run by a user in the root directory.
fn run_as(user: u32, scratch: &Scratch, command: &str) -> String {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("exec 2>&1; {command}")]).env("LC_ALL", "C");
    let output = shell.current_dir(path(scratch.mount())).uid(user).gid(user).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// The loop devices of a name.
fn devices(named: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir("/sys/block").unwrap().map(|entry| entry.unwrap().file_name());
    let loops = entries.filter(|entry| entry.to_str().is_some_and(|entry| entry.starts_with("loop")));
    loops
        .map(|entry| PathBuf::from("/dev").join(entry))
        .filter(|node| {
            // One that is on its way out cannot be opened.
            File::open(node).is_ok_and(|d| loopdev::name(d.as_fd()).unwrap().as_deref() == Some(named))
        })
        .collect()
}

/// The kernel lets go of a device when it has time.
fn soon(what: impl Fn() -> bool) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(10) {
        if what() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

/// Throws a layer away, and says by what it is found.
fn discard(scratch: Scratch) -> Remains {
    let remains = scratch.remains();
    scratch.discard();
    remains
}

fn is_gone_soon(remains: &Remains) -> bool {
    soon(|| remains.is_gone().unwrap())
}

fn write(scratch: &Scratch, file: &str, bytes: u64) -> io::Result<()> {
    let block = vec![0x5a; MIB as usize];
    let mut file = File::create(path(scratch.mount()).join(file))?;
    (0..bytes / MIB).try_for_each(|_| file.write_all(&block))
}

#[test]
fn free_is_what_was_asked_for() {
    for (bytes, inodes) in [
        (MIB, 200),
        (MIB, 1_000_000),
        (MIB + 1, 32_768),
        (100 * MIB, 5_000),
        (GIB, 200),
        (GIB, 1_000_000),
        (4 * GIB, 1_000_000),
        (300 * GIB, 20_000_000),
        (1024 * GIB, 100_000_000),
    ] {
        let scratch = on_loop(bytes, inodes);
        let (bytes_free, inodes_free) = scratch.free().unwrap();
        let layout = Layout::for_limits(bytes, inodes, &Contents::of(&[]).unwrap()).unwrap();
        assert_eq!(bytes_free, bytes.next_multiple_of(4096), "{bytes} {inodes}");
        assert_eq!((bytes_free / 4096, inodes_free), (layout.blocks_available(), layout.inodes_available()));
        assert!((inodes..inodes + inodes / 100 + 16 * 32).contains(&inodes_free), "{inodes} {inodes_free}");
        assert!(is_gone_soon(&discard(scratch)), "{bytes} {inodes}");
    }
}

#[test]
fn root_directory_belongs_to_its_owner_and_nothing_else_is_in_it() {
    let before = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64;
    let scratch = on_loop(MIB, 200);
    let meta = fs::metadata(path(scratch.mount())).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode()), (OWNER, OWNER, 0o040_755));
    assert!((before..before + 60).contains(&meta.mtime()), "{} {before}", meta.mtime());
    let names: Vec<_> =
        fs::read_dir(path(scratch.mount())).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["lost+found"]);
    assert!(run_as(OWNER, &scratch, "ls lost+found").contains("Permission denied"));
    let flags = fstatvfs(scratch.mount()).unwrap().f_flag;
    assert!(flags.contains(StatVfsMountFlags::NOSUID | StatVfsMountFlags::NODEV), "{flags:?}");
    assert!(is_gone_soon(&discard(scratch)));
}

#[test]
fn bytes_end_with_enospc_where_they_should() {
    // Root as well: an overlay writes with the ids of who mounted it.
    for (bytes, inodes, user) in [
        (MIB, 200, OWNER),
        (MIB, 1_000_000, 0),
        (100 * MIB, 20_000, OWNER),
        (100 * MIB, 20_000, 0),
        (400 * MIB, 200, OWNER),
    ] {
        let scratch = on_loop(bytes, inodes);
        let said = run_as(user, &scratch, "dd if=/dev/zero of=big bs=64k; stat -c 'size %s' big");
        assert!(said.contains("No space left on device"), "{said}");
        let size: u64 = said.rsplit_once("size ").unwrap().1.trim().parse().unwrap();
        // The map of the file takes a few blocks.
        assert!((bytes - 128 * 1024..=bytes).contains(&size), "{size} of {bytes} as {user}");
        scratch.sync().unwrap();
        assert!(is_gone_soon(&discard(scratch)));
    }
}

#[test]
fn inodes_end_with_enospc_where_they_should() {
    for (bytes, inodes) in [(MIB, 200), (16 * MIB, 5_000)] {
        let scratch = on_loop(bytes, inodes);
        let (_, free) = scratch.free().unwrap();
        let said = run_as(OWNER, &scratch, "i=0; while true > f$i; do i=$((i+1)); done; echo made $i");
        assert!(said.contains("No space left on device"), "{said}");
        assert!(said.contains(&format!("made {free}\n")), "{said} of {free}");
        assert_eq!(scratch.free().unwrap().1, 0);
        assert!(is_gone_soon(&discard(scratch)));
    }
}

#[test]
fn entries_are_there_for_the_kernel_as_the_list_says() {
    let mut entries = vec![
        Entry::directory("d", 0o1777, 1000),
        Entry::directory("d/deep", 0o700, 0),
        Entry::link("d/short", b"deep".as_slice()),
        Entry::link("d/long", vec![b'x'; 4_000]),
        Entry { path: "d/null".to_owned(), id: 0, kind: Kind::Device { mode: 0o666, major: 1, minor: 3 } },
    ];
    for bytes in [0, 1, 4_096, 100_000] {
        entries.push(Entry::file(format!("d/deep/{bytes}"), vec![b'a'; bytes]));
    }
    let dir = File::open(std::env::temp_dir()).unwrap();
    let name = name();
    let scratch =
        Scratch::on_loop(dir.as_fd(), &Layer { entries: &entries, ..layer(&name, 16 * MIB, 500) }).unwrap();
    let none = on_loop(16 * MIB, 500);
    let least =
        |scratch: &Scratch| scratch.free().is_some_and(|(b, i)| b == 16 * MIB && (500..=520).contains(&i));
    assert!(least(&scratch) && least(&none), "{:?} {:?}", scratch.free(), none.free());
    for Entry { path: name, id, kind } in &entries {
        let at = path(scratch.mount()).join(name);
        let meta = fs::symlink_metadata(&at).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (OWNER + id, OWNER + id), "{name}");
        match kind {
            Kind::Directory { mode } => assert_eq!(meta.mode(), 0o040_000 | u32::from(*mode), "{name}"),
            Kind::File { mode, bytes } => {
                assert_eq!(meta.mode(), 0o100_000 | u32::from(*mode), "{name}");
                assert_eq!(fs::read(&at).unwrap(), bytes.as_ref(), "{name}");
            }
            Kind::Device { mode, major, minor } => {
                assert_eq!(meta.mode(), 0o020_000 | u32::from(*mode), "{name}");
                assert_eq!(meta.rdev(), rustix::fs::makedev((*major).into(), (*minor).into()), "{name}");
                assert_eq!(meta.size(), 0);
                // The mount is nodev.
                assert_eq!(File::open(&at).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
            }
            Kind::Link { target } => {
                assert_eq!(fs::read_link(&at).unwrap().as_os_str().as_encoded_bytes(), target.as_ref());
            }
        }
    }
    // They are ordinary files: grown, moved and removed like any other.
    let said = run_as(
        OWNER,
        &scratch,
        "head -c 300000 /dev/zero >> d/deep/1 && mv d/deep/100000 d/moved && rm d/deep/0 d/deep/4096 d/long d/null &&
         mkdir d/deep/new && ls d d/deep",
    );
    assert_eq!(said, "d:\ndeep\nmoved\nshort\n\nd/deep:\n1\nnew\n");
    satisfies_e2fsck(scratch, &name);
}

/// Our descriptor keeps the device when the file system is unmounted, which is not discarded here. A child of another
/// test may have the mount until it executes its program: the device is then still taken.
fn satisfies_e2fsck(scratch: Scratch, name: &str) {
    let device = devices(name).pop().unwrap();
    let held = File::open(&device).unwrap();
    drop(scratch);
    let alone = |node| rustix::fs::open(node, OFlags::EXCL | OFlags::CLOEXEC, Mode::empty()).is_ok();
    assert!(soon(|| alone(&device)));
    let checked = Command::new("e2fsck").arg("-fn").arg(&device).env("LC_ALL", "C").output().unwrap();
    let report = String::from_utf8(checked.stdout).unwrap();
    assert!(checked.status.success(), "{report}");
    assert!(report.lines().all(|l| l.starts_with("Pass ") || l.contains(" files (")), "{report}");
    drop(held);
    assert!(soon(|| devices(name).is_empty()));
}

#[test]
fn file_system_that_was_used_satisfies_e2fsck() {
    // The first is full of inodes in many small groups, the others reach groups without bitmaps of their own.
    for (bytes, inodes) in [(64 * MIB, 200_000), (300 * MIB, 20_000), (2 * GIB, 100_000)] {
        let folder = tempfile::tempdir().unwrap();
        let (dir, name) = (File::open(folder.path()).unwrap(), name());
        let scratch = Scratch::on_loop(dir.as_fd(), &layer(&name, bytes, inodes)).unwrap();
        let said = run_as(
            OWNER,
            &scratch,
            "for d in $(seq 60); do mkdir -p $d/a/b; for f in $(seq 40); do echo $f > $d/a/b/$f; done; done
             head -c 30000000 /dev/zero > big; rm -r 7 9; ln -s big link; ln big hard; mkfifo fifo
             for f in $(seq 3000); do : > long-name-so-that-the-directory-gets-an-index-$f; done
             dd if=/dev/zero of=hole bs=1 count=1 seek=5000000000",
        );
        assert!(!said.contains("No space"), "{said}");
        satisfies_e2fsck(scratch, &name);
    }
}

#[test]
fn layers_side_by_side_are_apart_and_have_names() {
    let folder = tempfile::tempdir().unwrap();
    let dir = File::open(folder.path()).unwrap();
    let names = [name(), name()];
    let [one, two] =
        [0, 1].map(|at| Scratch::on_loop(dir.as_fd(), &layer(&names[at], 8 * MIB, 200)).unwrap());
    let found: Vec<_> = names.iter().map(|name| devices(name)).collect();
    assert!(found.iter().all(|nodes| nodes.len() == 1) && found[0] != found[1], "{found:?}");
    write(&one, "only-here", MIB).unwrap();
    assert!(!path(two.mount()).join("only-here").exists());
    assert_eq!(two.free().unwrap().0, 8 * MIB);
    assert!(is_gone_soon(&discard(one)));
    assert_eq!((devices(&names[0]).len(), devices(&names[1]).len()), (0, 1));
    assert_eq!((none_is_named(&names[0]).unwrap(), none_is_named(&names[1]).unwrap()), (true, false));
    write(&two, "still", MIB).unwrap();
    assert!(is_gone_soon(&discard(two)));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn layers_made_at_once_get_a_device_each() {
    let made: Vec<Scratch> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..12).map(|_| scope.spawn(|| on_loop(MIB, 200))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let file_systems: BTreeSet<u64> =
        made.iter().map(|s| fs::metadata(path(s.mount())).unwrap().dev()).collect();
    assert_eq!(file_systems.len(), 12);
    for scratch in made {
        assert!(is_gone_soon(&discard(scratch)));
    }
}

#[test]
fn remains_are_there_while_somebody_has_a_descriptor() {
    let scratch = on_loop(8 * MIB, 200);
    let file = File::create(path(scratch.mount()).join("held")).unwrap();
    let remains = discard(scratch);
    assert!(!remains.is_gone().unwrap());
    // Little was in use, so it has not been shut down.
    (&file).write_all(b"still").unwrap();
    drop(file);
    assert!(is_gone_soon(&remains));
}

#[test]
fn remains_are_there_while_a_process_has_the_mount_and_go_with_it() {
    let scratch = on_loop(8 * MIB, 200);
    let mount: OwnedFd = scratch.mount().try_clone_to_owned().unwrap();
    let mut holder = Command::new("sleep").arg("60").stdin(Stdio::from(mount)).spawn().unwrap();
    let remains = discard(scratch);
    let while_it_lives = remains.is_gone().unwrap();
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert!(!while_it_lives);
    assert!(is_gone_soon(&remains));
}

#[test]
fn discard_of_a_layer_in_use_drops_what_is_dirty() {
    let scratch = on_loop(GIB, 200);
    write(&scratch, "big", 200 * MIB).unwrap();
    let mut file = File::create(path(scratch.mount()).join("held")).unwrap();
    file.write_all(b"before").unwrap();
    let remains = discard(scratch);
    assert_eq!(file.write_all(b"after").unwrap_err().raw_os_error(), Some(5), "EIO");
    assert!(!remains.is_gone().unwrap());
    drop(file);
    assert!(is_gone_soon(&remains));
}

#[test]
fn host_without_room_is_an_error_of_sync() {
    let host = Scratch::on_tmpfs(16 * MIB, 100, 0).unwrap();
    let scratch = Scratch::on_loop(host.mount(), &layer(&name(), GIB, 200)).unwrap();
    write(&scratch, "fits", 4 * MIB).unwrap();
    scratch.sync().unwrap();
    write(&scratch, "lost", 60 * MIB).unwrap();
    scratch.sync().unwrap_err();
    assert!(is_gone_soon(&discard(scratch)));
}

#[test]
fn host_that_loses_bytes_later_is_an_error_of_sync() {
    // The host's file system has room by its own account; its disk has not.
    let disk = Scratch::on_tmpfs(16 * MIB, 100, 0).unwrap();
    let host = Scratch::on_loop(disk.mount(), &Layer { owner: 0, ..layer(&name(), GIB, 200) }).unwrap();
    let scratch = Scratch::on_loop(host.mount(), &layer(&name(), 512 * MIB, 200)).unwrap();
    write(&scratch, "fits", 4 * MIB).unwrap();
    scratch.sync().unwrap();
    host.sync().unwrap();
    scratch.sync().unwrap();
    write(&scratch, "lost", 60 * MIB).unwrap();
    scratch.sync().unwrap();
    host.sync().unwrap_err();
    scratch.sync().unwrap_err();
    assert!(is_gone_soon(&discard(scratch)) && is_gone_soon(&discard(host)));
}

#[test]
fn bypass_reads_back_what_was_written_before_and_after() {
    let (folder, name) = (tempfile::tempdir().unwrap(), name());
    let dir = File::open(folder.path()).unwrap();
    let scratch = Scratch::on_loop(dir.as_fd(), &layer(&name, 64 * MIB, 200)).unwrap();
    let device = devices(&name).pop().unwrap();
    let direct = || {
        let attribute = PathBuf::from("/sys/block").join(device.file_name().unwrap()).join("loop/dio");
        fs::read_to_string(attribute).unwrap().trim().to_owned()
    };
    write(&scratch, "before", 8 * MIB).unwrap();
    assert_eq!(direct(), "0");
    scratch.bypass_host_cache().unwrap();
    assert_eq!(direct(), "1");
    write(&scratch, "after", 8 * MIB).unwrap();
    scratch.sync().unwrap();
    // Both are read from the disk again.
    for file in ["before", "after"] {
        let path = path(scratch.mount()).join(file);
        let opened = File::open(&path).unwrap();
        rustix::fs::fadvise(&opened, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        assert!(fs::read(&path).unwrap() == vec![0x5a; 8 << 20], "{file}");
    }
    assert!(is_gone_soon(&discard(scratch)));
}

#[test]
fn bypass_hides_nothing_that_was_lost() {
    let disk = Scratch::on_tmpfs(16 * MIB, 100, 0).unwrap();
    let host = Scratch::on_loop(disk.mount(), &Layer { owner: 0, ..layer(&name(), GIB, 200) }).unwrap();
    let scratch = Scratch::on_loop(host.mount(), &layer(&name(), 512 * MIB, 200)).unwrap();
    write(&scratch, "lost", 60 * MIB).unwrap();
    scratch.sync().unwrap();
    // It syncs the backing file, and the kernel drops the answer.
    scratch.bypass_host_cache().unwrap();
    scratch.sync().unwrap_err();
    assert!(is_gone_soon(&discard(scratch)) && is_gone_soon(&discard(host)));
}

#[test]
fn tmpfs_has_its_limits_and_leaves_nothing_to_look_for() {
    let scratch = Scratch::on_tmpfs(8 * MIB, 300, OWNER).unwrap();
    let (bytes, inodes) = scratch.free().unwrap();
    assert_eq!((bytes, inodes), (8 * MIB, 299));
    let meta = fs::metadata(path(scratch.mount())).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode()), (OWNER, OWNER, 0o040_755));
    let said = run_as(OWNER, &scratch, "dd if=/dev/zero of=big bs=64k; stat -c 'size %s' big");
    assert!(said.contains("No space left") && said.contains(&format!("size {}", 8 * MIB)), "{said}");
    scratch.sync().unwrap();
    scratch.bypass_host_cache().unwrap();
    assert!(discard(scratch).is_gone().unwrap());
}
