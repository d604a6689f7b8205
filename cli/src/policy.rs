//! `ampoule policy test`: the operator's policy against the operator's cases.

use crate::args::PolicyTestArgs;
use crate::failure::Failed;
use crate::show;
use ampoule_agent::admission::{Decision, run_cases};
use ampoule_spec::Code;

/// Runs the cases and shows those that do not hold.
pub(crate) fn test(args: &PolicyTestArgs) -> Result<u8, Failed> {
    let results = run_cases(&args.dir).map_err(|e| Failed::new(Code::FileUnusable, e.to_string()))?;
    let mut failed = 0;
    for result in results.iter().filter(|result| !result.holds()) {
        failed += 1;
        let expected = if result.expected { "allowed" } else { "denied" };
        let got = match &result.decision {
            Decision::Allowed => "allowed".to_owned(),
            Decision::Denied => "denied".to_owned(),
            Decision::Failed(reason) => format!("the policy failed: {reason}"),
        };
        show::data(&format!("FAILED {}: expected {expected}, got {got}", result.name));
    }
    match failed {
        0 => {
            show::line(&format!("{}: {} cases hold", args.dir.display(), results.len()));
            Ok(0)
        }
        _ => {
            let text = format!("{}: {failed} of {} cases do not hold", args.dir.display(), results.len());
            Err(Failed::new(Code::VerifyRefused, text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_that_hold_end_with_0_and_others_with_2() {
        let example = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/policy");
        assert_eq!(test(&PolicyTestArgs { dir: example.clone() }).unwrap(), 0);
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(
            test(&PolicyTestArgs { dir: dir.path().to_owned() }).unwrap_err().code,
            Code::FileUnusable
        );
        std::fs::copy(example.join("authz.rego"), dir.path().join("authz.rego")).unwrap();
        std::fs::create_dir(dir.path().join("cases")).unwrap();
        // Without the data nobody has a role, so that the cases that expect one do not hold.
        std::fs::copy(example.join("cases/roles.json"), dir.path().join("cases/roles.json")).unwrap();
        assert_eq!(
            test(&PolicyTestArgs { dir: dir.path().to_owned() }).unwrap_err().code,
            Code::VerifyRefused
        );
    }
}
