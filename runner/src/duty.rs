//! What a listener's session is for, so that jobs can be asked for, fenced and forgotten however many others work.

use crate::admission::{Refusal, refuse};
use ampoule_ipc::Channel;
use ampoule_spec::Code;
use ampoule_spec::wire::Request;
use rustix::event::Timespec;

/// How long a session at the desk waits for the next question.
const PATIENCE: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// What a session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Duty {
    /// Whatever it is asked.
    Anything,
    /// What is over in a moment: which jobs there are, fencing and forgetting one. Who asks nothing for a while has to leave,
    /// and who asks for anything else leaves at once.
    Desk,
}

impl Duty {
    /// Refuses what is not for such a session.
    pub(crate) fn demand(self, request: &Request) -> Result<(), Refusal> {
        let is_short =
            matches!(request, Request::Jobs { .. } | Request::Fence { .. } | Request::Forget { .. });
        if self == Self::Anything || is_short {
            return Ok(());
        }
        let text = "all connections that do this are taken; close one, or wait. This one lists, fences and forgets jobs";
        Err(refuse(Code::AdmissionBusy, text))
    }

    /// How long it waits for somebody to ask; none: for ever.
    pub(crate) fn patience(self) -> Option<Timespec> {
        (self == Self::Desk).then_some(PATIENCE)
    }
}

/// Has what a client asks from now on fail at its end; what it has asked before is answered, and then its session ends. A
/// question that nobody answers would be a job of which nobody knows whether it is admitted.
pub(crate) fn hear_no_more(client: &Channel) {
    // A socket that has a peer, or had one, cannot refuse that.
    let _ = rustix::net::shutdown(client, rustix::net::Shutdown::Read);
}
