use super::*;
use ampoule_spec::{OutputKind, OutputName};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;

struct Place {
    root: tempfile::TempDir,
    into: tempfile::TempDir,
}

fn open(path: &std::path::Path) -> OwnedFd {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(rustix::fs::CWD, path, flags, Mode::empty()).unwrap()
}

impl Place {
    fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap(), into: tempfile::tempdir().unwrap() }
    }

    fn take(&self, path: &str, bytes_max: u64) -> Result<OutputReport, Code> {
        let output = Output {
            name: OutputName::parse("o").unwrap(),
            path: SandboxPath::parse(path).unwrap(),
            when: OutputWhen::Success,
            kind: OutputKind::Artifact,
            optional: false,
        };
        let (root, into) = (open(self.root.path()), open(self.into.path()));
        take(&output, root.as_fd(), into.as_fd(), bytes_max, &mut || None).map_err(|r| r.code)
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
    for path in ["/link", "/out", "/dirlink/passwd", "/dir", "/fifo", "/socket", "/setuid"] {
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
    let mut sink = std::fs::File::create(place.into.path().join("p")).unwrap();
    let failure = Failure { code: Code::JobCancelled, message: String::new(), step: None, teardown: None };
    let stopped = copy_hashed(source, &mut sink, 1 << 30, &mut || Some(failure.clone())).map(drop);
    assert_eq!(stopped.unwrap_err().stopped, Some(failure));
}

#[test]
fn sparse_file_above_the_limit_is_refused_before_it_is_read() {
    let place = Place::new();
    std::fs::File::create(place.path("big")).unwrap().set_len(1 << 40).unwrap();
    assert_eq!(place.take("/big", 1 << 20), Err(Code::OutputRefused));
}
