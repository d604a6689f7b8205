//! `git = { … }` of an input.

use super::error::JobFileError;
use super::read::{Table, Value};
use crate::git::GitPlace;
use crate::inputs::parse_url;
use ampoule_spec::{GitId, GitIdError, InputSource, Sha256};
use reqwest::Url;
use std::path::{Path, PathBuf};

type Result<T> = std::result::Result<T, JobFileError>;

const KEYS: &[&str] = &["url", "path", "commit", "submodules", "allowed_signers", "tag"];
/// The most characters in the name of a tag.
const TAG_CHARS_MAX: usize = 100;

/// `git` as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitEntry {
    /// The repository's URL.
    pub url: Option<String>,
    /// Or a repository here.
    pub path: Option<String>,
    /// The commit.
    pub commit: GitId,
    /// Whether submodules are checked out.
    pub submodules: Option<bool>,
    /// The file that says whose signature counts.
    pub allowed_signers: Option<String>,
    /// The annotated tag whose signature is looked at instead of the commit's.
    pub tag: Option<String>,
}

/// A git input before anything is fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitPlan {
    /// Where the repository lies.
    pub place: GitPlace,
    /// The commit.
    pub commit: GitId,
    /// Whether submodules are checked out.
    pub submodules: bool,
    /// The file that says whose signature counts; none: nobody looks at signatures.
    pub allowed_signers: Option<PathBuf>,
    /// The annotated tag whose signature is looked at instead of the commit's.
    pub tag: Option<String>,
}

/// Checks the URL of a repository: `http`, `https` or `file`, without user information, query and fragment.
///
/// # Errors
/// What is wrong and what to write instead.
pub fn git_url(text: &str) -> std::result::Result<Url, String> {
    let url = parse_url(text)?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err("the URL of a repository has neither a query nor a fragment; leave it out".to_owned());
    }
    Ok(url)
}

/// Checks the name of a tag, without `refs/tags/`.
///
/// # Errors
/// That it is none.
pub fn tag_name(text: &str) -> std::result::Result<String, &'static str> {
    // A part of what git-check-ref-format(1) allows.
    let plain = |c: char| c.is_ascii_alphanumeric() || "._/+@-".contains(c);
    let parts =
        text.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock"));
    if text.len() > TAG_CHARS_MAX
        || !text.chars().all(plain)
        || !parts
        || text.contains("..")
        || text.starts_with('-')
    {
        return Err("not the name of a tag");
    }
    Ok(text.to_owned())
}

/// Reads the table.
pub(super) fn entry(value: &Value<'_>, path: impl Fn(&Value<'_>) -> Result<String>) -> Result<GitEntry> {
    let table = value.table("{ url = \"https://…\", commit = \"ID\" }")?;
    let moving = ["branch", "ref", "rev"].iter().find_map(|key| table.get(key));
    if let Some(moving) = moving {
        return Err(unpinned(&moving, "what a branch or tag names can change"));
    }
    table.only(KEYS)?;
    let (url, place) = (table.get("url"), table.get("path"));
    let url = match (&url, &place) {
        (Some(url), None) => Some(location(url)?),
        (None, Some(_)) => None,
        (None, None) => return Err(table.missing("url", "\"https://…\"")),
        (Some(_), Some(second)) => {
            return Err(second.wrong("the repository has a url and a path", "name exactly one"));
        }
    };
    let place = place.map(|place| path(&place)).transpose()?;
    let commit = commit(&table, value)?;
    let submodules = table.get("submodules").map(|v| v.boolean()).transpose()?;
    let signers = table.get("allowed_signers").map(|v| path(&v)).transpose()?;
    let tag = table.get("tag").map(|v| tag(&v, signers.is_some())).transpose()?;
    Ok(GitEntry { url, path: place, commit, submodules, allowed_signers: signers, tag })
}

fn location(value: &Value<'_>) -> Result<String> {
    let text = value.text("a URL", "\"https://example.org/r.git\"")?;
    let scp = !text.contains("://") && text.contains(':');
    if scp || text.starts_with("ssh:") || text.starts_with("git:") {
        let remedy = "give the repository's https URL; for a repository here, path = \"DIR\"";
        return Err(value.wrong("repositories are fetched by https alone", remedy));
    }
    git_url(text).map_err(|reason| value.wrong(reason, "for a repository here write path = \"DIR\""))?;
    Ok(text.to_owned())
}

fn commit(table: &Table<'_>, whole: &Value<'_>) -> Result<GitId> {
    let Some(value) = table.get("commit") else { return Err(unpinned(whole, "no commit is named")) };
    let text = value.text("the id of a commit", "\"4b825d…\"")?;
    GitId::parse(text).map_err(|e| match e {
        GitIdError::Sha256 => value.wrong(e.to_string(), "use a repository with SHA-1 ids"),
        e => unpinned(&value, &e.to_string()),
    })
}

fn unpinned(value: &Value<'_>, reason: &str) -> JobFileError {
    value.unpinned(
        reason,
        "run `ampoule pin`, or name the commit: commit = \"40 DIGITS\"; `git ls-remote URL REF` prints them",
    )
}

fn tag(value: &Value<'_>, has_signers: bool) -> Result<String> {
    let text = value.text("the name of a tag", "\"v1.2\"")?;
    if !has_signers {
        let remedy =
            "add allowed_signers = \"FILE\", or leave tag out: the commit alone says what is fetched";
        return Err(value.wrong("a tag is there for its signature, and nobody is allowed to sign", remedy));
    }
    match tag_name(text) {
        Ok(name) => Ok(name),
        Err(reason) => Err(value.wrong(reason, "write it without refs/tags/, as in \"v1.2\"")),
    }
}

impl GitPlan {
    pub(super) fn of(entry: &GitEntry, base: &Path) -> Self {
        let place = match (&entry.url, &entry.path) {
            (Some(url), _) => match Url::parse(url).ok().filter(|url| url.scheme() == "file") {
                Some(url) => {
                    url.to_file_path().map_or_else(|()| GitPlace::Url(url.to_string()), GitPlace::Path)
                }
                None => GitPlace::Url(url.clone()),
            },
            (None, path) => GitPlace::Path(base.join(path.as_deref().unwrap_or_default())),
        };
        Self {
            place,
            commit: entry.commit,
            submodules: entry.submodules.unwrap_or(false),
            allowed_signers: entry.allowed_signers.as_ref().map(|path| base.join(path)),
            tag: entry.tag.clone(),
        }
    }

    /// A source that is as long as the real one but for a signer, for a first check. A repository here is a path of this
    /// host, which belongs in no spec.
    pub(super) fn draft(&self) -> InputSource {
        let url = match &self.place {
            GitPlace::Url(url) => Some(url.clone()),
            GitPlace::Path(_) => None,
        };
        let (commit, submodules, tree) = (self.commit, self.submodules, Some(Sha256::new([0; 32])));
        InputSource::Git { url, commit, submodules, tree, signer: None }
    }

    /// Whether `source` is what this plan became.
    pub(super) fn agrees(&self, source: &InputSource) -> bool {
        let InputSource::Git { url, commit, submodules, signer, .. } = source else { return false };
        let InputSource::Git { url: planned, .. } = self.draft() else { return false };
        let signed = match signer {
            Some(signer) => self.allowed_signers.is_some() && signer.tag == self.tag,
            None => self.allowed_signers.is_none(),
        };
        *url == planned && *commit == self.commit && *submodules == self.submodules && signed
    }
}
