//! What the front has found out about a call before a service sees it.

use super::error::ApiError;
use crate::admission::{Action, Desk, Question, Scene};
use crate::audit;
use crate::content::Gate;
use crate::job::Caller;
use crate::traces::Call;
use ampoule_spec::{Code, JobId, Name};
use std::sync::Arc;
use std::time::Duration;
use tonic::{Extensions, Status};

/// When to ask again after the audit log could not be written.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// A call whose caller is known. It stands in the request's extensions.
#[derive(Debug, Clone)]
pub struct Known {
    /// Who calls.
    pub caller: Arc<Caller>,
    /// Where from: `unix` or an address.
    pub peer: Arc<str>,
    /// The call: `ampoule.v1.JobService/GetJob`.
    pub call: Arc<str>,
    /// The call's span.
    pub span: Call,
}

impl Known {
    /// Of a request that came through the front.
    ///
    /// # Errors
    /// `internal` if it did not: nothing is served past the front.
    pub fn of(extensions: &Extensions) -> Result<Self, ApiError> {
        let known = extensions.get::<Self>().cloned();
        known.ok_or_else(|| ApiError::new(Code::Internal, "a call came past the front"))
    }

    /// For the desk.
    pub fn scene(&self) -> Scene<'_> {
        Scene { peer: &self.peer, call: &self.call }
    }

    /// An entry of the audit log about what the call is about to do.
    pub fn entry(&self, action: audit::Action) -> audit::AuditEvent {
        let event = audit::AuditEvent::now(action, self.caller.subject.clone());
        event.with("peer", &self.peer).with("call", &self.call)
    }

    /// Writes down what the call is about to do. When it returns that is durable.
    ///
    /// # Errors
    /// `call.busy` with a time if it could not be written: then nothing may be done.
    pub async fn write(&self, desk: &Desk, event: &audit::AuditEvent) -> Result<(), ApiError> {
        desk.write(event).await.map_err(unwritten)
    }

    /// The same of what the call is about to read.
    ///
    /// # Errors
    /// As [`Known::write`].
    pub async fn read(&self, desk: &Desk, event: &audit::AuditEvent) -> Result<(), ApiError> {
        desk.write_read(event).await.map_err(unwritten)
    }

    /// Asks the desk.
    ///
    /// # Errors
    /// `call.denied`, told to the audit log.
    pub fn ask(&self, desk: &Desk, question: &Question<'_>, job: Option<&JobId>) -> Result<(), ApiError> {
        if desk.allows(question, self.scene(), job) { Ok(()) } else { Err(ApiError::denied()) }
    }
}

fn unwritten(error: audit::AuditError) -> ApiError {
    if let audit::AuditError::TooOften { retry_after } = error {
        let text = "this caller does more than the audit log of this host takes of one; go on more slowly, or have the operator raise \
                    [audit] rate";
        return ApiError::later(Code::CallBusy, text, retry_after);
    }
    // Why is in the daemon's log, and may hold paths of the host.
    let text = "the audit log of this host cannot be written now, and nothing is done without it";
    ApiError::later(Code::CallBusy, text, RETRY_AFTER)
}

/// The desk at the gate of the content service. Every call of it is one action: who may upload may ask what is missing.
#[derive(Debug, Clone)]
pub struct ContentGate(pub Arc<Desk>);

impl Gate for ContentGate {
    async fn allow(&self, _: &'static str, project: &Name, extensions: &Extensions) -> Result<(), Status> {
        let known = Known::of(extensions)?;
        let question = Question::project(&known.caller, Action::Upload, project.as_str());
        Ok(known.ask(&self.0, &question, None)?)
    }
}
