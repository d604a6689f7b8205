//! `ampoule drain`.

use super::Remote;
use super::args::DrainArgs;
use crate::failure::Failed;
use crate::show;
use ampoule_proto::v1 as proto;
use ampoule_spec::Exit;
use serde_json::json;

/// Stops or resumes the intake of a host. What runs is not touched.
pub(crate) fn drain(args: &DrainArgs) -> Result<u8, Failed> {
    let remote = Remote::new(&args.server)?;
    let request = proto::DrainRequest { drain: !args.undo, cancel_queued: args.cancel_queued };
    let left = remote.ask(remote.client.drain(request))?;
    if args.json {
        show::json(&json!({"drained": !args.undo, "running": left.running, "queued": left.queued}));
    } else {
        let what = if args.undo { "taken again" } else { "not taken any more" };
        show::data(&format!("jobs are {what}: {} run, {} wait", left.running, left.queued));
    }
    Ok(Exit::Success as u8)
}
