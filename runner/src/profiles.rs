//! Profiles by name: those built in, or those of a directory that only its owner can write to.

use ampoule_spec::{Code, Name, Profile, Sha256};
use rustix::fs::{Mode, OFlags, openat};
use sha2::{Digest, Sha256 as Hasher};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// The most bytes of a compiled profile.
const PROFILE_BYTES_MAX: u64 = 4 << 20;

/// The profiles that come with the runner, compiled from `sandbox-profiles/` by `cargo xtask profiles`.
const BUILT_IN: [(&str, &[u8]); 3] = [
    ("dev", include_bytes!("../../sandbox-profiles/compiled/dev.json")),
    ("fetch", include_bytes!("../../sandbox-profiles/compiled/fetch.json")),
    ("hermetic", include_bytes!("../../sandbox-profiles/compiled/hermetic.json")),
];

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProfileError {
    #[error("profile {0} is not known; there are {1}")]
    Unknown(Name, String),
    #[error("the profile directory or file {0} can be written by somebody other than its owner")]
    Writable(String),
    #[error("profile {0} cannot be read")]
    Unreadable(Name, #[source] std::io::Error),
    #[error("profile {0} is malformed")]
    Malformed(Name, #[source] serde_json::Error),
    #[error("profile {0} names itself {1} or has another format version")]
    Mislabelled(Name, Name),
    #[error("profile {0} is weaker than a profile may be: {1}")]
    Weak(Name, String),
}

impl ProfileError {
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Unknown(..) => Code::JobInvalid,
            _ => Code::SandboxUnsupported,
        }
    }
}

/// A profile and the digest of the bytes that it was read from.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) profile: Profile,
    pub(crate) sha256: Sha256,
}

/// Profiles by name. What was read once is not parsed again while its bytes are the same.
#[derive(Debug)]
pub(crate) struct Profiles {
    directory: Option<PathBuf>,
    known: BTreeMap<Name, Rc<Loaded>>,
}

impl Profiles {
    pub(crate) fn new(directory: Option<PathBuf>) -> Self {
        Self { directory, known: BTreeMap::new() }
    }

    /// Reads a profile by name.
    pub(crate) fn load(&mut self, name: &Name) -> Result<Rc<Loaded>, ProfileError> {
        let bytes = bytes_of(name, self.directory.as_deref())?;
        let sha256 = Sha256::new(Hasher::digest(&bytes).into());
        if let Some(known) = self.known.get(name).filter(|known| known.sha256 == sha256) {
            return Ok(known.clone());
        }
        let loaded = Rc::new(Loaded { profile: parse(name, &bytes)?, sha256 });
        self.known.insert(name.clone(), loaded.clone());
        Ok(loaded)
    }
}

fn bytes_of(name: &Name, directory: Option<&Path>) -> Result<Vec<u8>, ProfileError> {
    match directory {
        Some(directory) => from_directory(name, directory),
        None => BUILT_IN
            .iter()
            .find(|(known, _)| *known == name.as_str())
            .map(|(_, bytes)| bytes.to_vec())
            .ok_or_else(|| ProfileError::Unknown(name.clone(), "dev, fetch and hermetic".to_owned())),
    }
}

fn parse(name: &Name, bytes: &[u8]) -> Result<Profile, ProfileError> {
    let profile: Profile =
        serde_json::from_slice(bytes).map_err(|e| ProfileError::Malformed(name.clone(), e))?;
    if profile.name != *name || profile.ampoule != ampoule_spec::FORMAT {
        return Err(ProfileError::Mislabelled(name.clone(), profile.name));
    }
    match profile.weaknesses().first() {
        Some(weakness) if !ampoule_sandbox::fault::weak_profiles_are_allowed() => {
            Err(ProfileError::Weak(name.clone(), weakness.clone()))
        }
        _ => Ok(profile),
    }
}

fn from_directory(name: &Name, directory: &Path) -> Result<Vec<u8>, ProfileError> {
    let unreadable = |e: std::io::Error| ProfileError::Unreadable(name.clone(), e);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = openat(rustix::fs::CWD, directory, flags, Mode::empty()).map_err(|e| unreadable(e.into()))?;
    check_owner(&dir, &directory.display().to_string())?;
    // A checked name has no separator in it.
    let file = format!("{name}.json");
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let opened = match openat(&dir, &file, flags, Mode::empty()) {
        Ok(opened) => opened,
        Err(rustix::io::Errno::NOENT) => {
            let there = format!("those of {}", directory.display());
            return Err(ProfileError::Unknown(name.clone(), there));
        }
        Err(errno) => return Err(unreadable(errno.into())),
    };
    check_owner(&opened, &file)?;
    let mut bytes = Vec::new();
    File::from(opened).take(PROFILE_BYTES_MAX).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}

/// Policy that others can write is nobody's policy.
fn check_owner(file: &OwnedFd, shown: &str) -> Result<(), ProfileError> {
    let writable = ProfileError::Writable(shown.to_owned());
    let Ok(stat) = rustix::fs::fstat(file) else { return Err(writable) };
    let mine = stat.st_uid == 0 || stat.st_uid == rustix::process::geteuid().as_raw();
    if mine && stat.st_mode & 0o022 == 0 { Ok(()) } else { Err(writable) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ampoule_spec::Network;
    use std::os::unix::fs::PermissionsExt;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    fn load(name: &Name, directory: Option<&Path>) -> Result<Rc<Loaded>, ProfileError> {
        Profiles::new(directory.map(Path::to_path_buf)).load(name)
    }

    #[test]
    fn built_in_profiles_load_and_others_are_refused() {
        for (known, _) in BUILT_IN {
            let network = load(&name(known), None).unwrap().profile.network;
            assert_eq!(network == Network::Proxy, known == "fetch", "{known}");
        }
        assert!(matches!(load(&name("open"), None), Err(ProfileError::Unknown(..))));
    }

    #[test]
    fn profile_below_the_floor_is_refused_whatever_it_is_that_it_lacks() {
        let (_, hermetic) = BUILT_IN.into_iter().find(|(name, _)| *name == "hermetic").unwrap();
        let hermetic: serde_json::Value = serde_json::from_slice(hermetic).unwrap();
        let weakened = |pointer: &str, value: &str| {
            let mut profile = hermetic.clone();
            *profile.pointer_mut(pointer).unwrap() = serde_json::from_str(value).unwrap();
            parse(&name("hermetic"), profile.to_string().as_bytes())
        };
        weakened("/no_new_privs", "true").unwrap();
        for (pointer, value, what) in [
            ("/namespaces", r#"["cgroup","ipc","mnt","pid","steps","user","uts"]"#, "net"),
            ("/namespaces", r#"["cgroup","ipc","mnt","net","pid","user","uts"]"#, "steps"),
            ("/mounts/proc", "\"all\"", "mounts.proc"),
            ("/mounts/sealed", "\"bind\"", "mounts.sealed"),
            ("/devices", r#"["kmsg","null"]"#, "kmsg"),
            ("/capabilities/build", r#"["CAP_CHOWN"]"#, "capabilities.build"),
            ("/capabilities/root", r#"["CAP_SYS_ADMIN"]"#, "capabilities.root"),
            ("/no_new_privs", "false", "no_new_privs"),
            ("/landlock/enforce", "false", "landlock.enforce"),
            ("/landlock/write", r#"["/"]"#, "everything is writable"),
            ("/landlock/write_root", r#"["/"]"#, "everything is writable"),
            ("/seccomp/build", "[]", "no filter"),
            ("/seccomp/root", "[]", "no filter"),
        ] {
            match weakened(pointer, value) {
                Err(ProfileError::Weak(_, weakness)) => assert!(weakness.contains(what), "{weakness}"),
                other => panic!("{pointer} {value}: {:?}", other.map(|_| ())),
            }
        }
    }

    #[test]
    fn directory_that_others_can_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("dev.json"), BUILT_IN[0].1).unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::set_permissions(dir.path().join("dev.json"), PermissionsExt::from_mode(0o644)).unwrap();
        load(&name("dev"), Some(dir.path())).unwrap();
        assert!(matches!(load(&name("hermetic"), Some(dir.path())), Err(ProfileError::Unknown(..))));
        std::fs::set_permissions(dir.path().join("dev.json"), PermissionsExt::from_mode(0o666)).unwrap();
        assert!(matches!(load(&name("dev"), Some(dir.path())), Err(ProfileError::Writable(_))));
    }

    #[test]
    fn profile_under_another_name_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("strict.json"), BUILT_IN[0].1).unwrap();
        std::fs::set_permissions(dir.path().join("strict.json"), PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o700)).unwrap();
        assert!(matches!(load(&name("strict"), Some(dir.path())), Err(ProfileError::Mislabelled(..))));
    }
}
