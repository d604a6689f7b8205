//! `ampoule push`.

use crate::args::PushArgs;
use crate::failure::Failed;
use crate::{show, sources};
use ampoule_agent::export::{Destination, Exported, export};
use ampoule_agent::registry::{Access, AuthFile};
use ampoule_spec::Code;
use serde_json::json;

/// Exports what a run has released.
pub(crate) fn push(args: &PushArgs) -> Result<u8, Failed> {
    let to = Destination::parse(&args.to)
        .map_err(|reason| Failed::new(Code::Usage, format!("{:?}: {reason}", args.to)))?;
    let auth = args.registry_auth.as_deref().map(AuthFile::read).transpose()?;
    let access = Access::new(sources::policy(&args.sources)?, auth);
    let exported =
        export(&args.out, &args.output, &to, &access).map_err(|error| Failed::of(error.code(), &error))?;
    print(args, &exported);
    Ok(0)
}

fn print(args: &PushArgs, exported: &Exported) {
    let Exported { manifest, attestation, sent, there, by_tag, outputs } = exported;
    if args.json {
        show::json(&json!({
            "event": "pushed", "to": args.to, "manifest": format!("sha256:{manifest}"),
            "attestation": format!("sha256:{attestation}"), "sent": sent, "there": there, "byTag": by_tag,
            "outputs": outputs,
        }));
        return;
    }
    show::line(&format!("pushed {} to {}", outputs.join(", "), args.to));
    show::line(&format!("  manifest     sha256:{manifest}"));
    show::line(&format!("  attestation  sha256:{attestation}, which refers to it"));
    show::line(&format!("  blobs        {sent} sent, {there} were there"));
    if *by_tag {
        show::line(&format!("  found by     the tag sha256-{manifest}: the registry has no referrers API"));
    }
}
