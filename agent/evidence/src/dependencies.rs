//! `resolvedDependencies`: the image first, then the inputs in the job's order.
//!
//! They follow from the external parameters and from what the launcher found as the image, so a verifier
//! can derive them again and compare.

use crate::parameters::{ExternalParameters, InputParameter};
use crate::statement::ResourceDescriptor;
use ampoule_spec::{ImageReport, Sha256};

/// The media type of a directory that is named by its tree digest.
pub(crate) const TREE_MEDIA_TYPE: &str = "application/vnd.ampoule.tree.v1";
const MANIFEST_MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// The dependencies of a job; `None` if a digest in the parameters is not one SHA-256.
pub(crate) fn resolved(
    external: &ExternalParameters,
    found: &ImageReport,
) -> Option<Vec<ResourceDescriptor>> {
    let mut out = vec![image(external, found)];
    for input in &external.inputs {
        out.push(self::input(input)?);
    }
    Some(out)
}

fn image(external: &ExternalParameters, found: &ImageReport) -> ResourceDescriptor {
    let kind = external.image.kind.as_str();
    // ':' is in no input's name, so no input can be taken for the image.
    let mut out =
        ResourceDescriptor::at(&external.image.uri, found.sha256).with_annotation("ampoule_role", "image");
    out.name = Some(format!("image:{kind}"));
    match kind {
        // The digest is of a list of packages. It does not fix the bytes that a build reads.
        "host" => out
            .with_annotation("ampoule_content", "package-list")
            .with_annotation("ampoule_complete", "false")
            .with_annotation("ampoule_named_by", &found.named_by),
        "oci" => out.with_media_type(MANIFEST_MEDIA_TYPE),
        _ => out,
    }
}

fn input(input: &InputParameter) -> Option<ResourceDescriptor> {
    let out = match &input.git {
        Some(git) => crate::git::dependency(input, git)?,
        None => {
            let hex = input.digest.get("sha256").filter(|_| input.digest.len() == 1)?;
            ResourceDescriptor::at(&input.uri, Sha256::parse(hex).ok()?)
        }
    };
    let mut out = out
        .with_annotation("ampoule_role", "input")
        .with_annotation("ampoule_kind", &input.kind)
        .with_annotation("ampoule_mount", input.mount.as_str());
    out.name = Some(input.name.as_str().to_owned());
    if let Some(made_by) = &input.made_by {
        out = out
            .with_annotation("ampoule_builder", &made_by.builder)
            .with_annotation("ampoule_statement", format!("sha256:{}", made_by.statement));
    }
    let is_tree = input.kind == "directory" || input.tree == Some(true);
    Some(if is_tree { out.with_media_type(TREE_MEDIA_TYPE) } else { out })
}
