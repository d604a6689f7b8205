//! What a build can see of the host although nobody declared it, and what the runner itself is.
//!
//! The launcher gathers it while the supervisor is busy: hashing the runner and reading the host's package list
//! take as long as making a sandbox.

use ampoule_sandbox::{StageError, host_image, uid_block};
use ampoule_spec::{HostFacts, Image, ImageReport, Sha256};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256 as Hasher};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;

/// The runner's own executable.
const OWN: &str = "/proc/self/exe";
/// Digests of files that seldom change, kept by host root until the next boot.
const CACHE: &str = "/run/ampoule/digests.json";

/// What the report says of the host, the runner and the image.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Facts {
    pub(crate) host: HostFacts,
    pub(crate) runner: Option<Sha256>,
    pub(crate) image: Result<ImageReport, StageError>,
}

impl Facts {
    pub(crate) fn gather(image: &Image) -> Self {
        let mut cache = Cache::open();
        let runner = cache.digest(OWN, || own_sha256().ok_or(())).ok();
        let image = image_report(image, &mut cache);
        cache.keep();
        Self { host: host(), runner, image }
    }
}

fn image_report(image: &Image, cache: &mut Cache) -> Result<ImageReport, StageError> {
    let named = |kind: &str, sha256, named_by: &str| ImageReport {
        kind: kind.to_owned(),
        sha256,
        named_by: named_by.to_owned(),
    };
    Ok(match image {
        Image::Host => {
            let (path, named_by) = host_image::package_database()?;
            let sha256 = cache.digest(path, || host_image::package_digest(path, named_by))?;
            named("host", sha256, named_by)
        }
        Image::Oci { manifest, .. } => named("oci", *manifest, ""),
        Image::Tar { sha256 } => named("tar", *sha256, ""),
    })
}

fn host() -> HostFacts {
    let uname = rustix::system::uname();
    HostFacts {
        kernel: uname.release().to_string_lossy().into_owned(),
        machine: uname.machine().to_string_lossy().into_owned(),
        cpu_model: cpu_model().unwrap_or_default(),
    }
}

fn cpu_model() -> Option<String> {
    // The first processor's entry is enough, and the file grows with their number.
    let mut head = String::new();
    File::open("/proc/cpuinfo").ok()?.take(4096).read_to_string(&mut head).ok()?;
    let line = head.lines().find(|l| l.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// SHA-256 of the runner's own executable; `None` if it cannot be read.
fn own_sha256() -> Option<Sha256> {
    let mut file = File::open(OWN).ok()?;
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 128 << 10];
    loop {
        match file.read(&mut buffer).ok()? {
            0 => return Some(Sha256::new(hasher.finalize().into())),
            count => hasher.update(buffer.get(..count)?),
        }
    }
}

/// Digests by path and by everything that the kernel changes when somebody writes to the file, its change time
/// included, which nobody can set.
#[derive(Debug, Default)]
struct Cache {
    known: BTreeMap<String, Sha256>,
    changed: bool,
}

impl Cache {
    /// An ordinary user has no place that others cannot reach, and so no cache.
    fn open() -> Self {
        let privileged = crate::admission::is_privileged() && uid_block::run_dir().is_ok();
        let bytes = if privileged { std::fs::read(CACHE).ok() } else { None };
        let known = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Self { known, changed: false }
    }

    fn digest<E>(&mut self, path: &str, compute: impl FnOnce() -> Result<Sha256, E>) -> Result<Sha256, E> {
        let Ok(meta) = std::fs::metadata(path) else { return compute() };
        let times = (meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec());
        let key = format!("{path} {} {} {} {times:?}", meta.dev(), meta.ino(), meta.len());
        if let Some(known) = self.known.get(&key) {
            return Ok(*known);
        }
        let digest = compute()?;
        // An entry of the same file in an older state says nothing any more.
        self.known.retain(|other, _| other.split(' ').next() != Some(path));
        self.known.insert(key, digest);
        self.changed = true;
        Ok(digest)
    }

    /// Two runs at once: each writes its own and renames it; either is right.
    fn keep(self) {
        if !self.changed || !crate::admission::is_privileged() || uid_block::run_dir().is_err() {
            return;
        }
        let aside = format!("{CACHE}.{}", std::process::id());
        let kept = serde_json::to_vec(&self.known).map_err(std::io::Error::other);
        let kept = kept.and_then(|bytes| std::fs::write(&aside, bytes));
        if kept.and_then(|()| std::fs::rename(&aside, CACHE)).is_err() {
            let _ = std::fs::remove_file(&aside);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cached_digest_is_computed_again_after_a_write() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        let path = file.to_str().unwrap();
        let mut cache = Cache::default();
        let sha = |n| Sha256::new([n; 32]);
        std::fs::write(&file, "a").unwrap();
        assert_eq!(cache.digest(path, || Ok::<_, ()>(sha(1))), Ok(sha(1)));
        assert_eq!(cache.digest(path, || Ok::<_, ()>(sha(2))), Ok(sha(1)));
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::write(&file, "b").unwrap();
        assert_eq!(cache.digest(path, || Ok::<_, ()>(sha(3))), Ok(sha(3)));
        assert_eq!(cache.known.len(), 1);
    }
}
