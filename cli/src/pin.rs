//! `ampoule pin`.

use crate::args::PinArgs;
use crate::failure::Failed;
use crate::{show, sources};
use ampoule_agent::pin::{PinFile, Pinned};
use ampoule_agent::registry::AuthFile;
use ampoule_spec::Code;
use serde_json::json;

/// Pins a job file, or says what is not pinned.
pub(crate) fn pin(args: &PinArgs) -> Result<u8, Failed> {
    let file = PinFile::load(&args.job)?;
    if args.check {
        return check(args, &file);
    }
    let policy = sources::policy(&args.sources)?;
    let auth = args.registry_auth.as_deref().map(AuthFile::read).transpose()?;
    let pinned = file.pin(&policy, auth, &args.path, &mut |pinned| say(args, pinned))?;
    if args.json {
        show::json(&json!({"event": "result", "file": args.job, "pinned": pinned.len()}));
    } else {
        show::line(&format!("{}: {} pinned", args.job.display(), pinned.len()));
    }
    Ok(0)
}

fn check(args: &PinArgs, file: &PinFile) -> Result<u8, Failed> {
    let (unpinned, stale) = (file.unpinned(), file.stale()?);
    for one in &stale {
        let (pinned, found) = (one.pinned.sha256(), one.found.sha256());
        if args.json {
            show::json(&json!({
                "event": "stale", "field": one.field, "what": one.what,
                "pin": format!("sha256:{pinned}"), "found": format!("sha256:{found}"),
            }));
        } else {
            show::line(&format!(
                "{}: {}: {} is sha256:{found} and not sha256:{pinned}; if that is meant to be so, run \
                 `ampoule pin --path {}` on it",
                args.job.display(),
                one.field,
                one.what,
                one.input,
            ));
        }
    }
    for one in &unpinned {
        if args.json {
            show::json(&json!({"event": "unpinned", "field": one.field(), "what": one.what()}));
        } else {
            show::line(&format!("{}: {}: {} is not pinned", args.job.display(), one.field(), one.what()));
        }
    }
    if let (true, Some(first)) = (unpinned.is_empty(), stale.first()) {
        let what = format!("{}: {} changed since they were pinned", args.job.display(), stale.len());
        let reason = format!("{what}, the first is {} at {}", first.what, first.field);
        return Err(Failed::new(Code::InputDigestMismatch, reason));
    }
    if unpinned.is_empty() {
        if args.json {
            show::json(&json!({"event": "result", "file": args.job, "unpinned": 0}));
        } else {
            show::line(&format!("{}: everything is pinned", args.job.display()));
        }
        return Ok(0);
    }
    let reason = format!("{}: {} not pinned; run `ampoule pin` on it", args.job.display(), unpinned.len());
    Err(Failed::new(Code::InputUnpinned, reason))
}

fn say(args: &PinArgs, pinned: &Pinned) {
    if args.json {
        show::json(&json!({
            "event": "pinned", "field": pinned.field, "what": pinned.what, "pin": pinned.pin, "from": pinned.from,
        }));
        return;
    }
    let from = pinned.from.as_ref().map(|from| format!(" (from {from})")).unwrap_or_default();
    show::line(&format!("{}: {} is {}{from}", pinned.field, pinned.what, pinned.pin));
}
