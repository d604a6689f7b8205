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
        take(&output, root.as_fd(), into.as_fd(), bytes_max).map_err(|r| r.code)
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
fn sparse_file_above_the_limit_is_refused_before_it_is_read() {
    let place = Place::new();
    std::fs::File::create(place.path("big")).unwrap().set_len(1 << 40).unwrap();
    assert_eq!(place.take("/big", 1 << 20), Err(Code::OutputRefused));
}
