//! From a job file to a spec: parameters and the places of inputs first, digests after the import.

use super::error::JobFileError;
use super::fields::Fields;
use super::git::GitPlan;
use super::image::ImageRef;
use super::model::{JobFile, OutputEntry, PathDigest, SecretEntry, SourceEntry, StepEntry, Text};
use super::params;
use super::upstream::UpstreamPlan;
use super::{CWD_DEFAULT, PROFILE_DEFAULT, SOURCE_DATE_EPOCH_DEFAULT, STEP_TIMEOUT_MS_DEFAULT};
use crate::registry::Reference;
use ampoule_spec::{
    Code, EnvName, FORMAT, Image, Input, InputSource, JobId, JobSpec, LimitsRequest, LogOverflow, Name,
    Output, ParamValue, SPEC_BYTES_MAX, SandboxPath, Secret, Sha256, Step, StepUser,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

type Result<T> = std::result::Result<T, JobFileError>;
type Params = BTreeMap<Name, ParamValue>;

/// Stands for the id and the digests that are not known yet when a job is first held against the rules.
const DRAFT_ID: &str = "00000000-0000-7000-8000-000000000000";

/// A job with its parameters and defaults, whose inputs are named by where they lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobPlan {
    /// The job's name.
    pub name: Name,
    /// The profile's name.
    pub profile: Name,
    /// What the sandbox's root is made of.
    pub image: ImagePlan,
    /// Who the steps are inside the sandbox.
    pub user: StepUser,
    /// Seconds since 1970.
    pub source_date_epoch: u64,
    /// Whether it is the time of the commit of the first git input: see [`JobPlan::resolve_epoch`].
    pub epoch_of_commit: bool,
    /// Variables for all steps.
    pub env: BTreeMap<EnvName, String>,
    /// Every declared parameter with its value, defaults included.
    pub params: BTreeMap<Name, ParamValue>,
    /// The inputs, in the order in which [`JobPlan::into_spec`] wants their digests.
    pub inputs: Vec<InputPlan>,
    /// The secrets that steps may have, by name.
    pub secrets: Vec<Secret>,
    /// The steps.
    pub steps: Vec<Step>,
    /// The outputs.
    pub outputs: Vec<Output>,
    /// What the job asks to use.
    pub limits: LimitsRequest,
    /// What it means that a step writes more log than is kept.
    pub log_overflow: LogOverflow,
    pub(crate) fields: Fields,
}

/// Where an image lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImagePlan {
    /// The host's own `/usr`.
    Host,
    /// An OCI layout directory.
    OciLayout {
        /// The directory.
        dir: PathBuf,
        /// The tag that must name the same digest.
        tag: Option<String>,
        /// The digest that the job names: of the manifest, or of an image index.
        pinned: Sha256,
        /// SHA-256 of the manifest that is used: `pinned` until [`JobPlan::resolve_image`].
        manifest: Sha256,
    },
    /// An image in a registry.
    Registry {
        /// Where it lies.
        reference: Reference,
        /// The digest that the job names: of the manifest, or of an image index.
        pinned: Sha256,
        /// SHA-256 of the manifest that is used: `pinned` until [`JobPlan::resolve_image`].
        manifest: Sha256,
    },
    /// A root file system in one tar archive.
    Tar {
        /// The archive.
        file: PathBuf,
        /// SHA-256 of its bytes.
        sha256: Sha256,
    },
}

/// An input before its bytes are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputPlan {
    /// The input's name.
    pub name: Name,
    /// Where it appears.
    pub mount: SandboxPath,
    /// Whether steps may write to a layer over it.
    pub writable: bool,
    /// Where its bytes come from.
    pub source: SourcePlan,
    /// What of a directory is left out, as patterns of .gitignore.
    pub exclude: Vec<String>,
}

/// Where an input's bytes come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourcePlan {
    /// A file or directory here.
    Path {
        /// Where.
        path: PathBuf,
        /// What it must hold; none: what that is is known after the import.
        digest: Option<PathDigest>,
    },
    /// A download.
    Http {
        /// Where to fetch.
        url: String,
        /// SHA-256 of the bytes.
        sha256: Sha256,
        /// Whether it is an archive to unpack.
        unpack: bool,
        /// Where else the same bytes are.
        mirrors: Vec<String>,
    },
    /// The checkout of a commit.
    Git(GitPlan),
    /// An archive here, to unpack.
    Tar {
        /// The archive.
        path: PathBuf,
        /// SHA-256 of its bytes.
        sha256: Sha256,
    },
    /// What another job has made; its digest is known when its provenance is verified.
    Attestation(UpstreamPlan),
}

impl JobFile {
    /// Fills in parameters and defaults and looks whether what the file names is there. Relative paths are
    /// taken from `base`, the directory of the job file.
    ///
    /// # Errors
    /// `job.invalid` for a parameter that is unknown, missing or of another type; `input.missing` for a path
    /// that is not there; `input.refused` for one that is neither a file nor a directory;
    /// `file.unusable` for one that cannot be looked at.
    pub fn plan(&self, base: &Path, params: &BTreeMap<String, String>) -> Result<JobPlan> {
        let params = params::resolve(&self.params, params, &self.fields)?;
        let plan = self.assemble(base, params)?;
        plan.check()?;
        Ok(plan)
    }

    /// Holds the file against the rules of a spec before any parameter is known.
    pub(crate) fn check_alone(&self) -> Result<()> {
        self.assemble(Path::new(""), Params::new())?.check_rules()
    }

    fn assemble(&self, base: &Path, params: Params) -> Result<JobPlan> {
        let fields = &self.fields;
        let internal = |e: &dyn std::fmt::Display| {
            JobFileError::whole(Code::Internal, &fields.file, "", e.to_string(), "")
        };
        let profile = match &self.profile {
            Some(profile) => profile.clone(),
            None => Name::parse(PROFILE_DEFAULT).map_err(|e| internal(&e))?,
        };
        let cwd = SandboxPath::parse(CWD_DEFAULT).map_err(|e| internal(&e))?;
        let steps = self.steps.iter().enumerate();
        let outputs = self.outputs.iter().enumerate();
        Ok(JobPlan {
            name: self.name.clone(),
            profile,
            image: ImagePlan::of(&self.image, base),
            user: self.user.unwrap_or_default(),
            source_date_epoch: self.source_date_epoch.unwrap_or(SOURCE_DATE_EPOCH_DEFAULT),
            epoch_of_commit: self.epoch_of_commit,
            env: values(&self.env, &params),
            inputs: self
                .inputs
                .iter()
                .map(|input| InputPlan {
                    name: input.name.clone(),
                    mount: input.mount.clone(),
                    writable: input.writable.unwrap_or(false),
                    source: SourcePlan::of(&input.source, base),
                    exclude: input.exclude.clone(),
                })
                .collect(),
            secrets: self.secrets.iter().map(SecretEntry::declared).collect(),
            steps: steps
                .map(|(at, entry)| step(at, entry, &cwd, &params).map_err(|e| internal(&e)))
                .collect::<Result<_>>()?,
            outputs: outputs.map(|(at, entry)| output(at, entry, fields)).collect::<Result<_>>()?,
            limits: self.limits.clone(),
            log_overflow: self.log_overflow.unwrap_or_default(),
            params,
            fields: fields.clone(),
        })
    }
}

fn value(text: &Text, params: &Params) -> String {
    match text {
        Text::Literal(text) => text.clone(),
        // Every used parameter is declared; only while the file is checked alone has none a value.
        Text::Param(name) => params.get(name).map_or_else(|| "x".to_owned(), params::spelt),
    }
}

fn values(env: &BTreeMap<EnvName, Text>, params: &Params) -> BTreeMap<EnvName, String> {
    env.iter().map(|(name, text)| (name.clone(), value(text, params))).collect()
}

fn step(
    at: usize,
    entry: &StepEntry,
    cwd: &SandboxPath,
    params: &Params,
) -> std::result::Result<Step, ampoule_spec::NameError> {
    let name = match &entry.name {
        Some(name) => name.clone(),
        None => Name::parse(&format!("step-{}", at + 1))?,
    };
    Ok(Step {
        name,
        run: entry.run.iter().map(|text| value(text, params)).collect(),
        cwd: entry.cwd.as_ref().unwrap_or(cwd).clone(),
        env: values(&entry.env, params),
        timeout_ms: entry.timeout_ms.unwrap_or(STEP_TIMEOUT_MS_DEFAULT),
        secrets: entry.secrets.clone(),
    })
}

fn output(at: usize, entry: &OutputEntry, fields: &Fields) -> Result<Output> {
    let Some(name) = entry.effective_name() else {
        let field = format!("output[{at}].path");
        return Err(fields.error(Code::JobInvalid, &field, "the root itself cannot be an output", ""));
    };
    Ok(Output {
        name,
        path: entry.path.clone(),
        when: entry.when.unwrap_or_default(),
        kind: entry.kind.unwrap_or_default(),
        optional: entry.optional.unwrap_or(false),
        form: entry.form,
    })
}

impl ImagePlan {
    pub(crate) fn of(image: &ImageRef, base: &Path) -> Self {
        match image {
            ImageRef::Host => Self::Host,
            ImageRef::OciLayout { dir, tag, sha256 } => {
                Self::OciLayout { dir: base.join(dir), tag: tag.clone(), pinned: *sha256, manifest: *sha256 }
            }
            ImageRef::Registry { reference, sha256 } => {
                Self::Registry { reference: reference.clone(), pinned: *sha256, manifest: *sha256 }
            }
            ImageRef::Tar { file, sha256 } => Self::Tar { file: base.join(file), sha256: *sha256 },
        }
    }

    /// The image for the spec. Its reference says what was asked for without the directory, which is a path
    /// of this host.
    fn for_spec(&self) -> Image {
        match self {
            Self::Host => Image::Host,
            Self::OciLayout { tag, pinned, manifest, .. } => {
                let tag = tag.as_deref().map(|tag| format!(":{tag}")).unwrap_or_default();
                Image::Oci { manifest: *manifest, reference: format!("oci{tag}@sha256:{pinned}") }
            }
            Self::Registry { reference, pinned, manifest } => {
                Image::Oci { manifest: *manifest, reference: format!("{reference}@sha256:{pinned}") }
            }
            Self::Tar { sha256, .. } => Image::Tar { sha256: *sha256 },
        }
    }
}

fn is_file(url: &str) -> bool {
    url.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("file:"))
}

impl SourcePlan {
    fn of(source: &SourceEntry, base: &Path) -> Self {
        match source {
            SourceEntry::Path { path, digest } => Self::Path { path: base.join(path), digest: *digest },
            SourceEntry::Http { url, sha256, unpack, mirrors } => Self::Http {
                url: url.clone(),
                sha256: *sha256,
                unpack: unpack.unwrap_or(false),
                mirrors: mirrors.clone(),
            },
            SourceEntry::Git(entry) => Self::Git(GitPlan::of(entry, base)),
            SourceEntry::Tar { path, sha256 } => Self::Tar { path: base.join(path), sha256: *sha256 },
            SourceEntry::Attestation(entry) => Self::Attestation(UpstreamPlan::of(entry, base)),
        }
    }

    /// A source that is as long as the real one, for a first check.
    fn draft(&self) -> InputSource {
        match self {
            Self::Path { digest: Some(PathDigest::Tree(tree)), .. } => InputSource::Directory { tree: *tree },
            Self::Path { digest: Some(PathDigest::File(sha256)), .. } => {
                InputSource::File { sha256: *sha256, executable: false }
            }
            Self::Path { digest: None, .. } | Self::Attestation(_) => {
                InputSource::Directory { tree: Sha256::new([0; 32]) }
            }
            // A file URL names a path of this host, which belongs in no spec: what it gives is a file of ours.
            Self::Http { url, sha256, unpack: false, .. } if is_file(url) => {
                InputSource::File { sha256: *sha256, executable: false }
            }
            Self::Http { url, sha256, unpack: true, .. } if is_file(url) => {
                InputSource::Tar { sha256: *sha256 }
            }
            Self::Http { url, sha256, unpack, mirrors } => InputSource::Http {
                url: url.clone(),
                sha256: *sha256,
                unpack: *unpack,
                mirrors: mirrors.clone(),
            },
            Self::Git(plan) => plan.draft(),
            Self::Tar { sha256, .. } => InputSource::Tar { sha256: *sha256 },
        }
    }

    /// What a pinned source is in the spec; none for one of which something is known only when it is taken in: a
    /// digest, or whether a file may be executed.
    pub fn pinned(&self) -> Option<InputSource> {
        (!matches!(self, Self::Path { .. } | Self::Git(_) | Self::Attestation(_))).then(|| self.draft())
    }

    /// Whether `source` is what this plan became.
    fn agrees(&self, source: &InputSource) -> bool {
        match self {
            Self::Path { digest, .. } => match source {
                InputSource::Directory { tree } => digest.is_none_or(|d| d == PathDigest::Tree(*tree)),
                InputSource::File { sha256, .. } => digest.is_none_or(|d| d == PathDigest::File(*sha256)),
                _ => false,
            },
            Self::Git(plan) => plan.agrees(source),
            Self::Http { .. } | Self::Tar { .. } => *source == self.draft(),
            Self::Attestation(plan) => {
                let wanted = (plan.executable, plan.unpack);
                // Whether it is a directory is the provenance's to say.
                matches!(source, InputSource::Attestation { executable, unpack, .. } if (*executable, *unpack) == wanted)
            }
        }
    }
}

impl JobPlan {
    /// Names the manifest that a layout or registry gave for the pinned digest, which may be that of an image index.
    pub fn resolve_image(&mut self, digest: Sha256) {
        if let ImagePlan::OciLayout { manifest, .. } | ImagePlan::Registry { manifest, .. } = &mut self.image
        {
            *manifest = digest;
        }
    }

    /// Says when the commit of the first git input was made.
    pub fn resolve_epoch(&mut self, seconds: u64) {
        if std::mem::take(&mut self.epoch_of_commit) {
            self.source_date_epoch = seconds;
        }
    }

    /// The spec, with one source for each input in the order of `inputs`.
    ///
    /// # Errors
    /// `job.invalid` with the line in the file for a rule that the job breaks; `internal` if the sources are
    /// not those of this plan.
    pub fn into_spec(self, id: JobId, attempt: u32, sources: Vec<InputSource>) -> Result<JobSpec> {
        let defect = |field: String, reason: &str| {
            JobFileError::whole(Code::Internal, &self.fields.file, &field, reason, "")
        };
        if sources.len() != self.inputs.len() {
            return Err(defect("input".to_owned(), "the number of imported inputs is another one"));
        }
        for (at, (input, source)) in self.inputs.iter().zip(&sources).enumerate() {
            if !input.source.agrees(source) {
                return Err(defect(format!("input[{at}]"), "what was imported is not what was planned"));
            }
        }
        self.spec(id, attempt, sources)
    }

    /// That the job asks for no secret: for whoever has none to give.
    ///
    /// # Errors
    /// `job.invalid` with the first secret's line.
    pub fn demands_no_secret(&self) -> Result<()> {
        let Some(first) = self.secrets.first() else { return Ok(()) };
        let reason = format!("the secret {} comes with a lease, which only a daemon keeps", first.name);
        let remedy = "give the job to one with `ampoule submit`, or remove [[secret]]";
        Err(self.fields.error(Code::JobInvalid, "secret[0]", reason, remedy))
    }

    /// Everything that can be checked before the first byte is read.
    pub(crate) fn check(&self) -> Result<()> {
        self.check_rules()?;
        self.check_places()
    }

    /// Holds the plan against the rules with drafts of what is not known yet, so that a wrong job fails
    /// before anything is fetched.
    fn check_rules(&self) -> Result<()> {
        let internal = |e: ampoule_spec::NameError| {
            JobFileError::whole(Code::Internal, &self.fields.file, "", e.to_string(), "")
        };
        let id = JobId::parse(DRAFT_ID).map_err(internal)?;
        let sources = self.inputs.iter().map(|input| input.source.draft()).collect();
        self.clone().spec(id, u32::MAX, sources).map(drop)
    }

    fn spec(self, id: JobId, attempt: u32, sources: Vec<InputSource>) -> Result<JobSpec> {
        let fields = self.fields;
        let inputs = self.inputs.into_iter().zip(sources).map(|(input, source)| Input {
            name: input.name,
            mount: input.mount,
            writable: input.writable,
            source,
            exclude: input.exclude,
        });
        let spec = JobSpec {
            ampoule: FORMAT,
            id,
            attempt,
            name: self.name,
            profile: self.profile,
            image: self.image.for_spec(),
            user: self.user,
            source_date_epoch: if self.epoch_of_commit { 0 } else { self.source_date_epoch },
            epoch_of_commit: self.epoch_of_commit,
            env: self.env,
            params: self.params,
            inputs: inputs.collect(),
            secrets: self.secrets,
            steps: self.steps,
            outputs: self.outputs,
            limits: self.limits,
            log_overflow: self.log_overflow,
        };
        spec.validate().map_err(|e| fields.spec_error(e))?;
        let length = serde_json::to_vec(&spec).map(|json| u64::try_from(json.len()).unwrap_or(u64::MAX));
        match length {
            Ok(length) if length <= SPEC_BYTES_MAX => Ok(spec),
            Ok(length) => {
                let reason =
                    format!("the job's spec has {length} bytes; at most {SPEC_BYTES_MAX} are accepted");
                Err(fields.error(Code::JobInvalid, "", reason, "large content belongs into an input"))
            }
            Err(e) => Err(fields.error(Code::Internal, "", e.to_string(), "")),
        }
    }
}
