//! The one table of error codes: code → exit status → gRPC status → fault.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Who has to act on an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The job or its request.
    Tenant,
    /// The host's configuration, or what the host lacks.
    Operator,
    /// Ampoule, the machine or a service it depends on.
    Platform,
}

impl Fault {
    /// The fault's spelling in every format.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tenant => "tenant",
            Self::Operator => "operator",
            Self::Platform => "platform",
        }
    }
}

/// Exit statuses of `ampoule` (after `sysexits.h` where it has a name for the case).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Exit {
    /// Success, signed and durable.
    Success = 0,
    /// The job failed.
    JobFailed = 1,
    /// A verification or a release policy refused.
    Refused = 2,
    /// The job was cancelled.
    Cancelled = 3,
    /// Wrong usage, or a bad job file or configuration.
    Usage = 64,
    /// An input's digest did not match: never retry.
    Digest = 65,
    /// The host cannot give what the profile demands.
    Unsupported = 69,
    /// Internal, unclean teardown or provenance refused: nothing was released.
    Internal = 70,
    /// Try again: unreachable, over quota, lost.
    TryAgain = 75,
    /// Denied.
    Denied = 77,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal, $exit:ident, $grpc:literal, $fault:ident;)+) => {
        /// A bounded error code, spelt `<phase>.<what>` in every event, report and reply.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[non_exhaustive]
        pub enum Code {
            $($(#[$doc])* #[serde(rename = $text)] $variant,)+
        }

        impl Code {
            /// Every code, in the order of a job's life.
            pub const ALL: &'static [Code] = &[$(Code::$variant,)+];

            /// The code's spelling.
            pub const fn as_str(self) -> &'static str {
                match self { $(Code::$variant => $text,)+ }
            }

            /// The exit status of a command that ends with this code.
            pub const fn exit(self) -> Exit {
                match self { $(Code::$variant => Exit::$exit,)+ }
            }

            /// The gRPC status name of a call that ends with this code.
            pub const fn grpc(self) -> &'static str {
                match self { $(Code::$variant => $grpc,)+ }
            }

            /// Who has to act.
            pub const fn fault(self) -> Fault {
                match self { $(Code::$variant => Fault::$fault,)+ }
            }
        }
    };
}

codes! {
    /// The job file, spec or request is wrong; the message names the field.
    JobInvalid = "job.invalid", Usage, "INVALID_ARGUMENT", Tenant;
    /// The request is larger than anything that is read, or is not what its schema says.
    CallInvalid = "call.invalid", Usage, "INVALID_ARGUMENT", Tenant;
    /// There is no such call.
    CallUnknown = "call.unknown", Usage, "UNIMPLEMENTED", Tenant;
    /// It is not known who calls.
    CallerUnknown = "caller.unknown", Denied, "UNAUTHENTICATED", Tenant;
    /// The caller may not do that.
    CallDenied = "call.denied", Denied, "PERMISSION_DENIED", Tenant;
    /// The caller asks for more at once than one caller gets.
    CallBusy = "call.busy", TryAgain, "RESOURCE_EXHAUSTED", Tenant;
    /// The request did not arrive, or was not answered, within its time.
    CallTimeout = "call.timeout", TryAgain, "DEADLINE_EXCEEDED", Tenant;
    /// There is no such job, or none that the caller may know of.
    JobUnknown = "job.unknown", Usage, "NOT_FOUND", Tenant;
    /// Content that the job names was not uploaded to its project.
    ContentMissing = "content.missing", Usage, "FAILED_PRECONDITION", Tenant;
    /// The caller has used the key for another request.
    JobKeyReused = "job.key_reused", Usage, "ALREADY_EXISTS", Tenant;
    /// The job has not finished: what is asked for is not there yet.
    JobUnfinished = "job.unfinished", TryAgain, "FAILED_PRECONDITION", Tenant;
    /// The command line is wrong.
    Usage = "usage", Usage, "INVALID_ARGUMENT", Tenant;
    /// A local file that the command needs cannot be read or written.
    FileUnusable = "file.unusable", Usage, "FAILED_PRECONDITION", Tenant;
    /// The file system has no room for a local file that the command writes.
    FileFull = "file.full", TryAgain, "RESOURCE_EXHAUSTED", Operator;
    /// Policy denied the job.
    AdmissionDenied = "admission.denied", Denied, "PERMISSION_DENIED", Tenant;
    /// The host has no free place for the job now.
    AdmissionBusy = "admission.busy", TryAgain, "RESOURCE_EXHAUSTED", Operator;
    /// An input's bytes do not have the digest that the job names.
    InputDigestMismatch = "input.digest_mismatch", Digest, "FAILED_PRECONDITION", Tenant;
    /// An input or image is not pinned by a digest.
    InputUnpinned = "input.unpinned", Usage, "INVALID_ARGUMENT", Tenant;
    /// An input's source is not allowed.
    InputSourceDenied = "input.source_denied", Denied, "PERMISSION_DENIED", Operator;
    /// An input is missing at its source.
    InputMissing = "input.missing", Usage, "NOT_FOUND", Tenant;
    /// An input's source did not answer, or not completely.
    InputUnreachable = "input.unreachable", TryAgain, "UNAVAILABLE", Platform;
    /// An input's content is refused: a hostile or unsupported archive, image or tree.
    InputRefused = "input.refused", Usage, "INVALID_ARGUMENT", Tenant;
    /// A git input is not signed by whom its allowed-signers file names.
    InputUnsigned = "input.unsigned", Refused, "FAILED_PRECONDITION", Tenant;
    /// What the store has of an input or image is not what was put there; it is in quarantine now, and the next run
    /// takes it in again.
    InputDamaged = "input.damaged", TryAgain, "DATA_LOSS", Platform;
    /// The host changed an input, the image or its own package list while the job used it.
    InputChanged = "input.changed", Internal, "DATA_LOSS", Platform;
    /// The file system of the store has no room for another import.
    StoreFull = "store.full", TryAgain, "RESOURCE_EXHAUSTED", Operator;
    /// The caller or its job may not have a secret that a step names.
    SecretDenied = "secret.denied", Denied, "PERMISSION_DENIED", Tenant;
    /// A secret that a step names could not be had, or not in time.
    SecretUnavailable = "secret.unavailable", TryAgain, "UNAVAILABLE", Platform;
    /// The profile demands something that this host or this user cannot give.
    SandboxUnsupported = "sandbox.unsupported", Unsupported, "FAILED_PRECONDITION", Operator;
    /// A stage of the sandbox's set-up failed; stage and errno are named.
    SandboxSetupFailed = "sandbox.setup_failed", Internal, "INTERNAL", Platform;
    /// A step's program could not be started: no such file, not executable, or no such directory.
    StepNotStarted = "step.not_started", JobFailed, "FAILED_PRECONDITION", Tenant;
    /// A step ended with another exit status than 0.
    StepExitNonzero = "step.exit_nonzero", JobFailed, "FAILED_PRECONDITION", Tenant;
    /// A step was ended by a signal that Ampoule did not send.
    StepSignalled = "step.signalled", JobFailed, "FAILED_PRECONDITION", Tenant;
    /// A step or the job ran longer than its time limit.
    LimitTimeout = "limit.timeout", JobFailed, "DEADLINE_EXCEEDED", Tenant;
    /// The kernel killed a process of the job for want of memory within its limit.
    LimitOom = "limit.oom", JobFailed, "RESOURCE_EXHAUSTED", Tenant;
    /// The job reached its process limit and failed.
    LimitPids = "limit.pids", JobFailed, "RESOURCE_EXHAUSTED", Tenant;
    /// The job filled its disk and failed.
    LimitDisk = "limit.disk", JobFailed, "RESOURCE_EXHAUSTED", Tenant;
    /// A step wrote more log than is kept, and the job says that this is a failure.
    LimitLog = "limit.log", JobFailed, "RESOURCE_EXHAUSTED", Tenant;
    /// A declared output is not there.
    OutputMissing = "output.missing", JobFailed, "FAILED_PRECONDITION", Tenant;
    /// A declared output is not a plain file, or larger than allowed.
    OutputRefused = "output.refused", JobFailed, "FAILED_PRECONDITION", Tenant;
    /// An output has a secret of one of the job's steps in it.
    SecretInOutput = "secret.in_output", JobFailed, "FAILED_PRECONDITION", Tenant;
    /// The job was cancelled.
    JobCancelled = "job.cancelled", Cancelled, "CANCELLED", Tenant;
    /// A process of Ampoule's that the job needed died.
    JobAborted = "job.aborted", TryAgain, "ABORTED", Platform;
    /// Something of the job was left behind, or could not be shown to be gone.
    TeardownUnclean = "teardown.unclean", Internal, "INTERNAL", Platform;
    /// Provenance cannot be signed; nothing is released.
    ProvenanceRefused = "provenance.refused", Internal, "FAILED_PRECONDITION", Platform;
    /// A registry is not allowed, or does not allow what is to be brought there.
    ExportDenied = "export.denied", Denied, "PERMISSION_DENIED", Operator;
    /// What is to be brought out, or where, is not what it has to be.
    ExportRefused = "export.refused", Usage, "INVALID_ARGUMENT", Tenant;
    /// A registry did not answer, or not completely.
    ExportUnreachable = "export.unreachable", TryAgain, "UNAVAILABLE", Platform;
    /// The daemon does not answer, or the connection was lost.
    ServerUnreachable = "server.unreachable", TryAgain, "UNAVAILABLE", Platform;
    /// A verification failed; the message names the check.
    VerifyRefused = "verify.refused", Refused, "FAILED_PRECONDITION", Tenant;
    /// A defect of Ampoule, or of the machine below it.
    Internal = "internal", Internal, "INTERNAL", Platform;
}

impl Code {
    /// The code with this spelling.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.as_str() == text)
    }

    /// Whether the same job may succeed when it is submitted again unchanged.
    pub const fn retryable(self) -> bool {
        matches!(self.exit(), Exit::TryAgain)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// The gRPC status names (grpc/doc/statuscodes.md).
    const GRPC: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];

    #[test]
    fn table_is_complete_and_codes_are_unique() {
        let texts: BTreeSet<_> = Code::ALL.iter().map(|c| c.as_str()).collect();
        assert_eq!(texts.len(), Code::ALL.len());
        for code in Code::ALL {
            assert!(GRPC.contains(&code.grpc()) && code.grpc() != "OK", "{code}");
            assert_ne!(code.exit(), Exit::Success, "{code}");
            let json = serde_json::to_string(code).unwrap();
            assert_eq!(json, format!("\"{code}\""));
            assert_eq!(serde_json::from_str::<Code>(&json).unwrap(), *code);
        }
    }
}
