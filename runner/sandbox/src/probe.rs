//! The self-probe: a step's process, once it is confined, tries what a step must not be able to do.
//!
//! Its answers, not our intentions, are what the report and `ampoule doctor` say is in force.

use crate::confine::Confinement;
use crate::rootfs::PROBE_DIR;
use ampoule_spec::{Measured, StepUser};
use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::collections::BTreeMap;
use std::os::unix::fs::FileTypeExt;

/// Layers by name, as measured.
pub type Layers = BTreeMap<String, Measured>;

/// Measures the calling process, which is confined.
pub(crate) fn measure(confinement: &Confinement<'_>) -> Layers {
    let mut layers = Layers::new();
    let mut say = |layer: &str, in_force: bool, detail: &str| {
        layers.insert(layer.to_owned(), Measured { in_force, detail: detail.to_owned() });
    };
    let status = Status::read();
    let (none, detail) = capabilities(&status, confinement);
    say("capabilities", none, &detail);
    say("no_new_privs", status.field("NoNewPrivs") == "1", "set, and cannot be unset");
    let id = confinement.user.id();
    let four = format!("{id} {id} {id} {id}");
    let groups = status.field("Groups");
    say("groups", groups.is_empty() || groups == id.to_string(), "no supplementary group");
    let identity = status.field("Uid") == four && status.field("Gid") == four;
    say("identity", identity, &format!("uid {id}, gid {id}"));
    say("seccomp", status.field("Seccomp") == "2" && syscalls_denied(), SECCOMP_DETAIL);
    say("landlock", landlock_denies(), "writing outside the writable directories is denied");
    say("network", network_is_empty(), "only a loopback interface, no route");
    say("rootfs", root_is_private(confinement.user), root_detail(confinement.user));
    say("proc", proc_is_private(), "only the sandbox's own processes, without init; no sysctl");
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let is_inner = map.split_whitespace().eq(confinement.authority().inner_map().split_whitespace());
    say("namespace.steps", is_inner, "a user and a mount namespace of the steps' own inside the job's");
    let devices = confinement.profile().devices.iter().map(|d| d.node().0).collect::<Vec<_>>();
    say("devices", devices_are(&devices), &format!("{} and no other device in /dev", devices.join(", ")));
    layers
}

/// `/proc/self/status`, field by field.
struct Status(String);

impl Status {
    fn read() -> Self {
        Self(std::fs::read_to_string("/proc/self/status").unwrap_or_default())
    }

    fn field(&self, key: &str) -> String {
        let value = self.0.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
        value.map(|v| v.split_whitespace().collect::<Vec<_>>().join(" ")).unwrap_or_default()
    }
}

/// Whether the sets hold what the profile says and no more.
fn capabilities(status: &Status, confinement: &Confinement<'_>) -> (bool, String) {
    let Ok(kept) = confinement.capabilities() else { return (false, String::new()) };
    let mask: u64 = kept.iter().map(|capability| capability.bitmask()).sum();
    let is = |set: &str, mask| u64::from_str_radix(&status.field(set), 16) == Ok(mask);
    let good = ["CapPrm", "CapEff", "CapBnd"].iter().all(|set| is(set, mask))
        && ["CapInh", "CapAmb"].iter().all(|set| is(set, 0));
    let detail = if kept.is_empty() {
        "inheritable, permitted, effective, bounding and ambient sets are empty".to_owned()
    } else {
        let mut names: Vec<_> = kept.iter().map(ToString::to_string).collect();
        names.sort_unstable();
        format!("over the sandbox alone: {}", names.join(", "))
    };
    (good, detail)
}

const SECCOMP_DETAIL: &str =
    "default deny; mount, unshare and sockets other than unix, inet, inet6 and route netlink are denied";

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
    match openat(rustix::fs::CWD, &path, flags, Mode::RUSR) {
        Ok(_) => {
            let _ = unlinkat(rustix::fs::CWD, &path, AtFlags::empty());
            false
        }
        Err(errno) => errno == Errno::ACCESS,
    }
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

/// Who is not root cannot write to the root's own directories; root cannot make new ones beside them.
fn root_is_private(user: StepUser) -> bool {
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
    let denied = |path: &str| {
        matches!(
            openat(rustix::fs::CWD, path, flags, Mode::RUSR),
            Err(Errno::ACCESS | Errno::ROFS | Errno::PERM)
        )
    };
    denied("/file") && (user == StepUser::Root || denied("/usr/file") && denied("/etc/passwd"))
}

fn root_detail(user: StepUser) -> &'static str {
    match user {
        StepUser::Build => "a private root; its directories are not writable for a step",
        StepUser::Root => {
            "a private root; a step writes to a layer of the job's own, and makes nothing beside its directories"
        }
    }
}

/// Whether `/dev` has these devices and no other.
fn devices_are(expected: &[&str]) -> bool {
    let Ok(entries) = std::fs::read_dir("/dev") else { return false };
    let mut found = 0;
    for entry in entries {
        let Ok(entry) = entry else { return false };
        // Not what the directory says: a device is mounted over a file.
        let Ok(kind) = entry.metadata().map(|meta| meta.file_type()) else { return false };
        if kind.is_char_device() || kind.is_block_device() {
            let name = entry.file_name();
            if !expected.iter().any(|expected| name == **expected) {
                return false;
            }
            found += 1;
        }
    }
    found == expected.len()
}

fn proc_is_private() -> bool {
    let gone = |path: &str| !std::path::Path::new(path).exists();
    gone("/proc/sys") && gone("/proc/sysrq-trigger") && gone("/proc/1/environ")
}
