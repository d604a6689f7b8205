//! The way back: the job that external parameters describe.
//!
//! That there is a way back is what makes the parameters complete: whatever a tenant can choose can be read
//! from them again, so a job can be run again from its provenance alone.

use crate::parameters::{ExternalParameters, ImageParameter, InputParameter, Param};
use ampoule_spec::{
    FORMAT, Image, Input, InputSource, JobId, JobSpec, LimitsRequest, MadeBy, Name, Output, OutputName,
    ParamValue, Sha256, Step,
};
use std::collections::BTreeMap;

impl ExternalParameters {
    /// The job that these parameters describe, as the first attempt under an invocation id `urn:uuid:…`;
    /// `None` if a value is not one a job can have.
    pub fn to_spec(&self, invocation_id: &str) -> Option<JobSpec> {
        let steps = self.steps.iter().map(|step| {
            Some(Step {
                name: step.name.clone(),
                run: step.run.clone(),
                cwd: step.cwd.clone(),
                env: step.env.clone(),
                timeout_ms: number(&step.timeout_ms)?,
                secrets: step.secrets.clone(),
            })
        });
        let outputs = self.outputs.iter().map(|output| Output {
            name: output.name.clone(),
            path: output.path.clone(),
            when: output.when,
            kind: output.kind,
            optional: output.optional,
            form: output.form,
        });
        Some(JobSpec {
            ampoule: FORMAT,
            id: JobId::parse(invocation_id.strip_prefix("urn:uuid:")?).ok()?,
            attempt: 1,
            name: self.name.clone(),
            profile: self.profile.clone(),
            image: image(&self.image)?,
            user: self.user,
            source_date_epoch: number(&self.source_date_epoch)?,
            epoch_of_commit: false,
            env: self.env.clone(),
            params: params(&self.params)?,
            inputs: self.inputs.iter().map(input).collect::<Option<_>>()?,
            secrets: self.secrets.iter().map(|secret| secret.secret()).collect::<Option<_>>()?,
            steps: steps.collect::<Option<_>>()?,
            outputs: outputs.collect(),
            limits: limits(&self.limits)?,
            log_overflow: self.log_overflow,
        })
    }
}

fn number(text: &str) -> Option<u64> {
    text.parse().ok().filter(|number: &u64| number.to_string() == text)
}

fn sha256(digest: &BTreeMap<String, String>) -> Option<Sha256> {
    let hex = digest.get("sha256").filter(|_| digest.len() == 1)?;
    Sha256::parse(hex).ok()
}

fn image(image: &ImageParameter) -> Option<Image> {
    match (image.kind.as_str(), &image.digest, &image.reference) {
        ("host", None, None) => Some(Image::Host),
        ("oci", Some(digest), Some(reference)) => {
            Some(Image::Oci { manifest: sha256(digest)?, reference: reference.clone() })
        }
        ("tar", Some(digest), None) => Some(Image::Tar { sha256: sha256(digest)? }),
        _ => None,
    }
}

fn params(params: &BTreeMap<Name, Param>) -> Option<BTreeMap<Name, ParamValue>> {
    let values = params.iter().map(|(name, param)| {
        let value = match param.kind.as_str() {
            "boolean" => ParamValue::Bool(param.value.parse().ok()?),
            "integer" => ParamValue::Integer(param.value.parse().ok()?),
            "string" => ParamValue::String(param.value.clone()),
            _ => return None,
        };
        Some((name.clone(), value))
    });
    values.collect()
}

fn input(input: &InputParameter) -> Option<Input> {
    let source = match (input.kind.as_str(), &input.git) {
        ("git", Some(git))
            if [input.executable, input.unpack, input.tree] == [None; 3] && input.made_by.is_none() =>
        {
            crate::git::source(input, git)?
        }
        (_, None) => plain(input)?,
        _ => return None,
    };
    Some(Input {
        name: input.name.clone(),
        mount: input.mount.clone(),
        writable: input.writable,
        source,
        exclude: input.exclude.clone(),
    })
}

/// A source that is named by one SHA-256.
fn plain(input: &InputParameter) -> Option<InputSource> {
    let digest = sha256(&input.digest)?;
    let misplaced = !input.mirrors.is_empty() && input.kind != "http";
    let misplaced =
        misplaced || !matches!((input.tree, input.kind.as_str()), (None, _) | (Some(true), "attestation"));
    if misplaced || input.made_by.is_some() != (input.kind == "attestation") {
        return None;
    }
    let source = match (input.kind.as_str(), input.executable, input.unpack) {
        ("directory", None, None) => InputSource::Directory { tree: digest },
        ("file", Some(executable), None) => InputSource::File { sha256: digest, executable },
        ("http", None, Some(unpack)) => {
            let (url, mirrors) = (input.uri.clone(), input.mirrors.clone());
            InputSource::Http { url, sha256: digest, unpack, mirrors }
        }
        ("tar", None, None) => InputSource::Tar { sha256: digest },
        ("attestation", Some(executable), Some(unpack)) => {
            let tree = input.tree == Some(true);
            InputSource::Attestation { sha256: digest, executable, unpack, tree, made_by: made_by(input)? }
        }
        _ => return None,
    };
    Some(source)
}

fn made_by(input: &InputParameter) -> Option<MadeBy> {
    let of = input.made_by.as_ref()?;
    let (job, subject) = input.uri.strip_prefix("urn:uuid:")?.split_once('#')?;
    Some(MadeBy {
        builder: of.builder.clone(),
        key: of.key.clone(),
        job: JobId::parse(job).ok()?,
        subject: OutputName::parse(subject).ok()?,
        statement: of.statement,
    })
}

fn limits(asked: &BTreeMap<String, String>) -> Option<LimitsRequest> {
    let mut out = LimitsRequest::default();
    for (name, value) in asked {
        let field = match name.as_str() {
            "memory_bytes" => &mut out.memory_bytes,
            "cpu_millis" => &mut out.cpu_millis,
            "pids" => &mut out.pids,
            "disk_bytes" => &mut out.disk_bytes,
            "disk_inodes" => &mut out.disk_inodes,
            "log_bytes" => &mut out.log_bytes,
            "timeout_ms" => &mut out.timeout_ms,
            "open_files" => &mut out.open_files,
            _ => return None,
        };
        *field = Some(number(value)?);
    }
    Some(out)
}
