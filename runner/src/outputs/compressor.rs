//! The compressor: a process between the archive of an output and its file.
//!
//! It reads a tenant's bytes with a library in C, and so it has no privilege: what could be won in it is other bytes
//! in an output whose bytes are the tenant's anyway. It can open no file (Landlock). The supervisor gives it the archive, takes what it says, hashes and
//! writes that. Both pipes are watched at once, so that neither waits for the other.

use super::sink::{Sink, Sunk};
use crate::pump::lower_privilege;
use ampoule_sandbox::{confine, fault};
use ampoule_store::compress::compress;
use ampoule_sys::process::{Child, End, Keep, Namespaces, Waited, Which, spawn, wait};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, pidfd_send_signal};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

/// How often the job may say that it has to stop.
const LOOK_EVERY: Timespec = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };
/// Bytes taken at a time.
const BUFFER_BYTES: usize = 128 << 10;
/// The exit status of a compressor that could not confine itself.
const UNCONFINED: i32 = 70;

/// The process; ended and reaped when it is dropped, because it is one of the job's user ids.
struct Process(Option<Child>);

impl Process {
    /// Whether it has ended, waiting no longer than until the next look.
    fn has_ended(&self) -> io::Result<bool> {
        let Some(child) = &self.0 else { return Ok(true) };
        match poll(&mut [PollFd::new(&child.pidfd, PollFlags::IN)], Some(&LOOK_EVERY)) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::INTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// How it ended by itself.
    fn reap(mut self) -> Option<End> {
        let child = self.0.take()?;
        match wait(Which::Pid(child.pid), true) {
            Ok(Waited::Reaped(reaped)) => Some(reaped.end),
            _ => None,
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(child) = &self.0 {
            let _ = pidfd_send_signal(&child.pidfd, Signal::KILL);
            let _ = wait(Which::Pid(child.pid), true);
        }
    }
}

/// A running compressor.
pub(super) struct Compressor<'a, 's> {
    process: Process,
    to: Option<OwnedFd>,
    from: OwnedFd,
    sink: Sink<'a, 's>,
    buffer: Vec<u8>,
}

/// What a look at both pipes found.
enum Ready {
    /// Room for more.
    Room,
    /// The compressor has said everything.
    Ended,
    /// Nothing yet.
    Neither,
}

impl<'a, 's> Compressor<'a, 's> {
    /// Starts one. As host root it runs as the id `run_as`, and reaches no network.
    pub(super) fn start(sink: Sink<'a, 's>, run_as: Option<u32>) -> io::Result<Self> {
        let (archive, to) = pipe_with(PipeFlags::CLOEXEC)?;
        let (from, result) = pipe_with(PipeFlags::CLOEXEC)?;
        let namespaces = Namespaces { net: run_as.is_some(), ipc: run_as.is_some(), ..Namespaces::default() };
        let keep = [archive.as_fd(), result.as_fd()];
        let child = spawn(namespaces, None, Keep::Only(&keep), || {
            fault::role("compressor");
            let (Ok(archive), Ok(result)) = (archive.try_clone(), result.try_clone()) else {
                return UNCONFINED;
            };
            if lower_privilege("compressor: lower its privilege", run_as).is_err()
                || confine::limit_worker(0).is_err()
                || confine::confine_to_descriptors().is_err()
            {
                return UNCONFINED;
            }
            i32::from(compress(&mut File::from(archive), &mut File::from(result)).is_err())
        })?;
        let process = Process(Some(child));
        let compressor = Self { process, to: Some(to), from, sink, buffer: vec![0; BUFFER_BYTES] };
        for pipe in compressor.to.iter().chain([&compressor.from]) {
            fcntl_setfl(pipe, fcntl_getfl(pipe)? | OFlags::NONBLOCK)?;
        }
        Ok(compressor)
    }

    /// The archive is whole: takes what is left of the result.
    pub(super) fn finish(mut self) -> io::Result<Sunk> {
        self.to = None;
        while !matches!(self.look()?, Ready::Ended) {}
        // One that was taken over may close its end and stay.
        while !self.process.has_ended()? {
            self.sink.check()?;
        }
        match self.process.reap() {
            Some(End::Exited(0)) => self.sink.finish(),
            other => Err(io::Error::other(format!("the compressor failed: {other:?}"))),
        }
    }

    /// Waits for one of the pipes, and takes what has come.
    fn look(&mut self) -> io::Result<Ready> {
        self.sink.check()?;
        let (has_come, room) = {
            let mut ready = vec![PollFd::new(&self.from, PollFlags::IN)];
            ready.extend(self.to.iter().map(|to| PollFd::new(to, PollFlags::OUT)));
            match poll(&mut ready, Some(&LOOK_EVERY)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let woken = |at: usize| ready.get(at).is_some_and(|fd| !fd.revents().is_empty());
            (woken(0), woken(1))
        };
        if has_come {
            match rustix::io::read(&self.from, &mut self.buffer) {
                Ok(0) => return Ok(Ready::Ended),
                Ok(count) => self.sink.write_all(self.buffer.get(..count).unwrap_or_default())?,
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(if room { Ready::Room } else { Ready::Neither })
    }
}

impl Write for Compressor<'_, '_> {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        loop {
            match self.look()? {
                Ready::Ended => return Err(io::Error::other("the compressor ended too early")),
                Ready::Neither => continue,
                Ready::Room => {}
            }
            let Some(to) = &self.to else { return Err(io::ErrorKind::BrokenPipe.into()) };
            match rustix::io::write(to, part) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(Errno::PIPE) => return Err(io::Error::other("the compressor is dead")),
                other => return Ok(other?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
