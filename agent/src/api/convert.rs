//! `JobRequest` of the wire to [`JobSpec`] and back.
//!
//! Functions and not `TryFrom`, because neither type is this crate's and because the id of a job is the
//! server's to draw: a request holds none.

use crate::inputs::parse_url;
use ampoule_proto::v1 as wire;
use ampoule_spec::{
    Code, EnvName, Image, Input, InputSource, JobId, JobSpec, LimitsRequest, LogOverflow, MadeBy, Name,
    Output, OutputForm, OutputKind, OutputName, OutputWhen, ParamValue, SandboxPath, Sha256, SpecError, Step,
    StepUser,
};
use std::collections::BTreeMap;
use std::fmt::Display;

/// A field of a request that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct FieldError {
    /// The field's path in the message, as in `steps[0].cwd`.
    pub field: String,
    /// What is wrong.
    pub reason: String,
}

impl FieldError {
    /// The bounded code: always `job.invalid`.
    pub fn code(&self) -> Code {
        Code::JobInvalid
    }
}

type Result<T> = std::result::Result<T, FieldError>;

pub(super) fn wrong(field: impl Into<String>, reason: impl Display) -> FieldError {
    FieldError { field: field.into(), reason: reason.to_string() }
}

/// Parses a text with the field's path in the error.
pub(super) fn parsed<T, E: Display>(
    field: &str,
    text: &str,
    parse: impl FnOnce(&str) -> std::result::Result<T, E>,
) -> Result<T> {
    parse(text).map_err(|e| wrong(field, e))
}

/// Checks a request and takes it as the spec of the sandbox `id`.
///
/// # Errors
/// The first field that is wrong.
pub fn job_spec(request: wire::JobRequest, id: JobId) -> Result<JobSpec> {
    let params = request.params.into_iter().map(|(name, value)| {
        let field = format!("params[{name:?}]");
        Ok((parsed(&field, &name, Name::parse)?, param(&field, value)?))
    });
    let (limits, log_overflow) = limits(request.limits.unwrap_or_default())?;
    let spec = JobSpec {
        ampoule: request.ampoule,
        id,
        attempt: request.attempt,
        name: parsed("name", &request.name, Name::parse)?,
        profile: parsed("profile", &request.profile, Name::parse)?,
        image: image(request.image)?,
        user: user(request.user)?,
        source_date_epoch: request.source_date_epoch,
        epoch_of_commit: request.source_date_epoch_of_commit,
        env: env("env", request.env)?,
        params: params.collect::<Result<_>>()?,
        inputs: each(request.inputs, |at, input| self::input(&format!("inputs[{at}]"), input))?,
        secrets: each(request.secrets, |at, secret| {
            super::secret::secret(&format!("secrets[{at}]"), secret)
        })?,
        steps: each(request.steps, |at, step| self::step(&format!("steps[{at}]"), step))?,
        outputs: each(request.outputs, |at, output| self::output(&format!("outputs[{at}]"), output))?,
        limits,
        log_overflow,
    };
    spec.validate().map_err(wire_field)?;
    Ok(spec)
}

fn each<T, U>(items: Vec<T>, convert: impl Fn(usize, T) -> Result<U>) -> Result<Vec<U>> {
    items.into_iter().enumerate().map(|(at, item)| convert(at, item)).collect()
}

/// A broken rule with the path of the message's field: the spec's paths are those of the job file.
fn wire_field(error: SpecError) -> FieldError {
    let (first, rest) = match error.field.find(['[', '.']) {
        Some(at) => error.field.split_at(at),
        None => (error.field.as_str(), ""),
    };
    let first = match first {
        "input" => "inputs",
        "secret" => "secrets",
        "step" => "steps",
        "output" => "outputs",
        other => other,
    };
    let rest = match rest.strip_suffix(".timeout") {
        Some(before) => format!("{before}.timeout_ms"),
        None => rest.to_owned(),
    };
    FieldError { field: format!("{first}{rest}"), reason: error.reason }
}

fn image(image: Option<wire::Image>) -> Result<Image> {
    use wire::image::Kind;
    match image.and_then(|image| image.kind) {
        None => Err(wrong("image", "missing")),
        Some(Kind::Host(wire::HostImage {})) => Ok(Image::Host),
        Some(Kind::Oci(oci)) => Ok(Image::Oci {
            manifest: parsed("image.oci.manifest_sha256", &oci.manifest_sha256, Sha256::parse)?,
            reference: oci.reference,
        }),
        Some(Kind::Tar(tar)) => {
            Ok(Image::Tar { sha256: parsed("image.tar.sha256", &tar.sha256, Sha256::parse)? })
        }
    }
}

/// The number of an enumeration that this build does not know: a newer client means something by it.
pub(super) fn unknown(field: impl Into<String>, number: i32) -> FieldError {
    wrong(field, format!("{number} is not known"))
}

fn user(number: i32) -> Result<StepUser> {
    match wire::StepUser::try_from(number) {
        Ok(wire::StepUser::Unspecified | wire::StepUser::Build) => Ok(StepUser::Build),
        Ok(wire::StepUser::Root) => Ok(StepUser::Root),
        Err(_) => Err(unknown("user", number)),
    }
}

fn log_overflow(number: i32) -> Result<LogOverflow> {
    match wire::LogOverflow::try_from(number) {
        Ok(wire::LogOverflow::Unspecified | wire::LogOverflow::Cut) => Ok(LogOverflow::Cut),
        Ok(wire::LogOverflow::Fail) => Ok(LogOverflow::Fail),
        Err(_) => Err(unknown("limits.log_overflow", number)),
    }
}

fn param(field: &str, value: wire::ParamValue) -> Result<ParamValue> {
    use wire::param_value::Kind;
    match value.kind {
        None => Err(wrong(field, "a value without a kind")),
        Some(Kind::StringValue(value)) => Ok(ParamValue::String(value)),
        Some(Kind::IntegerValue(value)) => Ok(ParamValue::Integer(value)),
        Some(Kind::BoolValue(value)) => Ok(ParamValue::Bool(value)),
    }
}

fn env(field: &str, env: BTreeMap<String, String>) -> Result<BTreeMap<EnvName, String>> {
    env.into_iter()
        .map(|(name, value)| Ok((parsed(&format!("{field}[{name:?}]"), &name, EnvName::parse)?, value)))
        .collect()
}

fn input(field: &str, input: wire::Input) -> Result<Input> {
    use wire::input::Source;
    let digest = |name: &str, text: &str| parsed(&format!("{field}.{name}"), text, Sha256::parse);
    let source = match input.source {
        None => return Err(wrong(field, "the input has no source")),
        Some(Source::Directory(directory)) => {
            InputSource::Directory { tree: digest("directory.tree_sha256", &directory.tree_sha256)? }
        }
        Some(Source::File(file)) => {
            InputSource::File { sha256: digest("file.sha256", &file.sha256)?, executable: file.executable }
        }
        Some(Source::Http(http)) => {
            web_url(format!("{field}.http.url"), &http.url)?;
            for (at, mirror) in http.mirrors.iter().enumerate() {
                web_url(format!("{field}.http.mirrors[{at}]"), mirror)?;
            }
            let sha256 = digest("http.sha256", &http.sha256)?;
            InputSource::Http { url: http.url, sha256, unpack: http.unpack, mirrors: http.mirrors }
        }
        Some(Source::Git(git)) => super::git::source(field, git)?,
        Some(Source::Tar(tar)) => InputSource::Tar { sha256: digest("tar.sha256", &tar.sha256)? },
        Some(Source::Attestation(made)) => attested(&format!("{field}.attestation"), made)?,
    };
    Ok(Input {
        name: parsed(&format!("{field}.name"), &input.name, Name::parse)?,
        mount: parsed(&format!("{field}.mount"), &input.mount, SandboxPath::parse)?,
        writable: input.writable,
        source,
        exclude: input.exclude,
    })
}

fn web_url(field: String, text: &str) -> Result<()> {
    // A file URL is a path of some host; on the wire there is none.
    if parsed(&field, text, parse_url)?.scheme() == "file" {
        return Err(wrong(field, "file URLs are for `ampoule run` alone; upload the file"));
    }
    Ok(())
}

fn attested(field: &str, made: wire::AttestationSource) -> Result<InputSource> {
    let field = |name: &str| format!("{field}.{name}");
    Ok(InputSource::Attestation {
        sha256: parsed(&field("sha256"), &made.sha256, Sha256::parse)?,
        executable: made.executable,
        unpack: made.unpack,
        tree: made.tree,
        made_by: MadeBy {
            builder: made.builder,
            key: made.key,
            job: parsed(&field("job_id"), &made.job_id, JobId::parse)?,
            subject: parsed(&field("subject"), &made.subject, OutputName::parse)?,
            statement: parsed(&field("statement_sha256"), &made.statement_sha256, Sha256::parse)?,
        },
    })
}

fn step(field: &str, step: wire::Step) -> Result<Step> {
    Ok(Step {
        name: parsed(&format!("{field}.name"), &step.name, Name::parse)?,
        run: step.run,
        cwd: parsed(&format!("{field}.cwd"), &step.cwd, SandboxPath::parse)?,
        env: env(&format!("{field}.env"), step.env)?,
        timeout_ms: step.timeout_ms,
        secrets: super::secret::names(field, &step.secrets)?,
    })
}

fn output(field: &str, output: wire::Output) -> Result<Output> {
    let when = match wire::OutputWhen::try_from(output.when) {
        Ok(wire::OutputWhen::Unspecified | wire::OutputWhen::Success) => OutputWhen::Success,
        Ok(wire::OutputWhen::Always) => OutputWhen::Always,
        Err(_) => return Err(unknown(format!("{field}.when"), output.when)),
    };
    let kind = match wire::OutputKind::try_from(output.kind) {
        Ok(wire::OutputKind::Unspecified | wire::OutputKind::Artifact) => OutputKind::Artifact,
        Ok(wire::OutputKind::Report) => OutputKind::Report,
        Err(_) => return Err(unknown(format!("{field}.kind"), output.kind)),
    };
    let form = match wire::OutputForm::try_from(output.form) {
        Ok(wire::OutputForm::Unspecified) => None,
        Ok(wire::OutputForm::File) => Some(OutputForm::File),
        Ok(wire::OutputForm::Tree) => Some(OutputForm::Tree),
        Ok(wire::OutputForm::TarZst) => Some(OutputForm::TarZst),
        Err(_) => return Err(unknown(format!("{field}.form"), output.form)),
    };
    Ok(Output {
        name: parsed(&format!("{field}.name"), &output.name, OutputName::parse)?,
        path: parsed(&format!("{field}.path"), &output.path, SandboxPath::parse)?,
        when,
        kind,
        optional: output.optional,
        form,
    })
}

fn limits(limits: wire::LimitsRequest) -> Result<(LimitsRequest, LogOverflow)> {
    let wire::LimitsRequest {
        memory_bytes,
        cpu_millis,
        pids,
        disk_bytes,
        disk_inodes,
        log_bytes,
        timeout_ms,
        open_files,
        log_overflow,
    } = limits;
    let nonzero = |field: &str, value: Option<u64>| match value {
        Some(0) => Err(wrong(format!("limits.{field}"), "0 is not allowed; leave it out for the default")),
        other => Ok(other),
    };
    let request = LimitsRequest {
        memory_bytes: nonzero("memory_bytes", memory_bytes)?,
        cpu_millis: nonzero("cpu_millis", cpu_millis)?,
        pids: nonzero("pids", pids)?,
        disk_bytes: nonzero("disk_bytes", disk_bytes)?,
        disk_inodes: nonzero("disk_inodes", disk_inodes)?,
        log_bytes: nonzero("log_bytes", log_bytes)?,
        timeout_ms: nonzero("timeout_ms", timeout_ms)?,
        open_files: nonzero("open_files", open_files)?,
    };
    Ok((request, self::log_overflow(log_overflow)?))
}

/// The request that gives this spec, without its id.
pub fn job_request(spec: &JobSpec) -> wire::JobRequest {
    wire::JobRequest {
        ampoule: spec.ampoule,
        attempt: spec.attempt,
        name: spec.name.to_string(),
        profile: spec.profile.to_string(),
        image: Some(wire::Image { kind: Some(wire_image(&spec.image)) }),
        source_date_epoch: spec.source_date_epoch,
        source_date_epoch_of_commit: spec.epoch_of_commit,
        env: wire_env(&spec.env),
        params: spec.params.iter().map(|(name, value)| (name.to_string(), wire_param(value))).collect(),
        inputs: spec.inputs.iter().map(wire_input).collect(),
        secrets: spec.secrets.iter().map(super::secret::wire_secret).collect(),
        steps: spec.steps.iter().map(wire_step).collect(),
        outputs: spec.outputs.iter().map(wire_output).collect(),
        limits: Some(wire_limits(&spec.limits, spec.log_overflow)),
        user: wire_user(spec.user).into(),
    }
}

fn wire_image(image: &Image) -> wire::image::Kind {
    use wire::image::Kind;
    match image {
        Image::Host => Kind::Host(wire::HostImage {}),
        Image::Oci { manifest, reference } => {
            Kind::Oci(wire::OciImage { manifest_sha256: manifest.to_string(), reference: reference.clone() })
        }
        Image::Tar { sha256 } => Kind::Tar(wire::TarImage { sha256: sha256.to_string() }),
    }
}

fn wire_user(user: StepUser) -> wire::StepUser {
    match user {
        StepUser::Build => wire::StepUser::Build,
        StepUser::Root => wire::StepUser::Root,
    }
}

fn wire_env(env: &BTreeMap<EnvName, String>) -> BTreeMap<String, String> {
    env.iter().map(|(name, value)| (name.to_string(), value.clone())).collect()
}

fn wire_param(value: &ParamValue) -> wire::ParamValue {
    use wire::param_value::Kind;
    let kind = match value {
        ParamValue::String(value) => Kind::StringValue(value.clone()),
        ParamValue::Integer(value) => Kind::IntegerValue(*value),
        ParamValue::Bool(value) => Kind::BoolValue(*value),
    };
    wire::ParamValue { kind: Some(kind) }
}

fn wire_input(input: &Input) -> wire::Input {
    use wire::input::Source;
    let source = match &input.source {
        InputSource::Directory { tree } => {
            Source::Directory(wire::DirectorySource { tree_sha256: tree.to_string() })
        }
        InputSource::File { sha256, executable } => {
            Source::File(wire::FileSource { sha256: sha256.to_string(), executable: *executable })
        }
        InputSource::Http { url, sha256, unpack, mirrors } => Source::Http(wire::HttpSource {
            url: url.clone(),
            sha256: sha256.to_string(),
            unpack: *unpack,
            mirrors: mirrors.clone(),
        }),
        InputSource::Git { url, commit, submodules, tree, signer } => {
            Source::Git(super::git::wire_source(url.as_deref(), *commit, *submodules, *tree, signer.as_ref()))
        }
        InputSource::Tar { sha256 } => Source::Tar(wire::TarSource { sha256: sha256.to_string() }),
        InputSource::Attestation { sha256, executable, unpack, tree, made_by } => {
            Source::Attestation(wire::AttestationSource {
                sha256: sha256.to_string(),
                executable: *executable,
                unpack: *unpack,
                tree: *tree,
                builder: made_by.builder.clone(),
                key: made_by.key.clone(),
                job_id: made_by.job.to_string(),
                subject: made_by.subject.to_string(),
                statement_sha256: made_by.statement.to_string(),
                // It is no part of a spec: whoever asks adds it.
                provenance: Vec::new(),
            })
        }
    };
    wire::Input {
        name: input.name.to_string(),
        mount: input.mount.to_string(),
        writable: input.writable,
        source: Some(source),
        exclude: input.exclude.clone(),
    }
}

fn wire_step(step: &Step) -> wire::Step {
    wire::Step {
        name: step.name.to_string(),
        run: step.run.clone(),
        cwd: step.cwd.to_string(),
        env: wire_env(&step.env),
        timeout_ms: step.timeout_ms,
        secrets: step.secrets.iter().map(ToString::to_string).collect(),
    }
}

fn wire_output(output: &Output) -> wire::Output {
    let when = match output.when {
        OutputWhen::Success => wire::OutputWhen::Success,
        OutputWhen::Always => wire::OutputWhen::Always,
    };
    let kind = match output.kind {
        OutputKind::Artifact => wire::OutputKind::Artifact,
        OutputKind::Report => wire::OutputKind::Report,
    };
    let form = match output.form {
        None => wire::OutputForm::Unspecified,
        Some(OutputForm::File) => wire::OutputForm::File,
        Some(OutputForm::Tree) => wire::OutputForm::Tree,
        Some(OutputForm::TarZst) => wire::OutputForm::TarZst,
    };
    wire::Output {
        name: output.name.to_string(),
        path: output.path.to_string(),
        when: when.into(),
        kind: kind.into(),
        optional: output.optional,
        form: form.into(),
    }
}

fn wire_limits(limits: &LimitsRequest, overflow: LogOverflow) -> wire::LimitsRequest {
    let overflow = match overflow {
        LogOverflow::Cut => wire::LogOverflow::Cut,
        LogOverflow::Fail => wire::LogOverflow::Fail,
    };
    wire::LimitsRequest {
        memory_bytes: limits.memory_bytes,
        cpu_millis: limits.cpu_millis,
        pids: limits.pids,
        disk_bytes: limits.disk_bytes,
        disk_inodes: limits.disk_inodes,
        log_bytes: limits.log_bytes,
        timeout_ms: limits.timeout_ms,
        open_files: limits.open_files,
        log_overflow: overflow.into(),
    }
}
