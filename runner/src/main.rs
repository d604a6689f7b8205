//! `ampoule-runner`: the privileged side of Ampoule.
//!
//! It is started by the agent, or by `ampoule run`, with one connected `SOCK_SEQPACKET` socket as standard
//! input, takes requests from it (`ampoule_spec::wire`), and ends when the other side closes it. It reads no
//! environment variable, opens no network connection and runs no other program on the host.

mod admission;
mod clock;
mod doctor;
mod environment;
mod facts;
#[cfg(feature = "faults")]
mod faults;
mod holdings;
mod import;
mod jobdir;
mod kept;
mod launcher;
mod lifetime;
mod outputs;
mod pool;
mod profiles;
mod pump;
mod quarantine;
mod record;
mod recorder;
mod recovery;
mod report;
mod reread;
mod slot;
mod steps;
mod store_requests;
mod supervisor;

use ampoule_ipc::Channel;
use launcher::Options;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "usage: ampoule-runner serve --state DIR [--profiles DIR] [--pool N]   (a socket as standard input)\n       \
                     ampoule-runner --version\n";

fn main() -> ExitCode {
    let options = match parse(std::env::args_os().skip(1).collect()) {
        Ok(Some(options)) => options,
        Ok(None) => {
            println!("ampoule-runner {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Err(reason) => {
            eprint!("ampoule-runner: {reason}\n{USAGE}");
            return ExitCode::from(64);
        }
    };
    let channel = match take_socket() {
        Ok(socket) => Channel::new(socket),
        Err(_) => {
            eprint!(
                "ampoule-runner: standard input is not a socket; `ampoule run` starts the runner\n{USAGE}"
            );
            return ExitCode::from(64);
        }
    };
    prepare();
    match launcher::serve(options, channel) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("ampoule-runner: {reason}");
            ExitCode::from(70)
        }
    }
}

/// Takes the socket off standard input, and puts nothing in its place.
fn take_socket() -> std::io::Result<OwnedFd> {
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    if rustix::net::sockopt::socket_type(&socket)? != rustix::net::SocketType::SEQPACKET {
        return Err(rustix::io::Errno::NOTSOCK.into());
    }
    let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(socket)
}

/// Nothing inherited reaches a child, nobody else reads what we write, and we ask no keyring or terminal.
fn prepare() {
    // Older kernels lack the call; then every descriptor that we open is close-on-exec all the same.
    let _ = ampoule_sys::fd::close_on_exec_from(3);
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let _ = rustix::process::setsid();
    let _ = std::env::set_current_dir("/");
    if admission::is_privileged() {
        // A caller's niceness is not a job's; an ordinary user cannot lower it again.
        let _ = rustix::process::setpriority_process(None, 0);
        // As an ordinary user this would make /proc/PID/uid_map of our children root's.
        let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    }
}

fn parse(args: Vec<OsString>) -> Result<Option<Options>, String> {
    let mut args = args.into_iter();
    match args.next() {
        None => return Err("no command".to_owned()),
        Some(command) if command == "--version" => return Ok(None),
        Some(command) if command == "serve" => {}
        Some(other) => return Err(format!("{} is not a command", other.display())),
    }
    let (mut state, mut profiles, mut pool) = (None, None, 0);
    while let Some(flag) = args.next() {
        let flag = flag.into_string().map_err(|flag| format!("{} is not an option", flag.display()))?;
        let mut value = || args.next().ok_or_else(|| format!("{flag} wants a value"));
        match flag.as_str() {
            "--state" => state = Some(PathBuf::from(value()?)),
            "--profiles" => profiles = Some(PathBuf::from(value()?)),
            "--pool" => pool = pool_of(&value()?.to_string_lossy())?,
            #[cfg(feature = "faults")]
            "--fault" => faults::install(&value()?.to_string_lossy())?,
            other => return Err(format!("{other:?} is not an option")),
        }
    }
    let state = state.ok_or("--state is missing")?;
    Ok(Some(Options { state, profiles, pool }))
}

/// The most sandboxes that are kept ready: each holds namespaces, control groups and a loop device.
const POOL_MAX: usize = 64;

fn pool_of(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|count| *count <= POOL_MAX)
        .ok_or_else(|| format!("--pool wants a number up to {POOL_MAX}, not {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(text: &str) -> Result<Option<Options>, String> {
        parse(text.split(' ').map(OsString::from).collect())
    }

    #[test]
    fn parse_refuses_what_it_does_not_know() {
        assert!(args("serve --state /s").unwrap().is_some());
        assert!(args("--version").unwrap().is_none());
        assert_eq!(args("serve --state /s --pool 3").unwrap().unwrap().pool, 3);
        for text in [
            "",
            "serve",
            "serve --state",
            "serve --state /s --shell x",
            "run",
            "serve --state /s --pool",
            "serve --state /s --pool 65",
            "serve --state /s --pool -1",
        ] {
            assert!(args(text).is_err(), "{text:?}");
        }
    }
}
