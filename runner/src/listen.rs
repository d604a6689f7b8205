//! The launcher as a service: a socket, and a session for each connection.
//!
//! The listener parses nothing of a client's. It asks the kernel who connects, forks, and reaps; what a session does is
//! [`crate::launcher`]. Supervisors whose session has ended are its children (`PR_SET_CHILD_SUBREAPER`), so that it
//! knows when one dies, and has another process see to what that leaves. Nothing dies with it.

mod manager;
mod socket;

use crate::admission;
use crate::clock::Moment;
use crate::control;
use crate::duty::Duty;
use crate::jobdir::{Office, State, fence};
use crate::launcher::{self, Agent, Options};
use crate::quarantine;
use crate::recovery;
use ampoule_ipc::Channel;
use ampoule_sandbox::fault;
use ampoule_spec::Code;
use ampoule_spec::wire::{Reply, SESSIONS_MAX};
use ampoule_sys::process::{Child, Keep, Namespaces, Waited, Which, spawn, wait};
use manager::Manager;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{getpid, set_child_subreaper};
use socket::Listening;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// The most sessions beside them, which answer at once or not at all: of jobs they list, fence and forget.
const DESKS_MAX: usize = 4;
/// The most connections that are accepted before anything else is looked at.
const ACCEPTS_MAX: usize = 32;
/// How long nobody is accepted after the kernel could not, at first and at most.
const BACK_OFF: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];
/// How often dead supervisors are looked for of which nobody was told: their session lives, and is busy.
const SCAVENGE_EVERY: Duration = Duration::from_secs(10);
/// How often quarantined slots are looked at again.
const RECHECK_EVERY: Duration = Duration::from_secs(600);

/// Takes connections until it is told to stop and the last session has ended.
///
/// # Errors
/// For people: why it cannot listen.
pub(crate) fn listen(options: &Options, path: Option<&Path>) -> Result<(), String> {
    fault::role("listener");
    let agent = options.agent.ok_or("nobody to listen for")?;
    demand(agent)?;
    let mut manager = Manager::hear()?;
    match rustix::fs::mkdir(&options.state, rustix::fs::Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(format!("{} cannot be made: {errno}", options.state.display())),
    }
    let state = launcher::open_state(options)?;
    let _office = take_office(&state)?;
    let signals = signals().map_err(|e| format!("signals cannot be waited for: {e}"))?;
    set_child_subreaper(Some(getpid())).map_err(|e| format!("supervisors cannot be adopted: {e}"))?;
    // Whoever connects finds that every job is alive or reported.
    quarantine::recheck();
    fence::lift(&state);
    recovery::scavenge(&state, true);
    drop(state);
    let socket = match (path, manager.take_socket()) {
        (Some(path), None) => Listening::bind(path, agent)?,
        (None, Some(socket)) => Listening::inherited(socket)?,
        (Some(_), Some(_)) => return Err("--socket, and a socket of the unit: give one of them".to_owned()),
        (None, None) => {
            return Err("no socket: give --socket, or start it by a unit that passes one on".to_owned());
        }
    };
    manager.say("READY=1");
    let mut listener = Listener {
        options,
        agent,
        manager,
        socket: Some(socket),
        signals,
        sessions: Vec::new(),
        scavenger: None,
        is_dirty: false,
        scavenge_at: Moment::now().after(SCAVENGE_EVERY),
        recheck_at: Moment::now().after(RECHECK_EVERY),
        accept_at: None,
        back_off: BACK_OFF[0],
    };
    while listener.socket.is_some() || !listener.sessions.is_empty() {
        listener.turn()?;
    }
    Ok(())
}

/// How long a listener that was killed is waited for. What it was just forking has its lock and socket for a moment
/// longer.
const PREDECESSOR_LIMIT: Duration = Duration::from_secs(2);
/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Becomes the listener of a state directory, as long as what is returned is kept.
fn take_office(state: &State) -> Result<OwnedFd, String> {
    let until = Moment::now().after(PREDECESSOR_LIMIT);
    loop {
        match state.sole(Office::Listener) {
            Ok(Some(office)) => return Ok(office),
            Ok(None) if until.left().is_zero() => {
                return Err("another listener has the state directory".to_owned());
            }
            Ok(None) => std::thread::sleep(LOOK_EVERY),
            Err(error) => return Err(format!("the state directory's lock: {error}")),
        }
    }
}

/// An agent of another user must have a group by which it reads; an ordinary user serves himself alone.
fn demand(agent: Agent) -> Result<(), String> {
    let own = rustix::process::geteuid().as_raw();
    if agent.uid == own {
        return Ok(());
    }
    if !admission::is_privileged() {
        return Err(format!("--agent {}: an ordinary user can listen for himself alone ({own})", agent.uid));
    }
    if agent.group.is_none() {
        return Err("--group is missing: the group by which the agent reads its jobs".to_owned());
    }
    Ok(())
}

/// The signals that are read, not taken.
fn waited_for() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD].into_iter().collect()
}

fn signals() -> nix::Result<SignalFd> {
    let set = waited_for();
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

struct Listener<'a> {
    options: &'a Options,
    agent: Agent,
    manager: Manager,
    /// None once it was told to stop.
    socket: Option<Listening>,
    signals: SignalFd,
    sessions: Vec<(Child, Duty)>,
    /// Whoever sees to what the dead have left.
    scavenger: Option<Child>,
    /// Whether somebody has died since that began.
    is_dirty: bool,
    scavenge_at: Moment,
    recheck_at: Moment,
    /// When the kernel is asked for connections again, after it could not give one.
    accept_at: Option<Moment>,
    back_off: Duration,
}

impl Listener<'_> {
    /// Waits for whatever comes next, and sees to it.
    fn turn(&mut self) -> Result<(), String> {
        let (connection, signal) = self.wait()?;
        if self.manager.watchdog_every().is_some() {
            self.manager.say("WATCHDOG=1");
        }
        if signal {
            self.hear_signals();
        }
        if connection {
            self.accept();
        }
        self.scavenge();
        Ok(())
    }

    /// Whether there are connections, and whether there are signals.
    fn wait(&mut self) -> Result<(bool, bool), String> {
        if self.accept_at.is_some_and(|at| at.left().is_zero()) {
            self.accept_at = None;
        }
        let mut limit = self.scavenge_at.left();
        limit = limit.min(self.manager.watchdog_every().unwrap_or(limit));
        limit = limit.min(self.accept_at.map_or(limit, Moment::left));
        let limit = Timespec {
            tv_sec: limit.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        };
        let mut ready = vec![PollFd::new(&self.signals, PollFlags::IN)];
        let socket = self.socket.as_ref().filter(|_| self.accept_at.is_none());
        ready.extend(socket.map(|socket| PollFd::new(socket, PollFlags::IN)));
        match poll(&mut ready, Some(&limit)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(format!("waiting failed: {errno}")),
        }
        let heard = |at: usize| ready.get(at).is_some_and(|fd| !fd.revents().is_empty());
        Ok((heard(1), heard(0)))
    }

    /// Stops when it is told to; reaps sessions, scavengers, and supervisors that had a session.
    fn hear_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            if [Signal::SIGTERM, Signal::SIGINT].map(|stop| stop as u32).contains(&signal.ssi_signo) {
                self.manager.say("STOPPING=1");
                self.socket = None;
            }
        }
        while let Ok(Waited::Reaped(reaped)) = wait(Which::Any, false) {
            if self.scavenger.as_ref().is_some_and(|scavenger| scavenger.pid == reaped.pid) {
                self.scavenger = None;
                continue;
            }
            self.sessions.retain(|(session, _)| session.pid != reaped.pid);
            self.is_dirty = true;
        }
    }

    /// Accepts who is there.
    fn accept(&mut self) {
        for _ in 0..ACCEPTS_MAX {
            let Some(socket) = &self.socket else { return };
            match socket.accept() {
                Ok(connection) => {
                    self.back_off = BACK_OFF[0];
                    self.begin(connection);
                }
                Err(Errno::AGAIN) => return,
                Err(errno) if is_the_peers(errno) => {}
                Err(_) => {
                    // Want of descriptors or memory: the connection waits, and asking again at once gives nothing.
                    self.accept_at = Some(Moment::now().after(self.back_off));
                    self.back_off = self.back_off.saturating_mul(2).min(BACK_OFF[1]);
                    return;
                }
            }
        }
    }

    /// What the next session is for, if there may be one: jobs can be asked for, fenced and forgotten however many others
    /// work.
    fn duty(&self) -> Option<Duty> {
        let count = |of: Duty| self.sessions.iter().filter(|(_, duty)| *duty == of).count();
        if count(Duty::Anything) < SESSIONS_MAX {
            return Some(Duty::Anything);
        }
        (count(Duty::Desk) < DESKS_MAX).then_some(Duty::Desk)
    }

    /// Begins a session, if the peer may have one.
    fn begin(&mut self, connection: OwnedFd) {
        // Who is somebody else is not told anything.
        let own = rustix::process::geteuid().as_raw();
        if !control::peer(&connection).is_ok_and(|uid| [0, own, self.agent.uid].contains(&uid)) {
            return;
        }
        let Some(duty) = self.duty() else {
            let text = format!("{} connections are open already; close one", SESSIONS_MAX + DESKS_MAX);
            return refuse(connection, text);
        };
        let channel = Channel::new(connection);
        let options = self.options;
        let started = fork(channel.as_fd(), || {
            fault::role("launcher");
            let Ok(connection) = channel.as_fd().try_clone_to_owned() else { return 70 };
            match launcher::serve(options.clone(), Channel::new(connection), duty) {
                Ok(()) => 0,
                Err(reason) => {
                    eprintln!("ampoule-runner: {reason}");
                    70
                }
            }
        });
        match started {
            Ok(session) => self.sessions.push((session, duty)),
            Err(error) => {
                let text = format!("a session cannot be started: {error}");
                let _ = channel.send(&Reply::Refused { code: Code::AdmissionBusy, message: text }, &[]);
            }
        }
    }

    /// Has what the dead have left seen to, by one process at a time.
    fn scavenge(&mut self) {
        if self.scavenger.is_some() || !(self.is_dirty || self.scavenge_at.left().is_zero()) {
            return;
        }
        self.scavenge_at = Moment::now().after(SCAVENGE_EVERY);
        let rechecks = self.recheck_at.left().is_zero();
        if rechecks {
            self.recheck_at = Moment::now().after(RECHECK_EVERY);
        }
        let options = self.options;
        let started = fork(self.signals.as_fd(), || {
            fault::role("scavenger");
            if rechecks {
                quarantine::recheck();
            }
            let Ok(state) = launcher::open_state(options) else { return 70 };
            recovery::scavenge(&state, false);
            0
        });
        if let Ok(child) = started {
            (self.scavenger, self.is_dirty) = (Some(child), false);
        }
    }
}

/// Errors of accept(2) that are the connection's, which is gone; the next one may be sound.
fn is_the_peers(errno: Errno) -> bool {
    matches!(errno, Errno::CONNABORTED | Errno::INTR | Errno::PERM | Errno::PROTO)
}

/// Says to somebody who may connect why he cannot now. A new connection has room for it: nobody is waited for.
fn refuse(connection: OwnedFd, message: String) {
    let _ = Channel::new(connection).send(&Reply::Refused { code: Code::AdmissionBusy, message }, &[]);
}

/// A process of its own that keeps one descriptor and standard error, and is told nothing by signals that are ours.
fn fork(keep: BorrowedFd<'_>, body: impl FnOnce() -> i32) -> std::io::Result<Child> {
    let stderr = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 3)?;
    spawn(Namespaces::default(), None, Keep::Only(&[keep, stderr.as_fd()]), || {
        let _ = rustix::stdio::dup2_stderr(&stderr);
        // A signal that is meant for the listener's group is not for it.
        let _ = rustix::process::setsid();
        if waited_for().thread_unblock().is_err() {
            return 70;
        }
        body()
    })
}
