//! By what a job can be ended from outside: the lifetime pipe of `ampoule run`, whose client's death ends it too, or
//! the control socket of a job that belongs to nobody's connection.

use crate::control::Control;
use ampoule_spec::wire::CANCEL;
use ampoule_spec::{Code, Failure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;

/// What the client's end says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// The client cancelled the job.
    Cancel,
    /// The client is gone.
    ClientGone,
}

impl Wish {
    /// The failure that it is.
    pub(crate) fn failure(self) -> Failure {
        let (code, message) = match self {
            Self::Cancel => (Code::JobCancelled, "the client cancelled the job"),
            Self::ClientGone => (Code::JobAborted, "the client that ran the job is gone"),
        };
        Failure::new(code, message)
    }
}

/// What of the kind a job has; the descriptor comes beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Leash {
    None,
    Pipe,
    Socket {
        /// The uid whose word counts.
        agent: u32,
    },
}

/// The runner's end.
#[derive(Debug)]
pub(crate) struct Lifetime(End);

#[derive(Debug)]
enum End {
    None,
    Pipe(OwnedFd),
    Socket(Control),
}

impl Lifetime {
    pub(crate) fn new(leash: Leash, descriptor: Option<OwnedFd>) -> Self {
        Self(match (leash, descriptor) {
            (Leash::Pipe, Some(pipe)) => End::Pipe(pipe),
            (Leash::Socket { agent }, Some(socket)) => End::Socket(Control::new(socket, agent)),
            _ => End::None,
        })
    }

    /// To be polled with other descriptors.
    pub(crate) fn poll_fds(&self) -> Vec<PollFd<'_>> {
        match &self.0 {
            End::None => Vec::new(),
            End::Pipe(pipe) => vec![PollFd::new(pipe, PollFlags::IN)],
            End::Socket(control) => control.poll_fds(),
        }
    }

    /// How many packets were ignored.
    pub(crate) fn ignored(&self) -> u64 {
        match &self.0 {
            End::Socket(control) => control.ignored(),
            End::None | End::Pipe(_) => 0,
        }
    }

    /// The socket by which secrets come, if there is one.
    pub(crate) fn control(&mut self) -> Option<&mut Control> {
        match &mut self.0 {
            End::Socket(control) => Some(control),
            End::None | End::Pipe(_) => None,
        }
    }

    /// Reads the wish once one of the descriptors is readable. The first one of a pipe counts; it is then closed.
    pub(crate) fn wish(&mut self) -> Option<Wish> {
        let pipe = match &mut self.0 {
            End::None => return None,
            End::Socket(control) => return control.hear().then_some(Wish::Cancel),
            End::Pipe(pipe) => pipe,
        };
        let mut byte = [0];
        let wish = match rustix::io::read(pipe, &mut byte) {
            Ok(0) => Some(Wish::ClientGone),
            Ok(_) if byte == [CANCEL] => Some(Wish::Cancel),
            _ => None,
        };
        if wish.is_some() {
            self.0 = End::None;
        }
        wish
    }

    /// The wish if there is one already, without waiting.
    pub(crate) fn wish_now(&mut self) -> Option<Wish> {
        let readable = {
            let mut ready = self.poll_fds();
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            !ready.is_empty() && poll(&mut ready, Some(&now)).is_ok_and(|n| n > 0)
        };
        if readable { self.wish() } else { None }
    }
}
