//! Makes the run attestation of a job's record.

use crate::authority::{BuilderMode, Issuer};
use crate::canonical::NotCanonical;
use crate::clean::{Unclean, check_binding};
use crate::parameters::{HostFactsParameter, in_force};
use crate::provenance::{builder, invocation_id};
use crate::record::JobRecord;
use crate::rules::{FieldError, check_run};
use crate::run::{
    AgentClaims, Digests, Request, RunEnd, RunFailure, RunImage, RunInput, RunLayer, RunLog, RunOutput,
    RunPhase, RunPredicate, RunProvenance, RunSandbox, RunStatement, RunStep, RunTimeline, TeardownRecord,
};
use crate::secrets::SecretParameter;
use crate::statement::{Kind, ResourceDescriptor, Statement, UnsignedStatement, sha256_only};
use crate::time;
use ampoule_spec::{Code, Failure, InputSource, JobSpec, RunReport, Sha256, StepEnd, StepReport, Timeline};

/// Why there is no run attestation: the record contradicts itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunRefused {
    /// The report is not of this spec.
    #[error("the report does not belong to the spec")]
    Binding(#[from] Unclean),
    /// The finished statement breaks a rule that verifiers check.
    #[error("the statement would break a rule")]
    Rule(#[from] FieldError),
    /// The statement has no canonical form.
    #[error("the statement has no canonical form")]
    Canonical(#[from] NotCanonical),
}

impl RunRefused {
    /// The code of the job's end.
    pub fn code(&self) -> Code {
        Code::ProvenanceRefused
    }
}

/// What a run attestation is made of.
#[derive(Debug, Clone, Copy)]
pub struct RunRequest<'a> {
    /// The job's record.
    pub record: &'a JobRecord,
    /// Who signs.
    pub issuer: &'a Issuer,
    /// SHA-256 of the bytes of the provenance statement, if there is one.
    pub provenance_sha256: Option<Sha256>,
    /// What the agent says beyond the record.
    pub agent_claims: &'a AgentClaims,
}

/// Makes the run attestation of a job, whatever its outcome.
///
/// A profile for which no builder id stands is attested under the `dev` builder, which claims nothing:
/// that a record exists does not depend on what it says.
///
/// # Errors
/// [`RunRefused`] if the record contradicts itself.
pub fn run_attestation(request: &RunRequest<'_>) -> Result<UnsignedStatement, RunRefused> {
    let record = request.record;
    check_binding(record.spec(), record.spec_sha256(), record.report())?;
    let mut subject = vec![ResourceDescriptor::named("report.json", record.report_sha256())];
    subject.extend(record.report().logs().map(|(name, log)| ResourceDescriptor::named(name, log.sha256)));
    let predicate_type = request.issuer.authority.run_predicate_type();
    let statement: RunStatement = Statement::new(predicate_type, subject, predicate(request));
    check_run(&statement)?;
    Ok(UnsignedStatement::of(Kind::Run, &statement)?)
}

fn predicate(request: &RunRequest<'_>) -> RunPredicate {
    let (spec, report) = (request.record.spec(), request.record.report());
    let mode = request.issuer.mode(spec).unwrap_or(BuilderMode::Dev);
    let inputs = spec.inputs.iter().map(|input| RunInput {
        name: input.name.clone(),
        mount: input.mount.clone(),
        digest: digest_of(&input.source),
    });
    let layers = report.isolation.layers.iter().map(|(name, layer)| {
        (name.clone(), RunLayer { in_force: layer.in_force, detail: layer.detail.clone() })
    });
    RunPredicate {
        invocation_id: invocation_id(&report.job),
        attempt: spec.attempt.to_string(),
        builder: builder(report, request.issuer, request.issuer.authority.builder_id(mode)),
        request: Request {
            name: spec.name.clone(),
            profile: spec.profile.clone(),
            digest: sha256_only(request.record.spec_sha256()),
        },
        outcome: report.outcome,
        sandbox: (!request.record.had_sandbox()).then_some(RunSandbox::None),
        failure: report.failure.as_ref().map(failure),
        timeline: timeline(report.timeline),
        phases: phases(report),
        profile_digest: report.profile_sha256.map(sha256_only),
        isolation: layers.collect(),
        host: HostFactsParameter {
            kernel: report.host.kernel.clone(),
            machine: report.host.machine.clone(),
            cpu_model: report.host.cpu_model.clone(),
        },
        limits: report.limits.as_ref().map(in_force),
        image: report.image.as_ref().map(|image| RunImage {
            kind: image.kind.clone(),
            digest: sha256_only(image.sha256),
            named_by: Some(image.named_by.clone()).filter(|text| !text.is_empty()),
        }),
        inputs: inputs.collect(),
        secrets: spec.secrets.iter().map(SecretParameter::of).collect(),
        steps: report.steps.iter().enumerate().map(|(at, report)| step(at, report, spec)).collect(),
        outputs: outputs(report),
        teardown: TeardownRecord::of(&report.teardown),
        provenance: request.provenance_sha256.map(|d| RunProvenance { digest: sha256_only(d) }),
        agent_claims: request.agent_claims.clone(),
    }
}

/// What the job demands of an input: of a commit that nobody has fetched, its name.
fn digest_of(source: &InputSource) -> Digests {
    match source {
        InputSource::Git { tree: None, commit, .. } => crate::git::digest(*commit),
        known => known.sha256().map(sha256_only).unwrap_or_default(),
    }
}

fn failure(failure: &Failure) -> RunFailure {
    RunFailure {
        code: failure.code,
        fault: failure.code.fault(),
        message: failure.message.clone(),
        step: failure.step.map(|step| step.to_string()),
        teardown: failure.teardown.clone(),
    }
}

fn timeline(times: Timeline) -> RunTimeline {
    RunTimeline {
        admitted: time::format(times.admitted),
        started: times.started.map(time::format),
        finished: times.finished.map(time::format),
        destroyed: times.destroyed.map(time::format),
    }
}

fn phases(report: &RunReport) -> Vec<RunPhase> {
    let phases = report.phases.iter();
    phases.map(|p| RunPhase { phase: p.phase.clone(), micros: p.micros.to_string() }).collect()
}

fn step(at: usize, step: &StepReport, spec: &JobSpec) -> RunStep {
    let end = match &step.end {
        StepEnd::Exited { .. } => RunEnd::Exited,
        StepEnd::Signalled { .. } => RunEnd::Signalled,
        StepEnd::TimedOut => RunEnd::TimedOut,
        StepEnd::KilledByLimit { .. } => RunEnd::KilledByLimit,
        StepEnd::Cancelled => RunEnd::Cancelled,
        StepEnd::NotStarted { .. } => RunEnd::NotStarted,
        StepEnd::Aborted => RunEnd::Aborted,
        StepEnd::NotRun => RunEnd::NotRun,
    };
    let mut out = RunStep {
        name: step.name.clone(),
        end,
        exit_code: None,
        signal: None,
        code: None,
        reason: None,
        started: step.started.map(time::format),
        finished: step.finished.map(time::format),
        cpu_micros: step.usage.cpu_micros.to_string(),
        memory_peak_bytes: step.usage.memory_peak_bytes.to_string(),
        survivors_killed: step.survivors_killed.to_string(),
        secrets: spec.steps.get(at).map(|named| named.secrets.clone()).unwrap_or_default(),
        logs: logs(at, step),
    };
    match &step.end {
        StepEnd::Exited { code } => out.exit_code = Some(code.to_string()),
        StepEnd::Signalled { signal } => out.signal = Some(signal.to_string()),
        StepEnd::KilledByLimit { code } => out.code = Some(*code),
        StepEnd::NotStarted { reason } => out.reason = Some(reason.clone()),
        StepEnd::TimedOut | StepEnd::Cancelled | StepEnd::Aborted | StepEnd::NotRun => {}
    }
    out
}

fn logs(at: usize, step: &StepReport) -> Vec<RunLog> {
    let logs = step.logs.iter().map(|log| RunLog {
        name: format!("{at}-{}.{}", step.name, log.stream.as_str()),
        stream: log.stream,
        digest: sha256_only(log.sha256),
        bytes: log.bytes.to_string(),
        cut_bytes: log.cut_bytes.to_string(),
        masked: Some(log.masked).filter(|spans| *spans > 0).map(|spans| spans.to_string()),
    });
    logs.collect()
}

fn outputs(report: &RunReport) -> Vec<RunOutput> {
    let outputs = report.outputs.iter().map(|output| RunOutput {
        name: output.name.clone(),
        path: output.path.clone(),
        kind: output.kind,
        form: output.form,
        bytes: output.bytes.to_string(),
        entries: output.entries.map(|entries| entries.to_string()),
        digest: sha256_only(output.sha256),
        executable: output.executable,
    });
    outputs.collect()
}
