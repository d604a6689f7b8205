//! Git inputs on the wire.

use super::convert::{FieldError, parsed, wrong};
use crate::jobfile::{git_url, tag_name};
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
        if !signer.principal.is_empty() || !signer.key.is_empty() {
            let field = at("signer");
            return Err(wrong(field, "who signed is found here; leave out principal and key"));
        }
        let field = at("signer.allowed_signers_sha256");
        let allowed_signers = parsed(&field, &signer.allowed_signers_sha256, Sha256::parse)?;
        let tag = match signer.tag.as_str() {
            "" => None,
            tag => Some(parsed(&at("signer.tag"), tag, tag_name)?),
        };
        Ok(GitSigner { principal: String::new(), key: String::new(), allowed_signers, tag })
    });
    let tree = match git.tree_sha256.as_str() {
        "" => None,
        text => Some(parsed(&at("tree_sha256"), text, Sha256::parse)?),
    };
    Ok(InputSource::Git {
        url,
        commit: parsed(&at("commit"), &git.commit, GitId::parse)?,
        submodules: git.submodules,
        tree,
        signer: signer.transpose()?,
    })
}

pub(super) fn wire_source(
    url: Option<&str>,
    commit: GitId,
    submodules: bool,
    tree: Option<Sha256>,
    signer: Option<&GitSigner>,
) -> wire::GitSource {
    wire::GitSource {
        url: url.unwrap_or_default().to_owned(),
        commit: commit.to_string(),
        submodules,
        tree_sha256: tree.map(|tree| tree.to_string()).unwrap_or_default(),
        signer: signer.map(|signer| wire::GitSigner {
            principal: signer.principal.clone(),
            key: signer.key.clone(),
            allowed_signers_sha256: signer.allowed_signers.to_string(),
            tag: signer.tag.clone().unwrap_or_default(),
        }),
    }
}
