use super::*;
use ampoule_spec::{OutputKind, OutputName, SandboxPath};
use ampoule_store::Owner;
use rustix::fs::openat;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;

struct Place {
    root: tempfile::TempDir,
    into: tempfile::TempDir,
    store: Store,
}

/// What was taken, with the names in the object that it became.
struct Out {
    report: OutputReport,
    dir: std::path::PathBuf,
}

fn open_dir(path: &std::path::Path) -> OwnedFd {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(rustix::fs::CWD, path, flags, Mode::empty()).unwrap()
}

impl Place {
    fn new() -> Self {
        let into = tempfile::tempdir().unwrap();
        std::fs::set_permissions(into.path(), PermissionsExt::from_mode(0o700)).unwrap();
        let store =
            Store::open(&open_dir(into.path()), Owner::Own, ampoule_store::Limits::default()).unwrap();
        Self { root: tempfile::tempdir().unwrap(), into, store }
    }

    fn take(&self, path: &str, bytes_max: u64) -> Result<Out, Code> {
        self.take_as(path, None, bytes_max).map_err(|r| r.code)
    }

    /// How much is in a directory of the store's.
    fn count(&self, part: &str) -> usize {
        std::fs::read_dir(self.into.path().join(part)).unwrap().count()
    }

    fn take_as(&self, path: &str, form: Option<OutputForm>, bytes_max: u64) -> Result<Out, Refused> {
        let output = Output {
            name: OutputName::parse("o").unwrap(),
            path: SandboxPath::parse(path).unwrap(),
            when: OutputWhen::Success,
            kind: OutputKind::Artifact,
            optional: false,
            form,
        };
        let root = open_dir(self.root.path());
        let mut budget = Budget { bytes: bytes_max, entries: 100 };
        let packing = Packing { epoch: 1_700_000_000, compress_as: None, search: None };
        let mut stop = || None;
        let stop = Stop::new(&mut stop, None);
        let taken = take(&output, root.as_fd(), &self.store, &mut budget, packing, &stop);
        let (report, object) = match taken {
            Ok(taken) => taken,
            Err(refused) => {
                assert_eq!((self.count("staging"), self.count("trees")), (0, 0), "something is left");
                return Err(refused);
            }
        };
        assert_eq!((self.count("trees"), self.count("index")), (0, 0), "it has a name before its time");
        let taken = Taken { reports: vec![report.clone()], objects: vec![(output.name, object)] };
        let leases = taken.publish(&self.store, std::slice::from_ref(&report)).unwrap();
        assert_eq!(leases.len(), 1);
        let dir = self.into.path().join(format!("trees/{}/tree", report.blake3));
        Ok(Out { report, dir })
    }

    /// What is taken and not published.
    fn take_again(&self, path: &str) -> Taken {
        let output = Output {
            name: OutputName::parse("o").unwrap(),
            path: SandboxPath::parse(path).unwrap(),
            when: OutputWhen::Success,
            kind: OutputKind::Artifact,
            optional: false,
            form: None,
        };
        let mut ask = || None;
        let stop = Stop::new(&mut ask, None);
        let packing = Packing { epoch: 1_700_000_000, compress_as: None, search: None };
        let mut budget = Budget { bytes: 1 << 20, entries: 100 };
        let root = open_dir(self.root.path());
        let taken = take(&output, root.as_fd(), &self.store, &mut budget, packing, &stop).unwrap();
        Taken { reports: vec![taken.0], objects: vec![(output.name, taken.1)] }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.root.path().join(name)
    }
}

#[test]
fn plain_file_is_copied_and_hashed() {
    let place = Place::new();
    std::fs::create_dir(place.path("d")).unwrap();
    std::fs::write(place.path("d/f"), b"abc").unwrap();
    let Out { report, dir } = place.take("/d/f", 3).unwrap();
    assert_eq!(std::fs::read(dir.join("content")).unwrap(), b"abc");
    // FIPS 180-2, appendix B.1.
    let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!((report.bytes, report.sha256.to_string().as_str()), (3, sha256));
}

#[test]
fn everything_that_is_not_a_plain_file_is_refused_by_name() {
    let place = Place::new();
    std::fs::write(place.path("f"), b"abc").unwrap();
    std::os::unix::fs::symlink("f", place.path("link")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", place.path("out")).unwrap();
    std::os::unix::fs::symlink("/etc", place.path("dirlink")).unwrap();
    std::fs::create_dir(place.path("dir")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, place.path("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(place.path("socket")).unwrap();
    std::fs::write(place.path("setuid"), b"x").unwrap();
    std::fs::set_permissions(place.path("setuid"), PermissionsExt::from_mode(0o4755)).unwrap();
    for path in ["/link", "/out", "/dirlink/passwd", "/fifo", "/socket", "/setuid"] {
        assert_eq!(place.take(path, 1 << 20).map(drop), Err(Code::OutputRefused), "{path}");
    }
    for path in ["/none", "/f/below", "/none/deep"] {
        assert_eq!(place.take(path, 1 << 20).map(drop), Err(Code::OutputMissing), "{path}");
    }
}

#[test]
fn holes_stay_holes_and_a_stop_ends_the_copy() {
    let place = Place::new();
    let file = std::fs::File::create(place.path("holes")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"x", (64 << 20) + 5).unwrap();
    let Out { report, dir } = place.take("/holes", 1 << 30).unwrap();
    let copy = std::fs::metadata(dir.join("content")).unwrap();
    assert_eq!((report.bytes, copy.len()), ((64 << 20) + 6, (64 << 20) + 6));
    assert!(std::os::unix::fs::MetadataExt::blocks(&copy) < 2048, "the copy has no holes");
    let source = std::fs::File::open(place.path("holes")).unwrap();
    let leaving = place.store.begin_output().unwrap();
    let sink = leaving.file().unwrap();
    let failure = Failure::new(Code::JobCancelled, "");
    let mut ask = || Some(failure.clone());
    let stop = Stop::new(&mut ask, None);
    let budget = Budget { bytes: 1 << 30, entries: 1 };
    let packing = Packing { epoch: 0, compress_as: None, search: None };
    let stopped = copy_hashed(source, sink, &budget, packing, &stop).map(drop);
    assert_eq!(stopped.unwrap_err().stopped, Some(failure.clone()));
    // A directory is no other.
    let stop = Stop::new(&mut ask, None);
    let root = open_dir(place.root.path());
    let leaving = place.store.begin_output().unwrap();
    let stopped = tree::copy(root.as_fd(), &leaving, packing, &budget, &stop).map(drop);
    assert_eq!(stopped.unwrap_err().stopped, Some(failure));
}

#[test]
fn length_of_a_file_says_how_far_it_is() {
    let place = Place::new();
    std::fs::write(place.path("big"), vec![1; 3 << 20]).unwrap();
    let length = std::fs::File::create(place.into.path().join("length")).unwrap();
    let source = std::fs::File::open(place.path("big")).unwrap();
    let leaving = place.store.begin_output().unwrap();
    let mut ask = || None;
    let stop = Stop::new(&mut ask, Some(&length));
    let budget = Budget { bytes: 1 << 30, entries: 1 };
    let packing = Packing { epoch: 0, compress_as: None, search: None };
    let sunk = copy_hashed(source, leaving.file().unwrap(), &budget, packing, &stop).unwrap();
    assert_eq!((sunk.bytes, length.metadata().unwrap().len()), (3 << 20, 3 << 20));
}

#[test]
fn sparse_file_above_the_limit_is_refused_before_it_is_read() {
    let place = Place::new();
    std::fs::File::create(place.path("big")).unwrap().set_len(1 << 40).unwrap();
    assert_eq!(place.take("/big", 1 << 20).map(drop), Err(Code::OutputRefused));
}

#[test]
fn directory_becomes_an_object_with_its_tree_digest() {
    let place = Place::new();
    std::fs::create_dir_all(place.path("dir/bin")).unwrap();
    std::fs::create_dir(place.path("dir/empty")).unwrap();
    std::fs::write(place.path("dir/bin/run"), b"#!/bin/sh\n").unwrap();
    std::fs::set_permissions(place.path("dir/bin/run"), PermissionsExt::from_mode(0o711)).unwrap();
    std::fs::write(place.path("dir/hello.txt"), b"hello\n").unwrap();
    std::os::unix::fs::symlink("hello.txt", place.path("dir/link")).unwrap();
    let Out { report, dir } = place.take("/dir", 1 << 20).unwrap();
    // The worked example of docs/formats.md.
    let tree = "7a64730adbefcdb5c2528a46b375e3ac336520dc912ae03cd7269eae5c7797b9";
    assert_eq!(report.sha256.to_string(), tree);
    assert_eq!((report.form, report.bytes, report.entries), (OutputForm::Tree, 16, Some(5)));
    assert_eq!(std::fs::read(dir.join("bin/run")).unwrap(), b"#!/bin/sh\n");
    assert_eq!(std::fs::metadata(dir.join("bin/run")).unwrap().permissions().mode() & 0o7777, 0o755);
    assert_eq!(std::fs::read_link(dir.join("link")).unwrap(), std::path::Path::new("hello.txt"));
    let content = Content::Directory { tree: Some(report.sha256), epoch: 1_700_000_000 };
    assert!(place.store.verify(&content).unwrap());
    // With other times it is the same to whoever only reads it.
    let other = Content::Directory { tree: Some(report.sha256), epoch: 7 };
    assert_eq!(place.store.like(&other).unwrap(), Some(content));
    assert_eq!(place.store.find(&other).unwrap(), None);
}

#[test]
fn what_is_not_listed_any_more_gets_no_name_and_the_same_bytes_are_one_object() {
    let place = Place::new();
    std::fs::write(place.path("f"), b"abc").unwrap();
    let first = place.take("/f", 1 << 20).unwrap();
    let objects = place.count("trees");
    let again = place.take_again("/f");
    assert_eq!(first.report.blake3, again.reports[0].blake3);
    let leases = again.publish(&place.store, &[]).unwrap();
    assert!(leases.is_empty());
    let again = place.take_again("/f");
    let listed = again.reports.clone();
    assert_eq!(again.publish(&place.store, &listed).unwrap().len(), 1);
    assert_eq!((place.count("trees"), place.count("staging")), (objects, 0));
}

#[test]
fn form_that_was_asked_for_is_demanded() {
    let place = Place::new();
    std::fs::write(place.path("f"), b"abc").unwrap();
    std::fs::create_dir(place.path("dir")).unwrap();
    for (path, form, says) in [
        ("/f", OutputForm::Tree, "it is a file"),
        ("/f", OutputForm::TarZst, "it is a file"),
        ("/dir", OutputForm::File, "it is a directory"),
    ] {
        let refused = place.take_as(path, Some(form), 1 << 20).map(drop).unwrap_err();
        assert_eq!(refused.code, Code::OutputRefused);
        assert!(refused.reason.contains(says), "{}", refused.reason);
    }
    assert!(place.take_as("/f", Some(OutputForm::File), 1 << 20).is_ok());
}

#[test]
fn hostile_directory_is_refused_by_name() {
    type Make = fn(&std::path::Path);
    let cases: [(&str, Make, &str); 7] = [
        ("link", |d| std::os::unix::fs::symlink("/etc/shadow", d.join("l")).unwrap(), "absolute"),
        ("link up", |d| std::os::unix::fs::symlink("../f", d.join("l")).unwrap(), "leads out"),
        (
            "set-id",
            |d| {
                std::fs::write(d.join("s"), b"x").unwrap();
                std::fs::set_permissions(d.join("s"), PermissionsExt::from_mode(0o4755)).unwrap();
            },
            "set-user-id",
        ),
        (
            "fifo",
            |d| {
                rustix::fs::mknodat(rustix::fs::CWD, d.join("p"), FileType::Fifo, Mode::RUSR, 0).unwrap();
            },
            "p in it is a FIFO",
        ),
        (
            "socket",
            |d| drop(std::os::unix::net::UnixListener::bind(d.join("s")).unwrap()),
            "s in it is a socket",
        ),
        ("bytes", |d| std::fs::File::create(d.join("big")).unwrap().set_len(1 << 40).unwrap(), "limits.disk"),
        (
            "entries",
            |d| (0..101).for_each(|n| std::fs::write(d.join(n.to_string()), b"").unwrap()),
            "limits.inodes",
        ),
    ];
    for (what, make, says) in cases {
        let place = Place::new();
        std::fs::write(place.path("f"), b"outside").unwrap();
        std::fs::create_dir(place.path("dir")).unwrap();
        make(&place.path("dir"));
        let refused = place.take_as("/dir", None, 1 << 20).map(drop).unwrap_err();
        assert_eq!(refused.code, Code::OutputRefused, "{what}: {}", refused.reason);
        assert!(refused.reason.contains(says), "{what}: {}", refused.reason);
    }
}
