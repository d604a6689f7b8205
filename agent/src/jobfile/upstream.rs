//! `attestation = { … }` of an input: what another job has made, by the provenance that is verified for it.

use super::error::JobFileError;
use super::read::Value;
use super::sections::{host_path, optional};
use crate::inputs::parse_url;
use crate::trusted::Believed;
use ampoule_spec::OutputName;
use std::path::{Path, PathBuf};

const KEYS: &[&str] =
    &["file", "path", "url", "subject", "key", "trust", "builder", "allow_dev", "executable", "unpack"];
const EXAMPLE: &str =
    "{ file = \"libz.a.intoto.jsonl\", path = \"libz.a\", trust = \"trust.json\", builder = \"https://…\" }";

/// What another job has made, as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamEntry {
    /// The attestation here: a DSSE envelope or a Sigstore bundle.
    pub file: String,
    /// Where the artifact lies.
    pub artifact: ArtifactPlace<String>,
    /// Which subject it is.
    pub subject: Option<OutputName>,
    /// Whose word is believed.
    pub believed: Believed<String>,
    /// The builder that must have signed.
    pub builder: Option<String>,
    /// Whether a `dev` builder will do.
    pub allow_dev: bool,
    /// Whether it may be executed.
    pub executable: bool,
    /// Whether it is an archive to unpack.
    pub unpack: bool,
}

/// Where an artifact lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ArtifactPlace<P> {
    /// Here.
    Path(P),
    /// At a URL. The provenance says what the bytes must be.
    Url(String),
    /// In the store of the host that runs the job, or nowhere.
    Store,
}

/// What another job has made, with the paths of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamPlan {
    /// The attestation.
    pub file: PathBuf,
    /// Where the artifact lies.
    pub artifact: ArtifactPlace<PathBuf>,
    /// Which subject it is.
    pub subject: Option<OutputName>,
    /// Whose word is believed.
    pub believed: Believed<PathBuf>,
    /// The builder that must have signed.
    pub builder: Option<String>,
    /// Whether a `dev` builder will do.
    pub allow_dev: bool,
    /// Whether it may be executed.
    pub executable: bool,
    /// Whether it is an archive to unpack.
    pub unpack: bool,
}

impl UpstreamPlan {
    pub(super) fn of(entry: &UpstreamEntry, base: &Path) -> Self {
        Self {
            file: base.join(&entry.file),
            artifact: match &entry.artifact {
                ArtifactPlace::Path(path) => ArtifactPlace::Path(base.join(path)),
                ArtifactPlace::Url(url) => ArtifactPlace::Url(url.clone()),
                ArtifactPlace::Store => ArtifactPlace::Store,
            },
            subject: entry.subject.clone(),
            believed: match &entry.believed {
                Believed::Key(path) => Believed::Key(base.join(path)),
                Believed::Trust(path) => Believed::Trust(base.join(path)),
            },
            builder: entry.builder.clone(),
            allow_dev: entry.allow_dev,
            executable: entry.executable,
            unpack: entry.unpack,
        }
    }

    /// Every file here that must be there, with its key.
    pub(super) fn files(&self) -> Vec<(&'static str, &Path)> {
        let mut files = vec![("file", self.file.as_path())];
        if let ArtifactPlace::Path(path) = &self.artifact {
            files.push(("path", path));
        }
        files.push(match &self.believed {
            Believed::Key(path) => ("key", path),
            Believed::Trust(path) => ("trust", path),
        });
        files
    }
}

/// Reads the table.
pub(super) fn upstream(value: &Value<'_>) -> Result<UpstreamEntry, JobFileError> {
    let table = value.table(EXAMPLE)?;
    table.only(KEYS)?;
    let file = host_path(&table.need("file", "\"libz.a.intoto.jsonl\"")?)?;
    let artifact = match (table.get("path"), table.get("url")) {
        (Some(path), None) => ArtifactPlace::Path(host_path(&path)?),
        (None, Some(url)) => {
            let text = url.text("a URL", "\"https://example.org/libz.a\"")?;
            parse_url(text).map_err(|reason| url.wrong(reason, ""))?;
            ArtifactPlace::Url(text.to_owned())
        }
        (None, None) => ArtifactPlace::Store,
        (Some(_), Some(url)) => return Err(url.wrong("both path and url are there", "name one of them")),
    };
    let believed = match (table.get("key"), table.get("trust")) {
        (Some(key), None) => Believed::Key(host_path(&key)?),
        (None, Some(trust)) => Believed::Trust(host_path(&trust)?),
        (None, None) => {
            let remedy = "add trust = \"trust.json\" (keys pinned to their builders) or key = \"KEY.pub\"";
            return Err(value.wrong("nothing says which key is believed", remedy));
        }
        (Some(_), Some(trust)) => {
            return Err(trust.wrong("both key and trust are there", "name one of them"));
        }
    };
    let builder =
        optional(&table, "builder", |v| v.text("a builder's id", "\"https://…\"").map(str::to_owned))?;
    if builder.is_none() && matches!(believed, Believed::Key(_)) {
        // A trust file pins each key to its builder; a bare key says nothing of the kind.
        return Err(table.missing("builder", "\"https://…/builders/hermetic/v1\""));
    }
    let executable = optional(&table, "executable", Value::boolean)?.unwrap_or(false);
    let unpack = optional(&table, "unpack", Value::boolean)?.unwrap_or(false);
    if let (true, true, Some(value)) = (executable, unpack, table.get("executable")) {
        return Err(
            value.wrong("an archive says itself what in it may be executed", "remove executable or unpack")
        );
    }
    Ok(UpstreamEntry {
        file,
        artifact,
        subject: optional(&table, "subject", |v| v.parsed("a subject", "\"libz.a\"", OutputName::parse))?,
        believed,
        builder,
        allow_dev: optional(&table, "allow_dev", Value::boolean)?.unwrap_or(false),
        executable,
        unpack,
    })
}
