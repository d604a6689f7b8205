//! `ampoule verify`.

use crate::args::VerifyArgs;
use crate::failure::Failed;
use crate::{run, show};
use ampoule_agent::artifact::{Artifact, artifact};
use ampoule_agent::files::read_file;
use ampoule_agent::trusted::Believed;
use ampoule_evidence::{ATTESTATION_BYTES_MAX, Kind, TrustedKey, Verified, VerifyRequest};
use ampoule_spec::Code;
use serde_json::json;
use std::path::Path;

/// Verifies an artifact against its attestation.
pub(crate) fn verify(args: &VerifyArgs) -> Result<u8, Failed> {
    let trusted = trusted_keys(args)?;
    let attestation = read_attestation(&args.attestation)?;
    let artifact = artifact(&args.file)
        .map_err(|e| Failed::new(Code::FileUnusable, format!("{}: {e}", args.file.display())))?;
    let params = run::params(&args.params)?;
    let request = VerifyRequest {
        attestation: &attestation,
        trusted: &trusted,
        artifact: artifact.sha256,
        tree: artifact.tree,
        kind: if args.run { Kind::Run } else { Kind::Provenance },
        builder: args.builder.as_deref(),
        source: args.source.as_deref(),
        params: &params,
        allow_dev: args.allow_dev,
    };
    match ampoule_evidence::verify(&request) {
        Ok(verified) => {
            print(args, &verified, artifact);
            Ok(0)
        }
        Err(error) => {
            let mut failed = Failed::of(error.code(), &error);
            if args.json {
                show::json(&json!({"verified": false, "reason": failed.message}));
            }
            failed.message.insert_str(0, "refused: ");
            Err(failed)
        }
    }
}

fn trusted_keys(args: &VerifyArgs) -> Result<Vec<TrustedKey>, Failed> {
    let believed = match (&args.trust, &args.key) {
        (Some(path), _) => Believed::Trust(path),
        (None, Some(path)) => Believed::Key(path),
        (None, None) => return Ok(Vec::new()),
    };
    believed.keys().map_err(|error| {
        let code = if error.unreadable { Code::FileUnusable } else { Code::Usage };
        Failed::new(code, error.to_string())
    })
}

/// Reads an attestation, bounded.
pub(crate) fn read_attestation(path: &Path) -> Result<Vec<u8>, Failed> {
    read_file(path, ATTESTATION_BYTES_MAX as u64).map_err(|e| Failed::file(path, &e))
}

fn print(args: &VerifyArgs, verified: &Verified, artifact: Artifact) {
    let sha256 = artifact.sha256;
    if args.json {
        show::json(&json!({
            "verified": true, "file": args.file, "sha256": sha256, "tree": artifact.tree, "builder": verified.builder,
            "subjects": verified.subjects, "predicateType": verified.predicate_type,
            "buildType": verified.build_type, "invocation": verified.invocation,
            "outcome": verified.outcome, "key": verified.key_fingerprint, "checks": verified.checks,
        }));
        return;
    }
    let what = if artifact.tree { "tree " } else { "" };
    show::line(&format!("verified {} ({what}sha256:{sha256})", args.file.display()));
    show::line(&format!("  subject     {}", verified.subjects.join(", ")));
    show::line(&format!("  builder     {}", verified.builder));
    show::line(&format!("  invocation  {} ({})", verified.invocation, verified.outcome.as_str()));
    show::line(&format!("  key         {}", verified.key_fingerprint));
    show::line(&format!("  checked     {}", verified.checks.join(", ")));
}
