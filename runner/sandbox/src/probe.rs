//! The self-probe: a process confined exactly like a step tries what a step must not be able to do.
//!
//! Its answers, not our intentions, are what the report and `ampoule doctor` say is in force.

use crate::confine::Confinement;
use crate::rootfs::PROBE_DIR;
use ampoule_spec::Measured;
use ampoule_sys::process::{Keep, Namespaces, Which, spawn, wait};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::pipe::{PipeFlags, pipe_with};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

/// Layers by name, as measured.
pub type Layers = BTreeMap<String, Measured>;

/// The most bytes that the probe may answer.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// Runs the probe. A probe that cannot run proves nothing, so its failure is a missing layer too.
pub fn run(confinement: &Confinement<'_>) -> Layers {
    let answer = match pipe_with(PipeFlags::CLOEXEC) {
        Ok((read, write)) => ask(confinement, read, write),
        Err(_) => None,
    };
    answer.unwrap_or_else(|| {
        let detail = "the self-probe did not answer".to_owned();
        BTreeMap::from([("probe".to_owned(), Measured { in_force: false, detail })])
    })
}

fn ask(confinement: &Confinement<'_>, read: OwnedFd, write: OwnedFd) -> Option<Layers> {
    let child = spawn(Namespaces::default(), None, Keep::AllBut(&[]), || {
        let layers = match confinement.apply() {
            Ok(()) => measure(),
            Err(error) => BTreeMap::from([(
                "probe".to_owned(),
                Measured { in_force: false, detail: error.to_string() },
            )]),
        };
        let Ok(bytes) = serde_json::to_vec(&layers) else { return 1 };
        let Ok(copy) = write.try_clone() else { return 1 };
        i32::from(std::fs::File::from(copy).write_all(&bytes).is_err())
    })
    .ok()?;
    drop(write);
    let mut bytes = Vec::new();
    let got = std::fs::File::from(read).take(ANSWER_BYTES_MAX).read_to_end(&mut bytes);
    let _ = wait(Which::Pid(child.pid), true);
    got.ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn measure() -> Layers {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |key: &str| {
        let value = status.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
        value.map(|v| v.split_whitespace().collect::<Vec<_>>().join(" ")).unwrap_or_default()
    };
    let mut layers = Layers::new();
    let mut say = |layer: &str, in_force: bool, detail: String| {
        layers.insert(layer.to_owned(), Measured { in_force, detail });
    };
    let sets = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(&field);
    let none = sets.iter().all(|set| u64::from_str_radix(set, 16) == Ok(0));
    say(
        "capabilities",
        none,
        "inheritable, permitted, effective, bounding and ambient sets are empty".into(),
    );
    say("no_new_privs", field("NoNewPrivs") == "1", "set, and cannot be unset".into());
    let ids = (field("Uid"), field("Gid"));
    let groups = field("Groups");
    say("groups", groups.is_empty() || groups == "1000", "no supplementary group".into());
    say(
        "identity",
        ids.0 == "1000 1000 1000 1000" && ids.1 == "1000 1000 1000 1000",
        "uid 1000, gid 1000".into(),
    );
    say("seccomp", field("Seccomp") == "2" && syscalls_denied(), seccomp_detail());
    say("landlock", landlock_denies(), "writing outside the writable directories is denied".into());
    say("network", network_is_empty(), "only a loopback interface, no route".into());
    say("rootfs", root_is_private(), "a private root; its directories are not writable for a step".into());
    say("proc", proc_is_private(), "only the sandbox's own processes, without init; no sysctl".into());
    layers
}

fn seccomp_detail() -> String {
    "default deny; mount, unshare and sockets other than unix, inet, inet6 and route netlink are denied"
        .into()
}

fn syscalls_denied() -> bool {
    let mount = rustix::mount::mount_change("/", rustix::mount::MountPropagationFlags::PRIVATE);
    let unshare = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER);
    let vsock = rustix::net::socket(AddressFamily::VSOCK, SocketType::STREAM, None);
    let keys = ampoule_sys::keyring::new_session();
    mount == Err(Errno::PERM)
        && unshare == Err(nix::errno::Errno::EPERM)
        && matches!(vsock, Err(Errno::AFNOSUPPORT | Errno::PERM))
        && keys.is_err()
}

/// The probe's directory belongs to the build user, so file modes allow what only Landlock denies.
fn landlock_denies() -> bool {
    let path = format!("/{PROBE_DIR}/file");
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
    matches!(openat(rustix::fs::CWD, path, flags, Mode::RUSR), Err(Errno::ACCESS))
}

fn network_is_empty() -> bool {
    let interfaces = std::fs::read_to_string("/proc/self/net/dev").unwrap_or_default();
    let names: Vec<_> = interfaces.lines().filter_map(|l| l.split_once(':')).map(|(n, _)| n.trim()).collect();
    // A datagram socket would keep the namespace alive for an RCU grace period after its end, and so delay
    // every proof that the namespace is gone.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let Ok(socket) = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None) else {
        return false;
    };
    // 192.0.2.1 is an address for documentation (RFC 5737).
    let outside = std::net::SocketAddrV4::new(std::net::Ipv4Addr::new(192, 0, 2, 1), 9);
    names == ["lo"] && rustix::net::connect(&socket, &outside) == Err(Errno::NETUNREACH)
}

fn root_is_private() -> bool {
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
    let denied = |path: &str| {
        matches!(
            openat(rustix::fs::CWD, path, flags, Mode::RUSR),
            Err(Errno::ACCESS | Errno::ROFS | Errno::PERM)
        )
    };
    denied("/file") && denied("/usr/file") && denied("/etc/passwd")
}

fn proc_is_private() -> bool {
    let gone = |path: &str| !std::path::Path::new(path).exists();
    gone("/proc/sys") && gone("/proc/sysrq-trigger") && gone("/proc/1/environ")
}
