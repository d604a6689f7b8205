//! The lifetime pipe of `ampoule run`: the client that started a job can end it, and its death does.

use ampoule_spec::wire::CANCEL;
use rustix::event::{PollFd, PollFlags};
use std::os::fd::OwnedFd;

/// What the client's end of the pipe says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// The client cancelled the job.
    Cancel,
    /// The client is gone.
    ClientGone,
}

/// The runner's end of a lifetime pipe, or none.
#[derive(Debug)]
pub(crate) struct Lifetime(Option<OwnedFd>);

impl Lifetime {
    pub(crate) fn new(pipe: Option<OwnedFd>) -> Self {
        Self(pipe)
    }

    /// To be polled with other descriptors.
    pub(crate) fn poll_fd(&self) -> Option<PollFd<'_>> {
        self.0.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN))
    }

    /// Reads the wish once the pipe is readable. The first one counts; the pipe is then closed.
    pub(crate) fn wish(&mut self) -> Option<Wish> {
        let pipe = self.0.take()?;
        let mut byte = [0];
        match rustix::io::read(&pipe, &mut byte) {
            Ok(0) => Some(Wish::ClientGone),
            Ok(_) if byte == [CANCEL] => Some(Wish::Cancel),
            _ => {
                self.0 = Some(pipe);
                None
            }
        }
    }

    /// The wish if there is one already, without waiting.
    pub(crate) fn wish_now(&mut self) -> Option<Wish> {
        let readable = {
            let mut ready = [self.poll_fd()?];
            let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            rustix::event::poll(&mut ready, Some(&now)).is_ok_and(|n| n > 0)
        };
        if readable { self.wish() } else { None }
    }
}
