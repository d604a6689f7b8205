//! `ampoule inspect`.

use crate::args::InspectArgs;
use crate::failure::Failed;
use crate::{show, verify};
use ampoule_spec::Code;

/// Shows an attestation.
pub(crate) fn inspect(args: &InspectArgs) -> Result<u8, Failed> {
    let bytes = verify::read_attestation(&args.attestation)?;
    let inspection = ampoule_evidence::inspect(&bytes)
        .map_err(|e| Failed::new(Code::VerifyRefused, format!("{}: {e}", args.attestation.display())))?;
    if args.pae {
        show::bytes(&inspection.pae);
    } else if args.signature {
        show::bytes(&inspection.signature);
    } else {
        for line in &inspection.lines {
            show::data(line);
        }
    }
    Ok(0)
}
