//! What a build can see of the host although nobody declared it, and what the runner itself is.

use ampoule_spec::{HostFacts, Sha256};
use sha2::{Digest, Sha256 as Hasher};
use std::io::Read;

/// The kernel, the machine and the processor.
pub(crate) fn host() -> HostFacts {
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
    std::fs::File::open("/proc/cpuinfo").ok()?.take(4096).read_to_string(&mut head).ok()?;
    let line = head.lines().find(|l| l.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// SHA-256 of the runner's own executable; `None` if it cannot be read.
pub(crate) fn own_sha256() -> Option<Sha256> {
    let bytes = std::fs::read("/proc/self/exe").ok()?;
    Some(Sha256::new(Hasher::digest(&bytes).into()))
}
