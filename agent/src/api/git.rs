//! Git inputs on the wire.

use super::convert::{FieldError, parsed, wrong};
use crate::jobfile::git_url;
use ampoule_proto::v1 as wire;
use ampoule_spec::{GitId, GitSigner, InputSource, Sha256};

type Result<T> = std::result::Result<T, FieldError>;

pub(super) fn source(field: &str, git: wire::GitSource) -> Result<InputSource> {
    let at = |name: &str| format!("{field}.git.{name}");
    let url = match git.url.as_str() {
        "" => None,
        text => {
            let url = parsed(&at("url"), text, git_url)?;
            if url.scheme() == "file" {
                return Err(wrong(at("url"), "file URLs are for `ampoule run` alone; upload the repository"));
            }
            Some(git.url)
        }
    };
    let signer = git.signer.map(|signer| {
        Ok(GitSigner {
            principal: signer.principal,
            key: signer.key,
            allowed_signers: parsed(
                &at("signer.allowed_signers_sha256"),
                &signer.allowed_signers_sha256,
                Sha256::parse,
            )?,
            tag: Some(signer.tag).filter(|tag| !tag.is_empty()),
        })
    });
    Ok(InputSource::Git {
        url,
        commit: parsed(&at("commit"), &git.commit, GitId::parse)?,
        submodules: git.submodules,
        tree: parsed(&at("tree_sha256"), &git.tree_sha256, Sha256::parse)?,
        signer: signer.transpose()?,
    })
}

pub(super) fn wire_source(
    url: Option<&str>,
    commit: GitId,
    submodules: bool,
    tree: Sha256,
    signer: Option<&GitSigner>,
) -> wire::GitSource {
    wire::GitSource {
        url: url.unwrap_or_default().to_owned(),
        commit: commit.to_string(),
        submodules,
        tree_sha256: tree.to_string(),
        signer: signer.map(|signer| wire::GitSigner {
            principal: signer.principal.clone(),
            key: signer.key.clone(),
            allowed_signers_sha256: signer.allowed_signers.to_string(),
            tag: signer.tag.clone().unwrap_or_default(),
        }),
    }
}
