//! Making and reaping processes.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `CLONE_INTO_CGROUP`; glibc's constant is an `int` and overflows to 0 (rust-lang/libc#3584).
const INTO_CGROUP: u64 = 0x2_0000_0000;
/// `CLONE_PIDFD`
const PIDFD: u64 = 0x1000;

/// Which namespaces a new process gets of its own (clone(2)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// `CLONE_NEWUSER`
    pub user: bool,
    /// `CLONE_NEWNS`
    pub mount: bool,
    /// `CLONE_NEWPID`
    pub pid: bool,
    /// `CLONE_NEWNET`
    pub net: bool,
    /// `CLONE_NEWIPC`
    pub ipc: bool,
    /// `CLONE_NEWUTS`
    pub uts: bool,
}

impl Namespaces {
    fn flags(self) -> u64 {
        let bit = |on: bool, value: libc::c_int| if on { value as u64 } else { 0 };
        bit(self.user, libc::CLONE_NEWUSER)
            | bit(self.mount, libc::CLONE_NEWNS)
            | bit(self.pid, libc::CLONE_NEWPID)
            | bit(self.net, libc::CLONE_NEWNET)
            | bit(self.ipc, libc::CLONE_NEWIPC)
            | bit(self.uts, libc::CLONE_NEWUTS)
    }
}

/// A child process.
#[derive(Debug)]
pub struct Child {
    /// Its id in the caller's pid namespace. Valid until it is reaped.
    pub pid: i32,
    /// A descriptor of it: readable once it has ended (pidfd_open(2)).
    pub pidfd: OwnedFd,
}

/// Which of the caller's descriptors a new process keeps.
#[derive(Debug, Clone, Copy)]
pub enum Keep<'a> {
    /// These alone; the first three become `/dev/null`.
    Only(&'a [BorrowedFd<'a>]),
    /// All but these; the first three stay what they are.
    AllBut(&'a [BorrowedFd<'a>]),
}

/// Makes a process that runs `body` and then ends with the status that it returns.
///
/// It has namespaces of its own as asked, sits in a version 2 control group if one is given, and keeps of all
/// descriptors only what `keep` says. It goes on in a copy of the caller's memory, as after fork(2), and may allocate:
/// the caller has to be single-threaded, which is checked, so that no lock is held by a thread that the child
/// does not have. It never returns into the caller's frames; a panic ends it with status 70.
///
/// # Errors
/// `EBUSY` if the process has more than one thread; else what clone(2) says.
pub fn spawn(
    namespaces: Namespaces,
    cgroup: Option<BorrowedFd<'_>>,
    keep: Keep<'_>,
    body: impl FnOnce() -> i32,
) -> io::Result<Child> {
    wait_for_threads()?;
    let mut pidfd: libc::c_int = -1;
    // SAFETY: clone_args is plain integers, for which all-zero is a valid value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = namespaces.flags() | PIDFD;
    args.exit_signal = libc::SIGCHLD as u64;
    args.pidfd = (&raw mut pidfd).addr() as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= INTO_CGROUP;
        args.cgroup = u64::try_from(cgroup.as_raw_fd()).unwrap_or(u64::MAX);
    }
    // SAFETY: without CLONE_VM and with stack 0 the child runs on its own copy of this stack; `pidfd` is
    // writable and outlives the call; the process has one thread, so the copied heap is consistent.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match crate::check(pid)? {
        0 => {
            let run = std::panic::AssertUnwindSafe(|| match crate::fd::close_after_clone(keep) {
                Ok(()) => body(),
                Err(_) => 70,
            });
            exit_now(std::panic::catch_unwind(run).unwrap_or(70))
        }
        pid => {
            // SAFETY: CLONE_PIDFD has stored a new descriptor here, which nothing else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Child { pid: i32::try_from(pid).unwrap_or(-1), pidfd })
        }
    }
}

/// How often the kernel's list is looked at until a thread that was joined has left it.
const LOOKS: u32 = 400;

/// That the calling process has one thread. pthread_join(3) returns when the other has given up its stack, a moment
/// before it leaves the list; one that still runs does not leave at all.
fn wait_for_threads() -> io::Result<()> {
    for _ in 0..LOOKS {
        if is_single_threaded()? {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_micros(50));
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

/// Whether the calling process has exactly one thread: `/proc/self/task` has two links and one directory.
pub(crate) fn is_single_threaded() -> io::Result<bool> {
    match std::fs::metadata("/proc/self/task") {
        Ok(meta) => Ok(std::os::unix::fs::MetadataExt::nlink(&meta) == 3),
        // In a sandbox before its own /proc is there; every process there came from a checked one.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// Ends the process at once: no destructor, no handler, no flushing of what the parent also holds.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit(2) takes an int and does not return.
    unsafe { libc::_exit(status) }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By exit, with this status.
    Exited(i32),
    /// By this signal.
    Signalled(i32),
}

/// A reaped child.
#[derive(Debug, Clone, Copy)]
pub struct Reaped {
    /// Its id.
    pub pid: i32,
    /// How it ended.
    pub end: End,
    /// Processor time of it and of the children that it waited for, in microseconds.
    pub cpu_micros: u64,
    /// The highest resident set of one of them, in bytes.
    pub memory_peak_bytes: u64,
}

/// Which children [`wait`] reaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Any.
    Any,
    /// This one.
    Pid(i32),
}

/// What [`wait`] found.
#[derive(Debug, Clone, Copy)]
pub enum Waited {
    /// A child has ended and is reaped.
    Reaped(Reaped),
    /// Children are alive, none has ended.
    Running,
    /// There is no such child.
    None,
}

/// Reaps a child (wait4(2)); with `block` it waits until one has ended.
///
/// # Errors
/// Any errno but `ECHILD` and `EINTR`.
pub fn wait(which: Which, block: bool) -> io::Result<Waited> {
    let pid = match which {
        Which::Any => -1,
        Which::Pid(pid) => pid,
    };
    loop {
        let mut status: libc::c_int = 0;
        // SAFETY: rusage is plain integers, for which all-zero is a valid value.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        let flags = if block { 0 } else { libc::WNOHANG };
        // SAFETY: `status` and `usage` are writable and outlive the call.
        let done = unsafe { libc::wait4(pid, &raw mut status, flags | libc::__WALL, &raw mut usage) };
        match crate::check(done.into()) {
            Ok(0) => return Ok(Waited::Running),
            Ok(pid) => {
                let end = if libc::WIFSIGNALED(status) {
                    End::Signalled(libc::WTERMSIG(status))
                } else {
                    End::Exited(libc::WEXITSTATUS(status))
                };
                return Ok(Waited::Reaped(Reaped {
                    pid: i32::try_from(pid).unwrap_or(-1),
                    end,
                    cpu_micros: micros(usage.ru_utime) + micros(usage.ru_stime),
                    memory_peak_bytes: u64::try_from(usage.ru_maxrss).unwrap_or(0).saturating_mul(1024),
                }));
            }
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => return Ok(Waited::None),
            Err(error) => return Err(error),
        }
    }
}

fn micros(time: libc::timeval) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000).saturating_add(u64::try_from(time.tv_usec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spawn_in_a_threaded_process_is_refused() {
        // The test harness has a thread of its own for each test.
        let refused = spawn(Namespaces::default(), None, Keep::Only(&[]), || 0).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EBUSY));
    }

    #[test]
    fn wait_without_children_is_none() {
        assert!(matches!(wait(Which::Pid(i32::MAX), false), Ok(Waited::None)));
    }
}
