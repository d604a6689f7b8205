//! `ampoule verify`.

use crate::args::VerifyArgs;
use crate::failure::Failed;
use crate::{run, show};
use ampoule_agent::artifact::{Artifact, artifact};
use ampoule_evidence::{
    ATTESTATION_BYTES_MAX, Kind, PublicKey, TrustFile, TrustedKey, Verified, VerifyRequest,
};
use ampoule_spec::Code;
use serde_json::json;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The most bytes of a key or trust file.
const TRUST_BYTES_MAX: u64 = 1 << 20;

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
    let bad = |path: &Path, reason: String| Failed::new(Code::Usage, format!("{}: {reason}", path.display()));
    if let Some(path) = &args.trust {
        let bytes = read_limited(path, TRUST_BYTES_MAX)?;
        return Ok(TrustFile::parse(&bytes).map_err(|e| bad(path, e.to_string()))?.keys);
    }
    let Some(path) = &args.key else { return Ok(Vec::new()) };
    let bytes = read_limited(path, TRUST_BYTES_MAX)?;
    let text = String::from_utf8(bytes).map_err(|_| bad(path, "it is not a PEM file".to_owned()))?;
    let key = PublicKey::from_pem(&text).map_err(|e| bad(path, e.to_string()))?;
    Ok(vec![TrustedKey::any(key)])
}

/// Reads an attestation, bounded.
pub(crate) fn read_attestation(path: &Path) -> Result<Vec<u8>, Failed> {
    read_limited(path, ATTESTATION_BYTES_MAX as u64)
}

fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, Failed> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|e| Failed::file(path, &e))?;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| Failed::file(path, &e))?;
    if bytes.len() as u64 > limit {
        let text = format!("{}: more than {limit} bytes", path.display());
        return Err(Failed::new(Code::FileUnusable, text));
    }
    Ok(bytes)
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
