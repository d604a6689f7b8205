use super::*;
use ampoule_spec::{OutputKind, OutputName, SandboxPath};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;

struct Place {
    root: tempfile::TempDir,
    into: tempfile::TempDir,
}

fn open_dir(path: &std::path::Path) -> OwnedFd {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(rustix::fs::CWD, path, flags, Mode::empty()).unwrap()
}

impl Place {
    fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap(), into: tempfile::tempdir().unwrap() }
    }

    fn take(&self, path: &str, bytes_max: u64) -> Result<OutputReport, Code> {
        self.take_as(path, None, bytes_max).map_err(|r| r.code)
    }

    fn take_as(&self, path: &str, form: Option<OutputForm>, bytes_max: u64) -> Result<OutputReport, Refused> {
        let output = Output {
            name: OutputName::parse("o").unwrap(),
            path: SandboxPath::parse(path).unwrap(),
            when: OutputWhen::Success,
            kind: OutputKind::Artifact,
            optional: false,
            form,
        };
        let (root, into) = (open_dir(self.root.path()), open_dir(self.into.path()));
        let mut budget = Budget { bytes: bytes_max, entries: 100 };
        let packing = Packing { epoch: 1_700_000_000, compress_as: None };
        let mut stop = || None;
        let mut stop = Stop::new(&mut stop);
        take(&output, root.as_fd(), into.as_fd(), &mut budget, packing, &mut stop)
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
    let report = place.take("/d/f", 3).unwrap();
    assert_eq!(std::fs::read(place.into.path().join("o")).unwrap(), b"abc");
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
        assert_eq!(place.take(path, 1 << 20), Err(Code::OutputRefused), "{path}");
    }
    for path in ["/none", "/f/below", "/none/deep"] {
        assert_eq!(place.take(path, 1 << 20), Err(Code::OutputMissing), "{path}");
    }
    assert_eq!(std::fs::read_dir(place.into.path()).unwrap().count(), 0);
}

#[test]
fn holes_stay_holes_and_a_stop_ends_the_copy() {
    let place = Place::new();
    let file = std::fs::File::create(place.path("holes")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"x", (64 << 20) + 5).unwrap();
    let report = place.take("/holes", 1 << 30).unwrap();
    let copy = std::fs::metadata(place.into.path().join("o")).unwrap();
    assert_eq!((report.bytes, copy.len()), ((64 << 20) + 6, (64 << 20) + 6));
    assert!(std::os::unix::fs::MetadataExt::blocks(&copy) < 2048, "the copy has no holes");
    let source = std::fs::File::open(place.path("holes")).unwrap();
    let sink = std::fs::File::create(place.into.path().join("p")).unwrap();
    let failure = Failure { code: Code::JobCancelled, message: String::new(), step: None, teardown: None };
    let mut ask = || Some(failure.clone());
    let mut stop = Stop::new(&mut ask);
    let budget = Budget { bytes: 1 << 30, entries: 1 };
    let stopped = copy_hashed(source, sink, &budget, &mut stop).map(drop);
    assert_eq!(stopped.unwrap_err().stopped, Some(failure.clone()));
    // A directory is no other.
    let sink = std::fs::File::create(place.into.path().join("q")).unwrap();
    let packing = Packing { epoch: 0, compress_as: None };
    let mut stop = Stop::new(&mut ask);
    let root = open_dir(place.root.path());
    let stopped = tree::take(root.as_fd(), OutputForm::Tree, sink, packing, &budget, &mut stop).map(drop);
    assert_eq!(stopped.unwrap_err().stopped, Some(failure));
}

#[test]
fn sparse_file_above_the_limit_is_refused_before_it_is_read() {
    let place = Place::new();
    std::fs::File::create(place.path("big")).unwrap().set_len(1 << 40).unwrap();
    assert_eq!(place.take("/big", 1 << 20), Err(Code::OutputRefused));
}

#[test]
fn directory_is_packed_into_one_file_with_its_tree_digest() {
    let place = Place::new();
    std::fs::create_dir_all(place.path("dir/bin")).unwrap();
    std::fs::create_dir(place.path("dir/empty")).unwrap();
    std::fs::write(place.path("dir/bin/run"), b"#!/bin/sh\n").unwrap();
    std::fs::set_permissions(place.path("dir/bin/run"), PermissionsExt::from_mode(0o711)).unwrap();
    std::fs::write(place.path("dir/hello.txt"), b"hello\n").unwrap();
    std::os::unix::fs::symlink("hello.txt", place.path("dir/link")).unwrap();
    let report = place.take("/dir", 1 << 20).unwrap();
    // The worked example of docs/formats.md.
    let tree = "7a64730adbefcdb5c2528a46b375e3ac336520dc912ae03cd7269eae5c7797b9";
    assert_eq!(report.sha256.to_string(), tree);
    assert_eq!((report.form, report.bytes, report.entries), (OutputForm::Tree, 16, Some(5)));
    let packed = std::fs::read(place.into.path().join("o")).unwrap();
    assert_eq!(report.blake3, Blake3::new(*blake3::hash(&packed).as_bytes()));
    let names = std::fs::read_dir(place.into.path()).unwrap().count();
    assert_eq!(names, 1, "a name of the directory's is in the job directory");
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
        let refused = place.take_as(path, Some(form), 1 << 20).unwrap_err();
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
