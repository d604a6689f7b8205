//! SLSA provenance of a clean run.

use crate::authority::{Issuer, UnknownProfile};
use crate::canonical::{NotCanonical, canonical_json};
use crate::clean::CleanRun;
use crate::dependencies;
use crate::parameters::{ExternalParameters, InternalParameters, to_map};
use crate::rules::{FieldError, check_provenance};
use crate::run::TeardownRecord;
use crate::slsa::{
    BuildDefinition, Builder, Metadata, PROVENANCE_PREDICATE_TYPE, ProvenancePredicate, ProvenanceStatement,
    RunDetails,
};
use crate::statement::{Kind, ResourceDescriptor, Statement, UnsignedStatement, sha256};
use crate::time;
use crate::uri::UriError;
use ampoule_spec::{Code, JobId, OutputKind, OutputReport, RunReport, Sha256, UnixNanos};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::collections::BTreeMap;

/// The largest content that is put into a descriptor, in bytes (in-toto: "less than 1 KB").
pub(crate) const CONTENT_BYTES_MAX: usize = 1023;

/// Why a clean run has no provenance.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProvenanceRefused {
    /// The job has no artifact among its outputs, and a statement needs a subject.
    #[error("the job has no output of kind artifact, so there is nothing to attest")]
    NoSubject,
    /// No builder id stands for the profile.
    #[error(transparent)]
    Profile(#[from] UnknownProfile),
    /// A URL or reference of the job cannot stand in an attestation.
    #[error(transparent)]
    Uri(#[from] UriError),
    /// The report lacks what the statement must say.
    #[error("the report lacks {what}")]
    Lacks {
        /// The field.
        what: &'static str,
    },
    /// The finished statement breaks a rule that verifiers check.
    #[error("the statement would break a rule")]
    Rule(#[from] FieldError),
    /// The statement has no canonical form.
    #[error("the statement has no canonical form")]
    Canonical(#[from] NotCanonical),
    /// The parameters have no JSON form.
    #[error("the parameters have no JSON form")]
    Json(#[from] serde_json::Error),
}

impl ProvenanceRefused {
    /// The code of the job's end.
    pub fn code(&self) -> Code {
        Code::ProvenanceRefused
    }
}

/// Makes the provenance statement of a clean run.
///
/// It is a function of its arguments: the same run gives the same bytes, so a statement that was lost
/// before it was signed can be made again. `report_sha256` is the digest of the bytes of `report.json`.
///
/// # Errors
/// [`ProvenanceRefused`], with its own variant for a job without an artifact.
pub fn provenance(
    run: &CleanRun<'_>,
    issuer: &Issuer,
    report_sha256: Sha256,
) -> Result<UnsignedStatement, ProvenanceRefused> {
    let subject = subject(run.report());
    if subject.is_empty() {
        return Err(ProvenanceRefused::NoSubject);
    }
    let predicate = ProvenancePredicate {
        build_definition: build_definition(run, issuer)?,
        run_details: run_details(run, issuer, report_sha256)?,
    };
    let statement: ProvenanceStatement =
        Statement::new(PROVENANCE_PREDICATE_TYPE.to_owned(), subject, predicate);
    check_provenance(&statement)?;
    Ok(UnsignedStatement::of(Kind::Provenance, &statement)?)
}

fn subject(report: &RunReport) -> Vec<ResourceDescriptor> {
    let artifacts = report.outputs.iter().filter(|output| output.kind == OutputKind::Artifact);
    let named = |o: &OutputReport| ResourceDescriptor::named(o.name.as_str(), o.sha256).with_form(o.form);
    artifacts.map(named).collect()
}

fn build_definition(run: &CleanRun<'_>, issuer: &Issuer) -> Result<BuildDefinition, ProvenanceRefused> {
    let external = ExternalParameters::of(run.spec())?;
    let internal = InternalParameters::of(run.report())
        .ok_or(ProvenanceRefused::Lacks { what: "profile_sha256 or limits" })?;
    let image = run.report().image.as_ref().ok_or(ProvenanceRefused::Lacks { what: "image" })?;
    let dependencies =
        dependencies::resolved(&external, image).ok_or(ProvenanceRefused::Lacks { what: "digests" })?;
    Ok(BuildDefinition {
        build_type: issuer.authority.build_type(),
        external_parameters: to_map(&external)?,
        internal_parameters: to_map(&internal)?,
        resolved_dependencies: dependencies,
    })
}

fn run_details(
    run: &CleanRun<'_>,
    issuer: &Issuer,
    report_sha256: Sha256,
) -> Result<RunDetails, ProvenanceRefused> {
    let report = run.report();
    let mode = issuer.mode(run.spec())?;
    let at = |what, at: Option<UnixNanos>| at.map(time::format).ok_or(ProvenanceRefused::Lacks { what });
    Ok(RunDetails {
        builder: builder(report, issuer, issuer.authority.builder_id(mode)),
        metadata: Metadata {
            invocation_id: invocation_id(&report.job),
            started_on: at("timeline.started", report.timeline.started)?,
            finished_on: at("timeline.finished", report.timeline.finished)?,
        },
        byproducts: byproducts(report, report_sha256)?,
    })
}

/// The builder as both statements describe it.
pub(crate) fn builder(report: &RunReport, issuer: &Issuer, id: String) -> Builder {
    let uri = issuer.authority.runner_uri(&report.runner_version);
    let runner = report.runner_sha256.map(|sha256| {
        let mut runner = ResourceDescriptor::at(uri, sha256);
        runner.name = Some("ampoule-runner".to_owned());
        runner
    });
    Builder {
        id,
        version: BTreeMap::from([
            ("ampoule-runner".to_owned(), report.runner_version.clone()),
            ("kernel".to_owned(), report.host.kernel.clone()),
        ]),
        builder_dependencies: runner.into_iter().collect(),
    }
}

/// The id of one attempt at a job.
pub(crate) fn invocation_id(job: &JobId) -> String {
    format!("urn:uuid:{job}")
}

fn byproducts(report: &RunReport, report_sha256: Sha256) -> Result<Vec<ResourceDescriptor>, NotCanonical> {
    let mut out: Vec<_> = report
        .logs()
        .map(|(name, log)| ResourceDescriptor::named(name, log.sha256).with_media_type("text/plain"))
        .collect();
    let reports = report.outputs.iter().filter(|output| output.kind == OutputKind::Report);
    // ':' is in no output's name, so a tenant's report cannot be taken for one of ours.
    out.extend(
        reports.map(|o| ResourceDescriptor::named(format!("output:{}", o.name), o.sha256).with_form(o.form)),
    );
    out.push(ResourceDescriptor::named("report.json", report_sha256).with_media_type("application/json"));
    let record = canonical_json(&TeardownRecord::of(&report.teardown))?;
    let mut teardown =
        ResourceDescriptor::named("teardown", sha256(&record)).with_media_type("application/json");
    if record.len() <= CONTENT_BYTES_MAX {
        teardown.content = Some(STANDARD.encode(&record));
    }
    out.push(teardown);
    Ok(out)
}
