//! `ampoule-runner`: the privileged side of Ampoule.
//!
//! `serve` is started by `ampoule run` with one connected `SOCK_SEQPACKET` socket as standard input, takes requests
//! from it (`ampoule_spec::wire`), and ends when the other side closes it. `listen` is the same as a service: it takes
//! connections from the agent, and a process of its own serves each. Neither opens a network connection or runs
//! another program on the host; of the environment `listen` reads what a service manager says to it, and no more.

mod admission;
mod clock;
mod control;
mod doctor;
mod duty;
mod environment;
mod facts;
#[cfg(feature = "faults")]
mod faults;
mod handover;
mod holdings;
mod import;
mod jobdir;
mod jobs;
mod kept;
mod launcher;
mod lifetime;
mod listen;
mod mask;
mod options;
mod outputs;
mod pool;
mod profiles;
mod pump;
mod quarantine;
mod readers;
mod record;
mod recorder;
mod recovery;
mod report;
mod reread;
mod search;
mod secrets;
mod slot;
mod steps;
mod store_requests;
mod supervisor;

use ampoule_ipc::Channel;
use duty::Duty;
use options::Command;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

const USAGE: &str = "usage: ampoule-runner serve --state DIR [--profiles DIR] [--pool N]   (a socket as standard input)\n       \
                     ampoule-runner listen --state DIR [--socket PATH] --agent UID [--group GID] [--profiles DIR] \
                     [--pool N]\n       \
                     ampoule-runner --version\n";

fn main() -> ExitCode {
    let command = match options::parse(std::env::args_os().skip(1).collect()) {
        Ok(command) => command,
        Err(reason) => {
            eprint!("ampoule-runner: {reason}\n{USAGE}");
            return ExitCode::from(64);
        }
    };
    let done = match command {
        Command::Version => {
            println!("ampoule-runner {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Command::Serve(options) => {
            let Ok(socket) = take_socket() else {
                eprint!(
                    "ampoule-runner: standard input is not a socket; `ampoule run` starts the runner\n{USAGE}"
                );
                return ExitCode::from(64);
            };
            prepare();
            launcher::serve(options, Channel::new(socket), Duty::Anything)
        }
        Command::Listen { options, socket } => {
            prepare();
            listen::listen(&options, socket.as_deref())
        }
    };
    match done {
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
