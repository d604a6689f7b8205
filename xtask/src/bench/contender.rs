//! Who is measured, and with which command line.

use super::worker::Job;
use crate::shell::{self, Needed};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Something that runs /bin/true in a fresh sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contender {
    /// This project's runner: from the request to a launcher that runs, to the durable report.
    Ampoule,
    /// The same for a launcher that is started for one job.
    AmpouleCold,
    Bubblewrap,
    Crun,
    Runc,
    /// No sandbox: the floor.
    Plain,
}

/// The programs of the others.
pub(crate) const NEEDED: &[Needed] = &[
    Needed { probe: &["bwrap", "--version"], package: "bubblewrap" },
    Needed { probe: &["crun", "--version"], package: "crun" },
    Needed { probe: &["runc", "--version"], package: "runc" },
];

/// A contender's command line.
pub(crate) struct Line {
    /// Executes the worker in what the contender needs around it; not measured.
    pub(crate) around: Vec<String>,
    /// What is measured; `{n}` stands for the number of the run.
    pub(crate) argv: Vec<String>,
    /// How the runner gets its job, if it is the runner.
    pub(crate) job: Option<Job>,
}

impl Contender {
    pub(crate) const ALL: [Self; 6] =
        [Self::Ampoule, Self::AmpouleCold, Self::Bubblewrap, Self::Crun, Self::Runc, Self::Plain];
    /// The one that ratios refer to.
    pub(crate) const REFERENCE: Self = Self::Bubblewrap;

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ampoule => "ampoule",
            Self::AmpouleCold => "ampoule cold",
            Self::Bubblewrap => "bwrap",
            Self::Crun => "crun",
            Self::Runc => "runc",
            Self::Plain => "no sandbox",
        }
    }

    /// The command line, or why there is none on this machine.
    pub(crate) fn line(self, place: &Place) -> Result<Line> {
        let program = match self {
            Self::Ampoule => return place.ampoule(Job::Warm),
            Self::AmpouleCold => return place.ampoule(Job::Cold),
            Self::Plain => return Ok(Line { around: Vec::new(), argv: words("/bin/true"), job: None }),
            Self::Bubblewrap => "bwrap",
            Self::Crun => "crun",
            Self::Runc => "runc",
        };
        ensure!(shell::has_program(program), "{program} is not installed");
        if self == Self::Bubblewrap {
            let line = "bwrap --unshare-all --ro-bind / / --proc /proc --dev /dev /bin/true";
            return Ok(Line { around: Vec::new(), argv: words(line), job: None });
        }
        ensure!(shell::is_root(), "needs root");
        let bundle = place.bundle.display();
        let argv =
            words(&format!("{program} run --bundle {bundle} ampoule-bench-{}-{{n}}", std::process::id()));
        let around = if self == Self::Crun { without_second_hierarchy() } else { Vec::new() };
        Ok(Line { around, argv, job: None })
    }
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

/// crun takes a host with both cgroup versions for one with v2 only and fails; so hide v2 from it.
fn without_second_hierarchy() -> Vec<String> {
    if !Path::new("/sys/fs/cgroup/unified").exists() {
        return Vec::new();
    }
    let script = "umount /sys/fs/cgroup/unified && exec \"$@\"";
    ["unshare", "-m", "sh", "-c", script, "sh"].map(str::to_owned).to_vec()
}

/// Where the benchmark's files are.
pub(crate) struct Place {
    bundle: PathBuf,
    /// Cargo's folder of release programs.
    programs: PathBuf,
}

impl Place {
    /// Makes the bundle that runc and crun run.
    pub(crate) fn make(folder: &Path, programs: PathBuf) -> Result<Self> {
        let bundle = folder.join("bundle");
        let rootfs = bundle.join("rootfs");
        for name in ["usr", "proc", "dev"] {
            fs::create_dir_all(rootfs.join(name))?;
        }
        for name in ["bin", "lib", "lib64"] {
            let host = Path::new("/").join(name);
            let link = rootfs.join(name);
            // Distributions with a merged /usr have links here; elsewhere the folder itself is bound.
            match fs::read_link(&host) {
                Ok(target) if fs::symlink_metadata(&link).is_err() => symlink(target, link)?,
                Ok(_) => {}
                Err(_) => fs::create_dir_all(link)?,
            }
        }
        fs::write(bundle.join("config.json"), serde_json::to_string_pretty(&config())?)?;
        Ok(Self { bundle, programs })
    }

    fn ampoule(&self, job: Job) -> Result<Line> {
        ensure!(shell::is_root(), "the hermetic profile needs root");
        let program = self.programs.join("ampoule-runner");
        let program = program.to_str().context("a path in UTF-8")?.to_owned();
        Ok(Line { around: Vec::new(), argv: vec![program], job: Some(job) })
    }
}

/// The least that gives the isolation of the bwrap line: all namespaces but the user's, /usr read-only.
fn config() -> Value {
    let bind = |path: &str| json!({ "destination": path, "type": "bind", "source": path, "options": ["rbind", "ro"] });
    let unmerged = ["/bin", "/lib", "/lib64"].into_iter().filter(|path| fs::read_link(path).is_err());
    let unmerged = unmerged.filter(|path| Path::new(path).exists());
    let mut mounts: Vec<Value> = std::iter::once("/usr").chain(unmerged).map(bind).collect();
    mounts.push(json!({ "destination": "/proc", "type": "proc", "source": "proc" }));
    mounts.push(json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] }));
    let namespaces = ["pid", "network", "ipc", "uts", "mount"].map(|kind| json!({ "type": kind }));
    json!({
        "ociVersion": "1.0.2",
        "root": { "path": "rootfs", "readonly": true },
        "process": {
            "terminal": false, "cwd": "/", "args": ["/bin/true"], "env": ["PATH=/usr/bin:/bin"],
            "user": { "uid": 0, "gid": 0 }, "noNewPrivileges": true, "capabilities": {}
        },
        "mounts": mounts,
        "linux": { "namespaces": namespaces }
    })
}
