//! The list of suites. To add one, write a function here and name it in [`ALL`].

use super::count::Counting;
use super::{Machine, Suite};
use crate::shell::{self, Needed};
use std::path::Path;
use std::process::Command;

/// What the suites need beyond Rust and a C compiler's libraries; installed when missing and root.
pub(crate) const NEEDED: &[Needed] = &[
    Needed { probe: &["cc", "--version"], package: "gcc" },
    Needed { probe: &["c++", "--version"], package: "g++" },
    Needed { probe: &["ar", "--version"], package: "binutils" },
    Needed { probe: &["make", "--version"], package: "make" },
    Needed { probe: &["git", "--version"], package: "git" },
    Needed { probe: &["openssl", "version"], package: "openssl" },
    Needed { probe: &["strace", "-V"], package: "strace" },
    Needed { probe: &["script", "--version"], package: "bsdutils" },
    // What reads our units.
    Needed { probe: &["systemd-analyze", "--version"], package: "systemd" },
    // A network of its own, and what is asked in it.
    Needed { probe: &["sh", "-c", "PATH=$PATH:/usr/sbin:/sbin ip -V"], package: "iproute2" },
    Needed { probe: &["sh", "-c", "PATH=$PATH:/usr/sbin:/sbin nginx -v"], package: "nginx-light" },
    // The other readers of archives, and what GNU tar calls for zstd.
    Needed { probe: &["tar", "--version"], package: "tar" },
    Needed { probe: &["bsdtar", "--version"], package: "libarchive-tools" },
    Needed { probe: &["zstd", "--version"], package: "zstd" },
    // A registry, and the programs that fill and read it.
    Needed { probe: &["docker-registry", "--version"], package: "docker-registry" },
    Needed { probe: &["skopeo", "--version"], package: "skopeo" },
    Needed { probe: &["umoci", "--version"], package: "umoci" },
    Needed { probe: &["sh", "-c", "command -v htpasswd"], package: "apache2-utils" },
    Needed { probe: &["curl", "--version"], package: "curl" },
    Needed { probe: &["setpriv", "--version"], package: "util-linux" },
    Needed { probe: &["/usr/bin/python3", "-c", "import venv, ensurepip"], package: "python3-venv" },
    // A database whose users Vault makes. Debian's programs are beside each other, in no PATH.
    Needed { probe: &["sh", "-c", "ls /usr/lib/postgresql/*/bin/initdb"], package: "postgresql" },
    // An ordinary user's PATH may not lead to it.
    Needed { probe: &["sh", "-c", "PATH=$PATH:/usr/sbin:/sbin e2fsck -V"], package: "e2fsprogs" },
];

/// All suites, in the order in which they run; `None` = nothing of that kind exists in the tree.
pub(crate) const ALL: &[fn(&Machine) -> Option<Suite>] = &[
    fmt,
    clippy,
    tidy,
    rust_tests,
    without_servers,
    doc_tests,
    fuzz,
    scratch,
    ledger,
    schema,
    build_integration,
    build_faulty,
    integration_root,
    integration_user,
];

/// Those of `cargo xtask integration`.
pub(crate) const INTEGRATION: &[fn(&Machine) -> Option<Suite>] =
    &[build_integration, build_faulty, integration_root, integration_user];

/// Tests that need root stand behind this feature, so that a plain `cargo test` does without them.
const ROOT_TESTS: &str = "--features=ampoule-sandbox/root-tests";
/// And those that need servers behind this one.
const SERVER_TESTS: &str = "--features=ampoule-agent/server-tests";

/// The user that stands for an ordinary one when this is root.
const ORDINARY_UID: &str = "65534";

fn suite(name: &'static str, counting: Counting, plan: Result<Command, String>) -> Option<Suite> {
    Some(Suite { name, required: true, counting, plan })
}

fn cargo(machine: &Machine, args: &[&str]) -> Command {
    let mut command = shell::cargo(&machine.root);
    command.args(args);
    command
}

/// A cargo command that belongs to a component which may not be installed.
fn component(machine: &Machine, name: &str, args: &[&str]) -> Result<Command, String> {
    if shell::succeeds(&["cargo", name, "--version"]) {
        Ok(cargo(machine, args))
    } else {
        Err(format!("cargo {name} is not installed"))
    }
}

fn fmt(machine: &Machine) -> Option<Suite> {
    suite("fmt", Counting::Status, component(machine, "fmt", &["fmt", "--all", "--check"]))
}

fn clippy(machine: &Machine) -> Option<Suite> {
    let what = ["clippy", "--workspace", "--all-targets", "--locked", ROOT_TESTS, SERVER_TESTS];
    let args = [&what[..], &["--", "-D", "warnings"]].concat();
    suite("clippy", Counting::Status, component(machine, "clippy", &args))
}

fn tidy(machine: &Machine) -> Option<Suite> {
    let plan = std::env::current_exe().map_err(|e| e.to_string()).map(|program| {
        let mut command = Command::new(program);
        command.arg("tidy").current_dir(&machine.root);
        command
    });
    suite("tidy", Counting::Status, plan)
}

fn rust_tests(machine: &Machine) -> Option<Suite> {
    let selection = ["--workspace", "--exclude", "ampoule-integration", "--locked"];
    let (counting, first) = if shell::succeeds(&["cargo", "nextest", "--version"]) {
        (Counting::Nextest, ["nextest", "run"].as_slice())
    } else {
        (Counting::CargoTest, ["test", "--no-fail-fast", "--all-targets"].as_slice())
    };
    let servers: &[&str] = if machine.servers.is_ok() { &[SERVER_TESTS] } else { &[] };
    suite("unit", counting, Ok(cargo(machine, &[first, &selection, servers].concat())))
}

/// What `unit` had to leave out; nothing where it had its servers.
fn without_servers(machine: &Machine) -> Option<Suite> {
    machine.servers.clone().err().and_then(|reason| suite("unit-servers", Counting::Status, Err(reason)))
}

fn doc_tests(machine: &Machine) -> Option<Suite> {
    let args = ["test", "--doc", "--workspace", "--no-fail-fast", "--locked"];
    suite("doc", Counting::CargoTest, Ok(cargo(machine, &args)))
}

/// A few seconds for each target: enough to run all seeds and see that what has been found stays found.
fn fuzz(machine: &Machine) -> Option<Suite> {
    let plan = if shell::succeeds(&["c++", "--version"]) {
        std::env::current_exe().map_err(|e| e.to_string()).map(|program| {
            let mut command = Command::new(program);
            command.args(["fuzz", "--seconds", "3"]).current_dir(&machine.root);
            command
        })
    } else {
        Err("no C++ compiler for libFuzzer; install g++".to_owned())
    };
    suite("fuzz", Counting::Summary, plan)
}

fn scratch(machine: &Machine) -> Option<Suite> {
    let args = [
        "test",
        "--locked",
        "--no-fail-fast",
        "-p",
        "ampoule-sandbox",
        ROOT_TESTS,
        "--lib",
        "--test",
        "scratch",
    ];
    let plan = if !machine.is_root {
        Err("needs root".into())
    } else if !Path::new("/dev/loop-control").exists() {
        Err("this machine has no loop devices; load the kernel module loop".into())
    } else {
        Ok(cargo(machine, &args))
    };
    suite("scratch-root", Counting::CargoTest, plan)
}

/// The daemon's ledger on a disk of its own that fills.
fn ledger(machine: &Machine) -> Option<Suite> {
    let args = ["test", "--locked", "-p", "ampoule-agent", "--test", "ledger_full", "--", "--ignored"];
    let plan = if machine.is_root { Ok(cargo(machine, &args)) } else { Err("needs root".into()) };
    suite("ledger-root", Counting::CargoTest, plan)
}

fn schema(machine: &Machine) -> Option<Suite> {
    let script = machine.root.join("agent/tests/check_schema.py");
    script.exists().then_some(())?;
    let plan = machine.python.clone().map(|python| {
        let mut command = Command::new(python);
        command.arg(script).current_dir(&machine.root);
        command
    });
    suite("schema", Counting::Status, plan)
}

fn build_integration(machine: &Machine) -> Option<Suite> {
    machine.has_integration.then_some(())?;
    let programs = ["ampoule-integration", "ampoule", "ampoule-runner", "ampoule-agent"];
    // The agent's examples are programs that tests kill.
    let args: Vec<&str> = ["build", "--locked", "--bins", "--examples"]
        .into_iter()
        .chain(programs.iter().flat_map(|name| ["-p", name]))
        .collect();
    suite("build", Counting::Status, Ok(cargo(machine, &args)))
}

/// The runner that fails, dies and looks away where a test asks for it: a build of its own, never installed.
fn build_faulty(machine: &Machine) -> Option<Suite> {
    let target = machine.has_integration.then_some(machine.programs.parent()?)?;
    suite("build-faulty", Counting::Status, Ok(shell::build_faulty(&machine.root, target)))
}

/// Why the integration tests cannot run at all, if so.
fn integration_program(machine: &Machine) -> Result<String, String> {
    if !machine.has_integration {
        return Err("ampoule-integration has no program".into());
    }
    if !machine.missing.is_empty() {
        return Err(format!("missing packages: {}", machine.missing.join(" ")));
    }
    let program = machine.programs.join("ampoule-integration");
    if program.exists() { Ok(program.display().to_string()) } else { Err("it was not built".into()) }
}

fn integration_root(machine: &Machine) -> Option<Suite> {
    let plan = integration_program(machine).and_then(|program| {
        if !machine.is_root {
            return Err("needs root".into());
        }
        let mut command = Command::new(program);
        command.args(&machine.integration).current_dir(&machine.root);
        Ok(command)
    });
    suite("integration-root", Counting::Summary, plan)
}

fn integration_user(machine: &Machine) -> Option<Suite> {
    let plan = integration_program(machine).and_then(|program| {
        if !machine.is_root {
            let mut command = Command::new(program);
            command.args(&machine.integration).current_dir(&machine.root);
            return Ok(command);
        }
        let uid = format!("--reuid={ORDINARY_UID}");
        let gid = format!("--regid={ORDINARY_UID}");
        let become_user = ["setpriv", uid.as_str(), gid.as_str(), "--clear-groups", "--"];
        if !shell::succeeds(&[become_user.as_slice(), &["test", "-x", program.as_str()]].concat()) {
            return Err(format!(
                "an ordinary user cannot reach {program}; check out below a readable folder"
            ));
        }
        let mut command = Command::new("setpriv");
        command.args(become_user.iter().skip(1)).arg(program).args(&machine.integration);
        command.current_dir(&machine.root).env("HOME", "/tmp");
        Ok(command)
    });
    suite("integration-user", Counting::Summary, plan)
}
