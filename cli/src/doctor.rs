//! `ampoule doctor`.

use crate::args::DoctorArgs;
use crate::failure::Failed;
use crate::{run, show};
use ampoule_agent::local::{Runner, find_runner};
use ampoule_spec::{Code, Exit, Name};
use serde_json::json;

/// Measures what this host can isolate; 69 if the profile cannot be met.
pub(crate) fn doctor(args: &DoctorArgs) -> Result<u8, Failed> {
    let profile = args.profile.as_deref().unwrap_or(run::default_profile());
    let profile = Name::parse(profile).map_err(|e| Failed::new(Code::Usage, format!("--profile: {e}")))?;
    let state = run::state_dir(&args.host)?;
    ampoule_agent::local::make_state(&state)?;
    let runner = Runner::start(&find_runner()?, &state, args.host.profiles.as_deref())?;
    let (isolation, missing) = runner.doctor(profile.clone())?;
    if args.json {
        show::json(
            &json!({"profile": profile, "met": missing.is_empty(), "layers": isolation.layers, "missing": missing}),
        );
    } else {
        for (layer, measured) in &isolation.layers {
            let state = if measured.in_force { "yes" } else { "NO " };
            show::data(&format!("{state}  {layer:<40} {}", measured.detail));
        }
        for reason in &missing {
            show::line(&format!("missing: {reason}"));
        }
        let verdict =
            if missing.is_empty() { "can be met on this host" } else { "cannot be met on this host" };
        show::line(&format!("profile {profile} {verdict}"));
    }
    Ok(if missing.is_empty() { Exit::Success as u8 } else { Exit::Unsupported as u8 })
}
