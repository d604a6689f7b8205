//! Git inputs in attestations: named by their commit, as SLSA names source (`gitCommit`), with the tree digest beside it.

use crate::parameters::InputParameter;
use crate::statement::ResourceDescriptor;
use crate::uri::normal_http;
use ampoule_spec::{GitId, GitSigner, InputSource, Name, Sha256};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a git input is beyond its URI and commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GitParameter {
    /// The tree digest of the checkout, which the runner computed.
    pub tree: Sha256,
    /// Whether submodules are checked out.
    pub submodules: bool,
    /// Who signed it, where the job demands that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<GitSignerParameter>,
}

/// Who signed a commit or tag, as the client verified it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GitSignerParameter {
    /// The principals of the line of the allowed-signers file.
    pub principal: String,
    /// The key's fingerprint.
    pub key: String,
    /// SHA-256 of the allowed-signers file.
    pub allowed_signers: Sha256,
    /// The signed tag; none: the commit itself is signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
}

/// The URI of a git input: of its repository at its commit, or of the client's.
pub(crate) fn uri(name: &Name, url: Option<&str>, commit: GitId) -> Result<String, &'static str> {
    let Some(url) = url else { return Ok(format!("urn:ampoule:input:{name}")) };
    let normal = normal_http(url)?;
    if normal.contains(['?', '#']) {
        return Err("the URL of a repository has neither a query nor a fragment");
    }
    Ok(format!("git+{normal}@{commit}"))
}

/// The digest map of a commit.
pub(crate) fn digest(commit: GitId) -> BTreeMap<String, String> {
    BTreeMap::from([("gitCommit".to_owned(), commit.to_string())])
}

fn commit_of(digest: &BTreeMap<String, String>) -> Option<GitId> {
    let hex = digest.get("gitCommit").filter(|_| digest.len() == 1)?;
    GitId::parse(hex).ok()
}

/// Whether a digest map is that of a commit.
pub(crate) fn is_commit(digest: &BTreeMap<String, String>) -> bool {
    commit_of(digest).is_some()
}

fn commit(input: &InputParameter) -> Option<GitId> {
    commit_of(&input.digest)
}

/// What the parameters say of a source.
pub(crate) fn parameter(source: &InputSource) -> Option<GitParameter> {
    let InputSource::Git { submodules, tree: Some(tree), signer, .. } = source else { return None };
    let signer = signer.as_ref().map(|signer| GitSignerParameter {
        principal: signer.principal.clone(),
        key: signer.key.clone(),
        allowed_signers: signer.allowed_signers,
        tag: signer.tag.clone(),
    });
    Some(GitParameter { tree: *tree, submodules: *submodules, signer })
}

/// The source that parameters describe.
pub(crate) fn source(input: &InputParameter, git: &GitParameter) -> Option<InputSource> {
    let commit = commit(input)?;
    let url = match input.uri.strip_prefix("git+") {
        Some(rest) => Some(rest.strip_suffix(&format!("@{commit}"))?.to_owned()),
        None => None,
    };
    let signer = git.signer.as_ref().map(|signer| GitSigner {
        principal: signer.principal.clone(),
        key: signer.key.clone(),
        allowed_signers: signer.allowed_signers,
        tag: signer.tag.clone(),
    });
    Some(InputSource::Git { url, commit, submodules: git.submodules, tree: Some(git.tree), signer })
}

/// The dependency of a git input.
pub(crate) fn dependency(input: &InputParameter, git: &GitParameter) -> Option<ResourceDescriptor> {
    let out = ResourceDescriptor {
        uri: Some(input.uri.clone()),
        digest: digest(commit(input)?),
        ..Default::default()
    };
    let out = out
        .with_annotation("ampoule_tree_sha256", git.tree.to_string())
        .with_annotation("ampoule_submodules", git.submodules.to_string());
    let Some(signer) = &git.signer else { return Some(out) };
    let out = out
        .with_annotation("ampoule_signed_by", &signer.principal)
        .with_annotation("ampoule_signing_key", &signer.key)
        .with_annotation("ampoule_allowed_signers_sha256", signer.allowed_signers.to_string());
    Some(match &signer.tag {
        Some(tag) => out.with_annotation("ampoule_signed_tag", tag),
        None => out,
    })
}

/// Whether a verifier's `--source` is this input: its URI with or without the commit, `gitCommit:` and the commit, or
/// `sha256:` and the tree digest.
pub(crate) fn is_source(input: &InputParameter, git: &GitParameter, expected: &str) -> bool {
    if let Some(hex) = expected.strip_prefix("sha256:") {
        return git.tree.to_string() == hex;
    }
    if let Some(hex) = expected.strip_prefix("gitCommit:") {
        return input.digest.get("gitCommit").is_some_and(|found| found == hex);
    }
    let normal = expected.strip_prefix("git+").and_then(|url| normal_http(url).ok());
    let expected = normal.map_or_else(|| expected.to_owned(), |url| format!("git+{url}"));
    input.uri == expected || input.uri.rsplit_once('@').is_some_and(|(repository, _)| repository == expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn git_uris_name_repository_and_commit_and_no_secret() {
        let (name, commit) = (Name::parse("src").unwrap(), GitId::new([0xab; 20]));
        let of = |url| uri(&name, Some(url), commit);
        let hex = "ab".repeat(20);
        assert_eq!(
            of("HTTPS://Git.Example/Org/R.git").unwrap(),
            format!("git+https://git.example/Org/R.git@{hex}")
        );
        assert_eq!(uri(&name, None, commit).unwrap(), "urn:ampoule:input:src");
        for bad in [
            "https://u:p@h/r",
            "https://h/r?token=x",
            "https://h/r#x",
            "ssh://h/r",
            "git@h:r",
            "file:///r",
            "",
        ] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
}
